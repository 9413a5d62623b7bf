"""`AsyncResult`: what `Pool.apply_async`, `map_async` and `starmap_async` return.

Whoever waits, waits for the jobs; no thread does it for them. Where there is a callback, the first
job that is not over has the thread for callbacks look again when it is; so the callback is called
there, once, when none is left.
"""

from __future__ import annotations

import functools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from .._engine.record import Callback
from .._wire.chunk import NUMBERS, Unpacker, is_packed, reply_of
from .._wire.failures import load_exception
from .._wire.pickling import LEFT_OUT
from ..errors import JobCancelledError, ResultTimeoutError, SerializationError
from ..job import PrimitiveJob, ask_cancel, record_of, tracker_of
from ..options import check_seconds
from ..status import JobStatus

if TYPE_CHECKING:
    from .._engine.record import PoolLink

T = TypeVar("T")

_here = threading.local()  # .calls: whether this thread is in a callback


class TimeoutError(ResultTimeoutError, multiprocessing.TimeoutError):  # noqa: A001 - as theirs
    """The result is not ready in time; the call goes on."""


class _Loaded(NamedTuple):
    """What a call has brought."""

    value: Any
    failure: BaseException | None


class AsyncResult(Generic[T]):
    """What `Pool.apply_async` and the like return: the methods of theirs, and the jobs.

    Attributes:
        jobs: The `PrimitiveJob` of the call; of a `Pool.map_async` one for each chunk.
    """

    def __init__(
        self,
        link: PoolLink,
        jobs: list[PrimitiveJob[Any]],
        calling: dict[AsyncResult[Any], None],
        callback: Callable[[T], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._link = link
        self._jobs = jobs
        self._callbacks = callback, error_callback
        self._calling = calling
        self._ended = 0  # so many of the jobs, from the first on, are known to be over
        self._lock = threading.RLock()
        self._loaded: _Loaded | None = None
        self._called: threading.Event | None = None
        if callback is not None or error_callback is not None:
            self._called = threading.Event()
            calling[self] = None
            self._follow()

    @property
    def jobs(self) -> tuple[PrimitiveJob[Any], ...]:
        """The jobs."""
        return tuple(self._jobs)

    @property
    def job(self) -> PrimitiveJob[Any]:
        """The job; those of a map are in ``jobs``."""
        if len(self._jobs) != 1:
            raise AttributeError(f"there are {len(self._jobs)} jobs: they are in .jobs")
        return self._jobs[0]

    def cancel(self) -> bool:
        """Stop it for real, running calls included; return whether it is cancelled.

        Of a map all jobs are stopped that are unfinished.
        """
        cancel_all(self._jobs)
        cancelled = [job.cancel() for job in self._jobs]  # waits for the end of each
        return any(cancelled)

    def ready(self) -> bool:
        """Return whether it is over, and its callback has been called."""
        return self._first_unended() == len(self._jobs) and self._has_called()

    def successful(self) -> bool:
        """Return whether no call has failed.

        Raises:
            ValueError: It is not ready.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._load().failure is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is ready, at most ``timeout`` s."""
        end = end_of(timeout)
        for job in self._jobs[self._ended :]:
            if not job.wait(left_until(end)):
                return
        if self._called is not None and not self._has_called():
            self._called.wait(left_until(end))

    def get(self, timeout: float | None = None) -> T:
        """Return the result, the same object each time, waiting for it at most ``timeout`` s.

        Raises:
            TimeoutError: A `multiprocessing.TimeoutError`: it is not ready in time; it goes on.
            BaseException: What the call has raised, or what `PrimitiveJob.result` raises.
        """
        self.wait(timeout)
        try:
            if not self.ready():
                raise TimeoutError(f"the result is not ready after {timeout} s")
            value, failure = self._load()
            if failure is not None:
                BaseException.with_traceback(failure, None)  # it may have one of its own
                raise failure
            return value  # type: ignore[no-any-return]
        finally:
            # Or this frame and the exception keep each other alive.
            self = LEFT_OUT  # noqa: PLW0642
            failure = None

    # --- how it follows its jobs -------------------------------------------------------------

    def _first_unended(self) -> int:
        place = self._ended
        while place < len(self._jobs) and self._jobs[place].in_final_state():
            place += 1
        self._ended = place  # of two threads either is right
        return place

    def _has_called(self) -> bool:
        """Whether there is no callback to be waited for; a callback itself waits for none."""
        called = self._called
        if called is None or called.is_set() or getattr(_here, "calls", False):
            return True
        return self._link.of_parent  # in a fork, where nobody calls it

    def _load(self) -> _Loaded:
        """Return what it has brought, once it is over."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._unpickled()
            return self._loaded

    def _unpickled(self) -> _Loaded:
        values, failure = values_of(self._jobs[0], chunked=False)
        return _Loaded(None, failure) if failure is not None else _Loaded(values[0], None)

    def _follow(self) -> None:
        """Have the callback called when all jobs are over; on the thread for that."""
        place = self._first_unended()
        if place < len(self._jobs):
            record = record_of(self._jobs[place])
            record.tracker.call_when_final(Callback(record, functools.partial(self._follow)))
        elif self._jobs:
            last = record_of(self._jobs[-1])
            Callback(last, functools.partial(self._call_back))()
        else:
            self._link.call_back(self._call_back)

    def _call_back(self) -> None:
        assert self._called is not None, "there is a callback"
        within = getattr(_here, "calls", False)  # of another one, after the pool's end
        _here.calls = True
        try:
            callback, error_callback = self._callbacks
            # A failure that nobody is told of here stays one that nobody looked at.
            if error_callback is not None or all(map(_is_done, self._jobs)):
                value, failure = self._load()
                if failure is None:
                    if callback is not None:
                        callback(value)
                elif error_callback is not None:
                    error_callback(failure)
        finally:
            _here.calls = within
            self._callbacks = None, None
            self._called.set()
            self._calling.pop(self, None)


class MapResult(AsyncResult[list[T]]):
    """What has the results of many jobs.

    Args:
        jobs: Theirs.
        chunked: Whether each makes several calls.
        others: As `AsyncResult`.
    """

    def __init__(
        self, link: PoolLink, jobs: list[PrimitiveJob[Any]], *others: Any, chunked: bool
    ) -> None:
        self._chunked = chunked
        super().__init__(link, jobs, *others)

    def _unpickled(self) -> _Loaded:
        values: list[Any] = []
        for place, job in enumerate(self._jobs):
            of_job, failure = values_of(job, chunked=self._chunked)
            if failure is not None:
                for other in self._jobs[place + 1 :]:  # whoever hears of one is told enough
                    tracker_of(other).looked_at()
                return _Loaded(None, failure)
            values += of_job
        return _Loaded(values, None)


def _is_done(job: PrimitiveJob[Any]) -> bool:
    outcome = tracker_of(job).outcome
    return outcome is not None and outcome.status is JobStatus.DONE


def value_of(result: AsyncResult[T]) -> T:
    """Return what it brings; if the waiting is interrupted, nobody has a handle any more."""
    try:
        return result.get()
    except BaseException:
        cancel_all(result._jobs)
        raise
    finally:
        del result


def cancel_all(jobs: Iterable[PrimitiveJob[Any]]) -> None:
    """Have them cancelled; returns at once."""
    for job in jobs:
        ask_cancel(job)


def values_of(job: PrimitiveJob[Any], *, chunked: bool) -> tuple[list[Any], BaseException | None]:
    """Return the results of a job's calls, and what ended them early, if anything did.

    The job is over. One that is ``chunked`` is unpickled, and emptied, once.
    """
    failure: BaseException | None
    try:
        failure = job.exception()
    except (JobCancelledError, SerializationError) as error:
        failure = error
    if failure is not None:
        return [], failure
    if not chunked:
        return [job.result()], None
    packed, raised, _, _, parts, _ = reply_of(job.result())
    if NUMBERS.issuperset(map(type, packed)):  # which only saves time
        return packed, None if raised is None else load_exception(raised)
    unpacker = Unpacker(parts, job.name)
    values: list[Any] = []
    try:
        packed.reverse()
        while packed:
            value = packed.pop()
            values.append(unpacker.unpack(value, len(values)) if is_packed(value) else value)
    except SerializationError as error:
        return values, error
    return values, None if raised is None else load_exception(raised)


def end_of(timeout: float | None) -> float | None:
    """Return when a waiting is over, on the monotonic clock; None: never."""
    seconds = check_seconds("timeout", timeout)
    return None if seconds is None else time.monotonic() + seconds


def left_until(end: float | None) -> float | None:
    """Return the seconds until then; None: no end."""
    return None if end is None else max(0.0, end - time.monotonic())


__all__ = [
    "AsyncResult",
    "MapResult",
    "TimeoutError",
    "cancel_all",
    "end_of",
    "left_until",
    "value_of",
    "values_of",
]
