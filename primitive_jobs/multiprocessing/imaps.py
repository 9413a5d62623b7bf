"""`ImapIterator`: what `Pool.imap` and `imap_unordered` return; and the `Feed` of its jobs.

    iterable ─► thread of the feed ─► job ─► line ─► whoever asks for the next result
                      ▲                 │
                      └──── is final ◄──┘

The line has the numbers of jobs: each as soon as it is submitted, or, unordered, as soon as it is
final; and at last the end. So a consumer takes no item, and the work does not wait for one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .._common.threads import make_thread
from ..errors import PoolClosedError
from ..executor import JobExecutor, enlist
from ..job import record_of, tracker_of
from .results import TimeoutError, end_of, left_until, values_of  # noqa: A004

if TYPE_CHECKING:
    from .._engine.record import PoolLink
    from ..job import PrimitiveJob

T = TypeVar("T")

JOBS_AHEAD = 1000  # of one imap, submitted and not final


class _End(NamedTuple):
    """What comes last in a line."""

    jobs: int  # so many there were
    failure: list[BaseException]  # of the iterable; or nothing


class Feed:
    """The jobs of one imap, from the iterable to the consumer.

    Attributes:
        jobs: Those that the consumer has not taken, by number.
        line: Numbers of jobs, and the end.
    """

    def __init__(self, jobs: Iterator[PrimitiveJob[Any]], *, ordered: bool) -> None:
        self.jobs: dict[int, PrimitiveJob[Any]] = {}
        self.line: queue.SimpleQueue[int | _End] = queue.SimpleQueue()
        self._jobs = jobs
        self._ordered = ordered
        self._submitted = 0
        self._heard = False  # the consumer has been told of a failure
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # an item for each final job

    def run(self, feeds: Feeds, executor: JobExecutor) -> None:
        """Submit the jobs; in the thread of this imap."""
        try:
            while not feeds.stopped:
                job = next(self._jobs, None)
                if job is None:
                    self.end()
                    return
                self._submit(executor, job)
                if self._submitted >= JOBS_AHEAD:
                    self._room.get()
            self.stop()
        except BaseException as error:  # noqa: BLE001 - of the iterable: the consumer gets it
            self.end(error)
        finally:
            self._jobs = iter(())  # with the iterable
            feeds.ended(self)

    def was_heard(self) -> None:
        """The consumer has been told of a failure: of others nobody has to hear."""
        if not self._heard:
            self._heard = True
            for job in list(self.jobs.values()):
                record_of(job).inner = True
                tracker = tracker_of(job)
                tracker.call_when_final(tracker.looked_at)  # it may be on its way to its end

    def stop(self) -> None:
        """Let the consumer know that not all is taken."""
        self.end(PoolClosedError("the pool was terminated before all items were taken"))

    def _submit(self, executor: JobExecutor, job: PrimitiveJob[Any]) -> None:
        number = self._submitted
        record_of(job).inner = self._heard
        self.jobs[number] = job
        enlist(executor, job)
        self._submitted += 1
        if self._ordered:
            self.line.put(number)
        else:
            tracker_of(job).call_when_final(partial(self.line.put, number))
        tracker_of(job).call_when_final(partial(self._room.put, None))

    def end(self, failure: BaseException | None = None) -> None:
        """Let the consumer know that no further job comes."""
        self.line.put(_End(self._submitted, [] if failure is None else [failure]))


class Feeds:
    """The feeds of one pool that go on. The executor is shut down only behind them.

    Attributes:
        stopped: Whether no item is wanted any more.
    """

    def __init__(self, executor: JobExecutor) -> None:
        self.stopped = False
        self._executor = executor
        self._closed = False
        self._threads: dict[Feed, threading.Thread] = {}

    def start(self, feed: Feed) -> None:
        """Start a feed's thread."""
        thread = make_thread("imap", feed.run, self, self._executor)
        self._threads[feed] = thread
        try:
            thread.start()
        except RuntimeError as error:
            del self._threads[feed]
            raise PoolClosedError(
                "no imap can be made: the interpreter is going down, or no thread is left"
            ) from error

    def ended(self, feed: Feed) -> None:
        """One has submitted its last job."""
        self._threads.pop(feed, None)
        self._shut_down_if_over()

    def close(self) -> None:
        """No other one comes; returns at once."""
        self._closed = True
        self._shut_down_if_over()

    def _shut_down_if_over(self) -> None:
        if self._closed and not self._threads:
            self._executor.shutdown(wait=False)

    def stop(self) -> None:
        """Have all end, those, too, whose iterables block."""
        self.stopped = True
        for feed in list(self._threads):
            feed.stop()

    def join(self, timeout: float | None) -> None:
        """Wait until all have ended, at most ``timeout`` s for each."""
        for thread in list(self._threads.values()):
            if thread is not threading.current_thread():
                thread.join(timeout)


class ImapIterator(Iterator[T]):
    """The results of `Pool.imap` and `Pool.imap_unordered`; several threads may share it."""

    def __init__(self, link: PoolLink, feed: Feed, *, chunked: bool) -> None:
        self._link = link
        self._feed = feed
        self._chunked = chunked
        self._lock = threading.RLock()
        self._taken = 0  # jobs, out of the line
        self._waiting: list[PrimitiveJob[Any]] = []  # for the one that is next
        self._values: list[Any] = []  # of the last job, in reverse
        self._failure: list[BaseException] = []  # that comes behind them
        self._end: _End | None = None

    def next(self, timeout: float | None = None) -> T:
        """Return the next result, waiting for it at most ``timeout`` s.

        Raises:
            TimeoutError: A `multiprocessing.TimeoutError`: it is not there in time. The next call
                may bring it.
            StopIteration: There is none.
            BaseException: What the call, or the iterable, has raised.
        """
        end = end_of(timeout)
        with self._lock:
            while not self._values:
                if self._failure:
                    self._raise(self._failure)
                job = self._next_final(end)
                values, failure = values_of(job, chunked=self._chunked)
                del job
                values.reverse()
                self._values = values
                if failure is not None:
                    self._failure = [failure]
                    del failure
            return self._values.pop()  # type: ignore[no-any-return]

    def __next__(self) -> T:
        return self.next()

    def _next_final(self, end: float | None) -> PrimitiveJob[Any]:
        """Wait for the next job that is over."""
        while not self._waiting:
            if self._end is not None and self._taken >= self._end.jobs:
                if self._end.failure:
                    self._raise(self._end.failure)
                raise StopIteration
            found = self._next_in_line(end)
            if isinstance(found, _End):
                self._end = self._end or found
                continue
            job = self._feed.jobs.pop(found, None)
            if job is not None:  # else it was put into the line twice
                self._taken += 1
                self._waiting.append(job)
        if not self._waiting[0].wait(left_until(end)):
            raise self._late()
        return self._waiting.pop()

    def _next_in_line(self, end: float | None) -> int | _End:
        self._link.check_may_wait()  # in a fork nobody puts anything there
        try:
            return self._feed.line.get(timeout=left_until(end))
        except queue.Empty:
            raise self._late() from None

    def _late(self) -> TimeoutError:
        return TimeoutError("the next result of imap() is not ready in time")

    def _raise(self, failures: list[BaseException]) -> None:
        """Raise what is taken out of a list, so that no frame here holds it then."""
        failure = failures.pop()
        self._feed.was_heard()
        if self._chunked:  # the rest of its chunk is missing: so it is the end, as there
            self._end = _End(0, [])
            self._waiting.clear()
        try:
            if isinstance(failure, StopIteration):  # it would end the consumer's loop in silence
                raise RuntimeError("a call of imap() raised StopIteration") from failure
            raise failure
        finally:
            del failure


__all__ = ["Feed", "Feeds", "ImapIterator"]
