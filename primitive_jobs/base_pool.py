"""`BasePool`: what users may do with any pool, and what every pool has to be able to do."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from operator import attrgetter
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from ._common.hints import OF_POOL, OF_VIEW, Hinted, hinted, of_map_keyword
from ._common.signatures import JobOptionsDict, Self, Unpack
from ._engine.record import PoolLink
from .insight.timeline import Timeline
from .job import PrimitiveJob, ask_cancel, submit_to
from .map_results import MapResults
from .options import (
    JobOptions,
    check_bool,
    check_callable,
    check_columns,
    check_count,
    check_seconds,
)
from .snapshots import PoolSnapshot

P = ParamSpec("P")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")


class Submitter(Hinted, ABC):
    """What a pool and its views share; `_link` and `_options` are theirs."""

    _link: PoolLink
    _options: JobOptions

    def submit(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> PrimitiveJob[T]:
        """Queue ``function(*args, **kwargs)`` and return its job at once.

        A job among the arguments arrives as its result: this one waits for it, the caller does not.

        Raises:
            PoolClosedError: The pool was shut down, or the interpreter is going down.
            ClusterError: The cluster of a pool on one is lost.
            TypeError: ``function`` cannot be called, or is an async or generator function.
        """
        link = self._link
        if not link.accepting:
            link.check_open()
        job = PrimitiveJob(function, *args, **kwargs)
        try:
            return submit_to(job, link, self._options)
        except BaseException:  # an interrupt so late that the job was on its way
            ask_cancel(job)
            raise

    @overload
    def map(
        self,
        function: Callable[[T1], T],
        iterable: Iterable[T1],
        /,
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> MapResults[T]: ...
    @overload
    def map(
        self,
        function: Callable[[T1, T2], T],
        iterable: Iterable[T1],
        iterable2: Iterable[T2],
        /,
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> MapResults[T]: ...
    @overload
    def map(
        self,
        function: Callable[[T1, T2, T3], T],
        iterable: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        /,
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> MapResults[T]: ...
    @overload
    def map(
        self,
        function: Callable[..., T],
        iterable: Iterable[Any],
        iterable2: Iterable[Any],
        iterable3: Iterable[Any],
        iterable4: Iterable[Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> MapResults[T]: ...
    @hinted("map", of_map_keyword, positional="the function comes first, then iterables")
    def map(
        self,
        function: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> MapResults[T]:
        """Apply ``function`` to the items of ``iterables``, like the built-in `map`, in parallel.

        What it returns is an iterator, which `track` can show the progress of. ``list(pool.map(f,
        xs))`` is what ``map`` of `multiprocessing.Pool` returns, and ``numpy.array(list(pool.map(f,
        xs)))`` makes an array of it (`numpy.array` of the iterator itself would be one of shape
        ()); ``chunksize`` is given by name; ``pool.map(f, *zip(*tuples))`` is its ``starmap``.

        Work starts at once. Items are taken as workers get free, so that the iterables may be
        endless; at most 1000 jobs, some 10,000 calls and 256 MiB of results are ahead of the
        consumer (but always as many jobs as keep the workers busy). Where items come slowly, a
        result that is there, or comes within 10 ms, is handed out before the next item is asked
        for; items that depend on results of calls need `submit`.

        One job makes one or several calls, a chunk. Without ``chunksize`` it is measured how many:
        as many as take 10 ms and have not more than 1 MiB of arguments or results. A chunk that
        takes longer than 20 ms all the same ends after the call it is at, and the rest goes to
        whichever worker is free. So calls of 10 ms or more are one job each. A call that takes long
        among short ones holds up those behind it in its chunk: ``chunksize=1`` where calls wait for
        one another.

        Whatever the chunks, each call means what ``submit(function, *items)`` means: function and
        arguments are as they were when the items were taken, belong to this call alone, and know
        each other (``pool.map(model.place, model.parts)`` finds each part in the model); its result
        is pickled when it returns. To that end each call's arguments are pickled when they are
        there. The function, and what an `itertools.repeat` gives to each call, are pickled and
        unpickled once for a chunk, but for each call where somebody changes them: whether the
        iterables do is looked at with the first items and at each chunk, whether the calls do with
        the first call of the first chunks. What begins to change later, as a function that notes
        every tenth call in itself, is seen by the calls behind it in the chunk, and so is what a
        class leaves out of its pickles (a cache, a connection): ``chunksize=1`` is for those.

        An exception is raised where its result would stand, after the results before it: one of
        the call, of the iterables, of pickling the one or the other, and a `PoolClosedError` if
        the pool is shut down meanwhile. A cancel, a limit or a death ends a whole chunk, and is
        raised where its first result would stand. Then the iterator has ended. `StopIteration`
        raised by a call comes as a `RuntimeError`, so that it does not look like such an end. At
        the end, and when the iterator is closed or dropped, the jobs still unfinished are
        cancelled.

        The pool's options hold for each chunk: ``memory_limit``, ``retries`` (after a worker's
        death all its calls are made again; with ``retry_on`` a chunk is one call), a place in
        ``max_jobs_per_worker``, and ``timeout`` if there is a ``chunksize``; without one,
        ``timeout`` is each call's: a chunk of several has 20 ms more. Jobs are named by function
        (or the option ``name``) and items: "simulate[120:160]".

        Args:
            function: Called with one item of each iterable.
            *iterables: The shortest ends it; without any there are no calls and no results, so
                that ``pool.map(f, *zip(*tuples))`` does for an empty list what it does for others.
            timeout: Seconds from now in which the next result must come; default None: no limit.
            chunksize: Calls that make up one job; default None: automatic, as told above.
            ordered: Whether results come in the order of the items (default), or each chunk's as
                soon as it has ended, and what ends the iterables after all of them.

        Raises:
            ResultTimeoutError: From the iterator, when the time is over.
            PoolClosedError: The pool was shut down, or the interpreter is going down.
            ClusterError: The cluster of a pool on one is lost.
            TypeError, ValueError: An argument is wrong; the message names it.
        """
        check_callable("function", function)
        size = None if chunksize is None else check_count("chunksize", chunksize)
        seconds = check_seconds("timeout", timeout)
        check_bool("ordered", ordered)
        end = None if seconds is None else time.monotonic() + seconds
        columns = check_columns(iterables)
        from .mapping import MapRun  # it takes a while, and not everybody maps

        self._link.check_open()
        run = MapRun(
            self._link,
            self._options,
            self._worker_count,
            function,
            columns,
            size,
            ordered=ordered,
        )
        return MapResults(run.start(end), run)

    @property
    def size(self) -> int:
        """How many jobs run at a time, now: the number of workers at most."""
        return self._worker_count()

    @abstractmethod
    def _worker_count(self) -> int:
        """Return how many jobs run at a time, now."""


class BasePool(Submitter):
    """What every pool is, wherever its worker processes are: `JobPool` is one.

    Whatever takes a pool takes any of this kind, or what its `options` returns. What jobs need of
    one beside these methods is not public, so that its kinds are this library's own.
    """

    _words = OF_POOL

    def options(self, **options: Unpack[JobOptionsDict]) -> PoolView:
        """Return a view of this pool whose jobs have these options; see `JobOptions`.

        Raises:
            TypeError, ValueError: An option is unknown or wrong.
        """
        return PoolView(self, self._options.replace(options))

    @abstractmethod
    def jobs(self) -> list[PrimitiveJob[Any]]:
        """Return the jobs that are queued or running now, in the order they came in."""

    @abstractmethod
    def cancel_all(self, *, grace: float | None = None) -> None:
        """Cancel every unfinished job and wait until all are final; ``grace`` as in `cancel`."""

    @abstractmethod
    def snapshot(self) -> PoolSnapshot:
        """Return what the pool has at this moment: counts, unfinished jobs, workers; plain data."""

    @abstractmethod
    def timeline(self) -> Timeline:
        """Return what ran when on the pool's workers: to be saved, or shown in a notebook."""

    @abstractmethod
    def shutdown(self, wait: bool = True, *, cancel: bool = False) -> None:
        """Take no job any more, and end once all are final."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Return the pool."""

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the jobs, and end; by an exception, cancel them first."""

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Return the pool."""

    @abstractmethod
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do as `__exit__`, without blocking the event loop."""


class PoolView(Submitter):
    """A pool with options for the jobs submitted through it; made by `BasePool.options`."""

    _words = OF_VIEW

    def __init__(self, pool: BasePool, options: JobOptions) -> None:
        self._pool = pool
        self._options = options
        self._link = pool._link

    def _worker_count(self) -> int:
        return self._pool._worker_count()  # which a resize() changes

    def options(self, **options: Unpack[JobOptionsDict]) -> PoolView:
        """Return a view with these options added to those of this one."""
        return PoolView(self._pool, self._options.replace(options))

    def __repr__(self) -> str:
        return f"<{self._pool!r} with {self._options}>"


# --- for the rest of the package ------------------------------------------------------------------

link_of: Callable[[Submitter], PoolLink] = attrgetter("_link")
options_of: Callable[[Submitter], JobOptions] = attrgetter("_options")


def worker_count(pool: Submitter) -> int:
    """Return how many jobs run at a time, now."""
    return pool._worker_count()


__all__ = ["BasePool", "PoolView", "Submitter", "link_of", "options_of", "worker_count"]
