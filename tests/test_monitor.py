"""What a pool shows to other processes: the socket, the protocol, and who is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, ROOT, hold, until
from visits import Client, listed, monitor_of, visiting

from primitive_jobs import JobExecutor, JobPool, JobStatus
from primitive_jobs._engine.poller import Poller
from primitive_jobs._engine.queue import Job, JobQueue
from primitive_jobs.monitor import protocol, requests, server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets without a file")

NOBODY = 65533  # a user that is not the overflow one


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[JobPool, Path]]:
    """A pool whose only worker has a job, and what ends that."""
    with JobPool(1, spare_workers=0) as pool:
        gate = tmp_path / "gate"
        job = pool.options(name="first").submit(hold, gate)
        until(job.running, "RUNNING")
        yield pool, gate
        pool.shutdown(cancel=True)


def wait_for_sigterm(begun: Path) -> str:
    """A job that returns when it is asked to end."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    begun.touch()
    while not asked.is_set():
        time.sleep(0.005)
    return "well"


# --- what is shown -------------------------------------------------------------------------------


def test_a_snapshot(busy: tuple[JobPool, Path]) -> None:
    pool, _ = busy
    jobs = [pool.options(name=f"n{i}", priority=i % 2).submit(abs, i) for i in range(150)]
    (worker,) = pool.snapshot().workers
    with visiting(pool) as client:
        head, rows = client.ask("snapshot")
    assert head["version"] == protocol.VERSION
    assert (head["pid"], head["kind"], head["max_workers"]) == (os.getpid(), "JobPool", 1)
    assert head["counts"] == pool.snapshot().counts._asdict()
    first, *waiting = rows
    assert (first["name"], first["status"], first["pid"]) == ("first", "RUNNING", worker.pid)
    assert (first["id"], first["attempts"], first["node"]) == (worker.job, 1, None)
    # In the order in which they start, and no more than so many.
    expected = [*jobs[1::2], *jobs[0::2]][: protocol.MOST_QUEUED]
    assert [row["id"] for row in waiting] == [job.job_id() for job in expected]
    assert {row["status"] for row in waiting} == {"QUEUED"}


def test_the_head_of_a_queue_is_what_comes_next() -> None:
    chance = random.Random(3)
    for _ in range(60):
        queue = JobQueue()
        there: list[Job] = []
        for number in range(1, 200):
            job = Job(number, priority=chance.randrange(3))
            queue.push(job)
            there.append(job)
            if chance.random() < 0.3:
                queue.remove(there.pop(chance.randrange(len(there))))
            if there and chance.random() < 0.3:
                job = queue.pop()
                there.remove(job)
                if chance.random() < 0.6:
                    queue.push(job)
                    there.append(job)
        most = chance.choice((0, 1, 7, 1000))
        head = queue.head(most)
        assert head == [queue.pop() for _ in range(queue.count)][:most]


def test_many_jobs_are_many_pages() -> None:
    rows = [{"name": "\N{PILE OF POO}" * 200, "number": number} for number in range(3000)]
    made = protocol.pages({"one": 1}, rows)
    assert max(map(len, made)) <= protocol.LARGEST_PAGE
    parts = [json.loads(page) for page in made]
    assert [row for part in parts for row in part["rows"]] == rows
    assert [part.get("answer") for part in parts] == [{"one": 1}] + [None] * (len(parts) - 1)
    assert [part.get("more") for part in parts] == [True] * (len(parts) - 1) + [None]
    assert json.loads(protocol.pages({})[0]) == {"answer": {}, "rows": []}


def test_one_snapshot_serves_all_viewers(
    busy: tuple[JobPool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def count(kind: str, pool: requests.Pool) -> list[bytes]:
        made.append(kind)
        return requests.snapshot_pages(kind, pool)

    monkeypatch.setattr(server, "snapshot_pages", count)
    monkeypatch.setattr(server, "_FRESH", PATIENCE)
    with visiting(busy[0]) as one, visiting(busy[0]) as two:
        assert one.ask("snapshot") == two.ask("snapshot") == one.ask("snapshot")
        assert len(made) == 1
    until(lambda: not monitor_of(busy[0])._visitors, "both gone")
    with visiting(busy[0]) as three:
        three.ask("snapshot")
    assert len(made) == 2  # nothing is kept for nobody


# --- cancel --------------------------------------------------------------------------------------


def test_cancels(busy: tuple[JobPool, Path]) -> None:
    pool, _ = busy
    first = pool.jobs()[0]
    queued = pool.options(name="second").submit(abs, -1)
    with visiting(pool) as client:
        for job, was in ((queued, "QUEUED"), (first, "RUNNING")):
            job_id = job.job_id()
            answer, _ = client.ask("cancel", id=job_id[:13])
            assert answer["was"] == was
            assert (answer["job"]["id"], answer["job"]["status"]) == (job_id, "CANCELLED")
            assert job.status() is JobStatus.CANCELLED
            # Over; of what was shown this is known.
            answer, _ = client.ask("cancel", id=job_id)
            assert (answer["was"], answer["job"]["status"]) == (None, "CANCELLED")
        del job, first, queued
        answer, _ = client.ask("cancel", id=job_id)  # and how, as long as somebody has it
        assert (answer["was"], answer["job"]["over"]) == (None, True)
        assert client.ask("cancel", id="zz")[0] == {"job": None, "was": None}


def test_an_ambiguous_id(busy: tuple[JobPool, Path]) -> None:
    pool, _ = busy
    jobs = [pool.submit(abs, i) for i in range(40)]
    prefix = next(
        job.job_id()[:1]
        for job in jobs
        if sum(other.job_id()[0] == job.job_id()[0] for other in jobs) > 1
    )
    with visiting(pool) as client:
        assert "more than one" in client.ask("cancel", id=prefix)[0]["error"]
        _, found = client.ask("find", id=prefix)
        assert len(found) > 1
        assert all(row["id"].startswith(prefix) for row in found)
    assert all(job.status() is JobStatus.QUEUED for job in jobs)


def test_a_cancel_with_grace_is_answered_at_its_end(tmp_path: Path) -> None:
    with JobPool(1) as pool, visiting(pool) as client:
        job = pool.options(grace=PATIENCE).submit(wait_for_sigterm, tmp_path / "begun")
        until((tmp_path / "begun").exists, "its begin")
        answer, _ = client.ask("cancel", id=job.job_id())
        assert (answer["was"], answer["job"]["status"]) == ("RUNNING", "DONE")
        assert job.result() == "well"


def ignore_sigterm(begun: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun.touch()
    time.sleep(2 * PATIENCE)


def test_a_cancel_goes_on_without_the_one_who_asked(tmp_path: Path) -> None:
    with JobPool(1) as pool:
        job = pool.options(grace=1.0).submit(ignore_sigterm, tmp_path / "begun")
        until((tmp_path / "begun").exists, "its begin")
        with visiting(pool) as client:
            client.send(protocol.request("cancel", id=job.job_id()))
            until(lambda: pool.snapshot().workers[0].state == "ending", "the grace")
        until(lambda: not monitor_of(pool)._visitors, "the viewer's end")
        assert job.wait(PATIENCE)
        assert job.status() is JobStatus.CANCELLED


def test_the_last_job_of_a_pool_is_cancelled(tmp_path: Path) -> None:
    pool = JobPool(1)
    job = pool.submit(hold, tmp_path / "never")
    until(job.running, "RUNNING")
    with visiting(pool) as client:
        name = monitor_of(pool).name
        pool.shutdown(wait=False)  # it ends with this job
        answer, _ = client.ask("cancel", id=job.job_id())
        assert answer["job"]["status"] == "CANCELLED"
        assert client.closed()
    pool.shutdown()
    assert not listed(name)


# --- viewers that misbehave ----------------------------------------------------------------------

NONSENSE = {
    "no JSON": b"\xff\x00hello",
    "no object": b"[1, 2]",
    "too deep": b"[" * 4000,
    "nothing": b"",
    "too much": b" " * (protocol.LARGEST_REQUEST + 1),
    "far too much": b"x" * 150_000,
    "no id": b'{"ask": "cancel"}',
    "a wrong id": b'{"ask": "find", "id": [1]}',
    "an empty id": b'{"ask": "cancel", "id": ""}',
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_costs_the_connection(
    busy: tuple[JobPool, Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool, gate = busy
    with visiting(pool) as other, caplog.at_level(logging.INFO, "primitive_jobs"):
        with visiting(pool) as client:
            client.send(NONSENSE[kind])
            assert client.closed()
        assert other.ask("snapshot")[0]["kind"] == "JobPool"
    gate.touch()
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert not caplog.records


def test_a_request_of_another_version_is_told(busy: tuple[JobPool, Path]) -> None:
    with visiting(busy[0]) as client:
        assert "does not know" in client.ask("dance")[0]["error"]
        assert client.ask("snapshot")[0]["kind"] == "JobPool"


def test_who_asks_again_before_the_answer_is_closed(tmp_path: Path) -> None:
    with JobPool(1) as pool, visiting(pool) as client:
        job = pool.options(grace=0.5).submit(ignore_sigterm, tmp_path / "begun")
        until((tmp_path / "begun").exists, "its begin")
        client.send(protocol.request("cancel", id=job.job_id()))
        client.send(protocol.request("snapshot"))
        assert client.closed()
        assert job.wait(PATIENCE)


def narrow(pool: JobPool, viewers: int) -> None:
    """Have the kernel hold little of what a viewer does not read."""
    visitors = monitor_of(pool)._visitors
    until(lambda: len(visitors) == viewers, "the viewers")
    for visitor in list(visitors):
        visitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40_000)  # it doubles that


def test_a_viewer_that_never_reads(
    busy: tuple[JobPool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_FRESH", 0.0)
    monkeypatch.setattr(server, "_SHARE", 0)
    pool, gate = busy
    names = pool.options(name="\N{PILE OF POO}" * 200)
    jobs = [names.submit(abs, i) for i in range(protocol.MOST_QUEUED)]
    with visiting(pool) as client, visiting(pool) as other:
        narrow(pool, 2)
        client.send(protocol.request("snapshot"))  # of more than the kernel holds for it
        assert len(other.ask("snapshot")[1]) == 1 + len(jobs)
        visitors = list(monitor_of(pool)._visitors)
        until(lambda: sum(bool(each._out) for each in visitors) == 1, "that the other one has all")
        (stuck,) = (each for each in visitors if each._out)
        gate.touch()
        assert [job.result(PATIENCE) for job in jobs] == list(range(len(jobs)))
        assert stuck._out  # what it was to get then, and no more
        assert len(client.answer()[1]) == 1 + len(jobs)  # late is no harm
        assert client.ask("snapshot")[1] == []


def test_a_viewer_that_never_reads_and_asks_again(busy: tuple[JobPool, Path]) -> None:
    pool, _ = busy
    names = pool.options(name="\N{PILE OF POO}" * 200)
    jobs = [names.submit(abs, i) for i in range(protocol.MOST_QUEUED)]
    with visiting(pool) as client:
        narrow(pool, 1)
        client.send(protocol.request("snapshot"))
        client.send(protocol.request("snapshot"))
        until(lambda: not monitor_of(pool)._visitors, "the end of the connection")
        assert client.closed()
    assert all(job.status() is JobStatus.QUEUED for job in jobs)


def test_eight_viewers_and_no_more(busy: tuple[JobPool, Path]) -> None:
    pool, _ = busy
    name = monitor_of(pool).name
    clients = [Client(name) for _ in range(protocol.MOST_VISITORS)]
    try:
        for client in clients:
            assert client.ask("snapshot")[1]
        with visiting(pool) as ninth:
            assert "8 viewers" in ninth.answer()[0]["error"]
            assert ninth.closed()
        clients.pop().socket.close()
        until(lambda: len(monitor_of(pool)._visitors) < protocol.MOST_VISITORS, "its end")
        with visiting(pool) as ninth:
            assert ninth.ask("snapshot")[1]
    finally:
        for client in clients:
            client.socket.close()


# --- strangers -----------------------------------------------------------------------------------


def as_nobody(code: str, *arguments: str) -> str:
    """What a program prints that another user runs; only root can have that."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    code = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY})\n" + textwrap.dedent(code)
    # The interpreter may stand where the other user must not look: all is imported before.
    code = "import socket, sys, time, encodings.idna, traceback\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=ROOT,
    )
    return done.stdout


def test_another_user_is_refused(busy: tuple[JobPool, Path]) -> None:
    pool, gate = busy
    told = as_nobody(
        """
        cancel = b'{"ask": "cancel", "id": "' + sys.argv[2].encode() + b'"}'
        for ask in (b'{"ask": "snapshot"}', cancel):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.settimeout(20)
            s.connect("\\0" + sys.argv[1])
            try:
                s.send(ask)
                print(s.recv(1000))
            except (BrokenPipeError, ConnectionResetError):
                print(b"")
        """,
        monitor_of(pool).name,
        pool.jobs()[0].job_id(),
    )
    assert told == "b''\n" * 2
    assert pool.jobs()[0].running()
    gate.touch()


def test_many_strangers_are_left_alone(
    busy: tuple[JobPool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = busy
    rests: list[float] = []
    monitor = monitor_of(pool)
    call_in = monitor.poller.call_in

    def noted(seconds: float, call: Callable[[], None]) -> None:
        rests.append(seconds)
        call_in(seconds, call)

    monkeypatch.setattr(monitor.poller, "call_in", noted)
    as_nobody(
        """
        for _ in range(100):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.connect("\\0" + sys.argv[1])
            s.close()
        """,
        monitor.name,
    )
    with visiting(pool) as client:
        assert client.ask("snapshot")[1]
    assert rests == [1.0]


def test_users_that_have_no_number_here() -> None:
    me = os.geteuid()
    assert protocol.trusted(protocol.Peer(1, me))
    assert not protocol.trusted(protocol.Peer(0, me))  # of another namespace of processes
    assert not protocol.trusted(protocol.Peer(1, me + 1))


def test_the_overflow_user_is_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "overflowuid"
    file.write_text(f"{os.geteuid()}\n")
    monkeypatch.setattr(protocol, "_OVERFLOW", file)
    assert not protocol.trusted(protocol.Peer(1, os.geteuid()))


# --- what it is without --------------------------------------------------------------------------


def own_sockets() -> list[str]:
    text = Path("/proc/net/unix").read_text()
    mark = f"@primitive_jobs-{os.geteuid()}-{os.getpid()}-"
    return [line for line in text.splitlines() if mark in line]


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(1, visible=False) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert not own_sockets()
    with JobExecutor(1, visible=False) as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        assert not own_sockets()
    with monkeypatch.context() as patch:
        patch.setenv("PRIMITIVE_JOBS_TOP", "0")
        with JobPool(1) as pool:
            assert pool.submit(abs, -1).result(PATIENCE) == 1
            assert not own_sockets()
    with JobPool(1) as pool:
        monitor_of(pool)
        assert len(own_sockets()) == 1
    assert not own_sockets()
    with pytest.raises(TypeError, match="visible must be True or False"):
        JobPool(1, visible=1)  # type: ignore[arg-type]


def pool_in_a_job() -> list[str]:
    with JobPool(1) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        text = Path("/proc/net/unix").read_text()
    return [line for line in text.splitlines() if f"-{os.getpid()}-" in line]


def test_workers_and_their_pools_have_none(one: JobPool) -> None:
    assert one.submit(pool_in_a_job).result(PATIENCE) == []


def test_a_program_that_can_open_no_socket_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EACCES, "refused")

    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "primitive_jobs"):
        patch.setattr("primitive_jobs.monitor.server.socket.socket", refuse)
        with JobPool(1) as pool:
            assert pool.submit(abs, -1).result(PATIENCE) == 1
    told = [record for record in caplog.records if "not shown" in record.getMessage()]
    assert [record.levelname for record in told] == ["DEBUG"]
    assert not own_sockets()


def test_no_descriptor_for_a_viewer(
    busy: tuple[JobPool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = busy
    monitor = monitor_of(pool)
    monkeypatch.setattr(server, "_REST", 0.3)
    asked = []

    class Full(socket.socket):
        def accept(self) -> Any:
            asked.append(time.monotonic())
            if len(asked) < 3:
                raise OSError(errno.EMFILE, "no descriptor")
            return super().accept()

    assert monitor._socket is not None
    monitor._socket = Full(fileno=monitor._socket.detach())
    with visiting(pool) as client:
        assert client.ask("snapshot")[1]
    assert len(asked) == 3
    assert asked[1] - asked[0] >= 0.25
    assert asked[2] - asked[1] >= 0.25


def switches() -> int:
    """How often the dispatcher of the only pool has been given up the CPU by itself."""
    (thread,) = (t for t in threading.enumerate() if "dispatcher" in t.name)
    text = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(text.split("voluntary_ctxt_switches:")[1].split()[0])


def test_an_idle_pool_wakes_up_for_nothing() -> None:
    def is_idle() -> bool:
        previous = -1
        while previous != (previous := switches()):
            time.sleep(0.1)  # what was under way comes to rest
        time.sleep(0.5)
        return switches() == previous

    with JobPool(1, spare_workers=0, idle_timeout=None) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        monitor = monitor_of(pool)
        assert is_idle()
        with visiting(pool) as client:
            assert client.ask("snapshot")[1] == []
            assert is_idle()
        until(lambda: not monitor._visitors, "its end")
        assert is_idle()


# --- forks ---------------------------------------------------------------------------------------


def test_a_fork_has_nothing_of_it() -> None:
    read, write = os.pipe()
    ours, theirs = socket.socketpair()
    with JobPool(1) as pool, visiting(pool) as client, ours, theirs:
        monitor = monitor_of(pool)
        assert client.ask("snapshot")[0]["counts"]["running"] == 0
        (visitor,) = monitor._visitors
        # What the kernel was giving to the dispatcher when the process was forked.
        stray = os.dup(visitor._socket.fileno())
        child = os.fork()
        if not child:
            kept = []
            for entry in list(Path("/proc/self/fd").iterdir()):
                try:
                    if str(entry.readlink()).startswith("socket:"):
                        found = socket.socket(fileno=os.dup(int(entry.name)))
                        if found.getsockname() == protocol.address(monitor.name).encode():
                            kept.append(entry.name)
                except OSError:
                    continue
            os.write(write, repr((kept, ours.fileno() >= 0)).encode())
            time.sleep(PATIENCE)
            os._exit(0)
        os.close(stray)
        assert os.read(read, 1000) == b"([], True)"
        # In the parent all goes on.
        assert client.ask("snapshot")[0]["counts"]["running"] == 0
        assert pool.submit(abs, -1).result(PATIENCE) == 1
    try:
        assert not listed(monitor.name)  # while the child lives
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


# --- the poller's calls --------------------------------------------------------------------------


def test_calls_of_a_poller() -> None:
    poller = Poller()
    plain = poller.poll
    called: list[str] = []
    poller.call_in(0.05, lambda: called.append("late"))
    poller.call_in(0.0, lambda: called.append("soon"))
    assert poller.poll(0) == []
    assert called == ["soon"]
    began = time.monotonic()
    while poller.poll(PATIENCE) == [] and called == ["soon"]:
        pass
    assert called == ["soon", "late"]
    assert 0.03 < time.monotonic() - began < PATIENCE / 2
    assert poller.poll == plain  # nothing of it is left
    closed: list[int] = []
    poller.closers.append(lambda: closed.append(1))
    poller.close()
    assert closed == [1]
