"""`map` hands out a result before it waits for items that come slowly."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from primitive_jobs import JobPool, mapping

BLOCKED = 5.0  # s after which an iterable goes on that should not have been asked


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, a result that comes is waited for."""
    monkeypatch.setattr(mapping, "RESULT_FIRST", 30.0)


class SlowItems:
    """Each item but the first comes only when the result of the one before was received."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.received = [threading.Event() for _ in range(count)]
        self.in_time: list[bool] = []

    def __iter__(self) -> Iterator[int]:
        for i in range(self.count):
            if i:
                self.in_time.append(self.received[i - 1].wait(BLOCKED))
                threading.Event().wait(mapping.TARGET)  # slow by itself, too
            yield i


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [None, 1])
def test_a_result_comes_before_the_next_item_is_asked_for(
    pool: JobPool, chunksize: int | None, ordered: bool
) -> None:
    items = SlowItems(4)
    results = pool.map(abs, items, chunksize=chunksize, ordered=ordered)
    for i in range(4):
        assert next(results) == i
        items.received[i].set()
    assert list(results) == []
    assert items.in_time == [True] * 3


def test_items_that_come_at_once_are_not_held_up(pool: JobPool) -> None:
    """With the patience of this module, it would take minutes to wait before each."""
    assert list(pool.map(abs, range(2000), chunksize=1)) == list(range(2000))
    assert list(pool.map(abs, (i for i in range(2000)))) == list(range(2000))
