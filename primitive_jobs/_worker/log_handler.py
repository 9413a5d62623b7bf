"""`Forwarder`: the handler of a worker's root logger, where its pool forwards log records.

It is imported right after a job, or whatever comes before it, has imported `logging`. A record
leaves as JSON of plain values: its arguments are made a text here, as is its exception.
"""

from __future__ import annotations

import errno
import json
import logging
import sys

from .._common import identity
from .._wire import facts
from .._wire.present import about, now
from . import log_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST = 100_000  # bytes of a record
_LENGTHS = (30_000, 3_000, 300)  # characters that the texts of one are cut to that is larger
_TEXTS = ("msg", "exc_text", "stack_info")
_FIELDS = frozenset(vars(logging.makeLogRecord({})))  # what every record has
_formatter = logging.Formatter()


def install(root: logging.Logger) -> None:
    """Have the worker's records forwarded that pass in the program."""
    disabled, levels = log_socket.levels
    for name, level in levels.items():
        (logging.getLogger(name) if name else root).setLevel(level)
    if "" not in levels:
        root.setLevel(logging.NOTSET)
    logging.disable(disabled)
    root.addHandler(Forwarder())


class Forwarder(logging.Handler):
    """Sends records to the pool; it has no lock, as none is needed: see `log_socket`."""

    def __init__(self) -> None:
        super().__init__()
        self._noted = 0  # the last attempt whose end tells that it has logged

    def createLock(self) -> None:  # noqa: N802 - as `logging` has it
        """Have none: a fork while a thread has it would be the end of all logging there."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Send a record if the filters let it pass."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; what fails is told as every handler of `logging` tells it."""
        try:
            if self._send(record):
                attempt = now.attempt
                if attempt and attempt != self._noted:
                    self._noted = attempt
                    now.ending.append(_tell)
            elif logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)  # the worker's stderr: it is not lost
        except ConnectionError:  # the pool has ended
            pass
        except Exception:  # noqa: BLE001 - whatever a `__str__` raises
            self.handleError(record)

    def _send(self, record: logging.LogRecord) -> bool:
        fields = _plain(record)
        data = _packed(fields)
        for most in _LENGTHS:
            if len(data) <= MOST:
                try:
                    return log_socket.send(data)
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
            data = _packed(_shortened(fields, most))
        return log_socket.send(data)


def _tell(told: dict[int, bytes]) -> None:
    """At the end of the job: its records are there."""
    told[facts.LOGGED] = b""


def _plain(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says, without objects of the job's but those that somebody has added to it."""
    fields = dict(record.__dict__)
    fields["msg"] = record.getMessage()
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    for name in ("args", "exc_info", "message", "asctime"):
        fields.pop(name, None)
    if "multiprocessing" not in sys.modules:  # which knows how this process is called
        fields["processName"] = None
    job = about() if now.attempt else now.left
    fields.setdefault("worker_pid", log_socket.worker)
    # Those of a pool that the job has made are its own records' already.
    fields.setdefault("job_id", None if job is None else identity.text_of(job[1]))
    fields.setdefault("job_name", None if job is None else job[0])
    return fields


def _packed(fields: dict[str, Any]) -> bytes:
    try:
        return json.dumps(fields, default=repr, skipkeys=True).encode()
    except Exception:  # noqa: BLE001 - whatever a `__repr__` raises; or it contains itself
        return json.dumps({name: _shown(value) for name, value in fields.items()}).encode()


def _shown(value: object) -> object:
    try:
        json.dumps(value, default=repr, skipkeys=True)
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__} that cannot be shown>"
    return value


def _shortened(fields: dict[str, Any], most: int) -> dict[str, Any]:
    """Leave out the middle of texts, and what somebody has added that is long."""
    short = {}
    for name, value in fields.items():
        if name in _TEXTS and isinstance(value, str) and len(value) > most:
            half, left_out = most // 2, len(value) - most // 2 * 2
            value = f"{value[:half]}\n[... {left_out:,} characters left out ...]\n{value[-half:]}"
        elif name not in _FIELDS and len(json.dumps(_shown(value), default=repr)) > most:
            value = f"<{type(value).__name__} too large to be forwarded>"
        short[name] = value
    return short


__all__ = ["MOST", "Forwarder", "install"]
