"""The link between a pool and one worker: typed messages both ways over a pair of sockets.

Two kinds behind one interface:

* `PacketChannel`: ``SOCK_SEQPACKET``, so one datagram is one message and there is no framing. Up
  to `INLINE_LIMIT` bytes travel inside; more goes into a nameless file (``memfd_create``) whose
  descriptor follows, and which the receiver maps privately: one copy, no name to leak.
* `StreamChannel`: length-prefixed messages over a stream socket, where the system has not both, or
  a sandbox refuses one.

On the pool's side a channel never blocks; on the worker's side it always does. A channel is used
by one thread at a time. Nothing is shared between two channels.
"""

from __future__ import annotations

import _socket as socket  # all that is needed here, without what `socket` imports
import collections
import contextlib
import errno
import mmap
import os
import struct
import sys
import weakref

from .messages import REFUSED, Kind, Lent, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

INLINE_LIMIT = 128 * 1024  # bytes: 64 KB take 6.5 us inline and 55 us through a memfd
_SMALL = 4 * 1024  # bytes: up to here joining header and body costs less than sending two parts
_ALIGNMENT = 64  # bytes, of each out-of-band buffer: a cache line, and what SIMD code likes
_HEADER = struct.Struct("<BBHIQQ")  # kind, flags, unused, number of buffers, attempt, size
_IN_FILE = 1  # flag: the content is in the file whose descriptor came along
_DESCRIPTOR = struct.Struct("i")
_LEND = int(Kind.LEND)
_RIGHTS = b"."  # the datagram that a descriptor goes with
_CLOEXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# No SIGPIPE, which may be at its default in a program, or in a worker after a job: a stream socket
# raises it, one of packets does not.
_QUIET: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)
NO_DESCRIPTOR = (
    "no file descriptor is free for it; raise RLIMIT_NOFILE (ulimit -n), or stay below "
    f"{INLINE_LIMIT} bytes"
)
_BROKEN = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)


def _has_packets() -> bool:
    """Whether the system has what `PacketChannel` needs; Python may have what a sandbox refuses."""
    try:
        os.close(os.memfd_create("primitive_jobs", os.MFD_CLOEXEC))
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.close()
    except AttributeError:
        return False
    except OSError as error:  # no descriptor, or no memory, is free now: that passes
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return True


HAVE_PACKETS = _has_packets()


class ChannelClosed(Exception):
    """The other side is gone; every message it sent before has been received."""


class Parcel:
    """Content ready to be sent, perhaps more than once: a pickle and its large buffers, packed.

    It is a snapshot: later changes of the objects it was made from do not show. The content is
    held as bytes or, from `INLINE_LIMIT` on and where ``to_file`` allows, in a nameless file,
    whose descriptor is closed by `close` or when the parcel is dropped.
    """

    __slots__ = ("_fds", "buffers", "data", "refers_to", "size")

    def __init__(
        self, body: bytes, buffers: Sequence[memoryview] = (), *, to_file: bool = HAVE_PACKETS
    ) -> None:
        self._fds: list[int] = []  # one, or none
        self.buffers = len(buffers)
        self.refers_to: Sequence[object] = ()  # lives for as long as this
        self.data: bytes | bytearray = b""
        parts = _lay_out(body, buffers) if buffers else [body]
        self.size = sum(map(len, parts))
        if to_file and self.size > INLINE_LIMIT:
            _write_file(parts, self._fds)
        elif buffers:
            self.data = b"".join(parts)
        else:
            self.data = body

    @classmethod
    def of_descriptor(cls, fd: int) -> Parcel:
        """One that is sent to lend a descriptor: it holds a duplicate, and no content."""
        parcel = cls(b"")
        parcel._fds.extend(map(os.dup, (fd,)))  # in one breath, as in `_make_file`
        return parcel

    @classmethod
    def of_packed(cls, data: bytes | bytearray, buffers: int) -> Parcel:
        """One of what `data` and `buffers` of another one were, which held no file."""
        parcel = cls(b"", to_file=False)
        parcel.data, parcel.buffers, parcel.size = data, buffers, len(data)
        return parcel

    @property
    def fd(self) -> int:
        """The file's descriptor; -1 where there is none."""
        try:
            return self._fds[0]
        except IndexError:
            return -1

    def file(self) -> int:
        """The content as a file; from now on it is held there."""
        if not self._fds:
            _write_file([self.data], self._fds)
            self.data = b""
        return self._fds[0]

    def to_bytes(self) -> None:
        """Hold the content as bytes from now on: for when descriptors are short."""
        if self.fd >= 0:
            self.data = bytearray(self.size)
            view, done = memoryview(self.data), 0
            while done < self.size:
                done += os.preadv(self.fd, [view[done:]], done)
            self.close()

    def copy_of_bytes(self) -> Parcel:
        """The same content in a parcel of its own that holds it as bytes."""
        copy = Parcel(bytes(self.data), to_file=False)
        copy.buffers, copy.size = self.buffers, self.size
        if self.fd >= 0:
            copy._fds.append(os.dup(self.fd))
            copy.to_bytes()
        return copy

    def close(self) -> None:
        """Give the descriptor back, if there is one; any thread may, and several."""
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._fds:
                list(map(os.close, map(self._fds.pop, (0,))))  # in one breath, see _write_file

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        # No globals: there may be none any more when the interpreter ends.
        try:
            while self._fds:
                list(map(_close, map(self._fds.pop, (0,))))
        except AttributeError:  # an interrupt came before it was made
            pass


Content = bytes | Parcel
"""What a message carries: a short pickle without buffers as it is, anything else as a parcel."""


def pack(
    body: bytes,
    buffers: Sequence[memoryview] = (),
    refers_to: Sequence[object] = (),
    *,
    to_file: bool = HAVE_PACKETS,
) -> Content:
    """Make it ready to be sent; ``refers_to`` is kept alive with it."""
    if not buffers and not refers_to and len(body) <= INLINE_LIMIT:
        return body
    parcel = Parcel(body, buffers, to_file=to_file)
    parcel.refers_to = refers_to
    return parcel


def _lay_out(body: bytes, buffers: Sequence[memoryview]) -> list[bytes | memoryview]:
    """Table of lengths, body, buffers; each buffer at a multiple of `_ALIGNMENT`."""
    lengths = [len(body), *(buffer.nbytes for buffer in buffers)]
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    parts: list[bytes | memoryview] = [table, body]
    place = len(table) + len(body)
    for buffer in buffers:
        gap = -place % _ALIGNMENT
        parts += [bytes(gap), buffer]
        place += gap + buffer.nbytes
    return parts


def unpack(content: memoryview, count: int) -> tuple[memoryview, list[memoryview]]:
    """Return body and buffers of what `Parcel` has packed with ``count`` buffers."""
    lengths = struct.unpack_from(f"<{count + 1}Q", content)
    place = 8 * (count + 1)
    body = content[place : place + lengths[0]]
    place += lengths[0]
    buffers = []
    for length in lengths[1:]:
        place += -place % _ALIGNMENT
        buffers.append(content[place : place + length])
        place += length
    return body, buffers


def _write_file(parts: Sequence[bytes | bytearray | memoryview], owner: list[int]) -> None:
    """Make a file with this content, and put its descriptor into an empty ``owner``."""
    _make_file("primitive_jobs", owner)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(owner[0], rest) :]
    except BaseException:
        os.close(owner.pop())
        raise


def _make_file(name: str, owner: list[int]) -> None:
    try:
        # In one breath: no interrupt comes between the two.
        owner.extend(map(os.memfd_create, (name,), (os.MFD_CLOEXEC,)))
        return
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in REFUSED:
            raise
    import tempfile

    with tempfile.TemporaryFile() as file:
        owner.append(os.dup(file.fileno()))


def nameless_file(name: str) -> int:
    """A descriptor of a file that nobody else can open, and that is gone with its last one."""
    owner: list[int] = []
    _make_file(name, owner)
    return owner.pop()


def map_file(fd: int, size: int, flags: int) -> memoryview:
    """Map a file; the mapping lives as long as the view and holds no descriptor.

    Args:
        fd: The file's.
        size: Its bytes.
        flags: ``mmap.MAP_PRIVATE``, copy-on-write, or ``mmap.MAP_SHARED``.
    """
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, flags=flags, trackfd=False))
    # Before 3.13 an mmap object keeps a duplicate of the descriptor for as long as it lives: a
    # thousand results held by a caller would be a thousand descriptors.
    import _pickle as pickle
    import ctypes

    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    area = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(area, libc.munmap, address, size).atexit = False
    return pickle.PickleBuffer(area).raw()  # the plain bytes; memoryview(area) has format "<B"


def _libc() -> Any:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class Channel:
    """One end of a link: a socket that blocks on the worker's side only.

    Attributes:
        fd: The descriptor to wait on, while it is open.
        wants_write: Whether something waits to be sent: call `flush` when the socket is writable.
    """

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        sock.setblocking(blocking)
        self._socket = sock
        self.wants_write = False
        self.fd = sock.fileno()

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._socket.fileno()

    def send(self, kind: int, attempt: int = 0, content: Content | None = None) -> None:
        """Send one message.

        Raises:
            ChannelClosed: The other side is gone.
            OSError: It cannot be sent for another reason.
        """
        raise NotImplementedError

    def receive(self) -> Message | None:
        """Return the next message; None where the pool's side would have to wait for it.

        Raises:
            ChannelClosed: The other side is gone and everything it sent has been received.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Send what waits, as far as it can be sent now; raises as `send` does."""

    def close(self) -> None:
        """Close this end; again is harmless."""
        self._socket.close()


_Datagram = bytes | tuple[bytes, bytes | bytearray]


def _rights(parcel: Parcel) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(parcel.file())


def _joined(header: bytes, body: bytes | bytearray) -> _Datagram:
    return header + body if len(body) <= _SMALL else (header, body)


class PacketChannel(Channel):
    """One datagram is one message; a file's descriptor follows in a datagram of its own.

    Only for that one is ``recvmsg`` needed, which takes half as long again as ``recv``.
    """

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        super().__init__(sock, blocking=blocking)
        # What the kernel had no room for, as (datagram, parcel whose descriptor goes with it).
        self._outgoing: collections.deque[tuple[_Datagram, Parcel | None]] = collections.deque()
        self._buffer = bytearray(_HEADER.size + INLINE_LIMIT)
        self._announced: bytes | None = None  # header of a message whose file is to come

    def send(self, kind: int, attempt: int = 0, content: Content | None = None) -> None:
        try:
            if content is None:
                self._post(_HEADER.pack(kind, 0, 0, 0, attempt, 0))
            elif isinstance(content, Parcel):
                self._send_parcel(kind, attempt, content)
            else:
                header = _HEADER.pack(kind, 0, 0, 0, attempt, len(content))
                if not self._post(_joined(header, content)):
                    self._send_file(kind, attempt, Parcel(content))
        except OSError as error:
            if error.errno in _BROKEN:
                raise ChannelClosed from error
            raise

    def try_to_send(self, kind: int, attempt: int, body: bytes) -> bool:
        """Send a short message from a thread that does not own this; return whether it went out.

        A datagram goes whole or not at all, so it can meet another one of the owner's.
        """
        try:
            self._socket.send(_HEADER.pack(kind, 0, 0, 0, attempt, len(body)) + body)
        except OSError:  # the owner will see the same, and act on it
            return False
        return True

    def flush(self) -> None:
        try:
            while self._outgoing:
                self._send_now(*self._outgoing[0])
                self._outgoing.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _BROKEN:
                raise ChannelClosed from error
            raise
        self.wants_write = bool(self._outgoing)

    def _post(self, datagram: _Datagram, parcel: Parcel | None = None) -> bool:
        """Send it or keep it for `flush`; False if it is too long for a datagram."""
        if self._outgoing:
            self._outgoing.append((datagram, parcel))
            return True
        try:
            self._send_now(datagram, parcel)
        except BlockingIOError:
            self._outgoing.append((datagram, parcel))
            self.wants_write = True
        except OSError as error:
            if error.errno != errno.EMSGSIZE:  # a smaller limit than usual on this machine
                raise
            return False
        return True

    def _send_now(self, datagram: _Datagram, parcel: Parcel | None) -> None:
        if parcel is not None:
            self._socket.sendmsg([_RIGHTS], [_rights(parcel)])
        elif isinstance(datagram, bytes):
            self._socket.send(datagram)
        else:
            self._socket.sendmsg(datagram)

    def _send_parcel(self, kind: int, attempt: int, parcel: Parcel) -> None:
        if parcel.fd < 0 and parcel.size <= INLINE_LIMIT:
            header = _HEADER.pack(kind, 0, 0, parcel.buffers, attempt, parcel.size)
            if self._post(_joined(header, parcel.data)):
                return
        self._send_file(kind, attempt, parcel)

    def _send_file(self, kind: int, attempt: int, parcel: Parcel) -> None:
        parcel.file()  # it may fail: before anything is announced
        self._post(_HEADER.pack(kind, _IN_FILE, 0, parcel.buffers, attempt, parcel.size))
        self._post(_RIGHTS, parcel)

    def receive(self) -> Message | None:
        try:
            if self._announced is not None:
                return self._receive_file(self._announced)
            if not self._socket.recv_into(self._buffer):
                raise ChannelClosed
            kind, where, _, count, attempt, size = _HEADER.unpack_from(self._buffer)
            if where & _IN_FILE:
                self._announced = bytes(self._buffer[: _HEADER.size])
                return self._receive_file(self._announced)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _BROKEN:
                raise ChannelClosed from error
            raise
        if not size:
            return Message(kind, attempt)
        content = self._buffer[_HEADER.size : _HEADER.size + size]
        if not count:
            return Message(kind, attempt, content)
        return Message(kind, attempt, *unpack(memoryview(content), count))

    def _receive_file(self, header: bytes) -> Message:
        kind, _, _, count, attempt, size = _HEADER.unpack(header)
        while True:
            length, ancillary, _, _ = self._socket.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(_DESCRIPTOR.size), _CLOEXEC
            )
            if length == 0:
                raise ChannelClosed
            # Else a caller that was interrupted for long sends what its pool has sent for it.
            if length == len(_RIGHTS):
                break
        self._announced = None
        if not ancillary:  # MSG_CTRUNC: this process has no descriptor free
            return Message(kind, attempt, lost=NO_DESCRIPTOR)
        (fd,) = _DESCRIPTOR.unpack_from(ancillary[0][2])
        if kind == _LEND:
            return Lent(attempt, fd)
        try:
            content = map_file(fd, size, mmap.MAP_PRIVATE)
        except OSError as error:
            return Message(kind, attempt, lost=f"no memory to map its {size} bytes: {error}")
        finally:
            os.close(fd)
        if not count:
            return Message(kind, attempt, content)
        return Message(kind, attempt, *unpack(content, count))


class StreamChannel(Channel):
    """Header and content follow each other in a stream.

    The pool's side keeps what cannot be sent or is not complete yet, so that a worker that stops
    in the middle of a message holds nobody up.
    """

    _CHUNK = 256 * 1024  # bytes, of one read

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        super().__init__(sock, blocking=blocking)
        self._outgoing: list[memoryview | Parcel] = []  # of a parcel the descriptor
        self._header = bytearray()
        self._content: bytearray | None = None
        self._filled = 0
        self._fd = -1  # one that came with it

    def send(self, kind: int, attempt: int = 0, content: Content | None = None) -> None:
        buffers = 0
        data: bytes | bytearray = b""
        if kind == _LEND:
            assert isinstance(content, Parcel)
            header = _HEADER.pack(kind, _IN_FILE, 0, 0, attempt, len(_RIGHTS))
            self._outgoing += [memoryview(header), content]
            self.flush()
            return
        if isinstance(content, Parcel):
            content.to_bytes()
            buffers, data = content.buffers, content.data
        elif content is not None:
            data = content
        self._outgoing.append(memoryview(_HEADER.pack(kind, 0, 0, buffers, attempt, len(data))))
        if data:
            self._outgoing.append(memoryview(data))
        self.flush()

    def flush(self) -> None:
        try:
            while self._outgoing:
                first = self._outgoing[0]
                if isinstance(first, Parcel):
                    self._socket.sendmsg([_RIGHTS], [_rights(first)], _QUIET)
                    del self._outgoing[0]
                    continue
                rest = first[self._socket.send(first, _QUIET) :]
                self._outgoing[0] = rest
                if not rest:
                    del self._outgoing[0]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _BROKEN:
                raise ChannelClosed from error
            raise
        self.wants_write = bool(self._outgoing)

    def receive(self) -> Message | None:
        while self._content is None:
            missing = _HEADER.size - len(self._header)
            piece = bytearray(missing)
            got = self._read(memoryview(piece))
            if got is None:
                return None
            self._header += piece[:got]
            if len(self._header) == _HEADER.size:
                self._content = bytearray(_HEADER.unpack(self._header)[5])
                self._filled = 0
        while self._filled < len(self._content):
            view = memoryview(self._content)[self._filled : self._filled + self._CHUNK]
            got = self._read(view)
            if got is None:
                return None
            self._filled += got
        kind, where, _, count, attempt, _ = _HEADER.unpack(self._header)
        content, self._content, self._header = self._content, None, bytearray()
        if where & _IN_FILE:
            fd, self._fd = self._fd, -1
            return Lent(attempt, fd) if fd >= 0 else Message(kind, attempt, lost=NO_DESCRIPTOR)
        if not count:
            return Message(kind, attempt, content)
        return Message(kind, attempt, *unpack(memoryview(content), count))

    def _read(self, view: memoryview) -> int | None:
        try:
            if len(self._header) == _HEADER.size and self._header[1] & _IN_FILE:
                got = self._read_rights(view)
            else:
                got = self._socket.recv_into(view)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _BROKEN:
                raise ChannelClosed from error
            raise
        if got == 0:
            raise ChannelClosed
        return got

    def _read_rights(self, view: memoryview) -> int:
        got, ancillary, _, _ = self._socket.recvmsg_into(
            [view], socket.CMSG_SPACE(_DESCRIPTOR.size), _CLOEXEC
        )
        if ancillary:
            (self._fd,) = _DESCRIPTOR.unpack_from(ancillary[0][2])
        return got


def pair(*, packets: bool = HAVE_PACKETS) -> tuple[PacketChannel | StreamChannel, socket.socket]:
    """Return the pool's end and the socket that the worker's end is made from, by `attach`."""
    kind = socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    channel = PacketChannel if packets else StreamChannel
    return channel(ours, blocking=False), theirs


def attach(fd: int) -> PacketChannel | StreamChannel:
    """Return the worker's end over the inherited descriptor ``fd``."""
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    channel = PacketChannel if sock.type == socket.SOCK_SEQPACKET else StreamChannel
    return channel(sock, blocking=True)
