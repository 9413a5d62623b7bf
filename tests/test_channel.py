"""Both kinds of channel behind one contract, and the parcels they carry."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE, descriptors

from primitive_jobs._wire.channel import (
    NO_DESCRIPTOR,
    Channel,
    ChannelClosed,
    PacketChannel,
    StreamChannel,
    attach,
    pair,
)
from primitive_jobs._wire.messages import Kind, Message, duration, told_duration
from primitive_jobs._wire.parcel import HAVE_PACKETS, INLINE_LIMIT, Parcel

PATIENCE_MS = 20_000  # ms, after which what is waited for will not come
SIZES = (0, 1, 1000, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1, 3 * 2**20)

Link = tuple[Channel, Channel]

needs_memfd = pytest.mark.skipif(not HAVE_PACKETS, reason="its files have no names here")


@pytest.fixture
def link(packets: bool) -> Iterator[Link]:
    """(the pool's end, the worker's end)."""
    ours, sock = pair(packets=packets)
    theirs = attach(sock.detach())
    yield ours, theirs
    ours.close()
    theirs.close()


def take(channel: Channel) -> Message:
    """The next message at an end that does not block."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    while (message := channel.receive()) is None:
        assert poller.poll(PATIENCE_MS), "no message came"
    return message


def push(channel: Channel) -> None:
    """Send everything that waits at an end that does not block."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLOUT)
    while channel.wants_write:
        assert poller.poll(PATIENCE_MS), "the other side reads no more"
        channel.flush()


class Aside:
    """A call in a thread, whose outcome is asked for later."""

    def __init__(self, function: Callable[[], Message | None]) -> None:
        self._outcome: list[Message | BaseException | None] = []
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._function())
        except BaseException as error:
            self._outcome.append(error)

    def get(self) -> Message:
        self._thread.join(PATIENCE_MS / 1000)
        assert not self._thread.is_alive()
        (outcome,) = self._outcome
        assert isinstance(outcome, Message), outcome
        return outcome

    def join(self) -> None:
        self._thread.join(PATIENCE_MS / 1000)
        assert not self._thread.is_alive()
        assert self._outcome == [None]


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def test_kinds() -> None:
    for wanted, cls in ((True, PacketChannel), (False, StreamChannel)):
        ours, sock = pair(packets=wanted)
        assert type(ours) is cls
        os.set_inheritable(sock.fileno(), True)
        theirs = attach(sock.detach())
        assert type(theirs) is cls
        assert not os.get_inheritable(theirs.fileno())
        assert os.get_blocking(theirs.fileno())
        assert not os.get_blocking(ours.fileno())
        ours.close()
        theirs.close()
        ours.close()
        assert ours.fileno() == -1


@pytest.mark.parametrize("size", SIZES)
def test_pool_to_worker(link: Link, packets: bool, size: int) -> None:
    ours, theirs = link
    reader = Aside(theirs.receive)
    ours.send(Kind.RUN, 2**40 + 1, Parcel(content(size), to_file=packets))
    push(ours)
    message = reader.get()
    assert (message.kind, message.attempt) == (Kind.RUN, 2**40 + 1)
    assert message.body == content(size)
    assert not message.buffers
    assert message.lost is None


@pytest.mark.parametrize("size", SIZES)
def test_worker_to_pool(link: Link, packets: bool, size: int) -> None:
    ours, theirs = link
    parcel = Parcel(content(size), to_file=packets)

    def send() -> None:
        theirs.send(Kind.RETURNED, 7, parcel)

    writer = Aside(send)
    message = take(ours)
    writer.join()
    assert (message.kind, message.attempt) == (Kind.RETURNED, 7)
    assert message.body == content(size)


def test_message_without_content(link: Link) -> None:
    ours, theirs = link
    ours.send(Kind.STOP)
    assert theirs.receive() == Message(Kind.STOP)
    theirs.send(Kind.REFUSED, 3)
    assert take(ours) == Message(Kind.REFUSED, 3)


@pytest.mark.parametrize("sizes", [(0,), (1, 70, 64), (20_000,), (2**20 + 3, 5, 2**19)])
def test_buffers_are_aligned_writable_and_private(
    link: Link, packets: bool, sizes: tuple[int, ...]
) -> None:
    ours, theirs = link
    sources = [bytearray(content(size)) for size in sizes]
    parcel = Parcel(b"body", [memoryview(source) for source in sources], to_file=packets)
    received = []
    for attempt in (1, 2):
        reader = Aside(theirs.receive)
        ours.send(Kind.RUN, attempt, parcel)
        push(ours)
        message = reader.get()
        assert message.body == b"body"
        assert [bytes(b) for b in message.buffers] == [content(size) for size in sizes]
        for buffer in message.buffers:
            assert not buffer.readonly
            buffer[:] = b"x" * len(buffer)  # the second message shows that this was private
        received.append(message)
    assert [bytes(source) for source in sources] == [content(size) for size in sizes]
    import numpy as np

    for message in received:
        places = [np.frombuffer(b, np.uint8).ctypes.data for b in message.buffers if len(b)]
        assert all((place - places[0]) % 64 == 0 for place in places)


def test_a_mapped_buffer_is_aligned_absolutely() -> None:
    import numpy as np

    ours, sock = pair(packets=True)
    theirs = attach(sock.detach())
    ours.send(Kind.RUN, 1, Parcel(b"b", [memoryview(bytes(2**20)), memoryview(bytes(77))]))
    message = theirs.receive()
    assert message is not None
    places = [np.frombuffer(b, np.uint8).ctypes.data for b in message.buffers]
    assert [place % 64 for place in places] == [0, 0]
    ours.close()
    theirs.close()


def test_nothing_there_is_none(link: Link) -> None:
    ours, theirs = link
    assert ours.receive() is None
    theirs.send(Kind.READY)
    assert take(ours).kind == Kind.READY
    assert ours.receive() is None


def test_closed_comes_after_all_messages(link: Link, packets: bool) -> None:
    ours, theirs = link
    theirs.send(Kind.READY)
    theirs.send(Kind.RETURNED, 1, Parcel(b"first", to_file=packets))
    theirs.send(Kind.RETURNED, 2, Parcel(content(INLINE_LIMIT // 2), to_file=packets))
    theirs.close()
    assert [take(ours).attempt for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            ours.receive()
    with pytest.raises(ChannelClosed):
        ours.send(Kind.STOP)
    with pytest.raises(ChannelClosed):
        ours.send(Kind.RUN, 1, Parcel(content(2 * INLINE_LIMIT), to_file=packets))


def test_blocking_receive_ends_with_the_other_side(link: Link) -> None:
    ours, theirs = link

    def receive() -> None:
        with pytest.raises(ChannelClosed):
            theirs.receive()

    reader = Aside(receive)
    ours.close()
    reader.join()


def test_many_messages_keep_their_order(link: Link, packets: bool) -> None:
    ours, theirs = link

    def send() -> None:
        for attempt in range(300):
            theirs.send(Kind.RETURNED, attempt, Parcel(content(attempt * 50), to_file=packets))

    writer = Aside(send)
    for attempt in range(300):
        message = take(ours)
        assert message.attempt == attempt
        assert message.body == content(attempt * 50)
    writer.join()


# --- packets -------------------------------------------------------------------------------------


def test_a_refused_size_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, sock = pair(packets=True)
    theirs = attach(sock.detach())
    small_limit = 4096
    real, real_parts = socket.socket.send, socket.socket.sendmsg

    class Small(socket.socket):
        def send(self, data, *args):  # type: ignore[no-untyped-def]
            if len(data) > small_limit:
                raise OSError(90, "Message too long")
            return real(self, data, *args)

        def sendmsg(self, buffers, *args):  # type: ignore[no-untyped-def]
            buffers = list(buffers)
            if sum(map(len, buffers)) > small_limit:
                raise OSError(90, "Message too long")
            return real_parts(self, buffers, *args)

    inner = Small(fileno=os.dup(ours.fileno()))
    ours.close()
    limited = PacketChannel(inner, blocking=False)
    parcel = Parcel(content(10_000))
    limited.send(Kind.RUN, 1, parcel)
    assert parcel.fd >= 0
    message = theirs.receive()
    assert message is not None
    assert message.body == content(10_000)
    limited.close()
    theirs.close()


def test_no_descriptor_to_receive_with() -> None:
    import resource

    ours, sock = pair(packets=True)
    theirs = attach(sock.detach())
    ours.send(Kind.RUN, 5, Parcel(content(2 * INLINE_LIMIT)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        message = theirs.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert message == Message(Kind.RUN, 5, lost=NO_DESCRIPTOR)
    ours.send(Kind.STOP)
    assert theirs.receive() == Message(Kind.STOP)
    ours.close()
    theirs.close()


@needs_memfd
def test_a_mapping_holds_no_descriptor() -> None:
    ours, sock = pair(packets=True)
    theirs = attach(sock.detach())
    before = descriptors()
    kept = []
    for attempt in range(20):
        parcel = Parcel(b"b", [memoryview(content(2 * INLINE_LIMIT))])
        ours.send(Kind.RUN, attempt, parcel)
        parcel.close()
        message = theirs.receive()
        assert message is not None
        kept.append(message)
        assert descriptors() == before
    assert all(bytes(m.buffers[0]) == content(2 * INLINE_LIMIT) for m in kept)
    assert "memfd:primitive_jobs (" in Path("/proc/self/maps").read_text()
    del message
    kept.clear()
    assert "memfd:primitive_jobs (" not in Path("/proc/self/maps").read_text()
    ours.close()
    theirs.close()


# --- stream --------------------------------------------------------------------------------------


def test_slow_reader_holds_nobody_up() -> None:
    ours, sock = pair(packets=False)
    theirs = attach(sock.detach())
    big = content(3 * 2**20)
    ours.send(Kind.RUN, 1, Parcel(big, to_file=False))
    ours.send(Kind.STOP, 2)
    assert ours.wants_write
    ours.flush()
    assert ours.wants_write  # nobody read, so nothing more can go
    received: list[Message | None] = []

    def read() -> None:
        received.extend(theirs.receive() for _ in range(2))

    reader = Aside(read)
    push(ours)
    assert not ours.wants_write
    reader.join()
    first, second = received
    assert first is not None
    assert first.body == big
    assert second == Message(Kind.STOP, 2)
    ours.close()
    theirs.close()


def test_closed_while_something_waits() -> None:
    ours, sock = pair(packets=False)
    ours.send(Kind.RUN, 1, Parcel(content(3 * 2**20), to_file=False))
    assert ours.wants_write
    sock.close()
    with pytest.raises(ChannelClosed):
        ours.flush()
    ours.close()


def test_partial_messages() -> None:
    ours, sock = pair(packets=False)
    recorder, tape = pair(packets=False)
    recorder.send(Kind.RETURNED, 9, Parcel(b"body", [memoryview(b"abc"), memoryview(b"")]))
    recorder.send(Kind.READY)
    wire = tape.recv(10_000)
    tape.close()
    recorder.close()
    got = []
    for place in range(len(wire)):
        sock.send(wire[place : place + 1])
        message = ours.receive()
        if message is not None:
            got.append((place, message))
    (first_place, first), (second_place, second) = got
    assert (first.attempt, bytes(first.body)) == (9, b"body")
    assert [bytes(b) for b in first.buffers] == [b"abc", b""]
    assert second.kind == Kind.READY
    assert second_place == len(wire) - 1
    assert first_place < second_place
    sock.send(wire[:5])
    sock.close()
    assert select.select([ours], [], [], PATIENCE_MS / 1000)[0]
    with pytest.raises(ChannelClosed):  # the rest of it never comes
        ours.receive()
    ours.close()


def test_stream_sends_a_parcel_that_is_a_file() -> None:
    ours, sock = pair(packets=False)
    theirs = attach(sock.detach())
    parcel = Parcel(content(2 * INLINE_LIMIT), to_file=True)
    assert parcel.fd >= 0
    reader = Aside(theirs.receive)
    ours.send(Kind.RUN, 1, parcel)
    push(ours)
    assert reader.get().body == content(2 * INLINE_LIMIT)
    assert parcel.fd == -1
    ours.close()
    theirs.close()


# --- parcels -------------------------------------------------------------------------------------


def test_small_parcel_is_bytes() -> None:
    before = descriptors()
    parcel = Parcel(content(INLINE_LIMIT))
    assert parcel.fd == -1
    assert parcel.data == content(INLINE_LIMIT)
    assert descriptors() == before


def test_parcel_changes_its_form() -> None:
    before = descriptors()
    big = content(INLINE_LIMIT + 1)
    parcel = Parcel(big, to_file=True)
    assert parcel.fd >= 0
    assert not os.get_inheritable(parcel.fd)
    assert descriptors() == before + 1
    assert parcel.data == b""
    parcel.to_bytes()
    assert (parcel.fd, bytes(parcel.data), descriptors()) == (-1, big, before)
    fd = parcel.file()
    assert parcel.file() == fd == parcel.fd
    assert parcel.data == b""
    assert os.pread(fd, len(big) + 1, 0) == big
    parcel.close()
    parcel.close()
    assert descriptors() == before


def test_dropped_parcel_gives_its_descriptor_back() -> None:
    before = descriptors()
    parcel = Parcel(content(INLINE_LIMIT + 1), to_file=True)
    assert descriptors() == before + 1
    del parcel
    assert descriptors() == before


def test_parcel_without_files() -> None:
    before = descriptors()
    parcel = Parcel(b"x", [memoryview(content(INLINE_LIMIT))], to_file=False)
    assert descriptors() == before
    assert parcel.buffers == 1
    assert len(parcel.data) == parcel.size > INLINE_LIMIT


def test_parcel_is_a_snapshot() -> None:
    for size in (1000, 2 * INLINE_LIMIT):
        source = bytearray(content(size))
        parcel = Parcel(b"b", [memoryview(source)])
        source[:] = bytes(size)
        parcel.to_bytes()
        assert bytes(parcel.data).endswith(content(size))


def test_parcel_that_was_not_finished_goes_in_silence() -> None:
    Parcel.__new__(Parcel).__del__()  # as an interrupt in the first lines of __init__ leaves it


def test_full_disk_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            Parcel(content(INLINE_LIMIT + 1), to_file=True)
    assert descriptors() == before


# --- taking back ----------------------------------------------------------------------------------


@pytest.fixture
def both_ends() -> Iterator[tuple[PacketChannel, Channel]]:
    """The pool's end, which holds the other one, too; and the worker's."""
    if not HAVE_PACKETS:
        pytest.skip("messages are no datagrams here")
    ours, sock = pair(packets=True)
    assert isinstance(ours, PacketChannel)
    ours.keep(sock)
    theirs = attach(os.dup(sock.fileno()))
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_was_not_received_is_taken_back(both_ends: tuple[PacketChannel, Channel]) -> None:
    ours, theirs = both_ends
    for attempt in (1, 2, 3):
        ours.send(Kind.RUN, attempt, b"call", 7)
    ours.send(Kind.FORGET, 9)
    ours.send(Kind.RUN, 4, bytes(5000))
    assert theirs.receive() == Message(Kind.RUN, 1, bytearray(b"call"), extra=7)
    assert ours.take_back() == [2, 3, 4]
    assert ours.take_back() == []
    assert theirs.receive() == Message(Kind.FORGET, 9)
    assert ours.take_back() == []


def test_what_did_not_go_out_is_taken_back(both_ends: tuple[PacketChannel, Channel]) -> None:
    ours, theirs = both_ends
    attempts = 0
    while not ours.wants_write:
        attempts += 1
        ours.send(Kind.RUN, attempts, bytes(2000))
    ours.send(Kind.RUN, attempts + 1, bytes(2000))
    assert sorted(ours.take_back()) == [*range(1, attempts + 2)]
    assert not ours.wants_write
    ours.send(Kind.STOP)
    assert theirs.receive() == Message(Kind.STOP)


def test_each_job_goes_to_one_of_two_that_read(both_ends: tuple[PacketChannel, Channel]) -> None:
    ours, theirs = both_ends
    received: list[int] = []

    def work() -> None:
        while (message := theirs.receive()) is not None and message.kind == Kind.RUN:
            received.append(message.attempt)

    worker = threading.Thread(target=work)
    worker.start()
    taken: list[int] = []
    for attempt in range(1, 5001):
        ours.send(Kind.RUN, attempt, b"call")
        if attempt % 7 == 0:
            taken += ours.take_back()
            ours.flush()
    taken += ours.take_back()
    ours.send(Kind.STOP)
    worker.join(PATIENCE)
    assert sorted(taken + received) == [*range(1, 5001)]


def test_an_end_that_was_shut_gives_nothing_back(both_ends: tuple[PacketChannel, Channel]) -> None:
    ours, theirs = both_ends
    ours.send(Kind.RUN, 1, b"call")
    theirs._socket.shutdown(socket.SHUT_RD)
    assert ours.take_back() in ([], [1])


@pytest.mark.parametrize("us", [0, 1, 32767, 32768, 33000, 10**6, 32_766_999, 10**8])
def test_how_long_a_call_took(us: int) -> None:
    told = told_duration(us)
    assert 0 <= told < 1 << 16
    seconds = duration(told)
    if us >= 32_767_000:
        assert seconds is None
    else:
        assert seconds is not None
        assert us * 1e-6 - 0.001 < seconds <= us * 1e-6 + 1e-12
    assert told_duration(us + 1000) >= told
