"""`Database`: the SQLite file of a store: its format, its errors, and what is asked of it.

Any thread may ask: each question has a connection of its own, and is short, since one that is open
holds up the writer. The writer's thread alone writes, but for what makes the file. The rollback
journal is in use, not the write-ahead log: that loses commits in releases of SQLite before 3.51.3,
and does not work over a network.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .contents import read_file
from .rows import COLUMNS, StoredRow, row_of

APPLICATION = 0x706A7374  # what SQLite's header says: "pjst"
SCHEMA = 1
PATIENCE = 10.0  # s that whoever reads or writes waits for another one
_PAGE = 500  # rows that are read at a time
_LINES = 5000  # rows of a table that are
_INLINE = 1024  # bytes of a result that are read together with its row

_TABLES = f"""
CREATE TABLE codes (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT, module TEXT NOT NULL,
    hash TEXT NOT NULL, parts TEXT NOT NULL, noted REAL NOT NULL);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    version TEXT, code INTEGER NOT NULL REFERENCES codes, python TEXT NOT NULL,
    arguments TEXT NOT NULL, status TEXT NOT NULL, started REAL, ended REAL NOT NULL,
    duration REAL, usage TEXT, attempts INTEGER NOT NULL, seed TEXT, error_type TEXT,
    error_text TEXT, traceback TEXT, output TEXT, progress TEXT, size INTEGER NOT NULL,
    plain TEXT, buffers INTEGER NOT NULL, file TEXT);
CREATE INDEX rows_by_name ON rows (name, version, status);
CREATE TABLE contents (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
"""
ROW = (
    "key, name, version, code, python, arguments, status, started, ended, duration, usage, "
    "attempts, seed, error_type, error_text, traceback, output, progress, size, plain, buffers, "
    "file"
)
LINE = "key, name, arguments, status, plain, error_type, error_text, duration, ended"
_JOINED = "FROM rows JOIN codes ON codes.id = rows.code"
_PASSING = ("locked", "busy", "full", "disk i/o error")
_PASSING_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def passes(error: Exception) -> bool:
    """Whether what went wrong may be over later: the file is locked, or there is no room."""
    if isinstance(error, sqlite3.OperationalError):
        text = str(error).lower()
        return any(word in text for word in _PASSING)
    return isinstance(error, OSError) and error.errno in _PASSING_NUMBERS


class Database:
    """The file at ``path``, which is made if there is none or it is empty, for its owner alone.

    Raises:
        StoreError: It is no store's, damaged, made by a later release, or cannot be opened.
    """

    def __init__(self, path: str, *, make: bool = True) -> None:
        self.path = path
        self.folder = Path(f"{path}.d")
        self._file = self._find(make=make)
        with self._told_errors(), contextlib.closing(self.connect()) as connection:
            self._check(connection)

    def _find(self, *, make: bool) -> tuple[int, int]:
        """Return what tells the file from others."""
        path = self.path
        # One that is there is never opened here: when a process closes any descriptor of a file, it
        # loses all locks that it has on it, and so those of a commit that another thread is at.
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            facts = Path(path).stat()
            wrong = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else 0
            if not wrong and not os.access(path, os.R_OK | os.W_OK):
                wrong = errno.EACCES
            if wrong:
                raise OSError(wrong, os.strerror(wrong))
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
        return facts.st_dev, facts.st_ino

    def _check(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, schema, tables) == (0, 0, 0):
            self._make(connection)
        elif application != APPLICATION:
            raise StoreError(f"{self.path} is a database, but not one of a SweepStore")
        elif schema > SCHEMA:
            raise StoreError(
                f"{self.path} was made by a later release of primitive_jobs: its format is "
                f"{schema}, and this release knows {SCHEMA}. Use that release, or another file"
            )

    @staticmethod
    def _make(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:  # or another program was faster
            for statement in _TABLES.split(";"):
                connection.execute(statement)
        connection.execute("COMMIT")

    def connect(self) -> sqlite3.Connection:
        """Return a connection of its own; raises what `sqlite3` raises."""
        # Not for reading alone: what a program left that was killed is rolled back first.
        where = Path(self.path).as_uri() + "?mode=rw"
        connection = sqlite3.connect(
            where, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def check_place(self) -> None:
        """Raise `StoreError` if another file, or none, is there by now."""
        try:
            facts = Path(self.path).stat()
        except OSError as error:
            raise StoreError(f"{self.path} is gone: {error.strerror}") from error
        if (facts.st_dev, facts.st_ino) != self._file:
            raise StoreError(f"{self.path} is another file by now")

    @contextlib.contextmanager
    def _told_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> StoreError:
        """Return what tells an error with the file's name."""
        try:
            self.check_place()
        except StoreError as moved:
            return moved
        text = str(error)
        if "not a database" in text:
            return StoreError(f"{self.path} is no database")
        if "malformed" in text:
            return StoreError(f"{self.path} is damaged: {text}")
        if "readonly" in text:
            return StoreError(f"{self.path} cannot be written to: {text}")
        return StoreError(f"{self.path}: {text}")

    # --- questions, on any thread -------------------------------------------------------------

    def ask(self, question: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of an answer; raises `StoreError`."""
        with self._told_errors(), contextlib.closing(self.connect()) as connection:
            return connection.execute(question, tuple(values)).fetchall()

    def rows(
        self, name: str | None = None, status: str | None = None, *, key: str | None = None
    ) -> Iterator[StoredRow]:
        """Yield rows in the order they were written; what comes meanwhile may be among them.

        Args:
            name, status: Only those of a function, in a status.
            key: Only those whose key begins so.
        """
        terms = ["rows.id > ?"]
        values: list[Any] = []
        for column, value in (("name", name), ("status", status)):
            if value is not None:
                terms.append(f"rows.{column} = ?")
                values.append(value)
        if key is not None:
            terms.append("substr(rows.key, 1, ?) = ?")
            values += [len(key), key]
        question = (
            f"SELECT rows.id, {COLUMNS} {_JOINED} WHERE {' AND '.join(terms)} "
            f"ORDER BY rows.id LIMIT {_PAGE}"
        )
        last = 0
        while page := self.ask(question, (last, *values)):
            for number, *facts in page:
                yield row_of(tuple(facts), number, None, self.fetch)
                last = number

    def lines(self, name: str | None, status: str | None) -> Iterator[tuple[Any, ...]]:
        """Yield what a line of a table shows of each row, as it is stored: see `LINE`."""
        question = (
            f"SELECT id, {LINE} FROM rows WHERE id > ? AND (? IS NULL OR name = ?) AND "
            f"(? IS NULL OR status = ?) ORDER BY id LIMIT {_LINES}"
        )
        last = 0
        while page := self.ask(question, (last, name, name, status, status)):
            yield from (facts for _, *facts in page)  # type: ignore[misc]
            last = page[-1][0]

    def find(self, keys: list[str]) -> dict[str, StoredRow]:
        """Return the rows of those keys that have one; small results come with them."""
        found: dict[str, StoredRow] = {}
        for start in range(0, len(keys), _PAGE):
            some = keys[start : start + _PAGE]
            question = (
                f"SELECT rows.id, rows.buffers, contents.body, {COLUMNS} {_JOINED} "
                f"LEFT JOIN contents ON contents.key = rows.key AND rows.size <= {_INLINE} "
                f"WHERE rows.key IN ({','.join('?' * len(some))})"
            )
            for number, buffers, body, *facts in self.ask(question, some):
                content = None if body is None else (body, buffers)
                found[facts[0]] = row_of(tuple(facts), number, content, self.fetch)
        return found

    def fetch(self, key: str, number: int) -> tuple[bytes | bytearray, int]:
        """Return a row's content, and how many buffers it holds; see `StoredRow.content`."""
        question = (
            "SELECT rows.buffers, rows.file, contents.body FROM rows LEFT JOIN contents ON "
            "contents.key = rows.key WHERE rows.key = ? AND rows.id = ?"
        )
        failure: OSError | None = None
        while True:
            found = self.ask(question, [key, number])
            if not found:
                raise LookupError(f"row {key} of {self.path} was written anew since, or deleted")
            buffers, file, body = found[0]
            if file is None:
                if body is None:
                    raise LookupError(f"row {key} of {self.path} has no result")
                return body, buffers
            if failure is not None:
                raise StoreError(
                    f"the result of row {key} is to be in {self.folder / file}, which cannot "
                    f"be read: {failure}"
                ) from failure
            try:
                return read_file(self.folder / file), buffers
            except OSError as error:
                failure = error  # if its row is still there

    def files(self) -> set[str]:
        """Return the names of the files that rows have."""
        found = self.ask("SELECT file FROM rows WHERE file IS NOT NULL")
        return {name for (name,) in found}


__all__ = ["APPLICATION", "LINE", "PATIENCE", "ROW", "SCHEMA", "Database", "passes"]
