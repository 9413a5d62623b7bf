"""The layers of a `map`: those that are large, and functions that a worker cannot find."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Iterator

import cloudpickle
import pytest

from primitive_jobs import JobExecutor, JobPool, SerializationError
from primitive_jobs._wire.rows import RowPacker

TABLE = [float(i) for i in range(10_000)]  # its pickle takes 90 KB


def look_up(table: list[float], place: tuple[int]) -> float:
    return table[place[0]]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_large_layer_goes_once_for_a_chunk(*, quiet: bool) -> None:
    """Also where somebody may change it, or rows refer to what is in it."""
    places = [(i,) for i in range(20)]
    items: Iterator[tuple[int]] = iter(places) if quiet else (place for place in places)
    run = RowPacker(look_up, [itertools.repeat(TABLE), items])
    for start in (0, 10):
        chunk = run.chunk()
        sizes = [chunk.add((TABLE, next(items)), plain=False) for _ in range(10)]
        assert max(sizes) < 1000
        assert not run.moving
        assert len(chunk.end(start).parts) == 1


def test_a_function_that_no_worker_finds(one: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `map` raises is what `submit` raises, whatever the size of a chunk."""
    ghost = types.ModuleType("ghost")
    exec("def double(x): return 2 * x", ghost.__dict__)
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    # As in a program that has none of its modules pickled by value.
    monkeypatch.setattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", set())
    error = one.submit(ghost.double, 1).exception()
    assert isinstance(error, SerializationError)
    for size in (1, 2, None):
        with pytest.raises(SerializationError, match="No module named 'ghost'") as raised:
            list(one.map(ghost.double, range(4), chunksize=size))
        assert str(raised.value) == str(error)
    with JobExecutor(pool=one) as executor, pytest.raises(SerializationError):
        list(executor.map(ghost.double, range(4), chunksize=2))
