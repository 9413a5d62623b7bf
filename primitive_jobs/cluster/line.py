"""`Line`: frames both ways over a connection of Dask's; a short one overtakes a long one.

A frame is a dict of plain values, perhaps with ``data``, which may be long. Those of one *lane*
arrive in the order in which they were sent; among lanes, each gets its turn, and what is long goes
in pieces. So the order to kill a worker does not wait for the gigabyte of another's result. Dask's
connections take whatever is written, and keep it until it can go; so the other end says how much
has come, and no more than `WINDOW` bytes of data are on their way at a time.

`send` may be called on any thread. Everything else is the event loop's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from ..logs import report_here

PIECE = 1 << 20  # bytes of data in one message at most
WINDOW = 8 << 20  # bytes: at a round trip of 10 ms, a line carries 800 MB/s
_TELL = WINDOW // 8  # bytes that come between two words of how much has come
URGENT = 0
"""The lane of what has no order among others: it is always the first to go."""

Frame = dict[str, Any]
Data = bytes | bytearray | memoryview


class _Outgoing:
    """A frame on its way."""

    __slots__ = ("data", "frame", "place")

    def __init__(self, frame: Frame, data: Data | None) -> None:
        self.frame = frame
        self.data = None if data is None else memoryview(data).cast("B")
        self.place = 0  # how much of the data has gone

    def next_piece(self, lane: int) -> tuple[Frame, int, bool]:
        """Return what goes next, its size, and whether that is the last of it."""
        if self.data is None:
            return self.frame, 0, True
        size = self.data.nbytes
        piece = self.data[self.place : self.place + PIECE]
        self.place += piece.nbytes
        if piece.nbytes == size:
            return {**self.frame, "data": piece}, size, True
        last = self.place == size
        part: Frame = {"frame": None, "lane": lane, "size": size, "piece": piece}
        if last:
            part["frame"] = self.frame
        return part, piece.nbytes, last


class Line:
    """One end of a connection.

    Args:
        comm: The connection; the line reads, writes and closes it.
        hear: Called with the frames that have come, in a list.

    Attributes:
        heard: When something has come last, be it a piece or the word that ours have: monotonic s.
    """

    def __init__(self, comm: Any, hear: Callable[[list[Frame]], object]) -> None:
        self._comm = comm
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._said: collections.deque[tuple[int, Frame, Data | None]] = collections.deque()
        self._lanes: dict[int, collections.deque[_Outgoing]] = {}
        self._more = asyncio.Event()
        self._woken = False  # the loop has been told of all that was said, or is about to be
        self._on_the_way = 0  # bytes of data that the other end has not told of
        self._untold = 0  # bytes of data that have come, and the other end does not know of
        self._coming: dict[int, bytearray] = {}  # by lane: what has come of a long one, so far
        self._filled: dict[int, int] = {}
        self._closing = False
        self.heard = time.monotonic()

    # --- for any thread ----------------------------------------------------------------------

    def send(self, frame: Frame, lane: int = URGENT, data: Data | None = None) -> None:
        """Have a frame sent; returns at once. What comes after the end is dropped."""
        self._said.append((lane, frame, data))
        # Set before the loop is told, cleared there before it looks: whoever finds it set has said
        # his before that look.
        if not self._woken:
            self._woken = True
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        self._woken = False
        self._more.set()

    # --- the loop's --------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry frames both ways until either end closes the connection, or it breaks."""
        writer = asyncio.ensure_future(self._write())
        reader = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if writer.done() and not writer.cancelled() and writer.exception() is None:
                await self._comm.close()  # all is sent
            self.abort()
            for task in (writer, reader):
                task.cancel()
            for error in await asyncio.gather(writer, reader, return_exceptions=True):
                if isinstance(error, Exception) and not isinstance(error, OSError):
                    text = "what came over a line of a cluster could not be taken in"
                    report_here(logging.ERROR, text, error=error)

    def close(self) -> None:
        """End it, once all that was said has been sent."""
        self._closing = True
        self._wake()

    def abort(self) -> None:
        """End it now."""
        self._comm.abort()

    async def _write(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while batch := self._batch():
                await self._comm.write(batch)
            if self._closing and not self._said and not self._lanes:
                return

    def _batch(self) -> list[Frame]:
        """Return what goes next: of each lane what fits, at most one piece of data in all."""
        while self._said:
            lane, frame, data = self._said.popleft()
            queue = self._lanes.setdefault(lane, collections.deque())
            queue.append(_Outgoing(frame, data))
        batch = [item.frame for item in self._lanes.pop(URGENT, ())]
        room = min(PIECE, WINDOW - self._on_the_way)
        for lane in list(self._lanes):
            queue = self._lanes[lane]
            had_turn = False
            while queue and (room > 0 or queue[0].data is None):
                frame, size, last = queue[0].next_piece(lane)
                batch.append(frame)
                room -= size
                self._on_the_way += size
                had_turn = True
                if last:
                    queue.popleft()
            if had_turn:  # the others come before it now
                del self._lanes[lane]
                if queue:
                    self._lanes[lane] = queue
        return batch

    async def _read(self) -> None:
        while True:
            frames = await self._comm.read()
            self.heard = time.monotonic()
            whole = [frame for frame in map(self._join, frames) if frame is not None]
            if self._untold >= _TELL:
                self.send({"frame": None, "come": self._untold})
                self._untold = 0
            if whole:
                self._hear(whole)

    def _join(self, frame: Frame) -> Frame | None:
        """Return a frame as it was sent; None as long as it is not complete."""
        if "come" in frame:
            self._on_the_way -= frame["come"]
            self._more.set()
            return None
        piece = frame.get("piece")
        self._untold += len(frame.get("data") or () if piece is None else piece)
        if piece is None:
            data = frame.get("data")
            # Where both ends are in one process nothing is copied on the way.
            return {**frame, "data": bytes(data)} if isinstance(data, memoryview) else frame
        lane, size = frame["lane"], frame["size"]
        whole = self._coming.get(lane)
        if whole is None:
            whole = self._coming[lane] = bytearray(size)
            self._filled[lane] = 0
        place = self._filled[lane]
        whole[place : place + len(piece)] = piece
        self._filled[lane] = place + len(piece)
        if frame["frame"] is None:
            return None
        del self._coming[lane], self._filled[lane]
        return {**frame["frame"], "data": whole}


__all__ = ["PIECE", "URGENT", "Frame", "Line"]
