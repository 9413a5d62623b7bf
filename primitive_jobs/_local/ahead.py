"""`LocalAhead`: jobs that are sent ahead on this machine; and answers that are there already."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from .._common.naming import one_line
from .._engine.fleet import Ahead
from .._procs.process import WorkerProcess
from .._wire.channel import ChannelClosed, PacketChannel
from .._wire.messages import Kind, Message
from .._wire.notes import NUMBER
from .._wire.parcel import Content

_MANY = 64  # answers of a worker that are taken in, one after the other
_PATIENCE = 0.002  # s that this may take: see `recall`


class LocalAhead(Ahead):
    """Used on the dispatcher's thread, as its fleet; `Ahead` says what each method is for.

    Args:
        processes: The workers, by slot; the same object each time.
        send: Sends a message to a worker; False: it was not sent.
        taken_in: Takes a message in, and returns what `Host.answered` does.
    """

    def __init__(
        self,
        processes: Mapping[int, WorkerProcess],
        send: Callable[[WorkerProcess, Kind, int, Content | None, int], bool],
        taken_in: Callable[[WorkerProcess, Message], int],
    ) -> None:
        self._processes = processes
        self._send = send
        self._taken_in = taken_in

    def page(self, slot: int) -> memoryview:
        """Return the page that is shared with a worker."""
        return self._processes[slot].page

    def send(self, slot: int, attempt: int, content: Content | None, place: int) -> bool:
        """Send a worker a job, whatever it does."""
        return self._send(self._processes[slot], Kind.RUN, attempt, content, place)

    def take_back(self, slot: int) -> list[int]:
        """Take back what the worker has not received."""
        channel = self._processes[slot].channel
        assert isinstance(channel, PacketChannel), "nothing is sent ahead through another one"
        return channel.take_back()

    def hear(self, slot: int, count: int) -> int:
        """Receive so many messages."""
        process = self._processes[slot]
        for heard in range(count):
            try:
                message = receive(process)
            except ChannelClosed:  # which is seen anyway
                return heard
            if message is None:
                return heard
            self._taken_in(process, message)
        return count

    def hear_on(self, process: WorkerProcess, attempt: int) -> None:
        """Receive the answers after which the worker has begun other jobs: they are there.

        Args:
            process: The worker.
            attempt: The one that it has, as far as it was heard.
        """
        number, page = NUMBER.unpack_from, process.page
        enough = time.monotonic() + _PATIENCE
        for _ in range(_MANY):  # then it is somebody else's turn
            if number(page)[0] <= attempt or time.monotonic() > enough:
                return
            message = receive(process)
            if message is None or not (attempt := self._taken_in(process, message)):
                return


def receive(process: WorkerProcess) -> Message | None:
    """Return the next message; nonsense, which a job may send, raises `ChannelClosed`."""
    try:
        return process.channel.receive()
    except ChannelClosed:
        raise
    except Exception as error:
        if not isinstance(error, OSError):
            text = "worker %d sent what is no message: %s"
            process.report(logging.WARNING, text, process.pid, one_line(error))
        raise ChannelClosed from error


__all__ = ["LocalAhead", "receive"]
