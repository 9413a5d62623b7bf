"""`Usage`: the time and memory that an attempt took."""

from __future__ import annotations

from typing import NamedTuple

from .._wire.facts import USAGE_FORM


class Usage(NamedTuple):
    """What the last attempt of a job used, it alone, in a worker that is used again and again.

    Attributes:
        wall: Seconds from its begin to its end.
        user: Seconds of CPU in user mode, of the process and of children that it has waited for;
            None: not known. Of a job below 1 ms it is not measured.
        system: The same, in the system.
        peak_memory: Bytes of resident memory at the most, of the process alone; None: not known.
        exact: Whether that is all: False where the job has left children, whose time nobody has
            waited for, where its process died by somebody else's doing, and where the system does
            not tell (/proc is missing, say, or the process may not be looked at).
    """

    wall: float
    user: float | None
    system: float | None
    peak_memory: int | None
    exact: bool


def usage_of(fact: bytes) -> Usage:
    """Return what a worker has told; raises `struct.error` where that is nothing of the kind."""
    wall, user, system, peak, exact = USAGE_FORM.unpack(fact)
    return Usage(wall, user, system, peak or None, exact)


__all__ = ["Usage", "usage_of"]
