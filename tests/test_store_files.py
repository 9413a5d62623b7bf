"""Files that are no store's, or not any more: each is an error that names the file."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from helpers import PATIENCE, until

from primitive_jobs import JobPool, StoreError, SweepStore
from primitive_jobs.store.database import SCHEMA


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def filled(path: Path, pool: JobPool) -> None:
    with SweepStore(path) as store:
        store.function(abs, version=1).sweep(range(50), pool).results()


def refused(path: Path, text: str) -> None:
    with pytest.raises(StoreError, match=text) as told:
        list(SweepStore(path).rows())
    assert str(path) in str(told.value)


def test_it_is_made_for_its_owner_alone(path: Path) -> None:
    SweepStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {file.name for file in path.parent.iterdir()} <= {"results.db", "results.db-journal"}


def test_nothing_else_is_written_by_reading(pool: JobPool, path: Path) -> None:
    filled(path, pool)
    before = path.read_bytes()
    with SweepStore(path) as store:
        assert len(list(store.rows())) == 50
    assert path.read_bytes() == before
    assert not Path(f"{path}.d").exists()


def test_an_empty_file_becomes_a_store(pool: JobPool, path: Path) -> None:
    path.touch()
    filled(path, pool)
    assert len(list(SweepStore(path).rows())) == 50


def test_a_text(path: Path) -> None:
    path.write_text("this is no database\n" * 100)
    refused(path, "is no database")


def test_another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    refused(path, "but not one of a SweepStore")


def test_a_newer_one(path: Path) -> None:
    SweepStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    refused(path, f"later release .* its format is {SCHEMA + 1}")


def test_a_damaged_one(pool: JobPool, path: Path) -> None:
    filled(path, pool)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    refused(path, "damaged|no database")


def test_a_truncated_one(pool: JobPool, path: Path) -> None:
    filled(path, pool)
    os.truncate(path, 6000)
    refused(path, "damaged")


def test_a_folder_and_a_path_to_nowhere(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be opened: Is a directory")
    refused(tmp_path / "none" / "results.db", "cannot be opened: No such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_one_that_may_not_be_written(pool: JobPool, path: Path) -> None:
    filled(path, pool)
    path.chmod(0o400)
    refused(path, "cannot be opened: Permission denied")


def test_one_that_is_deleted_meanwhile(two: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(abs, version=1)
        function.sweep([1], two).results()
        path.unlink()
        with pytest.raises(StoreError, match="is gone"):
            function.sweep([2], two)


def test_one_that_is_replaced_meanwhile(two: JobPool, path: Path, tmp_path: Path) -> None:
    SweepStore(tmp_path / "other.db").close()
    store = SweepStore(path)
    function = store.function(abs, version=1)
    function.sweep([1], two).results()
    (tmp_path / "other.db").rename(path)
    sweep = function.sweep([2], two)
    for act in (lambda: list(sweep), store.close):
        with pytest.raises(StoreError, match="is another file by now"):
            act()


def test_one_that_another_program_locks_for_a_while(two: JobPool, path: Path) -> None:
    filled(path, two)
    with SweepStore(path) as store, closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        sweep = store.function(abs, version=1).sweep([-7], two)
        job = sweep.jobs()[0]
        assert job.result(PATIENCE) == 7
        assert sweep.counts().done == 1  # it has ended, and its row waits
        assert len(list(store.rows())) == 50
        connection.execute("COMMIT")
        assert sweep.results() == [7]


def test_a_result_whose_file_is_gone(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        (row,) = store.function(bytes, version=1).sweep([500_000], pool)
        for file in Path(f"{path}.d").iterdir():
            file.unlink()
        with pytest.raises(StoreError, match="cannot be read"):
            _ = row.result
    with SweepStore(path) as store, pytest.raises(StoreError, match="cannot be read"):
        store.function(bytes, version=1).submit(pool, 500_000).result()


def test_what_killed_programs_left_is_swept(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        store.function(bytes, version=1).sweep([500_000], pool).results()
    folder = Path(f"{path}.d")
    (kept,) = folder.iterdir()
    (folder / f"{'0' * 32}-12345678.result").touch()
    (folder / f"{'0' * 32}.checkpoint.12345678.draft").touch()
    (folder / f"{'0' * 32}.checkpoint").touch()
    (folder / "mine.txt").touch()
    with SweepStore(path) as store:
        assert len(list(folder.iterdir())) == 5  # who reads deletes nothing
        store.function(abs, version=1).sweep([1], pool).results()
        until(lambda: len(list(folder.iterdir())) == 3, "the sweeping")
    names = {file.name for file in folder.iterdir()}
    assert names == {kept.name, f"{'0' * 32}.checkpoint", "mine.txt"}
