"""What does one job cost, if it does nothing?

One caller, one worker, one job at a time: submit a no-op, wait for its result, again. So this is
latency, not throughput, and most of it is two wake-ups of a process and, where a thread receives
results, one of a thread. The floor has just these: a socket pair's echo by a bare child process,
received by a thread that settles a `concurrent.futures.Future`. Nothing is serialized there.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    EVERY_PEER,
    FLOOR,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    absent,
    expect,
)
from benchmarks.jobs import noop
from benchmarks.pools import Start, everyone

DATAGRAM = 128  # bytes, about what a pickled reference to a function takes on the wire


def measure(start: Start, counts: Counts) -> Figures:
    with start(1) as pool:
        return time_calls(lambda: pool.result(pool.submit(noop)), None, counts)


def time_calls(call: Callable[[], object], result: object, counts: Counts) -> Figures:
    # What a pool starts in the background fits into the warm-up.
    warm = time.monotonic() + counts["warm_up_ms"] / 1e3
    while time.monotonic() < warm:
        expect(call(), result)
    times_ns = []
    for _ in range(counts["calls"]):
        started = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - started)
    times_ns.sort()
    return {
        "call": statistics.median(times_ns) / 1e3,
        "p10": times_ns[int(len(times_ns) * 0.1)] / 1e3,
        "p99": times_ns[int(len(times_ns) * 0.99)] / 1e3,
    }


def socket_echo(counts: Counts) -> Figures:
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
        return time_calls(round_trip, request, counts)
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


QUESTION = Question(
    name="round_trip",
    title="no-op round trip, one worker, one job at a time",
    metrics=(
        Metric("call", "median", "us"),
        # Where others use the machine, too, this is the figure that they disturb least.
        Metric("p10", "10th percentile", "us", headline=False),
        Metric("p99", "99th percentile", "us", headline=False),
    ),
    contenders=(
        *everyone(measure),
        Contender("socket echo", "floor", socket_echo),
        absent("joblib", "its calls are batches"),
    ),
    goals=(Goal("call", FLOOR, at_most=1.3), Goal("call", EVERY_PEER, at_most=1.0)),
    full=Scale(rounds=5, limit=60, counts={"calls": 2000, "warm_up_ms": 500}),
    quick=Scale(rounds=2, limit=40, counts={"calls": 300, "warm_up_ms": 200}),
    smoke=Scale(rounds=1, limit=30, counts={"calls": 5, "warm_up_ms": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))
