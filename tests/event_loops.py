"""What the tests of asyncio and of trio share: a job to stop, and kills that would block a loop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import PATIENCE, gone, hold_with_child, pids_in

from primitive_jobs import PrimitiveJob
from primitive_jobs._procs.process import WorkerProcess

if TYPE_CHECKING:
    import pytest


class Family:
    """A job that runs for ever, with a child of its own."""

    def __init__(self, pool: Any, folder: Path, name: str = "pids") -> None:
        self.job: PrimitiveJob[None] = pool.submit(hold_with_child, folder / "never", folder / name)
        self.pids = pids_in(folder / name)

    def is_gone(self) -> bool:
        return all(gone(pid) for pid in self.pids)


@contextlib.contextmanager
def kills_that_need(alive: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process is killed before ``alive`` is set: whoever should set it must not be blocked."""
    end = WorkerProcess.end

    def slow_end(process: WorkerProcess, **options: Any) -> Any:
        assert alive.wait(PATIENCE), "what would have set it was held up by the kill"
        return end(process, **options)

    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "end", slow_end)
        try:
            yield
        finally:
            alive.set()


def threads_of_pools() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("primitive_jobs")]
