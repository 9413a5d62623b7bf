"""`Writer`: the thread that writes rows, and copies checkpoints of the jobs that run.

    job is final ─► queue ─► [waiting] ─► result's file ─► row, in one commit ─► whoever waits
                               │ while the file is locked or the disk is full, results wait here;
                               └ beyond 256 MB jobs that are submitted wait, but for what pools have

A row is written at once where the last commit is 10 ms ago; else together with what comes until
then. It holds no handle of a job, and runs no user code but handlers of `logging`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .._common.threads import make_thread
from .._engine.stored import HoldingLink
from ..errors import StoreError
from ..insight.salvage import Checkpoint
from ..logs import report_here
from ..status import JobStatus
from . import checkpoints
from .contents import LARGE, Content, make_folder, new_name, sweep_out, write_file
from .database import ROW, Database, passes
from .jobs import Origin, Pending
from .lock import StoreLock
from .rows import StoredRow, row_of

COLLECT = 0.01  # s between two commits
MOST = 256 << 20  # bytes of results that wait in memory
RETRY = 0.25  # s between two tries to write
LOOK = 1.0  # s between two looks at checkpoints
_RANKS = {"CANCELLED": 0, "ERROR": 1, "DONE": 2}  # none is replaced by one of less
_KEPT = 1024  # bytes of a result that stays in memory with its row
_COLUMNS = ROW.split(", ")
_INSERT = f"INSERT INTO rows ({ROW}) VALUES ({', '.join('?' * len(_COLUMNS))})"


class _Entry:
    """A row that is to be written.

    Attributes:
        file: The name of the file of its content, once that is written.
    """

    def __init__(self, pending: Pending) -> None:
        self.pending = pending
        self.values, self.content = pending.values()
        self.file: str | None = None
        self.row: StoredRow | None = None


class _Expected:
    """A job that is about to be submitted."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending) -> None:
        self.pending = pending


class _Asked:
    """A question that changes what is stored.

    Attributes:
        answer: Gets what it returns and None, or None and what it raises.
    """

    def __init__(self, question: Callable[[sqlite3.Connection], Any]) -> None:
        self.answer: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._question = question

    def put_to(self, connection: sqlite3.Connection) -> None:
        """Ask it in a transaction of its own."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            value = self._question(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is raised there
            _roll_back(connection)
            self.answer.put((None, error))
        else:
            self.answer.put((value, None))

    def refuse(self, why: Exception) -> None:
        """It is not asked."""
        self.answer.put((None, why))


_Item = Pending | _Asked | _Expected


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class Writer:
    """Writes to a store; one for each program that does.

    Args:
        database: The file.
        lock: What keeps other programs from it.
        done: Called with each job of which the row is written, or cannot be; on its thread.

    Attributes:
        failure: Why nothing can be written any more; None: it can.
        has_checkpoint: The keys of points that have a checkpoint beside the file; this thread's,
            once it runs.
        is_full: Whether so many results wait that no job is to be sent to a pool.
    """

    def __init__(
        self, database: Database, lock: StoreLock, done: Callable[[Pending], object]
    ) -> None:
        self.failure: Exception | None = None
        self.has_checkpoint = checkpoints.listed(database.folder)
        self.is_full = False
        self._database = database
        self._lock = lock
        self._done = done
        # None: end, once what came before is written.
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._asked: list[_Asked] = []
        self._links: weakref.WeakSet[HoldingLink] = weakref.WeakSet()
        self._batch: list[_Entry] = []  # taken, and not written yet
        self._running: dict[Pending, None] = {}
        self._codes: dict[tuple[Any, ...], int] = {}
        self._last = 0.0  # commit, on the monotonic clock
        self._ending = False  # it was told to end; this thread's, as the rest of these
        self._ended = False
        self._hurry: float | None = None  # after which it does not try any more
        self._thread = make_thread("store", self._run)
        self._thread.start()

    # --- for any thread -----------------------------------------------------------------------

    def expect(self, pending: Pending) -> None:
        """Have a job's checkpoints copied, from its submit to its end."""
        self._queue.put(_Expected(pending))

    def put(self, pending: Pending) -> None:
        """Have the row of a job that is final written; returns at once."""
        self._queue.put(pending)
        if self._ended:  # it looks once more after it has said so: one of both sees the other
            self._refuse()

    def hold(self, link: HoldingLink) -> None:
        """Have a link told when there is room again."""
        self._links.add(link)

    def call(self, question: Callable[[sqlite3.Connection], Any]) -> Any:
        """Return what a function returns that is called in a transaction of its own.

        Raises:
            StoreError: The file cannot be written to.
        """
        asked = _Asked(question)
        self._queue.put(asked)
        if self._ended:
            self._refuse()
        value, error = asked.answer.get()
        if isinstance(error, sqlite3.Error):
            raise self._database.failure(error) from error
        if error is not None:
            raise error
        return value

    def end(self, patience: float | None) -> None:
        """Write what came, and end; after ``patience`` s in which that fails, without it."""
        if patience is not None:
            self._hurry = time.monotonic() + patience
        self._queue.put(None)
        self._thread.join()

    # --- its thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._database.connect()
            sweep_out(self._database.folder, self._database.files())
            self._work(connection)
        except Exception as error:  # noqa: BLE001 - those who wait are told
            self._fail(error)
        finally:
            if connection is not None:
                connection.close()
            self._ended = True
        self._refuse()

    def _work(self, connection: sqlite3.Connection) -> None:
        last_look = time.monotonic()
        while not self._ending:
            self._take(self._pause(last_look))
            if self._batch:
                rest = self._last + COLLECT - time.monotonic()
                if rest > 0 and not self._ending:
                    time.sleep(rest)
                    self._take_rest()
                try:
                    self._write(connection)
                except Exception as error:  # noqa: BLE001 - a disk that breaks, say
                    self._write_each(connection, error)
            self._call_asked(connection)
            if self._running and time.monotonic() - last_look >= LOOK:
                self._copy_checkpoints()
                last_look = time.monotonic()

    def _pause(self, last_look: float) -> float | None:
        """Seconds to wait for something to write; None: as long as it takes."""
        return max(0.0, last_look + LOOK - time.monotonic()) if self._running else None

    def _take(self, timeout: float | None) -> None:
        """Wait for something to write, and take it all."""
        with contextlib.suppress(queue.Empty):
            self._sort(self._queue.get(timeout=timeout))
            self._take_rest()

    def _take_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._sort(self._queue.get_nowait())

    def _sort(self, item: _Item | None) -> None:
        if item is None:
            self._ending = True
        elif isinstance(item, _Expected):
            self._running[item.pending] = None
        elif isinstance(item, _Asked):
            self._asked.append(item)
        elif not item.taken:  # it may have come twice
            item.taken = True
            self._running.pop(item, None)
            try:
                self._batch.append(_Entry(item))
            except Exception as error:  # noqa: BLE001 - no memory, say
                self._lose(item, error)

    def _call_asked(self, connection: sqlite3.Connection) -> None:
        asked, self._asked = self._asked, []
        for ask in asked:
            ask.put_to(connection)

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write what was taken, and what comes meanwhile, however long that takes."""
        told, batch = False, self._batch
        while True:
            try:
                old = self._commit(connection, batch)
                break
            except Exception as error:
                _roll_back(connection)
                self._codes.clear()  # some may not be there
                if not passes(error) or self._is_late():
                    raise
                if not told:
                    told = True
                    self._warn(error)
            self._take_rest()
            self.is_full = sum(entry.pending.size for entry in batch) > MOST
            time.sleep(RETRY)
        self._last = time.monotonic()
        self._batch = []
        self._tidy(batch, old)
        for entry in batch:
            assert entry.row is not None, "it was committed"
            self._tell(entry.pending, entry.row)
        self._make_room()
        if told:
            report_here(logging.WARNING, "%s is written to again", self._database.path)

    def _write_each(self, connection: sqlite3.Connection, error: Exception) -> None:
        """Write what can be: of a row that cannot be written only its own waiters are told."""
        if isinstance(error, (sqlite3.DatabaseError, OSError, StoreError)):
            self._fail(error)
            return
        rest = self._batch
        while rest:
            self._batch = [rest.pop(0)]
            try:
                self._write(connection)
            except (sqlite3.DatabaseError, OSError, StoreError) as failure:
                self._batch += rest
                self._fail(failure)
                return
            except Exception as failure:  # noqa: BLE001 - whatever is wrong with this row
                self._lose(self._batch[0].pending, failure)
        self._batch = []

    def _make_room(self) -> None:
        self.is_full = False
        for link in list(self._links):
            link.look()

    def _is_late(self) -> bool:
        return self._hurry is not None and time.monotonic() >= self._hurry

    def _warn(self, error: Exception) -> None:
        text = "%s cannot be written to now (%s): results wait in memory, at most %d MB"
        report_here(logging.WARNING, text, self._database.path, error, MOST >> 20)

    def _commit(self, connection: sqlite3.Connection, batch: list[_Entry]) -> list[str]:
        """Write them in one transaction; return the files of rows that they replace."""
        self._database.check_place()
        if not self._lock.is_there():
            raise StoreError(f"{self._database.path}.lock was deleted: another program may write")
        for entry in batch:
            if entry.content is not None and entry.content.size >= LARGE and entry.file is None:
                entry.file = self._write_content(entry.pending.key, entry.content)
        connection.execute("BEGIN IMMEDIATE")
        old: list[str] = []
        for entry in batch:
            old += self._insert(connection, entry)
        connection.execute("COMMIT")
        return old

    def _write_content(self, key: str, content: Content) -> str:
        name = new_name(key)
        make_folder(self._database.folder)
        write_file(self._database.folder, name, content.parts)
        return name

    def _insert(self, connection: sqlite3.Connection, entry: _Entry) -> Iterable[str]:
        key, content = entry.pending.key, entry.content
        code = self._code(connection, entry.pending.origin)
        origin = entry.pending.origin
        facts = {**entry.values, "module": origin.module, "hash": origin.code}
        shown = tuple(facts[name] for name in _SHOWN)
        question = "SELECT status, file FROM rows WHERE key = ?"
        before = connection.execute(question, (key,)).fetchone()
        if before is not None and _RANKS[before[0]] > _RANKS[entry.values["status"]]:
            # What there is is worth more than that it was cancelled, or failed, this time.
            kept = None if content is None else (b"".join(content.parts), content.buffers)
            entry.row = row_of(shown, 0, kept, None)
            return [] if entry.file is None else [entry.file]
        connection.execute("DELETE FROM rows WHERE key = ?", (key,))
        connection.execute("DELETE FROM contents WHERE key = ?", (key,))
        values = {**entry.values, "code": code, "file": entry.file}
        made = connection.execute(_INSERT, [values[name] for name in _COLUMNS])
        kept = None
        if content is not None and entry.file is None:
            body = b"".join(content.parts)
            connection.execute("INSERT INTO contents VALUES (?, ?)", (key, body))
            kept = (body, content.buffers) if len(body) <= _KEPT else None
        entry.row = row_of(shown, made.lastrowid or 0, kept, self._database.fetch)
        return [] if before is None or before[1] in (None, entry.file) else [before[1]]

    def _code(self, connection: sqlite3.Connection, origin: Origin) -> int:
        """Return the number of a function's code, which is noted when it is met first."""
        known = origin[:4]
        number = self._codes.get(known)
        if number is None:
            where = "name = ? AND version IS ? AND module = ? AND hash = ?"
            found = connection.execute(f"SELECT id FROM codes WHERE {where}", known).fetchone()
            if found is None:
                values = (*known, json.dumps(origin.parts), time.time())
                made = connection.execute(
                    "INSERT INTO codes (name, version, module, hash, parts, noted) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    values,
                )
                return made.lastrowid or 0  # known once it is committed
            self._codes[known] = number = found[0]
        return number

    def _tidy(self, batch: list[_Entry], old: list[str]) -> None:
        """After a commit: delete files that no row has any more, and see to checkpoints."""
        for name in old:
            with contextlib.suppress(OSError):
                (self._database.folder / name).unlink()
        for entry in batch:
            if entry.values["status"] == JobStatus.DONE.name:
                if entry.pending.key in self.has_checkpoint:
                    checkpoints.forget(self._database.folder, entry.pending.key)
                    self.has_checkpoint.discard(entry.pending.key)
            else:
                self._keep_last(entry.pending)

    def _tell(self, pending: Pending, row: StoredRow | Exception) -> None:
        self._done(pending)
        try:
            pending.written(row)
        except Exception as error:  # noqa: BLE001 - of one of those who wait
            report_here(logging.ERROR, "a waiter for a row failed", error=error)

    def _fail(self, error: Exception) -> None:
        """From now on nothing is written; those whose rows are lost are told."""
        batch, self._batch = self._batch, []
        failure = error if isinstance(error, StoreError) else self._database.failure(error)
        self.failure = self.failure or failure
        if batch:
            text = "%d results cannot be written to %s"
            report_here(logging.ERROR, text, len(batch), self._database.path, error=error)
        for entry in batch:
            self._tell(entry.pending, failure)
        self._make_room()  # whoever has the jobs has their results

    def _lose(self, pending: Pending, error: Exception) -> None:
        """A row cannot be written; the others can."""
        name, path = pending.record.name, self._database.path
        report_here(logging.ERROR, "no row of job %s can be written", name, error=error)
        told = f"no row of job {name} can be written to {path}: {type(error).__name__}: {error}"
        self._tell(pending, StoreError(told))

    def _refuse(self) -> None:
        """What comes after its end, or after a failure at its begin, is told so."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                why = self.failure or StoreError(f"{self._database.path} is closed")
                if isinstance(item, Pending):
                    self._tell(item, why)
                elif isinstance(item, _Asked):
                    item.refuse(why)

    # --- checkpoints --------------------------------------------------------------------------

    def _copy_checkpoints(self) -> None:
        for pending in list(self._running):
            pace, seat = pending.pace, pending.record.seated()
            if seat is None or pending.record.tracker.outcome is not None:
                continue
            if not pace.is_due((seat.traces, seat.attempt)):
                continue
            began = time.monotonic()
            with contextlib.suppress(Exception):  # no room, no memory, nonsense in a page
                copied = seat.traces.copied(seat.attempt, pace.last)
                if copied is not None:
                    self._keep(pending, copied[1])
                    pace.last = copied[0]
            pace.spent(time.monotonic() - began)

    def _keep(self, pending: Pending, checkpoint: Checkpoint) -> None:
        folder, origin = self._database.folder, pending.origin
        make_folder(folder)
        self.has_checkpoint.add(pending.key)
        checkpoints.write(folder, pending.key, origin.name, origin.tag, checkpoint)

    def _keep_last(self, pending: Pending) -> None:
        """Keep the last checkpoint of a job that has ended without a result."""
        kept = pending.record.kept
        last = None if kept is None else kept.checkpoint
        if last is None or last is pending.resumed:
            return
        try:
            self._keep(pending, last)
        except Exception as error:  # noqa: BLE001 - no room, no memory
            text = "the last checkpoint of job %s is not kept"
            report_here(logging.WARNING, text, pending.record.name, error=error)


_SHOWN = (  # noqa: SIM905 - a line of text is read more easily
    "key name version module hash python arguments status started ended duration usage attempts "
    "seed error_type error_text traceback output progress size plain"
).split()

__all__ = ["Writer"]
