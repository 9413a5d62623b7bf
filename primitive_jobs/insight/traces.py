"""What a worker leaves, outside of its own memory, of the attempts that it is at; and who has it.

`Traces` are a worker's: a page and files here, what its node has told on a cluster. `Seat` is that
worker and an attempt of its own, which a job has while it runs. `Kept` is what stays of a job once
it is over. The dispatcher's thread writes all of them; any thread reads.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .._wire import facts, notes
from .._wire.messages import Lent, Message
from ..logs import Report
from .logged import Logged
from .pipe import Pipe
from .printed import Printed
from .salvage import Checkpoint, Header, header_of, kept, loaded, read
from .usage import Usage, usage_of

_MOST_EARLIER = 3  # attempts before the last one that its exception tells of
_TRIES = 100  # to read a checkpoint that the next ones overtake


class Traces(ABC):
    """What is known of a worker's attempts."""

    @abstractmethod
    def progress(self, attempt: int) -> bytes | None:
        """Return what an attempt has reported last: see `notes.PROGRESS`; None: nothing."""

    @abstractmethod
    def load(self, attempt: int) -> list[Any]:
        """Return an attempt's last checkpoint, in a list, made anew; empty: there is none.

        Raises whatever the unpickling does.
        """

    @abstractmethod
    def copied(self, attempt: int, last: object) -> tuple[bytes, Checkpoint] | None:
        """Return an attempt's last checkpoint, copied, and what tells it from others.

        None: there is none, or that is ``last``. Raises OSError.
        """

    @abstractmethod
    def left(self, attempt: int, told: bytes | None) -> dict[int, bytes]:
        """Return the facts of an attempt that is over: told with its outcome; None: it died."""

    @abstractmethod
    def checkpoint(self, noted: bytes) -> Checkpoint | None:
        """Return what such a fact says of a checkpoint, now that nobody writes it any more."""

    @abstractmethod
    def forget(self, attempt: int) -> None:
        """Drop what is held of an attempt, and of those before it."""

    @abstractmethod
    def print_into(self, attempt: int, printed: Printed) -> None:
        """Have what an attempt prints, which is about to begin, go there from now on."""

    @abstractmethod
    def drain(self) -> None:
        """Take in what the attempt that is over has printed; the next one has not begun."""

    @property
    @abstractmethod
    def shift(self) -> float:
        """What a worker's monotonic clock has to be put forward by to be the one here, in s."""


class LocalTraces(Traces):
    """Those of a worker on this machine.

    Args:
        page: What it shares with this process.
        learned: Takes in what it has imported; None: nobody wants to know.

    Attributes:
        logs: Through which come its log records; None: they do not.
        pipe: Through which comes what its jobs print; None: none has printed here.
        usage: The attempt in which the worker has died, and what it used: see `facts.USAGE_FORM`.
    """

    def __init__(self, page: memoryview, learned: Callable[[bytes], object] | None = None) -> None:
        self._page = page
        self._learned = learned
        # By attempt: the files of its checkpoints.
        self._files: dict[int, list[Lent | None]] = {}
        self._printed: Printed | None = None
        self.logs: Logged | None = None
        self.pipe: Pipe | None = None
        self.usage: tuple[int, bytes | None] = 0, None

    @property
    def shift(self) -> float:
        """None: the clock is the same one."""
        return 0.0

    def lent(self, message: Message) -> None:
        """Take in a file of an attempt: first that of even numbers, then that of odd ones."""
        file = message if isinstance(message, Lent) else None  # no descriptor was free here
        self._files.setdefault(message.attempt, []).append(file)

    def progress(self, attempt: int) -> bytes | None:
        """Look into the page."""
        return notes.newest_progress(self._page, attempt)

    def load(self, attempt: int) -> list[Any]:
        """Make what is in the newest file."""
        newest = self.newest(attempt)
        return [] if newest is None else [loaded(newest[1], header_of(newest[0]).buffers)]

    def copied(self, attempt: int, last: object) -> tuple[bytes, Checkpoint] | None:
        """Read the newest file."""
        if self.noted(attempt) in (None, last):
            return None
        newest = self.newest(attempt)
        if newest is None:
            return None
        header, content = header_of(newest[0]), newest[1]
        return newest[0], Checkpoint(header.call, header.buffers, content, len(content))

    def noted(self, attempt: int) -> bytes | None:
        """Return what the worker has noted of an attempt's last checkpoint."""
        return notes.newest_checkpoint(self._page, attempt)

    def newest(self, attempt: int) -> tuple[bytes, bytearray] | None:
        """Return that with the content; what is written meanwhile is read again."""
        for _ in range(_TRIES):
            noted = self.noted(attempt)
            if noted is None:
                return None
            header = header_of(noted)
            file = self._file(header)
            if file is None:  # it is on its way
                return None
            with contextlib.suppress(OSError):  # it was cut off meanwhile
                content = read(file.fd, header.size)
                if not notes.may_be_written_over(self._page, header.number):
                    return noted, content
        return None

    def _file(self, header: Header) -> Lent | None:
        files = self._files.get(header.attempt, [])
        return files[header.slot] if header.slot < len(files) else None

    def left(self, attempt: int, told: bytes | None) -> dict[int, bytes]:
        """Return what was told, or what the page says."""
        if told is not None:
            known = facts.unpacked(told)
            if facts.IMPORTED in known and self._learned is not None:
                self._learned(known[facts.IMPORTED])
            if facts.LOGGED in known and self.logs is not None:
                self.logs.read()  # now: so they are handled before what its end calls back
            return known
        found = {
            facts.PROGRESS: notes.newest_progress(self._page, attempt),
            facts.CHECKPOINT: notes.newest_checkpoint(self._page, attempt),
            facts.USAGE: self.usage[1] if self.usage[0] == attempt else None,
        }
        return {kind: fact for kind, fact in found.items() if fact is not None}

    def checkpoint(self, noted: bytes) -> Checkpoint | None:
        """Take over the file that it is in."""
        header = header_of(noted)
        file = self._file(header)
        return None if file is None else kept(header, file)

    def forget(self, attempt: int) -> None:
        """Close the files."""
        for number in [number for number in self._files if number <= attempt]:
            del self._files[number]

    def print_into(self, attempt: int, printed: Printed) -> None:
        """Whatever comes through the pipe goes there: only one attempt writes to it at a time."""
        del attempt
        self._printed = printed
        if self.pipe is not None:
            self.pipe.printed = printed

    def take_pipe(self, message: Message) -> Pipe:
        """Take over what came; raises OSError where it has not, since no descriptor is free."""
        self.pipe = Pipe(_come(message, "what its jobs print"))
        self.pipe.printed = self._printed
        return self.pipe

    def close_pipe(self) -> None:
        """Close it; without one, harmless."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            pipe.close()

    def take_logs(self, message: Message, report: Report) -> Logged:
        """The same of its socket for log records; ``report`` is the one about the worker."""
        self.logs = Logged(_come(message, "its log records"), report)
        return self.logs

    def close_logs(self) -> None:
        """Close that; without one, harmless."""
        logs, self.logs = self.logs, None
        if logs is not None:
            logs.close()

    def close(self) -> None:
        """Close both."""
        self.close_pipe()
        self.close_logs()

    def drain(self) -> None:
        """Read what is in the pipe."""
        if self.pipe is not None:
            self.pipe.read()
        if self._printed is not None:
            self._printed.end_attempt()

    def held(self, attempt: int) -> int:
        """Bytes that the files of an attempt's checkpoints hold; on any thread."""
        noted = self.noted(attempt)
        return 0 if noted is None else header_of(noted).held

    def knows_peak(self, attempt: int) -> bool:
        """Whether the peak of memory that the system tells is an attempt's; on any thread."""
        return notes.may_know_peak(self._page, attempt)


def _come(message: Message, what: str) -> Lent:
    """Return the descriptor that came, of what is told."""
    if not isinstance(message, Lent):
        raise OSError(
            errno.EMFILE,
            f"no file descriptor is free here for {what}; raise RLIMIT_NOFILE (ulimit -n)",
        )
    return message


class Seat(NamedTuple):
    """What a job has while it runs: its worker's traces, and the number of its attempt there."""

    traces: Traces
    attempt: int


class Seated(Protocol):
    """What says the same, in whatever has a worker and an attempt."""

    @property
    def traces(self) -> Traces:
        """The worker's."""
        ...

    @property
    def attempt(self) -> int:
        """The number of the attempt there."""
        ...


class Kept:
    """What stays of a job; the dispatcher's thread writes it, at the end of each attempt.

    Attributes:
        progress: As `progress_of` takes it: what was noted, or None; shift of the clock.
        checkpoint: The last one, of whatever attempt.
        usage: Of the last attempt.
        earlier: How the last attempts before the present one have ended, in words.
        retry_at: When the next one may begin, on the monotonic clock.
    """

    __slots__ = ("checkpoint", "earlier", "progress", "retry_at", "usage")

    def __init__(self) -> None:
        self.progress: tuple[bytes | None, float] = None, 0.0
        self.checkpoint: Checkpoint | None = None
        self.usage: Usage | None = None
        self.earlier: tuple[str, ...] = ()
        self.retry_at = 0.0

    def peak(self) -> int | None:
        """Return the most bytes that the last attempt held; None: that is not known."""
        return None if self.usage is None else self.usage.peak_memory

    def go_on(self, end: str, delay: float) -> None:
        """The attempt has ended so, in words; in ``delay`` s there may be another one."""
        self.earlier = (*self.earlier, end)[-_MOST_EARLIER:]
        self.retry_at = time.monotonic() + delay
        self.usage = None

    def state(self) -> tuple[Any, ...]:
        """Return it as plain data, to be pickled; raises OSError."""
        checkpoint = self.checkpoint
        content = None
        if checkpoint is not None:
            content = checkpoint.call, checkpoint.buffers, bytes(checkpoint.to_bytes())
        return self.progress, None if self.usage is None else tuple(self.usage), content

    @classmethod
    def of_state(cls, state: tuple[Any, ...], shift: float) -> Kept:
        """The opposite; ``shift`` is what the clock there has to be put forward by here, in s."""
        kept = cls()
        (noted, before), usage, content = state
        kept.progress = noted, before + shift
        kept.usage = None if usage is None else Usage(*usage)
        if content is not None:
            call, buffers, data = content
            kept.checkpoint = Checkpoint(call, buffers, data, len(data))
        return kept

    def take(self, seat: Seated, told: bytes | None) -> None:
        """Keep what an attempt has left, as `Traces.left` has it.

        What makes no sense, which foreign code may have written, is passed over.
        """
        traces = seat.traces
        found = traces.left(seat.attempt, told)
        progress = found.get(facts.PROGRESS)
        if progress is not None:
            self.progress = progress, traces.shift
        usage = found.get(facts.USAGE)
        self.usage = None
        if usage is not None:
            with contextlib.suppress(struct.error):
                self.usage = usage_of(usage)
        noted = found.get(facts.CHECKPOINT)
        if noted is not None:
            with contextlib.suppress(struct.error, OSError):
                self.checkpoint = traces.checkpoint(noted) or self.checkpoint
        traces.forget(seat.attempt)


__all__ = ["Kept", "LocalTraces", "Seat", "Seated", "Traces"]
