"""How much memory was held, as far as that is known.

Of an attempt with a memory limit it was measured again and again; of others no more is known than
the most, or nothing. So this is what the attempts held together of which something is known.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from ..snapshots import Attempt, MemorySample

Level = tuple[float, int]  # from when on, and how many bytes


def levels_of(attempts: Iterable[Attempt], samples: Sequence[MemorySample]) -> list[Level]:
    """Return how much attempts held together, as steps in the order of time."""
    changes: dict[float, int] = {}
    by_worker: dict[tuple[str | None, int], list[MemorySample]] = {}
    for sample in samples:
        by_worker.setdefault((sample.node, sample.pid), []).append(sample)
    for attempt in attempts:
        of_worker = by_worker.get((attempt.node, attempt.pid), [])
        first = bisect.bisect_left(of_worker, attempt.began, key=_at)
        last = bisect.bisect_right(of_worker, attempt.ended, key=_at)
        steps = [(sample.at, sample.memory) for sample in of_worker[first:last]]
        if not steps and attempt.memory is not None:
            steps = [(attempt.began, attempt.memory)]
        held = 0
        for at, memory in [*steps, (attempt.ended, 0)]:
            changes[at] = changes.get(at, 0) + memory - held
            held = memory
    levels = []
    total = 0
    for at in sorted(changes):
        total += changes[at]
        if changes[at]:
            levels.append((at, total))
    return levels


def _at(sample: MemorySample) -> float:
    return sample.at


__all__ = ["Level", "levels_of"]
