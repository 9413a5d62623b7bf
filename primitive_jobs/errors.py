"""Every exception this library raises, in one tree.

::

    JobError(Exception)
    ├── JobCancelledError        also concurrent.futures.CancelledError
    ├── ResultTimeoutError       also TimeoutError: only the waiting ended
    ├── JobTimeoutError          also TimeoutError: the job passed its limit and was killed
    ├── JobMemoryError           also MemoryError: the job passed its limit and was killed
    ├── WorkerDiedError          also concurrent.futures.process.BrokenProcessPool
    │   ├── InitializerError     the worker's initializer raised or died
    │   └── ClusterError         the Dask cluster's scheduler was lost, or never reached
    ├── SerializationError       also pickle.PicklingError
    ├── PoolClosedError          also RuntimeError
    ├── DependencyError          a job that it waited for did not end with a result
    └── StoreError               the file of a store cannot be used
        ├── StoreBusyError       also RuntimeError: another program writes to it
        └── StaleResultsError    also ValueError: the code has changed since its rows were made
    JobFailuresWarning(RuntimeWarning)  failures that nobody looked at

A job's own exception is raised as itself, never wrapped, except for ``SystemExit``,
``KeyboardInterrupt``, ``GeneratorExit`` and the cancellation errors of asyncio, trio and
``concurrent.futures``: these, also inside an exception group, arrive as a plain `JobError` that
names them, so that a job can neither end its caller's program nor pass for a cancelled task.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import signal as _signal
import sys
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def _anew(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Make an exception anew; its class may have any arguments of its own."""
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def _reduce(self: BaseException) -> tuple[Any, ...]:
    """Pickle and copy an exception: class, message and attributes.

    Libraries (`tblib`, which `distributed` uses) would make it with the message alone, where it has
    no way of its own.
    """
    return _anew, (type(self), self.args, vars(self).copy())


if sys.version_info >= (3, 11):

    class _WaitTimeout(TimeoutError):
        """The base that both kinds of timeout share with the standard library."""

        __reduce__ = _reduce
else:

    class _WaitTimeout(concurrent.futures.TimeoutError, TimeoutError):
        """On 3.10 the timeout of concurrent.futures is not yet the built-in one."""

        __reduce__ = _reduce


class JobError(Exception):
    """Something went wrong with a job; the base of all errors here."""

    __reduce__ = _reduce


class JobCancelledError(JobError, concurrent.futures.CancelledError):
    """The job was cancelled, so it has no result."""


class ResultTimeoutError(JobError, _WaitTimeout):
    """The waiting took longer than its ``timeout``; the job itself goes on."""


_LAST = 4096  # bytes of the output


class _Printed:
    """What an error of a job that was killed tells of what that has printed."""

    _output: str | None = None
    _output_file: str | None = None

    @property
    def output(self) -> str | None:
        """The last 4 KB that the job printed; None where its option ``output`` does not say so.

        Of a job that printed to a file it is the end of that, read now; None where that fails.
        """
        if self._output_file is None:
            return self._output
        try:
            with open(self._output_file, "rb") as file:  # noqa: PTH123 - `Path` is not needed
                file.seek(max(0, file.seek(0, 2) - _LAST))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return None

    def _set_output(self, output: str | None, output_file: str | None) -> None:
        if output is not None:
            self._output = output
        if output_file is not None:
            self._output_file = output_file


class JobTimeoutError(_Printed, JobError, _WaitTimeout):
    """The job ran longer than its ``timeout`` option and was stopped: after its ``grace``, if any.

    Attributes:
        stack: Where it was then: the Python stack of its main thread as `faulthandler` wrote it,
            None if it could not be had.
    """

    def __init__(
        self,
        message: str = "",
        *,
        stack: str | None = None,
        output: str | None = None,
        output_file: str | None = None,
    ) -> None:
        super().__init__(message)
        self.stack = stack
        self._set_output(output, output_file)


class JobMemoryError(_Printed, JobError, MemoryError):
    """The job's processes held more memory than its ``memory_limit`` and were killed.

    Attributes:
        limit: In bytes.
        peak: The most that was seen, in bytes.
        stack: Where the job was then: the Python stack of its main thread as `faulthandler` wrote
            it, None if it could not be had.
    """

    def __new__(cls, *args: object, **kwargs: object) -> JobMemoryError:  # noqa: PYI034 - no import for it
        """Make one. MemoryError's own way, the first to be found, refuses what is a `JobError`."""
        return Exception.__new__(cls, *args, **kwargs)

    def __init__(
        self,
        message: str = "",
        *,
        limit: int = 0,
        peak: int = 0,
        stack: str | None = None,
        output: str | None = None,
        output_file: str | None = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.peak = peak
        self.stack = stack
        self._set_output(output, output_file)


class WorkerDiedError(_Printed, JobError, BrokenProcessPool):
    """The worker process died while it held the job (or could not be started).

    Attributes:
        pid: The worker's process id, None if no process was started.
        exitcode: As `multiprocessing.Process.exitcode`: ``-N`` for signal N, None if unknown.
        signal: The `signal.Signals` member that killed it, else None.
        stack: For a fatal signal, the Python stack at the crash as `faulthandler` wrote it.
        ran: Seconds that the job had been running; None if it never began.
        peak_memory: Most resident memory that the process had since its last job began, in bytes;
            None where it died by itself, with less than this program had, whose peak a child
            inherits.
        node: The address of the Dask worker on whose machine the process was; None: it was on this
            machine, or no process was started.
    """

    def __init__(
        self,
        message: str = "",
        *,
        pid: int | None = None,
        exitcode: int | None = None,
        stack: str | None = None,
        ran: float | None = None,
        peak_memory: int | None = None,
        node: str | None = None,
        output: str | None = None,
        output_file: str | None = None,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal_of(exitcode)
        self.stack = stack
        self.ran = ran
        self.peak_memory = peak_memory
        self.node = node
        self._set_output(output, output_file)


class InitializerError(WorkerDiedError):
    """The pool's initializer raised (its traceback is the cause) or died."""


class ClusterError(WorkerDiedError):
    """The scheduler of the pool's Dask cluster was lost, or never reached.

    All unfinished jobs of the pool end by it, and what is submitted later raises it.
    """


class SerializationError(JobError, pickle.PicklingError):
    """A function, argument or result could not be pickled or unpickled; the message says which."""


class PoolClosedError(JobError, RuntimeError):
    """The pool was shut down, belongs to a process that this one is a fork of, or the interpreter
    is going down.
    """


class DependencyError(JobError):
    """A job that was among the job's arguments did not end with a result: so this one did not run.

    The cause is what that one's `result` raises.

    Attributes:
        job: The `PrimitiveJob` that failed or was cancelled. Where the one among the arguments did
            not run for the same reason, it is the first that did. None where this error came from
            elsewhere without it.
    """

    job: Any = None


class StoreError(JobError):
    """The file of a `SweepStore` cannot be used: it is damaged, foreign, newer, or read-only."""


class StoreBusyError(StoreError, RuntimeError):
    """Another program writes to the store. It may be read meanwhile."""


class StaleResultsError(StoreError, ValueError):
    """A function has changed since results were stored under its name; nothing has run.

    Attributes:
        changed: What has: names of functions, constants, defaults.
    """

    changed: tuple[str, ...] = ()


class JobFailuresWarning(RuntimeWarning):
    """Jobs of a pool have failed, and nobody looked at it before the pool ended.

    It is given at the end of a pool's ``with`` block, or by its `shutdown`, when everything is
    gone. A failure was looked at when somebody received what a failure alone gives: by `result`,
    `exception`, ``await``, `gather` or `race`, from `status`, `done` or `history`, or as the job's
    repr, card or pickle. A callback, `as_completed`, `wait` and `track` only hand out jobs.
    """

    __reduce__ = _reduce


def signal_of(exitcode: int | None) -> _signal.Signals | None:
    """Return the signal that an exit code of ``-N`` stands for, None for any other."""
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return _signal.Signals(-exitcode)
    except ValueError:  # a real-time signal has no name of its own
        return None
