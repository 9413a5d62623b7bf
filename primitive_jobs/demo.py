"""`python -m primitive_jobs demo`: the 2-D Ising model at twelve temperatures, one job each.

Beside them run a job that never ends, cancelled while it runs, of which its checkpoint is left, and
a job that dies of a real segmentation fault; neither disturbs the others. The statuses are shown
live, and at the end the measured magnetization stands beside the exact one, so that a reader can
see the physics is right.

    physics    simulate(), exact_magnetization()      what the jobs compute
    live view  StatusLines, StatusTable               what is seen meanwhile
    report     result_table(), magnetization_plot()   what is seen at the end
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
import resource
import shutil
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Protocol, TextIO

from primitive_jobs import (
    FINAL_STATES,
    JobPool,
    JobStatus,
    PrimitiveJob,
    WorkerDiedError,
    checkpoint,
    wait,
)
from primitive_jobs import report as tell_progress
from primitive_jobs.job import tracker_of

# --- physics ---------------------------------------------------------------------------------

CRITICAL_TEMPERATURE = 2 / math.log(1 + math.sqrt(2))  # in units of J/k, as every temperature here
TEMPERATURES = (1.2, 1.5, 1.8, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.7, 3.0, 3.5)
BINS = 20


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work the demo does: fixed in sweeps, not in seconds, so that a seed fixes the
    result.
    """

    side: int  # odd: see simulate()
    warm_up: int  # sweeps before the first measurement
    sweeps: int  # measured sweeps
    endless: float  # s that the job without an end is left running

    @property
    def lattice(self) -> str:
        """Its size in words."""
        return f"{self.side + 1} x {self.side} spins"


FULL = Scale(side=63, warm_up=150, sweeps=2000, endless=1.0)
QUICK = Scale(side=31, warm_up=150, sweeps=1200, endless=0.3)


@dataclass(frozen=True, slots=True)
class Magnetization:
    """Mean of |M| per spin, and its standard error."""

    mean: float
    error: float


def exact_magnetization(temperature: float) -> float:
    """The spontaneous magnetization of the infinite lattice (Onsager 1944, Yang 1952)."""
    if temperature >= CRITICAL_TEMPERATURE:
        return 0.0
    return float((1 - math.sinh(2 / temperature) ** -4) ** 0.125)


def job_seed(seed: int, index: int) -> int:
    """A seed for one temperature. Hashed, so that neighbouring seeds share nothing."""
    return random.Random(f"{seed}/{index}").getrandbits(64)


def simulate(temperature: float, scale: Scale, seed: int) -> Magnetization:
    """Metropolis Monte Carlo of the Ising model on `side + 1` rows of `side` spins.

    The rows are strung together into one ring (helical boundaries): site i has the neighbours
    i - 1, i + 1, i - side and i + side. With an odd side all four of an even site are odd, so
    each half of this checkerboard can be updated in one list comprehension, its neighbours being
    the other half, rotated.
    """
    side = scale.side
    half = side * (side + 1) // 2
    near, far = (side - 1) // 2, (side + 1) // 2
    uniform = random.Random(seed).random
    # A flip costs the energy 2h with h = spin * (sum of neighbours). All spins up is the ground
    # state: below the critical temperature the right place to start from.
    accept = {h: math.exp(-2 * h / temperature) for h in (-4, -2, 0, 2, 4)}
    even, odd = [1] * half, [1] * half
    samples = []
    for sweep in range(scale.warm_up + scale.sweeps):
        left, up, down = _rotated(odd, -1), _rotated(odd, -far), _rotated(odd, near)
        even = [
            -s if uniform() < accept[s * (a + b + c + d)] else s
            for s, a, b, c, d in zip(even, left, odd, up, down, strict=True)
        ]
        right, up, down = _rotated(even, 1), _rotated(even, -near), _rotated(even, far)
        odd = [
            -s if uniform() < accept[s * (a + b + c + d)] else s
            for s, a, b, c, d in zip(odd, even, right, up, down, strict=True)
        ]
        if sweep >= scale.warm_up:
            samples.append(abs(sum(even) + sum(odd)) / (2 * half))
        tell_progress((sweep + 1) / (scale.warm_up + scale.sweeps))
    return binned(samples)


def _rotated(spins: list[int], offset: int) -> list[int]:
    """The list whose element k is `spins[k + offset]`, cyclically."""
    return spins[offset:] + spins[:offset]


def binned(samples: Sequence[float]) -> Magnetization:
    """Mean and error from the means of long bins: single sweeps are correlated, and would make
    the error too small.
    """
    size = len(samples) // BINS
    means = [fmean(samples[k * size : (k + 1) * size]) for k in range(BINS)]
    return Magnetization(fmean(means), stdev(means) / math.sqrt(BINS))


# --- the two jobs that go wrong --------------------------------------------------------------

TOSSES = 1000


def run_forever() -> None:
    """Toss a coin, and keep what came; then never return to the interpreter.

    No signal handler would ever run, and the GIL is held.
    """
    heads = random.Random(1).getrandbits(TOSSES).bit_count()
    checkpoint(f"{heads} heads in {TOSSES} tosses", force=True)
    tell_progress(message="goes on for ever")
    deque(itertools.count(), maxlen=0)


def crash() -> None:
    """Say what it does, and read address 0."""
    print("about to read address 0")
    # No core file in the reader's directory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.string_at(0)


# --- live view -------------------------------------------------------------------------------

REFRESH = 0.1  # s
COLOURS = {
    JobStatus.RUNNING: "\x1b[36m",
    JobStatus.DONE: "\x1b[32m",
    JobStatus.CANCELLED: "\x1b[33m",
    JobStatus.ERROR: "\x1b[31m",
}
RESET = "\x1b[0m"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CLEAR_LINE_END, CLEAR_BELOW = "\x1b[K", "\x1b[J"


@dataclass(slots=True)
class Row:
    """One job as the reader sees it."""

    job: PrimitiveJob[Any]
    expected: JobStatus
    note: str = ""
    reported: int = 1  # entries of job.history() that were printed; all jobs begin alike

    def outcome(self) -> str:
        """What came of the job; until it is final, how far it is, or ""."""
        if not self.note and self.job.in_final_state():
            self.note = _outcome(self.job)
        progress = self.job.progress
        if self.note or progress is None or progress.fraction is None:
            return self.note
        return f"{progress.fraction:4.0%}"

    def seconds(self) -> float | None:
        """How long the job has been running, or ran."""
        spans = tracker_of(self.job).spans()
        ran = [lasted for status, lasted in spans if status is JobStatus.RUNNING]
        return ran[-1] if ran else None


def _outcome(job: PrimitiveJob[Any]) -> str:
    match job.status():
        case JobStatus.DONE:
            measured: Magnetization = job.result()
            return f"|M| = {measured.mean:.4f}"
        case JobStatus.ERROR:
            error = job.exception()
            if isinstance(error, WorkerDiedError) and error.signal is not None:
                return f"WorkerDiedError: {error.signal.name}"
            return error_line(error)
        case _:
            return ""


def error_line(error: BaseException | None) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class View(Protocol):
    """What the reader sees while the jobs run."""

    def update(self) -> None:
        """Show what has changed since the last call."""


class StatusLines:
    """One line for each change of status: for pipes, files and plain terminals."""

    def __init__(self, rows: list[Row], stream: TextIO) -> None:
        self._rows = rows
        self._stream = stream
        self._began = time.time()

    def update(self) -> None:
        """Print the changes since the last call, in the order in which they happened."""
        changes = []
        for row in self._rows:
            history = row.job.history()
            for (before, _), (after, at) in itertools.pairwise(history[row.reported - 1 :]):
                note = row.outcome() if after in FINAL_STATES else ""
                changes.append((at, f"{row.job.name}  {before.name} -> {after.name}  {note}"))
            row.reported = len(history)
        for at, text in sorted(changes, key=lambda change: change[0]):
            print(f"[{at - self._began:6.2f} s] {text}".rstrip(), file=self._stream)
        self._stream.flush()


class StatusTable:
    """A table of all jobs, redrawn in place."""

    def __init__(self, rows: list[Row], stream: TextIO, *, colour: bool) -> None:
        self._rows = rows
        self._stream = stream
        self._colour = colour
        self._began = time.monotonic()
        self._drawn = 0  # lines on the screen now
        self._size = terminal_size()

    def update(self) -> None:
        """Draw the table over the last one."""
        size = terminal_size()
        if size != self._size:
            # Whether the terminal has rewrapped the old lines is unknown: begin below them.
            self._size, self._drawn = size, 0
        lines = self._lines(size.columns - 1)[-(size.lines - 1) :]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        body = "".join(f"{line}{CLEAR_LINE_END}\n" for line in lines)
        self._stream.write(f"{up}\r{body}{CLEAR_BELOW}")
        self._stream.flush()
        self._drawn = len(lines)

    def _lines(self, width: int) -> list[str]:
        counts = Counter(row.job.status() for row in self._rows)
        total = ", ".join(f"{counts[state]} {state.name}" for state in JobStatus if counts[state])
        return [
            f"{'job':<10} {'status':<10} {'pid':>7} {'s':>5}  outcome"[:width],
            *(self._line(row, width) for row in self._rows),
            f"{time.monotonic() - self._began:.1f} s: {total}"[:width],
        ]

    def _line(self, row: Row, width: int) -> str:
        status, seconds = row.job.status(), row.seconds()
        name = f"{row.job.name:<10} "[:width]
        state = f"{status.name:<10} "[: width - len(name)]
        ran = "" if seconds is None else f"{seconds:.1f}"
        rest = f"{row.job.pid or '':>7} {ran:>5}  {row.outcome()}"[: width - len(name) - len(state)]
        if self._colour and status in COLOURS:
            state = f"{COLOURS[status]}{state}{RESET}"
        return name + state + rest


def terminal_size() -> os.terminal_size:
    """The size of the terminal, 80 x 24 where it is not known."""
    columns, lines = shutil.get_terminal_size()
    # 0 is what a terminal says that has never been told its size.
    return os.terminal_size((columns or 80, lines or 24))


@contextmanager
def live_view(rows: list[Row], expected_rows: int, stream: TextIO) -> Iterator[View]:
    """The view that suits the stream. However the block is left, the last state is shown and the
    cursor is visible again.
    """
    plain = not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb"
    if plain or terminal_size().lines < expected_rows + 3:  # head, sum, the cursor's own line
        lines = StatusLines(rows, stream)
        try:
            yield lines
        finally:
            lines.update()
    else:
        table = StatusTable(rows, stream, colour=not os.environ.get("NO_COLOR"))
        try:
            stream.write(HIDE_CURSOR)
            yield table
        finally:
            try:
                table.update()
            finally:
                stream.write(SHOW_CURSOR)
                stream.flush()


# --- report ----------------------------------------------------------------------------------

PLOT_WIDTH, PLOT_HEIGHT = 66, 15  # characters
PLOT_RANGE = (1.0, 3.6)  # temperatures


@dataclass(frozen=True, slots=True)
class Point:
    """One temperature of the sweep."""

    temperature: float
    measured: Magnetization


def result_table(points: Sequence[Point]) -> list[str]:
    """Measured and exact values side by side, a line for each temperature."""
    lines = ["   T   measured |M|  std. error    exact M  difference"]
    for point in points:
        mean, exact = point.measured.mean, exact_magnetization(point.temperature)
        lines.append(
            f"{point.temperature:4.2f}  {mean:13.5f}  {point.measured.error:10.5f}"
            f"  {exact:9.5f}  {mean - exact:+10.5f}"
        )
    return lines


def magnetization_plot(points: Sequence[Point], width: int = PLOT_WIDTH) -> list[str]:
    """|M| over T, the exact curve behind the measured points; in ASCII, for every terminal."""
    low, high = PLOT_RANGE

    def column(temperature: float) -> int:
        return round((temperature - low) / (high - low) * (width - 1))

    def line(magnetization: float) -> int:
        return round((1 - magnetization) * (PLOT_HEIGHT - 1))

    grid = [[" "] * width for _ in range(PLOT_HEIGHT)]
    above = line(exact_magnetization(low))
    for x in range(width):
        here = line(exact_magnetization(low + (high - low) * x / (width - 1)))
        # Also the lines in between: the curve ends in a vertical drop.
        for y in range(min(above + 1, here), here + 1):
            grid[y][x] = "."
        above = here
    for point in points:
        grid[line(point.measured.mean)][column(point.temperature)] = "o"

    labels = {0: "1.0", line(0.5): "0.5", PLOT_HEIGHT - 1: "0.0"}
    ticks = [" "] * (width + 2)
    for tick in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5):
        ticks[column(tick) : column(tick) + 3] = f"{tick:.1f}"
    return [
        " |M|   o measured   . exact (infinite lattice)",
        *(f" {labels.get(y, ''):>3} |{''.join(row)}".rstrip() for y, row in enumerate(grid)),
        f"     +{'-' * width}",
        f"     {''.join(ticks)} T",
    ]


CAPTION = (
    "Exact: M = (1 - sinh(2/T)^-4)^(1/8) below Tc = 2/ln(1 + sqrt 2) = "
    f"{CRITICAL_TEMPERATURE:.4f}, else 0 (Onsager, Yang). A finite lattice keeps some |M| above "
    "Tc: the tail is real, and smaller on a larger lattice. Within some 5 % of Tc the sweeps of "
    "one job are so alike that its error is underestimated."
)


def report(rows: Sequence[Row]) -> str:
    """What the reader is left with: table, plot, caption, and what became of the other jobs."""
    columns = terminal_size().columns
    points = [
        Point(row.job.metadata["temperature"], row.job.result())
        for row in rows
        if "temperature" in row.job.metadata and row.job.done()
    ]
    lines = [
        *result_table(points),
        "",
        *magnetization_plot(points, max(20, min(PLOT_WIDTH, columns - 8))),
        "",
        *textwrap.wrap(CAPTION, max(20, min(79, columns - 1))),
        "",
    ]
    for row in rows:
        if row.job.status() is JobStatus.ERROR:
            lines.append(f"{row.job.name}: {error_line(row.job.exception())}")
            last = (row.job.output() or "").strip()
            lines += [f"{row.job.name}: the last that it printed: {last}"] if last else []
        elif not row.job.done():
            lines.append(f"{row.job.name}: {row.outcome()}")
    return "\n".join(lines)


# --- the demo --------------------------------------------------------------------------------

CLOSING = (JobStatus.DONE, JobStatus.CANCELLED, JobStatus.ERROR)


def run_demo(workers: int | None, seed: int, scale: Scale, stream: TextIO | None = None) -> int:
    """Run everything; 0 if every job ended as it should."""
    out = sys.stdout if stream is None else stream
    began = time.perf_counter()
    print(
        f"2-D Ising model, {scale.lattice}, {len(TEMPERATURES)} temperatures, "
        f"{scale.sweeps} Metropolis sweeps each\n",
        file=out,
        flush=True,
    )
    rows: list[Row] = []
    # The pool is left before the view: what a Ctrl-C cancels is still shown.
    with live_view(rows, len(TEMPERATURES) + 2, out) as view, JobPool(workers) as pool:
        endless = submit_all(pool, seed, scale, rows)
        follow(rows, view, endless, scale.endless)
    print(f"\n{report(rows)}", file=out)
    return tell_end(rows, began, out)


def tell_end(rows: list[Row], began: float, out: TextIO) -> int:
    """Print how many jobs ended how; return the exit status: 0 if each ended as it should."""
    print(f"\n{len(rows)} jobs in {time.perf_counter() - began:.1f} s", file=out)
    counts = Counter(row.job.status() for row in rows)
    print(", ".join(f"{counts[status]} {status.name}" for status in CLOSING), file=out)
    return 0 if all(row.job.status() is row.expected for row in rows) else 1


def submit_all(pool: JobPool, seed: int, scale: Scale, rows: list[Row]) -> Row:
    """Submit every job, adding its row at once; return the row of the job without an end."""
    # First, so that it runs, and is cancelled, at the very start, even on one worker.
    endless = Row(pool.options(name="never ends").submit(run_forever), JobStatus.CANCELLED)
    rows.append(endless)
    for index, temperature in enumerate(TEMPERATURES):
        if index == 2:  # a neighbour in the middle of its work when the crash comes
            rows.append(
                Row(pool.options(name="segfault", output="capture").submit(crash), JobStatus.ERROR)
            )
        view = pool.options(name=f"T={temperature:.2f}", metadata={"temperature": temperature})
        job = view.submit(simulate, temperature, scale, job_seed(seed, index))
        rows.append(Row(job, JobStatus.DONE))
    return endless


def follow(rows: list[Row], view: View, endless: Row, patience: float) -> None:
    """Show the jobs until all are final; cancel the endless one after `patience` s of running."""
    pending: set[PrimitiveJob[Any]] = {row.job for row in rows}
    while pending:
        view.update()
        ran = endless.seconds()
        begun = endless.job.running() and endless.job.progress is not None
        if begun and ran is not None and ran >= patience:
            began = time.perf_counter()
            cancelled = endless.job.cancel()
            spent = (time.perf_counter() - began) * 1000
            endless.note = f"killed by cancel() in {spent:.1f} ms" if cancelled else "still there"
            endless.note += f"; it had kept: {endless.job.partial_result(default='nothing')}"
        _, pending = wait(pending, timeout=REFRESH, return_when=FIRST_COMPLETED)
