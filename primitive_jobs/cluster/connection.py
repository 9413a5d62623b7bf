"""`Connection`: a pool's way to its cluster, an event loop on a thread of its own, which `run` is.

It asks Dask for places, hears from the scheduler where they are, and keeps a line to each node that
holds one. What it hears goes to the pool's dispatcher, by ``tell``; the loop decides nothing but
whether a node is lost, and how.

A node whose line has ended is *lost* when nothing of the pool can be running there any more: when
its process is known to be dead (its guard has killed the workers), when it has said that it has
ended them, or when the last lease that was granted has run out: see `Session`.
"""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from distributed import Client, Security

from .._common.naming import one_line
from ..errors import ClusterError
from .frames import ATTACH, PREFIX, RELAY, SESSION_END, WATCH
from .line import Data, Frame, Line
from .places import Places
from .reach import connect, listens
from .sent import PoolPlugin

_CONNECT = 30.0  # s to reach the scheduler
_SOON = 1.0  # s that it is waited for at the end of a pool
_CLOSE = 5.0  # s to say goodbye to it
_REACH = 5.0  # s to reach a node directly, before it is tried by relay
_TRIES = 5  # to register where the plugin of others is just going
_PROBE = 0.2  # s for the first question how a node is, then twice as long for each
_PROBE_PAUSE = 0.05  # s between two of them
_GUARD_TIME = 0.05  # s in which the guard of a dead node has killed its workers: it takes some ms
_RETURN_PAUSE = 1.0  # s between two looks whether a silent node is there again
_MARGIN = 1.0  # s after the end of a lease, in which the guard kills
_DRIFT = 1.01  # by which the clocks of two machines may differ in speed


class Target(NamedTuple):
    """Where a cluster is.

    Attributes:
        address: Of its scheduler.
        security: For TLS.
    """

    address: str
    security: Security


class Policy(NamedTuple):
    """How a pool uses a cluster.

    Attributes:
        resources: Dask resources that each place takes.
        direct: Whether nodes are connected to directly; None: where they can be.
        node_timeout: Length of a lease, in s.
    """

    resources: Mapping[str, float]
    direct: bool | None
    node_timeout: float


_numbers = itertools.count(1)


class Link:
    """A line to a node; made, used and forgotten by the dispatcher, served by the loop.

    Attributes:
        address: The node's.
        number: Of its session there; no other one of the pool has it.
        line: Once it is open; before the dispatcher hears of that.
        opened: The dispatcher's: it has heard of that.
        ended: The dispatcher's: the line has ended, and what became of the workers is not known.
        relayed: It goes by the scheduler; the loop's. Then the address may be another's from here.
        granted: When the last lease was granted, in monotonic s; the loop's.
        shared: The dispatcher's: the numbers of the shared data that was sent.
        slots: The dispatcher's: those whose place is there.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.number = next(_numbers)
        self.opened = self.ended = self.relayed = False
        self.line: Line | None = None
        self.granted = 0.0
        self.shared: set[int] = set()
        self.slots: set[int] = set()

    def send(self, frame: Frame, lane: int = 0, data: Data | None = None) -> None:
        """Send a frame, if the line is open."""
        if self.line is not None:
            self.line.send(frame, lane, data)


class Hearer:
    """What a connection tells, each by a method that the dispatcher's thread is to call."""

    def thread_total(self, total: int) -> None:
        """So many threads the cluster has now."""

    def placed(self, slot: int, node: str) -> None:
        """A slot has a place."""

    def place_over(self, slot: int, error: BaseException | None) -> None:
        """Its Dask task has ended: by an error, or in peace."""

    def opened(self, link: Link) -> None:
        """The line of a link is open."""

    def unreachable(self, link: Link, error: BaseException) -> None:
        """It cannot be opened."""

    def heard(self, link: Link, frames: list[Frame]) -> None:
        """A node has sent frames."""

    def cut_off(self, link: Link) -> None:
        """A line has ended; `lost` follows."""

    def lost(self, link: Link, why: str) -> None:
        """Nothing that was started over a line runs any more."""

    def broken(self, error: BaseException) -> None:
        """The scheduler is lost, or cannot be reached."""


class Connection:
    """The way to a cluster.

    Args:
        target: Where it is.
        pool: The name of the pool there, unique.
        policy: How it is used.
        config: The first frame to each node, and its data.
        hearer: Is told.
        tell: Has the dispatcher call something.
    """

    def __init__(
        self,
        target: Target,
        pool: str,
        policy: Policy,
        config: tuple[Frame, Data],
        hearer: Hearer,
        tell: Callable[[Callable[[], None]], object],
    ) -> None:
        self._target = target
        self._pool = pool
        self._policy = policy
        self._config = config
        self._hearer = hearer
        self._tell = tell
        self._wishes: collections.deque[Callable[[], object]] = collections.deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False  # written by `end` alone
        # The rest is the loop's.
        self._begun = False  # or never will
        self._client: Client | None = None
        self._places = Places(
            pool, policy.resources, functools.partial(self._say, hearer.place_over)
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()  # of them, those that serve links
        self._open: set[Line] = set()

    # --- for any thread ----------------------------------------------------------------------

    def place(self, slot: int) -> None:
        """Ask for a place."""
        self._wish(lambda: self._places.ask(slot))

    def release(self, slot: int) -> None:
        """Give a place back, or the wish for one; again is harmless."""
        self._wish(lambda: self._places.release(slot))

    def open(self, link: Link) -> None:
        """Open the line of a link."""
        self._wish(lambda: self._serving.add(self._do(self._serve(link))))

    def cut(self, link: Link) -> None:
        """End the line of a link now."""
        if link.line is not None:
            self._wish(link.line.abort)

    def end(self) -> None:
        """Have the thread end: all places are given back, all lines closed."""
        self._ending = True
        self._wish(lambda: None)

    def _wish(self, wish: Callable[[], object]) -> None:
        self._wishes.append(wish)
        loop = self._loop  # after that: see run
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._fulfil)

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._fulfil()
        try:
            watch = await self._begin()
        except Exception as error:  # noqa: BLE001 - the pool is told
            self._break(f"the scheduler at {self._target.address} cannot be used", error)
        else:
            self._do(self._watch(watch))
        self._begun = True
        self._fulfil()  # what came before
        await self._over.wait()
        await self._close()

    def _fulfil(self) -> None:
        if self._ending:
            self._over.set()
        while self._begun and self._wishes:
            try:
                self._wishes.popleft()()
            except Exception as error:  # noqa: BLE001 - the pool is told
                self._break("the way to the cluster failed", error)

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        for tasks in (self._tasks, self._serving):
            task.add_done_callback(tasks.discard)
        self._tasks.add(task)
        return task

    def _say(self, call: Callable[..., None], *args: object) -> None:
        """Have the dispatcher hear something."""
        self._tell(functools.partial(call, *args))

    def _break(self, what: str, error: BaseException) -> None:
        self._places.end()
        if not self._ending:
            failure = ClusterError(f"{what}: {one_line(error)}")
            failure.__cause__ = error
            self._say(self._hearer.broken, failure)

    # --- the scheduler -----------------------------------------------------------------------

    async def _begin(self) -> Any:
        """Become a client of the scheduler; return a connection on which it tells news."""
        target = self._target
        client = Client(
            target.address,
            asynchronous=True,
            security=target.security,
            set_as_default=False,
            timeout=_CONNECT,
            name="primitive_jobs",
        )
        self._client = client
        begun = asyncio.ensure_future(_until_begun(client))
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((begun, over), return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():  # cancelled while it connects, it would leave a socket open
                await asyncio.wait((begun,), timeout=_SOON)
                raise TimeoutError("the pool was shut down meanwhile")
            begun.result()
        finally:
            begun.cancel()
            over.cancel()
        for _ in range(_TRIES):
            await client.register_plugin(PoolPlugin(PREFIX))
            comm = await self._connect(target.address, _CONNECT)
            await comm.write({"op": WATCH, "pool": self._pool, "reply": True})
            first = await comm.read()
            if isinstance(first, dict) and "threads" in first:
                self._places.begin(client)
                self._on_news(first)
                return comm
            comm.abort()  # another pool's end has just removed the plugin
        raise OSError(f"it does not know of {WATCH}")

    async def _watch(self, comm: Any) -> None:
        try:
            while True:
                self._on_news(await comm.read())
        except Exception as error:  # noqa: BLE001 - the pool is told
            self._break(f"the cluster's scheduler at {self._target.address} was lost", error)
        finally:
            comm.abort()

    def _on_news(self, news: dict[str, Any]) -> None:
        if "threads" in news:
            self._say(self._hearer.thread_total, news["threads"])
        elif self._places.hold(news["slot"], news["number"]):
            self._say(self._hearer.placed, news["slot"], news["node"])

    async def _connect(self, address: str, seconds: float) -> Any:
        arguments = self._target.security.get_connection_args("client")
        return await connect(address, seconds, **arguments)

    async def _close(self) -> None:
        """Leave nothing, here nor in the cluster."""
        self._places.end()
        for line in self._open:
            line.close()
        if self._serving:  # what was said is being sent
            await asyncio.wait(self._serving, timeout=_CLOSE)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.close(timeout=_CLOSE), 2 * _CLOSE)

    # --- nodes -------------------------------------------------------------------------------

    async def _serve(self, link: Link) -> None:
        """Open a line and be with it until its node is lost."""
        try:
            line = await self._attach(link)
        except Exception as error:  # noqa: BLE001 - the dispatcher is told
            self._say(self._hearer.unreachable, link, error)
            return
        self._open.add(line)
        link.line = line
        frame, data = self._config
        line.send(frame, 1, data)
        self._say(self._hearer.opened, link)
        watchdog = asyncio.ensure_future(self._cut_if_silent(line))
        try:
            await line.run()
        finally:
            watchdog.cancel()
            self._open.discard(line)
        self._say(self._hearer.cut_off, link)
        if not self._ending:
            self._say(self._hearer.lost, link, await self._how_lost(link))

    async def _attach(self, link: Link) -> Line:
        comm = await self._reach(link)
        try:
            question = {"op": ATTACH, "pool": self._pool, "number": link.number}
            await comm.write({**question, "reply": True})
            answer = await asyncio.wait_for(comm.read(), self._policy.node_timeout)
            if not isinstance(answer, dict) or "pid" not in answer:
                raise OSError(f"{link.address} has no agent of ours")
        except BaseException:
            comm.abort()
            raise
        link.granted = time.monotonic()
        return Line(comm, lambda frames: self._on_frames(link, frames))

    async def _reach(self, link: Link) -> Any:
        """Return a connection to a node, directly or by the scheduler."""
        address, direct = link.address, self._policy.direct
        patience = min(_REACH, self._policy.node_timeout / 3)
        if direct is not False:
            try:
                return await self._connect(address, patience)
            except OSError:
                if direct:
                    raise
        link.relayed = True
        comm, answer = await self._relay(address, patience)
        if answer["error"] is not None:
            comm.abort()
            raise OSError(f"node {address} cannot be reached, nor by relay: {answer['error']}")
        return comm

    async def _relay(self, address: str, seconds: float) -> tuple[Any, dict[str, Any]]:
        comm = await self._connect(self._target.address, seconds)
        try:
            await comm.write({"op": RELAY, "node": address, "timeout": seconds, "reply": True})
            return comm, await comm.read()
        except BaseException:
            comm.abort()
            raise

    def _on_frames(self, link: Link, frames: list[Frame]) -> None:
        now = time.monotonic()
        rest = []
        for frame in frames:
            if frame["frame"] == "lease":
                # First: what is granted has to be known before it is.
                link.granted = now
                link.send({"frame": "grant", "number": frame["number"]})
            else:
                rest.append(frame)
        if rest:
            self._say(self._hearer.heard, link, rest)

    async def _cut_if_silent(self, line: Line) -> None:
        left = self._policy.node_timeout
        while left > 0:
            await asyncio.sleep(left)
            left = line.heard + self._policy.node_timeout - time.monotonic()
        line.abort()

    async def _how_lost(self, link: Link) -> str:
        """Return, once nothing of the pool runs on a node any more, why that is."""
        timeout = self._policy.node_timeout
        end = link.granted + timeout * _DRIFT + _MARGIN
        patience = _PROBE
        while (left := end - time.monotonic()) > 0 and not self._ending:
            why = None
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                question = self._ask_how(link, min(patience, left))
                why = await asyncio.wait_for(question, left)
            if why is not None:
                return why
            patience = min(2 * patience, _REACH)  # one that is just dying may take a connection
            await asyncio.sleep(min(_PROBE_PAUSE, max(0.0, left)))
        if self._places.avoid(link.address):
            self._do(self._await_return(link))
        return f"it was silent for {timeout:g} s"

    async def _await_return(self, link: Link) -> None:
        """See to it that places are elsewhere until a silent node is there again.

        Dask misses it much later than a pool with a short ``node_timeout``, if at all: what uses
        the cluster besides may be able to reach it. Till then it is the idlest node of all.
        """
        address, directly = link.address, not link.relayed
        try:
            while address in await self._places.known_nodes():
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    comm = await self._connect_again(address, _REACH, directly=directly)
                    if comm is not None:
                        comm.abort()
                    return
                await asyncio.sleep(_RETURN_PAUSE)
        finally:
            self._places.use_again(address)

    async def _ask_how(self, link: Link, seconds: float) -> str | None:
        address = link.address
        if address.startswith("inproc"):
            comm: Any = None
            with contextlib.suppress(OSError):
                comm = await self._connect(address, min(1.0, seconds))
            if comm is None:
                return "it was closed"
        else:
            comm = await self._connect_again(address, seconds, directly=not link.relayed)
            if comm is None:
                await asyncio.sleep(_GUARD_TIME)
                return "its process ended"
        try:
            question = {"op": SESSION_END, "pool": self._pool, "number": link.number}
            await comm.write({**question, "reply": True})
            ended = await comm.read()
        finally:
            comm.abort()
        # Whoever does not know the question has no agent any more: its end kills all.
        return "the connection to it was lost" if ended in (True, None) else None

    async def _connect_again(self, address: str, seconds: float, *, directly: bool) -> Any:
        """Return a connection to a node; None if its process is dead; raises OSError."""
        if directly:
            listening = await listens(address)
            if listening is False:
                return None
            if listening:
                return await self._connect(address, seconds)
            if self._policy.direct:
                raise OSError(f"nothing is heard of {address}")
        comm, answer = await self._relay(address, seconds)
        if answer["error"] is None:
            return comm
        comm.abort()
        if answer["refused"]:
            return None
        raise OSError(answer["error"])


async def _until_begun(client: Client) -> None:
    await client


__all__ = ["Connection", "Hearer", "Link", "Policy", "Target"]
