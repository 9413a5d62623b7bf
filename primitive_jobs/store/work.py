"""`Work`: the points of a store that are on their way, and who writes them.

A point is stored, or pending, or neither; `_guard` is held by whoever looks which, and by the
writer's thread between the commit of a row and its next: so a point that is neither is nobody's,
and whoever has looked makes it theirs before they let go. It knows no `SweepStore`: one that is
dropped has what is pending written all the same.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

from .._common.threads import make_thread
from .._engine.record import PoolLink
from .._engine.stored import HoldingLink
from ..errors import JobError, StaleResultsError, StoreError
from ..job import ask_cancel, submit_to
from ..options import JobOptions, shown
from ..status import FINAL_STATES, JobStatus
from . import checkpoints
from .database import Database
from .jobs import Origin, Pending, Point, StoredJob
from .lock import StoreLock
from .rows import StoredRow
from .writer import Writer

PATIENCE = 5.0  # s in which results are tried to be written, where the program ends by an exception


def check_text(name: str, value: object) -> str:
    """Return ``value``, which must be a str; raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {shown(value)}")
    return value


class Work:
    """What one program writes to a store.

    Attributes:
        database: The file.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lock = StoreLock(database.path)
        self._owner = os.getpid()
        self._writer: Writer | None = None
        self._closed = False
        self._guard = threading.RLock()
        self._changed = threading.Condition(self._guard)
        self._pending: dict[str, Pending] = {}
        self._jobs: weakref.WeakValueDictionary[str, StoredJob[Any]] = weakref.WeakValueDictionary()
        self._links: weakref.WeakValueDictionary[int, HoldingLink] = weakref.WeakValueDictionary()

    def check_open(self) -> None:
        """Raise `StoreError` where the store is closed, or of a process that this is a fork of."""
        if self._owner != os.getpid():
            raise StoreError(
                f"{self.database.path} was opened by process {self._owner}, which this one is a "
                "fork of: open it anew here"
            )
        if self._closed:
            raise StoreError(f"the store of {self.database.path} is closed")

    def begin(self) -> Writer:
        """Become who writes; again is allowed.

        Raises:
            StoreBusyError: Another program does.
            StoreError: Nothing can be written.
        """
        with self._guard:
            self.check_open()
            if self._writer is None:
                self._lock.take()
                self._writer = Writer(self.database, self._lock, self._written)
                _open.add(self)
            if self._writer.failure is not None:
                raise self._writer.failure
            return self._writer

    def link_to(self, link: PoolLink) -> PoolLink:
        """Return what stands between jobs of the store and a pool."""
        writer = self.begin()
        with self._guard:
            held = self._links.get(id(link))
            if held is None or not held.leads_to(link):
                self._links[id(link)] = held = HoldingLink(link, lambda: writer.is_full)
                writer.hold(held)
        return cast("PoolLink", held)

    def take(
        self,
        origin: Origin,
        function: Callable[..., Any],
        points: dict[str, Point],
        is_good: Callable[[StoredRow], bool],
        jobs: list[StoredJob[Any]],
    ) -> tuple[dict[str, StoredRow], dict[str, Pending]]:
        """Make points that nobody has yet the caller's.

        Args:
            jobs: Gets the jobs that the caller has to submit then, or cancel, also where this
                raises.

        Returns:
            The rows of those that are stored, and those that are pending, by whomever.

        Raises:
            StaleResultsError, ValueError: One of them runs now, with other code, or has such a row.
        """
        writer = self.begin()
        with self._guard:
            self._await_lost(points)
            found = self.database.find([key for key in points if key not in self._pending])
            rows = {key: row for key, row in found.items() if is_good(row)}
            pending: dict[str, Pending] = {}
            for key, point in points.items():
                if key in rows:
                    continue
                mine = self._pending.get(key)
                if mine is None:
                    mine = self._make(origin, function, point, writer, jobs)
                elif (mine.origin.tag, mine.origin.module) != (origin.tag, origin.module):
                    raise StaleResultsError(
                        f"a point of {origin.name}() is still running, of other code than it has "
                        "now: wait for it, cancel it, or give version="
                    )
                pending[key] = mine
            return rows, pending

    def _await_lost(self, points: dict[str, Point]) -> None:
        """Wait for the rows of points that have ended without a result: they run again."""

        def is_lost(pending: Pending | None) -> bool:
            outcome = None if pending is None else pending.record.tracker.outcome
            return outcome is not None and outcome.status is not JobStatus.DONE

        while any(is_lost(self._pending.get(key)) for key in points):
            self._changed.wait()

    def _make(
        self,
        origin: Origin,
        function: Callable[..., Any],
        point: Point,
        writer: Writer,
        jobs: list[StoredJob[Any]],
    ) -> Pending:
        goes_on = None
        if point.key in writer.has_checkpoint:
            goes_on = checkpoints.read(self.database.folder, point.key, origin.tag)
        job = StoredJob(function, point, goes_on)
        jobs.append(job)  # first: an interrupt may come between any two steps
        job.metadata["key"] = point.key
        pending = Pending(origin, point, job, writer.put)
        self._pending[point.key] = pending
        self._jobs[point.key] = job
        writer.expect(pending)
        return pending

    @staticmethod
    def submit(jobs: list[StoredJob[Any]], link: PoolLink, options: JobOptions) -> None:
        """Submit jobs that were taken."""
        for job in jobs:
            submit_to(job, link, options)

    @staticmethod
    def drop(jobs: list[StoredJob[Any]]) -> None:
        """Cancel jobs that were taken, submitted or not."""
        for job in jobs:
            ask_cancel(job)

    def rows(self, name: str | None, status: JobStatus | str | None) -> Iterator[StoredRow]:
        """Yield stored rows; see `SweepStore.rows`."""
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {shown(name)}")
        known = [final.name for final in FINAL_STATES]
        asked = status.name if isinstance(status, JobStatus) else status
        if asked is not None and asked not in known:
            raise ValueError(f"status must be one of {', '.join(known)}, not {shown(status)}")
        return self.database.rows(name, asked)

    def job_of(self, key: str) -> StoredJob[Any] | None:
        """Return the job of a point that is pending, as long as anybody has it."""
        return self._jobs.get(key)

    def _written(self, pending: Pending) -> None:
        with self._guard:
            if self._pending.get(pending.key) is pending:
                del self._pending[pending.key]
            self._changed.notify_all()

    # --- the end ------------------------------------------------------------------------------

    def end(self, *, cancel: bool) -> None:
        """Wait until all that is pending is written, or cancel that; then let go of the file."""
        if self._owner != os.getpid():
            return
        with self._guard:
            self._closed = True
            writer = self._writer
        if writer is not None:
            try:
                if cancel:
                    self._cancel_all()
                else:
                    self._await_all()
            except BaseException:  # a Ctrl-C while it waits
                cancel = True
                self._cancel_all()
                raise
            finally:
                writer.end(PATIENCE if cancel else None)
                self._lock.release()
                self._writer = None
                _open.discard(self)
            if writer.failure is not None and not cancel:
                raise writer.failure

    def _await_all(self) -> None:
        with self._changed:
            while self._pending:
                self._changed.wait()

    def _cancel_all(self) -> None:
        for pending in list(self._pending.values()):
            pending.record.ask_cancel()
        for pending in list(self._pending.values()):
            with contextlib.suppress(JobError):
                if pending.record.link is not None:
                    pending.record.link.check_may_wait()
                pending.record.tracker.wait()
        with self._changed:  # each is on its way to the writer a moment later
            self._changed.wait_for(lambda: not self._pending, PATIENCE)

    def let_end(self) -> None:
        """Its store is dropped: end once nothing is pending; returns at once."""
        if self._owner == os.getpid() and not self._closed and self._writer is not None:
            self._closed = True
            make_thread("store-end", functools.partial(self.end, cancel=False)).start()


_open: set[Work] = set()  # those that write


@atexit.register
def _end_all() -> None:
    # The pools have ended before, and with them all jobs, but for what the writers are at.
    for work in list(_open):
        work.end(cancel=True)


__all__ = ["Work", "check_text"]
