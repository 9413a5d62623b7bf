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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from .._common.naming import one_line
from .._common.twins import bare_twin
from .._wire.evidence import Evidence
from ..errors import JobError
from ..logs import Report
from .events import (
    Action,
    Assign,
    Event,
    Faulted,
    Kill,
    Leave,
    Settle,
    Spawn,
    StartFailed,
    Terminate,
    Watch,
)

if TYPE_CHECKING:
    from .._procs.process import WorkerProcess


class Unfenced(BaseException):
    """What is wrong is no worker's affair; its cause says what."""


class Owner(Protocol):
    """What a fence needs of the dispatcher; each of these is called on that one's thread."""

    def _kill(self, process: WorkerProcess, ask_stack: bool) -> None:
        """Have a worker killed."""

    def _give_up(self, process: WorkerProcess, error: BaseException) -> Event:
        """Forget a worker that cannot be killed; return what to tell the scheduler."""
        ...

    def _end_anyhow(self, number: int, error: BaseException) -> None:
        """End a job, if it has not ended, with what can still be said of it."""


class Fence:
    """One dispatcher's, used on its thread alone.

    Args:
        owner: The dispatcher.
        workers: Its workers, by slot.
        report: Logs; it never raises.
    """

    def __init__(self, owner: Owner, workers: Mapping[int, WorkerProcess], report: Report) -> None:
        self._owner = owner
        self._workers = workers
        self._report = report

    def after(self, action: Action, error: Exception) -> Event | None:
        """An action raised; return what the scheduler has to be told because of that."""
        slot = getattr(action, "slot", None)
        process = None if slot is None else self._workers.get(slot)
        self.log(_NAMES.get(type(action), type(action).__name__), process, error)
        match action:
            case Settle(job=number):
                self._owner._end_anyhow(number, bare(error))
            case Spawn():
                return StartFailed(action.slot, Evidence(noted=0, error=bare(error)))
            case Kill() if process is not None:
                return self._kill_again(process)
            case Assign() | Watch() | Leave() | Terminate():
                return Faulted(action.slot, bare(error))
            case _:
                pass  # nothing depends on it that the next event would not set right
        return None

    def _kill_again(self, process: WorkerProcess) -> Event | None:
        """In the plainest way, and once."""
        try:
            self._owner._kill(process, False)
        except Exception as error:  # noqa: BLE001 - it is logged
            text = "worker %d cannot be killed before the pool ends"
            process.report(logging.CRITICAL, text, process.pid, error=error)
            return self._owner._give_up(process, bare(error))
        return None

    def step(self, what: str, process: WorkerProcess | None, call: Callable[[], object]) -> None:
        """Do something whose failure changes nothing for anybody."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - it is logged
            self.log(what, process, error)

    def log(self, what: str, process: WorkerProcess | None, error: Exception) -> None:
        """Tell of it."""
        if process is None:
            self._report(logging.ERROR, "%s failed", what, error=error)
        else:
            process.report(logging.ERROR, "worker %d: %s failed", process.pid, what, error=error)


_NAMES: dict[type, str] = {
    Assign: "giving it a job",
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


__all__ = ["Fence", "Owner", "Unfenced", "bare"]
