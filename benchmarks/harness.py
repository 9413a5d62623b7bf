"""What every benchmark shares: who races, how, and what the figures are held against.

A `Question` is data: its contenders, what is measured, the goals. In each round every contender
runs once, in an order drawn anew, in a fresh process that is gone afterwards, and is compared with
the others of the same round: times on a shared machine drift by more than the contenders differ,
and whatever slows a round slows all of it. So trust the ratios, not the times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import py_compile
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal, TypeVar

import psutil

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
OURS = "primitive_jobs"
NOT_INSTALLED = "not installed"
SEED = 1
TERM_GRACE = 5.0  # s, between SIGTERM and SIGKILL
_LOOK_PAUSE = 0.005  # s between two looks whether a contender has ended
SETTLE = 3.0  # s, in which what a contender started must be gone after it
MARKER = "PRIMITIVE_JOBS_BENCHMARK"  # in the environment of all that a contender starts

Counts = Mapping[str, int]
"""How much is done: calls, jobs, bytes; a question says which names it takes."""
Figures = dict[str, float]
"""What one contender measured in one round, by the key of its `Metric`."""
Role = Literal["ours", "floor", "peer", "aside"]
"""The floor is what the operating system costs; an aside is shown, but no goal looks at it."""


# --- what a question is made of ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure that a contender measures."""

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    headline: bool = True
    """Whether it has a row of its own in the table of all questions."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do the same work.

    `measure` runs in a fresh process and returns its figures, or raises; all that is not asked
    for, such as the start of workers, it keeps out of what it times.
    """

    name: str
    role: Role
    measure: Callable[[Counts], Figures]
    needs: tuple[str, ...] = ()
    """The distributions that have to be installed."""
    left_out: str | None = None
    """Why it never runs, for one whose absence a reader would wonder about."""
    note: str = ""
    """What a reader has to know about how it does the work."""


def absent(name: str, reason: str) -> Contender:
    """Return the entry of a peer that cannot do what is asked."""
    return Contender(name, "peer", lambda _: {}, left_out=reason)


FLOOR = "floor"
EVERY_PEER = "every peer"


@dataclasses.dataclass(frozen=True)
class Goal:
    """What our figure is to reach; reported, never asserted.

    It bounds the median over rounds of ours divided by theirs in the same round, or of our figure
    itself where `against` is empty.
    """

    metric: str
    against: str = ""
    """A contender's name, `FLOOR` or `EVERY_PEER`."""
    at_most: float | None = None
    at_least: float | None = None
    but: tuple[str, ...] = ()
    """Peers that "every peer" does not mean."""

    def allows(self, value: float) -> bool:
        """Return whether a figure, or a ratio, reaches the goal."""
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )


@dataclasses.dataclass(frozen=True)
class Scale:
    """How thoroughly a question is asked."""

    rounds: int
    limit: float
    """Seconds that a contender may take in a round, start and end included."""
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Question:
    """One benchmark. It stands in the module of its name, which its contenders import."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    contenders: tuple[Contender, ...]
    goals: tuple[Goal, ...]
    full: Scale
    quick: Scale
    smoke: Scale
    """Just enough to see that everything runs; for the tests."""
    package: str = "benchmarks"
    """Where its module is."""

    @property
    def module(self) -> str:
        """Return the full name of its module."""
        return f"{self.package}.{self.name}"

    def scale(self, name: str) -> Scale:
        """Return the scale of that name."""
        return {"full": self.full, "quick": self.quick, "smoke": self.smoke}[name]

    def contender(self, name: str) -> Contender:
        """Return the contender of that name."""
        return next(one for one in self.contenders if one.name == name)

    def metric(self, key: str) -> Metric:
        """Return the metric of that key."""
        return next(one for one in self.metrics if one.key == key)


def load(module: str) -> Question:
    """Return the question that stands in a module."""
    question = importlib.import_module(module).QUESTION
    assert isinstance(question, Question)
    return question


# --- what came out -----------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """All that was measured; a contender that failed has samples of the rounds before that."""

    question: Question
    scale: Scale
    samples: dict[str, dict[int, Figures]] = dataclasses.field(default_factory=dict)
    """By contender and round."""
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: set[str] = dataclasses.field(default_factory=set)
    left_behind: dict[str, int] = dataclasses.field(default_factory=dict)
    """Processes that outlived their contender, and were killed: the most in a round."""

    def figures(self, name: str, metric: str) -> list[float]:
        """Return a contender's figures, round by round."""
        rounds = self.samples.get(name, {}).values()
        return [figures[metric] for figures in rounds if metric in figures]

    def median(self, name: str, metric: str) -> float | None:
        """Return the median over rounds, None without any."""
        figures = self.figures(name, metric)
        return statistics.median(figures) if figures else None

    def ratios(self, metric: str, other: str) -> list[float]:
        """Return ours divided by the other's, for each round that has both (and no zero)."""
        ours, theirs = self.samples.get(OURS, {}), self.samples.get(other, {})
        pairs = [
            (ours[number][metric], theirs[number][metric])
            for number in sorted(ours.keys() & theirs.keys())
            if metric in ours[number] and metric in theirs[number]
        ]
        return [own / other_one for own, other_one in pairs if other_one != 0]

    def ratio(self, metric: str, other: str) -> float | None:
        """Return the median of the ratios, None without any."""
        ratios = self.ratios(metric, other)
        return statistics.median(ratios) if ratios else None

    def floor(self) -> str | None:
        """Return the name of the floor, if the question has one."""
        floors = [one.name for one in self.question.contenders if one.role == "floor"]
        return floors[0] if floors else None

    def best_peer(self, metric: str, but: Iterable[str] = ()) -> str | None:
        """Return the peer that ours compares worst with, None if none has a ratio."""
        ratios = {
            one.name: ratio
            for one in self.question.contenders
            if one.role == "peer"
            and one.name not in but
            and (ratio := self.ratio(metric, one.name)) is not None
        }
        if not ratios:
            return None
        hardest = max if self.question.metric(metric).better == "lower" else min
        return hardest(ratios, key=ratios.__getitem__)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A goal, held against a report; `value` is None where there was nothing to compare."""

    goal: Goal
    value: float | None
    against: str
    """Whom it was compared with in the end."""

    @property
    def reached(self) -> bool | None:
        """Return whether the goal is reached; None: it could not be told."""
        return None if self.value is None else self.goal.allows(self.value)


def judge(goal: Goal, report: Report) -> Verdict:
    """Hold a goal against what was measured."""
    other: str | None
    if not goal.against:
        return Verdict(goal, report.median(OURS, goal.metric), "")
    if goal.against == FLOOR:
        other = report.floor()
    elif goal.against == EVERY_PEER:
        other = report.best_peer(goal.metric, goal.but)
    else:
        other = goal.against
    if other is None:
        return Verdict(goal, None, goal.against)
    return Verdict(goal, report.ratio(goal.metric, other), other)


# --- in a contender's process ------------------------------------------------------------------


def contend(module: str, name: str, counts: str, descriptor: str) -> None:
    """Measure, and write the figures to a descriptor; all arguments come from a command line."""
    figures = load(module).contender(name).measure(json.loads(counts))
    for key, figure in figures.items():
        if not math.isfinite(figure):
            raise ValueError(f"{key} is {figure}")
    # Not stdout: peers and their workers may print.
    os.write(int(descriptor), json.dumps(figures).encode())


def expect(found: T, wanted: T, what: str = "result") -> None:
    """Raise unless the work was done right."""
    if found != wanted:
        raise ValueError(f"wrong {what}: {found!r:.100}, not {wanted!r:.100}")


def repeat(most: int, budget: float, least: int = 2) -> Iterator[int]:
    """Count up to ``most``, but start nothing after ``budget`` s once ``least`` are done."""
    end = time.monotonic() + budget
    for number in range(most):
        if number >= least and time.monotonic() > end:
            return
        yield number


# --- in the process that the user started ------------------------------------------------------


class ContenderError(Exception):
    """A contender did not come to a figure; the message says why."""


_runs = itertools.count(1)
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from benchmarks.harness import contend; contend(*sys.argv[2:])"
)
"""No main script: some start methods would run it again in each worker, which costs them time."""


def measure_in_fresh_process(
    question: Question, name: str, scale: Scale, report: Report | None = None
) -> Figures:
    """Run one contender in a process of its own; it and all below it are gone afterwards.

    Raises:
        ContenderError: It failed, or passed the limit.
    """
    marker = f"{os.getpid()}-{next(_runs)}"
    with contextlib.ExitStack() as stack:
        figures = stack.enter_context(tempfile.TemporaryFile())
        errors = stack.enter_context(tempfile.TemporaryFile())
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        )
        command = [sys.executable, "-c", _START, str(ROOT), question.module, name]
        process = subprocess.Popen(
            [*command, json.dumps(scale.counts), str(figures.fileno())],
            cwd=ROOT,
            env={**os.environ, MARKER: marker, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[figures.fileno()],
            start_new_session=True,  # and so a group of its own, for `end_by_force`
        )
        try:
            in_time = ended_within(process, scale.limit)
        finally:
            left_behind = end_by_force(process, marker)
        if report is not None and left_behind:
            report.left_behind[name] = max(left_behind, report.left_behind.get(name, 0))
        if not in_time:
            said = _last_line(errors)
            said = said and f'; its last line: "{said}"'
            raise ContenderError(f"stuck: not done in {scale.limit:.0f} s{said}")
        if process.returncode != 0:
            raise ContenderError(_last_line(errors) or f"exit code {process.returncode}")
        figures.seek(0)
        return {str(key): float(figure) for key, figure in json.load(figures).items()}


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace").strip().rpartition("\n")[2][:200]


def ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a child without reaping it: until then its number is nobody else's."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_PAUSE)
    return True


def end_by_force(process: subprocess.Popen[bytes], marker: str) -> int:
    """End a contender, if it still runs, and whatever it left; return the count of the latter.

    SIGTERM first: it ends a peer's workers, but not its resource tracker, which then removes the
    semaphores that SIGKILL to all would leave behind.
    """
    if not ended_within(process, 0):
        os.killpg(process.pid, signal.SIGTERM)
        if not ended_within(process, TERM_GRACE):
            os.killpg(process.pid, signal.SIGKILL)
            ended_within(process, TERM_GRACE)
    # Resource trackers and fork servers end by themselves, a moment after their parent.
    end = time.monotonic() + SETTLE
    while (left := list(_left_by(process.pid, marker))) and time.monotonic() < end:
        time.sleep(0.01)
    for straggler in left:
        with contextlib.suppress(psutil.Error):
            straggler.kill()
    psutil.wait_procs(left, timeout=1.0)  # whose parent is another's: seen as gone once it reaps
    process.wait()
    return len(left)


def _left_by(leader: int, marker: str) -> Iterator[psutil.Process]:
    """Yield what a contender started: of its session, or with its marker in the environment.

    Both, since some workers lead a session of their own, and some overwrite their environment.
    """
    for process in psutil.process_iter():
        if process.pid in (leader, os.getpid()):
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == leader or process.environ().get(MARKER) == marker:
                yield process


@contextlib.contextmanager
def byte_code() -> Iterator[None]:
    """Have byte code of ours, as an installation has, where the interpreter is told to write none.

    Else every process would compile our source, while the peers' is compiled. It goes afterwards.
    """
    made = []
    if sys.dont_write_bytecode:
        for source in (ROOT / "primitive_jobs", Path(__file__).parent):
            for path in source.rglob("*.py"):
                compiled = Path(importlib.util.cache_from_source(str(path)))
                if not compiled.exists():
                    made.append(compiled)
                with contextlib.suppress(OSError):  # a folder that is read-only
                    py_compile.compile(str(path))
    try:
        yield
    finally:
        for compiled in made:
            compiled.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or not there
                compiled.parent.rmdir()


def version_of(distribution: str) -> str | None:
    """Return its version, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_rounds(
    question: Question, scale: Scale, names: Iterable[str] | None = None, rounds: int | None = None
) -> Report:
    """Ask a question; ``names`` are the contenders that take part, default: all."""
    report = Report(question, scale)
    wanted = [one for one in question.contenders if names is None or one.name in set(names)]
    for contender in wanted:
        if contender.left_out is not None:
            report.left_out[contender.name] = contender.left_out
        elif any(version_of(distribution) is None for distribution in contender.needs):
            report.left_out[contender.name] = NOT_INSTALLED
    shuffled = random.Random(SEED)
    count = scale.rounds if rounds is None else rounds
    for number in range(1, count + 1):
        racing = [one.name for one in wanted if one.name not in report.left_out]
        if not racing:
            break
        shuffled.shuffle(racing)
        started = time.monotonic()
        print(f"{question.name}: round {number}/{count}", end="", file=sys.stderr)
        for name in racing:
            print(f", {name}", end="", file=sys.stderr, flush=True)
            try:
                figures = measure_in_fresh_process(question, name, scale, report)
            except ContenderError as error:
                # Once is enough: a stuck contender must not cost its limit in every round.
                report.left_out[name] = f"failed in round {number}: {error}"
                report.failed.add(name)
                print(" FAILED", end="", file=sys.stderr, flush=True)
            else:
                report.samples.setdefault(name, {})[number] = figures
        print(f"; {time.monotonic() - started:.0f} s", file=sys.stderr)
    return report
