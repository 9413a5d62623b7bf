"""The live table in a terminal: `Screen`, drawn by rich."""

# rich need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .commands import NoOutput, NoStack, outcome, output_of, stack_of
from .keys import Keyboard
from .link import Link, LinkLost
from .screen import Line, Screen
from .table import Row, rows_of
from .watch import Watch

_LOOKS = {"": "", "title": "bold", "mark": "reverse", "faint": "dim", "ask": "bold yellow"}


class _Jobs:
    """What the user has done to jobs, each time over a connection of its own."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.links: dict[Link, Row] = {}

    def cancel(self, row: Row) -> str:
        """Have a job cancelled; return what to tell of that now."""
        try:
            link = self._link_to(row)
            self.links[link] = row
            link.ask("cancel", id=row.id)
        except LinkLost as error:
            return str(error)
        return f"job {row.name} is being cancelled"

    def stack(self, row: Row) -> list[str]:
        """Return where a job is; it takes some 3 s at most."""
        return self._told(row, stack_of)

    def output(self, row: Row) -> list[str]:
        """Return what a job has printed."""
        return self._told(row, output_of)

    def _told(self, row: Row, tell: Callable[[Link, dict[str, Any]], list[str]]) -> list[str]:
        link: Link | None = None
        try:
            link = self._link_to(row)
            return tell(link, row.job)
        except (NoOutput, NoStack, LinkLost) as error:
            return str(error).splitlines()
        finally:
            if link is not None:
                link.close()

    def _link_to(self, row: Row) -> Link:
        for program in self._watch.programs():
            for pool in program.pools:
                if pool.link is not None and any(job.get("id") == row.id for job in pool.rows):
                    return Link(pool.link.found)
        raise LinkLost(f"job {row.name} is over")

    def take_in(self, link: Link) -> str | None:
        """Return what became of one; None: that is not known yet."""
        try:
            answer = link.receive()
        except LinkLost as error:
            text: str | None = str(error)
        else:
            text = None if answer is None else outcome(self.links[link].job, answer)[0]
        if text is not None:
            self._drop(link)
        return text

    def _drop(self, link: Link) -> None:
        del self.links[link]
        link.close()

    def close(self) -> None:
        """Wait for none of them."""
        for link in list(self.links):
            self._drop(link)


class _Table:
    """The loop: what is said, pressed and shown."""

    def __init__(self, live: Live, keyboard: Keyboard, pause: float, text: str) -> None:
        self._live = live
        self._keyboard = keyboard
        self._pause = pause
        self._watch = Watch()
        self._jobs = _Jobs(self._watch)
        self._screen = Screen(text, self._cancel, self._jobs.stack, self._jobs.output, self._leave)
        self._over = False
        self._rows: list[Row] = []

    def run(self) -> None:
        """Show it until the user wants no more."""
        due = 0.0
        try:
            while not self._over:
                if time.monotonic() >= due:
                    self._watch.ask()
                    due = time.monotonic() + self._pause
                    self._watch.hear_all(min(0.2, self._pause))
                    self._measure()
                self._draw()
                self._wait(due - time.monotonic())
        finally:
            self._jobs.close()
            self._watch.close()

    def _wait(self, seconds: float) -> None:
        keyboard = self._keyboard
        resized = _Descriptor(keyboard.resized)
        for ready in self._watch.hear(seconds, keyboard, resized, *self._jobs.links):
            if ready is keyboard:
                for key in keyboard.read():
                    self._screen.press(key)
            elif isinstance(ready, Link):
                self._screen.message = self._jobs.take_in(ready) or self._screen.message
            else:
                keyboard.hush()

    def _measure(self) -> None:
        self._rows = rows_of(self._watch.programs(), self._watch.loads)

    def _draw(self) -> None:
        self._screen.take_in(self._watch.programs(), self._rows)
        size = self._live.console.size
        self._live.update(_text(self._screen.lines(size.width, size.height)), refresh=True)

    def _cancel(self, row: Row) -> None:
        self._screen.message = self._jobs.cancel(row)

    def _leave(self) -> None:
        self._over = True


class _Descriptor:
    """A number, as something with a descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


def _text(lines: list[Line]) -> Text:
    text = Text(no_wrap=True, overflow="crop", end="")
    for place, line in enumerate(lines):
        text.append(line.text, _LOOKS[line.look])
        if place < len(lines) - 1:
            text.append("\n")
    return text


def show(pause: float, text: str) -> int:
    """Show the table until the user leaves it; return the exit status."""
    console = Console()
    live = Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False)
    with Keyboard() as keyboard, live:
        try:
            _Table(live, keyboard, pause, text).run()
        except (EOFError, KeyboardInterrupt):  # the terminal is gone; Ctrl-C is as good as q
            pass
    return 0


__all__ = ["show"]
