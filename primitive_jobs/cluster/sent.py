"""What a pool sends to the cluster's scheduler and to Dask's workers: the code itself, by value.

It is pickled by value, since a scheduler need not have this package, and a worker that lacks it
shall be able to say so: a reference to a module that is missing there would be read by nobody. So
what is here, and what it uses of `reach`, names nothing of this package but each other, and says
that it is of ``__main__``, which has no such name: so pickle does not refer to it.
"""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import types
from typing import Any

from distributed import SchedulerPlugin

from .reach import connect, shake_hands


async def place(pool: str, slot: int, number: int, versions: dict[str, str]) -> None:
    """Be the place of a worker: the function of a Dask task."""
    from primitive_jobs.cluster.node import hold_place

    await hold_place(pool, slot, number, versions)


class PoolPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Serves all pools of a cluster, on the event loop of its scheduler.

    It carries on what nodes have to say to pools (`place`) and, where a pool cannot reach them,
    connections (`relay`). It goes with the last pool.

    Args:
        name: Its own, with which the names of its handlers begin.
    """

    idempotent = True

    def __init__(self, name: str) -> None:
        self.name = name

    async def start(self, scheduler: Any) -> None:
        """Begin."""
        self.scheduler = scheduler
        self.news: dict[str, Any] = {}  # a queue for each pool that watches
        self.nodes: dict[tuple[str, int], str] = {}  # where places are held
        for each in ("watch", "place", "relay"):
            scheduler.handlers[f"{self.name}-{each}"] = getattr(self, each)

    def _end(self) -> None:
        for each in ("watch", "place", "relay"):
            self.scheduler.handlers.pop(f"{self.name}-{each}", None)
        self.scheduler.plugins.pop(self.name, None)

    def _threads(self, without: str = "") -> int:
        workers = self.scheduler.workers.items()
        return sum(worker.nthreads for address, worker in workers if address != without)

    def _tell_threads(self, without: str = "") -> None:
        total = self._threads(without)
        for queue in self.news.values():
            queue.put_nowait({"threads": total})

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Tell how many threads there are now."""
        del scheduler, worker
        self._tell_threads()

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Tell how many threads there are now."""
        del scheduler
        self._tell_threads(worker)

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Let no node go that holds a place."""
        del scheduler
        held = set(self.nodes.values())
        return [worker for worker in workers if worker.address not in held]

    def transition(self, key: Any, start: str, *_: Any, **kwargs: Any) -> None:
        """Take in that a place is held no more."""
        del kwargs
        if start == "processing" and isinstance(key, str) and key.startswith(self.name):
            pool, sep, number = key.removeprefix(f"{self.name}-place-").rpartition("-")
            del sep
            self.nodes.pop((pool, int(number)), None)

    async def watch(self, comm: Any, pool: str) -> Any:
        """Tell a pool what concerns it, until it goes."""
        import asyncio

        from distributed.core import Status

        queue: Any = asyncio.Queue()
        self.news[pool] = queue
        queue.put_nowait({"threads": self._threads()})
        gone = asyncio.ensure_future(comm.read())
        try:
            while not gone.done():
                next_one = asyncio.ensure_future(queue.get())
                await asyncio.wait((gone, next_one), return_when=asyncio.FIRST_COMPLETED)
                if next_one.done():
                    await comm.write(next_one.result())
                else:
                    next_one.cancel()
        except OSError:
            pass  # it is gone
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            comm.abort()
            self.news.pop(pool, None)
            for key in [key for key in self.nodes if key[0] == pool]:
                del self.nodes[key]
            if not self.news:
                self._end()
        return Status.dont_reply

    async def place(self, pool: str, slot: int, number: int, node: str) -> bool:
        """Take in that a node holds a place; return whether its pool is there."""
        queue = self.news.get(pool)
        task = self.scheduler.tasks.get(f"{self.name}-place-{pool}-{number}")
        holder = None if task is None else task.processing_on
        # A node that was taken for dead may be late: the place is another's by now.
        if queue is None or holder is None or holder.address != node:
            return False
        self.nodes[pool, number] = node
        queue.put_nowait({"slot": slot, "number": number, "node": node})
        return True

    async def relay(self, comm: Any, node: str, timeout: float) -> Any:
        """Carry a connection on to a node; first answer whether it is reached."""
        import asyncio

        from distributed.core import Status

        try:
            arguments = self.scheduler.connection_args
            other = await connect(node, timeout, deserialize=False, **arguments)
        except OSError as error:
            causes: list[Any] = [error]
            while causes[-1] is not None and len(causes) < 9:
                causes.append(causes[-1].__cause__ or getattr(causes[-1], "real_error", None))
            refused = any(isinstance(cause, ConnectionRefusedError) for cause in causes)
            return {"refused": refused, "error": str(error)}
        await comm.write({"error": None})

        async def carry(one: Any, two: Any) -> None:
            while True:
                await two.write(await one.read())

        ways = [asyncio.ensure_future(carry(*pair)) for pair in ((comm, other), (other, comm))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            other.abort()
            comm.abort()
            await asyncio.gather(*ways, return_exceptions=True)
        return Status.dont_reply


for _sent in (place, connect, shake_hands, PoolPlugin, *vars(PoolPlugin).values()):
    if isinstance(_sent, type | types.FunctionType):
        _sent.__module__ = "__main__"

__all__ = ["PoolPlugin", "place"]
