"""`Logged`: what brings a worker's log records here, to be handled by this program's loggers.

The worker makes a socket before anything may log there, and sends the end to read from. The thread
that has the worker takes datagrams out of it and looks at none: they are read, and handled, where
foreign code may run. What a worker sends is JSON, and nothing of it is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from typing import Any

from .._wire.messages import Lent
from ..logs import Report, have_handled

_LARGEST = 128 << 10  # bytes of a record; a worker sends less
_AT_ONCE = 1024  # records: more than a socket's buffer holds, where each takes 768 bytes or more
_MANY = 1 << 20  # bytes of records that wait to be handled: then the job shall wait
_MOST = 16 << 20  # bytes of these that are kept, where nothing is handled any more
_PATIENCE = 1.0  # s without any progress, after which the job does not wait any longer


class Logged:
    """The end to read from; used on the thread that has its worker.

    Handlers that are slow hold up the job, as they would in its own process. But a callback may
    wait for that very job, on the thread that handlers are called on: so if nothing is handled for
    a second the job goes on, and what is too much then is left out, which is told.

    Args:
        lent: What came.
        report: The one about its worker.

    Attributes:
        over: Whether nobody can write to it any more: nobody knows that.
        rest: Seconds that it rests after each reading: its buffer has room for few records.
    """

    over = False
    rest = 0.005

    def __init__(self, lent: Lent, report: Report) -> None:
        self._lent: Lent | None = lent
        self._report = report
        self._buffer = memoryview(bytearray(_LARGEST))
        # Bytes that were handed on, and those that were handled; each has one thread that writes.
        self._given = self._handled = 0
        self._seen, self._since = 0, 0.0  # of the latter: how many there were, and since when
        self._left_out = 0  # records, and not told yet
        os.set_blocking(lent.fd, False)

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once it is closed."""
        return -1 if self._lent is None else self._lent.fd

    @property
    def may_wait(self) -> bool:
        """Whether what is there is better read later: much waits, and some of it was handled."""
        handled, now = self._handled, time.monotonic()
        if handled != self._seen or self._given - handled <= _MANY:
            self._seen, self._since = handled, now
        return self._given - handled > _MANY and now - self._since < _PATIENCE

    def read(self) -> bool:
        """Read what is there now; return whether there was any. It ends, whoever writes on."""
        found: list[bytes] = []
        if self._lent is not None:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_AT_ONCE):
                    size = os.readv(self._lent.fd, [self._buffer])
                    found.append(bytes(self._buffer[:size]))
        if found:
            self._hand_on(found)
        return bool(found)

    def _hand_on(self, found: list[bytes]) -> None:
        size = sum(map(len, found))
        if self._given - self._handled + size > _MOST:
            self._left_out += len(found)
            return
        self._tell_left_out()
        self._given += size
        self._report.pass_on(functools.partial(self._handle_all, found))

    def _tell_left_out(self) -> None:
        if self._left_out:
            text = "%d log records of a worker are left out: those before them were not handled"
            self._report(logging.WARNING, text, self._left_out)
            self._left_out = 0

    def close(self) -> None:
        """Close it; again is harmless."""
        self._tell_left_out()
        self._lent = None

    def _handle_all(self, found: list[bytes]) -> None:
        """On the thread where foreign code may run."""
        for data in found:
            try:
                _take(data)
            finally:  # each by itself: a handler that is slow does make progress
                self._handled += len(data)


def _take(data: bytes) -> None:
    """Have one record handled; what makes no sense, which a job may send, is passed over."""
    try:
        fields = json.loads(data)
        name, level, created = fields["name"], fields["levelno"], fields["created"]
        if type(name) is not str or type(level) is not int or type(created) is not float:
            return
    except Exception:  # noqa: BLE001 - it is no JSON, no dict, nested without an end
        return
    make = functools.partial(_record, fields, created)
    have_handled(_logger(name), level, make, functools.partial(_plain_record, fields, level))


def _logger(name: str) -> logging.Logger:
    """The logger of this name, or the nearest one that there is: that one would get the record.

    So none is made for each name that workers may think of.
    """
    known = logging.root.manager.loggerDict
    while name:
        found = known.get(name)
        if isinstance(found, logging.Logger):
            return found
        name = name.rpartition(".")[0]
    return logging.root


def _record(fields: dict[str, Any], created: float) -> logging.LogRecord:
    record = logging.makeLogRecord({})
    relative = record.relativeCreated - (record.created - created) * 1000
    name = logging.getLevelName(fields["levelno"])
    if name == f"Level {fields['levelno']}":  # it has none here
        name = fields.get("levelname", name)
    if fields.get("processName") is None:
        fields["processName"] = f"worker {fields.get('worker_pid')}"
    record.__dict__.update(fields, levelname=name, relativeCreated=relative, args=None)
    return record


def _plain_record(fields: dict[str, Any], level: int) -> logging.LogRecord:
    place = str(fields.get("pathname")), 0
    return logging.LogRecord(fields["name"], level, *place, str(fields.get("msg")), None, None)


__all__ = ["Logged"]
