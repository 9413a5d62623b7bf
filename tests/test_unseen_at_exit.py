"""Failures that nobody has looked at: at a program's exit, in finalizers and in races."""

from __future__ import annotations

import collections
import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE, by_turns, expect, script, until

from primitive_jobs import JobPool
from primitive_jobs._engine.tracker import Outcome, StatusTracker
from primitive_jobs._engine.unseen import Unseen
from primitive_jobs._wire.failures import dump_exception
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs.status import JobStatus

cloudpickle.register_pickle_by_value(sys.modules[__name__])

FUNCTION = """
def diverge(temperature):
    raise ValueError(f"T={temperature} diverged")
"""


def diverge(temperature: float) -> NoReturn:
    raise ValueError(f"T={temperature} diverged")


# --- scripts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["JobPool(2)", "JobExecutor(2)"])
def test_a_script_that_never_asks_ends_with_a_word(tmp_path: Path, pool: str) -> None:
    source = f"""{FUNCTION}
from primitive_jobs import JobExecutor, JobPool
with {pool} as pool:
    for number in range(3):
        pool.submit(diverge, number)
print("the end")
"""
    errors = "script.py:6: JobFailuresWarning: 3 of 3 jobs failed, and nobody looked at them"
    expect(tmp_path, source, "the end\n", errors=errors)


JOBS = "jobs = [pool.submit(diverge, number) for number in range(3)]"
LINE = "primitive_jobs: 1 of 1 jobs failed, and nobody looked at it: 'diverge': ValueError: T=1 "


SUBMITS = [
    "for number in range(3): run(diverge, number)",
    "jobs = [run(diverge, number) for number in range(3)]",
    f"pool = JobPool(2); {JOBS}",
    f"pool = JobPool(2)\nwith pool: {JOBS}",
]


@pytest.mark.parametrize(("submit", "flags"), by_turns(SUBMITS, ["", "-Werror"]))
def test_at_exit_one_line_for_a_pool(submit: str, flags: str) -> None:
    source = f"{FUNCTION}\nfrom primitive_jobs import JobPool, run\n{submit}\n"
    with script(*flags.split(), "-c", source) as started:
        status, out, err = started.finish()
    assert (status, out) == (0, "")
    (line,) = err.splitlines()
    assert line.startswith("primitive_jobs: 3 of 3 jobs failed, and nobody looked at them; ")
    assert line.endswith(" diverged")


def test_a_script_that_looks_at_exit_is_told_nothing(tmp_path: Path) -> None:
    source = f"""{FUNCTION}
from primitive_jobs import run
jobs = [run(diverge, number) for number in range(3)]
for job in jobs:
    try:
        job.result()
    except ValueError as error:
        print(error)
"""
    expect(tmp_path, source, "".join(f"T={number} diverged\n" for number in range(3)))


@pytest.mark.parametrize(
    ("setting", "output"),
    [
        ("logging.basicConfig(stream=sys.stdout, format='%(levelname)s')", "WARNING\n"),
        ("logging.getLogger('primitive_jobs').addHandler(logging.NullHandler())", ""),
        ("logging.getLogger('primitive_jobs').setLevel(logging.CRITICAL)", ""),
        ("sys.stderr = None", ""),
        ("sys.stderr.close()", ""),
    ],
)
def test_a_program_that_wants_it_elsewhere(tmp_path: Path, setting: str, output: str) -> None:
    source = f"{FUNCTION}\nfrom primitive_jobs import run\nimport logging, sys\n{setting}\n"
    source += "for number in range(3): run(diverge, number)\n"
    expect(tmp_path, source, output)


def test_a_handler_that_wants_errors_only_does_not_hear_it(tmp_path: Path) -> None:
    source = f"{FUNCTION}\nfrom primitive_jobs import run\nimport logging, sys\n"
    source += "handler = logging.StreamHandler(sys.stdout); handler.setLevel(logging.ERROR)\n"
    source += "logging.getLogger().addHandler(handler)\nrun(diverge, 1)\n"
    expect(
        tmp_path, source, "", errors="primitive_jobs: 1 of 1 jobs failed, and nobody looked at it"
    )


def test_the_exception_of_a_script_stays_its_own(tmp_path: Path) -> None:
    source = f"""{FUNCTION}
from primitive_jobs import JobPool
with JobPool(1) as pool:
    pool.submit(diverge, 1).wait()
    raise KeyError("the user's")
"""
    expect(tmp_path, source, "", errors='KeyError: "the user\'s"', status=1, flags="-W error")


def test_a_pool_inside_of_a_job_is_told_too(tmp_path: Path) -> None:
    source = f"""{FUNCTION}
from primitive_jobs import JobPool
def outer():
    from primitive_jobs import run
    run(diverge, 1)
with JobPool(1) as pool:
    pool.submit(outer).result()
"""
    expect(
        tmp_path, source, "", errors="primitive_jobs: 1 of 1 jobs failed, and nobody looked at it"
    )


# --- the counting, without a pool -----------------------------------------------------------------


class Part:
    name = "part"
    inner = False

    def __init__(self) -> None:
        self.tracker = StatusTracker()


def failure(unseen: Unseen, text: str = "no") -> StatusTracker:
    message = Message(Kind.RAISED, 1, dump_exception(ValueError(text)))
    outcome, part = Outcome(JobStatus.ERROR, message), Part()
    unseen.note(part, outcome)
    part.tracker.submitted()
    part.tracker.end_early(outcome)
    return part.tracker


class Line:
    """A thread for callbacks that runs when it is told to."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Callable[[], object]] = collections.deque()
        self.unseen = Unseen(self.waiting.append, [0, 0, 0])

    def run(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


@pytest.fixture
def line() -> Line:
    return Line()


def told(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [int(text.split()[0]) for text in caplog.messages if "nobody looked at" in text]


def test_only_a_failure_has_a_token(line: Line) -> None:
    for status in (JobStatus.DONE, JobStatus.CANCELLED):
        line.unseen.note(Part(), Outcome(status, None))
    assert not line.unseen.unread
    failed = failure(line.unseen)
    assert len(line.unseen.unread) == 1
    failed.looked_at()
    failed.looked_at()
    assert not line.unseen.unread


def test_deaths_cost_one_call_until_it_is_made(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        failure(line.unseen, f"number {number}")
    assert len(line.waiting) == 1
    line.run()
    assert told(caplog) == [100]
    assert "'part': ValueError: number 0" in caplog.text
    for _ in range(99):
        failure(line.unseen)
        line.run()
    assert told(caplog) == [100]
    failure(line.unseen)
    line.run()
    assert told(caplog) == [100, 200]


def test_in_a_block_deaths_are_counted_now_and_then(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.unseen.keep_quiet()
    for _ in range(1000):
        failure(line.unseen)
        line.run()
        assert len(line.unseen._dead) <= 256
    assert not told(caplog)
    line.unseen.pool_ended()
    assert told(caplog) == [1000]
    line.unseen.tell_rest()
    line.unseen.tell_at_exit()
    assert told(caplog) == [1000]


def test_at_exit_those_that_are_held_count(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    held = [failure(line.unseen, f"number {number}") for number in range(5)]
    held.pop().looked_at()
    held.pop()
    line.unseen.tell_at_exit()
    held.clear()
    line.run()
    assert told(caplog) == [4]


def test_threads_that_let_go_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """No death is lost between those who append and those who count."""
    unseen = Unseen(lambda call: call(), [0, 0, 0])  # whoever is there counts, as after the end
    unseen.pool_ended()
    held = [[failure(unseen) for _ in range(500)] for _ in range(8)]
    start = threading.Barrier(8)

    def let_go(failed: list[StatusTracker]) -> None:
        start.wait(PATIENCE)
        failed.clear()

    threads = [threading.Thread(target=let_go, args=(failed,)) for failed in held]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(before)
    assert not unseen.unread
    assert not unseen._dead
    assert told(caplog)[-1] == 4000
    assert told(caplog) == sorted(set(told(caplog)))


def test_one_that_dies_in_a_signal_handler_in_the_middle_of_the_counting(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for a lock that the same thread holds."""
    held = [failure(line.unseen) for _ in range(3)]

    class Dead(collections.deque[object]):
        def popleft(self) -> object:
            if held:
                signal.raise_signal(signal.SIGUSR1)
            return super().popleft()

    line.unseen._dead = Dead()  # type: ignore[assignment]
    before = signal.signal(signal.SIGUSR1, lambda *_: held.pop())
    try:
        failure(line.unseen)
        line.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not held
    line.unseen.tell_rest()
    assert told(caplog)[-1] == 4


# --- whose thread it is ---------------------------------------------------------------------------


def test_no_handler_runs_on_a_thread_of_another_pool(two: JobPool) -> None:
    """There the collector may let go of a job whose own pool has ended."""
    places: list[str] = []

    class Where(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "nobody looked at" in record.getMessage():
                places.append(threading.current_thread().name)

    handler = Where()
    logging.getLogger("primitive_jobs").addHandler(handler)
    try:
        with JobPool(1) as ended:
            held = [ended.submit(diverge, 1.0)]
        let_go = threading.Event()

        def waiter() -> None:  # called by the dispatcher
            held.clear()
            let_go.set()

        two.submit(abs, -1)._tracker.call_when_final(waiter)
        assert let_go.wait(PATIENCE)
        until(lambda: places, "the record")
        assert places in (["primitive_jobs-callbacks"], ["MainThread"])
    finally:
        logging.getLogger("primitive_jobs").removeHandler(handler)


def test_a_token_in_a_cycle_dies_in_the_collector(caplog: pytest.LogCaptureFixture) -> None:
    with JobPool(1) as pool:
        job = pool.submit(diverge, 1.0)
    cycle: list[object] = [job]
    cycle.append(cycle)
    del job, cycle
    assert not told(caplog)
    gc.collect()
    assert told(caplog) == [1]
