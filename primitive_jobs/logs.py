"""What the library has to say: records of the logger `primitive_jobs`.

Handlers, filters and formatters are the user's code: they may block, raise, wait for a job, or
want a lock of somebody who waits for one. So what happens on a pool's own threads is only noted
there; the pool's thread for callbacks makes a record of the note and logs it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

logger = logging.getLogger("primitive_jobs")
_nobody = logging.NullHandler()  # without any handler logging prints warnings on stderr
logger.addHandler(_nobody)


class Named(Protocol):
    """What a record needs of a job."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def job_id(self) -> str: ...  # noqa: D102


class Later:
    """Among the arguments of a message: a text whose making may need foreign code.

    It is made when the record is, which does not hold what it is made of.
    """

    __slots__ = ("_make", "_of")

    def __init__(self, make: Callable[[Any], str], of: object) -> None:
        self._make = make
        self._of = of

    def text(self) -> str:
        """Make it."""
        try:
            return self._make(self._of)
        except Exception:  # noqa: BLE001 - it may be nonsense, which a job may send
            return "(unknown)"


class Report:
    """Logs, or has it done where foreign code may run; it never blocks for a handler, nor raises.

    Every record has the fields ``worker_pid``, ``slot``, ``job_id`` and ``job_name``, None where
    they do not apply.

    Args:
        call_back: Calls what it is given, once.
        worker_pid: The worker that is told of.
        slot: The number of that one's slot.
    """

    __slots__ = ("_call_back", "_slot", "_worker_pid")

    def __init__(
        self,
        call_back: Callable[[Callable[[], object]], object],
        worker_pid: int | None = None,
        slot: int | None = None,
    ) -> None:
        self._call_back = call_back
        self._worker_pid = worker_pid
        self._slot = slot

    def about(self, worker_pid: int | None, slot: int) -> Report:
        """Return one that tells of this worker."""
        return Report(self._call_back, worker_pid, slot)

    def pass_on(self, callback: Callable[[], object]) -> None:
        """Have something called where foreign code may run."""
        self._call_back(callback)

    def __call__(
        self,
        level: int,
        message: str,
        *args: object,
        job: Named | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Log ``message % args``, with the traceback of ``error`` if there is one.

        Where ``job`` is among the arguments, its name and id are shown. The record does not hold
        it, and where nobody listens it is not given an id.
        """
        try:
            if listened_to(level):
                self._note(level, message, args, job, error)
        except Exception as failure:  # noqa: BLE001 - of user's code, perhaps: see `listened_to`
            with contextlib.suppress(Exception):
                fields: dict[str, int | str | None] = dict.fromkeys(_FIELDS)
                text = "a record could not be made: %s"
                frame = sys._getframe(1)
                self._call_back(_Note(logging.ERROR, text, (message,), failure, fields, frame))

    def _note(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        job: Named | None,
        error: BaseException | None,
    ) -> None:
        fields: dict[str, int | str | None] = {
            "worker_pid": self._worker_pid,
            "slot": self._slot,
            "job_id": None,
            "job_name": None,
        }
        if job is not None:
            fields["job_id"], fields["job_name"] = job.job_id(), job.name
            # A name may have line ends, or what no file can take.
            name = job.name if job.name.isprintable() else ascii(job.name)
            shown = f"{name} ({job.job_id()})"
            args = tuple(shown if value is job else value for value in args)
        self._call_back(_Note(level, message, args, error, fields, sys._getframe(2)))


_FIELDS = ("worker_pid", "slot", "job_id", "job_name")


def listened_to(level: int) -> bool:
    """Whether the logger's level lets this one pass.

    `Logger.isEnabledFor` may wait for the lock of the logging module, which may be held by somebody
    who waits for a job; so that one is asked later.
    """
    return logger.manager.disable < level >= logger.getEffectiveLevel()


def heard(level: int) -> bool:
    """Whether a handler that is not ours takes records of this level."""
    at: logging.Logger | None = logger
    while at is not None:
        if any(one is not _nobody and one.level <= level for one in at.handlers):
            return True
        at = at.parent if at.propagate else None
    return False


class _Note:
    """What is to be logged, with place, time and thread of its happening; called, it is logged."""

    __slots__ = (
        "_args",
        "_created",
        "_error",
        "_fields",
        "_level",
        "_message",
        "_place",
        "_thread",
    )

    def __init__(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        error: BaseException | None,
        fields: dict[str, int | str | None],
        frame: FrameType,
    ) -> None:
        self._created = time.time()
        self._level = level
        self._message = message
        self._args = args
        self._error = error
        self._fields = fields
        self._place = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        self._thread = (threading.get_ident(), threading.current_thread().name)

    def __call__(self) -> None:
        have_handled(logger, self._level, self._record, self._plain_record)

    def _record(self) -> logging.LogRecord:
        path, line, function = self._place
        error = self._error
        record = logger.makeRecord(
            logger.name,
            self._level,
            path,
            line,
            self._message,
            tuple(arg.text() if isinstance(arg, Later) else arg for arg in self._args),
            None if error is None else (type(error), error, error.__traceback__),
            function,
            self._fields,
        )
        # It is made later, by another thread, than what it tells of.
        record.relativeCreated -= (record.created - self._created) * 1000
        record.created = self._created
        record.msecs = self._created % 1 * 1000
        record.thread, record.threadName = self._thread
        return record

    def _plain_record(self) -> logging.LogRecord:
        path, line, _ = self._place
        return logging.LogRecord(
            logger.name, self._level, path, line, self._message, self._args, None
        )


def have_handled(
    target: logging.Logger,
    level: int,
    make: Callable[[], logging.LogRecord],
    plain: Callable[[], logging.LogRecord],
) -> None:
    """Have a logger handle a record, if it lets that pass; where foreign code may run.

    What raises in there is no affair of the caller's.

    Args:
        target: The logger.
        level: The record's.
        make: Makes the record, by the user's factory, perhaps.
        plain: Makes one that tells which record it was about, where that raises.
    """
    record: logging.LogRecord | None = None
    try:
        if target.isEnabledFor(level):
            record = make()
            target.handle(record)
    except BaseException as error:
        # As for a handler that leaves it to logging: shown if logging.raiseExceptions is set.
        with contextlib.suppress(Exception):
            _nobody.handleError(record or plain())
        own = threading.current_thread() is threading.main_thread()
        if own and isinstance(error, KeyboardInterrupt):
            raise  # the user's Ctrl-C, not the handler's affair


def levels() -> tuple[int, dict[str, int]]:
    """What passes here: as `logging.disable` says, and the levels of loggers that have one.

    The root's is that of "". It is plain data, and no code of a user's logger runs.
    """
    manager = logging.root.manager
    found = {"": logging.root.__dict__.get("level")}
    for name, each in list(manager.loggerDict.items()):
        if isinstance(each, logging.Logger):
            found[str.__str__(name)] = each.__dict__.get("level")
    set_ones = {name: level for name, level in found.items() if isinstance(level, int) and level}
    # Of a subclass, what is of int alone: it travels as plain data.
    return int.__int__(manager.disable), {n: int.__int__(level) for n, level in set_ones.items()}


report_here = Report(lambda log: log())
"""For threads where foreign code may run; a handler that raises is no affair of the caller's."""

__all__ = [
    "Later",
    "Named",
    "Report",
    "have_handled",
    "heard",
    "levels",
    "listened_to",
    "logger",
    "report_here",
]
