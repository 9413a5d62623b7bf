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

from .messages import KEEP, Filed, Kind, Lent, Message
from .parcel import HAVE_PACKETS, INLINE_LIMIT, Content, Parcel, map_file, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SMALL = 4 * 1024  # bytes: up to here joining header and body costs less than sending two parts
_HEADER = struct.Struct("<BBHIQQ")  # kind, flags, extra, number of buffers, attempt, size
_IN_FILE = 1  # flag: the content is in the file whose descriptor came along
_NOTED = 2  # flag, in a stream: notes come before the content, and their length before them
_LENGTH = struct.Struct("<H")  # of these
MOST_NOTES = 4096  # bytes
_DESCRIPTOR = struct.Struct("i")
_LEND = int(Kind.LEND)
_RUN = int(Kind.RUN)
_RETURNED = int(Kind.RETURNED)
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


class ChannelClosed(Exception):
    """The other side is gone; every message it sent before has been received."""


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

    def send(
        self,
        kind: int,
        attempt: int = 0,
        content: Content | None = None,
        extra: int = 0,
        notes: bytes = b"",
    ) -> None:
        """Send one message.

        Raises:
            ChannelClosed: The other side is gone.
            OSError: It cannot be sent for another reason.
        """
        raise NotImplementedError

    def lend(self, attempt: int, fd: int, extra: int) -> None:
        """Send a descriptor, from the side that blocks; whatever interrupts that ends the link.

        ``extra`` says of what it is: see `messages.DATA`.

        Raises:
            ChannelClosed: The other side is gone.
            OSError: It cannot be sent for another reason.
        """
        header = _HEADER.pack(_LEND, _IN_FILE, extra, 0, attempt, len(_RIGHTS))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd))]
        send = self._socket.sendmsg
        try:
            # In one breath: no handler of a signal comes between the two, as a rule.
            list(map(send, ([header], [_RIGHTS]), ((), rights)))
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if isinstance(error, OSError) and error.errno in _BROKEN:
                raise ChannelClosed from error
            raise

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


def _joined(header: bytes, body: bytes | bytearray, notes: bytes) -> _Datagram:
    if notes:
        return header + body + notes
    return header + body if len(body) <= _SMALL else (header, body)


class PacketChannel(Channel):
    """One datagram is one message; a file's descriptor follows in a datagram of its own.

    Only for that one is ``recvmsg`` needed, which takes half as long again as ``recv``.
    """

    def __init__(self, sock: socket.socket, *, blocking: bool) -> None:
        super().__init__(sock, blocking=blocking)
        # What the kernel had no room for, as (datagram, parcel whose descriptor goes with it).
        self._outgoing: collections.deque[tuple[_Datagram, Parcel | None]] = collections.deque()
        self._buffer = bytearray(_HEADER.size + INLINE_LIMIT + MOST_NOTES)
        # Header and notes of a message whose file is to come.
        self._announced: bytes | None = None
        self._theirs: socket.socket | None = None  # the other end, where this is the pool's
        # The pool's side keeps those of results, which other jobs may be waiting for; a worker's
        # those that it is told to.
        self._is_pool = not blocking

    def keep(self, theirs: socket.socket) -> None:
        """Hold the other end open from now on, so that `take_back` can receive there."""
        theirs.setblocking(True)  # as the worker's; the program may have a default timeout
        self._theirs = theirs

    def take_back(self) -> list[int]:
        """Receive, in the other side's place, what that has not received; return whose it was.

        The kernel gives each datagram to one of the two. So the attempts that are returned were
        not received, and never will be; any other one was. To be called only where no file was
        sent since the other side has answered last: then what is there is jobs, which came as
        bytes, and orders without content, which are sent again.
        """
        assert self._theirs is not None, "the pool's end keeps the other one"
        found = [part if isinstance(part, bytes) else part[0] for part, _ in self._outgoing]
        self._outgoing.clear()
        self.wants_write = False
        received = []
        try:
            # It gives nothing, again and again, where the worker's job has shut it down.
            while header := self._theirs.recv(_HEADER.size, socket.MSG_DONTWAIT):
                received.append(header)
        except OSError:  # BlockingIOError, unless it is the end of it
            pass
        back = []
        for header in received + found:
            kind, _, _, _, attempt, _ = _HEADER.unpack_from(header)
            if kind == _RUN:
                back.append(attempt)
            else:
                self._post(header[: _HEADER.size])
        return back

    def close(self) -> None:
        super().close()
        if self._theirs is not None:
            self._theirs.close()

    def send(
        self,
        kind: int,
        attempt: int = 0,
        content: Content | None = None,
        extra: int = 0,
        notes: bytes = b"",
    ) -> None:
        try:
            if content is None:
                self._post(_HEADER.pack(kind, 0, extra, 0, attempt, 0) + notes)
            elif isinstance(content, Parcel):
                self._send_parcel(kind, attempt, content, extra, notes)
            else:
                header = _HEADER.pack(kind, 0, extra, 0, attempt, len(content))
                if not self._post(_joined(header, content, notes)):
                    self._send_file(kind, attempt, Parcel(content), extra, notes)
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

    def _send_parcel(
        self, kind: int, attempt: int, parcel: Parcel, extra: int, notes: bytes
    ) -> None:
        if parcel.fd < 0 and parcel.size <= INLINE_LIMIT:
            header = _HEADER.pack(kind, 0, extra, parcel.buffers, attempt, parcel.size)
            if self._post(_joined(header, parcel.data, notes)):
                return
        self._send_file(kind, attempt, parcel, extra, notes)

    def _send_file(self, kind: int, attempt: int, parcel: Parcel, extra: int, notes: bytes) -> None:
        parcel.file()  # it may fail: before anything is announced
        header = _HEADER.pack(kind, _IN_FILE, extra, parcel.buffers, attempt, parcel.size)
        self._post(header + notes)
        self._post(_RIGHTS, parcel)

    def receive(self) -> Message | None:
        try:
            if self._announced is not None:
                return self._receive_file(self._announced)
            length = self._socket.recv_into(self._buffer)
            if not length:
                raise ChannelClosed
            kind, where, extra, count, attempt, size = _HEADER.unpack_from(self._buffer)
            if where & _IN_FILE:
                self._announced = bytes(self._buffer[:length])
                return self._receive_file(self._announced)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _BROKEN:
                raise ChannelClosed from error
            raise
        end = _HEADER.size + size
        notes = bytes(self._buffer[end:length]) if length > end else b""
        if not size:
            return Message(kind, attempt, extra=extra, notes=notes)
        content = self._buffer[_HEADER.size : end]
        if not count:
            return Message(kind, attempt, content, (), None, extra, notes)
        return Message(kind, attempt, *unpack(memoryview(content), count), None, extra, notes)

    def _receive_file(self, announced: bytes) -> Message:
        kind, _, extra, count, attempt, size = _HEADER.unpack_from(announced)
        notes = announced[_HEADER.size :]
        while True:
            length, ancillary, _, _ = self._socket.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(_DESCRIPTOR.size), _CLOEXEC
            )
            if length == 0:
                raise ChannelClosed
            # Else a caller that was interrupted for long sends what its pool has sent for it.
            if length == len(_RIGHTS):
                break
            if self._theirs is not None:  # the pool's side: it would be an outcome
                raise ChannelClosed
        self._announced = None
        if not ancillary:  # MSG_CTRUNC: this process has no descriptor free
            return Message(kind, attempt, lost=NO_DESCRIPTOR, extra=extra, notes=notes)
        (fd,) = _DESCRIPTOR.unpack_from(ancillary[0][2])
        if kind == _LEND:
            return Lent(attempt, fd, extra)
        kept = -1
        try:
            content = map_file(fd, size, mmap.MAP_PRIVATE)
            if kind == _RETURNED if self._is_pool else notes == KEEP:
                kept = fd
        except OSError as error:
            lost = f"no memory to map its {size} bytes: {error}"
            return Message(kind, attempt, lost=lost, notes=notes)
        finally:
            if kept < 0:
                os.close(fd)
        body, buffers = unpack(content, count) if count else (content, [])
        if kept < 0:
            return Message(kind, attempt, body, buffers, None, extra, notes)
        message = Filed(kind, attempt, body, buffers, extra, notes)
        message.file = Parcel.owning(kept, size, count)
        return message


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

    def send(
        self,
        kind: int,
        attempt: int = 0,
        content: Content | None = None,
        extra: int = 0,
        notes: bytes = b"",
    ) -> None:
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
        told = _LENGTH.pack(len(notes)) + notes if notes else b""
        flags = _NOTED if notes else 0
        header = _HEADER.pack(kind, flags, extra, buffers, attempt, len(told) + len(data))
        self._outgoing.append(memoryview(header + told))
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
        kind, where, extra, count, attempt, _ = _HEADER.unpack(self._header)
        content, self._content, self._header = self._content, None, bytearray()
        if where & _IN_FILE:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return Message(kind, attempt, lost=NO_DESCRIPTOR, extra=extra)
            return Lent(attempt, fd, extra)
        notes = b""
        if where & _NOTED:
            end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
            notes, content = bytes(content[_LENGTH.size : end]), content[end:]
        if not count:
            return Message(kind, attempt, content, (), None, extra, notes)
        return Message(kind, attempt, *unpack(memoryview(content), count), None, extra, notes)

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
