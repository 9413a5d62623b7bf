"""`report`: how far a job is, written into the page that its worker shares with the pool.

No message is sent, and nobody wakes up: who wants to know looks into the page. Two threads of a job
may report at a time: each report has a number, and so its slot; of the two that there are, the one
with the larger number counts.
"""

from __future__ import annotations

import itertools
import struct
from time import monotonic_ns

from .._wire import facts, notes
from .._wire.present import now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsFloat
else:
    SupportsFloat = float  # for `typing.get_type_hints`

MOST_MESSAGE = 200  # bytes
MOST_VALUES = 8
_MOST_NAMES = 400  # bytes
_NONE = float("nan")
_NO_VALUES = b"", b""
_MOST_KNOWN = 100
# By the names of values: as they are told, and what packs the values. Any thread adds to it.
_known_names: dict[tuple[str, ...], tuple[bytes, Callable[..., bytes]]] = {}

_numbers = itertools.count(1)
# What an attempt has in common comes as bytes that are packed once: each number that is packed
# takes as long as all bytes do.
_pack_attempt = struct.Struct("=QQd").pack  # the attempt, when its first fraction was, and that
_SHORT = struct.Struct("=Q24sdQQ6xQ")  # a `PROGRESS` of a fraction alone, and the number behind it
_pack_short = _SHORT.pack
_pack = struct.Struct("=Q24sdQQHHH").pack
_pack_number = notes.NUMBER.pack
# By its length: what packs a report with a message, and no values. Any thread sets one.
_packs: list[Callable[..., bytes] | None] = [None] * (MOST_MESSAGE + 1)
_PLACES = tuple(map(notes.progress_at, notes.SLOTS))
_SHORT_PLACES = tuple(slice(place, place + _SHORT.size) for place in _PLACES)


class _Reported:
    """What the present attempt has reported; replaced when another one reports."""

    __slots__ = ("at", "attempt", "begun", "fraction", "page", "tag")

    def __init__(self, attempt: int, page: memoryview) -> None:
        self.attempt = attempt
        self.page = page
        self.fraction = _NONE
        self.at = 0  # when that was
        self.begun = False  # whether there was a first fraction
        self.tag = _pack_attempt(max(0, attempt), 0, _NONE)


_reported = _Reported(-1, memoryview(b""))  # of no attempt, and not of what is none


def report(
    fraction: SupportsFloat | None = None, message: str = "", **values: SupportsFloat
) -> None:
    """Tell how far the job is, for `PrimitiveJob.progress`, `track` and all that show jobs.

    It takes about 1 us, sends no message, and wakes nobody up: so it may stand in an inner loop.
    Outside of a job, and in a process that a job has forked, it does nothing.

    Args:
        fraction: Of the job's work that is done, from 0 to 1; default None: as it was told before.
        message: What it is at, say; beyond 200 bytes it is cut off.
        **values: Up to 8 numbers to be shown, by name.

    Raises:
        TypeError: ``fraction`` or a value is no number, or ``message`` no str.
        ValueError: ``fraction`` is not from 0 to 1, or there are more values or longer names than
            can be told.
    """
    if fraction is not None:
        if type(fraction) is not float:
            fraction = as_number("fraction", fraction)
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must be from 0 to 1, not {fraction!r}")
    text = b"" if message == "" else _encoded(message)
    names, numbers = _named(values) if values else _NO_VALUES
    attempt, known = now.attempt, _reported
    if known.attempt != attempt:
        page = now.page
        if not attempt or page is None:
            return
        known = _first_of(attempt, page)
    at = fraction_at = monotonic_ns()
    if fraction is None:
        fraction, fraction_at = known.fraction, known.at
    else:
        known.fraction, known.at = fraction, at
        if not known.begun:
            known.begun, known.tag = True, _pack_attempt(attempt, at, fraction)
    number = next(_numbers)
    if not text and not names:
        known.page[_SHORT_PLACES[number & 1]] = _pack_short(
            number, known.tag, fraction, at, fraction_at, number
        )
        return
    place, tag = _PLACES[number & 1], known.tag
    if names:
        sizes = len(text), len(names), len(values)
        record = _pack(number, tag, fraction, at, fraction_at, *sizes)
        record += text + names + numbers + _pack_number(number)
    else:
        size = len(text)
        pack = _packs[size] or _pack_for(size)
        record = pack(number, tag, fraction, at, fraction_at, size, text, number)
    known.page[place : place + len(record)] = record


def as_number(name: str, value: object) -> float:
    """Return a real number of whatever type as a float; a text or a bool is a `TypeError`."""
    if isinstance(value, (str, bytes, bytearray, bool)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        return float(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None


def _first_of(attempt: int, page: memoryview) -> _Reported:
    global _reported
    _reported = known = _Reported(attempt, page)
    now.ending.append(_tell)
    return known


def _pack_for(size: int) -> Callable[..., bytes]:
    """Return what packs a report whose message has so many bytes, with the number behind it."""
    _packs[size] = pack = struct.Struct(f"=Q24sdQQH4x{size}sQ").pack
    return pack


def _tell(told: dict[int, bytes]) -> None:
    """At the end of the job: its last report goes along with its outcome."""
    page = now.page
    last = None if page is None else notes.newest_progress(page, now.attempt)
    if last is not None:
        told[facts.PROGRESS] = last


def _encoded(message: str) -> bytes:
    if not isinstance(message, str):
        raise TypeError(f"message must be a str, not {type(message).__name__}")
    try:
        text = message.encode()  # in half the time
    except UnicodeEncodeError:
        text = message.encode("utf-8", "replace")
    if len(text) > MOST_MESSAGE:
        text = text[:MOST_MESSAGE].decode("utf-8", "ignore").encode()
    return text


def _named(values: dict[str, SupportsFloat]) -> tuple[bytes, bytes]:
    """Return the names of values, and the values."""
    known = _known_names.get(keys := tuple(values))
    if known is None:
        known = _checked(values)
        if len(_known_names) < _MOST_KNOWN:
            _known_names[keys] = known
    names, pack = known
    try:
        return names, pack(*values.values())
    except struct.error:
        raise TypeError(f"the values of a report must be numbers, not {values!r}") from None


def _checked(values: dict[str, SupportsFloat]) -> tuple[bytes, Callable[..., bytes]]:
    if len(values) > MOST_VALUES:
        raise ValueError(f"at most {MOST_VALUES} values can be reported, not {len(values)}")
    names = "\0".join(values).encode("utf-8", "replace")
    if len(names) > _MOST_NAMES:
        raise ValueError(f"the names of values must have at most {_MOST_NAMES} bytes together")
    return names, struct.Struct(f"{len(values)}d").pack


__all__ = ["MOST_MESSAGE", "MOST_VALUES", "as_number", "report"]
