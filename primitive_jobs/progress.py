"""`track`: `as_completed` with a progress bar.

Nothing here has a thread: the bar is drawn by whoever iterates, while they wait for the next job.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar, cast, overload

from ._bars.state import State
from ._bars.views import View, find_views
from ._wire.pickling import LEFT_OUT
from .errors import ResultTimeoutError
from .job import PrimitiveJob
from .map_results import Followed, Progress, progress_of
from .options import check_bool, check_seconds, shown
from .waiting import Watch, check_jobs, check_one_iterable, too_late

T = TypeVar("T")

_SHARE = 0.05  # of the time, at most, that goes into looking at many jobs


@overload
def track(
    jobs: Iterable[PrimitiveJob[T]],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    details: bool = False,
    disable: bool = False,
) -> Iterator[PrimitiveJob[T]]: ...
@overload
def track(
    jobs: Followed[T],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    details: bool = False,
    disable: bool = False,
) -> Iterator[T]: ...
def track(
    jobs: Iterable[PrimitiveJob[Any]] | Followed[Any],
    description: str = "jobs",
    *,
    timeout: float | None = None,
    details: bool = False,
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

    What a running job tells by `report` counts as its part of a job, so that the bar moves and the
    rest is known before the first one ends.

    The bar is drawn anew four times a second while the loop waits for a job; while its body runs,
    the bar stands still. A Ctrl-C ends the bar and the loop; the jobs go on.

    Args:
        jobs: Submitted jobs, of any pools; they are all taken at once. Or what `JobPool.map`
            returns: then its results are yielded, and its calls are counted; or what
            `StoredFunction.sweep` returns: then its rows are yielded, and its points counted.
        description: What stands before the bar; default "jobs".
        timeout: Seconds from this call in which all must be final; default None: no limit.
        details: Show a line for each running job, as many as fit: its name, how far it is, what it
            says, and how long it will take. On a terminal that takes rich; without, the plain lines
            have them. Of a ``map`` nothing more is known. Default False.
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
    check_bool("details", details)
    check_bool("disable", disable)
    seconds = check_seconds("timeout", timeout)
    end = None if seconds is None else time.monotonic() + seconds
    label = " ".join("".join(c if c.isprintable() else " " for c in description).split())
    if isinstance(jobs, Followed):
        return _follow_map(_MapMeter(label, progress_of(jobs)), jobs, end, seconds, hidden=disable)
    unique = list(dict.fromkeys(check_jobs(jobs)))
    hidden = disable or not unique
    return _follow(unique, label, end, seconds, details=details, hidden=hidden)


def _follow(
    jobs: list[PrimitiveJob[T]],
    label: str,
    end: float | None,
    timeout: float | None,
    *,
    details: bool,
    hidden: bool,
) -> Iterator[PrimitiveJob[T]]:
    watch = Watch(jobs)
    jobs = LEFT_OUT  # a job that was yielded is not kept alive
    total = len(watch.waiters)
    meter = _Meter(label, watch.waiters, details=details)
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


class _Meter:
    """Counts the jobs and shows them, once it is opened.

    Args:
        label: What stands before.
        waiting: Those that were not yielded: all at first, fewer as it goes on.
        details: Whether each running one is shown.
    """

    def __init__(
        self, label: str, waiting: Collection[PrimitiveJob[Any]], *, details: bool = False
    ) -> None:
        self._details = details
        self._yielded = State(label, len(waiting))
        self._waiting = waiting
        self._view: View | None = None
        self._due = 0.0
        self._closed = False

    def open(self) -> None:
        """Show the state for the first time."""
        with _Uninterrupted():
            self._yielded.before = self._look().done()
            for view in find_views(self, _drawing, details=self._details):
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
        if self._details:
            state.details = []
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
    results: Followed[T],
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
            raise ResultTimeoutError(f"the results are not all there after {timeout} s")
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
