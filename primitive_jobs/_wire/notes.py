"""What a worker and its pool share beside the channel: a page of memory, a name, a signal.

=============  ====================================================================================
where          what the worker notes there; nobody else writes
=============  ====================================================================================
0              `NOTES`: which attempt it is at, what is the matter, its first peak of memory
64             `PLACE`, 128 times: when an attempt began that was sent ahead, and which
2112           `PROGRESS`, twice: what a job has reported last, and what it had before
3904           `CHECKPOINT`, twice: where its last checkpoint is, and the one before
4032           `METER`: what the process had used when it was ready for the attempt
4064           `NUMBER`: of the checkpoint whose file is being written, or was last
=============  ====================================================================================
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import mmap
import struct
import sys

from .facts import USAGE_FORM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A worker writes each number in one aligned store, in the machine's own order. Whoever reads one
# meanwhile finds the one before, the one after, or 0: `struct` may clear the place first.
PAGE_SIZE = mmap.PAGESIZE  # bytes shared with the pool; the stack of its end follows behind them
NOTES = struct.Struct("QQQ")  # the attempt that began last, whether something else is the matter,
# and the peak memory (ru_maxrss) that the process started with
INITIALIZING, LINK_LOST = 1, 2  # of the second: the initializer runs; a job has taken its link
NUMBER = struct.Struct("Q")
PLACE = struct.Struct("QQ")  # when an attempt began, in ns of the monotonic clock; then which
PLACES = 128  # of these there are, in the page; attempts use them in turn
_FIRST_PLACE = 64  # where they begin
STACKS = 56  # where in the page the descriptor is, a NUMBER, by which the worker writes stacks that
# somebody asks for; 0: it cannot


def place_at(place: int) -> int:
    """Where in the page a place is."""
    return _FIRST_PLACE + place * PLACE.size


# What is longer than a number is written by one assignment of bytes, which begin and end with a
# number of their own, into two slots in turn. So a death in the middle leaves the one before; and
# who reads takes the newest that has the same number at both ends, before and after the reading.
SLOTS = (0, 1)
PROGRESS = struct.Struct("=QQQddQQHHH")
"""Number; attempt, when its first fraction was reported, in ns of the monotonic clock, and that
fraction; the last fraction (NaN: none); when anything was reported, and when that fraction was; how
many bytes follow of message and names, and how many values. Behind these the values, as floats, and
the number."""
PROGRESS_SIZE = 896
CHECKPOINT = struct.Struct("QQQQQQQ")
"""Number, attempt, which call of a chunk, bytes in the file, how many buffers they hold, how many
bytes the attempt's files hold; and the number. The slot says which of its two files it is in."""
_CHECKPOINT_SIZE = 64
_NOT_KNOWN = float("nan")
_PAIR = struct.Struct("QQ")
_TRIES = 100  # of a reader; a writer would have to write as often meanwhile
_FIRST_PROGRESS = _FIRST_PLACE + PLACES * PLACE.size
_FIRST_CHECKPOINT = _FIRST_PROGRESS + 2 * PROGRESS_SIZE
METER_AT = _FIRST_CHECKPOINT + 2 * _CHECKPOINT_SIZE
METER = struct.Struct("Qdd?")
"""The attempt that was over last; then s of CPU that the process had used when it was over, of
itself and those it has waited for: in user mode, and in the system; and whether its peak of memory
has begun anew since."""

WRITING_AT = 4064  # noted before the first byte of a checkpoint is written


def progress_at(slot: int) -> int:
    """Where in the page one of the two slots for progress is."""
    return _FIRST_PROGRESS + slot * PROGRESS_SIZE


def checkpoint_at(slot: int) -> int:
    """Where in the page one of the two slots for checkpoints is."""
    return _FIRST_CHECKPOINT + slot * _CHECKPOINT_SIZE


def used_at_death(
    page: memoryview, attempt: int, user: float, system: float, peak: int, exact: bool
) -> bytes | None:
    """Return what an attempt used in which its worker died: see `facts.USAGE_FORM`.

    Args:
        page: The worker's.
        attempt: That one.
        user: Seconds of CPU that the worker has used in all its life, in user mode.
        system: The same, in the system.
        peak: Bytes that it had at the most since its peak began anew.
        exact: Whether it alone is what the job was.
    """
    before, user_before, system_before, anew = METER.unpack_from(page, METER_AT)
    if before >= attempt:  # that was over
        return None
    spent = max(0.0, user - user_before), max(0.0, system - system_before)
    known = peak if anew else 0
    return USAGE_FORM.pack(_NOT_KNOWN, *spent, known, exact and known > 0)


def may_know_peak(page: memoryview, attempt: int) -> bool:
    """Whether the peak of memory that the system tells of a worker is that of an attempt."""
    # It is noted as begun only after the peak has begun anew.
    begun: bool = NUMBER.unpack_from(page)[0] == attempt
    return begun and bool(METER.unpack_from(page, METER_AT)[3])


def newest_progress(page: memoryview, attempt: int) -> bytes | None:
    """Return what an attempt has reported last, as `PROGRESS` says, without the number behind."""
    return _newest(page, attempt, progress_at, PROGRESS_SIZE, _progress_length)


def newest_checkpoint(page: memoryview, attempt: int) -> bytes | None:
    """Return what is noted of an attempt's last checkpoint, as `CHECKPOINT` says, but the end."""
    return _newest(page, attempt, checkpoint_at, CHECKPOINT.size, lambda _: CHECKPOINT.size)


def may_be_written_over(page: memoryview, number: int) -> bool:
    """Whether the file of a published checkpoint may have been changed, since the next but one was
    begun; to be asked after the file was read.
    """
    return int(NUMBER.unpack_from(page, WRITING_AT)[0]) > number + 1


def _progress_length(raw: bytes) -> int:
    *_, message, names, values = PROGRESS.unpack_from(raw)
    return int(PROGRESS.size + message + names + 8 * values + NUMBER.size)


def _newest(
    page: memoryview,
    attempt: int,
    place_of: Callable[[int], int],
    size: int,
    length_of: Callable[[bytes], int],
) -> bytes | None:
    for _ in range(_TRIES):
        best: bytes | None = None
        best_number, torn = 0, False
        for slot in SLOTS:
            place = place_of(slot)
            raw = bytes(page[place : place + size])
            number, of = _PAIR.unpack_from(raw)
            end = length_of(raw)
            again = NUMBER.unpack_from(page, place)[0]
            whole = end <= size and NUMBER.unpack_from(raw, end - NUMBER.size)[0] == number == again
            torn = torn or not whole
            if whole and of == attempt and number > best_number:
                best, best_number = raw[: end - NUMBER.size], number
        if best is not None or not torn:
            return best
    return None


NAME = "primitive_jobs"  # of the process, as ps and top show it: 15 bytes at most
STACK_SIGNAL: int | None = signal.SIGRTMAX if sys.platform == "linux" else None
"""What asks a worker for its Python stack right before it is killed; hardly anybody else's."""
LOOK_SIGNAL: int | None = None if STACK_SIGNAL is None else STACK_SIGNAL - 1
"""What asks it for that while its job goes on: Python answers, between two instructions."""
DEEP_LOOK_SIGNAL: int | None = None if STACK_SIGNAL is None else STACK_SIGNAL - 2
"""The same, in C: where a call in C does not let Python answer, and there alone."""
STACKS_NAME = "primitive_jobs-stacks"  # of the nameless file with the answers
END_OF_STACK = "\0"  # behind what Python has written

__all__ = [
    "CHECKPOINT",
    "DEEP_LOOK_SIGNAL",
    "END_OF_STACK",
    "INITIALIZING",
    "LINK_LOST",
    "LOOK_SIGNAL",
    "METER",
    "METER_AT",
    "NAME",
    "NOTES",
    "NUMBER",
    "PAGE_SIZE",
    "PLACE",
    "PLACES",
    "PROGRESS",
    "PROGRESS_SIZE",
    "SLOTS",
    "STACKS",
    "STACKS_NAME",
    "STACK_SIGNAL",
    "WRITING_AT",
    "checkpoint_at",
    "may_know_peak",
    "newest_checkpoint",
    "newest_progress",
    "place_at",
    "progress_at",
    "used_at_death",
]
