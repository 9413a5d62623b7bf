"""`track`: `as_completed` with a progress bar.

Nothing here has a thread: the bar is drawn by whoever iterates, while they wait for the next job.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol, TextIO, TypeVar, cast

from .job import PrimitiveJob
from .markup import bar, clock
from .options import check_bool, check_seconds, shown
from .reloads import ipython_shell
from .status import FINAL_STATES, JobStatus
from .waiting import Watch, check_jobs, too_late

T = TypeVar("T")

REFRESH = 0.25  # s between two looks at the jobs
LINE_PAUSE = 10.0  # s between two lines where there is no bar
_MARGIN = 3  # columns, for the "^C" that a terminal writes
_LEAST_BAR, _MOST_BAR = 10, 40  # columns
_SHARE = 0.05  # of the time, at most, that goes into looking at many jobs


def track(
    jobs: Iterable[PrimitiveJob[T]],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    disable: bool = False,
) -> Iterator[PrimitiveJob[T]]:
    """Yield each job as soon as it is final, as `as_completed` does, and show how far they are.

    The bar tells how many of the jobs are final, failed, cancelled and running now, how many end
    per second, and how long the rest will take at that pace. It is drawn by rich if that is
    installed, else by tqdm; in a notebook it is part of the cell's output. Where there is neither,
    and where stderr is no terminal, there are plain lines, one in 10 s at most and one at the end.
    All goes to stderr. What the loop's body prints appears above the bar.

    The bar is drawn anew four times a second while the loop waits for a job; while its body runs,
    the bar stands still. A Ctrl-C ends the bar and the loop; the jobs go on.

    Args:
        jobs: Submitted jobs, of any pools; they are all taken at once.
        description: What stands before the bar; default "jobs".
        timeout: Seconds from this call in which all must be final; default None: no limit.
        disable: Show nothing; default False.

    Raises:
        JobError: At once, if a job was not submitted.
        ResultTimeoutError: When the time is over; the jobs go on.
        TypeError, ValueError: An argument is wrong; the message names it.
    """
    if not isinstance(cast("object", description), str):
        raise TypeError(f"description must be a str, not {shown(description)}")
    check_bool("disable", disable)
    seconds = check_seconds("timeout", timeout)
    end = None if seconds is None else time.monotonic() + seconds
    unique = list(dict.fromkeys(check_jobs(jobs)))
    label = " ".join("".join(c if c.isprintable() else " " for c in description).split())
    return _follow(unique, label, end, seconds, hidden=disable or not unique)


def _follow(
    jobs: list[PrimitiveJob[T]],
    label: str,
    end: float | None,
    timeout: float | None,
    *,
    hidden: bool,
) -> Iterator[PrimitiveJob[T]]:
    watch = Watch(jobs)
    del jobs  # a job that was yielded is not kept alive
    total = len(watch.waiters)
    with (
        contextlib.closing(watch),
        contextlib.closing(_Meter(label, watch.waiters, hidden=hidden)) as meter,
    ):
        while watch.waiters:
            due = meter.refresh()
            job = watch.next_final(due if end is None or (due and due < end) else end)
            if job is not None:
                meter.count(job)
                yield job
                del job
            elif end is not None and time.monotonic() >= end:
                raise too_late(len(watch.waiters), total, timeout)


class _View(Protocol):
    """Where the state of the jobs is shown."""

    pause: float
    """Seconds between two calls of `show`, at least."""

    def show(self, state: _State) -> None:
        """Show it."""

    def close(self, state: _State) -> None:
        """Show it for the last time."""


class _State:
    """How far the jobs are.

    Attributes:
        label: What stands before.
        total: How many there are.
        final: How many have ended; of them `failed` and `cancelled`.
        running: How many run.
        first: How many had ended at the beginning.
        since: When that was, on the monotonic clock.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self.final = self.failed = self.cancelled = self.running = self.first = 0
        self.since = time.monotonic()

    def add(self, status: JobStatus) -> None:
        """One more job has this status."""
        self.final += status in FINAL_STATES
        self.failed += status is JobStatus.ERROR
        self.cancelled += status is JobStatus.CANCELLED
        self.running += status is JobStatus.RUNNING

    def __str__(self) -> str:
        return self.text()

    def text(self, room: int | None = None) -> str:
        """All of it in a line, less where there is room for so many characters only."""
        passed = time.monotonic() - self.since
        ended = self.final - self.first
        failed = f"{self.failed} failed" if self.failed else ""
        cancelled = f"{self.cancelled} cancelled" if self.cancelled else ""
        running = f"{self.running} running" if self.running else ""
        rate = _rate(ended / passed) if ended and passed > 0 else ""
        if self.final == self.total:
            left = f"in {clock(passed)}" if ended else ""
        else:
            left = f"{clock(passed * (self.total - self.final) / ended)} left" if ended else ""
        parts = [f"{self.final}/{self.total}", failed, cancelled, running, rate, left]
        line = ", ".join(filter(None, parts))
        for dispensable in filter(None, (rate, running, cancelled, left, failed)):
            if room is None or len(line) <= room:
                break
            parts.remove(dispensable)
            line = ", ".join(filter(None, parts))
        return line


def _rate(rate: float) -> str:
    if rate >= 100:
        return f"{rate:.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


class _Meter:
    """Counts the jobs and shows them.

    Args:
        label: What stands before.
        waiting: Those that were not yielded: all at first, fewer as it goes on.
        hidden: Show nothing.
    """

    def __init__(self, label: str, waiting: Collection[PrimitiveJob[Any]], *, hidden: bool) -> None:
        self._yielded = _State(label, len(waiting))
        self._waiting = waiting
        self._view: _View | None = None
        self._due = 0.0
        if hidden:
            return
        self._yielded.first = sum(job.in_final_state() for job in waiting)
        self._view = _find_view(self._yielded)
        _open.add(self)

    def count(self, job: PrimitiveJob[Any]) -> None:
        """A job is yielded."""
        if self._view is not None:
            self._yielded.add(job.status())

    def refresh(self) -> float | None:
        """Show the state if it is time; return when it is again, on the monotonic clock."""
        if self._view is None:
            return None
        now = time.monotonic()
        if now >= self._due:
            state = self._look()
            spent = time.monotonic() - now
            try:
                self._view.show(state)
            except (OSError, ValueError):  # the terminal is gone: nobody looks any more
                self.close()
                return None
            self._due = time.monotonic() + max(self._view.pause, spent / _SHARE)
        return self._due

    def _look(self) -> _State:
        """What was yielded, and what the others are now: some may be final."""
        state = _State(self._yielded.label, self._yielded.total)
        vars(state).update(vars(self._yielded))
        for job in list(self._waiting):
            state.add(job.status())
        return state

    def close(self) -> None:
        """Show the state for the last time."""
        view, self._view = self._view, None
        if view is not None:
            _open.discard(self)
            with contextlib.suppress(OSError, ValueError):
                view.close(self._look())


_open: set[_Meter] = set()


@atexit.register
def _close_all() -> None:
    # An exception in the loop's body may keep the loop alive until then.
    for meter in list(_open):
        meter.close()


# --- where it is shown ----------------------------------------------------------------------------

_terminal = threading.Lock()  # whoever has it draws a bar there; nobody waits for it


def _find_view(state: _State) -> _View | None:
    """What suits: None if nothing does, or if a bar is on the terminal already."""
    if getattr(ipython_shell(), "kernel", None) is not None:
        return _Cell()
    stderr = sys.stderr
    if stderr is None:
        return None
    if not stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return _Lines(stderr)
    if not _terminal.acquire(blocking=False):
        return None
    try:
        for view in (_RichBar, _TqdmBar):
            with contextlib.suppress(ImportError):
                return view(state)
    except BaseException:
        _terminal.release()
        raise
    _terminal.release()
    return _Lines(stderr)


class _Lines:
    """Plain lines."""

    pause = LINE_PAUSE

    def __init__(self, stderr: TextIO) -> None:
        self._stderr = stderr
        self._begun = False

    def show(self, state: _State) -> None:
        if self._begun:
            self.close(state)
        self._begun = True

    def close(self, state: _State) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            print(f"{state.label}: {state}", file=self._stderr, flush=True)


class _Cell:
    """The output of a notebook's cell.

    Neither rich nor tqdm is asked here: without ipywidgets the one shows nothing, the other a text;
    with them, what a saved notebook shows depends on the front end.
    """

    pause = REFRESH

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, state: _State) -> None:
        from IPython.display import display

        bad = state.failed + state.cancelled
        counts = (state.final - bad, bad, state.running)
        html = bar(state.label, [count / state.total for count in counts], str(state))
        data = {"text/html": html, "text/plain": f"{state.label}: {state}"}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def close(self, state: _State) -> None:
        self.show(state)


class _Layout:
    """What fits into a line of a terminal."""

    def __init__(self, state: _State, fixed: int) -> None:
        columns = _columns() - _MARGIN
        label = state.label
        most = max(10, columns // 3)
        self.label = label if len(label) <= most else label[: most - 3] + "..."
        room = columns - len(self.label) - fixed
        self.text = state.text(room - _LEAST_BAR)
        self.bar = max(_LEAST_BAR, min(_MOST_BAR, room - len(self.text)))
        self.width = len(self.label) + fixed + self.bar + len(self.text)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.__stderr__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return 80


class _RichBar:
    """On a terminal, with rich."""

    pause = REFRESH

    def __init__(self, state: _State) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        layout = _Layout(state, len("  "))
        self._column = BarColumn(layout.bar)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            self._column,
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            auto_refresh=False,  # which would take a thread
            redirect_stdout=_mixed(),
        )
        self._task = self._progress.add_task(layout.label, total=state.total, text=layout.text)
        self._progress.start()
        # The loop's body may end the program: it need not know of a cursor that is hidden.
        console.show_cursor(True)

    def show(self, state: _State) -> None:
        layout = _Layout(state, len("  "))
        self._column.bar_width = layout.bar
        self._progress.update(
            self._task,
            description=layout.label,
            completed=state.final,
            text=layout.text,
            refresh=True,
        )

    def close(self, state: _State) -> None:
        try:
            self.show(state)
        finally:
            _terminal.release()
            self._progress.stop()


class _TqdmBar:
    """On a terminal, with tqdm."""

    pause = REFRESH

    def __init__(self, state: _State) -> None:
        from tqdm.std import tqdm

        self._streams = (sys.stdout, sys.stderr)
        unwatched = type("_Bar", (tqdm,), {"monitor_interval": 0})  # or there is a thread
        self._bar = unwatched(total=state.total, file=sys.stderr, bar_format="{desc}")
        if _mixed():
            sys.stdout = cast("TextIO", _Above(sys.stdout, self._bar))
        sys.stderr = cast("TextIO", _Above(sys.stderr, self._bar))

    def show(self, state: _State) -> None:
        layout = _Layout(state, len(": 100%|| "))
        self._bar.n, self._bar.desc, self._bar.ncols = state.final, layout.label, layout.width
        self._bar.bar_format = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {layout.text}"
        self._bar.refresh()

    def close(self, state: _State) -> None:
        try:
            self.show(state)
        finally:
            _terminal.release()
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
    return sys.stdout is not None and sys.stdout.isatty()


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
