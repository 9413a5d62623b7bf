"""Failures are told of each pool, whatever other pools tell or do at that moment."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import until

from primitive_jobs import JobExecutor, JobFailuresWarning, JobPool
from primitive_jobs._engine import lifetime

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def diverge() -> NoReturn:
    raise ValueError("diverged")


@pytest.mark.parametrize("kind", [JobPool, JobExecutor])
def test_each_block_tells_though_they_say_the_same(kind: type[JobPool | JobExecutor]) -> None:
    """By default a warning is shown once for each line that gives it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            with kind(1) as pool:
                pool.submit(diverge)
    assert [one.category for one in caught] == [JobFailuresWarning] * 3
    assert {one.filename for one in caught} == {__file__}


class _Changing:
    """The set of pools, to which another thread adds while it is looked through, at first."""

    def __init__(self, pools: Any) -> None:
        self._pools = pools
        self.changes = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pools, name)

    def __iter__(self) -> Iterator[Any]:
        yield from self._pools
        if self.changes:
            self.changes -= 1
            raise RuntimeError("Set changed size during iteration")


def test_one_that_dies_while_pools_come_and_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "primitive_jobs")
    pool = JobPool(1)
    jobs = [pool.submit(print, threading.Lock()) for _ in range(2)]
    changing = _Changing(lifetime.pools)
    monkeypatch.setattr(lifetime, "pools", changing)
    jobs.pop()  # unread
    assert not changing.changes
    monkeypatch.undo()
    until(lambda: "nobody looked at it" in caplog.text, "the record")
    jobs.pop().exception()
    pool.shutdown(wait=False)
    pool._engine.join()
