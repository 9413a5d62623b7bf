"""`Screen`: what the live table shows, and what each key does to it; without any terminal.

It keeps what the user has chosen: the job that is marked, order, filter, what is asked. The keys
change that, and `lines` draws programs and rows with it, cut to the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .table import (
    ORDERS,
    SHORT_ID,
    Row,
    columns,
    cut,
    matches,
    ordered,
    plain,
    plain_line,
    summary,
)
from .watch import Program, unlisted

_HELP = (
    "↑↓ mark  k cancel  s stack  o output  / filter  "
    "e c m p n sort by elapsed, CPU, memory, progress, name  q quit"
)
_ORDER_OF_KEY = {order[0]: order for order in ORDERS}
_STEPS = {"up": -1, "down": 1}


class Line(NamedTuple):
    """One line of the window.

    Attributes:
        text: What it shows, as wide as the window.
        look: How: "", "title", "mark", "faint" or "ask".
    """

    text: str
    look: str = ""


class Screen:
    """What is shown, and chosen.

    Args:
        text: What rows that are shown contain.
        cancel: Called with a row whose job is to be cancelled.
        stack: Returns where the job of a row is, in lines.
        output: Returns what it has printed: a line that says so, and what came.
        leave: Called when the user wants no more.
    """

    def __init__(
        self,
        text: str,
        cancel: Callable[[Row], None],
        stack: Callable[[Row], list[str]],
        output: Callable[[Row], list[str]],
        leave: Callable[[], None],
    ) -> None:
        self.filter = text
        self.order = "elapsed"
        self.message = ""
        self._cancel = cancel
        self._stack = stack
        self._output = output
        self._leave = leave
        self._rows: list[Row] = []
        self._programs: list[Program] = []
        self._marked: str | None = None  # the id of a job
        self._place = 0  # where that was when it was last seen
        self._first = 0  # row of those in the window
        self._height = 1  # of them
        self._typing: str | None = None  # a filter, and what it was before
        self._asking: Row | None = None  # whether that one is to be cancelled
        self._reading: list[str] = []  # a stack, or output, in the place of the table

    # --- what there is -----------------------------------------------------------------------

    def take_in(self, programs: list[Program], rows: Sequence[Row]) -> None:
        """Show these from now on; the mark stays at its job, or where that was."""
        self._programs = programs
        commands = {program.pid: program.command for program in programs}
        found = [row for row in rows if matches(row, commands.get(row.program, ""), self.filter)]
        self._rows = ordered(found, self.order)
        ids = [row.id for row in self._rows]
        if self._marked in ids:
            self._place = ids.index(self._marked)
        else:
            self._mark(self._place)

    @property
    def marked(self) -> Row | None:
        """The row that is marked."""
        return self._rows[self._place] if self._rows else None

    def _mark(self, place: int) -> None:
        self._place = max(0, min(place, len(self._rows) - 1))
        self._marked = self._rows[self._place].id if self._rows else None

    # --- keys --------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key is for; `take_in` has to follow."""
        self.message = ""
        if self._reading:
            self._reading = []
        elif self._typing is not None:
            self._type(key)
        elif self._asking is not None:
            row, self._asking = self._asking, None
            if key in ("y", "Y"):
                self._cancel(row)
            else:
                self.message = "nothing was cancelled"
        elif key in _STEPS:
            self._mark(self._place + _STEPS[key])
        elif key in ("pageup", "pagedown"):
            self._mark(self._place + (self._height if key == "pagedown" else -self._height))
        elif key in ("home", "end"):
            self._mark(0 if key == "home" else len(self._rows))
        elif key in _ORDER_OF_KEY:
            self.order = _ORDER_OF_KEY[key]
        elif key == "/":
            self._typing = self.filter
        elif key == "escape":
            self.filter = ""
        elif key == "k":
            self._asking = self.marked
        elif key == "s" and self.marked is not None:
            self._reading = self._stack(self.marked)
        elif key == "o" and self.marked is not None:
            head, *lines = self._output(self.marked)
            self._reading = [head, *lines[-max(1, self._height) :]]
        elif key in ("q", "\x04"):
            self._leave()

    def _type(self, key: str) -> None:
        if key == "escape":
            self.filter = self._typing or ""
            self._typing = None
        elif key == "enter":
            self._typing = None
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key

    # --- the window --------------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Line]:
        """Return what a window of this size shows: exactly as many lines as it has."""
        if self._reading:
            return _filled(list(map(Line, self._reading)), Line("any key", "ask"), width, height)
        head = [self._title(), *self._program_lines(max(1, height // 4)), Line("")]
        self._height = max(1, height - len(head) - 2)  # without titles and the last line
        # The mark stays in the window.
        last = max(0, len(self._rows) - self._height)
        self._first = max(0, min(self._first, self._place, last))
        self._first = max(self._first, self._place - self._height + 1)
        seen = self._rows[self._first : self._first + self._height]
        # All rows count for the widths, or they would change with each step.
        texts = columns(self._rows, width)
        body = [Line(texts[0], "title")]
        for place in range(self._first, self._first + len(seen)):
            row = self._rows[place]
            look = "mark" if place == self._place else "" if row.runs else "faint"
            body.append(Line(texts[place + 1], look))
        return _filled([*head, *body], self._last_line(), width, height)

    def _title(self) -> Line:
        running = sum(row.runs for row in self._rows)
        shown = f"{running} running and {len(self._rows) - running} queued jobs are listed"
        more = unlisted(self._programs)
        if more:
            shown += f", {more} more are queued"
        return Line(f"{len(self._programs)} programs; {shown}; by {self.order}", "title")

    def _program_lines(self, most: int) -> list[Line]:
        lines = [Line(summary(program)) for program in self._programs]
        if not lines:
            return [Line("no program of yours has a pool that can be seen")]
        if len(lines) <= most:
            return lines
        return [*lines[: most - 1], Line(f"and {len(lines) - most + 1} more programs")]

    def _last_line(self) -> Line:
        if self._asking is not None:
            row = self._asking
            what = f"{row.name} ({row.id[:SHORT_ID]}) of process {row.program}"
            return Line(f"cancel job {what}? y/n", "ask")
        if self._typing is not None:
            return Line(f"filter: {plain_line(self.filter)}_", "ask")
        if self.message:
            return Line(plain(self.message), "ask")
        told = f"filter: {plain_line(self.filter)} (Esc: none)  " if self.filter else ""
        return Line(told + _HELP, "faint")


def _filled(lines: list[Line], last: Line, width: int, height: int) -> list[Line]:
    """Return lines as a window of this size, with the last one at its bottom."""
    lines = lines[: max(0, height - 1)]
    lines += [Line("")] * (height - 1 - len(lines))
    return [Line(cut(line.text, width), line.look) for line in [*lines, last]]


__all__ = ["Line", "Screen"]
