"""`JobExecutor(cancel_running=...)`: what a future's cancel does with a call that runs."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import PATIENCE, hold, until

from primitive_jobs import JobCancelledError

if TYPE_CHECKING:
    from makers import MakeExecutor


def test_false_leaves_what_runs_and_cancels_what_waits(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with make_executor(1, cancel_running=False) as executor:
        running = executor.submit(hold, gate, "done")
        waiting = [executor.submit(abs, -n) for n in range(50)]
        until(running.running, "it runs")
        start = time.monotonic()
        assert [future.cancel() for future in waiting] == [True] * 50
        assert running.cancel() is False
        assert time.monotonic() - start < PATIENCE / 3
        assert running.running()
        gate.touch()
        assert running.result(PATIENCE) == "done"
        assert running.cancel() is False, "it is over"
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_seconds_let_it_end_and_stop_it_if_it_does_not(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with make_executor(2, cancel_running=0.5) as executor:
        soon, never = executor.submit(hold, gate, "done"), executor.submit(time.sleep, 1000)
        until(lambda: soon.running() and never.running(), "both run")
        start = time.monotonic()
        assert not soon.cancel()
        assert not never.cancel()
        assert time.monotonic() - start < 0.4, "nobody waits for it"
        gate.touch()
        assert soon.result(PATIENCE) == "done"
        with pytest.raises(JobCancelledError):
            never.result(PATIENCE)
        assert time.monotonic() - start >= 0.5
        assert never.cancelled()
        assert not soon.cancelled()


def test_many_at_a_time_end_together(make_executor: MakeExecutor) -> None:
    with make_executor(4, cancel_running=0.2) as executor:
        futures = [executor.submit(time.sleep, 1000) for _ in range(4)]
        until(lambda: all(future.running() for future in futures), "all run")
        assert not any(future.cancel() for future in futures)
        assert not wait(futures, PATIENCE).not_done
        assert all(future.cancelled() for future in futures)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_map_that_is_left(make_executor: MakeExecutor, tmp_path: Path, chunksize: int) -> None:
    gate = tmp_path / "gate"

    def mark(number: int) -> int:
        if number:
            hold(gate)
            (tmp_path / f"{number}").touch()
        return number

    with make_executor(1, cancel_running=False) as executor:
        results = executor.map(mark, range(0 if chunksize == 1 else 1, 40), chunksize=chunksize)
        if chunksize == 1:
            assert next(results) == 0
        until(lambda: executor._pool.snapshot().counts.running == 1, "one runs")  # type: ignore[union-attr]
        results.close()  # type: ignore[attr-defined]
        gate.touch()
    made = {path.name for path in tmp_path.iterdir()} - {"gate"}
    assert "1" in made, "it was left to end"
    assert len(made) <= 2 * chunksize, "the others were cancelled"


def test_a_task_that_is_cancelled_leaves_it(make_executor: MakeExecutor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        with make_executor(1, cancel_running=False) as executor:
            future = executor.submit(hold, gate, "done")
            task = asyncio.ensure_future(asyncio.wrap_future(future))
            until(future.running, "it runs")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.touch()
            assert future.result(PATIENCE) == "done"

    asyncio.run(main())


def test_what_ends_all_ends_these_too(make_executor: MakeExecutor) -> None:
    with make_executor(1, cancel_running=False) as executor:
        future = executor.submit(time.sleep, 1000)
        until(future.running, "it runs")
        executor.kill_workers()
        assert not wait([future], PATIENCE).not_done
        assert future.cancelled()
