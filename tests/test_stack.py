"""`python -m primitive_jobs stack`: the stack of a job that goes on, and does not notice."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, hold, until
from visits import Client, monitor_of, visiting

from primitive_jobs import JobPool, JobTimeoutError, PrimitiveJob, WorkerDiedError
from primitive_jobs.__main__ import main
from primitive_jobs._local import stacks
from primitive_jobs._wire import notes
from primitive_jobs.viewer import commands

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc of Linux"),
    pytest.mark.usefixtures("in_sight"),
]
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def pool(in_sight: None) -> Iterator[JobPool]:
    with JobPool(1, spare_workers=0) as made:
        yield made
        made.shutdown(cancel=True)


def started(pool: JobPool, function: Any, *args: Any) -> PrimitiveJob[Any]:
    """A job that runs, and can be found by its id."""
    job = pool.submit(function, *args)
    until(job.running, "RUNNING")
    monitor_of(pool)
    return job


def ask(client: Client, job: PrimitiveJob[Any], **fields: object) -> str:
    """Ask for its stack; return why that is not done."""
    return str(client.ask("ask stack", id=job.job_id(), **fields)[0].get("error", ""))


def compute_until(gate: Path) -> int:
    gate.with_name("begun").touch()
    number = 0
    while not gate.exists():
        number += sum(range(100))
    return number % 4950


def sum_in_c(begun: Path, count: int) -> int:
    begun.touch()
    return sum(range(count))


def sleep_in_c(begun: Path) -> int:
    begun.touch()
    return ctypes.CDLL(None).sleep(1)  # type: ignore[no-any-return]


def sleep_in_python(begun: Path) -> float:
    begun.touch()
    begin = time.monotonic()
    time.sleep(0.7)
    return time.monotonic() - begin


# --- the answer ----------------------------------------------------------------------------------


def test_a_job_in_python(pool: JobPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = started(pool, compute_until, tmp_path / "gate")
    until((tmp_path / "begun").exists, "its begin")
    assert main(["stack", job.job_id()[:13]]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"job compute_until ({job.job_id()}), in Python:"
    assert lines[-1].endswith(" in compute_until")
    assert not any("primitive_jobs/_worker" in line for line in lines)
    (tmp_path / "gate").touch()
    assert job.result(PATIENCE) == 0
    assert job.attempts == 1
    assert main(["stack", job.job_id()]) == 1
    assert "it is not running" in capsys.readouterr().err


def test_a_job_in_c(pool: JobPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 20_000_000
    begin = time.monotonic()
    sum(range(count))
    count = int(count * 4 / (time.monotonic() - begin))  # some 4 s, or more where others work
    job = started(pool, sum_in_c, tmp_path / "begun", count)
    until((tmp_path / "begun").exists, "its begin")
    told: list[str] = []

    def in_c() -> bool:  # it may be held up right before the call
        assert main(["stack", job.job_id()]) == 0
        told[:] = capsys.readouterr().out.splitlines()
        return told[0].endswith(", in C code:")

    until(in_c, "the call of a function in C")
    lines = told[1:]
    assert any(line.endswith(" in sum_in_c") for line in lines)
    assert not any("primitive_jobs/_worker" in line for line in lines)
    assert job.result(PATIENCE) == count * (count - 1) // 2


def test_who_has_no_stack(
    pool: JobPool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    busy = started(pool, hold, tmp_path / "gate")
    queued = pool.submit(abs, -1)
    assert main(["stack", queued.job_id()]) == 1
    assert "is QUEUED: it is not running" in capsys.readouterr().err
    assert main(["stack", "nothing"]) == 1
    assert "no job of yours" in capsys.readouterr().err
    busy.cancel()


# --- the job does not notice ---------------------------------------------------------------------


def test_a_sleep_in_c_is_not_disturbed(
    pool: JobPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = started(pool, sleep_in_c, tmp_path / "begun")
    until((tmp_path / "begun").exists, "its begin")
    with visiting(pool) as client:
        pool.snapshot()
        client.ask("find", id=job.job_id())
        until(lambda: "_nanosleep" in ask(client, job), "the sleep")
        assert "--force" in ask(client, job)
    assert job.result(PATIENCE) == 0  # s that are left of it


def test_a_sleep_in_python_goes_on(
    pool: JobPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = started(pool, sleep_in_python, tmp_path / "begun")
    until((tmp_path / "begun").exists, "its begin")
    for _ in range(3):
        assert main(["stack", "--force", job.job_id()]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(" in sleep_in_python")
    assert job.result(PATIENCE) >= 0.7


def raise_ticks(begun: Path, gate: Path) -> tuple[int, int]:
    """Have a handler raise again and again; return how often that came, and how often not."""
    rang = False
    came = lost = 0

    class Tick(Exception):
        pass

    def tick(number: int, frame: object) -> None:
        nonlocal rang
        rang = True
        raise Tick

    def go_on() -> None:  # CPython 3.13.0 loses what is raised at the end of a loop in a `try`
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        while not rang:
            sum(range(10))

    signal.signal(signal.SIGALRM, tick)
    begun.touch()
    while came + lost < 20 or not gate.exists():
        rang = False
        try:
            go_on()
            lost += 1  # it was raised, and yet this goes on
        except Tick:
            came += 1
    return came, lost


def test_what_another_handler_raises_is_the_jobs(pool: JobPool, tmp_path: Path) -> None:
    job = started(pool, raise_ticks, tmp_path / "begun", tmp_path / "gate")
    until((tmp_path / "begun").exists, "its begin")
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        asked = sum(ask(client, job) == "" for _ in range(2000))  # but for when it answers
    assert asked > 100
    (tmp_path / "gate").touch()
    came, lost = job.result(PATIENCE)
    assert came >= 20
    assert lost == 0


def recurse(depth: int) -> int:
    return 0 if not depth else 1 + recurse(depth - 1)


def recurse_until(gate: Path) -> set[int]:
    found = set()
    while not gate.exists():
        found.add(recurse(500))
        found.add(len(str(3**5000)))
    return found


def test_many_looks(pool: JobPool, tmp_path: Path) -> None:
    job = started(pool, recurse_until, tmp_path / "gate")
    answers = 0
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        for _ in range(200):
            until(lambda: ask(client, job) == "", "that nothing is against it")

            def answered() -> bool:
                head, rows = client.ask("stack", id=job.job_id())
                return bool(head["complete"] and rows)

            until(answered, "the stack")
            answers += 1
    assert answers == 200
    (tmp_path / "gate").touch()
    assert job.result(PATIENCE) == {500, 2386}
    assert job.attempts == 1


# --- where it cannot be asked --------------------------------------------------------------------


def block_it(begun: Path, gate: Path) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    begun.touch()
    while not gate.exists():
        sum(range(100))
    return "well"


def let_go_of_it(begun: Path, gate: Path) -> str:
    signal.signal(signal.SIGRTMAX - 1, signal.SIG_DFL)
    begun.touch()
    while not gate.exists():
        sum(range(100))
    return "well"


def close_it(begun: Path, gate: Path) -> str:
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if "stacks" in str(entry.readlink()):
                os.close(int(entry.name))
    begun.touch()
    while not gate.exists():
        sum(range(100))
    return "well"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (block_it, "taken or blocked"),
        (let_go_of_it, "taken or blocked"),
        (close_it, "cannot be asked"),
    ],
    ids=["blocked", "default", "closed"],
)
def test_a_job_that_cannot_be_asked(pool: JobPool, tmp_path: Path, function: Any, why: str) -> None:
    job = started(pool, function, tmp_path / "begun", tmp_path / "gate")
    until((tmp_path / "begun").exists, "its begin")
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        assert why in ask(client, job, force=True)
        (tmp_path / "gate").touch()
        assert job.result(PATIENCE) == "well"
        assert "not running" in ask(client, job)


def test_c_is_never_asked_first(pool: JobPool, tmp_path: Path) -> None:
    job = started(pool, compute_until, tmp_path / "gate")
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        assert "not asked before" in ask(client, job, deep=True)
        assert ask(client, job) == ""
        until(lambda: client.ask("stack", id=job.job_id())[0].get("complete"), "the stack")
        assert ask(client, job, deep=True) == ""  # there is an answer: nothing is sent
        assert client.ask("stack", id=job.job_id())[0]["complete"]


def test_a_process_that_gets_no_time_is_not_asked_in_c(
    pool: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "_SILENCE", 0.0)
    job = started(pool, compute_until, tmp_path / "gate")
    assert job.pid is not None
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        os.kill(job.pid, signal.SIGSTOP)
        until(lambda: "stopped" in ask(client, job), "that it is stopped")
        os.kill(job.pid, signal.SIGCONT)
        until(lambda: ask(client, job) == "", "that it goes on")
        monkeypatch.setattr(stacks, "_ENOUGH", PATIENCE)
        (process,) = pool._engine._fleet.workers.values()
        (number,) = notes.NUMBER.unpack_from(process.page, notes.STACKS)  # type: ignore[attr-defined]
        file = Path(f"/proc/{job.pid}/fd/{number}")
        until(lambda: file.stat().st_size, "the answer")
        os.truncate(file, 0)  # as if there were none
        told = ask(client, job, deep=True)
        assert "the machine is busy" in told or "system call" in told


def test_a_worker_on_another_machine(
    pool: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = started(pool, hold, tmp_path / "gate")
    monkeypatch.setattr(pool._engine._fleet, "stacks", None)
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        assert "on another machine" in ask(client, job)
        assert "not running" in client.ask("stack", id=job.job_id())[0]["error"]
    job.cancel()


# --- the stack of a worker's end -----------------------------------------------------------------


def crash_at(gate: Path) -> None:
    while not gate.exists():
        sum(range(100))
    ctypes.string_at(0)


def test_the_stack_of_a_crash_is_its_own(pool: JobPool, tmp_path: Path) -> None:
    job = started(pool, crash_at, tmp_path / "gate")
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        for _ in range(5):
            until(lambda: ask(client, job) == "", "that nothing is against it")
    (tmp_path / "gate").touch()
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.stack is not None
    assert error.stack.count("in crash_at") == 1
    assert "string_at" in error.stack


def test_the_stack_of_a_limit_is_its_own(pool: JobPool, tmp_path: Path) -> None:
    job = pool.options(timeout=1.5).submit(compute_until, tmp_path / "never")
    until((tmp_path / "begun").exists, "its begin")
    with visiting(pool) as client:
        client.ask("find", id=job.job_id())
        while not job.in_final_state():
            ask(client, job)
    error = job.exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.stack is not None
    assert error.stack.count("in compute_until") == 1


# --- a stack as text -----------------------------------------------------------------------------


def test_a_stack_ends_where_the_worker_begins() -> None:
    lines = [
        '  File "a.py", line 1 in f',
        '  File "/x/primitive_jobs/_worker/loop.py", line 3 in g',
    ]
    assert commands.of_job(lines) == lines[:1]
    assert commands.of_job(lines[:1]) == lines[:1]
    assert commands.of_job(lines[1:]) == ["  (between two jobs)"]


@pytest.mark.parametrize(
    ("machine", "text", "why"),
    [
        ("x86_64", "running\n", ""),
        ("x86_64", "230 0x1 0x2\n", "clock_nanosleep"),
        ("x86_64", "202 0x1\n", ""),  # futex: it is restarted
        ("x86_64", "-1 0x7ffe 0x7f\n", ""),  # blocked, and in no system call
        ("aarch64", "73 0x1\n", "ppoll"),
        ("riscv64", "73 0x1\n", "cannot be told"),
        ("riscv64", "running\n", ""),
        ("x86_64", "", "cannot be told"),
    ],
)
def test_which_calls_a_signal_ends(
    machine: str, text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/syscall").write_text(text)
    monkeypatch.setattr(stacks, "PROC", tmp_path)
    monkeypatch.setattr("platform.machine", lambda: machine)
    told = stacks._ended_early(7)
    assert (why in told) if why else told == ""
