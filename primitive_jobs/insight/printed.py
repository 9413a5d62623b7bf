"""`Printed`: what a job has printed, as far as it is kept: its beginning, and its end.

The thread that hears of it appends: the dispatcher's, or a node's. What there is is one tuple that
nobody changes, replaced by another one: so any thread reads without a lock.
"""

from __future__ import annotations

import codecs
import itertools
import os
from typing import NamedTuple

from .tee import Tee

HEAD = 64 << 10  # bytes kept of the beginning
TAIL = 1 << 20  # bytes kept of the end
LAST = 4096  # bytes of what errors show
_BLOCK = 32 << 10  # bytes: short pieces are put together up to here
_WIDEST = 4  # bytes of a character


class _State(NamedTuple):
    """What is kept.

    Attributes:
        head: The beginning.
        total: Bytes that were printed.
        blocks: The end, if there is more than the beginning; what lies between is left out.
        held: Bytes of these.
        live: What a node has told beyond ``total``, of an attempt that runs: from where on, and the
            last bytes; None: nothing.
    """

    head: bytes = b""
    total: int = 0
    blocks: tuple[bytes, ...] = ()
    held: int = 0
    live: tuple[int, bytes] | None = None


class Printed:
    """What one job has printed, in all its attempts.

    Args:
        tee: Shows it, too; None: nobody does.
    """

    __slots__ = ("_state", "_tee")

    def __init__(self, tee: Tee | None = None) -> None:
        self._state = _State()
        self._tee = tee

    # --- for the thread that hears of it ---------------------------------------------------------

    def append(self, data: bytes) -> None:
        """Take in what comes next."""
        head, total, blocks, held, _ = self._state
        if self._tee is not None:
            self._tee.feed(total, data)
        at, total = total, total + len(data)
        if at == len(head) < HEAD:
            room = HEAD - at
            head, data = head + data[:room], data[room:]
        if data:
            held += len(data)
            if blocks and len(blocks[-1]) + len(data) <= _BLOCK:
                blocks = *blocks[:-1], blocks[-1] + data
            else:
                blocks = *blocks, data
            while held - len(blocks[0]) >= TAIL:
                held -= len(blocks[0])
                blocks = blocks[1:]
        self._state = _State(head, total, blocks, held)

    def skip(self, count: int) -> None:
        """Leave out so many bytes, and the end that there was before them."""
        if count:
            self._state = _State(self._state.head, self._state.total + count)

    def show(self, start: int, data: bytes) -> None:
        """Show the last bytes of an attempt that runs elsewhere, until `append` has all of it."""
        state = self._state
        start += state.total
        self._state = _State(state.head, state.total, state.blocks, state.held, (start, data))
        if self._tee is not None:
            self._tee.feed(start, data)

    def end_attempt(self) -> None:
        """Show what was printed without a newline, too, and keep what `show` has shown last."""
        live = self._state.live
        if live is not None:  # whoever told it did not live to tell all
            self.skip(live[0] - self._state.total)
            self.append(live[1])
        if self._tee is not None:
            self._tee.end_line()

    def wait_shown(self) -> None:
        """Wait a moment until whoever shows it has done so."""
        if self._tee is not None:
            self._tee.wait_shown()

    @property
    def is_behind(self) -> bool:
        """Whether whoever shows it does not keep up: then the job shall wait, as at a terminal."""
        return self._tee is not None and self._tee.is_behind

    # --- for any thread --------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self._state.total or self._state.live)

    @property
    def total(self) -> int:
        """How many bytes were printed."""
        return self._state.total

    def whole(self) -> tuple[bytes, int, bytes]:
        """Return the beginning, how many bytes are left out, and the end."""
        head, total, blocks, _, _ = self._state
        end = b"".join(blocks)[-TAIL:]
        return head, total - len(head) - len(end), end

    def last(self, count: int) -> bytes:
        """Return at most so many bytes of the end."""
        head, _, blocks, held, _ = self._state
        if not blocks:
            return head[-count:] if self._state.total == len(head) else b""
        pieces = blocks if held >= count else (head, *blocks)
        return b"".join(pieces)[-count:]

    def piece(self, place: int, most: int) -> tuple[int, bytes]:
        """Return at most so many bytes from a place on, or from the next one that is kept.

        Return where they begin, too.
        """
        state = self._state
        end = b"".join(state.blocks)[-TAIL:]
        pieces = [(0, state.head), (state.total - len(end), end)]
        if state.live is not None:
            pieces.append(state.live)
        for start, data in pieces:
            if start + len(data) > place:
                first = max(place, start)
                return first, data[first - start : first - start + most]
        return place, b""

    def text(self, tail: int | None = None, *, over: bool = True) -> str:
        """Return it as text.

        Args:
            tail: At most so many bytes of the end; None: all that is kept.
            over: Whether nothing more comes; else half a character at the end is left out.
        """
        state = self._state
        end = b"".join(state.blocks)[-TAIL:]
        pieces = [(0, state.head), (state.total - len(end), end)]
        total = state.total
        if state.live is not None:
            pieces.append(state.live)
            total = state.live[0] + len(state.live[1])
        return _joined(pieces, 0 if tail is None else max(0, total - tail), over=over)


def _joined(pieces: list[tuple[int, bytes]], first: int, *, over: bool) -> str:
    """Return pieces, each with the place where it begins, as text, from a place on."""
    runs: list[tuple[int, bytes]] = []
    for start, data in pieces:
        if start < first:
            start, data = first, data[first - start :]
        if not data:
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == start:
            runs[-1] = runs[-1][0], runs[-1][1] + data
        else:
            runs.append((start, data))
    text, at = "", first
    for (start, data), following in itertools.zip_longest(runs, runs[1:]):
        if start:
            data = _from_character(data)
            if at != first:
                text += f"\n[... {start - at:,} bytes left out ...]\n"
        at = start + len(data)
        text += codecs.getincrementaldecoder("utf-8")("replace").decode(
            data, over and following is None
        )
    return text


def _from_character(data: bytes) -> bytes:
    """Leave out the rest of a character that begins before."""
    for place in range(min(_WIDEST, len(data))):
        if data[place] & 0xC0 != 0x80:
            return data[place:]
    return data


class Prints:
    """What becomes of what a job prints.

    Attributes:
        path: The file that it goes to; None: it is kept here.
        printed: What is kept.
    """

    __slots__ = ("__weakref__", "path", "printed")

    def __init__(self, path: str | None, tee: Tee | None = None) -> None:
        self.path = path
        self.printed = Printed(tee)

    def text(self, tail: int | None = None, *, over: bool = True) -> str | None:
        """Return it, or its end; None where the file cannot be read. Reads files: not for threads
        of a pool.
        """
        if self.path is None:
            return self.printed.text(tail, over=over)
        return _file_text(self.path, tail, "" if not over else None)


def _file_text(path: str, tail: int | None, missing: str | None) -> str | None:
    """Return a file's text, or its last bytes; None: it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - `Path` is not needed otherwise
            size = os.fstat(file.fileno()).st_size
            first = 0 if tail is None else max(0, size - tail)
            file.seek(first)
            data = file.read()
    except FileNotFoundError:
        return missing
    except OSError:
        return None
    return (_from_character(data) if first else data).decode("utf-8", "replace")


__all__ = ["HEAD", "LAST", "TAIL", "Printed", "Prints"]
