"""Where no pool can work, or would start processes without end: it says so at once."""

from __future__ import annotations

import errno
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, expect, script

from primitive_jobs import JobExecutor, JobPool, WorkerDiedError, default_pool, run
from primitive_jobs._procs import guardian, interpreter, process

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PYTHON = sys.executable

# --- the interpreter ------------------------------------------------------------------------------


@pytest.fixture
def _executable_back() -> Iterator[None]:
    yield
    multiprocessing.set_executable(PYTHON)


def program(path: Path, content: str, mode: int = 0o755) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def another_python(folder: Path) -> Path:
    """Another one than this: a program that becomes it."""
    return program(folder / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')


def other_than_python(folder: Path) -> Path:
    """A program that fails, and leaves a line for each time that it was started."""
    return program(folder / "other", '#!/bin/sh\necho "$@" >> "$0.starts"\nexit 1\n')


UNSTARTABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: folder / "missing", os.strerror(errno.ENOENT)),
    "not executable": (
        lambda folder: program(folder / "python", "", 0o644),
        os.strerror(errno.EACCES),
    ),
    "a folder's child": (
        lambda folder: program(folder / "a", "") / "python",
        os.strerror(errno.ENOTDIR),
    ),
    "no program": (lambda folder: program(folder / "python", "\x00"), os.strerror(errno.ENOEXEC)),
    "not Python": (other_than_python, "exited with code 1: "),
    "not known": (lambda folder: "", "sys.executable is not set"),
}


@pytest.mark.usefixtures("_executable_back")
@pytest.mark.parametrize("what", UNSTARTABLE)
def test_an_interpreter_that_cannot_be_started_is_told_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    make, why = UNSTARTABLE[what]
    path = make(tmp_path)
    multiprocessing.set_executable(str(path))
    if not path:
        monkeypatch.setattr(sys, "executable", path)
    with JobPool(2) as pool:
        jobs = [pool.submit(abs, -n) for n in range(4)]
        for job in jobs:
            error = job.exception(PATIENCE)
            assert isinstance(error, WorkerDiedError)
            assert why in str(error)
            assert str(path) in str(error)
            assert "multiprocessing.set_executable" in str(error)
            assert "middle of the job" not in str(error)
        multiprocessing.set_executable(PYTHON)
        assert pool.submit(abs, -1).result(PATIENCE) == 1
    starts = tmp_path / "other.starts"
    assert not starts.exists() or len(starts.read_text().splitlines()) < 20


@pytest.mark.usefixtures("_executable_back")
def test_a_program_that_neither_begins_nor_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_BEGINNING", 0.2)
    monkeypatch.setattr(guardian, "GIVE_UP", 0.2)
    path = program(tmp_path / "other", "#!/bin/sh\nexec sleep 1000\n")
    multiprocessing.set_executable(str(path))
    with JobPool(1) as pool:
        error = pool.submit(abs, -1).exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        for part in (str(path), "did not come as far", "multiprocessing.set_executable"):
            assert part in str(error)
        monkeypatch.setattr(process, "_BEGINNING", PATIENCE)
        # One of another name, for which it is waited too.
        multiprocessing.set_executable(str(another_python(tmp_path).rename(path)))
        assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.usefixtures("_executable_back")
def test_one_that_is_gone_later_costs_no_worker_that_is_there(tmp_path: Path) -> None:
    path = another_python(tmp_path)
    multiprocessing.set_executable(str(path))
    with JobPool(1, spare_workers=0) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        path.unlink()  # the guard runs already
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert pool.submit(os._exit, 3).exception(PATIENCE)
        error = pool.submit(abs, -1).exception(PATIENCE)
        assert "No such file or directory; multiprocessing.set_exec" in str(error)
        assert str(path) in str(error)
        program(path, "", 0o644)
        error = pool.submit(abs, -1).exception(PATIENCE)
        assert f"{os.strerror(errno.EACCES)}; multiprocessing.set_exec" in str(error)
        multiprocessing.set_executable(PYTHON)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


FROZEN = """\
#!{python}
import sys
sys.path.insert(0, {root!r})
sys.frozen, sys.executable = True, __file__
open({starts!r}, "a").write("started\\n")
from primitive_jobs import JobExecutor, JobPool, run
for call in (JobPool, JobExecutor, lambda: run(abs, -1)):
    try:
        call()
    except RuntimeError as error:
        assert "frozen" in str(error) and "multiprocessing.set_executable" in str(error), error
    else:
        raise AssertionError(call)
import multiprocessing
if {named}:
    multiprocessing.set_executable({other!r})
    print(run(abs, -1).result(30))
"""


@pytest.mark.parametrize("other", [True, False], ids=["another was named", "none was named"])
def test_a_frozen_program_does_not_start_itself(tmp_path: Path, other: bool) -> None:
    starts = tmp_path / "starts"
    source = FROZEN.format(
        python=sys.executable,
        root=str(Path(__file__).parent.parent),
        starts=str(starts),
        other=str(another_python(tmp_path)),
        named=other,
    )
    path = program(tmp_path / "frozen", source)
    done = subprocess.run([path], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n" if other else "", "")
    assert starts.read_text() == "started\n"


@pytest.mark.usefixtures("_executable_back")
def test_a_frozen_program_is_not_started_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    itself = tmp_path / "itself"
    itself.symlink_to(Path("/proc/self/exe").resolve())
    multiprocessing.set_executable(str(itself))
    with pytest.raises(RuntimeError, match="without end"):
        JobPool(1)
    # One that is named after the pool was made.
    multiprocessing.set_executable(str(another_python(tmp_path)))
    with JobPool(1) as pool:
        multiprocessing.set_executable(str(itself))
        error = pool.submit(abs, -1).exception(PATIENCE)
        assert "frozen" in str(error)


def test_an_archive_without_sources_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        def get_source(self, name: str) -> None:
            return None

    name = "primitive_jobs._worker.boot"
    spec = ModuleSpec(name, Loader(), origin="/missing.pyz/boot.py")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(RuntimeError, match=f"the source of {name} is not part"):
        interpreter.script(name)


def test_the_first_script_of_a_process_is_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "first.py"
    spec = ModuleSpec("first", None, origin=str(file))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)

    def run_it(*flags: str) -> list[str]:
        command = [sys.executable, *flags, *interpreter.script("first"), "argument"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    source = "import sys; print(__name__, __file__, *sys.argv, {!r}, sep='\\n')"
    file.write_text(source.format("one"))
    known = ["__main__", str(file), str(file), "argument"]
    assert run_it("-B") == [*known, "one"]
    assert not (tmp_path / "__pycache__").exists()
    assert run_it() == [*known, "one"]
    (kept,) = (tmp_path / "__pycache__").iterdir()
    # What is kept is what runs, until the source is another one.
    ours = kept.read_bytes()
    kept.write_bytes(ours.replace(b"one", b"two"))
    assert run_it("-I", "-S", "-B") == [*known, "two"]
    file.write_text(source.format("three"))
    assert run_it("-I", "-S", "-B") == [*known, "three"]
    assert run_it() == [*known, "three"]
    assert kept.read_bytes() != ours


# --- pools in pools -------------------------------------------------------------------------------


def dig() -> str:
    try:
        run(dig)
    except RuntimeError as error:
        return f"no pool: {error}"
    return f"{os.getpid()} {run(dig).result(PATIENCE)}"


@pytest.mark.parametrize("limit", [None, 1, 2], ids=["by default", "1", "2"])
def test_pools_in_pools_have_a_limit(limit: int | None) -> None:
    env = {} if limit is None else {"PRIMITIVE_JOBS_MAX_DEPTH": str(limit)}
    with JobPool(1, spare_workers=0, env=env) as pool:
        text = pool.submit(dig).result(PATIENCE)
    above, told, why = text.partition("no pool: ")
    most = limit or 3
    assert len(above.split()) == most - 1
    assert told, text
    for part in (f"{most} deep", "when it is imported", "PRIMITIVE_JOBS_MAX_DEPTH"):
        assert part in why


def refuse(make: Any) -> str:
    try:
        make()
    except RuntimeError as error:
        return str(error)
    return ""


def refused_in_a_fork() -> str:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(refuse(JobPool)))
    process.start()
    text = str(receiver.recv())
    process.join()
    return text


def work_by_joblib() -> None:
    import joblib

    from primitive_jobs.joblib import register

    register()
    with joblib.parallel_config("primitive_jobs", n_jobs=2):
        joblib.Parallel()(joblib.delayed(abs)(n) for n in range(2))


@pytest.mark.parametrize(
    "way", ["JobPool", "default_pool", "JobExecutor", "joblib", "in a fork", "for another program"]
)
def test_whatever_makes_a_pool_knows_the_limit(way: str) -> None:
    code = "from primitive_jobs import run; print(run(abs, -1).result(20))"
    with JobPool(1, spare_workers=0, env={"PRIMITIVE_JOBS_MAX_DEPTH": "1"}) as pool:
        if way == "for another program":  # it begins anew
            job = pool.submit(subprocess.check_output, [sys.executable, "-c", code], text=True)
            assert job.result(PATIENCE) == "1\n"
            return
        if way == "joblib":
            pytest.importorskip("joblib")
        makers: dict[str, Any] = {
            "JobPool": JobPool,
            "default_pool": default_pool,
            "JobExecutor": JobExecutor,
            "joblib": work_by_joblib,
        }
        if way == "in a fork":
            text = pool.submit(refused_in_a_fork).result(PATIENCE)
        else:
            text = pool.submit(refuse, makers[way]).result(PATIENCE)
        assert "1 deep" in text
        # Nothing was started for it: neither a worker nor a guard.
        assert pool.submit(lambda: len(psutil.Process().children())).result(PATIENCE) == 0


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "2.5"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PRIMITIVE_JOBS_MAX_DEPTH", value)
    with pytest.raises(ValueError, match=f"PRIMITIVE_JOBS_MAX_DEPTH must be .* not '{value}'"):
        JobPool(1)


def test_a_module_that_submits_when_it_is_imported_ends(tmp_path: Path) -> None:
    (tmp_path / "submits.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from primitive_jobs import run\n"
        "Path(__file__).with_name(f'pid-{os.getpid()}').touch()\n"
        "def f(): return 1\n"
        "run(f).result()\n"
    )
    (tmp_path / "main.py").write_text("import submits\n")
    with script(str(tmp_path / "main.py")) as started:
        status, out, err = started.finish()
        assert (status, out) == (1, "")
        assert "RuntimeError: no pool can be made in this job" in err.splitlines()[-1]
        assert "when it is imported" in err.splitlines()[-1]
        started.assert_nothing_left()
    assert 2 <= len(list(tmp_path.glob("pid-*"))) <= 8


# --- gevent, eventlet -----------------------------------------------------------------------------

REFUSED = """
from primitive_jobs import JobExecutor, JobPool, run
for call in (JobPool, JobExecutor, lambda: run(abs, -1)):
    try:
        call()
    except RuntimeError as error:
        assert "{library}" in str(error) and "{remedy}" in str(error), error
    else:
        raise AssertionError(call)
import threading
assert threading.active_count() == 1
print("refused")
"""
FAKES = {
    "gevent": """
import sys, types
monkey = types.ModuleType("gevent.monkey")
monkey.is_module_patched = lambda name: name in {names}
sys.modules["gevent.monkey"] = monkey
""",
    "eventlet": """
import sys, types
patcher = types.ModuleType("eventlet.patcher")
patcher.is_monkey_patched = lambda name: name in {names}
sys.modules["eventlet.patcher"] = patcher
""",
}
REMEDIES = {
    "gevent": "patch_all(thread=False, select=False, subprocess=False, queue=False)",
    "eventlet": "monkey_patch(socket=True, time=True, os=True)",
}


@pytest.mark.parametrize("library", FAKES)
def test_patched_threads_are_refused(tmp_path: Path, library: str) -> None:
    fake = FAKES[library].format(names=("thread", "threading"))
    refused = REFUSED.format(library=library, remedy=REMEDIES[library])
    expect(tmp_path, fake + refused, "refused\n")


@pytest.mark.parametrize("library", FAKES)
def test_what_a_pool_does_not_need_may_be_patched(tmp_path: Path, library: str) -> None:
    fake = FAKES[library].format(names=("socket", "time", "ssl", "os"))
    expect(tmp_path, fake + "from primitive_jobs import run\nprint(run(abs, -1).result())", "1\n")


def test_a_patch_that_comes_later_is_noticed_at_the_next_submit(tmp_path: Path) -> None:
    source = f"""
from primitive_jobs import run
print(run(abs, -1).result())
{FAKES["gevent"].format(names=("threading",))}
import colorsys  # as gevent imports modules of its own when it patches
try:
    run(abs, -2)
except RuntimeError as error:
    print("gevent has patched threading" in str(error))
"""
    expect(tmp_path, source, "1\nTrue\n")


needs_gevent = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed"
)


@needs_gevent
def test_gevent_is_refused(tmp_path: Path) -> None:
    patch = "from gevent import monkey\nmonkey.patch_all()\n"
    refused = REFUSED.format(library="gevent", remedy=REMEDIES["gevent"])
    expect(tmp_path, patch + refused, "refused\n")


@needs_gevent
def test_what_the_refusal_proposes_works(tmp_path: Path) -> None:
    source = f"""
import time
from gevent import get_hub, monkey, sleep, spawn
monkey.{REMEDIES["gevent"]}
from primitive_jobs import JobPool

def wait(path):
    while not path.exists():
        time.sleep(0.005)
    return "the hub went on"

from pathlib import Path
path = Path(__file__).with_name("from the hub")
with JobPool(2) as pool:
    job = pool.submit(wait, path)
    def let_it_end():
        sleep(0.01)
        path.touch()
    spawn(let_it_end)
    print(get_hub().threadpool.apply(job.result))
    print(sum(pool.map(abs, range(100))))
"""
    expect(tmp_path, source, "the hub went on\n4950\n")
