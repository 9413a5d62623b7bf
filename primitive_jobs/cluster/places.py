"""`Places`: the Dask tasks that hold the places of a pool's workers, as the pool knows them.

All of it is the event loop's of the pool's `Connection`.
"""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .frames import place_key, versions
from .sent import place

if TYPE_CHECKING:
    from distributed import Client, Future

_PAUSE = 0.25  # s between two looks for a node that is not silent


class _Wish:
    """A place that is asked for, or held."""

    __slots__ = ("follower", "future", "held", "number")

    def __init__(self, number: int) -> None:
        self.number = number  # of all that the pool has ever asked for
        self.future: Future | None = None
        self.follower: asyncio.Task[None] | None = None  # it waits for the future, or for a node
        self.held = False

    def end(self) -> None:
        """Ask for it no more."""
        if self.follower is not None:
            self.follower.cancel()
        if self.future is not None:
            self.future.release()


class Places:
    """The places of one pool.

    A node that was silent is avoided: Dask misses it later than a pool with a short
    ``node_timeout``, if at all, since others may be able to reach it; and as it has nothing to do
    it is where Dask would have the next place.

    Args:
        pool: The name of the pool in the cluster.
        resources: Dask resources that each place takes.
        over: Called with a slot whose task has ended, and why: an error, or None.
    """

    def __init__(
        self,
        pool: str,
        resources: Mapping[str, float],
        over: Callable[[int, BaseException | None], None],
    ) -> None:
        self._pool = pool
        self._resources = resources
        self._over = over
        self._client: Client | None = None
        self._wishes: dict[int, _Wish] = {}  # by slot
        self._count = 0
        self._silent: set[str] = set()

    def begin(self, client: Client) -> None:
        """Ask this client from now on; what is asked for before is dropped."""
        self._client = client

    def end(self) -> None:
        """Give all places back, and ask for no more."""
        self._client = None
        for slot in list(self._wishes):
            self.release(slot)

    def ask(self, slot: int) -> None:
        """Ask Dask for a place."""
        if self._client is None:
            return  # no start is waited for
        self._count += 1
        wish = self._wishes[slot] = _Wish(self._count)
        if self._silent:
            wish.follower = asyncio.ensure_future(self._ask_elsewhere(slot, wish))
        else:
            self._ask(slot, wish, None)

    def hold(self, slot: int, number: int) -> bool:
        """Take in that a node holds a place; False: it is an earlier one, which was given back."""
        wish = self._wishes.get(slot)
        if wish is None or wish.number != number:
            return False
        wish.held = True
        return True

    def release(self, slot: int) -> None:
        """Give a place back, or the wish for one; again is harmless."""
        wish = self._wishes.pop(slot, None)
        if wish is not None:
            wish.end()

    async def known_nodes(self) -> list[str]:
        """Return the addresses of the nodes that Dask has; none, if that cannot be asked."""
        if self._client is None:
            return []
        try:
            return list(await self._client.scheduler.ncores(workers=None))
        except OSError:
            return []

    # --- nodes that are silent ---------------------------------------------------------------

    def avoid(self, address: str) -> bool:
        """Ask for no place on a node, as long as there are others; False: that is so already."""
        if address in self._silent:
            return False
        self._silent.add(address)
        for slot, wish in list(self._wishes.items()):
            if not wish.held:  # Dask may have meant it to be there
                self.release(slot)
                self.ask(slot)
        return True

    def use_again(self, address: str) -> None:
        """A node is there again, or Dask knows that it is gone."""
        self._silent.discard(address)

    async def _ask_elsewhere(self, slot: int, wish: _Wish) -> None:
        """Ask for a place on a node that is not silent; wait for one, as long as any is."""
        others: list[str] = []
        while self._silent and not others:
            others = [node for node in await self.known_nodes() if node not in self._silent]
            if self._silent and not others:
                await asyncio.sleep(_PAUSE)
        self._ask(slot, wish, others or None)

    # --- tasks -------------------------------------------------------------------------------

    def _ask(self, slot: int, wish: _Wish, nodes: list[str] | None) -> None:
        if self._client is None:
            return
        wish.future = self._client.submit(
            place,
            self._pool,
            slot,
            wish.number,
            versions(),
            key=place_key(self._pool, wish.number),
            pure=False,
            resources=dict(self._resources) or None,
            workers=nodes,
            allow_other_workers=nodes is not None,  # when none of these is there any more
        )
        wish.follower = asyncio.ensure_future(self._follow(slot, wish, wish.future))

    async def _follow(self, slot: int, wish: _Wish, future: Future) -> None:
        # Not its result: that is fetched, and the scheduler complains where it is gone by then.
        error: BaseException | None = await future.exception()
        if self._wishes.get(slot) is not wish:
            return  # released here
        if isinstance(error, Exception):  # no cancel, by somebody else
            error = error.with_traceback(None)
        else:
            error = None
        del self._wishes[slot]
        future.release()  # at once: an error that is kept would keep its node alive
        self._over(slot, error)


__all__ = ["Places"]
