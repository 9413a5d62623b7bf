"""Code that was imported anew: no job that is submitted later runs in a worker from before."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import until

from primitive_jobs import JobPool
from primitive_jobs._engine.code_watch import CodeWatch, code_watch

PATIENCE = 30.0  # s
_names = (f"reloaded_{number}" for number in itertools.count())


class Edited:
    """A module in a file that changes."""

    def __init__(self, folder: Path) -> None:
        self.name = next(_names)
        self.file = folder / f"{self.name}.py"
        self._second = 1_000_000_000
        self.write(0)
        self.module: ModuleType = importlib.import_module(self.name)

    def write(self, version: int) -> None:
        self.file.write_text(f"import os\ndef version():\n    return {version}, os.getpid()\n")
        self._second += 10  # or the compiled file may be taken for that of the new text
        os.utime(self.file, (self._second, self._second))

    def reload(self, version: int) -> None:
        self.write(version)
        importlib.reload(self.module)

    def version(self) -> Any:
        return self.module.version


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edited]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Edited(tmp_path)
    yield made
    sys.modules.pop(made.name, None)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    caplog.set_level(logging.INFO, logger="primitive_jobs")
    return lambda: sum("code was reloaded" in record.message for record in caplog.records)


def test_a_reload_is_noticed_at_the_next_submit(edited: Edited, lines: Callable[[], int]) -> None:
    with JobPool(1) as pool:
        version, pid = pool.submit(edited.version()).result(PATIENCE)
        assert version == 0
        assert pool.submit(edited.version()).result(PATIENCE) == (0, pid)
        for other in range(20):  # a burst
            edited.reload(other + 1)
        version, other_pid = pool.submit(edited.version()).result(PATIENCE)
        assert version == 20
        until(lambda: lines() == 1, "the record")  # it comes on a thread of its own
        assert other_pid != pid
        assert pool.submit(edited.version()).result(PATIENCE) == (20, other_pid)
        assert [*pool.map(os.getpgid, [other_pid])]
    assert lines() == 1


def test_callers_that_notice_at_once_replace_once(edited: Edited, lines: Callable[[], int]) -> None:
    with JobPool(1) as pool:
        pool.submit(edited.version()).result(PATIENCE)
        engine = pool._engine
        before = engine._tick, engine._code
        edited.reload(1)
        for _ in range(2):  # as two threads do, each before the other has written what it did
            engine._tick, engine._code = before
            engine._look_at_code()
        assert pool.submit(edited.version()).result(PATIENCE)[0] == 1
    assert lines() == 1


def test_without_workers_nothing_is_said(edited: Edited, lines: Callable[[], int]) -> None:
    with JobPool(1) as pool:
        edited.reload(1)
        assert pool.submit(edited.version()).result(PATIENCE)[0] == 1
    assert lines() == 0


def test_every_reload_in_a_row(edited: Edited, lines: Callable[[], int]) -> None:
    with JobPool(2) as pool:
        assert pool.submit(edited.version()).result(PATIENCE)[0] == 0
        for number in range(1, 9):
            edited.reload(number)
            jobs = [pool.submit(edited.version()) for _ in range(3)]
            assert {job.result(PATIENCE)[0] for job in jobs} == {number}


def test_a_busy_worker_is_replaced_after_its_job(edited: Edited, marks: Path) -> None:
    go = marks / "go"

    def hold(path: Path = go) -> int:
        while not path.exists():
            time.sleep(0.01)
        return os.getpid()

    with JobPool(1, spare_workers=0) as pool:
        pool.submit(edited.version()).result(PATIENCE)
        busy = pool.submit(hold)
        edited.reload(1)
        later = pool.submit(edited.version())
        while not busy.running():
            time.sleep(0.001)
        go.touch()
        old = busy.result(PATIENCE)
        version, pid = later.result(PATIENCE)
        assert version == 1
        assert pid != old


def test_a_module_that_was_deleted_and_imported_again(edited: Edited) -> None:
    with JobPool(1) as pool:
        pid = pool.submit(edited.version()).result(PATIENCE)[1]
        edited.write(1)
        del sys.modules[edited.name]
        edited.module = importlib.import_module(edited.name)
        version, other = pool.submit(edited.version()).result(PATIENCE)
        assert version == 1
        assert other != pid


def test_a_first_import_a_failed_one_and_a_look_cost_no_worker(edited: Edited) -> None:
    with JobPool(1) as pool:
        pid = pool.submit(edited.version()).result(PATIENCE)[1]
        for _ in range(3):
            assert importlib.util.find_spec("no_such_module_at_all") is None
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module("no_such_module_at_all")
            assert importlib.util.find_spec(edited.name) is not None
            Edited(edited.file.parent)
            assert pool.submit(edited.version()).result(PATIENCE)[1] == pid


def test_a_copy_of_one_of_pythons_own_modules_costs_no_worker(edited: Edited) -> None:
    import heapq

    with JobPool(1) as pool:
        pid = pool.submit(edited.version()).result(PATIENCE)[1]
        for name in ("heapq", "sys", "importlib.metadata"):
            known = sys.modules.pop(name, None)
            importlib.import_module(name)
            if known is not None:
                sys.modules[name] = known
        importlib.reload(heapq)
        assert pool.submit(edited.version()).result(PATIENCE)[1] == pid


def test_a_module_that_stands_before_pythons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_reloads._names", itertools.repeat("sched"))
    monkeypatch.setitem(sys.modules, "sched", None)  # noted, so that what was there comes back
    del sys.modules["sched"]
    monkeypatch.syspath_prepend(str(tmp_path))
    own = Edited(tmp_path)
    with JobPool(1) as pool:
        assert pool.submit(own.version()).result(PATIENCE)[0] == 0
        own.reload(1)
        assert pool.submit(own.version()).result(PATIENCE)[0] == 1
        own.write(2)
        del sys.modules["sched"]
        own.module = importlib.import_module("sched")
        assert pool.submit(own.version()).result(PATIENCE)[0] == 2


def test_several_threads_submit_right_after_a_reload(edited: Edited) -> None:
    """Each sees the reload, and then none of its jobs may meet an old worker."""
    seen: list[tuple[int, int]] = []
    with JobPool(2) as pool:
        barrier = threading.Barrier(4)
        asked = 0

        def ask() -> None:
            for _ in range(6):
                barrier.wait(PATIENCE)  # the reload is over
                seen.append((asked, pool.submit(edited.version()).result(PATIENCE)[0]))
                barrier.wait(PATIENCE)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for asked in range(1, 7):
            edited.reload(asked)
            barrier.wait(PATIENCE)
            barrier.wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
    assert len(seen) == 18
    assert all(wanted == got for wanted, got in seen)


def test_a_worker_has_no_such_finder() -> None:
    def finders() -> list[str]:
        return [type(finder).__name__ for finder in sys.meta_path]

    with JobPool(1) as pool:
        assert "CodeWatch" in finders()
        assert finders().count("CodeWatch") == 1
        assert "CodeWatch" not in pool.submit(finders).result(PATIENCE)


class OldFinder:
    """As Python 3.11 and older know it."""

    def find_module(self, name: str, path: object = None) -> None:
        return None


@pytest.mark.filterwarnings("ignore::ImportWarning")
def test_beside_a_finder_of_the_old_kind(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(1) as pool:
        pool.submit(edited.version()).result(PATIENCE)
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, OldFinder()])
        edited.reload(1)
        assert pool.submit(edited.version()).result(PATIENCE)[0] == 1


def test_the_numbers_differ_whatever_is_asked() -> None:
    watch = CodeWatch()
    before = watch.changes()
    watch.find_spec("pytest")
    assert watch.changes() == before  # the first time
    tick = watch.tick
    watch.find_spec("pytest")
    assert watch.changes() not in (before, tick)
    assert watch.tick != tick
    assert code_watch is not watch
