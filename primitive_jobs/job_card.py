"""What a notebook shows of a job."""

from __future__ import annotations

import time
from typing import Any

from ._common.markup import seconds, table
from ._engine.tracker import StatusTracker
from .status import JobStatus


def card_of(job: Any, tracker: StatusTracker) -> str:
    """Return a job as HTML: its name, state and times."""
    walk, spans = tracker.history(), tracker.spans()
    spent = dict.fromkeys(JobStatus, 0.0)  # s
    for status, lasted in spans:
        spent[status] += lasted
    last = walk[-1][0]
    rows = [("id", job.job_id())]
    if len(walk) > 1 and walk[1][0] is not JobStatus.CANCELLED:
        submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(walk[1][1]))
        rows += [
            ("submitted", submitted),
            ("waited", seconds(spent[JobStatus.QUEUED])),
            ("ran", seconds(spent[JobStatus.RUNNING])),
            ("took", seconds(sum(lasted for _, lasted in spans[1:]))),
        ]
    pid = job.pid
    if pid is not None:
        node = job.node
        rows.append(("worker", f"process {pid}" if node is None else f"process {pid} on {node}"))
    failure = tracker.failure(job)
    state = last.name if failure is None else f"ERROR {failure}"
    return table(type(job).__name__, job.name, state, rows)


__all__ = ["card_of"]
