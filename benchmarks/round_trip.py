"""What does one job cost, if it does nothing?

    python benchmarks/round_trip.py [--rounds N] [--calls N] [--quick] [--json FILE]

One caller, one worker, one job at a time: submit a no-op, wait for its result, again. So this is
latency, not throughput, and most of it is two wake-ups of a process and, where a thread receives
results, one of a thread. The floor has just these: a socket pair's echo by a bare child process,
received by a thread that settles a `concurrent.futures.Future`. Nothing is serialized there.

Times on a shared machine drift by more than the contenders differ. So they take turns: in each
round every contender runs once, in an order drawn anew, in a fresh process, and is compared with
`primitive_jobs` in the same round. Trust the ratios, not the microseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEED = 1
WARM_UP = 0.5  # s of calls before any is timed; what a pool starts in the background fits in
STARTUP_LIMIT = 30.0  # s, for a contender to start, warm up and end
CALL_LIMIT = 0.01  # s, that a call may take in the mean before its contender counts as stuck
TERM_GRACE = 5.0  # s, between SIGTERM and SIGKILL
DATAGRAM = 128  # bytes, about what a pickled reference to a function takes on the wire

RoundTrip = Callable[[], object]


def noop() -> None:
    """Do nothing; every peer's worker imports it from here."""


# --- the contenders: each yields one round trip, on a pool with one worker ---------------------


@contextlib.contextmanager
def ours() -> Iterator[RoundTrip]:
    from primitive_jobs import JobPool

    with JobPool(max_workers=1) as pool:
        yield lambda: pool.submit(noop).result()


@contextlib.contextmanager
def concurrent_futures() -> Iterator[RoundTrip]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        yield lambda: pool.submit(noop).result()


@contextlib.contextmanager
def multiprocessing_pool() -> Iterator[RoundTrip]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda: pool.apply_async(noop).get()
        pool.close()
        pool.join()


@contextlib.contextmanager
def loky_executor() -> Iterator[RoundTrip]:
    import loky

    with loky.ProcessPoolExecutor(max_workers=1) as pool:
        yield lambda: pool.submit(noop).result()


@contextlib.contextmanager
def pebble_pool() -> Iterator[RoundTrip]:
    import pebble

    with pebble.ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn")) as pool:
        yield lambda: pool.schedule(noop).result()


@contextlib.contextmanager
def socket_floor() -> Iterator[RoundTrip]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = f"from benchmarks.round_trip import echo; echo({there.fileno()})"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, pass_fds=[there.fileno()])
    there.close()
    waiting: deque[Future[bytes]] = deque()
    request = bytes(DATAGRAM)

    def receive() -> None:
        while reply := here.recv(DATAGRAM):
            waiting.popleft().set_result(reply)

    def round_trip() -> bytes:
        future: Future[bytes] = Future()
        waiting.append(future)
        here.send(request)
        return future.result()

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    try:
        yield round_trip
    finally:
        here.shutdown(socket.SHUT_RDWR)
        receiver.join()
        here.close()
        child.wait()


def echo(descriptor: int) -> None:
    """Send every datagram back, until the other end is closed."""
    with socket.socket(fileno=descriptor) as link:
        while request := link.recv(DATAGRAM):
            link.send(request)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run a function in another process."""

    start: Callable[[], AbstractContextManager[RoundTrip]]
    distribution: str | None = None
    """What has to be installed for it, if anything."""


OURS = "primitive_jobs"
CONTENDERS = {
    OURS: Contender(ours),
    "socket echo (floor)": Contender(socket_floor),
    "multiprocessing.Pool": Contender(multiprocessing_pool),
    "concurrent.futures": Contender(concurrent_futures),
    "loky": Contender(loky_executor, "loky"),
    "pebble": Contender(pebble_pool, "pebble"),
}


# --- in a contender's process ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one contender measured in one round, in microseconds a call."""

    median: float
    p99: float


def measure(contender: Contender, calls: int) -> Sample:
    with contender.start() as round_trip:
        warm = time.monotonic() + WARM_UP
        while time.monotonic() < warm:
            round_trip()
        times_ns = []
        for _ in range(calls):
            started = time.perf_counter_ns()
            round_trip()
            times_ns.append(time.perf_counter_ns() - started)
    times_ns.sort()
    return Sample(statistics.median(times_ns) / 1e3, times_ns[int(calls * 0.99)] / 1e3)


# --- in the process that the user started ------------------------------------------------------


class ContenderError(Exception):
    """A contender did not come to a figure; the message says why."""


def measure_in_fresh_process(name: str, calls: int) -> Sample:
    """Run one contender in a process of its own, which is gone afterwards, whatever happens."""
    command = [sys.executable, __file__, "--contender", name, "--calls", str(calls)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # and so a group of its own, for `end_by_force`
    )
    try:
        output, errors = process.communicate(timeout=STARTUP_LIMIT + calls * CALL_LIMIT)
    except BaseException as error:
        end_by_force(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise ContenderError("stuck") from None
        raise
    if process.returncode != 0:
        last_line = errors.strip().rpartition("\n")[2]
        raise ContenderError(last_line or f"exit code {process.returncode}")
    return Sample(**json.loads(output))


def end_by_force(process: subprocess.Popen[str]) -> None:
    """End a contender and its workers.

    SIGTERM first: it ends a peer's workers, but not its resource tracker, which then removes the
    semaphores that SIGKILL to the whole group would leave behind.
    """
    with process:
        if process.poll() is not None:  # reaped, so the group's number may be another's by now
            return
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_GRACE)
            return
        os.killpg(process.pid, signal.SIGKILL)


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclasses.dataclass
class Report:
    """All that was measured; a contender that failed has samples of the rounds before that."""

    calls: int
    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def ratios(self, name: str) -> list[float]:
        """The contender's median over ours, for each round that has both."""
        pairs = zip(self.samples.get(name, []), self.samples.get(OURS, []), strict=False)
        return [theirs.median / own.median for theirs, own in pairs]


def machine() -> dict[str, str | int | None]:
    """Return what a reader needs to place the figures, and nothing that tells whose they are."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "loky": version_of("loky"),
        "pebble": version_of("pebble"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
    }


def run_rounds(rounds: int, calls: int) -> Report:
    report = Report(calls)
    for name, contender in CONTENDERS.items():
        if contender.distribution is not None and version_of(contender.distribution) is None:
            report.left_out[name] = "not installed"
    shuffled = random.Random(SEED)
    for number in range(1, rounds + 1):
        racing = [name for name in CONTENDERS if name not in report.left_out]
        if not racing:
            break
        shuffled.shuffle(racing)
        print(f"round {number}/{rounds}", end="", file=sys.stderr)
        for name in racing:
            print(f", {name}", end="", file=sys.stderr, flush=True)
            try:
                sample = measure_in_fresh_process(name, calls)
            except ContenderError as error:
                # Once is enough: a stuck contender must not cost its limit in every round.
                report.left_out[name] = f"failed in round {number}: {error}"
            else:
                report.samples.setdefault(name, []).append(sample)
        print(file=sys.stderr)
    return report


def as_table(report: Report) -> Iterator[str]:
    yield f"{'':<24}{'us a call':>10}{'p99':>8}{'times ours':>13}{'   (min to max over rounds)'}"
    for name, samples in sorted(
        report.samples.items(), key=lambda item: statistics.median(s.median for s in item[1])
    ):
        median = statistics.median(sample.median for sample in samples)
        p99 = statistics.median(sample.p99 for sample in samples)
        line = f"{name:<24}{median:>10.1f}{p99:>8.0f}"
        if ratios := report.ratios(name):
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            line += f"{statistics.median(ratios):>13.2f}   {spread if name != OURS else ''}"
        yield line.rstrip()
    for name, reason in report.left_out.items():
        yield f"{name:<24}{reason}"


def as_json(report: Report) -> dict[str, object]:
    contenders: dict[str, object] = {}
    for name in CONTENDERS:
        samples = report.samples.get(name, [])
        ratios = report.ratios(name)
        contenders[name] = {
            "left_out": report.left_out.get(name),
            "median_us": statistics.median(s.median for s in samples) if samples else None,
            "times_ours": statistics.median(ratios) if ratios else None,
            "times_ours_min": min(ratios, default=None),
            "times_ours_max": max(ratios, default=None),
            "rounds": [dataclasses.asdict(sample) for sample in samples],
        }
    return {
        "question": "no-op round trip, one worker, one job at a time",
        "machine": machine(),
        "calls": report.calls,
        "seed": SEED,
        "contenders": contenders,
    }


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time a no-op job, there and back, beside other pools."
    )
    parser.add_argument("--rounds", type=positive, help="default 7; 3 with --quick")
    parser.add_argument("--calls", type=positive, help="timed in each round; 2000, or 300")
    parser.add_argument("--quick", action="store_true", help="a rough figure in seconds")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 7)
    arguments.calls = arguments.calls or (300 if arguments.quick else 2000)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.contender is not None:
        sample = measure(CONTENDERS[arguments.contender], arguments.calls)
        print(json.dumps(dataclasses.asdict(sample)))
        return 0
    facts = ", ".join(f"{fact}: {value or 'not installed'}" for fact, value in machine().items())
    print(f"{facts}\n{arguments.rounds} rounds of {arguments.calls} calls", flush=True)
    report = run_rounds(arguments.rounds, arguments.calls)
    print("", *as_table(report), sep="\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(report), indent=2) + "\n")
    return 1 if any(reason != "not installed" for reason in report.left_out.values()) else 0


if __name__ == "__main__":
    # Run it under its importable name: `noop` is then pickled as a reference by every contender
    # alike; from a main script, those with cloudpickle would send its code along.
    sys.path.insert(0, str(ROOT))
    from benchmarks import round_trip  # noqa: PLW0406

    try:
        sys.exit(round_trip.main())
    except KeyboardInterrupt:
        sys.exit(130)
