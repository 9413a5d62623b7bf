"""How the clocks of one machine go together."""

from __future__ import annotations

from time import monotonic, time

_CLOSE = 2e-6  # s between two looks at a clock, between which nothing else has happened


def to_wall_clock() -> float:
    """What the wall clock is ahead of the monotonic one, now, in seconds.

    Both cannot be read at once: where that took long, of four tries the quickest one counts.
    """
    before = monotonic()
    ahead = time() - before
    least = monotonic() - before
    if least < _CLOSE:
        return ahead
    for _ in range(3):
        before = monotonic()
        wall = time()
        took = monotonic() - before
        if took < least:
            least, ahead = took, wall - before
    return ahead


__all__ = ["to_wall_clock"]
