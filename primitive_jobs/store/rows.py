"""`StoredRow`: what a store knows of one point."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from collections.abc import Callable
from typing import Any

from .._wire.failures import load_exception, load_result
from ..errors import JobCancelledError, StoreError
from ..insight.usage import Usage
from ..status import JobStatus
from .contents import parts_of

Fetch = Callable[[str, int], tuple[bytes | bytearray, int]]
"""Reads the content of a row, by key and number: bytes, and how many buffers they hold."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredRow:
    """One point of a function: its arguments, how its job ended, and the way to its result.

    All but `result` is plain data, and is read without running any code.

    Attributes:
        key: 32 hexadecimal digits, which tell it from every other point.
        name: Of the function, as the store knows it.
        version: As given to `SweepStore.function`; None: none was.
        module: Of the function; of one in a script, the stem of the script's file name.
        code: The hash of its code when the job ran; "" where none can be made.
        python: The version of Python that ran it.
        arguments: By name; what JSON has as it is, anything else as a text.
        status: DONE, ERROR or CANCELLED.
        started: When its last attempt began, in s since the epoch; None: none did.
        ended: When it ended, in s since the epoch.
        duration: Seconds that the last attempt took; None: none began.
        usage: As `PrimitiveJob.usage`; None: not known.
        attempts: How often a worker has begun with it.
        seed: Entropy and spawn key of its randomness; None: its pool had no seed.
        error_type: The type of what a failed job raised; None where it did not fail.
        error_text: The text of that.
        traceback: Its traceback in the worker.
        output: The last 4 KB that it printed; None: it was not captured.
        progress: What it has reported last, as a dict of fraction, message, values; None: nothing.
        size: Bytes of its result as it is stored.
        plain: Its result as JSON, where that is of what JSON has; else None.
    """

    key: str
    name: str
    version: str | None
    module: str
    code: str
    python: str
    arguments: dict[str, Any]
    status: JobStatus
    started: float | None
    ended: float
    duration: float | None
    usage: Usage | None
    attempts: int
    seed: tuple[Any, tuple[int, ...]] | None
    error_type: str | None
    error_text: str | None
    traceback: str | None
    output: str | None
    progress: dict[str, Any] | None
    size: int
    plain: str | None
    _number: int = dataclasses.field(repr=False)
    _content: tuple[bytes | bytearray, int] | None = dataclasses.field(repr=False)
    _fetch: Fetch | None = dataclasses.field(repr=False)

    def content(self) -> tuple[bytes | bytearray, int]:
        """Return what a worker has sent, and how many buffers that holds.

        Raises:
            LookupError: The row is not in the store any more, or was written anew.
            StoreError: It cannot be read.
        """
        if self._content is not None:
            return self._content
        if self._fetch is None:
            raise LookupError(f"row {self.key} of {self.name} has no result")
        return self._fetch(self.key, self._number)

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        """Return that as body and buffers; raises as `content`."""
        content, buffers = self.content()
        try:
            return parts_of(content, buffers)
        except struct.error as error:
            raise StoreError(f"the result of row {self.key} is damaged") from error

    @property
    def result(self) -> Any:
        """What the function returned, made anew each time: its pickle is loaded, which is code.

        Raises:
            JobCancelledError: The job was cancelled.
            SerializationError: It cannot be unpickled here.
            LookupError: The row is not in the store any more, or was written anew.
            StoreError: It cannot be read.
            BaseException: Whatever the function raised.
        """
        if self.status is JobStatus.CANCELLED:
            raise JobCancelledError(f"job {self.name} of row {self.key} was cancelled")
        body, views = self.parts()
        if self.status is JobStatus.ERROR:
            raise load_exception(body)
        return load_result(body, views, self)

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.ended))
        what = f"{self.error_type}: {self.error_text}" if self.error_type else self.plain or ""
        text = f"<StoredRow {self.key[:8]} {self.name}({told}) {self.status.name} {end}"
        return f"{text} {what[:80]}".rstrip() + ">"


COLUMNS = (
    "rows.key, rows.name, rows.version, codes.module, codes.hash, rows.python, rows.arguments, "
    "rows.status, rows.started, rows.ended, rows.duration, rows.usage, rows.attempts, rows.seed, "
    "rows.error_type, rows.error_text, rows.traceback, rows.output, rows.progress, rows.size, "
    "rows.plain"
)
_ARGUMENTS, _STATUS, _USAGE, _SEED, _PROGRESS = 6, 7, 11, 13, 18


def row_of(
    values: tuple[Any, ...], number: int, content: tuple[bytes, int] | None, fetch: Fetch | None
) -> StoredRow:
    """Make a row of what stands in `COLUMNS`, and of its number."""
    facts: list[Any] = list(values)
    facts[_ARGUMENTS] = json.loads(facts[_ARGUMENTS])
    facts[_STATUS] = JobStatus[facts[_STATUS]]
    if facts[_USAGE] is not None:
        facts[_USAGE] = Usage(*json.loads(facts[_USAGE]))
    if facts[_SEED] is not None:
        entropy, spawn_key = json.loads(facts[_SEED])
        facts[_SEED] = tuple(entropy) if isinstance(entropy, list) else entropy, tuple(spawn_key)
    if facts[_PROGRESS] is not None:
        facts[_PROGRESS] = json.loads(facts[_PROGRESS])
    made: Any = StoredRow  # of as many facts as it has columns
    return made(*facts, number, content, fetch)  # type: ignore[no-any-return]


__all__ = ["COLUMNS", "StoredRow", "row_of"]
