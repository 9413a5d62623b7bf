"""`Pipes`: reads what workers print, and their log records, as little often as can be.

After each reading a pipe rests: so a job that prints line by line costs its program a few wake-ups,
however fast it is; once the pipe is full, the job waits. The end of a job does not wait: what is
there is read before it is settled (`LocalTraces.drain`). The same holds for the sockets through
which log records come.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable

from .._engine.fleet import Host
from .._procs.process import WorkerProcess
from .._wire.messages import LOGGED, PRINTED, Message
from ..insight.logged import Logged
from ..insight.pipe import Pipe


class Pipes:
    """Those of a fleet; used on its dispatcher's thread.

    Args:
        host: The fleet's.
        changed: Called when `pause` may have changed.

    Attributes:
        pause: Seconds after which `look` is to be called; None: it need not be.
    """

    pause: float | None = None

    def __init__(self, host: Host, changed: Callable[[], None]) -> None:
        self._host = host
        self._changed = changed
        self._poller = host.poller
        self._resting: dict[Pipe | Logged, float] = {}  # until when, on the monotonic clock

    def take(self, process: WorkerProcess, message: Message) -> None:
        """Take in what a worker has lent: a pipe, its socket, or a file for checkpoints of its job.

        Raises:
            OSError: The pipe has not come, since no descriptor is free, or cannot be waited on.
        """
        if message.extra not in (PRINTED, LOGGED):
            process.traces.lent(message)
            return
        # If it is not here, its job is not to seem to have printed nothing: its outcome is passed
        # over then, and it ends as the worker does.
        heard_out, process.heard_out = process.heard_out, True
        pipe: Pipe | Logged
        if message.extra == PRINTED:
            self._drop_pipe(process)
            pipe = process.traces.take_pipe(message)
        else:
            self._drop_logs(process)
            pipe = process.traces.take_logs(message, process.report)
        self._poller.watch(pipe.fileno(), functools.partial(self._on_readable, pipe))
        process.heard_out = heard_out

    def drop(self, process: WorkerProcess) -> None:
        """Read what is in those of a worker, if it has any, and close them."""
        self._drop_pipe(process)
        self._drop_logs(process)

    def _drop_pipe(self, process: WorkerProcess) -> None:
        pipe = process.traces.pipe
        if pipe is not None:
            self._host.step("reading what it printed", process, pipe.read)
            self._leave(pipe)
            process.traces.close_pipe()

    def _drop_logs(self, process: WorkerProcess) -> None:
        logs = process.traces.logs
        if logs is not None:
            self._host.step("reading its log records", process, logs.read)
            self._leave(logs)
            process.traces.close_logs()

    def _leave(self, pipe: Pipe | Logged) -> None:
        if self._resting.pop(pipe, None) is None:
            self._unwatch(pipe)
        self._plan()

    def _on_readable(self, pipe: Pipe | Logged, mask: int) -> None:
        del mask
        if not pipe.may_wait:
            pipe.read()
        self._unwatch(pipe)
        self._resting[pipe] = time.monotonic() + pipe.rest
        self._plan()

    def look(self) -> None:
        """Read those that have rested; the silent ones are waited for again."""
        now = time.monotonic()
        for pipe in [pipe for pipe, until in self._resting.items() if until <= now]:
            if pipe.may_wait or pipe.read() or pipe.over:
                self._resting[pipe] = now + pipe.rest
            else:
                handler = functools.partial(self._on_readable, pipe)
                with contextlib.suppress(OSError):  # no memory: it is tried again
                    self._poller.watch(pipe.fileno(), handler)
                    del self._resting[pipe]
        for pipe in [pipe for pipe in self._resting if pipe.over]:
            self._resting[pipe] = float("inf")  # until its worker is gone
        self._plan()

    def _unwatch(self, pipe: Pipe | Logged) -> None:
        self._host.step("unwatching", None, lambda: self._poller.unwatch(pipe.fileno()))

    def _plan(self) -> None:
        rests = [pipe.rest for pipe, until in self._resting.items() if until != float("inf")]
        self.pause = min(rests, default=None)
        self._changed()


__all__ = ["Pipes"]
