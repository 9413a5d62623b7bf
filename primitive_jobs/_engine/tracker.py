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

from .._common.clocks import to_wall_clock
from .._common.twins import bare_twin
from .._wire.failures import load_exception, load_result, set_cause
from .._wire.messages import Kind, Message
from ..errors import InitializerError, JobCancelledError, JobError
from ..status import FINAL_STATES, JobStatus
from .gate import TAKEN, HandOver, SentAhead, Taken
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


_GLANCE = 0.00005  # s between two looks whether an outcome that is on its way has come
_PATIENCE = 0.1  # s for it: then something has stopped the dispatcher

Waiter = Callable[[], object]
Who = int | tuple[int, str | None, int]
"""The pid of a worker on this machine in a job's first attempt; else pid, node and attempt."""
Run = tuple[Who, float, float]
"""Who had a job, from when until when on the monotonic clock."""
NEVER: Run = (0, 0.0, 0.0)
"""That of a job that no worker had."""
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

    @property
    def source(self) -> Source:
        """What it is made of; None where somebody has made it, and where there is nothing."""
        return self._source

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
        handed = self._unnoted()
        return self._attempts if handed is None else handed.attempts

    def _unnoted(self) -> HandOver | SentAhead | None:
        """What began, and the dispatcher has not written down yet."""
        handed = self.handed()
        return handed if handed is not None and handed.runs_unnoted() else None

    def handed(self) -> HandOver | SentAhead | None:
        """What stands for its attempt, where the dispatcher has not written that down."""
        how = self._gate[0] if self._gate else None  # once: `note` puts another one there
        return how if isinstance(how, (HandOver, SentAhead)) else None

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
        # Before the copy: what is noted meanwhile would come twice else, or have another's times.
        handed = self._unnoted()
        began = () if handed is None else (_RUNNING, handed.when, handed.at)
        walk = self._walk.copy()
        if walk[-3] is _QUEUED:
            walk += began
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
        status = present(self)
        if status is JobStatus.ERROR:
            self.looked_at()
        return status

    def is_over(self) -> bool:
        """Whether its worker is at a later job: it is RUNNING until its outcome comes."""
        return (handed := self._unnoted()) is not None and handed.is_over()

    def looked_at(self) -> None:
        """Somebody receives what tells the outcome, if there is one, from a success."""
        if (outcome := self.outcome) is not None:
            outcome.looked_at()

    def seconds_in_status(self) -> float:
        """How long the present status has lasted."""
        return time.monotonic() - self.steps()[-1][2]

    def ended_at(self) -> float:
        """When it ended, on the monotonic clock; infinity as long as it has not."""
        status, _, at = self.steps()[-1]
        return at if status in FINAL_STATES else float("inf")

    def remember(self, walk: list[Any]) -> float:
        """Take over the walk of one that has ended; return by how much its clock is put forward."""
        shift = time.monotonic() - time.time() + walk[-2] - walk[-1]
        self._walk = list(walk)
        self._walk[2::3] = [at + shift for at in walk[2::3]]
        return float(shift)

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

    def take(self, how: Taken = TAKEN) -> bool:
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

    def send_ahead(self, how: SentAhead) -> bool:
        """Make it that of a worker that is busy; False if it has ended. Before it is sent."""
        if not self.take():
            return False
        how.attempts = self._attempts + 1
        self._gate[0] = how
        return True

    def came_back(self) -> None:
        """It was sent ahead, and taken back before it began."""
        handed = self._gate[0]
        if isinstance(handed, SentAhead):
            handed.noted = True  # whatever comes to stand in its place
            self._gate[0] = TAKEN

    def began_at(self) -> float | None:
        """When it began, on the monotonic clock, if it was sent ahead and that is not noted."""
        handed = self._gate[0]
        return handed.at if isinstance(handed, SentAhead) and handed.began() else None

    def _look_at_page(self) -> None:
        """If it was sent ahead, write down what the worker has noted of it."""
        handed = self._gate[0]
        if isinstance(handed, SentAhead):
            if handed.began():
                self.note(handed)
            else:
                self.came_back()

    def note(self, handed: HandOver | SentAhead) -> None:
        """Write down that it has begun."""
        self._pid = handed.pid
        self._attempts = handed.attempts
        when = handed.when
        self._move(_RUNNING, when, handed.at if when else 0.0)
        handed.noted = True
        self._gate[0] = TAKEN  # which holds nothing

    def ran(self, handed: HandOver, outcome: Outcome) -> Run:
        """What `note` and `settle` do, for a job that is over when the dispatcher hears of it."""
        if self._status is not _QUEUED:
            raise RuntimeError(f"illegal end of a job that was handed over: {self._status.name}")
        self._status = _RUNNING
        self._attempts = 1
        when, at = time.time(), time.monotonic()
        self._walk += (_RUNNING, handed.when, handed.at, outcome.status, when, at)
        self._outcome = outcome
        handed.noted = True
        self._gate[0] = TAKEN
        return handed.pid, handed.at, at

    def requeued(self, *, began: bool) -> Run:
        """It waits for another worker: it never started, or (`began`) is tried again.

        One that was sent, and whose worker has not confirmed that, is QUEUED still, and stays it.
        """
        if self._gate:
            self._look_at_page()
        run = _run_of(self)
        if self._status is not _QUEUED:
            self._pid = self._node = None
            self._attempts -= not began
            self._move(_QUEUED)
        return run

    def settle(self, outcome: Outcome, took: float | None = None) -> Run | None:
        """End it, after ``took`` s where its worker has told that; return its last run.

        Its waiters have to be told then. None if it has ended already.
        """
        if self._outcome is not None or not self.take():
            outcome.looked_at()  # the job has another one
            return None
        handed = self._gate[0]
        if isinstance(handed, SentAhead):
            if self._status is _QUEUED and handed.began():
                return self._ran_ahead(handed, outcome, took)
            self.came_back()
        run = _run_of(self)
        self._end(outcome)
        return run

    def _ran_ahead(self, handed: SentAhead, outcome: Outcome, took: float | None) -> Run:
        """What `note` and `_end` do, for one that was sent ahead: by the worker's clock."""
        began, attempt = handed.at, handed.attempts
        end = time.monotonic() if took is None else began + took
        shift = to_wall_clock()
        self._status = _RUNNING
        self._attempts = attempt
        self._walk += (_RUNNING, began + shift, began, outcome.status, end + shift, end)
        self._outcome = outcome
        handed.noted = True
        self._gate[0] = TAKEN
        return handed.pid if attempt == 1 else (handed.pid, None, attempt), began, end

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


def present(tracker: StatusTracker) -> JobStatus:
    """Return the status of a job, which is RUNNING only while its worker is at this job.

    Where that is at a later one already, the outcome is on its way, and is there as soon as the
    dispatcher comes to run: that is waited for here, some us as a rule. Not to be called on the
    dispatcher's thread.
    """
    status = tracker.status
    if status is _RUNNING and tracker.is_over():
        end = time.monotonic() + _PATIENCE
        while tracker.is_over() and time.monotonic() < end:
            time.sleep(_GLANCE)
        status = tracker.status
    return status


def _run_of(tracker: StatusTracker) -> Run:
    """Return who has a job, and from when until now; on the dispatcher's thread."""
    if tracker._status is not _RUNNING:
        return NEVER
    pid, node, attempt = tracker._pid or 0, tracker._node, tracker._attempts
    who = pid if attempt == 1 and node is None else (pid, node, attempt)
    return who, tracker._walk[-1], time.monotonic()
