"""`Progress`: what a job has reported of itself."""

from __future__ import annotations

import math
import struct
import time

from .._wire.notes import PROGRESS
from ..snapshots import Progress


def progress_of(
    record: bytes | None, shift: float = 0.0, until: float | None = None
) -> Progress | None:
    """Return what a worker has noted; None: nothing, or what foreign code has written there.

    Args:
        record: As `notes.PROGRESS` says.
        shift: What the clock there has to be put forward by to be the one here, in s.
        until: When the job ended, on the monotonic clock; None: it runs.
    """
    if record is None:
        return None
    try:
        _, _, first_at, first, fraction, at, fraction_at, *sizes = PROGRESS.unpack_from(record)
        message_size, names_size, count = sizes
        place = PROGRESS.size
        message = record[place : place + message_size].decode("utf-8", "replace")
        place += message_size
        names = record[place : place + names_size].decode("utf-8", "replace").split("\0")
        values = struct.unpack_from(f"{count}d", record, place + names_size)
    except struct.error:
        return None
    now = (time.monotonic() if until is None else until) - shift
    known = None if math.isnan(fraction) else fraction
    eta: float | None = None
    if known is not None and until is None and known > first:
        pace = (fraction_at - first_at) * 1e-9 / (known - first)
        eta = max(0.0, pace * (1 - known) - (now - fraction_at * 1e-9))
    told = dict(zip(names, values, strict=False)) if count else {}
    return Progress(known, message, told, max(0.0, now - at * 1e-9), eta)


__all__ = ["Progress", "progress_of"]
