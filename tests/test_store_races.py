"""What happens to a store in between: interrupts, ends that meet, rows that are written anew."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, ROOT, hold, until, write_mark

from primitive_jobs import (
    JobPool,
    JobStatus,
    StaleResultsError,
    StoreError,
    Sweep,
    SweepStore,
    checkpoint,
)
from primitive_jobs.store import functions, jobs, work, writer
from primitive_jobs.store.lock import StoreLock

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def square(x: int) -> int:
    return x * x


def turn(folder: Path, x: int) -> list[int]:
    """Return more each time; fail where it is told so."""
    (folder / f"{x}-{time.monotonic_ns()}").touch()
    if (folder / "fail").exists():
        raise ValueError("no")
    return [x] * len(list(folder.glob(f"{x}-*")))


# --- rows that are written anew ------------------------------------------------------------------


def test_a_row_tells_its_own_result_or_none(one: JobPool, path: Path, marks: Path) -> None:
    with SweepStore(path) as store:
        again = store.function(turn, on_change="rerun", version=None, ignore="folder")
        (made,) = again.sweep([(marks, 1)], one)
        (looked_up,) = store.rows()
        past: jobs.StoredJob[list[int]] = jobs.StoredJob.of_row(looked_up)
        assert store.forget(keys=[made.key]) == 1
        again.sweep([(marks, 1)], one).results()
        assert made.result == [1]  # it has come with the row
        with pytest.raises(LookupError, match="written anew since, or deleted"):
            _ = looked_up.result
        with pytest.raises(LookupError, match="written anew since, or deleted"):
            past.result()
        assert next(store.rows()).result == [1, 1]


def edited(store: SweepStore, factor: int, **options: Any) -> Any:
    """A function of one name, whose code is another one for each factor."""
    functions_of = {1: first_of_all, 2: second_of_all}
    return store.function(functions_of[factor], name="edited", **options)


def first_of_all(x: int, fails: bool = False) -> int:
    return x


def second_of_all(x: int, fails: bool = False) -> int:
    if fails:
        raise ValueError("no")
    time.sleep(1000)
    return 2 * x


def test_nothing_takes_the_place_of_a_result_but_another_one(two: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        points = [(x, x == 0) for x in range(3)]
        assert edited(store, 1).sweep(points, two).results() == [0, 1, 2]
        sweep = edited(store, 2, on_change="rerun").sweep(points, two)
        until(lambda: sweep.counts().failed == 1, "one that fails")
        until(lambda: sweep.counts().running == 2, "two that run")
        sweep.cancel()
        rows = {row.arguments["x"]: row for row in sweep}
        assert [rows[x].status.name for x in range(3)] == ["ERROR", "CANCELLED", "CANCELLED"]
        with pytest.raises(ValueError, match="no"):
            _ = rows[0].result
        left = [(row.status, row.result) for row in store.rows()]
        assert sorted(left, key=lambda one: one[1]) == [(JobStatus.DONE, x) for x in range(3)]


def test_what_was_cancelled_runs_again_at_once(
    two: JobPool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.Writer._commit

    def commit(self: Any, *rest: Any) -> Any:
        time.sleep(0.05)
        return real(self, *rest)

    monkeypatch.setattr(writer.Writer, "_commit", commit)
    gate = tmp_path / "gate"
    with SweepStore(path) as store:
        function = store.function(hold)
        sweep = function.sweep([(gate, n) for n in range(4)], two)
        until(lambda: sweep.counts().running == 2, "two of them")
        sweep.cancel()
        gate.touch()
        assert function.sweep([(gate, n) for n in range(4)], two).results() == [0, 1, 2, 3]

    failing = tmp_path / "failing"
    failing.mkdir()
    (failing / "fail").touch()
    with SweepStore(path) as store:
        function_ = store.function(turn, ignore="folder")
        failed = function_.submit(two, failing, 1)
        assert isinstance(failed.exception(PATIENCE), ValueError)
        (failing / "fail").unlink()
        assert function_.submit(two, failing, 1).result(PATIENCE) == [1, 1]


# --- locks ---------------------------------------------------------------------------------------


def may_write(path: Path) -> bool:
    """Whether another program may write to the file, as far as SQLite knows."""
    source = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=0)\n"
        "try:\n    connection.execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError:\n    sys.exit(1)\n"
    )
    command = [sys.executable, "-c", source, str(path)]
    return not subprocess.run(command, check=False, cwd=ROOT).returncode


def test_who_opens_it_takes_nobodys_lock_away(path: Path) -> None:
    SweepStore(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert not may_write(path)
        with SweepStore(path) as store:
            assert list(store.rows()) == []
        assert not may_write(path)


def test_a_lock_whose_file_is_deleted(two: JobPool, path: Path) -> None:
    store = SweepStore(path)
    function = store.function(square)
    function.sweep([1], two).results()
    Path(f"{path}.lock").unlink()
    with SweepStore(path) as other:  # which would be another program
        lock = StoreLock(str(path) + "x")
        lock.take()
        lock.release()
        with pytest.raises(StoreError, match="lock was deleted"):
            list(function.sweep([2], two))
        del other
    with pytest.raises(StoreError, match="lock was deleted"):
        store.close()


# --- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before the sweep is made", "while it is submitted"])
def test_an_interrupt_leaves_no_point_behind(
    two: JobPool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    gate = tmp_path / "gate"
    with SweepStore(path) as store:
        function = store.function(hold)
        points = [(gate, n) for n in range(5)]
        with monkeypatch.context() as patch:
            if place == "before the sweep is made":

                def interrupted(*_: object) -> None:
                    raise KeyboardInterrupt

                patch.setattr(functions, "Sweep", {Any: interrupted, functions.T: interrupted})
            else:
                calls = iter(range(100))
                real = two._link.enlist

                def enlist(record: Any) -> None:
                    if next(calls) == 3:
                        raise KeyboardInterrupt
                    real(record)

                patch.setattr(two._link, "enlist", enlist)
            with pytest.raises(KeyboardInterrupt):
                function.sweep(points, two)
        gate.touch()
        assert function.sweep(points, two).results() == list(range(5))


@pytest.mark.local
def test_the_last_rows_are_waited_for(
    two: JobPool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is final before its waiters are told: a moment in which nothing may end."""
    real = jobs.Pending._final

    def late(self: Any) -> None:
        time.sleep(0.05)
        real(self)

    monkeypatch.setattr(jobs.Pending, "_final", late)

    def kept(gate: Path, x: int) -> None:
        checkpoint(x, force=True)
        write_mark(gate.parent, f"kept-{x}")
        hold(gate)

    def leave() -> None:
        with SweepStore(path) as store:
            store.function(kept, version=1).sweep([(tmp_path / "gate", x) for x in (1, 2)], two)
            until(lambda: len(list(tmp_path.glob("kept-*"))) == 2, "both")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert [row.status for row in SweepStore(path).rows()] == [JobStatus.CANCELLED] * 2
    assert len(list(Path(f"{path}.d").glob("*.checkpoint"))) == 2


# --- a row that cannot be written ----------------------------------------------------------------


def test_half_a_character_in_an_error(two: JobPool, path: Path) -> None:
    def fail(x: int) -> int:
        if x:
            return x
        raise ValueError("file \udcff not found")

    with SweepStore(path) as store:
        rows = {
            row.arguments["x"]: row for row in store.function(fail, version=1).sweep([0, 1, 2], two)
        }
        assert rows[0].error_text == "file \\udcff not found"
        assert [rows[1].result, rows[2].result] == [1, 2]


def test_a_row_that_cannot_be_written_costs_itself(
    two: JobPool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_insert, real_values = writer.Writer._insert, jobs.Pending.values
    bad: dict[str, str] = {}

    def insert(self: Any, connection: Any, entry: Any) -> Any:
        done = real_insert(self, connection, entry)
        if entry.pending.key == bad["insert"]:
            raise UnicodeError("on purpose")
        return done

    def values(self: Any) -> Any:
        if self.key == bad["values"]:
            raise MemoryError("on purpose")
        return real_values(self)

    with SweepStore(path) as store:
        function = store.function(square)
        keys = [row.key for row in function.sweep([100, 101], two)]
        store.forget("square")
        bad.update(zip(("insert", "values"), keys, strict=True))
        monkeypatch.setattr(writer.Writer, "_insert", insert)
        monkeypatch.setattr(jobs.Pending, "values", values)
        for x in (100, 101):
            with pytest.raises(StoreError, match="no row of job square can be written"):
                list(function.sweep([x], two))
        assert function.sweep(range(10), two).results() == [x * x for x in range(10)]
        sweep = function.sweep([50, 100, 51], two)
        with pytest.raises(StoreError, match="on purpose"):
            sweep.results()
        assert function.sweep([50, 51], two).results() == [2500, 2601]
    assert "no row of job square can be written" in caplog.text


def test_held_jobs_go_on_when_nothing_can_be_written_any_more(
    two: JobPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST", 1)
    monkeypatch.setattr(writer, "RETRY", 0.01)
    number = [28]  # no space left

    def commit(self: Any, connection: Any, batch: Any) -> Any:
        raise OSError(number[0], "on purpose")

    monkeypatch.setattr(writer.Writer, "_commit", commit)
    store = SweepStore(path)
    function = store.function(square)
    function.sweep([1], two)
    until(lambda: store._work.begin().is_full, "too many results")
    sweep = function.sweep([2], two)
    held = sweep.jobs()[0]
    assert sweep.counts().queued == 1
    number[0] = 30  # a file system for reading only
    assert held.result(PATIENCE) == 4
    with pytest.raises(StoreError, match="on purpose"):
        store.close()


def test_an_exception_while_the_disk_is_full_ends_the_block(
    two: JobPool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work, "PATIENCE", 0.2)

    def commit(self: Any, connection: Any, batch: Any) -> Any:
        raise OSError(28, "on purpose")

    monkeypatch.setattr(writer.Writer, "_commit", commit)

    def leave() -> None:
        with SweepStore(path) as store:
            store.function(square).sweep([1, 2], two)
            until(lambda: "cannot be written to now" in caplog.text, "its first try")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert "2 results cannot be written" in caplog.text
    with SweepStore(path) as store:  # the lock is free
        assert store.forget(keys=[]) == 0


# --- whose they are ------------------------------------------------------------------------------

FACTOR = 1


def scaled(x: int) -> int:
    return FACTOR * x


def test_code_that_changes_after_the_function_was_made(
    two: JobPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SweepStore(path) as store:
        function = store.function(scaled)
        assert function.submit(two, 10).result(PATIENCE) == 10
        until(lambda: bool(list(store.rows())), "its row")
        monkeypatch.setitem(globals(), "FACTOR", 2)
        for x in (10, 20):
            with pytest.raises(StaleResultsError) as told:
                function.submit(two, x)
            assert told.value.changed == ("FACTOR",)
        monkeypatch.setitem(globals(), "FACTOR", 1)
        assert function.submit(two, 20).result(PATIENCE) == 20


@pytest.mark.parametrize("version", [None, 1])
def test_functions_of_one_name_never_share_rows(
    two: JobPool, path: Path, tmp_path: Path, version: int | None
) -> None:
    gate = tmp_path / "gate"

    def other(gate: Path, value: int) -> tuple[str, int]:
        hold(gate)
        return "other", value

    other.__module__ = "elsewhere"
    with SweepStore(path) as store:
        one = store.function(hold, name="f", version=version)
        another = store.function(other, name="f", version=1)
        if version is None:
            another = store.function(other, name="f", version=1)
        first = one.submit(two, gate, 5)
        if version is not None:
            with pytest.raises(StaleResultsError, match="still running"):
                another.submit(two, gate, 5)
        gate.touch()
        assert first.result(PATIENCE) == 5
        until(lambda: bool(list(store.rows())), "its row")
        with pytest.raises(ValueError, match="in module"):
            another.submit(two, gate, 5)


def test_who_has_looked_before_looks_again(two: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        old, new = edited(store, 1), edited(store, 2, version=None)
        assert old.sweep([5], two).results() == [5]  # it has found no other code
        del new
        row = next(store.rows())
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE codes SET hash = 'ff' WHERE name = 'edited'")
        assert row.code != "ff"
        with pytest.raises(StaleResultsError):
            old.sweep([5], two)


# --- what is left --------------------------------------------------------------------------------


def test_forget_takes_unfinished_points_along(one: JobPool, path: Path, tmp_path: Path) -> None:
    def kept(gate: Path) -> None:
        checkpoint("half", force=True)
        write_mark(gate.parent, "kept")
        hold(gate)

    with SweepStore(path) as store:
        function = store.function(kept, version=1, name="kept")
        sweep = function.sweep([tmp_path / "gate"], one)
        until((tmp_path / "kept").exists, "its checkpoint")
        sweep.cancel()
        (row,) = sweep
        folder = Path(f"{path}.d")
        (file,) = folder.glob("*.checkpoint")
        assert store.forget("another") == 0
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM rows")  # as where its program was killed
        assert file.exists()
        assert store.forget("kept") == 0
        assert not file.exists()
        del row


def test_sweeps_of_many_pools_keep_none_of_them(path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(square)
        for x in range(3):
            with JobPool(1) as pool:
                assert function.sweep([x], pool).results() == [x * x]
        del pool
        until(lambda: not store._work._links, "no link")


def test_iterating_while_rows_come(two: JobPool, path: Path) -> None:
    seen: list[list[Any]] = [[], []]
    with SweepStore(path) as store:
        sweep: Sweep[int] = store.function(square).sweep(range(200), two)

        def look(place: int) -> None:
            seen[place] = [row.key for row in sweep]

        threads = [threading.Thread(target=look, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 200
