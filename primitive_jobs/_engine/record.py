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
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from .._common import identity
from .._wire import retrying
from .._wire.parcel import Parcel
from .._wire.setting import Setting
from ..insight.printed import Prints
from ..insight.traces import Kept, Seat
from ..insight.waits import waits_for
from ..logs import report_here
from ..options import DEFAULT_LIMITS, Limits
from . import printing
from .again import Again
from .awaited import OVER, Awaited
from .given import Given
from .tracker import StatusTracker, cancelled
from .unmet import let_needs_go

if TYPE_CHECKING:
    from weakref import WeakSet

    from .._wire.present import About
    from .._wire.seeding import Key, Seeds
    from ..insight.traces import Seated, Traces
    from ..options import JobOptions
    from .awaited import Over
    from .capacity import Capacity

NO_TOKENS: Mapping[str, tuple[int, ...]] = MappingProxyType({})


class PoolLink(Protocol):
    """What a pool hands to the jobs that are submitted to it."""

    capacity: Capacity
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

    def repack(self, parcel: Parcel) -> Parcel:
        """Make a call that was packed for any pool ready for this one's workers.

        Raises:
            SerializationError: It cannot go there.
        """
        ...

    def enlist(self, record: JobRecord) -> None:
        """Queue a job with its payload; raises `PoolClosedError` if the pool takes none."""

    def ask_cancel(self, record: JobRecord, grace: float, *, queued_only: bool = False) -> None:
        """Have a queued or running job stopped, or only a queued one; returns at once."""

    def call_back(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the pool's thread for callbacks."""

    def check_may_wait(self) -> None:
        """Raise `JobError` on a thread that the waiting would dead-lock."""


class JobRecord:
    """One job, as its pool and its handle share it.

    The handle writes until it enlists the job. From then on `number` is the dispatcher's, and
    `payload` whoever's that has ended the job.

    Attributes:
        awaits: The results of other jobs that it waits for, or has waited for.
        handle: The job's `PrimitiveJob`, from its submit to its end. To be looked at, and dropped,
            on callers' threads and that for callbacks alone: there may be no other reference.
        inner: Whether its failure is told by what it is a part of: a map, say.
        key: Of its randomness, if the pool does not give it one.
        limits: How long and how large it may get, and when it is its turn.
        link: The pool, once it is submitted.
        name: Shown in messages.
        number: Its pool's, from the day it is taken in.
        kept: What it has left, once an attempt is over and has left something; or what a job of an
            earlier program has, from which it goes on.
        payload: What a worker is sent.
        prints: Where what it prints goes; None: where its worker prints.
        seat: Where its present attempt is seen; None: nowhere, or `StatusTracker.handed` says it.
        told: Options that the worker has to know, None: they are the default.
        tracker: Its status and outcome.
        wanted: Where its result is to be put for jobs that wait for it; None: none does.
    """

    __slots__ = (
        "_id",
        "awaits",
        "handle",
        "inner",
        "kept",
        "key",
        "limits",
        "link",
        "name",
        "number",
        "payload",
        "prints",
        "seat",
        "told",
        "tracker",
        "wanted",
    )

    def __init__(self, name: str, tracker: StatusTracker) -> None:
        self._id: list[bytes] = []  # the first one counts
        self.awaits: Sequence[Awaited | Over] = ()
        self.handle: Any = None
        self.inner = False
        self.kept: Kept | None = None
        self.key: Key | None = None
        self.limits: Limits = DEFAULT_LIMITS
        self.link: PoolLink | None = None
        self.name = name
        self.number = 0
        self.payload: bytes | Parcel | None = None
        self.prints: Prints | None = None
        self.seat: Seated | None = None
        self.told: dict[str, Any] | None = None
        self.tracker = tracker
        self.wanted: WeakSet[Awaited] | None = None

    def job_id(self) -> str:
        """Return the job's uuid4 as text, made when it is first asked for."""
        return identity.text_of(self._drawn())

    def _drawn(self) -> bytes:
        if not self._id:
            self._id.append(identity.draw())
        return self._id[0]

    @property
    def is_piped(self) -> bool:
        """Whether what it prints comes here through its worker's pipe.

        Its worker has nothing else to do then, until that is read.
        """
        return self.prints is not None and self.prints.path is None

    def take(self, options: JobOptions, link: PoolLink | None) -> None:
        """Be a job with these options, before it is submitted to the pool.

        Raises:
            ValueError: It needs more than the pool can ever give it.
        """
        self.limits = options.limits
        if self.limits.needs is not None and link is not None:
            link.capacity.check(self.limits.needs)
        self.told = options.told
        if options.name is not None:
            self.name = options.name
        if self.told is not None and "output" in self.told and link is not None:
            self.prints, self.told["output"] = printing.prints_of(
                self.told["output"], self.name, self.job_id, link.call_back
            )

    def about(self) -> About:
        """Return what a worker is told of the job, besides its call; on its caller's thread.

        Raises:
            SerializationError: It cannot be pickled.
        """
        if self.told is None:
            return self.name, self._drawn()
        retry_on = self.told.get("retry_on")
        if isinstance(retry_on, tuple):  # from here on no class of the user's is in the record
            self.told["retry_on"] = retrying.dump(retry_on)
        return self.name, self._drawn(), Setting(self.told)

    def seated(self) -> Seated | None:
        """Return where its present attempt is seen; on any thread."""
        return self.seat or self.tracker.handed()

    def leave(self, told: bytes | None) -> None:
        """Keep what its attempt has left; ``told`` with its outcome, None: its worker has died.

        On the dispatcher's thread, before the tracker is told of the end.
        """
        seat, self.seat = self.seated(), None
        if seat is None:
            return
        with contextlib.suppress(Exception):  # no memory, say: the outcome counts for more
            if self.kept is None:
                self.kept = Kept()
            if self.is_piped:
                seat.traces.drain()
            self.kept.take(seat, told)

    def sit(
        self, traces: Traces, attempt: int, tokens: Mapping[str, tuple[int, ...]] = NO_TOKENS
    ) -> None:
        """It is about to be sent to a worker, with these tokens; on the dispatcher's thread."""
        self.seat = Seat(traces, attempt)
        if tokens:
            self.payload = Given(tokens).with_call(self.payload)
        if self.prints is not None and self.is_piped:
            traces.print_into(attempt, self.prints.printed)

    def go_on(self, end: str, delay: float) -> None:
        """Have what the attempt has left come with its next one; it ended so, in words."""
        self.kept = self.kept or Kept()
        self.kept.go_on(f"attempt {self.tracker.attempts} {end}", delay)
        self.go_on_from(self.kept)

    def go_on_from(self, kept: Kept) -> None:
        """Have what was left come with the next attempt, or with the first one."""
        again = Again.after(self.payload, self.tracker.attempts + 1, kept.checkpoint)
        self.payload = again.with_call(self.payload)

    def waiting_for(self) -> str:
        """Return in words what it waits for, if it is QUEUED; on any thread."""
        needs, link = self.limits.needs, self.link
        if needs is None or link is None:
            return waits_for(self.kept, self.awaits)
        return waits_for(self.kept, self.awaits, needs, *link.capacity.lacked(needs))

    def let_go(self) -> None:
        """Drop the handle."""
        handle, self.handle = self.handle, None
        if self.awaits and handle is not None and not self._may_wait_again():
            let_needs_go(handle, self.tracker.outcome)

    def _may_wait_again(self) -> bool:
        """Whether it may be resubmitted, and has not got all the results that it waits for."""
        kept = self.told is not None and bool(self.told.get("keep_call"))
        return kept and any(awaited.record is not None for awaited in self.awaits)

    def drop_payload(self, *, returned: bool = False) -> None:
        """Free what would be sent, unless it is kept for `PrimitiveJob.resubmit`.

        That of a job that has ``returned`` is kept only if the job asks for it: it may hold a
        descriptor. Only for whoever has ended the job: two at once would clash.
        """
        kept, told = self.kept, self.told
        goes_on = kept is not None and kept.checkpoint is not None and not returned
        if goes_on or (told is not None and told.get("keep_call")):
            return
        payload, self.payload = self.payload, None
        if self.awaits:
            self.awaits = OVER
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

    def cancel_queued(self) -> None:
        """Have it cancelled unless a worker has begun with it; returns at once.

        It may have been sent ahead, or have waited for a worker before: its pool knows.
        """
        link = self.link
        if not self.cancel_unbegun() and link is not None and self.tracker.outcome is None:
            link.ask_cancel(self, 0.0, queued_only=True)


def known_by(prefix: str, records: Iterable[JobRecord]) -> list[JobRecord]:
    """Return those whose id begins so."""
    # Most are told from it by a few bytes: the text of an id takes longer to be made.
    begin = prefix.replace("-", "")[:_SURE]
    likely = (each for each in records if each._id and each._id[0].hex().startswith(begin))
    return [each for each in likely if each.job_id().startswith(prefix)]


_SURE = 12  # digits of an id that are those of what was drawn; the next one tells the version


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
                record = records.popleft()
                if record.awaits:
                    record.let_go()
                record.handle = None


_call: Callable[[functools.partial[Any]], object] = functools.partial.__call__  # in C

__all__ = ["Callback", "Ended", "JobRecord", "PoolLink", "known_by"]
