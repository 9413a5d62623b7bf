"""`StatusTracker`: one job's lifecycle, from events to `JobStatus`; the only writer of a status.

    made ─► submitted ─► serialized ─► assigned ─► returned | raised | cancelled | failed
                             ▲            │
                             └ requeued ──┘

A job is first its caller's, who makes, serializes and enlists it; once a worker is to have it, it
is its pool's dispatcher's. The change of hands is the one race there is, and `_gate` decides it
without a lock, so that a signal handler or a finalizer can cancel at any point: whoever appends to
it first, somebody who gives the job to a worker (`take`) or somebody with a final outcome, has the
job. After a `take` only the dispatcher's thread writes. (`lock_free` says what that relies on.)
"""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock  # of threads, whoever patches `threading` later
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .._common.twins import bare_twin
from .._wire.failures import load_exception, load_result, set_cause
from .._wire.messages import Kind, Message
from ..errors import InitializerError, JobCancelledError, JobError
from ..status import FINAL_STATES, JobStatus
from .unseen import Countable, Source, Token, Unseen, failure_line, of_initializer

if TYPE_CHECKING:
    from .._wire.failures import Named

    Loaded = tuple[Any, BaseException | None]  # value, exception

    class Holder(Named, Protocol):
        """A job: it keeps what was loaded of its outcome, first the one that all believe."""

        _loaded: list[Loaded]


def of_the_parent(owner: int) -> JobError:
    """What is said of a job in a fork of the process ``owner``, whose pool it is of."""
    return JobError(
        f"the job belongs to process {owner}, a parent of this forked one: its end is told there"
    )


Waiter = Callable[[], object]
_INITIALIZING, _VALIDATING = JobStatus.INITIALIZING, JobStatus.VALIDATING
_QUEUED, _RUNNING, _DONE = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.DONE


class Outcome:
    """How a job ended: final status, and what the value or exception is made of.

    It is made when somebody asks for it, in the asking thread, at most once where it succeeds. The
    job keeps it, since an outcome that the dispatcher has made may live until that wakes up again.
    """

    __slots__ = ("_source", "_token", "status")

    def __init__(self, status: JobStatus, source: Source) -> None:
        self.status = status
        self._source = source
        self._token: Token | None = None

    def watch(self, unseen: Unseen, name: str, holder: object) -> None:
        """Have it told if nobody looks at this failure before ``holder`` goes.

        To be called before anybody can.
        """
        source = self._source
        if isinstance(source, BaseException) and source.__cause__ is not None:
            source = bare_twin(source)  # without its cause: that is the user's, perhaps
        self._token = Token.of(unseen, name, source, holder)

    def looked_at(self) -> None:
        """Somebody receives what tells it from a success; or nobody is to hear of it at all."""
        token, self._token = self._token, None
        if token is not None:
            token.looked_at()

    def load(self, job: Holder) -> Loaded:
        """Return (value, exception), the same objects each time; one of them is None.

        Raises:
            SerializationError: The result cannot be unpickled here.
        """
        source = self._source  # read before `_loaded`: it is dropped only after that is filled
        loaded = job._loaded
        if not loaded:
            # Two threads may both get here; whoever appends first is whom both believe.
            loaded.append(self._read(source, job))
            self._source = None
        return loaded[0]

    def _read(self, source: Source, job: Named) -> Loaded:
        if isinstance(source, Message):
            if self.status is _DONE:
                return load_result(source.body, source.buffers, job), None
            if source.kind == Kind.INIT_FAILED:
                return None, _initializer_failed(source, job.name)
            return None, load_exception(source.body)
        if source is None:
            return None, JobCancelledError(f"job {job.name} was cancelled")
        # One of ours. Raised, it holds frames of the caller's: so it is one that the caller made.
        error = bare_twin(source)
        cause = source.__cause__
        if cause is not None:
            set_cause(error, cause)
        error.__suppress_context__ = source.__suppress_context__
        return None, error

    def failure(self, job: Holder) -> str:
        """Type and message of a failed job's exception, on a line; nothing is unpickled for it.

        User code runs only where the exception was loaded before: its ``__str__``.
        """
        source = self._source  # first, as in `load`
        if job._loaded:
            source = job._loaded[0][1]
        return failure_line(source, job.name)


class Unstopped(Outcome):
    """That of a job that was cancelled, of which something may live on."""

    __slots__ = ()


def _initializer_failed(message: Message, name: str) -> InitializerError:
    failure = InitializerError(of_initializer(message, name))
    failure.__cause__ = load_exception(message.body)
    return failure


def cancelled() -> Outcome:
    """The outcome of a job that was cancelled."""
    return Outcome(JobStatus.CANCELLED, None)


class Taken:
    """What stands first in the gate of a job that a worker is to have."""

    __slots__ = ()


class HandOver(Taken):
    """The same, where the caller itself gave the job to an idle worker.

    From then on the job runs, whenever the dispatcher hears of it and writes it down.

    Attributes:
        pid: The worker's process id.
        at: When, on the monotonic clock; set by the caller.
        when: The same moment in seconds since the epoch; set next, so that it says that both are.
        noted: Whether the dispatcher has written it down.
    """

    __slots__ = ("at", "noted", "pid", "when")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.when = self.at = 0.0
        self.noted = False


_TAKEN = Taken()


class StatusTracker:
    """Status, history, outcome and waiters of one job."""

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_gate",
        "_node",
        "_outcome",
        "_pid",
        "_status",
        "_waiters",
        "_walk",
    )

    def __init__(self) -> None:
        self._gate: list[Outcome | Taken] = []
        self._outcome: Outcome | None = None
        # In order. Any thread adds and takes back its own; whoever tells of the end empties it.
        self._waiters: dict[Waiter, None] = {}
        self._status = _INITIALIZING
        # In threes: a status, and when it was entered: on the wall clock, to be shown, and on the
        # monotonic clock, from which all durations come.
        self._walk: list[Any] = [_INITIALIZING, time.time(), time.monotonic()]
        self._pid: int | None = None
        self._node: str | None = None
        self._attempts = 0

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
        if outcome is not None:
            return outcome.status
        return self._status if self._unnoted() is None else _RUNNING

    @property
    def pid(self) -> int | None:
        """Process id of the worker that has it."""
        handed = self._unnoted()
        return self._pid if handed is None or self._outcome is not None else handed.pid

    @property
    def node(self) -> str | None:
        """Address of the node that has it; None: none has, or it is on this machine."""
        return self._node if self._outcome is None else None

    @property
    def attempts(self) -> int:
        """How often a worker got it."""
        return self._attempts if self._unnoted() is None else 1

    def _unnoted(self) -> HandOver | None:
        """What the dispatcher has not heard of yet."""
        gate = self._gate
        if gate:
            handed = gate[0]  # once: `note` puts another one there
            if isinstance(handed, HandOver) and not handed.noted:
                return handed
        return None

    def history(self) -> tuple[tuple[JobStatus, float], ...]:
        """Each status with the wall-clock time (s since the epoch) it was entered at."""
        return tuple((status, when) for status, when, _ in self.steps())

    def spans(self) -> list[tuple[JobStatus, float]]:
        """Each status with the seconds it lasted: the present one until now, a final one none."""
        steps = self.steps()
        status, _, at = steps[-1]
        ends = [at for _, _, at in steps[1:]]
        ends.append(at if status in FINAL_STATES else time.monotonic())
        return [(step[0], end - step[2]) for step, end in zip(steps, ends, strict=True)]

    def steps(self) -> list[tuple[JobStatus, float, float]]:
        """Each status with when it was entered, on the wall clock and on the monotonic one."""
        handed = self._unnoted()  # before the copy: what is noted meanwhile would come twice else
        walk = self._walk.copy()
        if handed is not None and walk[-3] is _QUEUED:
            walk += (_RUNNING, handed.when, handed.at)
        steps = []
        for step in zip(walk[::3], walk[1::3], walk[2::3], strict=False):
            steps.append(step)
            if step[0] in FINAL_STATES:
                break
        return steps

    def failure(self, job: Holder) -> str | None:
        """Type and message of what a failed job raised, for somebody who is shown it."""
        outcome = self.outcome
        if outcome is None or outcome.status is not JobStatus.ERROR:
            return None
        outcome.looked_at()
        return outcome.failure(job)

    def look(self) -> JobStatus:
        """Return the status for somebody who sees by it if the job has failed."""
        status = self.status
        if status is JobStatus.ERROR:
            self.looked_at()
        return status

    def looked_at(self) -> None:
        """Somebody receives what tells the outcome, if there is one, from a success."""
        outcome = self.outcome
        if outcome is not None:
            outcome.looked_at()

    def seconds_in_status(self) -> float:
        """How long the present status has lasted."""
        return time.monotonic() - float(self._walk[-1])

    def ended_at(self) -> float:
        """When it ended, on the monotonic clock; infinity as long as it has not."""
        status, _, at = self.steps()[-1]
        return at if status in FINAL_STATES else float("inf")

    def remember(self, walk: list[Any]) -> None:
        """Take over the walk of a job that has ended, perhaps under another boot's clock."""
        shift = time.monotonic() - time.time() + walk[-2] - walk[-1]
        self._walk = list(walk)
        self._walk[2::3] = [at + shift for at in walk[2::3]]

    # --- while the job is its caller's -------------------------------------------------------

    def submitted(self) -> bool:
        """It is being serialized; False if somebody cancelled it before."""
        if self._gate:
            return False
        self._move(_VALIDATING)
        return True

    def serialized(self) -> bool:
        """It is ready to be enlisted; False if somebody cancelled it meanwhile."""
        self._move(_QUEUED)
        return not self._gate

    def end_early(self, outcome: Outcome) -> bool:
        """End a job that no dispatcher has yet; False if one has, or if it has ended already."""
        try:
            self._gate.append(outcome)
            if self._gate[0] is not outcome:
                outcome.looked_at()  # the job has another one
                return False
            self._finish(outcome)
        except BaseException:  # an interrupt: the end is made known all the same
            if self._gate[:1] == [outcome]:
                self._finish(outcome)
            raise
        return True

    def fail_early(self, failure: BaseException, job: Countable, unseen: Unseen) -> bool:
        """End it, as `end_early`, by a failure that is to be told if nobody looks at it."""
        outcome = Outcome(JobStatus.ERROR, failure)
        try:
            unseen.note(job, outcome)
            return self.end_early(outcome)
        except BaseException:  # an interrupt: it is told of that one
            outcome.looked_at()
            raise

    # --- the change of hands -----------------------------------------------------------------

    def take(self, how: Taken = _TAKEN) -> bool:
        """Make the job the dispatcher's, since a worker is to have it; False if it has ended."""
        gate = self._gate
        if not gate:
            gate.append(how)
        return isinstance(gate[0], Taken)

    # --- once it is the dispatcher's ---------------------------------------------------------

    def assigned(self, pid: int | None, node: str | None = None) -> None:
        """A worker gets it."""
        self._pid = pid
        self._node = node
        self._attempts += 1
        self._move(_RUNNING)

    def note(self, handed: HandOver) -> None:
        """Write down that its caller gave it to a worker."""
        self._pid = handed.pid
        self._attempts = 1
        if handed.when:
            self._move(_RUNNING, handed.when, handed.at)
        else:
            self._move(_RUNNING)
        handed.noted = True
        self._gate[0] = _TAKEN  # which holds nothing

    def ran(self, handed: HandOver, outcome: Outcome) -> None:
        """What `note` and `settle` do, for a job that is over when the dispatcher hears of it."""
        if self._status is not _QUEUED:
            raise RuntimeError(f"illegal end of a job that was handed over: {self._status.name}")
        self._status = _RUNNING
        self._attempts = 1
        when, at = time.time(), time.monotonic()
        self._walk += (_RUNNING, handed.when, handed.at, outcome.status, when, at)
        self._outcome = outcome
        handed.noted = True
        self._gate[0] = _TAKEN

    def requeued(self, *, began: bool) -> None:
        """It waits for another worker: it never started, or (`began`) is tried again.

        One that was sent, and whose worker has not confirmed that, is QUEUED still, and stays it.
        """
        if self._status is _QUEUED:
            return
        self._pid = self._node = None
        self._attempts -= not began
        self._move(_QUEUED)

    def settle(self, outcome: Outcome) -> bool:
        """End it; False if it has ended already. The waiters have to be told then."""
        if self._outcome is not None or not self.take():
            outcome.looked_at()  # the job has another one
            return False
        self._end(outcome)
        return True

    def abandon(self, owner: int) -> None:
        """In a fork of ``owner``, which no dispatcher runs in: end it. Tell the waiters then."""
        if self.outcome is None:
            self.settle(Outcome(JobStatus.ERROR, of_the_parent(owner)))

    # --- waiting, for any thread -------------------------------------------------------------

    def call_when_final(self, waiter: Waiter) -> None:
        """Have ``waiter`` called as soon as the job is final: at once if it is.

        It is called on the pool's own thread, so it must neither block nor run foreign code. In
        a race it may be called twice, and must not mind.
        """
        self._waiters[waiter] = None
        if self.outcome is not None:
            waiter()
            self.forget(waiter)

    def forget(self, waiter: Waiter) -> bool:
        """Take a waiter back; False if it was called, or is about to be."""
        try:
            del self._waiters[waiter]
        except KeyError:
            return False
        return True

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Block until the job is final, at most ``timeout`` s; return how it ended, None if not."""
        if timeout is not None and timeout <= 0:
            return self.outcome
        lock = allocate_lock()
        lock.acquire()

        def release() -> None:
            try:
                lock.release()
            except RuntimeError:  # it is released already
                pass

        self._waiters[release] = None
        try:
            outcome = self.outcome
            if outcome is None:
                lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
                outcome = self.outcome
            return outcome
        finally:
            if self._waiters:
                self.forget(release)

    # --- the writing itself ------------------------------------------------------------------

    def _move(self, status: JobStatus, when: float = 0.0, at: float = 0.0) -> None:
        if not self._status.next_bits & status.bit:
            raise RuntimeError(
                f"illegal move of a job from {self._status.name} to {status.name}; "
                f"its walk was {[str(s.name) for s in self._walk[::3]]}"
            )
        self._status = status
        self._walk += (status, when or time.time(), at or time.monotonic())

    def _finish(self, outcome: Outcome) -> None:
        # An interrupt may come between any two steps (in the caller's thread): every waiter is
        # told all the same, and each of the steps may be done twice.
        try:
            self._end(outcome)
        finally:
            self._outcome = outcome
            self.tell_waiters()

    def _end(self, outcome: Outcome) -> None:
        try:
            self._pid = self._node = None
            if not self._status.next_bits & outcome.status.bit:
                raise RuntimeError(
                    f"illegal end of a job: {self._status.name} to {outcome.status.name}"
                )
        finally:
            if self._walk[-3].next_bits:  # not final
                self._walk += (outcome.status, time.time(), time.monotonic())
            self._outcome = outcome

    def tell_waiters(self) -> None:
        """Call those who wait for the end, each once if no interrupt comes.

        Where one of them raises, the others are called all the same, and then it is raised.
        """
        if not self._waiters:
            return
        try:
            self._call_waiters()
        except BaseException:
            self._call_waiters()
            raise

    def _call_waiters(self) -> None:
        """Call each, and only then take it off: no interrupt loses one, but one may come twice."""
        waiters = self._waiters
        failure: Exception | None = None
        # Who comes from here on finds the outcome, and calls itself.
        for waiter in list(waiters):
            if waiter not in waiters:  # it was taken back meanwhile
                continue
            try:
                waiter()
            except Exception as error:  # noqa: BLE001 - it is raised below
                failure = error
            waiters.pop(waiter, None)
        if failure is not None:
            raise failure
