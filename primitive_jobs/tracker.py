"""`StatusTracker`: one job's lifecycle, from events to `JobStatus`; the only writer of a status.

    made ─► submitted ─► serialized ─► assigned ─► returned | raised | cancelled | failed
                             ▲            │
                             └ requeued ──┘

A job is first its caller's, who makes, serializes and enlists it; then its pool's dispatcher's.
The change of hands is the one race there is, and `_gate` decides it without a lock, so that a
signal handler or a finalizer can cancel at any point: whoever appends to it first, the dispatcher
(`take_in`) or somebody with a final outcome, has the job. From `take_in` on, only the dispatcher's
thread writes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import InitializerError, JobCancelledError
from .messages import Kind, Message
from .serialize import load_exception, load_result, what_was_raised
from .status import FINAL_STATES, TRANSITIONS, JobStatus

Waiter = Callable[[], object]


class Outcome:
    """How a job ended: final status, and the value or exception once somebody asks for it.

    Unpickling happens in the asking thread, at most once where it succeeds.
    """

    __slots__ = ("_loaded", "_source", "status")

    def __init__(self, status: JobStatus, source: Message | BaseException | None) -> None:
        self.status = status
        self._source = source
        self._loaded: list[tuple[Any, BaseException | None]] = []

    def load(self, name: str) -> tuple[Any, BaseException | None]:
        """Return (value, exception), the same objects each time; one of them is None.

        Raises:
            SerializationError: The result cannot be unpickled here.
        """
        source = self._source  # read before `_loaded`: it is dropped only after that is filled
        if not self._loaded:
            # Two threads may both get here; whoever appends first is whom both believe.
            self._loaded.append(self._read(source, name))
            self._source = None
        return self._loaded[0]

    def _read(
        self, source: Message | BaseException | None, name: str
    ) -> tuple[Any, BaseException | None]:
        if isinstance(source, Message):
            if self.status is JobStatus.DONE:
                return load_result(source.body, source.buffers, name), None
            if source.kind == Kind.INIT_FAILED:
                return None, _initializer_failed(source, name)
            return None, load_exception(source.body)
        if source is None:
            return None, JobCancelledError(f"job {name} was cancelled")
        return None, source

    @classmethod
    def loaded(cls, status: JobStatus, value: Any, error: BaseException | None) -> Outcome:
        """An outcome whose value is there already."""
        outcome = cls(status, None)
        outcome._loaded.append((value, error))
        return outcome


def _initializer_failed(message: Message, name: str) -> InitializerError:
    failure = InitializerError(
        f"job {name}: the pool's preload or initializer raised {what_was_raised(message.body)}"
    )
    failure.__cause__ = load_exception(message.body)
    return failure


def cancelled() -> Outcome:
    """The outcome of a job that was cancelled."""
    return Outcome(JobStatus.CANCELLED, None)


class _TakenIn:
    """What the dispatcher puts into a job's gate."""

    status = None


_TAKEN_IN = _TakenIn()


class StatusTracker:
    """Status, history, outcome and waiters of one job."""

    __slots__ = ("_gate", "_outcome", "_status", "_waiters", "_walk", "attempts", "pid")

    def __init__(self) -> None:
        self._gate: list[Outcome | _TakenIn] = []
        self._outcome: Outcome | None = None
        self._waiters: list[Waiter] = []
        self._status = JobStatus.INITIALIZING
        self._walk: list[Any] = [JobStatus.INITIALIZING, time.time()]
        self.pid: int | None = None
        self.attempts = 0

    # --- facts, for any thread ---------------------------------------------------------------

    @property
    def outcome(self) -> Outcome | None:
        """The final outcome, None as long as there is none."""
        if self._outcome is None and self._gate and isinstance(self._gate[0], Outcome):
            return self._gate[0]
        return self._outcome

    @property
    def status(self) -> JobStatus:
        """What is true now."""
        outcome = self.outcome
        return self._status if outcome is None else outcome.status

    def history(self) -> tuple[tuple[JobStatus, float], ...]:
        """Each status with the wall-clock time (s since the epoch) it was entered at."""
        walk = self._walk.copy()
        pairs = []
        for status, when in zip(walk[::2], walk[1::2], strict=False):
            pairs.append((status, when))
            if status in FINAL_STATES:
                break
        return tuple(pairs)

    def seconds_in_status(self) -> float:
        """How long the present status has lasted."""
        return max(0.0, float(time.time() - self._walk[-1]))

    # --- while the job is its caller's -------------------------------------------------------

    def submitted(self) -> None:
        """It is being serialized."""
        self._move(JobStatus.VALIDATING)

    def serialized(self) -> bool:
        """It is ready to be enlisted; False if somebody cancelled it meanwhile."""
        if self.outcome is not None:
            return False
        self._move(JobStatus.QUEUED)
        return self.outcome is None

    def end_early(self, outcome: Outcome) -> bool:
        """End a job that no dispatcher has yet; False if one has, or if it has ended already."""
        try:
            self._gate.append(outcome)
            if self._gate[0] is not outcome:
                return False
            self._finish(outcome)
        except BaseException:  # an interrupt: the end is made known all the same
            if self._gate[:1] == [outcome]:
                self._finish(outcome)
            raise
        return True

    # --- once it is the dispatcher's ---------------------------------------------------------

    def take_in(self) -> bool:
        """Make the job the dispatcher's; False if it ended before."""
        self._gate.append(_TAKEN_IN)
        return self._gate[0] is _TAKEN_IN

    def assigned(self, pid: int | None) -> None:
        """A worker gets it."""
        self.pid = pid
        self.attempts += 1
        self._move(JobStatus.RUNNING)

    def requeued(self, *, began: bool) -> None:
        """It waits for another worker: it never started, or (`began`) is tried again."""
        self.pid = None
        self.attempts -= not began
        self._move(JobStatus.QUEUED)

    def settle(self, outcome: Outcome) -> bool:
        """End it; False if it has ended already."""
        if self._outcome is not None:
            return False
        self._finish(outcome)
        return True

    def abandon(self, error: BaseException) -> None:
        """In a fork of the process: end it here, telling nobody: those who wait stayed behind."""
        self._waiters = []
        if self.outcome is None:
            self.settle(Outcome(JobStatus.ERROR, error))

    # --- waiting, for any thread -------------------------------------------------------------

    def call_when_final(self, waiter: Waiter) -> None:
        """Have ``waiter`` called as soon as the job is final: at once if it is.

        It is called on the pool's own thread, so it must neither block nor run foreign code. In
        a race it may be called twice, and must not mind.
        """
        self._waiters.append(waiter)
        if self.outcome is not None:
            waiter()
            self.forget(waiter)

    def forget(self, waiter: Waiter) -> bool:
        """Take a waiter back; False if it was called, or is about to be."""
        try:
            self._waiters.remove(waiter)
        except ValueError:
            return False
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the job is final, at most ``timeout`` s; return whether it is."""
        if self.outcome is not None:
            return True
        if timeout is not None and timeout <= 0:
            return False
        lock = threading.Lock()
        lock.acquire()

        def release() -> None:
            with contextlib.suppress(RuntimeError):  # it is released already
                lock.release()

        self._waiters.append(release)
        try:
            if self.outcome is None:
                lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        finally:
            self.forget(release)
        return self.outcome is not None

    # --- the writing itself ------------------------------------------------------------------

    def _move(self, status: JobStatus) -> None:
        if status not in TRANSITIONS[self._status]:
            raise RuntimeError(
                f"illegal move of a job from {self._status.name} to {status.name}; "
                f"its walk was {[str(s.name) for s in self._walk[::2]]}"
            )
        self._status = status
        self._walk += (status, time.time())

    def _finish(self, outcome: Outcome) -> None:
        # An interrupt may come between any two steps (in the caller's thread): every waiter is
        # told all the same, and each of the steps may be done twice.
        try:
            self.pid = None
            if outcome.status not in TRANSITIONS[self._status]:
                raise RuntimeError(
                    f"illegal end of a job: {self._status.name} to {outcome.status.name}"
                )
        finally:
            if self._walk[-2] not in FINAL_STATES:
                self._walk += (outcome.status, time.time())
            self._outcome = outcome
            self._tell_waiters()

    def _tell_waiters(self) -> None:
        try:
            self._call_waiters()
        except BaseException:
            self._call_waiters()
            raise

    def _call_waiters(self) -> None:
        """Call each, and only then take it off: no interrupt loses one, but one may come twice."""
        while self._waiters:
            with contextlib.suppress(IndexError):
                waiter = self._waiters[0]
                waiter()
                self.forget(waiter)
