"""`MapRun`: one `map` in progress, between an iterable, a pool and a consumer.

    iterable ─► rows ─► chunk's job ─► done ─► results
                 ▲           │
                 └ left over ┘

Everything happens in the thread that asks for the next result: rows are taken, chunks submitted
and results unpickled there. A job's end only puts its chunk into a queue.

With automatic chunking `ChunkSize` learns from every chunk how many calls fill one. Since the next
calls may be of another kind, a worker ends a chunk early when it takes too long, and the calls
that were not made go back to the head of the line.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import math
import operator
import queue
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ._common.naming import call_name
from ._engine.record import PoolLink
from ._engine.standing import Met, blame_unless_met, dumps_unless_met, unless_met
from ._engine.waiting_calls import dump_waiting
from ._wire.calls import dump_call
from ._wire.chunk import CHECKED, FRESH, KEPT, NUMBERS, Unpacker, all_plain, is_packed, reply_of
from ._wire.failures import load_exception
from ._wire.pickling import let_frames_go
from ._wire.rows import RowPacker, Rows
from .errors import ClusterError, PoolClosedError, ResultTimeoutError, SerializationError
from .job import PrimitiveJob, ask_cancel, check_may_wait, record_of, submit_to
from .options import JobOptions
from .status import JobStatus

if TYPE_CHECKING:
    from ._wire.chunk import Reply
    from ._wire.seeding import Key

TARGET = 0.01  # s that a chunk should take: some hundred times what a job costs
LIMIT = 0.02  # s after which a chunk ends early
MOST_BYTES = 1 << 20  # of arguments, and of results, that a chunk should have
MOST_CALLS = 5_000  # in a chunk
GROWTH = 8  # a chunk has at most so many times the calls of one that was measured
JOBS_AHEAD = 1000  # submitted and not yet consumed, at most
ITEMS_AHEAD = 10_000  # the same for calls
RESULT_FIRST = 0.01  # s that a result is waited for before items are asked for that come slowly
BYTES_AHEAD = 256 << 20  # of results that wait for the consumer; then no more work is taken


_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)  # where they tell no length


class ChunkSize:
    """How many calls a chunk should have, by how long those took that are back. Pure."""

    def __init__(self) -> None:
        self.calls = 1

    def learn(self, calls: int, seconds: float, nbytes: int = 0) -> None:
        """Take in what a chunk took, and how many bytes its results had.

        One that was full sets the size down at once. One that was not says little about many
        more calls than it had: so the size grows by steps.
        """
        fullness = max(seconds / TARGET, nbytes / MOST_BYTES)
        if fullness >= 1:
            self.calls = min(self.calls, max(1, int(calls / fullness)))
        else:
            most = min(GROWTH * calls, GROWTH * self.calls, MOST_CALLS)
            fitting = most if fullness * most <= calls else int(calls / fullness)
            self.calls = max(self.calls, fitting)


class _Chunk(NamedTuple):
    """A job under way. Its rows are kept only where some may be left over."""

    start: int
    calls: int
    classes: int  # see `Rows`
    kept: Rows | None
    job: PrimitiveJob[Reply | bytes]


class _Done(NamedTuple):
    """What has come back: values in reverse, so that each is dropped as it is taken."""

    start: int
    stop: int
    values: list[Any]
    unpacker: Unpacker
    failure: list[Any]  # bytes or an exception, to be raised after the values; or nothing
    nbytes: int


class MapRun:
    """One `map`; see `JobPool.map`.

    Args:
        link: The pool's.
        options: Of the jobs.
        worker_count: Says how many jobs run at a time; it keeps the pool alive.
        function: What to call.
        columns: Where its arguments come from.
        chunksize: Calls a job; None: automatic.
        ordered: Whether results come in the order of the items.
    """

    def __init__(
        self,
        link: PoolLink,
        options: JobOptions,
        worker_count: Callable[[], int],
        function: Callable[..., Any],
        columns: Sequence[Iterator[Any]],
        chunksize: int | None,
        *,
        ordered: bool,
    ) -> None:
        self._running: dict[int, _Chunk] = {}  # by start, as `_done`
        self._link = link
        self._worker_count = worker_count
        self._function = function
        self._columns: Sequence[Iterator[Any]] = columns
        self._items: Iterator[tuple[Any, ...]] = zip(*columns, strict=False)
        self._packer = RowPacker(function, columns)
        self._mode = CHECKED  # what is to become of layers in workers
        # Where a call may be tried again, those that have returned must not be.
        self._chunksize = chunksize if options.retry_on is None else 1
        self._ordered = ordered
        self._size = ChunkSize()
        self._label = options.name or call_name(function)
        self._options = options if options.name is None else options.replace({"name": None})
        self._lenient = _with_time_for(self._options, LIMIT)
        seeds = link.seeds
        self._key = None if seeds is None else seeds.next()
        self._taken = 0  # items
        self._met: list[tuple[Any, ...]] = []  # the next item, if there is a job in it
        self._slow = not self._packer.quiet  # whether items come slowly, until two are there
        self._returned: list[Rows] = []  # a heap
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()  # where chunks start
        self._done: dict[int, _Done] = {}
        self._bytes_done = 0
        self._yielded = 0  # items
        # The end, once it is known: the first item that there will be no result of, and why.
        self._failure: tuple[int, BaseException] | None = None
        self.on_wait: Callable[[], float | None] | None = None  # the consumer's, as all of this

    # --- for whoever shows it ----------------------------------------------------------------

    def total(self) -> int | None:
        """Return how many calls there will be; None where the iterables do not say."""
        if self._failure is not None:
            return self._failure[0]
        lengths = []
        for column in self._columns:
            try:
                left = operator.length_hint(column, -1)
            except Exception:  # noqa: BLE001 - whatever the iterable's own method raises
                return None
            if left >= 0:
                lengths.append(left)
            elif not isinstance(column, _ENDLESS):
                return None
        if not lengths and self._columns:
            return None
        return self._taken + len(self._met) + min(lengths, default=0)

    def calls_ended(self) -> int:
        """Return how many calls have returned."""
        return self._yielded + sum(done.stop - done.start for done in self._done.values())

    def jobs_running(self) -> int:
        """Return how many jobs, of one or several calls each, run now."""
        return sum(chunk.job.running() for chunk in list(self._running.values()))

    # --- for the consumer --------------------------------------------------------------------

    def start(self, end: float | None) -> Generator[Any, None, None]:
        """Submit the first jobs; return the iterator over the results.

        Their time is over at ``end`` on the monotonic clock.
        """
        try:
            self._top_up()
            results = self._results(end)
            next(results)  # or its end would go unnoticed until it has yielded something
            return results
        except BaseException:  # an interrupt: nobody has a handle
            self.cancel()
            raise

    def _results(self, end: float | None) -> Generator[Any, None, None]:
        try:
            yield None
            while (done := self._next_done(end)) is not None:
                values = done.values
                # No name here refers to a result while the consumer has it.
                while values:
                    if is_packed(values[-1]):
                        place = done.stop - len(values)
                        yield done.unpacker.unpack(values.pop(), place)
                    else:
                        yield values.pop()
                if done.failure:
                    self._raise(done.failure)
            if self._failure is not None:
                failure = [self._failure[1]]
                self._failure = None
                self._raise(failure)
        finally:
            self.cancel()
            # A traceback may keep this object for long, and with it what nobody will ask for.
            self._done.clear()
            self._returned.clear()
            self._items = iter(())
            self._columns = ()

    def _raise(self, failures: list[Any]) -> None:
        """Raise what is taken out of a list, so that no frame here holds it then."""
        failure: bytes | BaseException = failures.pop()
        if isinstance(failure, bytes):
            failure = load_exception(failure)
            BaseException.with_traceback(failure, None)  # it may have one of its own
        try:
            if isinstance(failure, StopIteration):  # it would end the consumer's loop in silence
                name = call_name(self._function)
                raise RuntimeError(f"{name}() raised StopIteration") from failure
            raise failure  # if a call has raised this, the traceback there is above
        finally:
            del failure

    def cancel(self) -> None:
        """Have everything cancelled that is under way; returns at once."""
        try:
            self._cancel_running()
        except BaseException:  # an interrupt
            self._cancel_running()
            raise

    _ask_cancel = staticmethod(ask_cancel)  # there may be no globals when this is dropped

    def _cancel_running(self) -> None:
        for chunk in list(self._running.values()):
            self._ask_cancel(chunk.job)

    def __del__(self) -> None:
        self.cancel()  # where an interrupt came before there was an iterator

    def _next_done(self, end: float | None) -> _Done | None:
        """Wait for what comes next; None: nothing does, or only a failure."""
        while True:
            self._hear()
            place = self._next_place()
            done = self._done.pop(place, None)
            if done is not None:
                self._bytes_done -= done.nbytes
                self._yielded += done.stop - done.start
                self._top_up(in_hand=True)
                return done
            self._top_up()
            if self._ordered and self._failure is not None and self._failure[0] == place:
                return None
            if self._running:
                if self._next_place() not in self._done:
                    self._wait(end)
            elif not self._done:
                return None

    def _next_place(self) -> int:
        """Where in `_done` is what the consumer gets next, once it is there."""
        return self._yielded if self._ordered else next(iter(self._done), -1)

    def _wait(self, end: float | None) -> None:
        # In a fork of the process the jobs are final, and nobody puts anything into the queue.
        oldest = next(iter(self._running.values()))
        check_may_wait(oldest.job)
        if oldest.job.in_final_state():
            self._harvest(oldest)
            return
        until = end
        if self.on_wait is not None:
            due = self.on_wait()
            if end is None or (due is not None and due < end):
                until = due
        try:
            if until is None:
                start = self._finished.get()
            else:
                start = self._finished.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            if end is None or time.monotonic() < end:
                return  # it was time to look, and is again
            raise ResultTimeoutError("the next result of map() is not ready in time") from None
        self._harvest_at(start)

    # --- what comes back ---------------------------------------------------------------------

    def _hear(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._harvest_at(self._finished.get_nowait())

    def _harvest_at(self, start: int) -> None:
        chunk = self._running.get(start)
        if chunk is not None:  # else it was put into the queue twice
            self._harvest(chunk)

    def _harvest(self, chunk: _Chunk) -> None:
        """Take in what a final job has brought, and let go of the job."""
        values: list[Any] = []
        failure: list[Any] = []
        parts: list[Any] = []
        nbytes = 0
        try:
            values, raised, seconds, nbytes, parts, moved = reply_of(chunk.job.result())
        except Exception as error:  # noqa: BLE001 - raised where the first result would stand
            let_frames_go(error)
            failure = [error]
        else:
            if raised is not None:
                failure = [raised]
            if values:
                self._size.learn(len(values), seconds, nbytes)
            if moved:
                self._mode = FRESH
            elif (
                moved is False
                and self._mode == CHECKED
                and chunk.classes == len(self._packer.classes)
            ):
                self._mode = KEPT
        stop = chunk.start + len(values)
        if chunk.kept is not None and not failure and len(values) < chunk.calls:
            heapq.heappush(self._returned, chunk.kept.without(len(values)))
        values.reverse()
        unpacker = Unpacker(parts, self._label)
        self._done[chunk.start] = _Done(chunk.start, stop, values, unpacker, failure, nbytes)
        self._bytes_done += nbytes
        del self._running[chunk.start]

    # --- what goes out -----------------------------------------------------------------------

    def _top_up(self, *, in_hand: bool = False) -> None:
        """Submit as many chunks as the bounds allow.

        But a consumer whose next result is there, or ``in_hand``, need not wait for slow items, nor
        one whose next result comes in a moment.
        """
        most_running = 2 * self._worker_count() + 1
        latest = perf_counter() + TARGET
        while len(self._running) < most_running:
            late = perf_counter() >= latest
            if late and (in_hand or self._has_next()):
                return
            if self._returned:
                part = self._take_returned()
            elif self._failure is None and self._may_take(most_running):
                if self._slow and (in_hand or self._has_next(RESULT_FIRST)):
                    return
                part = self._take_items()
            else:
                return
            if not part.rows:
                return
            self._submit(part)

    def _has_next(self, patience: float = 0.0) -> bool:
        """Whether the next result is there, or comes in so many seconds."""
        self._hear()
        end = time.monotonic() + patience
        while self._running and self._next_place() not in self._done:
            left = end - time.monotonic()
            if left <= 0:
                break
            with contextlib.suppress(queue.Empty):
                self._harvest_at(self._finished.get(timeout=left))
        return self._next_place() in self._done

    def _may_take(self, most_running: int) -> bool:
        jobs = len(self._running) + len(self._done)
        few = jobs < JOBS_AHEAD and self._taken - self._yielded < ITEMS_AHEAD
        return (few or jobs < most_running) and self._bytes_done < BYTES_AHEAD

    def _take_returned(self) -> Rows:
        part = heapq.heappop(self._returned)
        size = self._size.calls
        if len(part.rows) > size:
            heapq.heappush(self._returned, part.without(size))
            part = part.first(size)
        return part

    def _take_items(self) -> Rows:
        """The arguments of the next chunk; fewer where they are large or slow to come."""
        if self._met:
            return self._take_met()
        size = self._chunksize or self._size.calls
        start = self._taken
        # A single call is pickled with its job, unless it is to be unpickled under its seed.
        chunk = self._packer.chunk(alone=size == 1, seeded=self._key is not None)
        free, most_bytes, latest = 0, math.inf, math.inf
        asked = perf_counter()
        if self._chunksize is None:
            most_bytes, latest = MOST_BYTES, asked + TARGET
        try:
            for row in itertools.islice(self._items, size):
                # The first condition only saves time.
                plain = (type(row[0]) in NUMBERS and len(row) == 1) or all_plain(row)
                if plain and free > 0:
                    chunk.rows.append(row)
                    free -= 1
                else:
                    try:
                        most_bytes -= unless_met(functools.partial(chunk.add, plain=plain), row)
                    except Met:
                        self._met.append(row)
                        break
                    except Exception as error:  # noqa: BLE001 - whatever a __reduce__ raises
                        let_frames_go(error)
                        place = start + len(chunk.rows)
                        self._fail(place, _not_serializable(self._function, place, row) or error)
                        break
                    free = chunk.free
                    if most_bytes <= 0:
                        break
                if perf_counter() >= latest:
                    break
        except Exception as error:  # noqa: BLE001 - the iterable's; raised in its place
            _drop_outermost_frame(error)  # or it and this object would keep each other alive
            self._fail(start + len(chunk.rows), error)
        self._taken = start + len(chunk.rows)
        if not self._packer.quiet:
            seconds = perf_counter() - asked
            self._slow = self._taken < 2 or seconds >= TARGET * max(1, len(chunk.rows))
        if self._packer.learned:  # a class that no worker has looked after
            self._packer.learned = False
            self._mode = max(self._mode, CHECKED)
        return chunk.end(start) if chunk.rows or not self._met else self._take_met()

    def _take_met(self) -> Rows:
        """The arguments of a call that waits for jobs: a chunk of its own, pickled with its job."""
        chunk = self._packer.chunk(alone=True)
        chunk.add(self._met.pop(), plain=False)
        self._taken += 1
        return chunk.end(self._taken - 1)

    def _submit(self, part: Rows) -> None:
        start, rows = part.start, part.rows
        may_be_cut = self._chunksize is None and len(rows) > 1
        limit = LIMIT if may_be_cut else None
        job = job_of(part, self._name(start, len(rows)), self._key, limit=limit, mode=self._mode)
        record = record_of(job)
        record.inner = True
        chunk = _Chunk(start, len(rows), part.classes, part if may_be_cut else None, job)
        self._running[start] = chunk  # first, so that an interrupt leaves nothing unseen
        try:
            submit_to(job, self._link, self._lenient if may_be_cut else self._options)
        except (PoolClosedError, ClusterError) as error:
            del self._running[start]
            let_frames_go(error)
            self._fail(start, error)
            return
        if job.status() is JobStatus.ERROR and self._ended_unsent(part, job):
            return
        # It holds the queue only: a mapping that is dropped is noticed, and cancels. Nor is the
        # chunk put there, whose rows are the user's.
        record.tracker.call_when_final(functools.partial(self._finished.put, start))

    def _ended_unsent(self, part: Rows, job: PrimitiveJob[Reply | bytes]) -> bool:
        """Whether a job could not be serialized; then its place is where the results end."""
        if not isinstance(job.exception(), SerializationError):
            return False
        row = part.rows[0]
        # What was packed is not to blame: then it is the function.
        row = row if isinstance(row, tuple) else ()
        failure = _not_serializable(self._function, part.start, row)
        if failure is None:
            return False
        del self._running[part.start]
        self._fail(part.start, failure)
        return True

    def _fail(self, place: int, error: BaseException) -> None:
        """Let the results end before the ``place``-th, by ``error``; no item is taken any more."""
        if self._failure is None or place < self._failure[0]:
            self._failure = place, error

    def _name(self, start: int, calls: int = 1) -> str:
        items = str(start) if calls == 1 else f"{start}:{start + calls}"
        return f"{self._label}[{items}]"


def job_of(
    part: Rows, name: str, key: Key | None, *, limit: float | None = None, mode: int = CHECKED
) -> PrimitiveJob[Reply | bytes]:
    """Return the job that makes a chunk's calls, whose seeds follow from ``key``.

    ``limit`` and ``mode`` as in `run_chunk`.
    """
    function, args = part.call(limit, None if key is None else part.start, mode)
    job: PrimitiveJob[Reply | bytes] = PrimitiveJob(function, *args)
    record = record_of(job)
    record.name = name
    record.key = key
    return job


def _not_serializable(
    function: Callable[..., Any], place: int, row: tuple[Any, ...]
) -> SerializationError | None:
    """What `result` would raise, had this call been a job of its own; None: nothing."""
    name = call_name(function)
    try:
        try:
            dump_call(function, row, {}, name, None, (), dumps_unless_met, blame_unless_met)
        except Met:
            dump_waiting(function, row, {}, name)
    except SerializationError as error:
        let_frames_go(error)
        failure = SerializationError(f"item {place} of map(): {error}")
        failure.__cause__ = error.__cause__
        return failure
    return None


def _with_time_for(options: JobOptions, seconds: float) -> JobOptions:
    """The options with as much more of a timeout."""
    if options.timeout is None:
        return options
    return options.replace({"timeout": options.timeout + seconds})


def _drop_outermost_frame(error: BaseException) -> None:
    trace = BaseException.__dict__["__traceback__"].__get__(error)
    BaseException.with_traceback(error, None if trace is None else trace.tb_next)
