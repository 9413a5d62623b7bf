"""`report` in a job, `progress` outside; `started`, `duration`; what a job knows of itself."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from helpers import PATIENCE, end_by, hold, until

import primitive_jobs
from primitive_jobs import (
    CurrentJob,
    JobOptions,
    JobPool,
    JobStatus,
    PrimitiveJob,
    Progress,
    current_job,
    report,
)
from primitive_jobs._procs import process
from primitive_jobs._wire import notes
from primitive_jobs.inside import reporting

if TYPE_CHECKING:
    from makers import MakePool

cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 5


def told(job: PrimitiveJob[Any]) -> tuple[float | None, str, dict[str, float]]:
    progress = job.progress
    assert progress is not None
    return progress.fraction, progress.message, dict(progress.values)


def tell_and(end: str, *then: Any) -> str:
    """Report, then come to an end of this kind."""
    report(0.25, "at the first", energy=-1.5)
    report(0.5, "so far: ½", energy=-2.5, step=3)
    return end_by(end)


LAST = (0.5, "so far: ½", {"energy": -2.5, "step": 3.0})


@pytest.mark.parametrize("end", ["returned", "raised", "crashed", "exited", "killed"])
def test_the_last_report_stays_after_each_end(one: JobPool, end: str) -> None:
    job = one.submit(tell_and, end)
    assert job.wait(PATIENCE)
    assert job.status() is (JobStatus.DONE if end == "returned" else JobStatus.ERROR)
    job.exception()
    assert told(job) == LAST
    assert job.progress is not None
    assert job.progress.eta is None, "it is over"


@pytest.mark.parametrize("how", ["slept", "in C"])
def test_a_running_job_is_seen_and_stays_seen_when_it_is_cancelled(one: JobPool, how: str) -> None:
    job = one.submit(tell_and, how)
    until(lambda: job.progress is not None and job.progress.fraction == 0.5, "its report")
    assert told(job) == LAST
    assert job.cancel()
    assert told(job) == LAST


def test_one_that_passes_its_timeout(one: JobPool) -> None:
    job = one.options(timeout=0.3).submit(tell_and, "slept")
    assert job.exception(PATIENCE) is not None
    assert told(job) == LAST


def test_one_that_is_never_begun_or_tells_nothing(pool: JobPool) -> None:
    job = PrimitiveJob(tell_and, "returned")
    assert job.progress is None
    assert job.started is None
    assert job.duration is None
    assert job.usage is None
    job.cancel()
    assert job.progress is None
    quiet = pool.submit(abs, 1)
    assert quiet.result(PATIENCE) == 1
    assert quiet.progress is None


def slow_steps(path: str) -> None:
    for step in range(STEPS):
        report(step / STEPS)
        Path(path, str(step)).touch()
        while not Path(path, f"go{step}").exists():
            time.sleep(0.001)


def test_age_and_remaining_time(pool: JobPool, tmp_path: Path) -> None:
    job = pool.submit(slow_steps, str(tmp_path))
    until(lambda: job.progress is not None, "its report")
    first = job.progress
    assert first is not None
    assert first.eta is None, "one fraction tells no pace"
    begun = time.monotonic()
    (tmp_path / "go0").touch()
    until(lambda: told(job)[0] == 1 / STEPS, "the second")
    took = time.monotonic() - begun
    second = job.progress
    assert second is not None
    assert second.eta is not None
    assert second.eta <= 4 * (took + first.age + 1), "four more such steps"
    age = second.age
    until(lambda: job.progress is not None and job.progress.age > age + 0.05, "it gets older")
    for step in range(1, STEPS):
        (tmp_path / f"go{step}").touch()
    job.result(PATIENCE)
    assert job.progress is not None
    at_end = job.progress.age
    time.sleep(0.05)
    assert job.progress.age == at_end, "at its end it was so old"


def twice(end: str) -> int:
    job = current_job()
    assert job is not None
    if job.attempt == 1:
        tell_and(end)
    return job.attempt


def test_a_retry_begins_without_a_report(one: JobPool) -> None:
    job = one.options(retries=1).submit(twice, "killed")
    assert job.result(PATIENCE) == 2
    assert job.attempts == 2
    assert told(job) == LAST, "the last one that any attempt has told"


def message_alone() -> None:
    report(0.75)
    report(message="writes")


def test_without_a_fraction_the_last_one_holds(pool: JobPool) -> None:
    job = pool.submit(message_alone)
    job.result(PATIENCE)
    assert told(job) == (0.75, "writes", {})


def too_long() -> None:
    report(message="é" * 300, **{f"v{n}": n for n in range(reporting.MOST_VALUES)})


def test_a_long_message_is_cut_off_between_two_characters(pool: JobPool) -> None:
    job = pool.submit(too_long)
    job.result(PATIENCE)
    fraction, message, values = told(job)
    assert fraction is None
    assert message == "é" * 100
    assert values == {f"v{n}": n for n in range(8)}


@pytest.mark.parametrize(
    ("args", "kind", "text"),
    [
        ({"fraction": 1.5}, ValueError, "from 0 to 1"),
        ({"fraction": -0.1}, ValueError, "from 0 to 1"),
        ({"fraction": float("nan")}, ValueError, "nan"),
        ({"fraction": "half"}, TypeError, "must be a number"),
        ({"message": 3}, TypeError, "message must be a str"),
        ({"a": "x"}, TypeError, "must be numbers"),
        ({"a": 1.0, "b": None}, TypeError, "None"),
        ({f"v{n}": n for n in range(9)}, ValueError, "at most 8"),
        ({"v" * 401: 1.0}, ValueError, "400 bytes"),
    ],
)
def test_what_makes_no_sense_raises_in_a_job_and_outside(
    pool: JobPool, args: dict[str, Any], kind: type[Exception], text: str
) -> None:
    def call() -> None:
        report(**args)

    for attempt in (call, lambda: pool.submit(call).result(PATIENCE)):
        with pytest.raises(kind, match=text):
            attempt()


def in_a_fork() -> tuple[bool, bool]:
    report(0.25)
    pid = os.fork()
    if pid == 0:
        try:
            report(0.75)
            os._exit(current_job() is not None)
        finally:
            os._exit(9)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0, current_job() is not None


def test_a_child_that_a_job_forks_tells_nothing(pool: JobPool) -> None:
    job = pool.submit(in_a_fork)
    assert job.result(PATIENCE) == (True, True)
    assert told(job)[0] == 0.25


def test_outside_of_a_job_it_does_nothing() -> None:
    report(0.5, "nobody hears it", x=1)
    assert current_job() is None


def left_running(path: str) -> None:
    def later() -> None:
        while not Path(path).exists():
            time.sleep(0.001)
        report(0.9, "from the past")
        Path(path + "-done").touch()

    threading.Thread(target=later, daemon=True).start()


def test_a_thread_that_a_job_leaves_tells_nothing_while_there_is_no_job(
    make_pool: MakePool, tmp_path: Path
) -> None:
    path = str(tmp_path / "go")
    with make_pool(1) as pool:
        job = pool.submit(left_running, path)
        job.result(PATIENCE)
        Path(path).touch()
        until(lambda: Path(path + "-done").exists(), "the thread")
        assert job.progress is None
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def many_threads(gate: str) -> None:
    def tell(number: int) -> None:
        step = 0
        while step % 500 or not Path(gate).exists():
            step += 1
            report(step % 1000 / 1000, f"{number}:" + "x" * (20 * number), a=step, b=number)

    threads = [threading.Thread(target=tell, args=(n,)) for n in (1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_no_report_is_seen_torn(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = pool.submit(many_threads, str(gate))
    until(lambda: job.progress is not None, "the first report")
    for _ in range(5000):
        progress = job.progress
        if progress is not None:  # another one came while it was read, each time
            number, _, rest = progress.message.partition(":")
            assert rest == "x" * (20 * int(number))
            assert progress.values["b"] == int(number)
            assert progress.fraction == progress.values["a"] % 1000 / 1000
    gate.touch()
    job.result(PATIENCE)


def test_a_slot_that_was_cut_off_in_the_middle_counts_for_nothing() -> None:
    page = memoryview(bytearray(notes.PAGE_SIZE))

    def write(number: int, attempt: int, text: bytes, *, cut: int | None = None) -> None:
        nan = float("nan")
        sizes = len(text), 0, 0
        record = notes.PROGRESS.pack(number, attempt, 0, nan, nan, 0, 0, *sizes) + text
        record = (record + notes.NUMBER.pack(number))[:cut]
        place = notes.progress_at(number & 1)
        page[place : place + len(record)] = record

    assert notes.newest_progress(page, 1) is None
    write(1, 1, b"first")
    write(2, 1, b"second")
    newest = notes.newest_progress(page, 1)
    assert newest is not None
    assert newest.endswith(b"second")
    for cut in range(8, notes.PROGRESS.size + 20):
        write(3, 1, b"a third, longer one", cut=cut)
        found = notes.newest_progress(page, 1)
        assert found is not None
        assert found.endswith(b"second"), cut
        page[notes.progress_at(1) : notes.progress_at(1) + notes.PROGRESS_SIZE] = bytes(
            notes.PROGRESS_SIZE
        )
        write(1, 1, b"first")
    assert notes.newest_progress(page, 2) is None, "that is another attempt"


# --- current_job, started, duration --------------------------------------------------------------


def who() -> tuple[str, str, int, JobOptions, str, str | None]:
    job = current_job()
    assert isinstance(job, CurrentJob)
    return job.id, job.name, job.attempt, job.options, str(Path.cwd()), os.environ.get("FLAVOUR")


def test_a_job_knows_itself(pool: JobPool, tmp_path: Path) -> None:
    folder = str(tmp_path.resolve())
    plain = pool.submit(who)
    job_id, name, attempt, options, home, flavour = plain.result(PATIENCE)
    assert (job_id, name, attempt) == (plain.job_id(), "who", 1)
    assert options == JobOptions(name="who")
    assert flavour is None
    given: dict[str, Any] = {
        "name": "a name",
        "timeout": 60.0,
        "priority": 2,
        "memory_limit": "4 GB",
        "retries": 1,
        "grace": 0.5,
        "cwd": folder,
        "env": {"FLAVOUR": "up"},
        "keep_call": True,
        "retry_on": OSError,
        "retry_delay": 0.5,
    }
    job = pool.options(metadata={"stays": "here"}, **given).submit(who)
    job_id, name, attempt, options, cwd, flavour = job.result(PATIENCE)
    assert (job_id, name, attempt) == (job.job_id(), "a name", 1)
    assert options == JobOptions(**given), "but for its metadata"
    assert (cwd, flavour) == (folder, "up")
    for _ in range(4):  # on each of the workers, what the job has set is gone
        assert pool.submit(who).result(PATIENCE)[4:] == (home, None)


class LooksAround:
    """Its unpickling is a part of the job, too."""

    def __init__(self) -> None:
        self.seen: Any = None

    def __setstate__(self, state: Any) -> None:
        job = current_job()
        self.seen = None if job is None else (job.name, job.id, str(Path.cwd()), job.attempt)

    def __getstate__(self) -> Any:
        return {"seen": self.seen}


def what_was_seen(looks: LooksAround) -> Any:
    return looks.seen


def test_what_is_unpickled_for_a_job_knows_it(pool: JobPool, tmp_path: Path) -> None:
    folder = str(tmp_path.resolve())
    for view, name, cwd in (
        (pool.options(), "what_was_seen", None),
        (pool.options(cwd=folder, name="n"), "n", folder),
    ):
        job = view.submit(what_was_seen, LooksAround())
        seen = job.result(PATIENCE)
        assert seen[:2] == (name, job.job_id())
        assert cwd in (None, seen[2])
        assert seen[3] == 1


def test_a_folder_that_is_none_is_what_the_job_raises(pool: JobPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        pool.options(cwd=tmp_path / "missing").submit(who).result(PATIENCE)
    with pytest.raises(NotADirectoryError):
        pool.options(cwd=tmp_path / "file").submit(who).result(PATIENCE)
    assert pool.submit(who).result(PATIENCE)


def test_a_relative_folder_is_taken_from_where_the_program_is(
    pool: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    view = pool.options(cwd="runs")
    monkeypatch.chdir("/")
    assert view.submit(os.getcwd).result(PATIENCE) == str(tmp_path.resolve() / "runs")


@pytest.mark.parametrize("value", [3, b"x", "", "a\0b"])
def test_what_is_no_path(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="cwd"):
        JobOptions(cwd=value)


def test_calls_of_a_map_are_in_one_job(pool: JobPool) -> None:
    def name(_: int) -> str:
        job = current_job()
        assert job is not None
        return job.name

    found = list(pool.map(name, range(6), chunksize=3))
    assert [each.rpartition("[")[2] for each in found] == ["0:3]"] * 3 + ["3:6]"] * 3


def test_when_it_began_and_how_long_it_took(pool: JobPool, tmp_path: Path) -> None:
    before = time.time()
    job = pool.submit(hold, tmp_path / "go")
    until(job.running, "it runs")
    until(lambda: (job.duration or 0) > 0.02, "time passes")
    (tmp_path / "go").touch()
    assert job.wait(PATIENCE)
    assert job.started is not None
    assert before - 0.1 <= job.started <= time.time()
    assert job.duration is not None
    walk = dict(job.history())
    assert job.duration == pytest.approx(walk[JobStatus.DONE] - walk[JobStatus.RUNNING], abs=0.01)
    assert job.duration == job.duration


def own_title() -> str:
    return Path("/proc/self/cmdline").read_bytes().partition(b"\0")[0].decode()


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()


@pytest.mark.local
def test_where_setproctitle_is_the_process_bears_its_jobs_name(one: JobPool) -> None:
    pytest.importorskip("setproctitle")
    pid = one.submit(os.getpid).result(PATIENCE)
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert f"PATH={os.environ['PATH']}".encode() in environ, "it is as it was"
    assert not one.submit(os.environ.get, "SPT_NOENV").result(PATIENCE)
    assert one.options(name="T=2.1").submit(own_title).result(PATIENCE) == "primitive_jobs: T=2.1"
    until(lambda: title_of(pid) == "primitive_jobs", "its own name again")
    assert one.submit(own_title).result(PATIENCE) == "primitive_jobs: own_title"


@pytest.mark.local
def test_where_it_is_not_nothing_is_missing(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in (None, str(tmp_path / "nothing.so")):
        monkeypatch.setattr(process, "_title_extension", lambda found=found: found)
        with make_pool(1) as pool:
            assert "boot.py" in pool.submit(whole_command_line).result(PATIENCE)


def whole_command_line() -> str:
    return Path("/proc/self/cmdline").read_bytes().decode()


def test_they_are_public() -> None:
    for name in ("CurrentJob", "Progress", "current_job", "report"):
        assert getattr(primitive_jobs, name).__doc__
        assert name in primitive_jobs.__all__
    assert Progress(None, "", {}, 0.0, None).fraction is None
