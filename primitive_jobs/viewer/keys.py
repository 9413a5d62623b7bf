"""`Keyboard`: the keys of a terminal, one by one and without echo, and changes of its size."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import termios
import tty
from types import TracebackType

from .._common.signatures import Self

_REST_OF_KEY = 0.05  # s, in which the rest of a key comes that sends several characters
_SEQUENCES = {
    "[A": "up",
    "[B": "down",
    "OA": "up",
    "OB": "down",
    "[5~": "pageup",
    "[6~": "pagedown",
    "[H": "home",
    "[F": "end",
    "OH": "home",
    "OF": "end",
    "[1~": "home",
    "[4~": "end",
}
_NAMES = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace"}


class Keyboard:
    """The keys of stdin, which must be a terminal, while the context lasts.

    Ctrl-C stays what it is. Ctrl-Z does nothing: it would leave the terminal as it is here.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._fd)
        self._resized, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._handlers = {
            signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: None),
            signal.SIGTERM: signal.signal(signal.SIGTERM, _leave),
            signal.SIGHUP: signal.signal(signal.SIGHUP, _leave),
        }
        tty.setcbreak(self._fd, termios.TCSANOW)
        mode = termios.tcgetattr(self._fd)
        mode[6][termios.VSUSP] = b"\x00"  # that is none
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._resized)
        os.close(self._wake)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    @property
    def resized(self) -> int:
        """A descriptor that is readable after the window has another size; see `hush`."""
        return self._resized

    def hush(self) -> None:
        """Take in that it has."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._resized, 4096)

    def read(self) -> list[str]:
        """Return the keys that were pressed: names of special ones, characters else.

        Raises:
            EOFError: The terminal is gone.
        """
        text = self._more()
        if not text:
            raise EOFError
        while text.endswith(("\x1b", "\x1b[", "\x1bO")) and self._comes():
            text += self._more()
        return keys_in(text)

    def _more(self) -> str:
        try:
            return self._decode(os.read(self._fd, 1024))
        except OSError as error:  # EIO: its other side was closed
            raise EOFError from error

    def _comes(self) -> bool:
        return bool(select.select([self._fd], [], [], _REST_OF_KEY)[0])


def keys_in(text: str) -> list[str]:
    """Return what a terminal has sent as keys; those that nobody knows are left out."""
    keys = []
    place = 0
    while place < len(text):
        if text[place] != "\x1b":
            keys.append(_NAMES.get(text[place], text[place]))
            place += 1
            continue
        end = _end_of_sequence(text, place)
        sequence = text[place + 1 : end]
        if not sequence:
            keys.append("escape")
        elif sequence in _SEQUENCES:
            keys.append(_SEQUENCES[sequence])
        place = end
    return keys


def _end_of_sequence(text: str, place: int) -> int:
    """Where what begins with an Escape ends: ECMA-48, and O with one character behind it."""
    follows = text[place + 1 : place + 2]
    if follows == "O":
        return min(place + 3, len(text))
    if follows != "[":
        return place + 1
    end = place + 2
    while end < len(text) and not "@" <= text[end] <= "~":
        end += 1
    return min(end + 1, len(text))


def _leave(number: int, frame: object) -> None:
    del frame
    raise SystemExit(128 + number)


__all__ = ["Keyboard", "keys_in"]
