"""A backend of joblib over our pools, which nothing else here imports; needs joblib.

::

    Parallel ─► submit ─► job in the pool ─► final ─► inbox ─► hand-over thread
                  ▲                                                │
                  └── next batch ◄── joblib's callback ◄───────────┘

A batch of joblib's is one job; see `batches` for its tasks. joblib's callback unpickles the
results, takes from the caller's iterable and submits the next batch. None of that may hold up a
pool's own threads, so each call of `Parallel` has a thread for it; the iterable may thus wait for
another call over the same pool.

Workers import this module too, to unpickle batches.
"""

# joblib's classes carry no types: what pyright makes of their defaults is wrong.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import multiprocessing
import os
import pickle
import queue
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

try:
    import joblib
    from joblib._parallel_backends import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
except ModuleNotFoundError as _error:
    if _error.name != "joblib":
        raise
    raise ModuleNotFoundError(
        "primitive_jobs.joblib needs joblib: pip install 'primitive_jobs[joblib]'", name="joblib"
    ) from None

from ._common import naming
from ._common.forks import Turn, in_forks
from ._common.threads import make_thread
from ._engine.repeated import RepeatedBuffers
from ._wire import batches, nesting, pickling
from ._wire.copies import own
from ._wire.rows import Need
from .logs import report_here
from .status import JobStatus

if TYPE_CHECKING:
    from .base_pool import BasePool, PoolView
    from .job import PrimitiveJob
    from .pool import JobPool

    Callback = Callable[[Any], object]
    Key = tuple[object, ...]

_TBB_VARIABLE = "ENABLE_IPC"  # has TBB's schedulers share the CPUs among processes
# What joblib gives to every backend, for those that map arrays into files.
_NOT_FOR_US = frozenset({"context", "max_nbytes", "mmap_mode", "temp_folder", "verbose"})

_PROTOCOL = 5  # the first with buffers out of band

_names: list[str] = []  # under which the backend is registered


def register(name: str = "primitive_jobs", make_default: bool = False) -> None:
    """Make the backend known to joblib, here and in the workers.

    Then ``joblib.parallel_config(backend="primitive_jobs")`` and
    ``joblib.Parallel(n_jobs=2, backend="primitive_jobs")`` use it; see `PrimitiveJobsBackend`.

    Args:
        name: To select it by.
        make_default: Whether `joblib.Parallel` uses it where no backend is selected.
    """
    joblib.register_parallel_backend(name, PrimitiveJobsBackend, make_default=make_default)
    if name not in _names:
        _names.append(name)


class PrimitiveJobsBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the batches of `joblib.Parallel` as jobs in a pool.

    Whatever ends a call early (a task that raises, joblib's ``timeout``, Ctrl-C, a generator that
    is closed or dropped) ends its jobs for real: when the exception comes out, the processes that
    ran them are gone. A worker that dies costs its batch, and joblib raises its `WorkerDiedError`;
    the pool lives on.

    Workers stay for the next call, also of another `Parallel`, until they have been idle for 60 s.
    ``inner_max_num_threads`` sets their ``threads_per_worker``. ``n_jobs=-1`` is all CPUs, inside
    a job its share of them; ``n_jobs=1`` means the calling process, where no option holds, as in
    every backend of joblib. Calls nested in a task use threads, as with joblib's own processes.

    Whatever a task shares a batch with, it means what `JobPool.submit` of its call means: it has
    its arguments and the function's state to itself, and its result is as it was when the call
    returned. But state that a batch's first call of a function leaves alone, and a later one
    changes, is seen by those behind it: ``batch_size=1`` has none of that.

    Arrays arrive writable and private to the task, whatever their size: joblib's ``max_nbytes``,
    ``mmap_mode`` and ``temp_folder`` have nothing to say. Each task has them as they were when its
    batch was submitted. The memory of one of 1 MB or more is sent to each worker once in a call,
    however many tasks are given it, as long as nobody changes it: that is looked at for each batch.
    But an array that the caller himself mapped from a file (`numpy.memmap`) is mapped again by the
    worker, which may write to it.

    Args:
        nesting_level: joblib's.
        inner_max_num_threads: joblib's; not with a pool that is given, which is as it was made.
        pool: A `JobPool`, or what `JobPool.options` returns, to use instead of workers of the
            backend's own. ``n_jobs`` is then all of it unless given, and never more than that.
        **options: Of each job, which is a batch: see `JobOptions`. Where they say something of one
            task, such as ``timeout``, give ``batch_size=1`` to `Parallel`.

    Raises:
        TypeError, ValueError: The pool or an option is wrong; the message names it.
    """

    supports_retrieve_callback = True  # hence generators and timeouts
    supports_inner_max_num_threads = True

    # s; joblib's, 0.2 and 2, are for dearer hand-overs. Short batches make for even ends, fresh
    # generators and small losses.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.2

    parallel: Any = None

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        pool: BasePool | PoolView | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._given: BasePool | PoolView | None = None
        self._options: dict[str, Any] = {}
        self._configure(pool, options)
        self._call: _Call | None = None
        self._workers: BasePool | PoolView | None = None
        self._let_go: Callable[[], object] = _nothing
        self._ran: float | None = None  # s

    def _configure(self, pool: Any, options: dict[str, Any]) -> None:
        from .base_pool import BasePool, PoolView
        from .options import DEFAULT_OPTIONS, shown

        DEFAULT_OPTIONS.replace(options)  # or it says what is wrong
        self._options = {**self._options, **options}
        if pool is None:
            return
        if not isinstance(pool, (BasePool, PoolView)):
            raise TypeError(
                f"pool must be a JobPool, a JobPool.options(...) or None, not {shown(pool)}"
            )
        self._given = pool
        self.default_n_jobs = -1

    # --- what joblib asks before a call ------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers ``n_jobs`` stands for."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if multiprocessing.current_process().daemon:
            if n_jobs != 1:
                warnings.warn(
                    "a daemonic process of multiprocessing cannot have workers: setting n_jobs=1",
                    stacklevel=3,
                )
            return 1
        from .base_pool import worker_count

        given = self._given
        most = _cpus() if given is None else worker_count(given)
        if n_jobs < 0:
            return max(1, most + 1 + n_jobs)
        return n_jobs if given is None else min(n_jobs, most)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        pool: BasePool | PoolView | None = None,
        **options: Any,
    ) -> int:
        """Get workers for ``parallel``; return how many.

        Several `Parallel` may use one backend at once (that of a `parallel_config`), so each gets
        one of its own.
        """
        del prefer, require
        if self.parallel is not parallel:
            own = copy.copy(self)
            own._call = own._workers = None
            own._let_go = _nothing
            own.reset_batch_stats()
            own._configure(pool, {k: v for k, v in options.items() if k not in _NOT_FOR_US})
            own.parallel = parallel
            raise FallbackToBackend(own)
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self._let_go()
        threads = self.inner_max_num_threads
        given = self._given
        if given is None:
            kept = _kept_for(count, threads)
            self._let_go = weakref.finalize(self, kept.users.remove, count)
            self._let_go.atexit = False
            given = kept.pool
        elif threads is not None:
            raise ValueError(
                "inner_max_num_threads cannot be set for a pool that is given: it says "
                "threads_per_worker itself"
            )
        self._workers = given.options(**self._options)
        return count

    # --- during a call -----------------------------------------------------------------------

    def start_call(self) -> None:
        """A call begins."""
        assert self._workers is not None, "configure() comes first"
        count = self.effective_n_jobs(self.parallel.n_jobs)
        self._call = _Call(self._workers, count)

    def stop_call(self) -> None:
        """The call has ended; what is left of it is stopped."""
        if self._call is not None:
            self._call.end()

    def submit(self, func: Any, callback: Callback) -> PrimitiveJob[Any]:
        """Queue a batch and return its job; ``callback(job)`` once it has ended, however."""
        assert self._call is not None, "start_call() comes first"
        return self._call.submit(func, callback)

    def apply_async(self, func: Any, callback: Callback) -> PrimitiveJob[Any]:
        """Do as `submit`: its name up to joblib 1.4."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: PrimitiveJob[Any]) -> Any:
        """Return a batch's results, or raise what it ended with."""
        self._ran = _seconds_run(out)
        failure = None if self._call is None else self._call.failures.pop(out, None)
        if failure is not None:
            raise failure
        results = out.result()
        if type(results) is list and len(results) == 1 and type(results[0]) is batches.Reply:
            return batches.unpacked(results[0], out.name)
        return results

    def compute_batch_size(self) -> int:
        """Return how many tasks the next batch has, where joblib leaves it to its backend."""
        from .base_pool import options_of

        if self._workers is not None and options_of(self._workers).retry_on is not None:
            return 1  # else tasks that have returned would run again
        if self._call is not None:
            least = self._call.seconds_wanted()
            self.MIN_IDEAL_BATCH_DURATION = max(type(self).MIN_IDEAL_BATCH_DURATION, least)
        return int(super().compute_batch_size())

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Take in how long a batch took: without its wait for a worker, or for one to start."""
        super().batch_completed(batch_size, duration if self._ran is None else self._ran)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the call's jobs; when this returns, their processes are gone."""
        del ensure_ready  # it is
        if self._call is not None:
            self._call.abort()

    def terminate(self) -> None:
        """Let the workers go, which stay for the next one."""
        if self._call is not None:
            self._call.end()
            self._call = None
        self._workers = None
        self._let_go()
        self.reset_batch_stats()


def _nothing() -> None:
    """Nobody has anything to let go."""


def _cpus() -> int:
    return nesting.cpu_share or int(joblib.cpu_count())


def _seconds_run(job: PrimitiveJob[Any]) -> float | None:
    from .job import tracker_of

    spans = tracker_of(job).spans()
    if len(spans) < 2 or spans[-2][0] is not JobStatus.RUNNING:
        return None
    return spans[-2][1]


# --- a call ---------------------------------------------------------------------------------------


class _Call:
    """One call of `Parallel`: its jobs from submit to joblib's callback.

    joblib submits under a lock of its own, from the caller's thread or from this call's. The one
    that aborts sets `aborted` and then looks for jobs; one that submits adds its job, and then
    looks at `aborted`: so none is missed (see `lock_free`).

    Args:
        pool: Whose workers, and with which options.
        count: Most jobs that may run at a time.

    Attributes:
        failures: Why jobs could not be submitted.
    """

    def __init__(self, pool: BasePool | PoolView, count: int) -> None:
        from .base_pool import link_of, options_of
        from .job import ask_cancel, tracker_of

        self.failures: dict[PrimitiveJob[Any], Exception] = {}
        self._pool = pool
        self._link = link_of(pool)
        self._options = options_of(pool)
        # Nothing can be imported any more when the program's end drops a generator of joblib's.
        self._ask_cancel = ask_cancel
        self._tracker_of = tracker_of
        self._buffers = RepeatedBuffers(count)
        self.seconds_wanted = self._buffers.seconds_wanted
        self._aborted = False
        self._pending: dict[PrimitiveJob[Any], Callback] = {}
        # Whatever the pool has now: another call, or a resize, may give it more workers.
        self._free = deque([None] * count)
        self._held: deque[PrimitiveJob[Any]] = deque()
        self._inbox: queue.SimpleQueue[list[_Ended] | None] = queue.SimpleQueue()
        # It has no hold of this while it waits: whoever drops a `Parallel` ends it, too.
        self.end_thread = weakref.finalize(self, self._inbox.put, None)
        self.end_thread.atexit = False
        make_thread("joblib", _hand_over, self._inbox).start()

    def submit(self, batch: Any, callback: Callback) -> PrimitiveJob[Any]:
        from .job import PrimitiveJob, record_of

        call = _Batch(batch, self._buffers.next_batch())
        job: PrimitiveJob[Any] = PrimitiveJob(call)
        record = record_of(job)
        record.name = _name_of(batch)
        record.inner = True
        seeds = self._link.seeds
        if seeds is not None:
            record.key = seeds.next()  # here, where batches come in order
        self._pending[job] = callback
        # What tells of the end holds nothing once this call's thread has taken it out.
        record.tracker.call_when_final(functools.partial(self._inbox.put, [(self, job)]))
        if self._aborted:
            self._ask_cancel(job)
        elif not self._held and self._take_place():
            self._enlist(job)
        else:
            call.settle()
            self._held.append(job)
            self._enlist_held()
        return job

    def _take_place(self) -> bool:
        try:
            self._free.pop()
        except IndexError:  # there is none, or another thread was faster
            return False
        return True

    def _enlist(self, job: PrimitiveJob[Any]) -> None:
        from .job import submit_to

        try:
            submit_to(job, self._link, self._options)
        except Exception as error:  # noqa: BLE001 - told by the callback, or joblib waits for ever
            # The job is cancelled, and joblib's callback waits for the lock that this is called
            # under before it asks why.
            if not self._aborted:
                self.failures[job] = error

    def _enlist_held(self) -> None:
        """Submit while there are both jobs and places; whoever adds to either calls this."""
        while self._held and self._take_place():
            try:
                job = self._held.popleft()
            except IndexError:
                self._free.append(None)
                continue
            self._enlist(job)

    def ended(self, job: PrimitiveJob[Any]) -> None:
        callback = self._pending.pop(job, None)
        if callback is None:  # told twice
            return
        self._free.append(None)
        self._enlist_held()
        if not self._aborted:
            callback(job)

    def abort(self) -> None:
        """Cancel all jobs and wait until they, and their processes, are gone."""
        self._aborted = True
        jobs = list(self._pending)
        for job in reversed(jobs):  # or a place that gets free would go to one that is still queued
            self._ask_cancel(job)
        for job in jobs:
            self._tracker_of(job).wait()

    def end(self) -> None:
        self.abort()
        self._buffers.let_go()
        self.end_thread()


_Ended = tuple[_Call, "PrimitiveJob[Any]"]


def _hand_over(inbox: queue.SimpleQueue[list[_Ended] | None]) -> None:
    while (item := inbox.get()) is not None:
        if not item:  # told twice
            continue
        call, job = item.pop()
        try:
            call.ended(job)
        except BaseException as error:  # noqa: BLE001 - of the caller's iterable; it is logged
            text = "joblib's callback of job %s raised"
            report_here(logging.ERROR, text, job, job=job, error=error)
        del item, call, job


def _name_of(batch: Any) -> str:
    items = getattr(batch, "items", None)
    if not items:
        return "batch"
    name = naming.call_name(items[0][0])
    return name if len(items) == 1 else f"{name} and {len(items) - 1} more"


# --- what travels ---------------------------------------------------------------------------------


class _Batch:
    """joblib's batch, pickled so that memory maps of files are mapped again on the other side."""

    __slots__ = ("_calls", "_placed", "_settled")

    def __init__(self, calls: Callable[[], list[Any]], placed: Callable[[memoryview], Any]) -> None:
        self._calls = calls
        self._placed = placed
        self._settled: tuple[Any, ...] | None = None

    def __call__(self) -> list[Any]:
        return self._calls()

    def settle(self) -> None:
        """Have it be as it is now when it is pickled, which may be much later."""
        with contextlib.suppress(Exception):  # which is raised again then, and told
            self._settled = self._reduced(self._copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._settled or self._reduced(self._placed)

    def _copied(self, buffer: memoryview) -> Any:
        placed = self._placed(buffer)
        if type(placed) is not pickle.PickleBuffer:
            return placed
        return pickle.PickleBuffer(bytes(buffer) if buffer.readonly else bytearray(buffer))

    def _reduced(self, placed: Callable[[memoryview], Any]) -> tuple[Any, ...]:
        reducers = {} if "numpy" not in sys.modules else _array_reducers()
        if len(getattr(self._calls, "items", ())) > 1:
            # A batch of one task, that makes the calls of this one's.
            one: Any = copy.copy(self._calls)
            packed = batches.Packer(one.items, reducers, placed).arguments()
            one.items = [(batches.run_tasks, packed, {})]
            return _load_batch, (tuple(_names), one)
        found: dict[int, Any] = {}
        reducers = {**pickling.referring(found), **reducers}
        body, buffers = pickling.dumps(self._calls, reducers=reducers)
        needs = [Need(source) for source in found.values()]
        return _load_batch, (tuple(_names), body, list(map(placed, buffers)), needs)


@functools.cache
def _array_reducers() -> dict[type, Callable[[Any], Any]]:
    import numpy as np
    from joblib._memmapping_reducer import _get_backing_memmap, _reduce_memmap_backed

    def reduce_array(array: Any) -> Any:
        mapped = _get_backing_memmap(array)
        if isinstance(mapped, np.memmap) and mapped.filename is not None:
            return _reduce_memmap_backed(array, mapped)
        return array.__reduce_ex__(_PROTOCOL)

    return {np.ndarray: reduce_array, np.memmap: reduce_array}


def _load_batch(
    names: Iterable[str], calls: Any, buffers: list[Any] | None = None, needs: object = None
) -> Any:
    del needs  # what the calls refer to has come with them
    for name in names:
        if name not in _names:
            register(name)
    return calls if buffers is None else pickling.loads(calls, list(map(own, buffers)))


# --- workers that stay between calls --------------------------------------------------------------


class _Kept:
    """A pool that stays, and how many workers each of its present users wants."""

    def __init__(self, pool: JobPool) -> None:
        self.pool = pool
        self.users: list[int] = []


_kept: dict[Key, _Kept] = {}
_kept_lock = threading.RLock()
"""Guards the making and ending of these pools; whoever lets one go, a finalizer, takes no lock."""


def _kept_for(count: int, threads: int | None) -> _Kept:
    """Return the pool whose processes are as ``count`` workers of ``threads`` each would be.

    It has at least as many. Those of another kind that nobody uses are ended.
    """
    from ._common.thread_variables import THREAD_VARIABLES
    from .base_pool import link_of, worker_count
    from .pool import JobPool

    share = max(1, int(joblib.cpu_count()) // count)
    key = (share, threads, *map(os.environ.get, THREAD_VARIABLES))
    with _kept_lock:
        for other in [other for other in _kept if other != key and not _kept[other].users]:
            _kept.pop(other).pool.shutdown(wait=False)
        kept = _kept.get(key)
        if kept is None or not link_of(kept.pool).accepting:
            pool = JobPool(
                count,
                threads_per_worker=threads,
                env={} if _TBB_VARIABLE in os.environ else {_TBB_VARIABLE: "1"},
                preload=(__name__,),
                spare_workers=0,  # a call that is ended early loses them all anyway
            )
            kept = _kept[key] = _Kept(pool)
        kept.users.append(count)
        most = max(kept.users)
        if most != worker_count(kept.pool):
            kept.pool.resize(most)
        return kept


def shutdown(wait: bool = True) -> None:
    """End the workers that are kept for the next call, which then starts fresh ones.

    Args:
        wait: Return only when calls that still use them have ended, and every process is gone.
    """
    with _kept_lock:
        pools = [kept.pool for kept in _kept.values()]
        _kept.clear()
    for pool in pools:
        pool.shutdown(wait=False)
    for pool in pools if wait else ():
        pool.shutdown()


def _new_lock() -> None:
    global _kept_lock
    _kept_lock = threading.RLock()


in_forks(Turn.PARTS, _new_lock)

__all__ = ["PrimitiveJobsBackend", "register", "shutdown"]
