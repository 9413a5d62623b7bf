"""The resource trackers of multiprocessing and of loky, which are started when they are needed."""

from __future__ import annotations

import os
import sys
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from helpers import expect, until

HELPERS = """
    import os, select, signal, sys, threading, time
    from multiprocessing import resource_tracker, shared_memory
    from pathlib import Path
    from loky.backend import fork_exec as starting, resource_tracker as of_loky
    from primitive_jobs import JobPool, run
    from primitive_jobs._procs import trackers

    start = starting.fork_exec  # of a worker, and of a tracker: that one has no env
    modules = [of_loky, resource_tracker]
    marker = os.environ["OF_THIS_TEST"].encode()
    folder = os.environ["OF_THIS_TEST"]

    def running():
        "The pids of the trackers of this program."
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
                ours = marker in path.with_name("environ").read_bytes()
            except OSError:
                continue
            for name in [module.__name__ for module in modules]:
                if ours and name.encode() in words:
                    found.setdefault(name, []).append(int(path.parent.name))
        return found

    def until(condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    def semaphores():
        return {path.name for path in Path("/dev/shm").glob("sem.*")}

    def hold(folder):
        import loky.backend, multiprocessing
        ours = loky.backend.get_context("loky").Lock()  # each is registered with its tracker
        other = multiprocessing.get_context("spawn").Lock()
        names = [lock._semlock.name[1:] for lock in (ours, other)]
        Path(folder, "held.tmp").write_text(" ".join(names))
        Path(folder, "held.tmp").rename(Path(folder, "held"))
        while True:
            time.sleep(1)

    def held(folder):
        until(Path(folder, "held").exists)
        return {"sem." + name for name in Path(folder, "held").read_text().split()}

    def attach(name):
        memory = shared_memory.SharedMemory(name)
        return memory.buf[0]

    def no_thread(*args):
        thread = threading.Thread(target=print)
        thread.start = refuse
        return thread

    def refuse():
        raise RuntimeError("can't start new thread")

    def known():
        return [module._resource_tracker._fd is not None for module in modules]
"""
LEFT = "leaked semlock objects"
# From some release on, a bare fork gives up the tracker of multiprocessing: it starts its own.
FORKS_KEEP_IT = not hasattr(resource_tracker.ResourceTracker, "_after_fork_in_child")


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the processes of a script say that they are of this test."""
    monkeypatch.setenv("OF_THIS_TEST", str(tmp_path))
    return tmp_path


def check_removed(folder: Path) -> None:
    """Of both locks that the job has held nothing is left, once the trackers have ended."""
    semaphores = [Path(f"/dev/shm/sem.{name}") for name in (folder / "held").read_text().split()]
    assert len(semaphores) == 2
    until(lambda: not any(path.exists() for path in semaphores), "the locks are removed")


def test_none_where_nobody_needs_one(marked: Path) -> None:
    """And nothing stays of what they would have read, nor a thread, with the last pool."""
    source = f"""{HELPERS}
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before = descriptors(), threading.active_count()
    for _ in range(3):
        pools = [JobPool(2), JobPool(1)]
        jobs = [pool.submit(abs, -1) for pool in pools for _ in range(2)]
        assert [job.result(20) for job in jobs] == [1] * 4
        pools[0].shutdown()
        print(known(), running())
        assert pools[1].submit(abs, -1).result(20) == 1
        pools[1].shutdown()
        until(lambda: (descriptors(), threading.active_count()) == before)
        print(known(), running())
    """
    expect(marked, source, "[True, True] {}\n[False, False] {}\n" * 3)


@pytest.mark.parametrize("depth", [0, 1])
def test_what_a_killed_job_has_made_is_removed(marked: Path, depth: int) -> None:
    """With the program, by the trackers that it has; a nested worker has the same."""
    source = f"""{HELPERS}
    def nested(folder):
        run(hold, folder).result()

    pool = JobPool(1)
    job = pool.submit(nested if {depth} else hold, folder)
    locks = held(folder)
    until(lambda: len(running()) == 2)
    print(locks <= semaphores(), {{len(pids) for pids in running().values()}})
    job.cancel()
    pool.shutdown()
    print([running()[m.__name__] == [m._resource_tracker._pid] for m in modules], known())
    """
    expect(marked, source, "True {1}\n[True, True] [True, True]\n", errors=LEFT)
    check_removed(marked)


def test_a_program_that_is_killed(marked: Path) -> None:
    source = f"""{HELPERS}
    pool = JobPool(1)
    job = pool.submit(hold, folder)
    locks = held(folder)
    until(lambda: len(running()) == 2)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    expect(marked, source, "", errors=LEFT, status=-9)
    check_removed(marked)


def test_a_program_that_has_its_own(marked: Path) -> None:
    source = f"""{HELPERS}
    for module in modules:
        module.ensure_running()
    before = [module._resource_tracker._pid for module in modules]
    with JobPool(1) as pool:
        pool.submit(abs, -1).result(20)
    print(before == [module._resource_tracker._pid for module in modules])
    print({{len(pids) for pids in running().values()}})
    """
    expect(marked, source, "True\n{1}\n")


@pytest.mark.parametrize("moment", ["as the worker starts", "with the job"])
def test_what_the_program_makes_is_not_removed_by_a_worker(marked: Path, moment: str) -> None:
    """It is known to the tracker that workers have; another would remove it with the worker."""
    source = f"""{HELPERS}
    made = []

    def make():
        made.append(shared_memory.SharedMemory(create=True, size=100))

    def fork_exec(command, inherited, **kwargs):
        if "env" in kwargs and not made:
            thread = threading.Thread(target=make)
            thread.start()
            thread.join(20)
        return start(command, inherited, **kwargs)

    if {moment == "as the worker starts"}:
        starting.fork_exec = fork_exec
    with JobPool(1, max_jobs_per_worker=1, spare_workers=0) as pool:
        print(pool.submit(abs, -1).result(20))
        if not made:
            make()
        print([pool.submit(attach, made[0].name).result(20) for _ in range(3)])
        until(lambda: resource_tracker.__name__ in running())
    made[0].close()
    made[0].unlink()
    print({{len(pids) for pids in running().values()}})
    """
    expect(marked, source, "1\n[0, 0, 0]\n{1}\n")


@pytest.mark.parametrize("refused", [1, 2])
def test_one_that_cannot_be_started(marked: Path, refused: int) -> None:
    """It is tried again, and nothing is lost of what jobs have written."""
    source = f"""{HELPERS}
    calls = []

    def fork_exec(command, inherited, **kwargs):
        if "env" not in kwargs:
            calls.append(command)
            if len(calls) == {refused}:
                raise BlockingIOError(11, "no process")
        return start(command, inherited, **kwargs)

    starting.fork_exec = fork_exec
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, folder)
        locks = held(folder)
        until(lambda: len(running()) == 2)
        job.cancel()
        print(locks <= semaphores(), len(calls), {{len(pids) for pids in running().values()}})
    """
    expect(marked, source, "True 3 {1}\n", errors=LEFT)
    check_removed(marked)


def test_no_thread_to_watch(marked: Path) -> None:
    """Then they are started at once; and if that fails, the worker is not."""
    source = f"""{HELPERS}
    refused = []

    def fork_exec(command, inherited, **kwargs):
        if "env" not in kwargs and len(refused) < 1:
            refused.append(command)
            raise BlockingIOError(11, "no process")
        return start(command, inherited, **kwargs)

    starting.fork_exec, trackers.make_thread = fork_exec, no_thread
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, folder)
        held(folder)
        print(len(refused), {{len(pids) for pids in running().values()}}, known())
        job.cancel()
    """
    expect(marked, source, "1 {1} [True, True]\n", errors=LEFT)
    check_removed(marked)


def test_a_pool_that_is_closed_at_once(marked: Path) -> None:
    """What its job has written is not lost."""
    source = f"""{HELPERS}
    begin = threading.Event()

    def fork_exec(command, inherited, **kwargs):
        if "env" not in kwargs:
            begin.wait()
        return start(command, inherited, **kwargs)

    starting.fork_exec = fork_exec
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, folder)
        held(folder)
        job.cancel()
        threading.Timer(0.1, begin.set).start()
    print(len(running()))
    """
    expect(marked, source, "2\n", errors=LEFT)
    check_removed(marked)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(
            "uses it",
            marks=pytest.mark.skipif(not FORKS_KEEP_IT, reason="a fork has one of its own"),
        ),
        "ends",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_fork_of_the_program(marked: Path, then: str) -> None:
    """It has the trackers of its parent, also where these are started later."""
    source = f"""{HELPERS}
    import warnings
    warnings.simplefilter("ignore")
    memory = []

    def child():
        if {then == "uses it"}:
            with JobPool(1) as other:
                print(other.submit(attach, memory[0].name).result(20), flush=True)
        os._exit(0)

    pool = JobPool(1)
    pool.submit(abs, -1).result(20)
    print(running(), known(), flush=True)
    memory.append(shared_memory.SharedMemory(create=True, size=100))
    pid = os.fork() or child()
    print(os.waitpid(pid, 0)[1])
    pool.shutdown()
    print({{len(pids) for pids in running().values()}}, known())
    memory[0].unlink()
    """
    used = "0\n" if then == "uses it" else ""
    expect(marked, source, "{} [True, True]\n" + used + "0\n{1} [True, True]\n")


def test_a_finalizer_that_ends_a_pool(marked: Path) -> None:
    """It may be called wherever something is collected, as in the middle of another pool's start,
    and waits for the end of the threads of its pool.
    """
    source = f"""{HELPERS}
    first, second = JobPool(1), JobPool(1)
    first.submit(abs, -1).result(20)

    def fork_exec(command, inherited, **kwargs):
        starting.fork_exec = start
        first.shutdown()
        return start(command, inherited, **kwargs)

    starting.fork_exec = fork_exec
    print(second.submit(abs, -2).result(20))
    second.shutdown()
    until(lambda: threading.active_count() == 1)
    print(known(), running())
    """
    expect(marked, source, "2\n[False, False] {}\n")


def test_no_process_is_to_be_had_at_the_end(marked: Path) -> None:
    """The end of a pool does not wait for that; nor does a full pipe hold it up."""
    source = f"""{HELPERS}
    def fork_exec(command, inherited, **kwargs):
        if "env" not in kwargs:
            raise KeyError("no OSError: os.environ may be changed by another thread")
        return start(command, inherited, **kwargs)

    def make_many(folder):
        Path(folder, "begun").touch()
        while True:
            os.write(resource_tracker._resource_tracker._fd, trackers._NOTHING)

    starting.fork_exec = fork_exec
    pool = JobPool(1, spare_workers=0)
    job = pool.submit(make_many, folder)
    until(Path(folder, "begun").exists)
    pipe, = [pipe for pipe in trackers._pipes if pipe.module is resource_tracker]
    until(lambda: not select.select([], [pipe.writer], [], 0)[1])
    job.cancel()
    pool.shutdown()
    print("ended", flush=True)
    starting.fork_exec = start
    until(lambda: resource_tracker.__name__ in running())
    """
    expect(marked, source, "ended\n")


@pytest.mark.parametrize("place", [0, 1])
def test_no_descriptor_for_one_of_the_pipes(marked: Path, place: int) -> None:
    """The worker is not started then; the one that is there is watched."""
    source = f"""{HELPERS}
    real, calls = os.pipe, []

    def pipe():
        if sys._getframe(1).f_code.co_name == "_prepare":
            calls.append(1)
            if len(calls) == {place} + 1:
                raise OSError(24, "no descriptor")
        return real()

    os.pipe = pipe
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, folder)
        locks = held(folder)
        until(lambda: len(running()) == 2)
        job.cancel()
    print(len(calls))
    """
    expect(marked, source, "3\n", errors=LEFT)
    check_removed(marked)


@pytest.mark.parametrize("full", [False, True])
def test_what_outlives_the_pool_has_its_tracker(marked: Path, full: bool) -> None:
    """Which is that of the program, if a descriptor is to be had for that."""
    source = f"""{HELPERS}
    real = os.open

    def refuse(path, *rest):
        if {full} and os.fspath(path).startswith("/proc/self/fd"):
            raise OSError(24, "no descriptor")
        return real(path, *rest)

    def leave_one(folder):
        if os.fork() or (os.setsid() and os.fork()):
            return
        until(Path(folder, "ended").exists)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        memory = shared_memory.SharedMemory(create=True, size=100)
        memory.unlink()
        Path(folder, "made").touch()
        until(Path(folder, "seen").exists)
        os._exit(0)

    pool = JobPool(1)
    pool.submit(leave_one, folder).result(20)
    os.open = refuse
    pool.shutdown()
    os.open = real
    print(known())
    with JobPool(1) as pool:
        print(pool.submit(abs, -1).result(20))
        Path(folder, "ended").touch()
        until(Path(folder, "made").exists)
        until(lambda: resource_tracker.__name__ in running())
        Path(folder, "seen").touch()
        memory = shared_memory.SharedMemory(create=True, size=100)
        print(pool.submit(attach, memory.name).result(20))
        memory.unlink()
    until(lambda: all(len(pids) == 1 for pids in running().values()))
    """
    expect(marked, source, f"{[not full, not full and FORKS_KEEP_IT]}\n1\n0\n")


@pytest.mark.filterwarnings("ignore")
def test_a_pool_that_a_fork_ends(marked: Path) -> None:
    """Its end does not wait for the fork that waits for it; it is counted out later."""
    source = f"""
    import os, warnings
    warnings.simplefilter("ignore")
    pools = []

    def end():
        while pools:
            pools.pop().shutdown()

    os.register_at_fork(before=end)  # so it is called after the package's
    {HELPERS}
    for _ in range(2):
        pools.append(JobPool(1))
        pools[0].submit(abs, -1).result(20)
        before = time.monotonic()
        pid = os.fork() or os._exit(0)
        os.waitpid(pid, 0)
        print(time.monotonic() - before < 10, known())  # the fork might have needed them
        for module in modules:
            until(lambda: module._resource_tracker._pid is not None)
            module._resource_tracker._stop()
        with JobPool(1) as pool:
            pool.submit(abs, -1).result(20)
        print(known(), running())
    """
    expect(marked, source, "True [True, True]\n[False, False] {}\n" * 2)


def test_a_fork_that_outlives_the_program(marked: Path) -> None:
    source = f"""{HELPERS}
    import warnings
    warnings.simplefilter("ignore")
    pool = JobPool(1)
    pool.submit(abs, -1).result(20)
    parent = os.getpid()
    if os.fork():
        until(lambda: len(running()) == 2)
        os.kill(parent, signal.SIGKILL)
    until(lambda: os.getppid() != parent)
    memory = shared_memory.SharedMemory(create=True, size=100)
    memory.unlink()
    Path(folder, "made").touch()
    os._exit(0)
    """
    expect(marked, source, "", status=-9)
    assert (marked / "made").exists()


def test_the_only_other_process_with_a_pipe_ends_as_the_pool_does(marked: Path) -> None:
    """When that was seen, and before this program can write to it again."""
    source = f"""{HELPERS}
    import subprocess
    real = os.open

    def late(path, *rest):
        if os.fspath(path).startswith("/proc/self/fd"):
            holder.kill()
            holder.wait()
            time.sleep(0.2)  # for the thread that watches
        return real(path, *rest)

    pool = JobPool(1, spare_workers=0)
    pool.submit(abs, -1).result(20)
    pipes = [pipe.writer for pipe in trackers._pipes]
    holder = subprocess.Popen(["sleep", "60"], pass_fds=pipes)
    os.open = late
    pool.shutdown()
    os.open = real
    for module in modules:
        module.ensure_running()
    until(lambda: len(running()) == 2)
    print({{len(pids) for pids in running().values()}})
    """
    expect(marked, source, "{1}\n")


def test_a_pipe_that_somebody_has_closed(marked: Path) -> None:
    """Nothing is written into what has its number now."""
    source = f"""{HELPERS}
    import subprocess, warnings
    warnings.simplefilter("ignore")

    with JobPool(1, spare_workers=0, max_jobs_per_worker=1) as pool:
        pool.submit(abs, -1).result(20)
        pipes = [pipe.writer for pipe in trackers._pipes]
        holder = subprocess.Popen(["sleep", "60"], pass_fds=pipes)
        file = os.open(Path(folder, "file"), os.O_WRONLY | os.O_CREAT)
        for module in modules:
            os.dup2(file, module._resource_tracker._fd, inheritable=False)
            module._resource_tracker._fd = None
        os.waitpid(os.fork() or os._exit(0), 0)
        assert pool.submit(abs, -2).result(20) == 2
    holder.kill()
    holder.wait()
    print(os.path.getsize(Path(folder, "file")), known())
    """
    expect(marked, source, "0 [False, False]\n")


def test_a_pool_that_begins_as_the_last_one_has_ended(marked: Path) -> None:
    """Before the thread that watches has seen that the pipes of that one are dropped."""
    source = f"""{HELPERS}
    close, go = trackers._close, threading.Event()

    def late(pipe):
        go.wait(20)
        close(pipe)

    trackers._close, trackers._PATIENCE = late, 0
    with JobPool(1) as pool:
        pool.submit(abs, -1).result(20)
    with JobPool(1) as pool:
        print(pool.submit(abs, -2).result(20), len(trackers._pipes), known())
        go.set()
    until(lambda: not trackers._pipes and threading.active_count() == 1)
    print(known(), running())
    """
    expect(marked, source, "2 4 [True, True]\n[False, False] {}\n")


@pytest.mark.parametrize("watched", [True, False])
def test_trackers_outlive_ctrl_c_and_sigterm(marked: Path, watched: bool) -> None:
    """From their first moment on, as those of multiprocessing and of loky do."""
    source = f"""{HELPERS}
    if not {watched}:
        trackers.make_thread = no_thread

    def fork_exec(command, inherited, **kwargs):
        pid = start(command, inherited, **kwargs)
        if "env" not in kwargs:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        return pid

    starting.fork_exec = fork_exec
    with JobPool(1) as pool:
        pool.submit(abs, -1).result(20)
        for module in modules:
            module.ensure_running()
        until(lambda: len(running()) == 2)
    before = [module._resource_tracker._pid for module in modules]
    for module in modules:
        module.ensure_running()
    print(before == [module._resource_tracker._pid for module in modules])
    """
    expect(marked, source, "True\n")


def test_one_that_was_killed(marked: Path) -> None:
    """The library starts another at the next worker's start, which is no worker's to see."""
    source = f"""{HELPERS}
    masks = []

    def fork_exec(command, inherited, **kwargs):
        if "env" in kwargs:
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return start(command, inherited, **kwargs)

    starting.fork_exec = fork_exec
    with JobPool(1, spare_workers=0, max_jobs_per_worker=1) as pool:
        pool.submit(abs, -1).result(20)
        for module in modules:
            module.ensure_running()
        until(lambda: len(running()) == 2)
        for pids in running().values():
            os.kill(pids[0], signal.SIGKILL)
        until(lambda: not running())
        pool.submit(abs, -1).result(20)
    print(signal.SIGINT in masks[0], masks[0] == masks[1], len(running()))
    """
    expect(marked, source, "True True 2\n", errors="died unexpectedly, relaunching")


@pytest.mark.parametrize("home", [False, True])
def test_where_the_interpreter_is_found_by_a_variable(
    home: bool, marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helpers that know no variables would not begin then."""
    if home:
        monkeypatch.setenv("PYTHONHOME", f"{sys.base_prefix}:{sys.base_exec_prefix}")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    source = f"""{HELPERS}
    from primitive_jobs._procs.interpreter import isolation
    with JobPool(1) as pool:
        pool.submit(abs, -1).result(20)
        for module in modules:
            module.ensure_running()
        until(lambda: len(running()) == 2)
        print("-I" in isolation())
    """
    expect(marked, source, f"{not home}\n")
