"""Limits, retries, replaced workers, and what is told of a death."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, gone, hold, until

from primitive_jobs import (
    JobExecutor,
    JobMemoryError,
    JobOptions,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
)
from primitive_jobs._procs import probe, process
from primitive_jobs._wire import notes
from primitive_jobs.options import check_bytes

if TYPE_CHECKING:
    from makers import MakePool

MB = 1_000_000

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def walk(job: PrimitiveJob[Any]) -> list[str]:
    return [status.name for status, _ in job.history()]


# --- memory_limit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, None),
        (float("inf"), None),
        (1_000_000, 1_000_000),
        (2e9, 2_000_000_000),
        ("1000000", 1_000_000),
        ("7000000 B", 7_000_000),
        ("500 MB", 500_000_000),
        ("500mb", 500_000_000),
        ("2G", 2_000_000_000),
        ("2 g", 2_000_000_000),
        ("512M", 512_000_000),
        ("512m", 512_000_000),
        ("2GiB", 2 << 30),
        ("2 GiB", 2 << 30),
        ("2 Gi", 2 << 30),
        (" 1500.5 KiB ", 1_536_512),
        ("1TB", 10**12),
        ("1 t", 10**12),
        ("1Ti", 1 << 40),
        ("3000 kB", 3_000_000),
        ("3000k", 3_000_000),
    ],
)
def test_sizes(value: Any, size: int | None) -> None:
    assert check_bytes("memory_limit", value) == size


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (0.5, ValueError),
        (float("nan"), ValueError),
        ("0 MB", ValueError),
        ("-1 MB", ValueError),
        ("2 XB", ValueError),
        ("2 GG", ValueError),
        ("2 iB", ValueError),
        ("2i", ValueError),
        (1, ValueError),
        (999_999, ValueError),
        ("999 KB", ValueError),
        ("GB", ValueError),
        ("", ValueError),
        (True, TypeError),
        (b"1 MB", TypeError),
        ([1], TypeError),
    ],
)
def test_wrong_sizes(make_pool: MakePool, value: Any, error: type[Exception], two: JobPool) -> None:
    with pytest.raises(error, match="memory_limit must be"):
        two.options(memory_limit=value)
    with pytest.raises(error, match="memory_limit must be"):
        make_pool(1, memory_limit=value)


@pytest.mark.local
@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (2, "2, which is 2 bytes: .* write '2GB'"),
        (1, "1, which is 1 byte: .* write '1GB'"),
        (1.5, "write '1.5GB'"),
        ("8", "'8', which is 8 bytes: .* write '8GB'"),
        ("8 B", "which is 8 bytes$"),
        (512, "512, which is 512 bytes: .* write '512MB'"),
        ("100 KB", "'100 KB', which is 100000 bytes$"),
        (0, "None is no limit"),
    ],
)
def test_a_size_without_a_unit_is_told_as_what_it_is(
    value: Any, hint: str, two: JobPool, marks: Path
) -> None:
    from primitive_jobs.joblib import PrimitiveJobsBackend

    takers: list[Callable[[], object]] = [
        lambda: JobOptions(memory_limit=value),
        lambda: two.options(memory_limit=value),
        lambda: PrimitiveJob(abs, 1).submit(two, memory_limit=value),
        lambda: JobPool(1, memory_limit=value),
        lambda: JobExecutor(1, memory_limit=value),
        lambda: PrimitiveJobsBackend(memory_limit=value),
    ]
    for take in takers:
        with pytest.raises(ValueError, match=f"memory_limit must be at least 1 MB, not .*{hint}"):
            take()


def grow(size: int, gate: Path) -> None:
    held = b"x" * size
    hold(gate)
    del held


def grow_below(size: int, gate: Path) -> None:
    """Two processes below the job's hold half of it each."""
    code = f"held = b'x' * {size // 2}; input()"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(2)
    ]
    (gate.parent / "children").write_text(" ".join(str(child.pid) for child in children))
    hold(gate)


@pytest.mark.local
@pytest.mark.parametrize("function", [grow, grow_below])
def test_a_job_that_passes_its_memory_limit_is_killed(
    function: Callable[[int, Path], None], two: JobPool, marks: Path
) -> None:
    neighbour = two.submit(hold, marks / "gate", 7)
    until(neighbour.running, "the neighbour")
    pid = neighbour.pid
    job = two.options(memory_limit="250 MB", name="greedy", retries=3).submit(
        function, 500 * MB, marks / "never"
    )
    with pytest.raises(JobMemoryError, match=r"greedy .* memory_limit of 250\.0 MB") as caught:
        job.result(PATIENCE)
    error = caught.value
    assert isinstance(error, MemoryError)
    assert error.limit == 250 * MB
    assert 250 * MB < error.peak < 650 * MB
    assert job.status() is JobStatus.ERROR
    assert job.attempts == 1
    assert neighbour.pid == pid
    (marks / "gate").touch()
    assert neighbour.result(PATIENCE) == 7
    if (marks / "children").exists():
        pids = (marks / "children").read_text().split()
        assert all(gone(int(pid)) for pid in pids)
    assert error.stack is not None
    assert f" in {function.__name__}\n" in error.stack
    assert str(error).endswith(error.stack)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy)) == (JobMemoryError, vars(error))


def test_below_the_limit_nothing_happens(one: JobPool) -> None:
    def half() -> int:
        held = b"x" * (100 * MB)
        time.sleep(0.5)  # some looks at the memory
        return len(held)

    job = one.options(memory_limit="250 MB").submit(half)
    assert job.result(PATIENCE) == 100 * MB


def test_shared_pages_count_once(one: JobPool) -> None:
    def fork_twice() -> str:
        held = bytearray(os.urandom(1000)) * 100_000
        children = [os.fork() for _ in range(2)]
        if 0 in children:
            sum(held[::4096])  # the pages are there, and shared
            time.sleep(1)
            os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        return "done"

    job = one.options(memory_limit="250 MB").submit(fork_twice)
    assert job.result(PATIENCE) == "done"


def test_the_pools_limit_is_a_default(make_pool: MakePool, marks: Path) -> None:
    with make_pool(1, memory_limit="150 MB") as pool:
        with pytest.raises(JobMemoryError):
            pool.submit(grow, 300 * MB, marks / "never").result(PATIENCE)
        (marks / "gate").touch()
        pool.options(memory_limit=None).submit(grow, 300 * MB, marks / "gate").result(PATIENCE)
        with pytest.raises(JobMemoryError):
            pool.options(name="n").submit(grow, 300 * MB, marks / "never").result(PATIENCE)


def test_a_worker_full_of_leftovers_is_replaced_first(one: JobPool) -> None:
    def leave_behind() -> int:
        sys.leftover = b"x" * (300 * MB)  # type: ignore[attr-defined]
        return os.getpid()

    first = one.submit(leave_behind).result(PATIENCE)
    job = one.options(memory_limit="200 MB").submit(os.getpid)
    second = job.result(PATIENCE)
    assert second != first
    assert walk(job).count("RUNNING") == 1
    assert one.options(memory_limit="200 MB").submit(os.getpid).result(PATIENCE) == second


# --- retries -------------------------------------------------------------------------------------


def crash_at_first(marks: Path, times: int) -> int:
    """Die ``times`` times, then tell how often this was begun."""
    begun = len(list(marks.iterdir()))
    (marks / str(begun)).touch()
    if begun < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return begun + 1


def test_retries_after_a_death(one: JobPool, marks: Path) -> None:
    job = one.options(retries=2).submit(crash_at_first, marks, 2)
    assert job.result(PATIENCE) == 3
    assert job.attempts == 3
    again = ["RUNNING", "QUEUED"]
    expected = ["INITIALIZING", "VALIDATING", "QUEUED", *again, *again, "RUNNING", "DONE"]
    assert walk(job) == expected
    assert pickle.loads(pickle.dumps(job)).attempts == 3


def test_retries_are_counted(one: JobPool, marks: Path) -> None:
    job = one.options(retries=1).submit(crash_at_first, marks, 9)
    with pytest.raises(WorkerDiedError):
        job.result(PATIENCE)
    assert job.attempts == 2
    assert len(list(marks.iterdir())) == 2


def test_no_retry_but_after_a_death(one: JobPool, marks: Path) -> None:
    def note_and(what: str) -> None:
        (marks / f"{what}{time.monotonic_ns()}").touch()
        if what == "raise":
            raise ValueError(what)
        if what != "answer":
            time.sleep(1000)

    def answer() -> Any:
        note_and("answer")
        return sys._getframe()  # cannot be pickled

    view = one.options(retries=5)
    with pytest.raises(ValueError, match="raise"):
        view.submit(note_and, "raise").result(PATIENCE)
    with pytest.raises(SerializationError):
        view.submit(answer).result(PATIENCE)
    with pytest.raises(JobTimeoutError):
        view.options(timeout=0.5).submit(note_and, "timeout").result(PATIENCE)
    job = view.submit(note_and, "cancel")
    until(lambda: list(marks.glob("cancel*")), "its start")
    assert job.cancel()
    assert sorted(path.name.rstrip("0123456789") for path in marks.iterdir()) == [
        "answer",
        "cancel",
        "raise",
        "timeout",
    ]


def test_a_retried_job_gets_its_arguments_anew(one: JobPool, marks: Path) -> None:
    data = bytearray(b"a" * 300_000)

    def spoil(data: bytearray) -> bytes:
        first = bytes(data[:3])
        data[:3] = b"bad"
        crash_at_first(marks, 1)
        return first

    assert one.options(retries=1).submit(spoil, data).result(PATIENCE) == b"aaa"


@pytest.mark.local
@pytest.mark.parametrize(
    ("retries", "error"), [(-1, ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError)]
)
def test_wrong_retries(retries: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="retries must be"):
        PrimitiveJob(int).submit(retries=retries)


# --- replaced workers ----------------------------------------------------------------------------


def test_max_jobs_per_worker(make_pool: MakePool) -> None:
    with make_pool(1, max_jobs_per_worker=2) as pool:
        jobs = [pool.submit(os.getpid) for _ in range(6)]
        pids = [job.result(PATIENCE) for job in jobs]
    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3


@pytest.mark.local
def test_no_job_is_lost_or_doubled_while_workers_are_replaced(
    make_pool: MakePool, marks: Path
) -> None:
    def mark(number: int) -> int:
        with (marks / str(number)).open("x"):
            return number

    with make_pool(2, max_jobs_per_worker=3) as pool:
        jobs = []
        for number in range(60):
            jobs.append(pool.submit(mark, number))
            if number % 10 == 0:
                pool.restart_workers()
        assert [job.result(PATIENCE) for job in jobs] == list(range(60))
    assert len(list(marks.iterdir())) == 60


@pytest.mark.local
def test_restart_workers(two: JobPool, marks: Path) -> None:
    idle = two.submit(os.getpid).result(PATIENCE)
    busy = two.submit(hold, marks / "gate", 1)
    until(busy.running, "RUNNING")
    busy_pid = busy.pid
    other = two.submit(os.getpid).result(PATIENCE)
    two.restart_workers()
    until(lambda: not psutil.pid_exists(other), "the idle one to leave")
    assert busy.pid == busy_pid
    (marks / "gate").touch()
    assert busy.result(PATIENCE) == 1
    fresh = {two.submit(os.getpid).result(PATIENCE) for _ in range(3)}
    assert not fresh & {idle, busy_pid, other}


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (True, TypeError), ("1", TypeError)])
def test_wrong_max_jobs_per_worker(make_pool: MakePool, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_jobs_per_worker must be"):
        make_pool(1, max_jobs_per_worker=value)


# --- evidence ------------------------------------------------------------------------------------


def read_address_0() -> None:
    ctypes.string_at(0)


def divide_by_zero() -> None:
    os.kill(os.getpid(), signal.SIGFPE)


@pytest.mark.local
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (number, f"os.kill(os.getpid(), {int(number)})")
        for number in (signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
    ]
    + [(signal.SIGSEGV, "ctypes.string_at(0)")],
)
def test_a_crash_is_told_with_its_stack(number: signal.Signals, code: str, one: JobPool) -> None:
    # A child may inherit its parent's peak, and only a higher one is its own.
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 80 * MB

    def innermost() -> None:
        held = b"x" * size
        time.sleep(0.2)
        exec(code, {"os": os, "ctypes": ctypes, "held": held})

    job = one.options(name="unlucky").submit(innermost)
    with pytest.raises(WorkerDiedError) as caught:
        job.result(PATIENCE)
    error, text = caught.value, str(caught.value)
    assert (error.signal, error.exitcode) == (number, -number)
    for part in (number.name, "unlucky", job.job_id(), str(error.pid), "in innermost", "MB"):
        assert part in text
    assert error.stack is not None
    assert "in innermost" in error.stack
    assert error.ran is not None
    assert 0.2 <= error.ran < PATIENCE
    assert error.peak_memory is not None
    assert size < error.peak_memory < size + 200 * MB
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error)


@pytest.mark.local
def test_the_peak_is_not_the_callers(one: JobPool) -> None:
    held = bytearray(400 * MB)
    held[::4096] = b"x" * len(held[::4096])  # Linux lets a child inherit its parent's peak
    with pytest.raises(WorkerDiedError) as caught:
        one.submit(os._exit, 3).result(PATIENCE)
    assert caught.value.peak_memory is None
    assert len(held) == 400 * MB


@pytest.mark.local
def test_a_lost_link_is_told(one: JobPool, marks: Path) -> None:
    def cut() -> None:
        os.closerange(3, 2000)
        hold(marks / "never")

    with pytest.raises(WorkerDiedError, match="closed or broke its link to the pool"):
        one.submit(cut).result(PATIENCE)


@pytest.mark.local
def test_an_end_seen_through_the_link_first_is_told_as_what_it_is(
    one: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_DYING", PATIENCE)  # 2 ms may last long on a busy machine

    def end_slowly() -> None:
        os.closerange(3, 2000)
        time.sleep(0.002)
        os._exit(5)

    with pytest.raises(WorkerDiedError, match="exited with code 5"):
        one.submit(end_slowly).result(PATIENCE)


@pytest.mark.local
def test_a_kill_that_looks_like_the_oom_killers(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 5\noom_kill 3\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    monkeypatch.setattr(probe, "PROC", tmp_path)
    monkeypatch.setattr(probe, "CGROUPS", tmp_path)

    def be_killed(count: int) -> None:
        counters.write_text(f"nr_free_pages 5\noom_kill {count}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with make_pool(1) as pool:
        with pytest.raises(WorkerDiedError, match="SIGKILL") as caught:
            pool.submit(be_killed, 3).result(PATIENCE)
        assert "OOM" not in str(caught.value)
        with pytest.raises(WorkerDiedError, match=r"OOM killer: its count rose by 2 \(machine\)"):
            pool.submit(be_killed, 5).result(PATIENCE)


@pytest.mark.local
@pytest.mark.parametrize(
    ("cgroup", "file", "text"),
    [
        ("0::/a/b\n", "a/b/memory.events", "low 0\noom 2\noom_kill 4\n"),
        ("0::/a/b\n", "memory.events", "oom_kill 4\n"),
        ("4:memory:/a\n0::/\n", "memory/a/memory.oom_control", "under_oom 0\noom_kill 4\n"),
        ("4:memory:/a\n0::/\n", "memory/memory.oom_control", "oom_kill 4\n"),
    ],
)
def test_the_cgroups_counter(
    cgroup: str, file: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROC", tmp_path / "proc")
    monkeypatch.setattr(probe, "CGROUPS", tmp_path / "cgroup")
    assert probe.oom_kills() == {}
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    assert probe.oom_kills() == {}
    path = tmp_path / "cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert probe.oom_kills() == {"cgroup": 4}


@pytest.mark.local
def test_memory_without_the_list_of_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"held = b'x' * {200 * MB}; print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        sums = [probe.tree_memory(os.getpid(), 10**12)]
        for pid in psutil.pids():
            (tmp_path / str(pid)).symlink_to(f"/proc/{pid}")
        monkeypatch.setattr(probe, "PROC", tmp_path)
        sums.append(probe.tree_memory(os.getpid(), 10**12))
        child.communicate(b"\n")
    assert min(sums) > 200 * MB
    assert probe.tree_memory(child.pid, 1) == 0
    assert probe.resident(child.pid) == 0


# --- on_exit -------------------------------------------------------------------------------------


@pytest.mark.local
@pytest.mark.parametrize(("on_exit", "ran"), [("wait", True), ("cancel", False)])
def test_on_exit(on_exit: str, ran: bool, tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from primitive_jobs import JobPool

def work():
    Path({str(tmp_path / "begun")!r}).touch()
    time.sleep({0.5 if ran else 1000})
    Path({str(tmp_path / "ended")!r}).touch()

pool = JobPool(1, on_exit={on_exit!r})
pool.submit(work)
while not Path({str(tmp_path / "begun")!r}).exists():
    time.sleep(0.01)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "ended").exists() is ran


@pytest.mark.local
def test_wrong_on_exit() -> None:
    with pytest.raises(ValueError, match="on_exit must be 'wait' or 'cancel', not 'kill'"):
        JobPool(1, on_exit="kill")  # type: ignore[arg-type]


@pytest.mark.local
def test_notes_do_not_overlap() -> None:
    assert notes.NOTES.size <= notes.PAGE_SIZE
