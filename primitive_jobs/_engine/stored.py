"""The door of a store: jobs whose outcome is kept as it came, and such as ended in another program.

`StoredTracker` holds a job's outcome as its worker has sent it, unread, until the store lets go of
it: whoever asks for the result meanwhile unpickles it, and a tracker drops it then. `HoldingLink`
stands between a job and its pool, and keeps the job back while the store has no room.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .._common.twins import bare_twin
from .._wire.failures import dump_exception
from .._wire.messages import Kind, Message
from ..errors import InitializerError, SerializationError
from ..status import JobStatus
from .gate import HandOver
from .record import JobRecord, PoolLink
from .tracker import Outcome, Run, StatusTracker, cancelled
from .unseen import of_initializer

Raw = Message | BaseException | None
"""What an outcome is made of: a worker's message; an exception of ours; None: it was cancelled."""

Read = Callable[[], tuple[bytes | memoryview, Sequence[memoryview]]]
"""Reads the body of a message, and its buffers."""


class StoredTracker(StatusTracker):
    """The tracker of a job that a store keeps."""

    __slots__ = ("_raw",)

    def __init__(self) -> None:
        super().__init__()
        # Written by the dispatcher's thread, before anybody can see the outcome.
        self._raw: Raw = None

    def take_raw(self) -> Raw:
        """Return what its outcome is made of, and let go of it; once, when it has ended."""
        raw, self._raw = self._raw, None
        if raw is None and self.outcome is not None:  # it ended before a dispatcher had it
            raw = self.outcome.source
        return raw

    def settle(self, outcome: Outcome, took: float | None = None) -> Run | None:
        """End it."""
        if self._outcome is None:
            self._raw = outcome.source
        return super().settle(_apart(outcome), took)

    def ran(self, handed: HandOver, outcome: Outcome) -> Run:
        """End one that is over when the dispatcher hears of it."""
        self._raw = outcome.source
        return super().ran(handed, _apart(outcome))

    def end_early(self, outcome: Outcome) -> bool:
        """End one that no dispatcher has."""
        if not self._gate:
            self._raw = outcome.source
        return super().end_early(outcome)

    def be_past(self, outcome: Outcome, began: float | None, ended: float, attempts: int) -> None:
        """Be that of a job that has run in another program, at these times of the wall clock.

        Where it has not run, ``began`` is None.
        """
        self._outcome = outcome
        self._status = outcome.status
        self._attempts = attempts
        shift = time.monotonic() - time.time()
        walk: list[Any] = []
        for status, when in ((JobStatus.RUNNING, began), (outcome.status, ended)):
            if when is not None:
                walk += (status, when, when + shift)
        self._walk = walk


class _Copied(Message):
    """A result whose buffers are copied for whoever unpickles it, and may change it then."""

    __slots__ = ("_others",)

    def __init__(self, message: Message) -> None:
        self._others = message.buffers
        super().__init__(message.kind, message.attempt, message.body, extra=message.extra)

    @property
    def buffers(self) -> Sequence[memoryview]:
        return [memoryview(bytearray(each)) for each in self._others]

    @buffers.setter
    def buffers(self, buffers: Sequence[memoryview]) -> None:
        """There are the others."""


def _apart(outcome: Outcome) -> Outcome:
    """Return an outcome that shares no memory with what the store has of it."""
    source = outcome.source
    if outcome.status is not JobStatus.DONE or not isinstance(source, Message):
        return outcome
    return Outcome(outcome.status, _Copied(source)) if source.buffers else outcome


class _Read(Message):
    """What a worker has sent once, read when it is asked for: the body, then the buffers.

    Args:
        read: Reads both.
    """

    __slots__ = ("_read", "_rest")

    def __init__(self, kind: Kind, read: Read) -> None:
        self._read = read
        self._rest: dict[int, Sequence[memoryview]] = {}  # by the thread that has read
        super().__init__(kind)

    @property
    def body(self) -> bytes | bytearray | memoryview:
        body, self._rest[threading.get_ident()] = self._read()
        return body

    @body.setter
    def body(self, body: bytes | bytearray | memoryview) -> None:
        """There is the other one."""

    @property
    def buffers(self) -> Sequence[memoryview]:
        return self._rest.pop(threading.get_ident(), ())

    @buffers.setter
    def buffers(self, buffers: Sequence[memoryview]) -> None:
        """There are the others."""


def past_outcome(status: JobStatus, read: Read) -> Outcome:
    """Return the outcome of a job of an earlier program; it is read when somebody asks for it."""
    if status is JobStatus.CANCELLED:
        return cancelled()
    kind = Kind.RETURNED if status is JobStatus.DONE else Kind.RAISED
    return Outcome(status, _Read(kind, read))


def failure_of(raw: Raw, name: str) -> bytes:
    """Return a failed job's exception as a worker would have sent it; no user code runs."""
    if isinstance(raw, Message):
        if raw.kind != Kind.INIT_FAILED:
            return bytes(raw.body)
        raw = InitializerError(of_initializer(raw, name))
    if raw is None:
        raw = SerializationError(f"the call of job {name} could not be submitted")
    return dump_exception(bare_twin(raw))


class HoldingLink:
    """A pool's link, for jobs that are to wait while ``is_full`` says so.

    It is a `PoolLink` in all else. Whoever makes room calls `look`. Jobs are held in the order they
    came; those that end meanwhile are passed over by the pool, as at any submit.

    Args:
        link: The pool's.
        is_full: Whether there is no room now; called on any thread.
    """

    def __init__(self, link: PoolLink, is_full: Callable[[], bool]) -> None:
        self._link = link
        self._is_full = is_full
        self._held: collections.deque[JobRecord] = collections.deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def leads_to(self, link: PoolLink) -> bool:
        """Whether it stands before this one."""
        return self._link is link

    def enlist(self, record: JobRecord) -> None:
        """Queue a job, or hold it back."""
        if not self._held and not self._is_full():
            self._link.enlist(record)
            return
        self._held.append(record)
        if not self._is_full():  # room was made before it was on the list
            self.look()

    def look(self) -> None:
        """Have those queued that were held, as long as there is room; returns at once."""
        if self._held:
            self._link.call_back(self._let_in)  # a submit drops handles of jobs that have ended

    def _let_in(self) -> None:
        with contextlib.suppress(IndexError):  # several may do so at once
            while self._held and not self._is_full():
                record = self._held.popleft()
                try:
                    self._link.enlist(record)
                except Exception as error:  # noqa: BLE001 - the pool is closed, the cluster lost
                    self._link.fail_early(record, error)


__all__ = ["HoldingLink", "Raw", "StoredTracker", "failure_of", "past_outcome"]
