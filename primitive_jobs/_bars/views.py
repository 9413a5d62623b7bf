"""Where a `State` is shown: on a terminal, in a notebook's cell, or as plain lines.

Nothing here has a thread, and all of it runs on the thread that iterates.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TextIO, cast

from .._common.markup import bar
from .._engine.code_watch import ipython_shell
from .state import State

REFRESH = 0.25  # s between two looks at the jobs
LINE_PAUSE = 10.0  # s between two lines where there is no bar
_MARGIN = 3  # columns, for the "^C" that a terminal writes
_OTHER_ROWS = 3  # of the terminal, that are not for details
_USUAL_COLUMNS, _USUAL_ROWS = 80, 24  # where the terminal does not say
_LEAST_BAR, _MOST_BAR = 10, 40  # columns


class View(Protocol):
    """Where the state of the jobs is shown."""

    pause: float
    """Seconds between two calls of `show`, at least."""

    def open(self, state: State) -> None:
        """Begin; an ImportError says that it cannot."""

    def show(self, state: State) -> None:
        """Show it."""

    def close(self, state: State) -> None:
        """Show it for the last time; also if `open` was not called or came to nothing."""


def find_views(meter: object, drawing: list[Any], *, details: bool) -> Iterator[View]:
    """What suits, the best first: nothing if a bar is on the terminal already.

    Args:
        meter: Who asks.
        drawing: Those that draw; the first of them has the terminal.
        details: Whether running jobs have lines of their own, which tqdm does not draw.
    """
    if getattr(ipython_shell(), "kernel", None) is not None:
        yield _Cell()
        return
    stderr = sys.stderr
    if stderr is None:
        return
    if _is_terminal(stderr) and os.environ.get("TERM") not in ("dumb", "unknown"):
        drawing.append(meter)  # nobody waits for a lock
        if drawing[0] is not meter:
            drawing.remove(meter)
            return
        yield _RichBar(details=details)
        if not details:
            yield _TqdmBar()
        drawing.remove(meter)
    yield _Lines(stderr)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # it has a `write` only, or is closed
        return False


class _Lines:
    """Plain lines."""

    pause = LINE_PAUSE

    def __init__(self, stderr: TextIO) -> None:
        self._stderr = stderr
        self._begun = False

    def open(self, state: State) -> None:
        """There is nothing to be done."""

    def show(self, state: State) -> None:
        if self._begun:
            self.close(state)
        self._begun = True

    def close(self, state: State) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            print(f"{state.label}: {state}", file=self._stderr)
            for detail in state.details or ():
                print(f"  {detail}", file=self._stderr)
            with contextlib.suppress(AttributeError):  # it has a `write` only
                self._stderr.flush()


class _Cell:
    """The output of a notebook's cell.

    Neither rich nor tqdm is asked here: without ipywidgets the one shows nothing, the other a text;
    with them, what a saved notebook shows depends on the front end.
    """

    pause = REFRESH

    def __init__(self) -> None:
        self._handle: Any = None

    def open(self, state: State) -> None:
        """There is nothing to be done."""

    def show(self, state: State) -> None:
        from IPython.display import display

        bad = state.failed + state.cancelled
        counts = (state.final - bad + state.partial, bad, state.running - state.partial)
        total = max(state.total or 0, state.final + state.running, 1)
        html = bar(state.label, [count / total for count in counts], str(state))
        for detail in state.details or ():
            done = detail.fraction or 0.0
            html += bar(detail.name, [done, 0.0, 1.0 - done], detail.text)
        lines = [f"{state.label}: {state}", *(f"  {detail}" for detail in state.details or ())]
        data = {"text/html": html, "text/plain": "\n".join(lines)}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def close(self, state: State) -> None:
        self.show(state)


class _Layout:
    """What fits into a line of a terminal.

    The line is filled up with blanks to its last column. A terminal goes on to the next line only
    with the next character then: what a job prints, of which nobody here knows, begins below the
    bar instead of in it.
    """

    def __init__(self, label: str, fixed: int, text: Callable[[int], str]) -> None:
        known = _known_size()[0]
        columns = (known or _USUAL_COLUMNS) - _MARGIN
        most = max(10, columns // 3)
        self.label = label if len(label) <= most else label[: most - 3] + "..."
        room = columns - len(self.label) - fixed
        self.text = text(room - _LEAST_BAR)
        self.bar = max(_LEAST_BAR, min(_MOST_BAR, room - len(self.text)))
        self.width = len(self.label) + fixed + self.bar + len(self.text)
        self.blanks = max(0, known - self.width)


def _known_size() -> tuple[int, int]:
    """How many columns and lines the terminal has; 0 where it does not say."""
    try:
        return os.get_terminal_size(sys.__stderr__.fileno())  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return 0, 0


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 3)] + "..."


class _RichBar:
    """On a terminal, with rich."""

    pause = REFRESH

    def __init__(self, *, details: bool) -> None:
        self._progress: Any = None
        self._details = details
        self._lines: list[Any] = []  # tasks of the lines for running jobs

    def open(self, state: State) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        # What the loop's body prints stays as it is.
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        layout = _Layout(state.label, len("  "), state.text)
        self._column = BarColumn(layout.bar)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            self._column,
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            auto_refresh=False,  # which would take a thread
            redirect_stdout=_mixed(),
        )
        self._task = self._progress.add_task(
            layout.label, total=state.total, text=layout.text + layout.blanks * " "
        )
        self._progress.start()
        # The loop's body may end the program: it need not know of a cursor that is hidden.
        console.show_cursor(True)

    def show(self, state: State) -> None:
        layout = _Layout(state.label, len("  "), state.text)
        self._column.bar_width = layout.bar
        self._progress.update(
            self._task,
            description=layout.label,
            total=state.total,
            completed=state.reached(),
            text=layout.text + layout.blanks * " ",
        )
        if self._details:
            self._show_details(state)
        self._progress.refresh()

    def _show_details(self, state: State) -> None:
        """Show as many running jobs as there is room for."""
        rows = (_known_size()[1] or _USUAL_ROWS) - _OTHER_ROWS
        details = list(state.details or ())
        shown = details[: max(1, rows)]
        while len(self._lines) < len(shown):
            self._lines.append(self._progress.add_task("", total=1.0, text=""))
        for line, detail in zip(self._lines, shown, strict=False):
            layout = _Layout(detail.name, len("  "), partial(_cut, detail.text))
            self._progress.update(
                line,
                description=layout.label,
                total=None if detail.fraction is None else 1.0,
                completed=detail.fraction or 0.0,
                text=layout.text + layout.blanks * " ",
            )
        for line in self._lines[len(shown) :]:
            self._progress.remove_task(line)
        del self._lines[len(shown) :]
        if len(details) > len(shown):
            more = f"and {len(details) - len(shown) + 1} more running"
            self._progress.update(self._lines[-1], description="...", total=None, text=more)

    def close(self, state: State) -> None:
        if self._progress is not None:
            try:
                self.show(state)
            finally:
                self._progress.stop()


class _TqdmBar:
    """On a terminal, with tqdm."""

    pause = REFRESH

    def __init__(self) -> None:
        self._bar: Any = None

    def open(self, state: State) -> None:
        from tqdm.std import tqdm

        self._streams = (sys.stdout, sys.stderr)
        unwatched: Any = type("_Bar", (tqdm,), {"monitor_interval": 0})  # or there is a thread
        # tqdm draws nothing where the terminal has no size, or two lines.
        size = {"ncols": _known_size()[0] or _USUAL_COLUMNS, "nrows": 20}
        self._bar = unwatched(total=state.total, file=sys.stderr, bar_format="{desc}", **size)
        if _mixed():
            sys.stdout = cast("TextIO", _Above(sys.stdout, self._bar))
        sys.stderr = cast("TextIO", _Above(sys.stderr, self._bar))

    def show(self, state: State) -> None:
        share = ": {percentage:3.0f}%|" if state.total else ": |"
        fixed = len(": 100%|| ") if state.total else len(": || ")
        layout = _Layout(state.label, fixed, state.text)
        self._bar.n, self._bar.desc, self._bar.total = state.reached(), layout.label, state.total
        self._bar.ncols = layout.width + layout.blanks
        blanks = layout.blanks * " "
        self._bar.bar_format = f"{{desc}}{share}{{bar:{layout.bar}}}| {layout.text}{blanks}"
        self._bar.refresh()

    def close(self, state: State) -> None:
        if self._bar is None:
            return
        try:
            self.show(state)
        finally:
            above = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, _Above)]
            # What the loop's body has put there meanwhile is its own affair.
            out, err = self._streams
            sys.stdout = out if sys.stdout in above else sys.stdout
            sys.stderr = err if sys.stderr in above else sys.stderr
            for stream in above:
                stream.write_rest()
            self._bar.close()


def _mixed() -> bool:
    """Whether what is printed goes to the bar's terminal too."""
    return sys.stdout is not None and _is_terminal(sys.stdout)


class _Above:
    """A stream whose lines appear above a bar of tqdm."""

    def __init__(self, stream: TextIO, progress: Any) -> None:
        self._stream = stream
        self._progress = progress
        self._rest = ""

    def write(self, text: str) -> int:
        lines, newline, rest = text.rpartition("\n")
        if newline:
            self._progress.clear()
            self._stream.write(self._rest + lines + newline)
            self._stream.flush()
            self._progress.refresh()
            self._rest = rest
        else:
            self._rest += text
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._rest:  # a prompt, say
            self._progress.clear()
            self._stream.write(self._rest)
            self._rest = ""
        self._stream.flush()

    def write_rest(self) -> None:
        """Write what has no end of line."""
        if self._rest:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


__all__ = ["LINE_PAUSE", "REFRESH", "View", "find_views"]
