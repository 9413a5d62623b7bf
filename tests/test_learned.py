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
from primitive_jobs._local.lessons import Lessons
from primitive_jobs._procs.learned import Learned
from primitive_jobs._wire.notes import NUMBER
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
def test_a_job_waits_for_the_import_at_hand_alone(
    standing: tuple[JobPool, Any], marks: Path
) -> None:
    pool, have_brought = standing
    have_brought("wsgiref", "holding", "wsgiref.headers")
    job = pool.submit(time.sleep, 1000)
    until(job.running, "it runs")
    assert job.cancel()
    names = "wsgiref", "holding", "wsgiref.headers"
    next_one = pool.submit(loaded, *names)
    until(next_one.running, "it is sent")
    (marks / "open").touch()
    assert next_one.result(PATIENCE)[0] == [True, True, False]


class Fake:
    """What is asked of a worker."""

    def __init__(self, attempt: int = 0, knows: int = 0) -> None:
        self.page = NUMBER.pack(attempt)
        self.knows = knows
        self.is_ready = self.link_lost = False


def test_who_is_told_what() -> None:
    told: list[tuple[Any, bytes]] = []
    learned = Learned()
    fresh, spare, served, coming, lost = Fake(), Fake(knows=1), Fake(attempt=7), Fake(), Fake()
    lost.link_lost = True
    processes: Any = dict(enumerate((fresh, spare, served, coming, lost)))
    lessons = Lessons(learned, processes, lambda process, *what: told.append((process, what[2])))
    learned.take(b"a")
    assert not told
    for process in (fresh, spare, served, lost):
        lessons.ready(process)  # type: ignore[arg-type]
    assert told == [(fresh, b"a")]
    learned.take(b"b\na\nc.d")
    assert told[1:] == [(fresh, b"b\nc.d"), (spare, b"b\nc.d")]
    learned.take(b"a")
    assert len(told) == 3
    lessons.ready(coming)  # type: ignore[arg-type]
    assert told[3:] == [(coming, b"a\nb\nc.d")]


def test_nobody_is_told_where_nothing_is_learned() -> None:
    worker: Any = Fake()
    Lessons(None, {1: worker}, lambda *_: pytest.fail("it was told")).ready(worker)


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


def test_no_more_is_imported_than_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("wsgiref.util", "wsgiref.headers")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    asked = iter((False, True))
    import_them(names, lambda: next(asked))
    assert [name in sys.modules for name in names] == [True, False]


def test_only_names_of_modules_are_taken_in_and_once() -> None:
    learned = Learned()
    learned.take(b"a\nb.c\n\n__main__\n_d\ne.\nf-g\nh\xff\nb.c\na")
    assert learned.names == ("a", "b.c")
    learned.take("\n".join(f"m{n:099}" for n in range(4000)).encode())
    assert 59_000 < len("\n".join(learned.names)) <= 60_000
    names: Any = learned.names
    learned.take(b"m" * 100)
    assert learned.names is names
