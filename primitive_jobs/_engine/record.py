"""`JobRecord`: what a pool needs of a job, without any object of the user's; and `PoolLink`.

    PrimitiveJob (the handle, its caller's) ──► JobRecord ◄── dispatcher, scheduler, worker log
      function, arguments, metadata, options      name, id, limits, payload, tracker
      what was loaded of the outcome              the handle, unseen

An object loses its last reference on some thread, and its destructor runs there. So the pool's own
threads hold records alone: a record has texts, numbers, bytes, descriptors and its tracker. Until
the job ends it keeps the handle, too, which may be nobody's but `JobPool.jobs`'; but the pool's own
threads neither look at that nor drop it: they pass the record on, to `Ended`. What waits for the
end of a job, in its tracker, holds nothing of the user's either, but for `Callback`, which the
thread for callbacks empties.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .._wire.channel import Parcel
from ..logs import report_here
from ..options import DEFAULT_LIMITS, Limits
from .tracker import StatusTracker, cancelled

if TYPE_CHECKING:
    from .._wire.seeding import Key, Seeds


class PoolLink(Protocol):
    """What a pool hands to the jobs that are submitted to it."""

    owner: int
    of_parent: bool
    """Whether this is a fork of the process that it works in: no job ends by itself then."""

    @property
    def accepting(self) -> bool:
        """Whether it takes jobs."""
        ...

    @property
    def seeds(self) -> Seeds | None:
        """Where jobs get the keys of their randomness; None: it has no seed."""

    def check_open(self) -> None:
        """Raise `PoolClosedError`, or `ClusterError`, unless jobs are accepted."""

    def fail_early(self, record: JobRecord, failure: BaseException) -> None:
        """End a job that cannot be enlisted; returns at once."""

    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Any, ...]
    ) -> bytes | Parcel:
        """Make a serialized call ready to be sent; raises OSError or MemoryError."""
        ...

    def enlist(self, record: JobRecord) -> None:
        """Queue a job with its payload; raises `PoolClosedError` if the pool takes none."""

    def ask_cancel(self, record: JobRecord, grace: float) -> None:
        """Have a queued or running job stopped; returns at once."""

    def call_back(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the pool's thread for callbacks."""

    def check_may_wait(self) -> None:
        """Raise `JobError` on a thread that the waiting would dead-lock."""


class JobRecord:
    """One job, as its pool and its handle share it.

    The handle writes until it enlists the job. From then on `number` is the dispatcher's, and
    `payload` whoever's that has ended the job.

    Attributes:
        handle: The job's `PrimitiveJob`, from its submit to its end. To be looked at, and dropped,
            on callers' threads and that for callbacks alone: there may be no other reference.
        inner: Whether its failure is told by what it is a part of: a map, say.
        key: Of its randomness, if the pool does not give it one.
        limits: How long and how large it may get, and when it is its turn.
        link: The pool, once it is submitted.
        name: Shown in messages.
        number: Its pool's, from the day it is taken in.
        payload: What a worker is sent.
        tracker: Its status and outcome.
    """

    __slots__ = (
        "_id",
        "handle",
        "inner",
        "key",
        "limits",
        "link",
        "name",
        "number",
        "payload",
        "tracker",
    )

    def __init__(self, name: str, tracker: StatusTracker) -> None:
        self._id: list[str] = []  # the first one counts
        self.handle: Any = None
        self.inner = False
        self.key: Key | None = None
        self.limits: Limits = DEFAULT_LIMITS
        self.link: PoolLink | None = None
        self.name = name
        self.number = 0
        self.payload: bytes | Parcel | None = None
        self.tracker = tracker

    def job_id(self) -> str:
        """Return the job's uuid4 as text, made when it is first asked for."""
        if not self._id:
            self._id.append(str(uuid.uuid4()))
        return self._id[0]

    def let_go(self) -> None:
        """Drop the handle."""
        self.handle = None

    def drop_payload(self) -> None:
        """Free what would be sent. Only for whoever has ended the job: two at once would clash."""
        payload, self.payload = self.payload, None
        if isinstance(payload, Parcel):
            payload.close()

    def ask_cancel(self, grace: float | None = None) -> bool:
        """Set a cancel going; return whether its end is still to be waited for."""
        if self.tracker.outcome is not None or self.cancel_unbegun():
            return False
        # The dispatcher has it, or it has ended this moment; a link was set before either.
        if self.link is None:
            return False
        self.link.ask_cancel(self, self.limits.grace if grace is None else grace)
        return True

    def cancel_unbegun(self) -> bool:
        """Cancel it if it has not ended and no worker was ever to have it; return whether."""
        link = self.link
        if link is not None and link.of_parent:
            self.tracker.abandon(link.owner)
        if not self.tracker.end_early(cancelled()):
            return False
        self.drop_payload()
        if link is not None:
            link.ask_cancel(self, 0.0)  # it may have it in its queue
        return True


class Callback:
    """Waits for the end of a job, then has something of the user's called, once.

    Called as a waiter, on any thread, it has that done on the thread for callbacks. That takes it
    out of here, so whoever else still holds this holds nothing of the user's by then.

    Args:
        record: The job's.
        call: What to call, with the function and all that it needs.
    """

    __slots__ = ("_record", "_turn")

    def __init__(self, record: JobRecord, call: functools.partial[Any]) -> None:
        self._record = record
        self._turn: dict[None, tuple[functools.partial[Any], ...]] = {None: (call,)}

    def __call__(self) -> None:
        """Have it called; returns at once."""
        link = self._record.link
        if link is None:  # cancelled before it had a pool: its canceller's thread is here
            self.run()
        else:
            link.call_back(self.run)

    def run(self) -> None:
        """Call it here and now, unless somebody has."""
        try:
            # Whoever takes it out calls it in the same breath, so that no interrupt and no second
            # call of this, on any thread, comes between: once it is.
            calls = itertools.chain.from_iterable(map(self._turn.pop, (None,), ((),)))
            next(map(_call, calls), None)
        except BaseException as error:
            record = self._record
            text = "a callback of job %s raised"
            report_here(logging.ERROR, text, record, job=record, error=error)
            own = threading.current_thread() is threading.main_thread()
            if own and isinstance(error, KeyboardInterrupt):
                raise  # the user's Ctrl-C, not the callback's affair


class Ended:
    """The jobs that have ended and still have their handles.

    The dispatcher puts them here. Whoever submits next drops the handles, and if nobody does for a
    while, the thread for callbacks: waking that for each job would take longer than the job.
    """

    __slots__ = ("_records", "put")

    def __init__(self) -> None:
        self._records: collections.deque[JobRecord] = collections.deque()
        self.put = self._records.append

    def __bool__(self) -> bool:
        return bool(self._records)

    def part(self) -> Ended:
        """Return what holds those that are in here, and go on empty; on the dispatcher's thread.

        So a callback that blocks the thread for callbacks has one such call behind it at most for
        all that ends meanwhile.
        """
        part = Ended()
        part._records, self._records = self._records, part._records
        part.put, self.put = self.put, part.put
        return part

    def let_go(self) -> None:
        """Drop the handles; not to be called on the pool's own threads."""
        records = self._records
        with contextlib.suppress(IndexError):  # several may do so at once
            while records:
                records.popleft().handle = None


_call: Callable[[functools.partial[Any]], object] = functools.partial.__call__  # in C

__all__ = ["Callback", "Ended", "JobRecord", "PoolLink"]
