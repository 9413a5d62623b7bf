"""Which worker stands where in a picture, and what is merged there.

A worker has a lane. One that begins when another has ended, on the same node, goes on in its lane:
so a pool of four has four lanes or a few more, however many of its workers were killed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..snapshots import Attempt, AttemptEnd
from .ends import LOOKS

Worker = tuple[str, int]  # its node, "" for this machine, and its pid


class Lane(NamedTuple):
    """A row of a picture.

    Attributes:
        node: Address of the Dask worker on whose machine its workers are; None: this one.
        pids: The process ids of its workers, one after the other.
        attempts: What they did, in order.
    """

    node: str | None
    pids: tuple[int, ...]
    attempts: tuple[Attempt, ...]


class Mark(NamedTuple):
    """What is drawn of one attempt, or of several that ended in the same way.

    Attributes:
        left: Where it begins.
        right: Where it ends.
        attempts: What it stands for.
    """

    left: float
    right: float
    attempts: list[Attempt]


def lanes_of(attempts: Iterable[Attempt]) -> tuple[Lane, ...]:
    """Return the lanes of attempts that are in the order in which they began."""
    workers: dict[Worker, list[Attempt]] = {}
    for attempt in attempts:
        workers.setdefault((attempt.node or "", attempt.pid), []).append(attempt)
    lanes: list[list[Worker]] = []
    busy: list[tuple[float, int]] = []  # when the last worker of a lane ends, and which lane
    free: dict[str, list[int]] = {}  # lanes by node, that which ended last at the end
    for worker, of_worker in workers.items():
        while busy and busy[0][0] <= of_worker[0].began:
            place = heapq.heappop(busy)[1]
            free.setdefault(lanes[place][0][0], []).append(place)
        if free.get(worker[0]):
            place = free[worker[0]].pop()
        else:
            place = len(lanes)
            lanes.append([])
        lanes[place].append(worker)
        heapq.heappush(busy, (max(attempt.ended for attempt in of_worker), place))
    lanes.sort(key=lambda lane: lane[0][0])  # stable: of a node, they stay in order
    return tuple(
        Lane(
            lane[0][0] or None,
            tuple(pid for _, pid in lane),
            tuple(attempt for worker in lane for attempt in workers[worker]),
        )
        for lane in lanes
    )


def marks_of(
    attempts: Iterable[Attempt], place: Callable[[float], float]
) -> dict[AttemptEnd, list[Mark]]:
    """Return what is to be drawn of a lane's attempts, by how they ended.

    Those narrower than a pixel, and less than a pixel from the one before that ended in the same
    way, are merged with it.

    Args:
        attempts: In order.
        place: Where a moment is in the picture, in pixels.
    """
    found: dict[AttemptEnd, list[Mark]] = {end: [] for end in LOOKS}
    for attempt in attempts:
        left, right = place(attempt.began), place(attempt.ended)
        marks = found[attempt.end]
        if right - left < 1 and marks:
            last = marks[-1]
            narrow = len(last.attempts) > 1 or last.right - last.left < 1
            if narrow and left - last.right < 1:
                last.attempts.append(attempt)
                marks[-1] = Mark(last.left, max(last.right, right), last.attempts)
                continue
        marks.append(Mark(left, right, [attempt]))
    return found


__all__ = ["Lane", "Mark", "lanes_of", "marks_of"]
