"""What do viewers cost the program that they look at?

Two workers run no-op jobs, 20,000 at a time, all submitted and then collected, while eight
``python -m primitive_jobs top`` draw in terminals of their own; and again while these are stopped,
in turns, so that whatever else the machine does slows both. `kept` is the median of the ratios.

The viewers need CPU themselves, and on two cores they take it from the jobs, as any eight programs
would. So the floor are the same eight viewers that look at another program, which has as much to
show and does nothing: what ours keeps less than that is what it costs to be looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    FLOOR,
    OURS,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
)
from benchmarks.jobs import noop

if TYPE_CHECKING:
    from primitive_jobs import JobPool

WORKERS = 2
WARM_UP = 200  # calls before any is timed
QUEUED = 100  # jobs of the other program, which viewers show
_WINDOW = struct.pack("HHHH", 40, 120, 0, 0)  # rows and columns of each terminal
_TABLE = 500  # bytes at least
_PATIENCE = 60.0  # s for all viewers to draw


def measure(counts: Counts, *, seen: bool) -> Figures:
    """Return jobs a second, what is kept of those without viewers, and the CPU that these take.

    Args:
        counts: How many.
        seen: Whether the viewers look at this program; else at the other one.
    """
    from primitive_jobs import JobPool

    ratios, rates, drawing = [], [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(beside([*OTHER, str(int(not seen)), str(QUEUED)]))
        pool = stack.enter_context(JobPool(WORKERS, visible=seen))
        for job in [pool.submit(noop) for _ in range(WARM_UP)]:
            job.result()
        watching = stack.enter_context(beside([*WATCH, str(counts["viewers"])]))
        for number in range(counts["pairs"]):
            rate = {}
            for going in (True, False) if number % 2 else (False, True):
                tell(watching, going=going)
                used = cpu_below(watching.pid)
                seconds = timed(pool, counts["jobs"])
                rate[going] = counts["jobs"] / seconds
                if going:
                    drawing.append(100 * (cpu_below(watching.pid) - used) / seconds)
            ratios.append(rate[True] / rate[False])
            rates.append(rate[True])
    return {
        "kept": statistics.median(ratios),
        "submitted": statistics.median(rates),
        "drawing": statistics.mean(drawing),
    }


def timed(pool: JobPool, jobs: int) -> float:
    """Return the s that so many jobs take."""
    started = time.perf_counter()
    for job in [pool.submit(noop) for _ in range(jobs)]:
        job.result()
    return time.perf_counter() - started


def tell(watching: subprocess.Popen[bytes], *, going: bool) -> None:
    """Stop the viewers, or have them go on; returns when that is done."""
    assert watching.stdin is not None
    assert watching.stdout is not None
    watching.stdin.write(b"g" if going else b"s")
    watching.stdin.flush()
    watching.stdout.readline()


def cpu_below(pid: int) -> float:
    """Return the s of CPU that the children of a process have used."""
    import psutil

    times = [child.cpu_times() for child in psutil.Process(pid).children()]
    return sum(each.user + each.system for each in times)


# --- beside the program -------------------------------------------------------------------------


@contextlib.contextmanager
def beside(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that tells by a line when it is ready, and ends when its stdin does."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("what runs beside has failed")
        yield process


def be_other(visible: str, queued: str) -> None:
    """A program that has jobs and does nothing."""
    from primitive_jobs import JobPool

    with JobPool(WORKERS, visible=bool(int(visible))) as pool:
        jobs = [pool.submit(time.sleep, 1000) for _ in range(int(queued))]
        while not jobs[WORKERS - 1].running():
            time.sleep(0.01)
        print("ready", flush=True)
        sys.stdin.read()
        pool.shutdown(cancel=True)


def watch(count: str) -> None:
    """Have so many viewers draw, each in a terminal, and read what they draw."""
    viewers = [Viewer() for _ in range(int(count))]
    by_fd, stdin = {one.fd: one for one in viewers}, sys.stdin.fileno()
    end, ready = time.monotonic() + _PATIENCE, False
    while True:
        if not ready and all(one.drawn for one in viewers):
            print("ready", flush=True)
            ready = True
        if not ready and time.monotonic() > end:
            raise RuntimeError("not all viewers draw")
        for fd in select.select([*by_fd, stdin], [], [], None if ready else 0.1)[0]:
            if fd != stdin:
                by_fd[fd].read()
            elif command := os.read(stdin, 1):
                for one in viewers:
                    one.process.send_signal(signal.SIGCONT if command == b"g" else signal.SIGSTOP)
                print("done", flush=True)
            else:
                for one in viewers:
                    one.process.kill()
                    one.process.wait()
                return


class Viewer:
    """One `top` in a terminal."""

    def __init__(self) -> None:
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, _WINDOW)
        self._size = 0  # bytes that it has drawn
        self.process = subprocess.Popen(
            [sys.executable, "-m", "primitive_jobs", "top"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)

    def read(self) -> None:
        """Take in what it draws."""
        self._size += len(os.read(self.fd, 1 << 16))

    @property
    def drawn(self) -> bool:
        """Whether it has shown a table, and not only prepared the screen."""
        return self._size > _TABLE


OTHER = [sys.executable, str(Path(__file__).resolve()), "other"]
WATCH = [sys.executable, str(Path(__file__).resolve()), "watch"]

QUESTION = Question(
    name="viewers",
    title="no-op jobs while eight viewers draw",
    metrics=(
        Metric("kept", "of the jobs a second without viewers", "", "higher"),
        Metric("submitted", "submitted, then collected", "jobs/s", "higher", headline=False),
        Metric("drawing", "CPU of the viewers", "%", headline=False),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, seen=True)),
        Contender(FLOOR, "floor", partial(measure, seen=False), note="they look elsewhere"),
    ),
    goals=(Goal("kept", FLOOR, at_least=0.95),),
    full=Scale(rounds=3, limit=180, counts={"jobs": 20_000, "pairs": 10, "viewers": 8}),
    quick=Scale(rounds=1, limit=90, counts={"jobs": 20_000, "pairs": 4, "viewers": 8}),
    smoke=Scale(rounds=1, limit=60, counts={"jobs": 200, "pairs": 1, "viewers": 2}),
)

if __name__ == "__main__":
    if sys.argv[1:2] == ["other"]:
        be_other(*sys.argv[2:])
    elif sys.argv[1:2] == ["watch"]:
        watch(*sys.argv[2:])
    else:
        from benchmarks.cli import main

        sys.exit(main(question=QUESTION.name))
