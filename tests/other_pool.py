"""A `BasePool` that is no `JobPool`, as far as anybody can see: another one does its work."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from primitive_jobs import BasePool, JobPool, PrimitiveJob, Timeline
from primitive_jobs._engine.record import JobRecord
from primitive_jobs._wire.parcel import Parcel
from primitive_jobs.snapshots import PoolSnapshot

if TYPE_CHECKING:
    from typing_extensions import Self


class Link:
    """Has what the protocol says, and nothing else; another pool does the work."""

    def __init__(self, pool: JobPool) -> None:
        self._to = pool._engine
        self.owner = os.getpid()
        self.of_parent = False
        self.seeds = None
        self.capacity = pool._engine.capacity
        self.enlisted: list[JobRecord] = []

    @property
    def accepting(self) -> bool:
        return self._to.accepting

    def check_open(self) -> None:
        self._to.check_open()

    def fail_early(self, record: JobRecord, failure: BaseException) -> None:
        self._to.fail_early(record, failure)

    def pack(self, body: bytes, buffers: list[memoryview], refers_to: tuple[Any, ...]) -> Any:
        return self._to.pack(body, buffers, refers_to)

    def repack(self, parcel: Parcel) -> Parcel:
        return self._to.repack(parcel)

    def enlist(self, record: JobRecord) -> None:
        self.enlisted.append(record)
        self._to.enlist(record)

    def ask_cancel(self, record: JobRecord, grace: float, *, queued_only: bool = False) -> None:
        self._to.ask_cancel(record, grace, queued_only=queued_only)

    def call_back(self, callback: Callable[[], object]) -> None:
        self._to.call_back(callback)

    def check_may_wait(self) -> None:
        self._to.check_may_wait()


class OtherPool(BasePool):
    """A pool with an engine that is not this package's own, as far as anybody can see."""

    def __init__(self, pool: JobPool) -> None:
        self._inner = pool
        self._link = self.link = Link(pool)
        self._options = pool._options

    def _worker_count(self) -> int:
        return self._inner._worker_count()

    def jobs(self) -> list[PrimitiveJob[Any]]:
        return self._inner.jobs()

    def snapshot(self) -> PoolSnapshot:
        return self._inner.snapshot()

    def timeline(self) -> Timeline:
        return self._inner.timeline()

    def cancel_all(self, *, grace: float | None = None) -> None:
        self._inner.cancel_all(grace=grace)

    def shutdown(self, wait: bool = True, *, cancel: bool = False) -> None:
        self._inner.shutdown(wait, cancel=cancel)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)


def make(max_workers: int | None = None, **options: Any) -> OtherPool:
    """Make one of what makes a `JobPool`; for the option ``--pool``."""
    return OtherPool(JobPool(max_workers, **options))
