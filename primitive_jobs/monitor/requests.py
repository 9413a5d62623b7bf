"""What a viewer may ask a pool: one function a request, and the table `REQUESTS` of them.

Each gets the exchange, which it answers now or later, once; and what was asked. What it raises ends
the connection. All of it is the dispatcher's thread's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ..snapshots import Counts, JobInfo, PoolSnapshot, Progress
from ..status import JobStatus
from .protocol import MOST_QUEUED, VERSION, pages

_MOST_FOUND = 10  # jobs that an ambiguous id is told to be of
_LONGEST_NAME = 200  # characters
_LONGEST_LINE = 400  # of a stack
_MOST_OUTPUT = 64 << 10  # bytes of output in one answer
_PIECE = 4 << 10  # bytes of a row: as JSON it may be six times as long
END_OF_STACK = "\0"  # behind one that is complete


class Job(Protocol):
    """One job, as a pool shows it."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> JobStatus | None:
        """What it is now; None: it is over, and how is not known any more."""

    @property
    def pid(self) -> int | None: ...
    @property
    def node(self) -> str | None: ...
    @property
    def over(self) -> bool: ...


class Output(Protocol):
    """A piece of what a job has printed."""

    @property
    def path(self) -> str | None:
        """The file that it prints to; None: none, and it is kept."""

    @property
    def start(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def over(self) -> bool: ...


class Pending(Protocol):
    """What will be answered later."""

    def finish(self) -> None:
        """Answer now, if that is possible: the pool ends."""

    def drop(self) -> None:
        """Nobody waits for the answer any more."""


class Pool(Protocol):
    """What is shown of a pool, and done there; none of it blocks."""

    @property
    def max_workers(self) -> int:
        """Most jobs that run at a time."""
        ...

    def look(self, most: int) -> PoolSnapshot:
        """Return counts, all running jobs, and the first ``most`` that wait."""
        ...

    def find(self, prefix: str, most: int) -> Iterable[Job]:
        """Return the jobs whose id begins so, at most so many."""
        ...

    def cancel(self, job_id: str, done: Callable[[Any], None]) -> Pending | None:
        """Cancel a job; ``done`` is called with it when it is final. None: it is not there."""
        ...

    def ask_stack(self, job_id: str, *, deep: bool, force: bool) -> str:
        """Ask a running job for its stack; return why that is not done, or "": it is."""
        ...

    def stack(self, job_id: str) -> str | None:
        """Return what it has written of that; None: it does not run any more."""
        ...

    def output(self, job_id: str, place: int, most: int) -> Output | None:
        """Return at most so many bytes of what a job has printed, from a place on.

        None: that is not known, or not any more.
        """
        ...


class Exchange(Protocol):
    """One request of one viewer, which is still to be answered."""

    @property
    def pool(self) -> Pool:
        """Who is asked."""
        ...

    def answer(
        self, answer: Mapping[str, object], rows: Iterable[Mapping[str, object]] = ()
    ) -> None:
        """Answer it."""

    def answer_later(self, pending: Pending) -> None:
        """Say who will answer it."""

    def answer_with_snapshot(self) -> None:
        """Answer it with the snapshot that all viewers get."""


def _snapshot(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    """What the pool has now."""
    del asked
    exchange.answer_with_snapshot()


def snapshot_pages(kind: str, pool: Pool) -> list[bytes]:
    """Return what a pool has now, as the answer to each viewer."""
    shot = pool.look(MOST_QUEUED)
    head = {
        "version": VERSION,
        "pid": os.getpid(),
        "kind": kind,
        "max_workers": pool.max_workers,
        "counts": _named(shot.counts),
    }
    return pages(head, map(_row, shot.jobs))


def _row(job: JobInfo) -> dict[str, object]:
    row = _named(job)
    row["name"], row["status"] = job.name[:_LONGEST_NAME], job.status.name
    row["progress"] = None if job.progress is None else _named(job.progress)
    return row


def _named(values: Counts | JobInfo | Progress) -> dict[str, object]:
    """Return a named tuple as a dict; its own method takes twice as long."""
    return dict(zip(type(values).__match_args__, values, strict=True))


def _find(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    """The jobs whose id begins in some way."""
    found = exchange.pool.find(_id_in(asked), _MOST_FOUND)
    exchange.answer({}, [_told(job) for job in found])


def _cancel(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    """Cancel the one job whose id begins in some way; answered when that is final."""
    found = list(exchange.pool.find(_id_in(asked), 2))
    if len(found) > 1:
        exchange.answer({"error": "more than one job has an id that begins so"})
        return
    if found and not found[0].over:
        before = _told(found[0])
        pending = exchange.pool.cancel(
            found[0].id,
            lambda job: exchange.answer({"job": _told(job), "was": before["status"]}),
        )
        if pending is not None:
            exchange.answer_later(pending)
            return
    exchange.answer({"job": _told(found[0]) if found else None, "was": None})


def _ask_stack(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    """Have a running job write its stack; whoever asks looks for it afterwards, with "stack"."""
    deep, force = asked.get("deep") is True, asked.get("force") is True
    why = exchange.pool.ask_stack(_id_in(asked), deep=deep, force=force)
    exchange.answer({"error": why} if why else {})


def _stack(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    """What there is of it, a row a line."""
    try:
        text = exchange.pool.stack(_id_in(asked))
    except OSError as error:
        exchange.answer({"error": f"it cannot be read: {error}"})
        return
    if text is None:
        exchange.answer({"error": "it is not running any more"})
        return
    lines = text.partition(END_OF_STACK)[0].splitlines()
    rows = [{"line": line[:_LONGEST_LINE]} for line in lines]
    exchange.answer({"complete": END_OF_STACK in text}, rows)


def _output(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    """What a job has printed from a place on, in rows of bytes as text, and where that begins."""
    place = asked.get("place")
    if type(place) is not int or place < 0:
        raise ValueError("no place was given")
    found = exchange.pool.output(_id_in(asked), place, _MOST_OUTPUT)
    if found is None:
        exchange.answer({"error": "what it prints is not kept: see the option output of jobs"})
        return
    pieces = [found.data[i : i + _PIECE] for i in range(0, len(found.data), _PIECE)]
    head = {"path": found.path, "start": found.start, "over": found.over}
    exchange.answer(head, [{"bytes": piece.decode("latin-1")} for piece in pieces])


def _told(job: Job) -> dict[str, object]:
    return {
        "id": job.id,
        "name": job.name[:_LONGEST_NAME],
        "status": None if job.status is None else job.status.name,
        "over": job.over,
        "pid": job.pid,
        "node": job.node,
    }


def _id_in(asked: Mapping[str, Any]) -> str:
    job_id = asked.get("id")
    if not isinstance(job_id, str) or not job_id:
        raise ValueError("no id was given")
    return job_id


REQUESTS: dict[str, Callable[[Exchange, Mapping[str, Any]], None]] = {
    "snapshot": _snapshot,
    "find": _find,
    "cancel": _cancel,
    "ask stack": _ask_stack,
    "stack": _stack,
    "output": _output,
}

__all__ = ["REQUESTS", "Exchange", "Pending", "Pool", "snapshot_pages"]
