"""A fork of the program while it waits for jobs: in the child every way of waiting ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import expect

BEGIN = """
import asyncio, concurrent.futures, contextlib, os, signal, sys, time, warnings
from pathlib import Path
from primitive_jobs import *

warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks, from 3.12 on
release = Path(__file__).with_name("release")

def hold(path, value=None):
    while not path.exists():
        time.sleep(0.005)
    return value

def outcomes(jobs):
    return sorted("parent" if "parent" in str(job.exception()) else job.result() for job in jobs)

def in_child(function, *args):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # hanging is status -14
        try:
            function(*args)
            sys.stdout.flush()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

pool = JobPool(1, spare_workers=0)
quick = pool.submit(str, "quick")
quick.wait(20)
"""
JOBS = """
jobs = [quick, pool.submit(hold, release, "held"), pool.submit(str, "queued")]
while not jobs[1].running():
    time.sleep(0.001)
"""
END = """
release.touch()
assert outcomes(jobs) == ["held", "queued", "quick"]
pool.shutdown()
"""
# What a child prints, and how it ends.
ENDED = "['parent', 'parent', 'quick']\nchild 0\n"

BEGUN = {
    "as_completed": "as_completed(jobs)",
    "as_completed with a timeout": "as_completed(jobs, 60)",
    "track": "track(jobs, disable=True)",
}


def test_an_iteration_that_has_begun_goes_on(tmp_path: Path) -> None:
    source = f"""
ways = {{name: iter(eval(way)) for name, way in {BEGUN}.items()}}
for name, going_on in ways.items():
    print(name, flush=True)
    assert next(going_on) is quick
    in_child(lambda: print(outcomes([quick, *going_on])))
    assert not jobs[1].in_final_state()
release.touch()
for name, going_on in ways.items():
    assert set(going_on) == set(jobs[1:]), name
"""
    output = "".join(f"{name}\n{ENDED}" for name in BEGUN)
    expect(tmp_path, BEGIN + JOBS + source + END, output)


def test_futures_that_were_begun_with(tmp_path: Path) -> None:
    source = """
executor = JobExecutor(pool=pool)
futures = [executor.submit(str, "quick")]
futures[0].result()
futures += [executor.submit(hold, release, "held"), executor.submit(str, "queued")]
jobs = [future.job for future in futures]
going_on = concurrent.futures.as_completed(futures)
assert next(going_on) is futures[0]
in_child(lambda: print(outcomes([quick, *going_on])))
in_child(lambda: print(outcomes(concurrent.futures.wait(futures).done)))
in_child(lambda: print(outcomes(concurrent.futures.as_completed(futures))))
assert not jobs[1].in_final_state()
release.touch()
assert set(going_on) == set(futures[1:])
executor.shutdown()
"""
    expect(tmp_path, BEGIN + source + END, 3 * ENDED)


MAPS = {
    "map": "pool.map(hold, paths, chunksize=1)",
    "unordered map": "pool.map(hold, paths, chunksize=1, ordered=False)",
    "chunks": "pool.map(hold, [Path('/'), *paths], chunksize=2)",
    "an executor's map": "JobExecutor(pool=pool).map(hold, paths)",
    "an executor's chunks": "JobExecutor(pool=pool).map(hold, [Path('/'), *paths], chunksize=2)",
}


def test_a_map_that_has_begun_ends(tmp_path: Path) -> None:
    source = f"""
def go_on(results):
    try:
        list(results)
    except JobError as error:
        print(["parent" if "parent" in str(error) else error])

for number, (name, way) in enumerate({MAPS}.items()):
    print(name, flush=True)
    release = Path(__file__).with_name(str(number))
    paths = [Path("/"), release, release]
    results = eval(way)
    next(results)
    in_child(go_on, results)
    assert pool.jobs()
    jobs = [quick, pool.submit(str, "held"), pool.submit(str, "queued")]
    release.touch()
    assert len(list(results)) == 2 + ("[Path" in way)
"""
    output = "".join(f"{name}\n['parent']\nchild 0\n" for name in MAPS)
    expect(tmp_path, BEGIN + source + END, output)


TOLD = "['parent', 'parent', 'quick']\n"
# What to do in the child, and what it prints there.
FRESH = {
    "wait": ("print(outcomes(wait(jobs).done))", TOLD),
    "as_completed": ("print(outcomes(as_completed(jobs)))", TOLD),
    "track": ("print(outcomes(track(jobs, disable=True)))", TOLD),
    "gather": ("failed(lambda: gather(jobs))", "parent\n"),
    "gather all": ("failed(lambda: gather(jobs, fail_fast=False))", "parent\n"),
    "race": ("failed(lambda: race(jobs[1:]))", "parent\n"),
    "result": ("failed(jobs[2].result); print(outcomes(jobs))", "parent\n" + TOLD),
    "wait of a job": (
        "print([job.wait() for job in jobs], outcomes(jobs))",
        "[True, True, True] " + TOLD,
    ),
    "cancel": (
        "print([job.cancel() for job in jobs], outcomes(jobs))",
        "[False, False, False] " + TOLD,
    ),
    "await": ("for job in jobs[1:]: failed(lambda: asyncio.run(awaited(job)))", "parent\n" * 2),
}


@pytest.mark.parametrize("known", [True, False], ids=["known", "in the dispatcher's hands"])
def test_what_waits_in_the_child_only_ends(tmp_path: Path, known: bool) -> None:
    """Also for a job that the dispatcher's thread had in its hands, off every list."""
    source = f"""
async def awaited(job):
    return await job

def failed(call):
    try:
        call()
    except BaseException as error:
        print("parent" if "parent" in repr(error) else repr(error))

assert len(pool.jobs()) == 2  # the dispatcher has taken them in
listed = pool._engine._jobs.unfinished.copy()
if not {known}:
    pool._engine._jobs.unfinished.clear()
for name, (code, _) in {FRESH}.items():
    print(name, flush=True)
    in_child(exec, code, globals())
pool._engine._jobs.unfinished.update(listed)
"""
    output = "".join(f"{name}\n{told}child 0\n" for name, (_, told) in FRESH.items())
    expect(tmp_path, BEGIN + JOBS + source + END, output)


BLOCKED = {
    "result": "jobs[1].result()",
    "wait": "wait(jobs)",
    "as_completed": "list(as_completed(jobs))",
    "gather": "gather(jobs, fail_fast=False)",
    "race": "race(jobs[1:2])",  # it cancels those that lose
    "track": "list(track(jobs, disable=True))",
    "map": "list(pool.map(hold, [release, release], chunksize=1))",
    "shutdown": "pool.shutdown()",  # the last: the pool takes no more
}


def test_a_fork_in_a_signal_handler_ends_the_waiting(tmp_path: Path) -> None:
    source = f"""
def fork(*_):
    global child
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
    else:
        release.touch()

signal.signal(signal.SIGALRM, fork)
for number, (name, way) in enumerate({BLOCKED}.items()):
    child, release = None, Path(__file__).with_name(str(number))
    jobs = [quick, pool.submit(hold, release, "held"), pool.submit(str, "queued")]
    while not jobs[1].running():
        time.sleep(0.001)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with contextlib.suppress(BaseException):
        exec(way)
    if child == 0:
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    assert outcomes(jobs) == ["held", "queued", "quick"]
"""
    output = "".join(f"{name} 0\n" for name in BLOCKED)
    expect(tmp_path, BEGIN + source + END, output)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio runs no task on in a fork")
def test_a_fork_in_a_task_ends_the_others_waiting(tmp_path: Path) -> None:
    source = """
async def awaited(job):
    try:
        return await job
    except JobError as error:
        return "parent" if "parent" in str(error) else error

async def main():
    global child
    tasks = [asyncio.ensure_future(awaited(job)) for job in jobs]
    while not tasks[0].done():
        await asyncio.sleep(0)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
    else:
        release.touch()
    done = []
    for task in tasks:
        while not task.done():
            await tick()
        done.append(task.result())
    return sorted(done)

class tick:
    def __await__(self):
        yield

loop = asyncio.new_event_loop()
found = loop.run_until_complete(main())
if child == 0:
    print(found, flush=True)
    os._exit(0)
loop.close()  # the collector may take its socket from it first, and it would complain
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print("child", status, flush=True)
"""
    expect(tmp_path, BEGIN + JOBS + source + END, ENDED)


def test_a_fork_in_a_task_of_trio_ends_the_others_waiting(tmp_path: Path) -> None:
    pytest.importorskip("trio")
    source = """
import trio
found = []

async def awaited(job):
    try:
        found.append(await job)
    except JobError as error:
        found.append("parent" if "parent" in str(error) else error)

async def fork():
    global child
    while len(found) < 1:
        await trio.lowlevel.checkpoint()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
    else:  # one at a time: the two share the descriptor that wakes trio up
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        release.touch()
    while len(found) < 3:
        await trio.lowlevel.checkpoint()
    if child == 0:
        print(sorted(found), flush=True)
        os._exit(0)

async def main():
    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(awaited, job)
        nursery.start_soon(fork)

trio.run(main)
"""
    expect(tmp_path, BEGIN + JOBS + source + END, ENDED)
