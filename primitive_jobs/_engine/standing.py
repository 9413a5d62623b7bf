"""`Standing`: a job, or its future, in the pickle of a call, where it may stand for its result.

A pickler asks each object how it is reduced. So what a call costs that has no job among its
arguments is one look at a variable of the thread, set while a submit pickles::

    pickle the call ──► no job is met: done
                   └──► one is met: `Met` ends the pickling; what stands among the arguments is
                        replaced (`arguments`), and the call is pickled again. A job that is met
                        then is somewhere else: it travels as a job if it has ended, or is refused

All of it happens on the thread that submits, where code of the user's may run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .._wire.calls import blame
from .._wire.pickling import dumps_referring
from ..status import JobStatus

if TYPE_CHECKING:
    from .._wire.calls import Dumped

T = TypeVar("T")

NOT_YET = (JobStatus.INITIALIZING, JobStatus.VALIDATING)
"""What a job is whose submit has not returned: it does not end by itself then."""


class Met(BaseException):
    """A job is in what is pickled. No user's ``except Exception`` shall keep that from a submit."""


class _Submit(threading.local):
    """What a submit on this thread has to say to the jobs that its pickler meets.

    Attributes:
        asked: Called with each; None: no submit pickles here. It may raise; else it returns
            whether the job is to be pickled as it is anywhere.
        met: Whether `Met` was raised, even if somebody has caught it.
    """

    asked: Callable[[Standing], bool] | None = None
    met = False


_submit = _Submit()


class Standing:
    """What jobs and their futures have in common: among arguments they stand for a result.

    Attributes:
        _needs: Of a job, the jobs that it waits for, in their places; when it has ended without
            one of them, a tuple of the one to blame. Not there, or empty: none.
        _record: The job's `JobRecord`.
    """

    __slots__ = ()
    _needs: Sequence[Any]
    _record: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Ask the submit that pickles on this thread, if one does."""
        asked = _submit.asked
        if asked is not None and not asked(self):
            return str, ()
        return super().__reduce_ex__(protocol)

    def _job(self) -> Any:
        """Return the job."""
        return self


def record_of(standing: Any) -> Any:
    """Return the record of a job, or of a future's."""
    return standing._record


def needs_of(job: Any) -> Sequence[Any]:
    """Return the jobs that one waits for; where code of the user's may run."""
    needs: Sequence[Any] = getattr(job, "_needs", ())
    return needs


def set_needs(job: Any, needs: Sequence[Any]) -> None:
    """Have a job keep those; where code of the user's may run."""
    job._needs = needs


def job_of(standing: Standing) -> Any:
    """Return the job itself."""
    return standing._job()


def _stop(standing: Standing) -> bool:
    del standing
    _submit.met = True
    raise Met


def _pass_over(standing: Standing) -> bool:
    """While it is found out what else cannot be pickled."""
    return standing._record.tracker.outcome is not None


def _refuse(standing: Standing) -> bool:
    """It stands where it would travel as a job: it must have ended, or this would wait for it."""
    record = standing._record
    if record.tracker.outcome is not None:
        return True
    if record.tracker.status in NOT_YET:
        raise TypeError(
            f"job {record.name} is not submitted yet: submit it first, then it stands for its "
            "result among the arguments"
        )
    raise TypeError(
        f"job {record.name} has not ended, and stands for its result only among the arguments: as "
        "one, or in lists, tuples, values of dicts and fields of dataclasses"
    )


def _asking(asked: Callable[[Standing], bool], call: Callable[..., T], *args: Any) -> T:
    before = _submit.asked
    try:
        try:
            _submit.asked = asked
            return call(*args)
        finally:
            _submit.asked = before
    except BaseException:  # an interrupt may have come in the line above
        _submit.asked = before
        raise


def dumps_unless_met(value: Any) -> Dumped:
    """Pickle as `dumps_referring`; raises `Met` where a job is met, whoever has caught that."""
    met, _submit.met = _submit.met, False  # what is pickled may submit something itself
    try:
        dumped = _asking(_stop, dumps_referring, value)
    except Exception:
        if _submit.met:
            raise Met from None
        raise
    else:
        if _submit.met:
            raise Met
        return dumped
    finally:
        _submit.met = met


def blame_unless_met(*about: Any) -> str:
    """Say why that raised something else: see `calls.blame`."""
    return _asking(_pass_over, blame, *about)


def unless_met(call: Callable[..., T], *args: Any) -> T:
    """Call what pickles arguments of a call that is to come; raises `Met` where a job is met."""
    return _asking(_stop, call, *args)


def dumps_refusing(value: Any) -> Dumped:
    """Pickle as `dumps_referring`; a job that is met must have ended."""
    return _asking(_refuse, dumps_referring, value)


def blame_refusing(*about: Any) -> str:
    """Say why that has raised, and where."""
    return _asking(_refuse, blame, *about)


__all__ = [
    "NOT_YET",
    "Met",
    "Standing",
    "blame_refusing",
    "blame_unless_met",
    "dumps_refusing",
    "dumps_unless_met",
    "job_of",
    "needs_of",
    "record_of",
    "set_needs",
    "unless_met",
]
