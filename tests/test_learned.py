"""A spare knows what its siblings know: what jobs have made other workers import."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from helpers import PATIENCE, until

from primitive_jobs import JobPool, JobStatus
from primitive_jobs._engine.events import Lesson
from primitive_jobs._engine.fleet import News
from primitive_jobs._engine.scheduler import LEAVE_TIME
from primitive_jobs._local.lessons import Lessons
from primitive_jobs._procs.learned import Learned
from primitive_jobs._worker import imports
from primitive_jobs._worker.imports import Imports, import_them

if TYPE_CHECKING:
    from makers import MakePool

cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Of the standard library, and imported by nobody else; a package, and one of its modules.
RARE = ("wsgiref", "wsgiref.headers")


def bring(*names: str) -> int:
    time.sleep(0.002)  # else it may be too short for anybody to look
    for name in names:
        importlib.import_module(name)
    return os.getpid()


def loaded(*names: str) -> tuple[list[bool], int]:
    return [name in sys.modules for name in names], os.getpid()


def spare_of(pool: JobPool) -> None:
    """Have one started while the pool is busy, and wait for it."""
    job = pool.submit(time.sleep, 1000)
    until(job.running, "it runs")
    until(lambda: pool.snapshot().counts.idle == 1, "a spare")
    assert job.cancel()


@pytest.mark.local
def test_a_spare_has_what_jobs_have_imported(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        pid = pool.submit(bring, *RARE).result(PATIENCE)
        for _ in range(2):
            spare_of(pool)
            found, other = pool.submit(loaded, *RARE).result(PATIENCE)
            assert found == [True, True]
            assert other != pid
            pid = other


# Modules of a library, which tell by whom they are imported; the first one in the place of the
# second holds all up but those that come first.
TELLS = """
import os, pathlib, time
marks = pathlib.Path({marks!r})
first = not list(marks.iterdir())
(marks / f"{{os.getpid()}}").touch()
"""
HOLDS = """
while not (first or (marks / "open").exists()):
    time.sleep(0.001)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as that of installed packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def standing(make_pool: MakePool, library: Path, marks: Path) -> Iterator[tuple[JobPool, Any]]:
    """A pool of one whose spare stands ready, and a job that goes on when a file is there."""
    (library / "telling.py").write_text(TELLS.format(marks=str(marks)))
    (library / "holding.py").write_text(TELLS.format(marks=str(marks)) + HOLDS)

    def wait_and_bring(gate: Path, *names: str) -> None:
        while not gate.exists():
            time.sleep(0.001)
        bring(*names)

    with make_pool(1) as pool:
        pool.submit(abs, 1).result(PATIENCE)
        gate = library.parent / "gate"

        def have_brought(*names: str) -> None:
            job = pool.submit(wait_and_bring, gate, *names)
            until(lambda: pool.snapshot().counts.idle == 1, "a spare")
            gate.touch()
            job.result(PATIENCE)
            until(lambda: len(list(marks.iterdir())) == 2, "the import in the spare")

        yield pool, have_brought


@pytest.mark.local
def test_a_spare_that_stands_already_learns(standing: tuple[JobPool, Any]) -> None:
    pool, have_brought = standing
    have_brought("wsgiref", "telling")
    job = pool.submit(time.sleep, 1000)
    until(job.running, "it runs")
    assert job.cancel()
    assert pool.submit(loaded, "wsgiref", "telling").result(PATIENCE)[0] == [True, True]


@pytest.mark.local
def test_a_job_that_comes_meanwhile_waits_as_for_any_worker_that_is_coming(
    standing: tuple[JobPool, Any], marks: Path
) -> None:
    pool, have_brought = standing
    have_brought("wsgiref", "holding", "wsgiref.headers")
    assert pool.snapshot().counts.idle == 1, "the spare is not ready any more"
    job = pool.submit(time.sleep, 1000)
    until(job.running, "it runs")
    assert job.cancel()
    names = "wsgiref", "holding", "wsgiref.headers"
    next_one = pool.options(timeout=2.0).submit(loaded, *names)
    time.sleep(0.1)
    assert next_one.status() is JobStatus.QUEUED
    (marks / "open").touch()
    assert next_one.result(PATIENCE)[0] == [True, True, True]


@pytest.mark.local
def test_a_job_does_not_wait_for_a_spare_that_hangs(make_pool: MakePool, library: Path) -> None:
    marks = library.parent / "marks"
    marks.mkdir()
    (library / "holding.py").write_text(TELLS.format(marks=str(marks)) + HOLDS)

    def wait_and_bring(gate: Path, *names: str) -> None:
        while not gate.exists():
            time.sleep(0.001)
        bring(*names)

    with make_pool(2) as pool:
        pool.submit(abs, 1).result(PATIENCE)
        gates = [library.parent / name for name in ("first", "second")]
        staying = pool.submit(wait_and_bring, gates[0])
        bringing = pool.submit(wait_and_bring, gates[1], "holding")
        until(lambda: pool.snapshot().counts.idle == 1, "a spare")
        gates[1].touch()
        bringing.result(PATIENCE)
        until(lambda: len(list(marks.iterdir())) == 2, "the import in the spare")
        doomed = pool.submit(time.sleep, 1000)
        until(doomed.running, "it runs")
        assert doomed.cancel()
        waiting = pool.submit(abs, -1)
        gates[0].touch()
        staying.result(PATIENCE)
        assert waiting.result(PATIENCE) == 1
        (marks / "open").touch()


@pytest.mark.local
def test_the_end_of_a_pool_does_not_wait_for_a_lesson(standing: tuple[JobPool, Any]) -> None:
    pool, have_brought = standing
    have_brought("holding")
    began = time.monotonic()
    pool.shutdown()
    assert time.monotonic() - began < LEAVE_TIME / 2


@pytest.mark.local
def test_what_others_learn_meanwhile_is_learned_next(
    standing: tuple[JobPool, Any], marks: Path
) -> None:
    pool, have_brought = standing
    have_brought("holding", "wsgiref")
    pool.submit(bring, "wsgiref.headers").result(PATIENCE)
    (marks / "open").touch()
    until(lambda: pool.snapshot().counts.idle == 2, "it is ready")
    job = pool.submit(time.sleep, 1000)
    until(job.running, "it runs")
    assert job.cancel()
    names = "holding", "wsgiref", "wsgiref.headers"
    assert pool.submit(loaded, *names).result(PATIENCE)[0] == [True, True, True]


@pytest.mark.local
def test_what_it_has_learned_does_not_count_against_a_limit(
    make_pool: MakePool, library: Path
) -> None:
    (library / "large.py").write_text("held = b'x' * 300_000_000\n")
    with make_pool(1) as pool:
        pool.submit(bring, "large").result(PATIENCE)
        spare_of(pool)
        job = pool.options(memory_limit="250 MB").submit(loaded, "large")
        assert job.result(PATIENCE)[0] == [False]


def test_what_a_module_forks_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "forks_here.py").write_text("import os, sys\nif not os.fork():\n    sys.exit(0)\n")
    told = str(tmp_path / "told")
    (tmp_path / "tells_here.py").write_text(f"with open({told!r}, 'a') as f:\n    f.write('x')\n")
    import_them(("forks_here", "tells_here"))
    os.wait()
    assert (tmp_path / "told").read_text() == "x"


class Fake:
    """What is asked of a worker."""

    def __init__(self, slot: int, knows: int = 0) -> None:
        self.slot = slot
        self.knows = knows


class Told:
    """A host."""

    def __init__(self) -> None:
        self.later: list[News] = []
        self.events: list[Any] = []

    def tell(self, command: News) -> None:
        self.later.append(command)

    def happened(self, event: Any) -> None:
        self.events.append(event)


def test_who_is_told_what() -> None:
    sent: list[tuple[Any, bytes]] = []
    learned, host = Learned(), Told()
    fresh, spare = Fake(1), Fake(2, knows=1)
    processes: Any = {1: fresh, 2: spare}
    lessons = Lessons(learned, processes, lambda process, *what: sent.append((process, what[2])))
    lessons.open(host)  # type: ignore[arg-type]
    lessons.offer(processes[1])
    learned.take(b"a")
    assert not host.events, "a job is about to end"
    host.later.pop().take_in()
    assert host.events == [Lesson(1)]
    learned.take(b"b\na\nc.d")
    host.later.pop().take_in()
    assert host.events[1:] == [Lesson(1), Lesson(2)]
    lessons.teach(1)
    lessons.teach(2)
    assert sent == [(fresh, b"a\nb\nc.d"), (spare, b"b\nc.d")]
    learned.take(b"a")
    assert not host.later
    lessons.offer(processes[1])
    assert len(host.events) == 3


def test_nobody_is_told_where_nothing_is_learned() -> None:
    worker: Any = Fake(1)
    lessons = Lessons(None, {1: worker}, lambda *_: pytest.fail("it was told"))
    lessons.open(Told())  # type: ignore[arg-type]
    lessons.offer(worker)


@pytest.mark.local
def test_none_turns_it_off(make_pool: MakePool) -> None:
    with make_pool(1, preload=None) as pool:
        pool.submit(bring, *RARE).result(PATIENCE)
        spare_of(pool)
        assert pool.submit(loaded, *RARE).result(PATIENCE)[0] == [False, False]


@pytest.mark.local
def test_a_worker_that_a_job_waits_for_is_not_held_up_by_it(make_pool: MakePool) -> None:
    with make_pool(1, spare_workers=0) as pool:
        pool.submit(bring, *RARE).result(PATIENCE)
        job = pool.submit(time.sleep, 1000)
        until(job.running, "it runs")
        assert job.cancel()
        assert pool.submit(loaded, *RARE).result(PATIENCE)[0] == [False, False]


@pytest.mark.local
def test_what_is_the_users_own_is_imported_by_jobs_alone(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_effects.py").write_text("import os\nopen('ran', 'a').write('x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with make_pool(1) as pool:
        pool.submit(bring, "with_effects", *RARE).result(PATIENCE)
        spare_of(pool)
        assert pool.submit(loaded, "with_effects", *RARE).result(PATIENCE)[0] == [False, True, True]
    assert (tmp_path / "ran").read_text() == "x"


@pytest.mark.local
def test_a_job_that_dies_or_raises_tells_what_it_can(make_pool: MakePool) -> None:
    def fail() -> None:
        bring(*RARE)
        raise ValueError

    with make_pool(1) as pool:
        job = pool.submit(fail)
        assert isinstance(job.exception(PATIENCE), ValueError)
        spare_of(pool)
        assert pool.submit(loaded, *RARE).result(PATIENCE)[0] == [True, True]
        dead = pool.submit(lambda: bring("wsgiref.util") and os._exit(1))
        dead.wait(PATIENCE)
        assert dead.status() is JobStatus.ERROR
        dead.exception()


def test_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "site-packages"
    (library / "brought").mkdir(parents=True)
    (library / "brought/__init__.py").write_text("from . import _inner, part\n")
    (library / "brought/part.py").touch()
    (library / "brought/_inner.py").touch()
    (tmp_path / "own.py").touch()
    known = Imports()
    assert not known.are_new()
    monkeypatch.syspath_prepend(library)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("brought", "brought.part", "own")
    try:
        for name in names:
            importlib.import_module(name)
        assert known.are_new()
        assert sorted(known.news().split()) == [b"brought", b"brought.part"]
        assert not known.are_new()
        assert known.news() == b""
    finally:
        for name in (*names, "brought._inner"):
            sys.modules.pop(name, None)


def test_too_many_are_cut_off_at_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Imports()
    monkeypatch.setattr(imports, "_is_of_library", lambda *_: True)
    many = {f"x{number:07}": sys for number in range(10_000)}
    monkeypatch.setattr(sys, "modules", {**sys.modules, **many})
    told = known.news()
    assert len(told) <= 30_000
    assert all(len(name) == 8 for name in told.decode().split("\n"))


def test_what_cannot_be_imported_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raises_here.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ends_here.py").write_text("raise SystemExit\n")
    import_them(("raises_here", "ends_here", "is_not_there", "wsgiref"))
    assert "wsgiref" in sys.modules


def test_only_names_of_modules_are_taken_in_and_once() -> None:
    learned = Learned()
    learned.take(b"a\nb.c\n\n__main__\n_d\ne.\nf-g\nh\xff\nb.c\na")
    assert learned.names == ("a", "b.c")
    learned.take("\n".join(f"m{n:099}" for n in range(4000)).encode())
    assert 59_000 < len("\n".join(learned.names)) <= 60_000
    names: Any = learned.names
    learned.take(b"m" * 100)
    assert learned.names is names
