"""`Agent`: what stands beside a Dask worker and holds the processes of pools there.

The first place that a pool gets on a Dask worker makes it, as a plugin of that worker. All of it
runs on the worker's event loop; a `Session` for each pool has threads of its own.

A *place* is a Dask task that waits: it holds one of the worker's threads, as Dask counts them, for
as long as a process of ours uses it. Where the task is released, or its worker closes, the process
is killed; where other tasks wait for the thread, the pool is asked to let the process leave.
"""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from distributed.core import Status

from .frames import ATTACH, PLACE, PREFIX, SESSION_END, listed, place_key, versions
from .line import Frame, Line
from .session import Session, cpu_count

_SLICE = 1.0  # s that a place is held before others that wait for it may have it


class _Place:
    """A place that is held here."""

    __slots__ = ("asked", "over", "pool", "since", "slot")

    def __init__(self, pool: str, slot: int) -> None:
        self.pool = pool
        self.slot = slot
        self.over = asyncio.get_running_loop().create_future()
        self.since = time.monotonic()
        self.asked = False  # the pool was told that others want it

    def end(self) -> None:
        """Have it held no more."""
        if not self.over.done():
            self.over.set_result(None)


class _Served:
    """A pool that is served over a connection, until nothing of it is left here.

    Attributes:
        number: Of the connection among the pool's to this node.
        early: Frames that have overtaken a long configuration.
        over: Set when nothing is left.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.line: Line | None = None
        self.session: Session | None = None  # once its configuration has come
        self.early: list[Frame] = []
        self.over = asyncio.Event()

    def end(self) -> None:
        """End the connection, and all workers; again is harmless."""
        if self.line is not None:
            self.line.abort()
        if self.session is not None:
            self.session.end()


class Agent(WorkerPlugin):  # type: ignore[misc]
    """The plugin.

    Args:
        worker: The Dask worker.
    """

    name = f"{PREFIX}-agent"

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._places: dict[str, _Place] = {}  # by the key of the task
        self._served: dict[str, _Served] = {}
        self._looking = False  # whether somebody waits for a place

    @property
    def address(self) -> str:
        """Where the worker is reached."""
        return str(self._worker.contact_address or self._worker.address)

    def setup(self, worker: Worker) -> None:
        """Begin."""
        worker.handlers[ATTACH] = self.attach
        worker.handlers[SESSION_END] = self.session_end

    async def teardown(self, worker: Worker) -> None:
        """Kill everything, and wait for it."""
        worker.handlers.pop(ATTACH, None)
        all_served = list(self._served.values())
        for served in all_served:
            served.end()
        for served in all_served:
            await served.over.wait()
        worker.handlers.pop(SESSION_END, None)  # last: a node that does not know it has no process

    # --- places ------------------------------------------------------------------------------

    async def hold(self, pool: str, slot: int, number: int) -> None:
        """Be a pool's ``number``th place, for a worker, for as long as that is there."""
        key = place_key(pool, number)
        place = self._places[key] = _Place(pool, slot)
        self._look_soon()  # others may be waiting already
        try:
            tell = getattr(self._worker.scheduler, PLACE)
            known = await tell(pool=pool, slot=slot, number=number, node=self.address)
            if known and self._is_wanted(key):
                await place.over
        finally:
            if self._places.get(key) is place:
                del self._places[key]
            self._evict(place)

    def _is_wanted(self, key: str) -> bool:
        """Whether the task was not given back before its place could hear of that."""
        task = self._worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    def _is_held(self, pool: str, slot: int) -> bool:
        """Whether there is a place for a pool's worker."""
        return any((p.pool, p.slot) == (pool, slot) for p in self._places.values())

    def _evict(self, place: _Place) -> None:
        """End the worker of a place that is held no more."""
        served = self._served.get(place.pool)
        held = [other for other in self._places.values() if other is not place]
        again = any((other.pool, other.slot) == (place.pool, place.slot) for other in held)
        if served is not None and served.session is not None and not again:
            served.session.evict(place.slot)

    def _give_back(self, pool: str, slot: int | None = None) -> None:
        """End the places of a pool's worker, or of all of them."""
        for place in self._places.values():
            if place.pool == pool and slot in (None, place.slot):
                place.end()

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Take in that a task of the Dask worker has changed its state."""
        del start, kwargs
        if finish in ("ready", "constrained"):
            self._look_soon()
        elif finish in ("released", "cancelled", "forgotten", "error"):
            place = self._places.get(key)
            if place is not None:
                self._evict(place)
                place.end()

    def _look_soon(self) -> None:
        if self._places and not self._looking:
            self._looking = True
            self._loop.call_later(_SLICE, self._look_for_others)

    def _look_for_others(self) -> None:
        """Ask for as many places as other tasks wait for."""
        self._looking = False
        state = self._worker.state
        waiting = [*state.ready, *state.constrained]
        before = time.monotonic() - _SLICE
        for task in waiting:
            for held, place in self._places.items():
                others = not str(task.key).startswith(place_key(place.pool, 0)[:-1])
                others = others and self._would_help(task, held)
                served = self._served.get(place.pool)
                session = None if served is None else served.session
                if others and session and not place.asked and place.since <= before:
                    place.asked = True
                    session.reclaim(place.slot)
                    break
        if waiting:
            self._look_soon()

    def _would_help(self, task: Any, key: str) -> bool:
        """Whether a task may begin earlier if the place of this key is given back."""
        available = self._worker.state.available_resources
        holder = self._worker.state.tasks.get(key)
        held = {} if holder is None else holder.resource_restrictions or {}
        wanted = (task.resource_restrictions or {}).items()
        missing = [name for name, much in wanted if available.get(name, 0) < much]
        return not missing or any(name in held for name in missing)

    # --- pools -------------------------------------------------------------------------------

    async def attach(self, comm: Any, pool: str, number: int) -> Status:
        """Serve a pool over a connection, the pool's ``number``th, until either ends."""
        while (former := self._served.get(pool)) is not None:  # its connection broke
            former.end()
            await former.over.wait()
        served = self._served[pool] = _Served(number)
        try:
            await comm.write({"pid": os.getpid()})
            served.line = Line(comm, lambda frames: self._hear(pool, served, frames))
            await served.line.run()
        finally:
            served.end()
            if served.session is None:
                self._over(pool, served)
        return Status.dont_reply

    async def session_end(self, pool: str, number: int) -> bool:
        """End what is left of a pool's ``number``th session here, and return when that is done."""
        served = self._served.get(pool)
        if served is not None and served.number == number:
            served.end()
            await served.over.wait()
        return True

    def _hear(self, pool: str, served: _Served, frames: list[Frame]) -> None:
        for frame in frames:
            session = served.session
            if session is None and frame["frame"] == "config":
                served.session = self._open(pool, served, frame)
                self._hear(pool, served, served.early)
            elif session is None:
                served.early.append(frame)
            elif frame["frame"] == "start" and not self._is_held(pool, frame["slot"]):
                session.refuse(frame["slot"])  # it was given back meanwhile
            else:
                session.obey(frame)

    def _open(self, pool: str, served: _Served, config: Frame) -> Session:
        assert served.line is not None

        def call_soon(call: Callable[..., object], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(call, *args)

        session = Session(
            config,
            cpus=cpu_count(),
            places=self._worker.state.nthreads,
            send=served.line.send,
            over=lambda slot: call_soon(self._give_back, pool, slot),
            ended=lambda: call_soon(self._over, pool, served),
        )
        session.begin()
        return session

    def _over(self, pool: str, served: _Served) -> None:
        """Nothing is left of a session."""
        served.end()  # the line is open yet where the pool was silent
        del self._served[pool]
        served.over.set()
        self._give_back(pool)


async def hold_place(pool: str, slot: int, number: int, asked: dict[str, str]) -> None:
    """Be a place on the Dask worker that runs this as a task.

    Raises:
        RuntimeError: The pool has other versions of what has to be the same on both sides.
    """
    here = versions()
    if here != asked:
        raise RuntimeError(
            f"this node has {listed(here)}, but the pool's program has {listed(asked)}: "
            "what jobs are made of is read by the same versions only"
        )
    worker = get_worker()
    agent = worker.plugins.get(Agent.name)
    if agent is None:
        agent = Agent(worker)
        await worker.plugin_add(agent, name=Agent.name)
    await agent.hold(pool, slot, number)


__all__ = ["Agent", "hold_place"]
