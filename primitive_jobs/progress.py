"""`track`: `as_completed` with a progress bar.

Nothing here has a thread: the bar is drawn by whoever iterates, while they wait for the next job.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from types import FrameType
from typing import Any, Protocol, TextIO, TypeVar, cast, overload

from ._common.markup import bar
from ._engine.code_watch import ipython_shell
from ._wire.pickling import LEFT_OUT
from .errors import ResultTimeoutError
from .job import PrimitiveJob
from .map_results import MapResults, Progress, progress_of
from .options import check_bool, check_seconds, shown
from .pace import State, ran
from .waiting import Watch, check_jobs, check_one_iterable, too_late

T = TypeVar("T")

REFRESH = 0.25  # s between two looks at the jobs
LINE_PAUSE = 10.0  # s between two lines where there is no bar
_MARGIN = 3  # columns, for the "^C" that a terminal writes
_USUAL_COLUMNS = 80  # where the terminal does not say
_LEAST_BAR, _MOST_BAR = 10, 40  # columns
_SHARE = 0.05  # of the time, at most, that goes into looking at many jobs


@overload
def track(
    jobs: Iterable[PrimitiveJob[T]],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    disable: bool = False,
) -> Iterator[PrimitiveJob[T]]: ...
@overload
def track(
    jobs: MapResults[T],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    disable: bool = False,
) -> Iterator[T]: ...
def track(
    jobs: Iterable[PrimitiveJob[Any]] | MapResults[Any],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    disable: bool = False,
) -> Iterator[Any]:
    """Yield each job as soon as it is final, as `as_completed` does, and show how far they are.

    The bar tells how many of the jobs are final, failed, cancelled and running now, how many that
    have run end by the second (minute, hour), and how long the rest will take at that pace. It is
    drawn by rich if that is installed, else by tqdm; in a notebook it is part of the cell's output.
    Where there is neither, and where stderr is no terminal, there are plain lines, one in 10 s at
    most and one at the end. All goes to stderr. What the loop's body prints appears above the bar;
    what a job prints to the same terminal has lines of its own, between which bars of that time may
    be left.

    The bar is drawn anew four times a second while the loop waits for a job; while its body runs,
    the bar stands still. A Ctrl-C ends the bar and the loop; the jobs go on.

    Args:
        jobs: Submitted jobs, of any pools; they are all taken at once. Or what `JobPool.map`
            returns: then its results are yielded, and its calls are counted.
        description: What stands before the bar; default "jobs".
        timeout: Seconds from this call in which all must be final; default None: no limit.
        disable: Show nothing; default False.

    Raises:
        JobError: At once, if a job was not submitted.
        ResultTimeoutError: When the time is over; the jobs go on. (Those of a ``map`` are
            cancelled, as whenever it ends.)
        TypeError, ValueError: An argument is wrong; the message names it.
    """
    check_one_iterable("track", jobs)
    if not isinstance(cast("object", description), str):
        raise TypeError(f"description must be a str, not {shown(description)}")
    check_bool("disable", disable)
    seconds = check_seconds("timeout", timeout)
    end = None if seconds is None else time.monotonic() + seconds
    label = " ".join("".join(c if c.isprintable() else " " for c in description).split())
    if isinstance(jobs, MapResults):
        return _follow_map(_MapMeter(label, progress_of(jobs)), jobs, end, seconds, hidden=disable)
    unique = list(dict.fromkeys(check_jobs(jobs)))
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
    jobs = LEFT_OUT  # a job that was yielded is not kept alive
    total = len(watch.waiters)
    meter = _Meter(label, watch.waiters)
    try:
        _open.add(meter)
        if not hidden:
            meter.open()
        while watch.waiters:
            due = meter.refresh()
            job = watch.next_final(due if end is None or (due and due < end) else end)
            if job is not None:
                meter.count(job)
                yield job
                del job
            elif end is not None and time.monotonic() >= end:
                raise too_late(len(watch.waiters), total, timeout)
    finally:
        try:
            meter.close()
        except BaseException:  # an interrupt on the way there
            meter.close()
            raise
        finally:
            watch.close()


class _View(Protocol):
    """Where the state of the jobs is shown."""

    pause: float
    """Seconds between two calls of `show`, at least."""

    def open(self, state: State) -> None:
        """Begin; an ImportError says that it cannot."""

    def show(self, state: State) -> None:
        """Show it."""

    def close(self, state: State) -> None:
        """Show it for the last time; also if `open` was not called or came to nothing."""


class _Meter:
    """Counts the jobs and shows them, once it is opened.

    Args:
        label: What stands before.
        waiting: Those that were not yielded: all at first, fewer as it goes on.
    """

    def __init__(self, label: str, waiting: Collection[PrimitiveJob[Any]]) -> None:
        self._yielded = State(label, len(waiting))
        self._waiting = waiting
        self._view: _View | None = None
        self._due = 0.0
        self._closed = False

    def open(self) -> None:
        """Show the state for the first time."""
        with _Uninterrupted():
            self._yielded.before = sum(ran(job) for job in self._waiting)
            for view in _find_views(self):
                self._view = view  # first: whatever happens from here on, it is closed
                try:
                    view.open(self._look())
                except ImportError:
                    self._view = None
                except (OSError, ValueError):
                    self.close()
                    return
                else:
                    return

    def count(self, job: PrimitiveJob[Any]) -> None:
        """A job is yielded."""
        if self._view is not None:
            self._yielded.add(job)

    def refresh(self) -> float | None:
        """Show the state if it is time; return when it is again, on the monotonic clock."""
        if self._view is None:
            return None
        now = time.monotonic()
        if now >= self._due:
            state = self._look()
            spent = time.monotonic() - now
            try:
                with _Uninterrupted():
                    self._view.show(state)
            except (OSError, ValueError):  # the terminal is gone: nobody looks any more
                self.close()
                return None
            self._due = time.monotonic() + max(self._view.pause, spent / _SHARE)
        return self._due

    def _look(self) -> State:
        """What was yielded, and what the others are now: some may be final."""
        state = State(self._yielded.label, self._yielded.total)
        vars(state).update(vars(self._yielded))
        for job in list(self._waiting):
            state.add(job)
        return state

    def close(self) -> None:
        """Show the state for the last time; again is allowed."""
        if self._closed:  # perhaps by `_close_all`, and now there are no globals any more
            return
        with _Uninterrupted():
            try:
                if self._view is not None:
                    with contextlib.suppress(OSError, ValueError):
                        self._view.close(self._look())
            finally:
                self._view = None
                _open.discard(self)
                if self in _drawing:
                    _drawing.remove(self)
                self._closed = True


class _MapMeter(_Meter):
    """Counts the calls of a ``map`` and shows them."""

    def __init__(self, label: str, progress: Progress) -> None:
        super().__init__(label, ())
        self.progress = progress
        self.over = False

    def _look(self) -> State:
        progress, before = self.progress, self._yielded
        state = State(before.label, progress.total())
        state.since = before.since
        state.final = state.ran = progress.calls_ended()
        state.running = progress.jobs_running()
        if self.over:
            state.total = state.final
        return state


def _follow_map(
    meter: _MapMeter,
    results: MapResults[T],
    end: float | None,
    timeout: float | None,
    *,
    hidden: bool,
) -> Iterator[T]:
    def look() -> float | None:
        due = meter.refresh()
        if end is None:
            return due
        if time.monotonic() >= end:
            raise ResultTimeoutError(f"the results of map() are not all there after {timeout} s")
        return end if due is None else min(due, end)

    taken = iter(results)
    try:
        _open.add(meter)
        if not hidden:
            meter.open()
        meter.progress.on_wait = look
        while not meter.over:
            look()
            try:
                yield next(taken)  # no name here refers to it
            except StopIteration:
                meter.over = True
    finally:
        meter.progress.on_wait = None
        try:
            meter.close()
        finally:
            results.close()


_open: set[_Meter] = set()
_drawing: list[_Meter] = []  # the first of them has the terminal


class _Uninterrupted:
    """A block that a Ctrl-C does not tear apart: it takes effect at the end, a second one at once.

    What draws is not made for an exception between any two steps: streams would stay replaced, and
    the cursor hidden.
    """

    def __enter__(self) -> None:
        self._before: Any = None
        self._came: tuple[int, FrameType | None] | None = None
        handler = signal.getsignal(signal.SIGINT)
        # Handlers are set and called in this thread only.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._before = handler
            try:
                signal.signal(signal.SIGINT, self._note)
            except ValueError:  # a program that has Python in it, and another main thread
                self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._came is not None:
            self._before(number, frame)
        self._came = number, frame

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._before)
        if self._came is not None:
            self._before(*self._came)


@atexit.register
def _close_all() -> None:
    # An exception in the loop's body may keep the loop alive until then.
    for meter in list(_open):
        meter.close()


# --- where it is shown ----------------------------------------------------------------------------


def _find_views(meter: _Meter) -> Iterator[_View]:
    """What suits, the best first: nothing if a bar is on the terminal already."""
    if getattr(ipython_shell(), "kernel", None) is not None:
        yield _Cell()
        return
    stderr = sys.stderr
    if stderr is None:
        return
    if _is_terminal(stderr) and os.environ.get("TERM") not in ("dumb", "unknown"):
        _drawing.append(meter)  # nobody waits for a lock
        if _drawing[0] is not meter:
            _drawing.remove(meter)
            return
        yield _RichBar()
        yield _TqdmBar()
        _drawing.remove(meter)
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
        counts = (state.final - bad, bad, state.running)
        total = max(state.total or 0, state.final + state.running, 1)
        html = bar(state.label, [count / total for count in counts], str(state))
        data = {"text/html": html, "text/plain": f"{state.label}: {state}"}
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

    def __init__(self, state: State, fixed: int) -> None:
        known = _known_columns()
        columns = (known or _USUAL_COLUMNS) - _MARGIN
        label = state.label
        most = max(10, columns // 3)
        self.label = label if len(label) <= most else label[: most - 3] + "..."
        room = columns - len(self.label) - fixed
        self.text = state.text(room - _LEAST_BAR)
        self.bar = max(_LEAST_BAR, min(_MOST_BAR, room - len(self.text)))
        self.width = len(self.label) + fixed + self.bar + len(self.text)
        self.blanks = max(0, known - self.width)


def _known_columns() -> int:
    """How wide the terminal is; 0 where it does not say."""
    try:
        return os.get_terminal_size(sys.__stderr__.fileno()).columns  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return 0


class _RichBar:
    """On a terminal, with rich."""

    pause = REFRESH

    def __init__(self) -> None:
        self._progress: Any = None

    def open(self, state: State) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        # What the loop's body prints stays as it is.
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        layout = _Layout(state, len("  "))
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
        layout = _Layout(state, len("  "))
        self._column.bar_width = layout.bar
        self._progress.update(
            self._task,
            description=layout.label,
            total=state.total,
            completed=state.final,
            text=layout.text + layout.blanks * " ",
            refresh=True,
        )

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
        size = {"ncols": _known_columns() or _USUAL_COLUMNS, "nrows": 20}
        self._bar = unwatched(total=state.total, file=sys.stderr, bar_format="{desc}", **size)
        if _mixed():
            sys.stdout = cast("TextIO", _Above(sys.stdout, self._bar))
        sys.stderr = cast("TextIO", _Above(sys.stderr, self._bar))

    def show(self, state: State) -> None:
        share = ": {percentage:3.0f}%|" if state.total else ": |"
        layout = _Layout(state, len(": 100%|| ") if state.total else len(": || "))
        self._bar.n, self._bar.desc, self._bar.total = state.final, layout.label, state.total
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
