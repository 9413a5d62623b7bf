"""What a job prints, with the option `output`: after each end, from C and child processes, kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, case, double, fleet_of, hold, until

from primitive_jobs import (
    JobCancelledError,
    JobExecutor,
    JobMemoryError,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
    current_job,
)
from primitive_jobs import pool as pool_module
from primitive_jobs._procs.process import WorkerConfig
from primitive_jobs.insight import printed as printed_module
from primitive_jobs.insight import tee as tee_module
from primitive_jobs.insight.printed import HEAD, TAIL, Printed
from primitive_jobs.insight.tee import Tee

cloudpickle.register_pickle_by_value(sys.modules[__name__])

BOTH = "out\nerr\n"


def talk(then: Callable[[], Any] = int) -> Any:
    print("out")
    print("err", file=sys.stderr)
    return then()


def raise_it() -> None:
    raise ValueError("on purpose")


def crash() -> None:
    ctypes.string_at(0)


def take_memory() -> None:
    taken = [bytearray(b"x") * 10_000_000 for _ in range(60)]
    time.sleep(PATIENCE + len(taken))


def compute_in_c() -> int:
    return sum(range(10**13))


def clean_up() -> None:
    try:
        time.sleep(PATIENCE)
    except SystemExit:
        print("cleaned up")
        raise


def running(pool: Any, *call: Any) -> PrimitiveJob[Any]:
    """A job that is known to have printed, while it runs."""
    job: PrimitiveJob[Any] = pool.submit(*call)
    until(lambda: job.output() == BOTH, "what it prints")
    assert job.running()
    return job


# --- each end -------------------------------------------------------------------------------------


def test_a_result_and_an_exception(one: JobPool) -> None:
    view = one.options(output="capture")
    job = view.submit(talk)
    assert job.result(PATIENCE) == 0
    assert job.output() == BOTH
    assert job.output(tail=4) == "err\n"
    assert job.output(tail=0) == ""
    failed = view.submit(talk, raise_it)
    assert isinstance(failed.exception(PATIENCE), ValueError)
    assert failed.output() == BOTH
    lost = view.submit(talk, threading.Lock)
    assert isinstance(lost.exception(PATIENCE), SerializationError)
    assert lost.output() == BOTH


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (lambda: os._exit(3), "exited with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (crash, "SIGSEGV"),
    ],
    ids=["exit", "kill", "crash"],
)
def test_a_death(one: JobPool, end: Callable[[], Any], what: str) -> None:
    job = one.options(output="capture").submit(talk, end)
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert what in str(error)
    assert "what it printed last is the error's output" in str(error)
    assert error.output == job.output() == BOTH
    assert pickle.loads(pickle.dumps(error)).output == BOTH
    plain = one.submit(talk, end).exception(PATIENCE)
    assert isinstance(plain, WorkerDiedError)
    assert plain.output is None
    assert "printed" not in str(plain)


def test_limits(one: JobPool) -> None:
    view = one.options(output="capture", timeout=0.5)
    error = view.submit(talk, compute_in_c).exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.output == BOTH
    assert "the error's output" in str(error)
    view = one.options(output="capture", memory_limit="300 MB")
    error = view.submit(talk, take_memory).exception(PATIENCE)
    assert isinstance(error, JobMemoryError)
    assert error.output == BOTH
    assert "the error's output" in str(error)


def test_a_cancel(one: JobPool, tmp_path: Path) -> None:
    view = one.options(output="capture")
    job = running(view, talk, compute_in_c)
    queued = view.submit(talk)
    assert queued.cancel()
    assert queued.output() == ""
    assert job.cancel()
    assert job.output() == BOTH
    job = running(view, talk, clean_up)
    assert job.cancel(grace=PATIENCE)
    with pytest.raises(JobCancelledError):
        job.result()
    assert job.output() == BOTH + "cleaned up\n"
    job = running(view, talk, lambda: hold(tmp_path / "never"))
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.output == BOTH


def test_a_line_that_was_not_finished_survives_what_lets_python_end(make_pool: Any) -> None:
    """A line is out once it is whole, also without PYTHONUNBUFFERED; the rest at the job's end."""

    def half(end: Callable[[], Any] = int) -> Any:
        print("whole")
        print("half", end="")
        return end()

    with make_pool(1, output="capture", env={"PYTHONUNBUFFERED": ""}) as pool:
        job = pool.submit(half)
        assert job.result(PATIENCE) == 0
        assert job.output() == "whole\nhalf"
        killed = pool.submit(half, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert isinstance(killed.exception(PATIENCE), WorkerDiedError)
        assert killed.output() == "whole\n"
        inherits = pool.options(output="inherit").submit(lambda: sys.stdout.line_buffering)
        assert inherits.result(PATIENCE) is os.isatty(1)


def test_retries_and_replaced_workers(make_pool: Any, tmp_path: Path) -> None:
    def once(mark: Path, number: int) -> int:
        first = not mark.exists()
        print("first" if first else "second", number)
        if first:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    with make_pool(1, output="capture", max_jobs_per_worker=1) as pool:
        jobs = [pool.options(retries=1).submit(once, tmp_path / str(n), n) for n in range(2)]
        assert len({job.result(PATIENCE) for job in jobs}) == 2
        assert [job.output() for job in jobs] == [f"first {n}\nsecond {n}\n" for n in range(2)]
        file = pool.options(retries=1, output=tmp_path / "logs" / "{name}.log")
        job = file.submit(once, tmp_path / "file", 3)
        job.result(PATIENCE)
        assert job.output() == "first 3\nsecond 3\n"
        (log,) = (tmp_path / "logs").iterdir()
        assert log.read_text() == job.output()


def test_the_end_of_its_pool() -> None:
    pool = JobPool(1, output="capture")
    job = running(pool, talk, compute_in_c)
    pool.shutdown(cancel=True)
    assert job.status() is JobStatus.CANCELLED
    assert job.output() == BOTH


def test_a_fork_of_the_program(one: JobPool, tmp_path: Path) -> None:
    job = running(one.options(output="capture"), talk, lambda: hold(tmp_path / "gate"))
    (process,) = fleet_of(one).workers.values()
    pipe = process.traces.pipe
    assert pipe is not None
    fd, inode = pipe.fileno(), os.fstat(pipe.fileno()).st_ino
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os._exit(1)
            os._exit(0 if job.output() == BOTH else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (tmp_path / "gate").touch()
    job.result(PATIENCE)
    assert job.output() == BOTH


# --- who prints -----------------------------------------------------------------------------------


def test_c_code_and_child_processes_in_order(one: JobPool) -> None:
    def mixed() -> None:
        c = ctypes.CDLL(None)
        print("1 python")
        c.puts(b"2 C")
        print("3 stderr", file=sys.stderr)
        subprocess.run(["echo", "4 child"], check=True)
        subprocess.run("echo 5 shell > /dev/stdout", shell=True, check=True)
        os.write(2, b"6 os.write\n")
        if not os.fork():
            os.write(1, b"7 fork\n")
            os._exit(0)
        os.wait()
        c.printf(b"8 no newline")

    job = one.options(output="capture").submit(mixed)
    job.result(PATIENCE)
    lines = ["1 python", "2 C", "3 stderr", "4 child", "5 shell", "6 os.write", "7 fork"]
    assert job.output() == "\n".join([*lines, "8 no newline"])


def test_one_after_the_other_on_one_worker(
    capfd: pytest.CaptureFixture[str], make_pool: Any
) -> None:
    def say(n: int) -> int:
        print("job", n)
        print(n, end="", file=sys.stderr)
        return os.getpid()

    with make_pool(1) as pool:
        inherits, captures = pool, pool.options(output="capture")
        jobs = [(inherits if n % 3 == 1 else captures).submit(say, n) for n in range(150)]
        assert len({job.result(PATIENCE) for job in jobs}) == 1
        for n, job in enumerate(jobs):
            assert job.output() == (None if n % 3 == 1 else f"job {n}\n{n}"), n
    there = capfd.readouterr()
    others = range(1, 150, 3)
    assert there.out == "".join(f"job {n}\n" for n in others)
    assert there.err == "".join(map(str, others))


def test_a_job_that_redirects_or_closes(
    capfd: pytest.CaptureFixture[str], make_pool: Any, tmp_path: Path
) -> None:
    def redirect() -> None:
        print("before")
        fd = os.open(tmp_path / "own", os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        print("elsewhere")

    def close() -> None:
        print("before")
        os.close(1)
        os.close(2)

    def unblock() -> None:
        print("before")
        os.set_blocking(1, False)

    def close_all() -> None:
        for fd in range(960, 1010):
            target = ""
            with contextlib.suppress(OSError):
                target = str(Path(f"/proc/self/fd/{fd}").readlink())
            if target.startswith("pipe:"):
                os.close(fd)
        print("still there")

    with make_pool(1) as pool:
        view = pool.options(output="capture")
        for misbehave in (redirect, close, unblock):
            job = view.submit(misbehave)
            job.result(PATIENCE)
            assert job.output() == "before\n"
            assert pool.submit(talk).result(PATIENCE) == 0
            job = view.submit(talk)
            job.result(PATIENCE)
            assert job.output() == BOTH
        job = view.submit(lambda: os.get_blocking(1) and print("x" * 3_000_000))
        job.result(PATIENCE)
        assert (job.output() or "").endswith("x\n")
        # Of what stands for the pipe, too: there is another one then.
        job = view.submit(close_all)
        job.result(PATIENCE)
        assert job.output() == "still there\n"
        job = view.submit(talk)
        job.result(PATIENCE)
        assert job.output() == BOTH
    there = capfd.readouterr()
    assert there.out == "out\n" * 3
    assert there.err == "err\n" * 3


def test_a_job_that_does_not_begin(capfd: pytest.CaptureFixture[str], make_pool: Any) -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            return exec, ("print('unpickled'); raise ValueError('on purpose')",)

    with make_pool(1) as pool:
        view = pool.options(output="capture")
        lost = view.submit(talk, Refuses())
        assert "on purpose" in str(lost.exception(PATIENCE))
        assert lost.output() == "unpickled\n"
        nowhere = view.options(cwd="/no/such/folder").submit(talk)
        assert isinstance(nowhere.exception(PATIENCE), FileNotFoundError)
        assert nowhere.output() == ""
        assert pool.submit(talk).result(PATIENCE) == 0
    there = capfd.readouterr()
    assert (there.out, there.err) == ("out\n", "err\n")


def test_what_a_job_leaves_running_prints_there(one: JobPool, tmp_path: Path) -> None:
    """Until another job captures there; and it does not keep the job's end."""

    def leave(gate: Path) -> None:
        code = f"while [ ! -e {gate} ]; do sleep 0.02; done; echo late"
        subprocess.Popen(["sh", "-c", code])

    job = one.options(output="capture").submit(leave, tmp_path / "gate")
    job.result(PATIENCE)
    assert job.output() == ""
    (tmp_path / "gate").touch()
    until(lambda: job.output() == "late\n", "its child")


def test_a_child_that_prints_for_ever_does_not_keep_the_end(one: JobPool) -> None:
    def leave() -> int:
        child = subprocess.Popen(["yes"])
        time.sleep(0.1)
        return child.pid

    view = one.options(output="capture")
    pid = view.submit(leave).result(PATIENCE)
    assert one.submit(double, 2).result(PATIENCE) == 4
    os.kill(pid, signal.SIGKILL)


def test_a_program_without_stdout(tmp_path: Path) -> None:
    code = """
from primitive_jobs import JobPool
import sys
def say():
    print("said")
    return sys.stdout is None
if __name__ == "__main__":
    with JobPool(1) as pool:
        job, plain = pool.options(output="capture").submit(say), pool.submit(say)
        found = job.result(), job.output(), plain.result(), plain.output()
        again = pool.options(output="capture").submit(say)
        found += again.result(), again.output()
        open(sys.argv[1], "w").write(repr(found))
"""
    (tmp_path / "closed.py").write_text(code)
    command = f"exec {sys.executable} closed.py found >&- 2>&-"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(command, shell=True, cwd=tmp_path, env=env, timeout=PATIENCE, check=True)
    found = (tmp_path / "found").read_text()
    assert found == repr((False, "said\n", True, None, False, "said\n"))


def test_the_portable_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "WorkerConfig", functools.partial(WorkerConfig, packets=False))
    with JobPool(1, output="capture") as pool:
        jobs = [pool.submit(talk) for _ in range(3)]
        killed = pool.submit(talk, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert [job.result(PATIENCE) for job in jobs] == [0] * 3
        assert [job.output() for job in jobs] == [BOTH] * 3
        error = killed.exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert error.output == BOTH


# --- what is kept ---------------------------------------------------------------------------------


def numbered(count: int) -> str:
    return "".join(f"line {n:>6}\n" for n in range(count))


def print_lines(count: int) -> int:
    for start in range(0, count, 1000):
        sys.stdout.write("".join(f"line {n:>6}\n" for n in range(start, start + 1000)))
    return count


def test_ten_megabytes(one: JobPool) -> None:
    count = 840_000
    job = one.options(output="capture").submit(print_lines, count)
    assert job.result(PATIENCE) == count
    whole = numbered(count)
    left_out = len(whole) - HEAD - TAIL
    marker = f"\n[... {left_out:,} bytes left out ...]\n"
    assert job.output() == whole[:HEAD] + marker + whole[-TAIL:]
    assert job.output(tail=1000) == whole[-1000:]
    assert job.output(tail=TAIL) == whole[-TAIL:]


def test_one_that_prints_for_ever(one: JobPool) -> None:
    def endless() -> None:
        n = 0
        while True:
            sys.stdout.write("".join(f"{k:>9}\n" for k in range(n, n + 1000)))
            n += 1000

    view = one.options(output="capture")
    view.submit(print_lines, 1000).result(PATIENCE)
    own = psutil.Process()
    before = own.memory_info().rss
    job = view.submit(endless)
    prints = job._record.prints
    assert prints is not None
    most = 0
    while prints.printed.total < 40_000_000:
        most = max(most, own.memory_info().rss)
        time.sleep(0.01)
    assert most - before < 5e6, most - before
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    total = prints.printed.total
    text = job.output(tail=TAIL)
    assert text is not None
    assert len(text) == TAIL
    lines = [int(line) for line in text.split("\n")[1:-1]]
    assert lines == list(range(lines[0], lines[0] + len(lines)))
    assert total // 10 in (lines[-1] + 1, lines[-1] + 2)  # the very last one, or its part
    assert error.output == text[-4096:]


def test_characters_that_are_cut() -> None:
    text = "aé€😀z" * 3
    data = text.encode()
    for place in range(len(data)):
        printed = Printed()
        printed.append(data[:place])
        early = printed.text(over=False)
        assert text.startswith(early)
        assert "\N{REPLACEMENT CHARACTER}" not in early
        printed.append(data[place:])
        assert printed.text() == text
        end = printed.text(tail=place)
        assert text.endswith(end)
        assert "\N{REPLACEMENT CHARACTER}" not in end
    broken = Printed()
    broken.append(b"\xff\xe2\x82")
    assert broken.text() == "\N{REPLACEMENT CHARACTER}" * 2


def test_half_a_character_while_it_runs(one: JobPool, tmp_path: Path) -> None:
    def halves(gate: Path) -> None:
        os.write(1, b"a\xc3")
        hold(gate)
        os.write(1, b"\xa9b")

    job = one.options(output="capture").submit(halves, tmp_path / "gate")
    until(job.output, "its first half")
    assert job.output() == "a"
    (tmp_path / "gate").touch()
    job.result(PATIENCE)
    assert job.output() == "aéb"


def test_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_module, "HEAD", 10)
    monkeypatch.setattr(printed_module, "TAIL", 20)
    monkeypatch.setattr(printed_module, "_BLOCK", 8)
    whole = "".join(chr(ord("A") + n % 26) for n in range(97))
    for size in range(1, 97):
        printed = Printed()
        for start in range(0, len(whole), size):
            printed.append(whole[start : start + size].encode())
            so_far = whole[: start + size]
            left_out = len(so_far) - 30
            marker = f"\n[... {left_out:,} bytes left out ...]\n" if left_out > 0 else ""
            head, end = so_far[:10], so_far[10:][-20:]
            assert printed.text() == head + marker + end
            assert printed.whole() == (head.encode(), max(0, left_out), end.encode())
            assert printed.text(tail=15) == so_far[-15:] or len(so_far) > 30
            assert printed.last(7) == so_far[-7:].encode()


def test_what_a_node_tells() -> None:
    shown: list[Callable[[], object]] = []
    printed = Printed(Tee("job", shown.append))
    printed.append(b"first attempt\n")
    printed.show(0, b"a\nb\n")
    assert printed.text() == "first attempt\na\nb\n"
    printed.show(100, b"x\ny\n")
    assert printed.text() == "first attempt\n\n[... 100 bytes left out ...]\nx\ny\n"
    assert printed.text(tail=3) == "\ny\n"
    printed.append(b"a\nb\n" + b"c" * 95 + b"\nx\ny\nz\n")
    assert printed.text() == "first attempt\na\nb\n" + "c" * 95 + "\nx\ny\nz\n"
    printed.show(2, b"last")
    printed.end_attempt()
    assert printed.text().endswith("z\n\n[... 2 bytes left out ...]\nlast")
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        for show in shown:
            show()
    assert stream.getvalue().splitlines() == [
        *(f"job | {line}" for line in ("first attempt", "a", "b", "[... 96 bytes left out ...]")),
        *(f"job | {line}" for line in ("x", "y", "z", "[... 2 bytes left out ...]", "last")),
    ]


# --- shown, too -----------------------------------------------------------------------------------


def test_tee(one: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def progress() -> None:
        talk()
        print(" 10 %\r 50 %\r100 %\r\n\nhalf", end="")

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    view = one.options(output="tee", name="a\nname")
    job = view.submit(progress)
    job.result(PATIENCE)  # its lines are there once it has returned
    lines = ["out", "err", "100 %", "", "half"]
    assert stream.getvalue() == "".join(f"a name | {line}\n" for line in lines)
    assert job.output() == BOTH + " 10 %\r 50 %\r100 %\r\n\nhalf"
    killed = view.submit(talk, lambda: os.kill(os.getpid(), signal.SIGKILL))
    error = killed.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.output == BOTH
    assert stream.getvalue().endswith("a name | out\na name | err\n")


def test_tee_to_nobody(one: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    view = one.options(output="tee")
    closed = io.StringIO()
    closed.close()
    for nobody in (None, closed):
        monkeypatch.setattr(sys, "stdout", nobody)
        job = view.submit(talk)
        assert job.result(PATIENCE) == 0
        assert job.output() == BOTH


def test_who_shows_it_is_slow(one: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the job waits, as at a terminal; its end does not."""
    monkeypatch.setattr(tee_module, "_MOST", 1000)

    class Slow(io.StringIO):
        gate = False

        def write(self, text: str) -> int:
            until(lambda: self.gate, "the gate")
            return super().write(text)

    stream = Slow()
    monkeypatch.setattr(sys, "stdout", stream)
    job = one.options(output="tee", name="job").submit(print_lines, 400_000)
    prints = job._record.prints
    assert prints is not None
    until(lambda: prints.printed.is_behind, "its first lines")
    seen = prints.printed.total
    time.sleep(0.2)
    assert prints.printed.total == seen
    assert job.running()
    stream.gate = True
    assert job.result(PATIENCE) == 400_000
    until(lambda: len(stream.getvalue()) == 400_000 * (12 + 6), "all lines")


NOTEBOOK = [
    """
from primitive_jobs import JobPool
pool = JobPool(2, output="tee")
def say(text):
    print(text)
    return len(text)
""",
    "first = pool.options(name='first').submit(say, 'one')\nprint(first.result())",
    "print(pool.options(name='second').submit(say, 'four').result())",
    "pool.shutdown()",
]


@pytest.mark.timeout(60)
def test_in_a_notebook_it_is_in_the_cell_that_waits(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    from notebooks import run_cells, text_of

    texts = [text_of(outputs) for outputs in run_cells("notebook", tmp_path, NOTEBOOK)]
    assert texts == ["", "first | one\n3\n", "second | four\n4\n", ""]


# --- files ----------------------------------------------------------------------------------------


def test_files(one: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    view = one.options(output="logs/{name}-{id}.log", name="../{a b}/é")
    jobs = [view.submit(talk) for _ in range(2)]
    monkeypatch.chdir("/")  # it was taken from there at the submit
    for job in jobs:
        job.result(PATIENCE)
        assert job.output() == BOTH
        assert job.output(tail=3) == "rr\n"
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert names == sorted(f"_a_b_é-{job.job_id()}.log" for job in jobs)
    killed = view.options(output=tmp_path / "{{x}}.log").submit(
        talk, lambda: os.kill(os.getpid(), signal.SIGKILL)
    )
    error = killed.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert f"it printed to {tmp_path}/{{x}}.log" in str(error)
    assert error.output == BOTH
    (tmp_path / "{x}.log").unlink()
    assert error.output is None
    assert killed.output() is None
    waiting = PrimitiveJob(talk)
    assert waiting.output() is None
    (tmp_path / "refused").touch()
    refused = one.options(output=tmp_path / "refused" / "y").submit(talk)
    assert isinstance(refused.exception(PATIENCE), NotADirectoryError | FileExistsError)
    assert refused.output() is None


# --- the option -----------------------------------------------------------------------------------


def test_the_option(make_pool: Any) -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        (3, TypeError, "not int 3"),
        (b"a/b", TypeError, "not bytes"),
        ("captrue", ValueError, "as './captrue'"),
        ("a/{0}", ValueError, "fields"),
        ("a/{name!r}", ValueError, "fields"),
        ("a/{name:>5}", ValueError, "fields"),
        ("a/{name", ValueError, "no pattern"),
        ("a/", ValueError, "of a file"),
        ("a/\0", ValueError, "of a file"),
    ]
    for value, kind, text in wrong:
        with case(value), pytest.raises(kind, match=text):
            JobPool(1, output=value)
    with pytest.raises(TypeError, match="None"):
        JobPool(1, output=None)  # type: ignore[arg-type]
    with make_pool(2, output="capture") as pool:
        assert pool.submit(talk).result(PATIENCE) == 0

        def mine() -> Any:
            job = current_job()
            return None if job is None else job.options.output

        assert pool.submit(mine).result(PATIENCE) == "capture"
        assert pool.options(output=None).submit(mine).result(PATIENCE) == "capture"
        assert pool.options(output="inherit").submit(mine).result(PATIENCE) is None
        chunks = list(pool.map(talk, [int] * 20, chunksize=10))
        assert chunks == [0] * 20
        with pytest.raises((TypeError, ValueError)):
            pool.submit(talk).output(tail=-1)
        again = pool.options(keep_call=True).submit(talk)
        again.result(PATIENCE)
        other = again.resubmit(output="inherit")
        assert other.result(PATIENCE) == 0
        assert (again.output(), other.output()) == (BOTH, None)
        third = other.resubmit(output="capture")
        assert third.result(PATIENCE) == 0
        assert third.output() == BOTH
    with JobExecutor(1, output="capture") as executor:
        future = executor.submit(talk)
        assert future.result(PATIENCE) == 0
        assert future.job.output() == BOTH


def test_a_pool_in_a_job(one: JobPool) -> None:
    def nested() -> tuple[str | None, str | None]:
        with JobPool(1, output="capture") as inner:
            captured, inherits = inner.submit(talk), inner.options(output="inherit").submit(talk)
            assert captured.result() == inherits.result() == 0
            return captured.output(), inherits.output()

    job = one.options(output="capture").submit(nested)
    assert job.result(PATIENCE) == (BOTH, None)
    # There stdout is a pipe as to any Python: it is written when the job is over, or at once.
    assert sorted((job.output() or "").split()) == sorted(BOTH.split())


# --- scarcity -------------------------------------------------------------------------------------


def test_a_job_without_a_descriptor_left_says_so(one: JobPool) -> None:
    def limit(soft: int) -> int:
        before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return before

    assert one.options(output="capture").submit(talk).result(PATIENCE) == 0
    before = one.submit(limit, 3).result(PATIENCE)
    job = one.options(output="capture").submit(talk)
    error = job.exception(PATIENCE)
    assert isinstance(error, OSError)
    assert "Too many open files" in str(error)
    assert job.output() == ""
    one.submit(limit, before).result(PATIENCE)
    job = one.options(output="capture").submit(talk)
    assert job.result(PATIENCE) == 0
    assert job.output() == BOTH


def test_a_program_without_a_descriptor_left_says_so(one: JobPool) -> None:
    assert one.submit(talk).result(PATIENCE) == 0
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gate = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (gate + 10, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        error = one.options(output="capture").submit(hold, Path("/")).exception(PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in [*taken, gate]:
            os.close(fd)
    assert isinstance(error, WorkerDiedError)
    assert "no file descriptor is free here for what its jobs print" in str(error)


def test_a_pool_is_idle_again(one: JobPool) -> None:
    job = one.options(output="capture").submit(talk)
    job.result(PATIENCE)
    fleet = fleet_of(one)
    until(lambda: fleet.pause is None, "the pipe's rest")
    assert job.output() == BOTH
