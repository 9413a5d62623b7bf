"""A timeline as a trace for the viewers of Chrome and Perfetto.

The format: "Trace Event Format", JSON object format. A node is a process there, a lane a thread, an
attempt a complete event (``X``), the memory a counter (``C``). Times are in us since the first
attempt began; `otherData` says when that was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..snapshots import Attempt, AttemptEnd
from .lanes import Lane
from .memory import levels_of
from .runs import Runs
from .words import moment, printable

# Names that chrome://tracing has for its colours; Perfetto takes its own, by the events' names.
_COLOURS: dict[AttemptEnd, str] = {
    "returned": "good",
    "raised": "bad",
    "cancelled": "grey",
    "timeout": "terrible",
    "memory": "terrible",
    "died": "terrible",
    "running": "thread_state_running",
}


def trace(runs: Runs) -> str:
    """Return the trace as JSON."""
    nodes = list(dict.fromkeys(lane.node for lane in runs.lanes))
    numbers = {node: number for number, node in enumerate(nodes, 1)}
    events = [*_names(runs, numbers), *_sorted_events(runs, numbers)]
    facts = {
        "pool": printable(runs.pool),
        "began": moment(runs.since),
        "began_at": runs.since,
        "left_out": runs.left_out,
        "worker_seconds": {end: total.seconds for end, total in runs.totals.items()},
        "attempts": {end: total.attempts for end, total in runs.totals.items()},
    }
    whole = {"displayTimeUnit": "ms", "otherData": facts, "traceEvents": events}
    return json.dumps(whole, separators=(",", ":"), allow_nan=False) + "\n"


def _names(runs: Runs, numbers: dict[str | None, int]) -> Iterator[dict[str, Any]]:
    """The names of nodes and lanes, and their order."""
    for node, number in numbers.items():
        where = "this machine" if node is None else printable(node)
        name = f"{printable(runs.pool)}: {where}"
        yield _meta("process_name", number, 0, name=name)
        yield _meta("process_sort_index", number, 0, sort_index=number)
    for place, lane in enumerate(runs.lanes, 1):
        number = numbers[lane.node]
        kind = "worker" if len(lane.pids) == 1 else "workers"
        more = len(lane.pids) - 3
        pids = ", ".join(map(str, lane.pids[:3])) + (f" and {more} more" if more > 0 else "")
        yield _meta("thread_name", number, place, name=f"{kind} {pids}")
        yield _meta("thread_sort_index", number, place, sort_index=place)


def _meta(kind: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": args}


def _sorted_events(runs: Runs, numbers: dict[str | None, int]) -> list[dict[str, Any]]:
    since = runs.since
    events = [
        event
        for place, lane in enumerate(runs.lanes, 1)
        for event in _slices(lane, numbers[lane.node], place, since)
    ]
    for node, number in numbers.items():
        attempts = [attempt for attempt in runs.attempts if attempt.node == node]
        samples = [sample for sample in runs.memory if sample.node == node]
        for at, held in levels_of(attempts, samples):
            event = {"name": "memory where it is known", "ph": "C", "ts": _us(at - since)}
            events.append({**event, "pid": number, "tid": 0, "args": {"bytes": held}})
    return sorted(events, key=lambda event: float(event["ts"]))


def _slices(lane: Lane, pid: int, tid: int, since: float) -> Iterator[dict[str, Any]]:
    attempts = lane.attempts
    for place, attempt in enumerate(attempts):
        ended = attempt.ended
        if place + 1 < len(attempts):  # viewers want no overlap, however little
            ended = max(attempt.began, min(ended, attempts[place + 1].began))
        began = _us(attempt.began - since)
        yield {
            "name": printable(attempt.name) or "(no name)",
            "cat": attempt.end,
            "ph": "X",
            "ts": began,
            "dur": _us(ended - since) - began,
            "pid": pid,
            "tid": tid,
            "cname": _COLOURS[attempt.end],
            "args": _args(attempt),
        }


def _args(attempt: Attempt) -> dict[str, Any]:
    args: dict[str, Any] = {"end": attempt.end, "pid": attempt.pid, "attempt": attempt.attempt}
    if attempt.reason:
        args["reason"] = printable(attempt.reason)
    if attempt.memory is not None:
        args["memory_bytes"] = attempt.memory
    if attempt.node is not None:
        args["node"] = printable(attempt.node)
    return args


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


__all__ = ["trace"]
