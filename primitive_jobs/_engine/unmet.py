"""`UnmetOutcome`: that of a job that waited for another one, which did not end with a result.

Where that waited in vain itself, the first one that did not is to blame, and is named. A job keeps
those that it waits for until its end, and the one to blame until it goes itself: they are the
user's, so the job alone has them, and no record or outcome, which a pool's thread may drop last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .._wire.failures import set_cause
from .._wire.messages import Filed, Message
from ..errors import DependencyError
from ..status import JobStatus
from .standing import needs_of, record_of, set_needs
from .tracker import Outcome, StatusTracker
from .unseen import Unseen, failure_line

if TYPE_CHECKING:
    from .._wire.failures import Named
    from .unseen import Source


class Ended(Protocol):
    """A job's record."""

    name: str
    tracker: StatusTracker


class UnmetOutcome(Outcome):
    """Made by `unmet`.

    Args:
        error: What is raised, without its cause.
        place: The place of the dependency among those that the job waits for.
        root: The one to blame.
        how: What became of that, as far as it could be told without code of the user's.
    """

    __slots__ = ("how", "place", "root")

    def __init__(self, error: DependencyError, place: int, root: Ended, how: str) -> None:
        super().__init__(JobStatus.ERROR, error)
        self.how = how
        self.place = place
        self.root = root

    def watch(self, unseen: Unseen, name: str, holder: object) -> None:
        """Have it told if nobody looks at it, unless the failure of the one to blame is told."""
        if not self._is_told():
            super().watch(unseen, name, holder)

    def looked_at(self) -> None:
        """Somebody receives it: by that they know of the one to blame."""
        super().looked_at()
        outcome = self.root.tracker.outcome
        if outcome is not None and outcome.status is JobStatus.ERROR:
            outcome.looked_at()

    def _is_told(self) -> bool:
        outcome = self.root.tracker.outcome
        return outcome is not None and outcome.status is JobStatus.ERROR

    def blamed(self, job: Any) -> Any:
        """Return the job to blame, given the one that this is the outcome of; None: it is gone."""
        jobs = [job]
        while True:
            outcome, needs = record_of(jobs[-1]).tracker.outcome, needs_of(jobs[-1])
            if not isinstance(outcome, UnmetOutcome) or not needs:
                break
            jobs.append(needs[0] if type(needs) is tuple else needs[outcome.place])
        root = jobs.pop()
        for each in jobs:  # so that nobody goes all the way again
            set_needs(each, (root,))
        return None if root is job else root

    def _read(self, source: Source, job: Named) -> tuple[Any, BaseException | None]:
        value, error = super()._read(source, job)
        root = self.blamed(job)
        if isinstance(error, DependencyError) and root is not None:
            error.job = root
            outcome = record_of(root).tracker.outcome
            if outcome is not None and outcome.status is not JobStatus.DONE:
                cause = outcome.load(root)[1]
                if cause is not None:
                    set_cause(error, cause)
        return value, error


def unmet(job: Ended, place: int, dependency: Ended, why: BaseException | None) -> UnmetOutcome:
    """Return the outcome of a job, one of whose dependencies has ended without a result.

    ``why``: it has returned, but its result cannot be sent.
    """
    outcome = dependency.tracker.outcome
    if isinstance(outcome, UnmetOutcome):
        root, how = outcome.root, outcome.how
        end = f"was not run either, because of job {root.name}, which {how}"
    else:
        root = dependency
        how = _how(root) if why is None else f"has a result that cannot be sent to it: {why}"
        end = how
    text = f"job {job.name} was not run: job {dependency.name}, which it waits for, {end}"
    error = DependencyError(text)
    error.__cause__ = why
    return UnmetOutcome(error, place, root, how)


def _how(root: Ended) -> str:
    """What became of it, without a word of its exception if somebody has unpickled that."""
    outcome = root.tracker.outcome
    if outcome is None or outcome.status is not JobStatus.ERROR:
        return "was cancelled"
    source = outcome.source
    # That of a store is read from its file, which may take long: not on a pool's thread.
    read = isinstance(source, Message) and type(source) not in (Message, Filed)
    told = source is not None and not read
    return f"failed: {failure_line(source, root.name)}" if told else "failed"


def let_needs_go(job: Any, outcome: Outcome | None) -> None:
    """A job has ended: let go of those that it waited for, but the one to blame."""
    if isinstance(outcome, UnmetOutcome):
        outcome.blamed(job)
    else:
        set_needs(job, ())


__all__ = ["UnmetOutcome", "let_needs_go", "unmet"]
