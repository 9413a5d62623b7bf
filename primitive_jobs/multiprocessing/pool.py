"""`Pool`: `multiprocessing.Pool` over a `JobExecutor`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .._common.naming import call_name
from .._common.signatures import PoolOptionsDict, Self, Unpack
from ..base_pool import BasePool, PoolView, link_of, options_of
from ..chunks import chunk_jobs
from ..executor import JobExecutor, end_executor, enlist, pending_of, pool_of
from ..job import PrimitiveJob
from ..options import check_callable, check_count
from .imaps import Feed, Feeds, ImapIterator
from .results import AsyncResult, MapResult, cancel_all, value_of

if TYPE_CHECKING:
    from types import TracebackType


T = TypeVar("T")

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"  # as in the standard library
CHUNKS_PER_WORKER = 4  # of a map without a chunksize, as there
_PATIENCE = 1.0  # s for a thread that takes items, when nobody wants them any more


class Pool:
    """A pool with the methods of `multiprocessing.Pool`, whose workers may die.

    What is different:

    - A worker's death fails the calls that it had, with `WorkerDiedError`; nobody waits in vain.
    - What cannot be pickled is a `SerializationError`. Lambdas, nested functions and what a script
      or notebook defines, also after the pool was made, can be.
    - Workers are fresh processes, as with "spawn", on every platform and for every ``context``.
      They start when calls need them, and leave after 60 s without one.
    - `terminate`, and the end of a ``with`` block, kill what the calls have started, too. Results
      of what they stop raise `JobCancelledError`.
    - An exception's ``__cause__`` has the traceback of the worker as text.
    - In a `map` the first failure in the order of the items is raised.
    - Failures that nobody looked at are told when the pool ends, as by `JobPool`.

    As there, the end of the program, and that of a ``with`` block, stop what is unfinished: `close`
    and `join` wait for it. A pool that is dropped without either finishes its calls, and gives a
    `ResourceWarning`.

    Args:
        processes: Most worker processes; default: `loky.cpu_count()`.
        initializer: Called in each worker before its first call. One that raises fails the calls
            that wait, with `InitializerError`; see `JobPool`.
        initargs: Its arguments.
        maxtasksperchild: Jobs after which a worker process is replaced: calls of `apply`, chunks of
            the others. Default None: never.
        context: A multiprocessing context whose start method is not "fork"; it changes nothing.
        pool: A `JobPool`, or what `JobPool.options` returns, to use instead of a pool of its own,
            which stays open. Then nothing else may be given.
        **pool_options: Further arguments of `JobPool`. ``on_exit`` is "cancel" here.

    Attributes:
        size: How many worker processes there are at most.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        PoolClosedError: The interpreter is going down.
    """

    _state = ""  # until it is made

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        pool: BasePool | PoolView | None = None,
        **pool_options: Unpack[PoolOptionsDict],
    ) -> None:
        if processes is not None:
            check_count("processes", processes)
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._own = pool is None
        if pool is None:
            pool_options.setdefault("on_exit", "cancel")
            if initargs != ():
                pool_options |= {"initargs": initargs}  # type: ignore[misc]
        else:
            given = {
                "processes": processes is not None,
                "initargs": initargs != (),
                "maxtasksperchild": maxtasksperchild is not None,
                "context": context is not None,
            }
            for name in (name for name, is_given in given.items() if is_given):
                raise TypeError(f"pool is given, which is as it was made: so {name} must not be")
        self._executor = JobExecutor(
            processes,
            context,
            initializer,
            max_tasks_per_child=maxtasksperchild,
            pool=pool,
            **pool_options,
        )
        self._link = link_of(pool_of(self._executor))
        self._options = options_of(pool_of(self._executor))
        self._feeds = Feeds(self._executor)
        self._calling: dict[AsyncResult[Any], None] = {}  # whose callbacks were not called
        self._size: int | None = None
        self._state = RUN

    @property
    def size(self) -> int:
        """How many worker processes there are at most."""
        return self._executor.size if self._size is None else self._size

    @size.setter
    def size(self, size: int) -> None:  # by classes that are derived from this one
        self._size = size

    @property
    def _processes(self) -> int:  # which many look at
        return self._executor.size

    # --- calls -------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> T:
        """Return ``func(*args, **kwds)``, called in a worker."""
        return value_of(self.apply_async(func, args, kwds))

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Have ``func(*args, **kwds)`` called in a worker; return at once.

        Args:
            func: Any callable.
            args: Its positional arguments.
            kwds: Its keyword arguments.
            callback: Called with the result, on the pool's thread for callbacks, before the
                result is ready. What it raises is logged on ``primitive_jobs``.
            error_callback: The same with the exception, where the call has failed.

        Raises:
            ValueError: The pool was closed or terminated.
            TypeError: ``func`` cannot be called.
        """
        self._check_running()
        job = PrimitiveJob(func, *args, **kwds)
        enlist(self._executor, job)
        return AsyncResult(self._link, [job], self._calling, callback, error_callback)

    def map(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[T]:
        """Return the list of ``func(x)`` for each item, called in the workers.

        If some raise, the first failure in the order of the items is raised, when all chunks are
        over. Behind a call that raises, those of its chunk are not made.

        Args:
            func: Any callable.
            iterable: All items are taken at once: `imap` is for endless ones.
            chunksize: Calls that make up one job; default: as many as make four jobs for each
                worker, or 1 where the pool's jobs have a ``timeout`` or ``retry_on``.

        Raises:
            ValueError: The pool was closed or terminated, or ``chunksize`` is below 1.
            TypeError: ``func`` cannot be called.
        """
        return value_of(self.map_async(func, iterable, chunksize))

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """Do as `map`, and return at once; the callbacks as in `apply_async`."""
        self._check_running()
        items = list(iterable)
        rows = zip(items, strict=True)
        return self._map(func, rows, items, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """Do as `map`, with ``func(*x)`` for each item."""
        return value_of(self.starmap_async(func, iterable, chunksize))

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """Do as `starmap`, and return at once; the callbacks as in `apply_async`."""
        self._check_running()
        items = [tuple(item) for item in iterable]
        return self._map(func, iter(items), items, chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., Any],
        rows: Iterator[tuple[Any, ...]],
        items: list[Any],
        chunksize: int | None,
        *callbacks: Callable[[Any], object] | None,
    ) -> AsyncResult[Any]:
        if chunksize is not None:
            size = check_count("chunksize", chunksize)
        elif self._options.timeout is not None:
            size = 1  # which is to be each call's own
        else:
            size = max(1, -(-len(items) // (CHUNKS_PER_WORKER * self._executor.size)))
        jobs, chunked = self._jobs(func, rows, iter(items), size)
        submitted: list[PrimitiveJob[Any]] = []
        try:
            for job in jobs:
                submitted.append(job)
                enlist(self._executor, job)
        except BaseException:  # nobody has a handle
            cancel_all(submitted)
            raise
        return MapResult(self._link, submitted, self._calling, *callbacks, chunked=chunked)

    def _jobs(
        self,
        func: Callable[..., Any],
        rows: Iterator[tuple[Any, ...]],
        column: Iterator[Any],
        size: int,
    ) -> tuple[Iterator[PrimitiveJob[Any]], bool]:
        """Return the jobs of these calls, and whether they make several each."""
        check_callable("func", func)
        if self._options.retry_on is not None:
            size = 1  # else calls that have returned would be made again
        key = None if self._link.seeds is None else self._link.seeds.next()
        label = self._options.name or call_name(func)
        return chunk_jobs(func, rows, [column], size, label, key), size > 1

    def imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> ImapIterator[T]:
        """Return an iterator over ``func(x)`` for each item, in order.

        A thread takes the items, as long as not more than 1000 jobs are unfinished, whether results
        are asked for or not: so results wait in memory for whoever asks late. `JobPool.map` goes
        only so far ahead of its consumer. Those submitted are not stopped where the iterator is
        dropped; `terminate` stops all.

        An exception is raised where its result would stand; with a ``chunksize`` of 1 further
        results follow, as there, else none. One of the iterable comes behind all results.

        Args:
            func: Any callable.
            iterable: May be endless. It is iterated over in the thread.
            chunksize: Calls that make up one job.

        Raises:
            ValueError: The pool was closed or terminated, or ``chunksize`` is below 1.
            TypeError: ``func`` cannot be called, or ``iterable`` is none.
        """
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> ImapIterator[T]:
        """Do as `imap`, with the results of each job as soon as it has ended."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> ImapIterator[T]:
        self._check_running()
        size = check_count("chunksize", chunksize)
        items = iter(iterable)
        jobs, chunked = self._jobs(func, zip(items, strict=True), items, size)
        feed = Feed(jobs, ordered=ordered)
        self._feeds.start(feed)
        return ImapIterator(self._link, feed, chunked=chunked)

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Take no further call; the workers leave when all is done."""
        if self._state == RUN:
            self._state = CLOSE
            self._feeds.close()

    def terminate(self) -> None:
        """Stop all that is unfinished, running calls included; return when it is gone.

        Running ones are killed, after the option ``grace`` of their jobs, 0 unless given. Results
        of what is stopped raise `JobCancelledError`.
        """
        self._stop()
        end_executor(self._executor, warn=True)

    def join(self) -> None:
        """Wait until all calls and their callbacks are over, and the workers gone.

        Raises:
            ValueError: The pool was neither closed nor terminated.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        self._feeds.join(None if self._state == CLOSE else _PATIENCE)
        for result in list(self._calling):
            result.wait()
        end_executor(self._executor, warn=True)

    def _stop(self) -> None:
        self._state = TERMINATE
        self._feeds.stop()
        self._executor.shutdown(wait=False)
        for record in pending_of(self._executor):
            record.ask_cancel()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def __enter__(self) -> Self:
        self._check_running()
        self._executor.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        end_executor(self._executor, warn=kind is None)

    def __del__(self, _warn: Callable[..., object] = warnings.warn, _run: str = RUN) -> None:
        if self._state == _run and self._own:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        kind = type(self)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return f"<{name} state={self._state} pool_size={self._executor.size}>"


__all__ = ["Pool"]
