"""`chunk_jobs`: jobs of as many calls as their owner says, for executors and pools of other kinds.

`mapping` measures how many calls make a job; here that is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ._engine.standing import Met, unless_met
from ._wire.chunk import NUMBERS
from ._wire.rows import ChunkPacker, RowPacker
from ._wire.seeding import child
from .job import PrimitiveJob, record_of
from .mapping import job_of

if TYPE_CHECKING:
    from ._wire.seeding import Key


def chunk_jobs(
    function: Callable[..., Any],
    rows: Iterator[tuple[Any, ...]],
    columns: Sequence[Iterator[Any]],
    size: int,
    label: str,
    key: Key | None,
) -> Iterator[PrimitiveJob[Any]]:
    """Make the jobs of ``rows``, the arguments of one call each, which come from ``columns``.

    Those of one call return its result, those of a larger ``size`` what `reply_of` takes. If the
    rows end by an exception, what was taken for a chunk that is not full is lost with it.
    """
    packer = RowPacker(function, columns)
    start = 0
    if size == 1:
        for row in rows:
            job: PrimitiveJob[Any] = PrimitiveJob(function, *row)
            record_of(job).key = None if key is None else child(key, start)
            start += 1
            yield job
        return
    left: list[tuple[Any, ...]] = []  # rows that were taken, and are behind one that waits
    while True:
        chunk = packer.chunk()
        if packer.quiet:  # else they may change before they are packed
            left += itertools.islice(rows, size - len(left))
            alone, left = _add_all(chunk, left)
        else:
            alone = _add_each(chunk, itertools.islice(rows, size))
        parts = [chunk.end(start)]
        if alone is not None:
            chunk = packer.chunk(alone=True)
            chunk.add(alone, plain=False)
            parts.append(chunk.end(start + len(parts[0].rows)))
        parts = [part for part in parts if part.rows]
        if not parts:
            return
        for part in parts:
            calls = len(part.rows)
            yield job_of(part, f"{label}[{start}:{start + calls}]", key)
            start += calls


def _add_all(
    chunk: ChunkPacker, rows: list[tuple[Any, ...]]
) -> tuple[tuple[Any, ...] | None, list[tuple[Any, ...]]]:
    """Add the arguments of several calls; numbers, which travel as they are, at one go.

    Return the row that waits for a job, if one does, and those behind it.
    """
    numbers = NUMBERS.issuperset(map(type, itertools.chain.from_iterable(rows)))
    if not numbers:
        behind = iter(rows)
        alone = _add_each(chunk, behind)
        return alone, [*behind]
    place = 0
    while place < len(rows):
        chunk.add_or_refuse(rows[place])
        place += 1
        if chunk.free:
            just = rows[place : place + chunk.free]
            chunk.rows += just
            place += len(just)
    return None, []


def _add_each(chunk: ChunkPacker, rows: Iterator[tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """Add the arguments of several calls; return those that wait for a job, and stop there."""
    for row in rows:
        try:
            unless_met(chunk.add_or_refuse, row)
        except Met:
            return row
    return None


__all__ = ["chunk_jobs"]
