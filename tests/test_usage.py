"""`usage`: the time and memory of a job alone, in a worker that runs many."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, end_by, until

from primitive_jobs import JobMemoryError, JobPool, PrimitiveJob, Usage, report
from primitive_jobs._wire import facts, notes
from primitive_jobs.insight.usage import usage_of

if TYPE_CHECKING:
    from makers import MakePool

cloudpickle.register_pickle_by_value(sys.modules[__name__])

MB = 1_000_000
CPU = 0.2  # s
LONG = 1.0  # s: more than a fresh worker takes for its first job, imports included


def compute(seconds: float = CPU) -> float:
    start = time.process_time()
    while (used := time.process_time() - start) < seconds:
        sum(range(1000))
    return used


def touch(size: int) -> int:
    block = bytearray(size)
    for place in range(0, size, 4096):
        block[place] = 1
    return len(block)


def usage(job: PrimitiveJob[Any]) -> Usage:
    assert job.wait(PATIENCE)
    if not job.cancelled():
        job.exception()
    found = job.usage
    assert found is not None
    return found


def cpu(found: Usage) -> float:
    assert found.user is not None
    assert found.system is not None
    return found.user + found.system


def compute_and(end: str) -> None:
    compute()
    report(1.0)
    end_by(end)


@pytest.mark.parametrize("end", ["returned", "raised", "crashed", "exited", "killed"])
def test_time_after_each_end(one: JobPool, end: str) -> None:
    one.submit(compute, 0.1).result(PATIENCE)  # which is another one's
    found = usage(one.submit(compute_and, end))
    assert CPU <= cpu(found) < CPU + 0.1
    assert found.wall >= CPU * 0.9
    # Nobody could look at it right before its death.
    assert found.exact == (end in ("returned", "raised")) or found.peak_memory is None


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_time_of_one_that_is_killed(one: JobPool, how: str) -> None:
    one.submit(compute, 0.1).result(PATIENCE)
    view = one.options(timeout=4 * CPU) if how == "timed out" else one.options()
    job = view.submit(compute_and, "slept")
    if how == "cancelled":
        until(lambda: job.progress is not None, "it has computed")
        job.cancel()
    found = usage(job)
    assert CPU <= cpu(found) < CPU + 0.15
    assert found.wall == job.duration
    assert found.exact
    assert found.peak_memory is not None
    assert 5 * MB < found.peak_memory < 100 * MB


@pytest.mark.parametrize(
    "sizes", [(500, 150), pytest.param((1000, 300), marks=pytest.mark.soak)], ids=str
)
def test_the_peak_is_that_of_the_job_alone(one: JobPool, sizes: tuple[int, int]) -> None:
    first, second = (one.submit(touch, size * MB) for size in sizes)
    large, small = usage(first), usage(second)
    least = usage(one.submit(compute, 0.01))
    for found, size in ((large, sizes[0]), (small, sizes[1]), (least, 0)):
        assert found.exact
        assert found.peak_memory is not None
        assert size * MB <= found.peak_memory < (size + 80) * MB


def touch_and_die(size: int) -> None:
    touch(size)
    report(1.0)
    time.sleep(1000)


def test_the_peak_of_one_that_is_cancelled(one: JobPool) -> None:
    one.submit(touch, 400 * MB).result(PATIENCE)
    job = one.submit(touch_and_die, 150 * MB)
    until(lambda: job.progress is not None, "it has touched it")
    job.cancel()
    found = usage(job)
    assert found.peak_memory is not None
    assert 150 * MB <= found.peak_memory < 230 * MB


@pytest.mark.local
def test_a_peak_between_two_looks_passes_a_memory_limit(one: JobPool) -> None:
    one.submit(touch, 400 * MB).result(PATIENCE)  # the job before does not count

    def brief() -> None:
        touch(200 * MB)
        ctypes.CDLL(None).malloc_trim(0)
        time.sleep(1000)

    small = one.options(memory_limit="150 MB").submit(compute, 0.3)
    assert small.result(PATIENCE) > 0
    job = one.options(memory_limit="150 MB").submit(brief)
    assert isinstance(job.exception(PATIENCE), JobMemoryError)


def load_much() -> None:
    touch(400 * MB)


@pytest.mark.local
def test_what_an_initializer_took_is_no_jobs(make_pool: MakePool) -> None:
    with make_pool(1, initializer=load_much, memory_limit="200 MB") as pool:
        job = pool.submit(compute, 0.3)
        assert job.result(PATIENCE) > 0, "it is not killed for it"
        found = usage(job)
        assert found.peak_memory is not None
        assert found.peak_memory < 200 * MB


def test_a_short_retry_does_not_tell_of_the_long_attempt_before(one: JobPool) -> None:
    def first_long() -> None:
        from primitive_jobs import current_job

        job = current_job()
        assert job is not None
        if job.attempt == 1:
            compute(LONG)
            os.kill(os.getpid(), signal.SIGKILL)

    found = usage(one.options(retries=1).submit(first_long))
    assert found.user is None or cpu(found) < LONG


def test_short_jobs_have_their_wall_time_and_cost_others_nothing(one: JobPool) -> None:
    shorts = [one.submit(abs, -1) for _ in range(2000)]
    for job in shorts:
        job.result(PATIENCE)
    found = usage(shorts[-1])
    assert found.wall < PATIENCE
    long = usage(one.submit(time.sleep, 0.05))
    assert cpu(long) < 0.03, "without what the short ones before it took"


def with_children(seconds: float) -> None:
    code = (
        f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True)


def test_children_that_were_waited_for_count_and_it_says_so(one: JobPool) -> None:
    found = usage(one.submit(with_children, CPU))
    assert cpu(found) >= CPU
    assert not found.exact
    after = usage(one.submit(compute, 0.05))
    assert 0.05 <= cpu(after) < 0.15, "they count once"
    assert after.exact


@pytest.mark.local
def test_the_sum_over_jobs_is_what_the_system_accounts_for(make_pool: MakePool) -> None:
    with make_pool(1, idle_timeout=None) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        before = psutil.Process(pid).cpu_times()
        jobs = [pool.submit(compute, 0.02) for _ in range(20)]
        total = sum(cpu(usage(job)) for job in jobs)
        after = psutil.Process(pid).cpu_times()
        used = after.user + after.system - before.user - before.system
        assert total == pytest.approx(used, rel=0.05, abs=0.03)


def test_it_is_there_only_at_the_end(one: JobPool) -> None:
    job = one.submit(time.sleep, 1000)
    until(job.running, "it runs")
    assert job.usage is None
    job.cancel()
    assert job.usage is not None
    queued = PrimitiveJob(abs, 1)
    queued.cancel()
    assert queued.usage is None


def test_a_retry_tells_of_the_last_attempt(one: JobPool) -> None:
    def first_long() -> None:
        from primitive_jobs import current_job

        job = current_job()
        assert job is not None
        compute(LONG if job.attempt == 1 else 0.02)
        if job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    found = usage(one.options(retries=1).submit(first_long))
    assert 0.02 <= cpu(found) < LONG


def not_dumpable() -> None:
    ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE
    compute(0.01)


@pytest.mark.local
@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at everything")
def test_a_process_that_may_not_be_looked_at(one: JobPool) -> None:
    one.submit(not_dumpable).result(PATIENCE)
    found = usage(one.submit(compute, 0.01))
    assert not found.exact


def test_what_is_told_of_a_death() -> None:
    page = memoryview(bytearray(notes.PAGE_SIZE))

    def note(attempt: int, *, anew: bool) -> None:
        noted = notes.METER.pack(attempt, 10.0, 1.0, anew)
        page[notes.METER_AT : notes.METER_AT + len(noted)] = noted

    note(3, anew=True)
    told = notes.used_at_death(page, 4, 12.0, 1.5, 7 * MB, exact=True)
    assert told is not None
    found = usage_of(told)
    assert (found.user, found.system, found.peak_memory, found.exact) == (2.0, 0.5, 7 * MB, True)
    assert notes.used_at_death(page, 3, 12.0, 1.5, 7 * MB, exact=True) is None, "that was over"
    note(3, anew=False)
    told = notes.used_at_death(page, 4, 12.0, 1.5, 7 * MB, exact=True)
    assert told is not None
    assert usage_of(told)[3:] == (None, False), "a peak of all its life says nothing"
    with pytest.raises(struct.error):
        usage_of(b"nonsense")
    assert notes.METER_AT + notes.METER.size <= notes.PAGE_SIZE


def test_facts_that_make_no_sense_are_passed_over() -> None:
    good = facts.packed({facts.PROGRESS: b"p", facts.USAGE: b"u"})
    assert facts.unpacked(good) == {facts.PROGRESS: b"p", facts.USAGE: b"u"}
    for cut in range(len(good)):
        assert set(facts.unpacked(good[:cut])) <= {facts.PROGRESS, facts.USAGE}
    assert facts.unpacked(b"\xff" * 10) == {}


@pytest.mark.local
def test_the_accounting_of_the_system_is_left_alone(one: JobPool) -> None:
    def total() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    first = one.submit(total).result(PATIENCE)
    one.submit(compute, 0.05).result(PATIENCE)
    assert one.submit(total).result(PATIENCE) >= first + 0.04
