"""`Fence`: what becomes of an exception in something that a pool does about one of its workers.

It costs that worker and nothing else. The worker is killed and replaced; its job goes back to the
queue if it certainly never began, else it ends with the exception as the cause. What cannot be done
about a worker for another reason than the worker's own (no descriptor is free, the system refuses)
comes to the same as a worker that is broken. Every exception leaves one record on the logger.

Only the scheduler's own books have no fence: where these raise, no worker is to blame, and nobody
knows what is true. Then all of the pool's jobs end, so that nobody waits for ever (`Unfenced`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from .._common.naming import one_line
from .._common.twins import bare_twin
from .._wire.evidence import Evidence
from ..errors import JobError
from ..logs import Report
from .events import (
    Action,
    Assign,
    Begin,
    Event,
    Faulted,
    Kill,
    Leave,
    SendAhead,
    Settle,
    Spawn,
    StartFailed,
    Terminate,
    Watch,
)
from .fleet import Fleet, Worker
from .registry import JobRegistry


class Unfenced(BaseException):
    """What is wrong is no worker's affair; its cause says what."""


class Fence:
    """One dispatcher's, used on its thread alone.

    Args:
        fleet: The pool's.
        jobs: The pool's.
        report: Logs; it never raises.
    """

    def __init__(self, fleet: Fleet, jobs: JobRegistry, report: Report) -> None:
        self._fleet = fleet
        self._jobs = jobs
        self._report = report

    def after(self, action: Action, error: Exception) -> Event | None:
        """An action raised; return what the scheduler has to be told because of that."""
        slot = getattr(action, "slot", None)
        worker = None if slot is None else self._fleet.workers.get(slot)
        self.log(_NAMES.get(type(action), type(action).__name__), worker, error)
        match action:
            case Settle(job=number):
                self._jobs.end_anyhow(number, bare(error))
            case Spawn():
                return StartFailed(action.slot, Evidence(noted=0, error=bare(error)))
            case Kill() if worker is not None:
                return self._kill_again(worker)
            case Assign() | SendAhead() | Begin() | Watch() | Leave() | Terminate():
                return Faulted(action.slot, bare(error))
            case _:
                pass  # nothing depends on it that the next event would not set right
        return None

    def _kill_again(self, worker: Worker) -> Event | None:
        """In the plainest way, and once."""
        try:
            self._fleet.kill(worker.slot)
        except Exception as error:  # noqa: BLE001 - it is logged
            text = "worker %d cannot be killed before the pool ends"
            worker.report(logging.CRITICAL, text, worker.pid, error=error)
            return self._fleet.give_up(worker.slot, bare(error))
        return None

    def step(self, what: str, worker: Worker | None, call: Callable[[], object]) -> None:
        """Do something whose failure changes nothing for anybody."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - it is logged
            self.log(what, worker, error)

    def log(self, what: str, worker: Worker | None, error: Exception) -> None:
        """Tell of it."""
        if worker is None:
            self._report(logging.ERROR, "%s failed", what, error=error)
        else:
            worker.report(logging.ERROR, "worker %d: %s failed", worker.pid, what, error=error)


_NAMES: dict[type, str] = {
    Assign: "giving it a job",
    SendAhead: "sending it jobs ahead",
    Begin: "noting that it has its job",
    Watch: "watching its memory",
    Leave: "asking it to leave",
    Terminate: "sending it SIGTERM",
    Kill: "having it killed",
    Spawn: "ordering a worker",
    Settle: "telling a job its end",
}


def bare(error: BaseException) -> BaseException:
    """The same exception without its traceback, whose frames hold jobs."""
    try:
        return bare_twin(error)
    except Exception:  # noqa: BLE001 - not every library's can be made anew
        return JobError(one_line(error))


__all__ = ["Fence", "Unfenced", "bare"]
