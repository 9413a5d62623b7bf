"""How a job has ended, in words: from what the scheduler decided, and what is known of a worker's
death, to the outcome that its caller gets.

Reads records and evidence, and changes nothing.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from .._common.naming import message_of, one_line, type_name
from .._wire import facts
from .._wire.evidence import Evidence
from .._wire.failures import add_notes
from .._wire.messages import Kind, Message
from ..errors import (
    ClusterError,
    InitializerError,
    JobError,
    JobMemoryError,
    JobTimeoutError,
    PoolClosedError,
    SerializationError,
    WorkerDiedError,
)
from ..insight.printed import Prints
from ..snapshots import AttemptEnd
from ..status import JobStatus
from .attempts import Told
from .events import (
    Cancelled,
    Fate,
    Lost,
    NotInitialized,
    OutOfMemory,
    Requeue,
    TimedOut,
    TurnedAway,
    Unkilled,
    Unmet,
    Unreachable,
)
from .printing import for_error, in_words
from .record import JobRecord
from .tracker import Outcome, Unstopped, cancelled
from .unmet import unmet
from .unseen import Source, brief

if TYPE_CHECKING:
    from .._wire.failures import Named

_RETURNED = int(Kind.RETURNED)  # of an IntEnum takes longer to compare with


def finished(job: JobRecord, message: Message) -> Outcome:
    """What a worker has answered, as the outcome of its job."""
    if message.lost:
        failure = f"the outcome of job {job.name} was not received: {message.lost}"
        return Outcome(JobStatus.ERROR, SerializationError(failure))
    return Outcome(JobStatus.DONE if message.kind == _RETURNED else JobStatus.ERROR, message)


def outcome_of(job: JobRecord, fate: Fate) -> Outcome:
    """What the scheduler has decided on, as the outcome of a job."""
    printed = in_words(job.prints)
    match fate:
        case Message():
            return finished(job, fate)
        case Cancelled():
            return cancelled()
        case Unkilled(evidence=evidence):
            return Unstopped(JobStatus.ERROR, _unkilled(job, evidence))
        case TimedOut(limit=limit, stack=stack, left=left):
            end = "stopped" if job.limits.grace else "killed"  # it may have ended in its grace
            error: BaseException = JobTimeoutError(
                f"job {job.name} ({job.job_id()}) ran longer than its timeout of {limit:g} s "
                f"and was {end}{_but(left)}{printed}{_below(stack)}",
                stack=stack,
                **for_error(job.prints),
            )
        case OutOfMemory(limit=bytes_allowed, peak=None, left=left):
            error = JobError(
                f"job {job.name} ({job.job_id()}) may not run: its memory_limit of "
                f"{_megabytes(bytes_allowed)} cannot be kept, since the memory of its processes "
                f"cannot be measured: /proc is missing, or hides them{_but(left)}"
            )
        case OutOfMemory(limit=bytes_allowed, peak=peak, stack=stack, left=left):
            error = JobMemoryError(
                f"job {job.name} ({job.job_id()}) passed its memory_limit of "
                f"{_megabytes(bytes_allowed)}: its processes held {_megabytes(peak or 0)} and were "
                f"killed{_but(left)}{printed}{_below(stack)}",
                limit=bytes_allowed,
                peak=peak or 0,
                stack=stack,
                **for_error(job.prints),
            )
        case Lost(evidence=evidence):
            error = _died(job, evidence)
        case NotInitialized(message=message, evidence=evidence):
            if message is not None:
                return Outcome(JobStatus.ERROR, message)
            assert evidence is not None
            error = _died_initializing(job, evidence)
        case Unreachable(error=cause, evidence=evidence):
            error = _unreachable(job, cause, evidence)
        case Unmet(place=place, dependency=dependency, error=why):
            return unmet(job, place, dependency, why)
        case TurnedAway():
            error = PoolClosedError(f"job {job.name}: the pool was shut down meanwhile")
    return Outcome(JobStatus.ERROR, error)


def _unkilled(job: JobRecord, evidence: Evidence) -> JobError:
    error = JobError(
        f"job {job.name} ({job.job_id()}) was cancelled, but could not be stopped: "
        f"{evidence.left}; its status is ERROR, and it may go on"
    )
    error.__cause__ = evidence.error
    return error


def why_unreachable(error: BaseException) -> str:
    """What is said where no worker can be reached any more: the text of the error that says so."""
    return " ".join(message_of(error).split()) or type_name(error)


def _unreachable(job: JobRecord, cause: BaseException, evidence: Evidence | None) -> ClusterError:
    label = f"job {job.name} ({job.job_id()})"
    why = why_unreachable(cause)
    if evidence is None:
        return ClusterError(f"{label}: {why}")
    running = job.tracker.status is JobStatus.RUNNING
    return ClusterError(
        f"{label}: {why}{_but(evidence.left)}{in_words(job.prints) if running else ''}",
        pid=evidence.pid,
        exitcode=evidence.exitcode,
        ran=job.tracker.seconds_in_status() if running else None,
        peak_memory=evidence.peak_memory,
        node=evidence.node,
        **for_error(job.prints if running else None),
    )


def attempt_told(fate: Fate) -> Told:
    """How an attempt has ended that brought no result: in a few words, for a timeline."""
    end, reason, memory = _attempt_told(fate)
    return Told(end, brief(reason), memory)


def _attempt_told(fate: Fate) -> tuple[AttemptEnd, str, int | None]:
    match fate:
        case Cancelled():
            return "cancelled", "", None
        case Unkilled(evidence=evidence):
            return "cancelled", f"could not be stopped: {evidence.left}", evidence.peak_memory
        case TimedOut(limit=limit, left=left):
            return "timeout", f"passed its timeout of {limit:g} s{_but(left)}", None
        case OutOfMemory(peak=None, left=left):
            return "memory", f"the memory_limit could not be kept: not measurable{_but(left)}", None
        case OutOfMemory(limit=limit, peak=peak, left=left):
            reason = f"passed its memory_limit of {_megabytes(limit)}{_but(left)}"
            return "memory", reason, peak
        case Unreachable(error=error):
            return "died", why_unreachable(error), None
        case Lost(evidence=evidence):
            reason = cause_of_death(evidence, "") + _but(evidence.left)
            return "died", reason, evidence.peak_memory
        case Message(lost=str(lost)):
            return "raised", f"its outcome was not received: {lost}", None
        case Message():
            return "raised", "", None
        case NotInitialized() | TurnedAway() | Unmet():
            return "died", "", None  # they never had a worker


def tried_again(action: Requeue) -> tuple[str, Told]:
    """How an attempt has ended after which there is another one: in words, and for a timeline."""
    answer, evidence = action.answer, action.evidence or Evidence()
    if answer is None:
        return f"lost its worker: {cause_of_death(evidence)}", attempt_told(Lost(evidence))
    raised = facts.unpacked(answer.notes).get(facts.RAISED, b"an exception")
    text = raised.decode("utf-8", "replace")
    return f"raised {text}", Told("raised", brief(f"tried again after {text}"))


class AfterOthers(Outcome):
    """That of a job's last attempt.

    Args:
        last: The outcome.
        earlier: How attempts before it ended, in words: notes of its exception.
    """

    __slots__ = ("_earlier",)

    def __init__(self, last: Outcome, earlier: tuple[str, ...]) -> None:
        super().__init__(last.status, last.source)
        self._earlier = earlier

    def _read(self, source: Source, job: Named) -> tuple[Any, BaseException | None]:
        value, error = super()._read(source, job)
        if error is not None:
            add_notes(error, self._earlier)
        return value, error


def with_notes(outcome: Outcome, earlier: tuple[str, ...]) -> Outcome:
    """The outcome of a job's last attempt, whose exception tells of those before."""
    if outcome.status is not JobStatus.ERROR or isinstance(outcome, Unstopped):
        return outcome
    return AfterOthers(outcome, earlier)


def _but(left: str | None) -> str:
    return "" if left is None else f", but may go on: {left}"


def _died(job: JobRecord, evidence: Evidence) -> WorkerDiedError:
    label = f"job {job.name} ({job.job_id()})"
    if evidence.pid is None:
        error = evidence.error
        if isinstance(error, InitializerError):
            failure: WorkerDiedError = InitializerError(f"{label}: {error}")
        elif error is None:
            failure = WorkerDiedError(f"{label}: it could not be sent to any worker")
        else:
            failure = WorkerDiedError(
                f"{label}: no worker process could be started for it: {one_line(error)}"
            )
        failure.__cause__ = error
        return failure
    ran: float | None = None
    prints: Prints | None = None
    worker = _worker(evidence)
    if job.tracker.status is JobStatus.RUNNING:
        ran, prints = job.tracker.seconds_in_status(), job.prints
        how = _how(evidence, printed=in_words(prints))
        what = f"its worker process {worker} died after {ran:.3g} s: {how}"
    elif evidence.noted == 0 or evidence.error is not None:
        what = f"worker process {worker} died, not ready for a job: {_how(evidence, '')}"
    else:
        what = (
            f"worker process {worker} died as the job was sent to it, so that it is not known "
            f"whether it had begun: {_how(evidence, '')}"
        )
    failure = WorkerDiedError(
        f"{label}: {what}",
        pid=evidence.pid,
        exitcode=evidence.exitcode,
        stack=evidence.stack,
        ran=ran,
        peak_memory=evidence.peak_memory,
        node=evidence.node,
        **for_error(prints),
    )
    failure.__cause__ = evidence.error
    return failure


def _how(evidence: Evidence, when: str = " in the middle of the job", printed: str = "") -> str:
    peak = (
        ""
        if evidence.peak_memory is None
        else f"; its peak memory was {_megabytes(evidence.peak_memory)}"
    )
    how = cause_of_death(evidence, when) + peak + _but(evidence.left) + printed
    return how + _below(evidence.stack)


def _below(stack: str | None) -> str:
    return f"\n{stack}" if stack else ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _died_initializing(job: JobRecord, evidence: Evidence) -> InitializerError:
    return InitializerError(
        f"job {job.name}: worker {_worker(evidence)} died in the pool's preload or initializer: "
        f"{_how(evidence, '')}",
        pid=evidence.pid,
        exitcode=evidence.exitcode,
        stack=evidence.stack,
        peak_memory=evidence.peak_memory,
        node=evidence.node,
    )


def _worker(evidence: Evidence) -> str:
    return f"{evidence.pid}" if evidence.node is None else f"{evidence.pid} on {evidence.node}"


def cause_of_death(evidence: Evidence, when: str = " in the middle of the job") -> str:
    """What is known of it, in words; ``when`` it was is told of an exit."""
    code = evidence.exitcode
    if evidence.error is not None:
        return f"the pool could not use it any more: {one_line(evidence.error)}"
    if evidence.node_lost is not None:
        return f"its node {evidence.node} was lost: {evidence.node_lost}"
    if evidence.cut_off:
        return "the job closed or broke its link to the pool, and was ended"
    if code is None:
        return "its exit code is unknown (something else in this program reaped it)"
    if code >= 0:
        text = f"it exited with code {code}{when}"
        return text if evidence.hint is None else f"{text}: {evidence.hint}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    if evidence.out_of_memory:
        return (
            f"killed by signal {name}, it seems by the kernel's OOM killer: "
            f"{evidence.out_of_memory}"
        )
    return f"killed by signal {name}"


__all__ = [
    "attempt_told",
    "cause_of_death",
    "finished",
    "outcome_of",
    "tried_again",
    "why_unreachable",
    "with_notes",
]
