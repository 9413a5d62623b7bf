"""Sockets and multiprocessing's connections as arguments: a duplicate of the descriptor travels."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, descriptors, hold, until, write_mark

from primitive_jobs import (
    JobError,
    JobExecutor,
    JobPool,
    SerializationError,
    WorkerDiedError,
    run,
    share,
)
from primitive_jobs._procs.process import WorkerConfig
from primitive_jobs._wire.channel import NO_DESCRIPTOR, attach, pair
from primitive_jobs._wire.messages import Kind, Lent
from primitive_jobs._wire.parcel import Parcel

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

joblib = pytest.importorskip("joblib")

Ends = tuple[Any, Any]
_arena = RawValue("i")  # multiprocessing keeps the file that others are in, too


@pytest.fixture
def pipe() -> Iterator[Ends]:
    """(what is received here, where jobs send it)."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def sockets() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=[True, False], ids=["packets", "stream"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobPool]:
    """A pool of one with either kind of channel."""
    config = partial(WorkerConfig, packets=request.param)
    monkeypatch.setattr("primitive_jobs.pool.WorkerConfig", config)
    with JobPool(1, spare_workers=0) as pool:
        yield pool


@pytest.fixture
def alone() -> Iterator[JobPool]:
    """A pool whose number of descriptors does not change by itself any more."""
    with JobPool(1, spare_workers=0) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        yield pool
        pool.shutdown(cancel=True)


def take(connection: Connection[Any, Any], count: int = 1) -> list[Any]:
    """What jobs have sent."""
    received = []
    for _ in range(count):
        assert connection.poll(PATIENCE)
        received.append(connection.recv())
    return received


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def send(connection: Any, value: object = 7) -> None:
    connection.send(value)


def send_two(first: Any, second: Any) -> bool:
    first.send(1)
    second.send(2)
    return first is second


# --- what it means --------------------------------------------------------------------------------


def test_a_connection(either: JobPool, pipe: Ends) -> None:
    ours, theirs = pipe
    before = either.submit(count_descriptors).result(PATIENCE)
    jobs = [
        either.submit(lambda connection: connection.send(1), theirs),
        either.submit(send, connection=theirs, value=2),
        either.submit(lambda: theirs.send(3)),
        either.submit(lambda given: given["end"][0].send(4), {"end": [theirs]}),
    ]
    assert [job.result(PATIENCE) for job in jobs] == [None] * 4
    assert take(ours, 4) == [1, 2, 3, 4]
    one_and_the_same = either.submit(send_two, theirs, theirs)
    assert one_and_the_same.result(PATIENCE) is True
    # The worker lets go of it, too.
    until(lambda: either.submit(count_descriptors).result(PATIENCE) == before, "none is left")


def test_both_ways(either: JobPool) -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        job = either.submit(lambda end: end.send(end.recv() * 2), theirs)
        ours.send(21)
        assert take(ours) == [42]
        job.result(PATIENCE)


def test_a_socket(either: JobPool, sockets: Ends) -> None:
    ours, theirs = sockets
    theirs.settimeout(12.5)

    def answer(sock: socket.socket) -> tuple[Any, ...]:
        sock.sendall(b"from the job")
        return sock.family, sock.type, sock.gettimeout(), sock.get_inheritable()

    told = either.submit(answer, theirs).result(PATIENCE)
    assert told == (socket.AF_UNIX, socket.SOCK_STREAM, 12.5, False)
    assert ours.recv(100) == b"from the job"


def test_a_listening_socket(one: JobPool) -> None:
    def accept(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as server:
        job = one.submit(accept, server)
        with socket.create_connection(server.getsockname(), PATIENCE) as connection:
            assert connection.recv(5) == b"hello"
        job.result(PATIENCE)


def test_its_owner_may_close_it_at_once(one: JobPool, marks: Path) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours:
        blocker = one.submit(hold, marks / "go")
        job = one.submit(send, theirs)
        theirs.close()
        (marks / "go").touch()
        blocker.result(PATIENCE)
        job.result(PATIENCE)
        assert take(ours) == [7]
        # No job has it any more, nor the pool.
        assert ours.poll(PATIENCE)
        with pytest.raises(EOFError):
            ours.recv()


def test_the_columns_of_a_map(two: JobPool, pipe: Ends) -> None:
    ours, theirs = pipe
    for chunksize in (1, 3, None):
        assert list(two.map(send, itertools.repeat(theirs), range(7), chunksize=chunksize))
        assert sorted(take(ours, 7)) == list(range(7))
    # Each call as if alone: one that closes it takes it from no other.
    assert list(two.map(send_and_close, [theirs] * 6, range(6), chunksize=3)) == [None] * 6
    assert sorted(take(ours, 6)) == list(range(6))
    assert list(two.map(partial(send_and_close, theirs), range(6), chunksize=3)) == [None] * 6
    assert sorted(take(ours, 6)) == list(range(6))


def send_and_close(connection: Any, value: int) -> None:
    connection.send(value)
    connection.close()


def test_an_executor_and_joblib(pipe: Ends) -> None:
    ours, theirs = pipe
    with JobExecutor(1) as executor:
        executor.submit(send, theirs, 1).result(PATIENCE)
        assert list(executor.map(send, [theirs] * 4, range(4), chunksize=2)) == [None] * 4
    assert take(ours, 5) == [1, 0, 1, 2, 3]
    import primitive_jobs.joblib

    primitive_jobs.joblib.register()
    with joblib.parallel_config(backend="primitive_jobs", n_jobs=1):
        calls = [joblib.delayed(send)(theirs, number) for number in range(5)]
        joblib.Parallel(batch_size=2)(calls)
    assert sorted(take(ours, 5)) == list(range(5))


def test_shared_data_and_nested_jobs(alone: JobPool, pipe: Ends) -> None:
    ours, theirs = pipe
    held = descriptors()
    given: Any = share({"end": theirs})
    for _ in range(2):
        alone.submit(lambda given: given["end"].send(1), given).result(PATIENCE)
    assert alone.submit(lambda: run(send, theirs, 2).result(PATIENCE)).result(PATIENCE) is None
    assert take(ours, 3) == [1, 1, 2]
    del given
    until(lambda: descriptors() == held, "none is left")


class Named(Connection):
    """One of the user's own kind."""

    name = "none"


def test_a_kind_of_the_users(one: JobPool, pipe: Ends) -> None:
    ours, theirs = pipe
    mine = Named(os.dup(theirs.fileno()), readable=False)
    mine.name = "mine"
    with mine:
        one.submit(lambda end: end.send((type(end).__name__, end.name)), mine).result(PATIENCE)
    assert take(ours) == [("Named", "mine")]


# --- how long it lives ----------------------------------------------------------------------------


def test_many_jobs_hold_one(alone: JobPool, pipe: Ends, marks: Path) -> None:
    ours, theirs = pipe
    blocker = alone.submit(hold, marks / "go")
    until(blocker.running, "RUNNING")
    before = descriptors()
    jobs = [alone.submit(send, theirs, number) for number in range(50)]
    assert descriptors() == before + 1
    assert all(job.cancel() for job in jobs[10:])
    for job in jobs[:5]:
        assert job.cancel()
    assert descriptors() == before + 1
    (marks / "go").touch()
    for job in jobs[5:10]:
        job.result(PATIENCE)
    assert take(ours, 5) == [5, 6, 7, 8, 9]
    until(lambda: descriptors() == before, "none is left")


def send_and_stay(end: Any) -> None:
    end.send(1)
    time.sleep(1000)


def test_of_a_cancelled_job_none_is_left(one: JobPool, marks: Path) -> None:
    blocker = one.submit(hold, marks / "go")
    until(blocker.running, "RUNNING")
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours:
        waits = one.submit(send, theirs)
        theirs.close()
        assert waits.cancel()
        assert ours.poll(PATIENCE)
        with pytest.raises(EOFError):
            ours.recv()
    (marks / "go").touch()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours:
        runs = one.submit(send_and_stay, theirs)
        theirs.close()
        assert take(ours) == [1]
        assert runs.cancel()
        assert ours.poll(PATIENCE)
        with pytest.raises(EOFError):
            ours.recv()


def test_a_retry_gets_it_too(one: JobPool, pipe: Ends, marks: Path) -> None:
    ours, theirs = pipe

    def die_once(end: Any) -> None:
        end.send(os.getpid())
        if not (marks / "died").exists():
            write_mark(marks, "died")
            os._exit(3)

    job = one.options(retries=1).submit(die_once, theirs)
    theirs.close()
    job.result(PATIENCE)
    first, second = take(ours, 2)
    assert first != second
    lost = one.submit(os._exit, 3)
    assert isinstance(lost.exception(PATIENCE), WorkerDiedError)


def test_no_descriptor_is_free(one: JobPool, pipe: Ends) -> None:
    _, theirs = pipe
    one.submit(abs, -1).result(PATIENCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        job = one.submit(send, theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(SerializationError, match=r"cannot be serialized: .*Too many open files"):
        job.result(PATIENCE)


# --- where none travels ---------------------------------------------------------------------------


class Holder(Exception):
    def __init__(self, end: Any) -> None:
        super().__init__("kept")
        self.end = end


def open_one(kind: str) -> Any:
    if kind == "socket":
        return socket.socket()
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    return theirs


def raise_one(kind: str) -> None:
    raise Holder(open_one(kind))


@pytest.mark.parametrize("kind", ["socket", "Connection"])
def test_not_from_a_job(one: JobPool, kind: str) -> None:
    told = f"a {kind} stands for a file descriptor of its process"
    with pytest.raises(SerializationError, match=rf"the result of open_one\(\), .*{told}"):
        one.submit(open_one, kind).result(PATIENCE)
    with pytest.raises(SerializationError, match=told):
        list(one.map(open_one, [kind] * 4, chunksize=2))
    with pytest.raises(JobError, match="the job raised Holder: kept"):
        one.submit(raise_one, kind).result(PATIENCE)
    with JobExecutor(1) as executor, pytest.raises(SerializationError, match=told):
        list(executor.map(lambda kind: [open_one(kind)], [kind] * 2, chunksize=2))


@pytest.mark.parametrize("kind", ["socket", "Connection"])
def test_not_what_is_closed(one: JobPool, kind: str) -> None:
    end = open_one(kind)
    end.close()
    with pytest.raises(SerializationError, match=rf"argument 1 of send\(\), a {kind}, cannot"):
        one.submit(send, end).result(PATIENCE)


@pytest.mark.parametrize("kind", ["Lock", "Queue", "Event", "Value", "RawArray"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_to_do_with_what_else_multiprocessing_has(
    pool: JobPool, kind: str, method: str
) -> None:
    context = multiprocessing.get_context(method)
    given = ("i", 3) if kind in ("Value", "RawArray") else ()
    thing = getattr(context, kind)(*given)
    told = r"argument 1 of send\(\), .* initargs, made by multiprocessing.get_context\('spawn'\);"
    with pytest.raises(SerializationError, match=told):
        pool.submit(send, [thing]).result(PATIENCE)
    with pytest.raises(SerializationError, match=r"initargs, .*; jobs, a proxy of a .*Manager"):
        share(thing)


def test_a_managers_proxy_travels(pool: JobPool) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        pool.submit(lambda queue: queue.put(5), queue).result(PATIENCE)
        assert queue.get(timeout=PATIENCE) == 5


# --- on the channel -------------------------------------------------------------------------------


def test_a_descriptor_between_messages(packets: bool) -> None:
    ours, sock = pair(packets=packets)
    theirs = attach(sock.detach())
    read, write = os.pipe()
    parcel = Parcel.of_descriptor(write)
    os.close(write)
    ours.send(Kind.RUN, 1, b"before")
    ours.send(Kind.LEND, 2, parcel)
    ours.send(Kind.LEND, 3, parcel)
    ours.send(Kind.RUN, 4, b"after")
    kinds = []
    for _ in range(4):
        message = theirs.receive()
        assert message is not None
        kinds.append((message.kind, message.attempt, bytes(message.body)))
        if isinstance(message, Lent):
            assert not os.get_inheritable(message.fd)
            os.write(message.fd, b"x")
        del message
    assert kinds == [(1, 1, b"before"), (11, 2, b""), (11, 3, b""), (1, 4, b"after")]
    parcel.close()
    assert os.read(read, 10) == b"xx"
    assert os.read(read, 10) == b""  # all were closed
    os.close(read)
    ours.close()
    theirs.close()


def test_a_descriptor_waits_for_room(packets: bool) -> None:
    ours, sock = pair(packets=packets)
    theirs = attach(sock.detach())
    parcel = Parcel.of_descriptor(0)
    sent = 0
    while not ours.wants_write:
        ours.send(Kind.RUN, 1, bytes(10_000))
        sent += 1
    ours.send(Kind.LEND, 2, parcel)
    for _ in range(sent):
        message = theirs.receive()
        assert message is not None
        assert message.kind == Kind.RUN
        ours.flush()
    while ours.wants_write:
        assert select.select([], [ours], [], PATIENCE)[1]
        ours.flush()
    lent = theirs.receive()
    assert isinstance(lent, Lent)
    assert os.path.sameopenfile(lent.fd, 0)
    del lent
    parcel.close()
    ours.close()
    theirs.close()


def test_no_descriptor_to_receive_one_with(packets: bool) -> None:
    ours, sock = pair(packets=packets)
    theirs = attach(sock.detach())
    parcel = Parcel.of_descriptor(0)
    ours.send(Kind.LEND, 5, parcel)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        message = theirs.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert message is not None
    assert (message.kind, message.attempt, message.lost) == (Kind.LEND, 5, NO_DESCRIPTOR)
    with contextlib.suppress(OSError):
        parcel.close()
    ours.close()
    theirs.close()


class Unhashable(Connection):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


def test_one_that_cannot_be_hashed(one: JobPool) -> None:
    near, far = multiprocessing.Pipe()
    with near, far, Unhashable(os.dup(far.fileno())) as own:
        one.submit(lambda end: end.send("sent"), own).result(PATIENCE)
        assert near.recv() == "sent"


def test_a_number_that_stands_for_another_file_meanwhile(one: JobPool, tmp_path: Path) -> None:
    first, end = multiprocessing.Pipe()
    second, other = multiprocessing.Pipe()
    with first, end, second, other:
        queued = [one.submit(hold, tmp_path / "go"), one.submit(lambda end: end.send(1), end)]
        os.dup2(other.fileno(), end.fileno())
        later = one.submit(lambda end: end.send(2), end)
        (tmp_path / "go").touch()
        assert [job.exception(PATIENCE) for job in (*queued, later)] == [None] * 3
        assert (first.recv(), second.recv()) == (1, 2)
