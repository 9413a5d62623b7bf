"""A storm over one pool: jobs of every kind, cancels and outside signals at random moments.

Imported by the workers too, so it imports neither pytest nor a test module. Every job leaves a mark
for each time it began, every answer of `cancel` is compared with the final status, and every
result with what it must be.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import hashlib
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobMemoryError,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
)

PATIENCE = 60.0  # s, after which what is waited for will not come
SIZES = (0, 10, 1_000, 60_000, 200_000, 1_000_000, 5_000_000)  # bytes of a result
OUTSTANDING = 24  # jobs of one submitting thread at a time
SUBMITTERS, CANCELLERS = 3, 3
MEMORY_LIMIT = 150_000_000  # bytes

# --- the jobs ------------------------------------------------------------------------------------


def begin(mark: Path) -> int:
    """Leave a mark; return how often it began, this time included."""
    file = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b"x")
    size = os.fstat(file).st_size
    os.close(file)
    return size


def content(seed: int, size: int) -> bytes:
    """Bytes that nobody else returns."""
    block = hashlib.sha256(str(seed).encode()).digest()
    return (block * (size // len(block) + 1))[:size]


def echo(mark: Path, seed: int, size: int, payload: bytes) -> tuple[int, bytes]:
    begin(mark)
    return len(payload), content(seed, size)


def doze(mark: Path, seed: int, seconds: float) -> int:
    begin(mark)
    time.sleep(seconds)
    return seed


def fail(mark: Path, seed: int) -> None:
    begin(mark)
    raise ValueError(seed)


def never_end(mark: Path) -> None:
    begin(mark)
    while True:
        pass


def hold_the_gil(mark: Path) -> None:
    begin(mark)
    ctypes.PyDLL(None).sleep(1000)


def ignore_signals(mark: Path) -> None:
    begin(mark)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1000)


def fork_and_wait(mark: Path) -> None:
    begin(mark)
    os.fork()
    while True:
        time.sleep(1000)


def crash(mark: Path, how: str) -> None:
    begin(mark)
    if how == "exit":
        os._exit(7)
    ctypes.string_at(0)


def crash_once(mark: Path, seed: int) -> int:
    if begin(mark) == 1:
        os._exit(7)
    return seed


def answer_what_cannot_travel(mark: Path) -> Any:
    begin(mark)
    return sys._getframe()


def take_all(mark: Path) -> None:
    begin(mark)
    held = b"x" * (2 * MEMORY_LIMIT)
    time.sleep(1000)
    del held


@dataclass(frozen=True)
class Kind:
    """A kind of job: how to submit it, and what its end may be if nobody interferes."""

    function: Callable[..., Any]
    make: Callable[[random.Random, int], tuple[Any, ...]]
    check: Callable[[tuple[Any, ...], Any], bool] | None  # of its result; None: it has none
    error: tuple[type[BaseException], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    weight: int = 1


KINDS = [
    Kind(
        echo,
        lambda rng, seed: (seed, rng.choice(SIZES), bytes(rng.choice((0, 100, 300_000)))),
        lambda args, value: bool(value == (len(args[2]), content(args[0], args[1]))),
        weight=60,
    ),
    Kind(
        doze,
        lambda rng, seed: (seed, rng.random() * 0.02),
        lambda args, value: bool(value == args[0]),
        weight=30,
    ),
    Kind(fail, lambda _, seed: (seed,), None, (ValueError,), weight=5),
    Kind(never_end, lambda *_: (), None, (JobTimeoutError,), {"timeout": 0.2}, 2),
    Kind(hold_the_gil, lambda *_: (), None, (JobTimeoutError,), {"timeout": 0.2}),
    Kind(ignore_signals, lambda *_: (), None, (JobTimeoutError,), {"timeout": 0.2}),
    Kind(fork_and_wait, lambda *_: (), None, (JobTimeoutError,), {"timeout": 0.2}),
    Kind(crash, lambda rng, _: (rng.choice(["exit", "fault"]),), None, (WorkerDiedError,)),
    Kind(
        crash_once,
        lambda _, seed: (seed,),
        lambda args, value: bool(value == args[0]),
        options={"retries": 50},
    ),
    Kind(answer_what_cannot_travel, lambda *_: (), None, (SerializationError,)),
    Kind(take_all, lambda *_: (), None, (JobMemoryError,), {"memory_limit": MEMORY_LIMIT}),
]
# What a signal from outside may make of any job: SIGTERM raises SystemExit in it.
INTERFERENCE = (WorkerDiedError, JobError)


def processes_of(token: str) -> list[psutil.Process]:
    """The living processes that have ``token`` in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("STORM") == token:
                found.append(process)
    return found


# --- how many run ---------------------------------------------------------------------------------


class RunningWatch:
    """Counts jobs that run at the same moment, from a thread of its own.

    One scan proves nothing: a job that was seen RUNNING may have ended, and another begun, before
    the scan comes to that. But what is in the same RUNNING in two scans, one after the other, was
    so all the time between them: those are what `most` is the largest number of.

    Args:
        jobs: Tells which jobs to look at.
        workers: So many may run; only where a first scan finds more, there is a second one.
    """

    def __init__(self, jobs: Callable[[], Iterable[PrimitiveJob[Any]]], workers: int) -> None:
        self._jobs = jobs
        self._workers = workers
        self.most = 0
        self.looks = 0

    def look(self) -> None:
        """Scan, and scan again where it is needed."""
        self.looks += 1
        seen = [(job, job.history()) for job in [*self._jobs()] if job.running()]
        first = [(job, walk) for job, walk in seen if walk[-1][0] is JobStatus.RUNNING]
        if len(first) <= self._workers:
            self.most = max(self.most, min(1, len(first)))
            return
        second = [job for job, walk in first if job.running() and job.history() == walk]
        self.most = max(self.most, len(second))

    def run(self, stop: threading.Event) -> None:
        """Look again and again."""
        while not stop.wait(0.0005):
            self.look()


def running_times(job: PrimitiveJob[Any]) -> list[tuple[float, float]]:
    """When it was RUNNING, from when to when, as its history has it; it has ended."""
    walk = job.history()
    return [
        (since, until)
        for (status, since), (_, until) in itertools.pairwise(walk)
        if status is JobStatus.RUNNING
    ]


def most_at_once(jobs: Iterable[PrimitiveJob[Any]]) -> int:
    """How many ran at the same moment, by the times of their histories.

    These are of the wall clock: if that is set meanwhile, they mean nothing.
    """
    return deepest(times for job in jobs for times in running_times(job))


def deepest(times: Iterable[tuple[float, float]]) -> int:
    """The largest number of spans that overlap; one may begin at the moment another one ends."""
    steps = sorted(step for since, until in times for step in ((since, 1), (until, -1)))
    return max(itertools.accumulate(step for _, step in steps), default=0)


class Submitted:
    """A job with all that is known of it."""

    def __init__(self, kind: Kind, args: tuple[Any, ...], mark: Path, job: PrimitiveJob[Any]):
        self.kind = kind
        self.args = args
        self.mark = mark
        self.job = job
        self.answers: list[bool] = []  # of cancel()


class Storm:
    """One storm; `blow` returns its report, a count of each thing that happened.

    Raises:
        AssertionError: Something is not as it must be; the message says what.
    """

    def __init__(self, folder: Path, seed: int, workers: int = 4) -> None:
        self.folder = folder
        self.seed = seed
        self.workers = workers
        self.counts: collections.Counter[str] = collections.Counter()
        self.slowest_cancel = 0.0
        self.wrong: list[str] = []
        self._outstanding: list[Submitted] = []
        self._answers: list[tuple[JobStatus, list[bool]]] = []  # of all jobs
        self._times: list[tuple[float, float]] = []  # when one was RUNNING
        self._watch = RunningWatch(self._unfinished, workers)
        self._stop = threading.Event()
        self._number = iter(range(1 << 60))

    def blow(self, seconds: float) -> dict[str, float]:
        """Run for so long, then wait for every job; return the report."""
        token = f"{os.getpid()}-{time.monotonic_ns()}"
        with JobPool(self.workers, max_jobs_per_worker=200, env={"STORM": token}) as pool:
            tasks = [
                *[(self._submit, pool)] * SUBMITTERS,
                *[(self._cancel, pool)] * CANCELLERS,
                (self._signal, pool),
                (self._disturb, pool),
                (self._look, pool),
            ]
            threads = [
                threading.Thread(target=self._guarded, args=(task, n, pool))
                for n, (task, pool) in enumerate(tasks)
            ]
            for thread in threads:
                thread.start()
            self._stop.wait(seconds)
            self._stop.set()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive(), f"{thread} hangs"
            assert not pool.jobs(), "jobs that nobody knows of"
        assert not self.wrong, "\n".join(self.wrong[:20])
        for status, answers in self._answers:
            assert set(answers) <= {status is JobStatus.CANCELLED}, f"{status}: {answers}"
        assert not processes_of(token), "processes were left"
        assert self._watch.looks > 10 * seconds
        assert self._watch.most <= self.workers, f"{self._watch.most} jobs were RUNNING at once"
        assert deepest(self._times) <= self.workers, "so many were RUNNING by their histories"
        return {**self.counts, "slowest cancel (ms)": round(self.slowest_cancel * 1000, 1)}

    def _guarded(self, task: Callable[[JobPool, random.Random], None], n: int, pool: Any) -> None:
        try:
            task(pool, random.Random(self.seed * 100 + n))
        except BaseException as error:
            self.wrong.append(f"{task.__name__}: {error!r}")
            self._stop.set()

    # --- the threads -------------------------------------------------------------------------

    def _submit(self, pool: JobPool, rng: random.Random) -> None:
        weights = [kind.weight for kind in KINDS]
        mine: collections.deque[Submitted] = collections.deque()
        while not self._stop.is_set():
            (kind,) = rng.choices(KINDS, weights)
            number = next(self._number)
            mark = self.folder / str(number)
            args = kind.make(rng, number)
            options = {**kind.options, "priority": rng.randint(-1, 1), "name": str(number)}
            job = pool.options(**options).submit(kind.function, mark, *args)
            item = Submitted(kind, args, mark, job)
            mine.append(item)
            self._outstanding.append(item)
            if len(mine) > OUTSTANDING:
                self._collect(mine.popleft())
        for item in mine:
            self._collect(item)

    def _cancel(self, pool: JobPool, rng: random.Random) -> None:
        del pool
        while not self._stop.wait(rng.random() * 0.2):
            with contextlib.suppress(IndexError):  # it was emptied meanwhile
                item = rng.choice(self._outstanding)
                grace = rng.choice((0.0, 0.0, 0.02))
                began = time.monotonic()
                item.answers.append(item.job.cancel(grace=grace))
                if not grace:
                    self.slowest_cancel = max(self.slowest_cancel, time.monotonic() - began)
                self.counts["cancels"] += 1

    def _signal(self, pool: JobPool, rng: random.Random) -> None:
        del pool
        me = os.getpid()
        while not self._stop.wait(rng.random() * 0.3):
            with contextlib.suppress(IndexError, OSError, psutil.Error):
                pids = [item.job.pid for item in self._outstanding.copy()]
                pid = rng.choice([pid for pid in pids if pid is not None])
                fd = os.pidfd_open(pid)
                try:
                    if psutil.Process(pid).ppid() != me:  # it was ours, and is no more
                        continue
                    number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP))
                    signal.pidfd_send_signal(fd, number)
                    self.counts[f"outside {number.name}"] += 1
                    if number == signal.SIGSTOP:
                        self._stop.wait(rng.random() * 0.05)
                        signal.pidfd_send_signal(fd, signal.SIGCONT)
                finally:
                    os.close(fd)

    def _disturb(self, pool: JobPool, rng: random.Random) -> None:
        while not self._stop.wait(rng.random() * 3):
            if rng.random() < 0.5:
                pool.restart_workers()
            else:
                pool.resize(rng.randint(1, self.workers))
        pool.resize(self.workers)

    def _look(self, pool: JobPool, rng: random.Random) -> None:
        del pool, rng
        self._watch.run(self._stop)

    def _unfinished(self) -> list[PrimitiveJob[Any]]:
        return [item.job for item in self._outstanding.copy()]

    # --- the verdict -------------------------------------------------------------------------

    def _collect(self, item: Submitted) -> None:
        job = item.job
        assert job.wait(PATIENCE), f"lost: {job}"
        self._outstanding.remove(item)
        value, error = None, None
        try:
            value = job.result()
        except BaseException as raised:
            error = raised
        problem = self._problem(item, value, error)
        if problem:
            walk = [status.name for status, _ in job.history()]
            what = item.kind.function.__name__
            self.wrong.append(f"{what}: {problem}: {job}, {walk}, {item.answers}, {error!r}")
        self._answers.append((job.status(), item.answers))
        self._times += running_times(job)
        self.counts["jobs"] += 1
        self.counts[job.status().name] += 1
        if error is not None:
            self.counts[type(error).__name__] += 1
        with contextlib.suppress(FileNotFoundError):
            item.mark.unlink()

    def _problem(self, item: Submitted, value: Any, error: BaseException | None) -> str | None:
        job, kind = item.job, item.kind
        begun = item.mark.stat().st_size if item.mark.exists() else 0
        if begun > job.attempts:
            return f"began {begun} times"
        if job.attempts > 1 + kind.options.get("retries", 0):
            return f"{job.attempts} attempts"
        if job.status() is JobStatus.CANCELLED:
            if not isinstance(error, JobCancelledError):
                return "CANCELLED with another error"
            return None if False not in item.answers else "cancel() told False"
        if True in item.answers:
            return "cancel() told True"
        if job.status() is JobStatus.DONE:
            if error is not None or kind.check is None or not kind.check(item.args, value):
                return "a wrong result"
            return None
        return None if isinstance(error, (*kind.error, *INTERFERENCE)) else "a wrong error"
