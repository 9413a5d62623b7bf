"""What is seen of jobs on nodes: `TraceRelay` tells it there, `RemoteTraces` has it in the program.

While a job runs its node looks twice a second for what is new in the worker's page; at its end the
node tells what is left. All that goes in the lane of the worker, so before the outcome. A monotonic
clock is its machine's own, so each frame says what the node's shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .._wire import facts
from ..insight.printed import Printed
from ..insight.salvage import Checkpoint, header_of
from ..insight.traces import LocalTraces, Traces
from .line import Frame

PAUSE = 0.5  # s between two looks
_SHOWN = 64 << 10  # bytes of what was printed that are told then
_RATE = 16e6  # bytes of checkpoints in a second, while the job runs


class _Told:
    """What the pool knows of a worker's attempt."""

    __slots__ = ("attempt", "checkpoint", "not_before", "printed", "progress", "shown", "traces")

    def __init__(self, attempt: int, traces: LocalTraces) -> None:
        self.attempt = attempt
        self.traces = traces
        self.progress: bytes | None = None
        self.checkpoint: bytes | None = None
        self.not_before = 0.0  # the next checkpoint may go; monotonic
        self.printed = Printed()
        self.shown = 0  # bytes of that
        traces.print_into(attempt, self.printed)


class TraceRelay:
    """On a node: tells a pool of its jobs there; used on the session's thread.

    Args:
        workers: Those of the pool, by slot.
        send: Sends a frame: (frame, lane, data).
    """

    def __init__(self, workers: Mapping[int, Any], send: Callable[..., object]) -> None:
        self._workers = workers
        self._send = send
        self._told: dict[int, _Told] = {}
        self._next = 0.0

    def begin(self, slot: int, attempt: int) -> None:
        """A worker has a job."""
        if not self._told:
            self._next = time.monotonic() + PAUSE
        self._told[slot] = _Told(attempt, self._workers[slot].traces)

    def pause(self) -> float:
        """Return the seconds until the next look is due; negative: none is."""
        return max(0.0, self._next - time.monotonic()) if self._told else -1.0

    def look(self) -> None:
        """Tell what is new, if it is time."""
        now = time.monotonic()
        if not self._told or now < self._next:
            return
        self._next = now + PAUSE
        for slot, told in self._told.items():
            self._look_at(slot, told, now)

    def _look_at(self, slot: int, told: _Told, now: float) -> None:
        traces = told.traces
        found, content, buffers = {}, None, 0
        progress = traces.progress(told.attempt)
        if progress is not None and progress != told.progress:
            found[facts.PROGRESS] = told.progress = progress
        noted = traces.noted(told.attempt)
        if noted is not None and noted != told.checkpoint and now >= told.not_before:
            newest = traces.newest(told.attempt)
            if newest is not None:
                noted, content = newest
                found[facts.CHECKPOINT] = told.checkpoint = noted
                buffers = header_of(noted).buffers
                told.not_before = now + len(content) / _RATE
        if found:
            self._tell(slot, told.attempt, found, content, buffers)
        total = told.printed.total
        if total > told.shown:
            last = told.printed.last(min(total - told.shown, _SHOWN))
            told.shown = total
            frame = {"frame": "printing", "slot": slot, "attempt": told.attempt}
            self._send({**frame, "start": total - len(last)}, slot, last)

    def end(self, slot: int, notes: bytes | None) -> None:
        """A worker's job is over: tell what is left, before its outcome; None: the worker died."""
        told = self._told.pop(slot, None)
        if told is None:
            return
        traces = told.traces
        traces.drain()
        if told.printed:
            head, left_out, end = told.printed.whole()
            frame = {"frame": "printed", "slot": slot, "attempt": told.attempt}
            self._send({**frame, "head": len(head), "left_out": left_out}, slot, head + end)
        found = traces.left(told.attempt, notes)
        content, buffers = None, 0
        noted = found.get(facts.CHECKPOINT)
        if noted is not None and noted != told.checkpoint:
            checkpoint = traces.checkpoint(noted)
            if checkpoint is not None:
                content, buffers = checkpoint.to_bytes(), checkpoint.buffers
        if found:
            self._tell(slot, told.attempt, found, content, buffers)
        traces.forget(told.attempt)

    def _tell(
        self,
        slot: int,
        attempt: int,
        found: dict[int, bytes],
        content: bytes | bytearray | None,
        buffers: int,
    ) -> None:
        frame = {
            "frame": "traces",
            "slot": slot,
            "attempt": attempt,
            "at": time.monotonic(),
            "facts": facts.packed(found),
            "buffers": buffers,
        }
        self._send(frame, slot, content)


class RemoteTraces(Traces):
    """What a node has told of a worker; the dispatcher's thread writes it."""

    def __init__(self) -> None:
        self._attempt = 0
        self._facts: dict[int, bytes] = {}
        # The last one that came, as it is noted, and as it is to be loaded.
        self._checkpoint: tuple[bytes, Checkpoint] | None = None
        self._shift: float | None = None
        self._prints: tuple[int, Printed] | None = None  # an attempt, and what it prints

    def print_into(self, attempt: int, printed: Printed) -> None:
        """Have what the node tells of that attempt go there."""
        self._prints = attempt, printed

    def drain(self) -> None:
        """All has come: the node tells of it before the outcome."""
        if self._prints is not None:
            self._prints[1].end_attempt()

    def heard_printing(self, frame: Frame) -> None:
        """Take in the last bytes that an attempt has printed."""
        if self._prints is not None and self._prints[0] == frame["attempt"]:
            self._prints[1].show(frame["start"], bytes(frame.get("data") or b""))

    def heard_printed(self, frame: Frame) -> None:
        """Take in all that is kept of what an attempt has printed."""
        if self._prints is not None and self._prints[0] == frame["attempt"]:
            printed, data = self._prints[1], bytes(frame.get("data") or b"")
            printed.append(data[: frame["head"]])
            printed.skip(frame["left_out"])
            printed.append(data[frame["head"] :])

    @property
    def shift(self) -> float:
        """That of the frame which took least on its way."""
        return self._shift or 0.0

    def heard(self, frame: Frame) -> None:
        """Take in what the node has told."""
        if frame["attempt"] != self._attempt:
            self._facts, self._checkpoint = {}, None  # first: another thread may be reading
            self._attempt = frame["attempt"]
        shift = time.monotonic() - frame["at"]
        self._shift = shift if self._shift is None else min(shift, self._shift)
        found = facts.unpacked(frame["facts"])
        noted, content = found.get(facts.CHECKPOINT), frame.get("data")
        if noted is not None and content is not None:
            call = header_of(noted).call
            made = Checkpoint(call, frame["buffers"], bytes(content), len(content))
            self._checkpoint = noted, made
        # Another dict, which no reader sees half of.
        self._facts = {**self._facts, **found}

    def _facts_of(self, attempt: int) -> dict[int, bytes]:
        return self._facts if attempt == self._attempt else {}

    def progress(self, attempt: int) -> bytes | None:
        """Return what was told last."""
        return self._facts_of(attempt).get(facts.PROGRESS)

    def load(self, attempt: int) -> list[Any]:
        """Make the last one that came."""
        found = self._checkpoint
        if found is None or attempt != self._attempt or header_of(found[0]).attempt != attempt:
            return []
        return [found[1].load()]

    def copied(self, attempt: int, last: object) -> tuple[bytes, Checkpoint] | None:
        """Return the last one that came, which nobody changes."""
        found = self._checkpoint
        if found is None or found[0] == last or header_of(found[0]).attempt != attempt:
            return None
        return found

    def left(self, attempt: int, told: bytes | None) -> dict[int, bytes]:
        """Return all that was told; it came before the outcome."""
        found = dict(self._facts_of(attempt))
        return found if told is None else {**found, **facts.unpacked(told)}

    def checkpoint(self, noted: bytes) -> Checkpoint | None:
        """Return the last one that came: that one, as a rule."""
        del noted
        return None if self._checkpoint is None else self._checkpoint[1]

    def forget(self, attempt: int) -> None:
        """Drop it all."""
        if attempt >= self._attempt:
            self._facts, self._checkpoint = {}, None


__all__ = ["PAUSE", "RemoteTraces", "TraceRelay"]
