"""`Parcel`: what a message carries, ready to be sent; and nameless files, where it is large."""

from __future__ import annotations

import _socket as socket  # all that is needed here, without what `socket` imports
import contextlib
import errno
import fcntl
import mmap
import os
import struct
import sys
import weakref

from .messages import REFUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

INLINE_LIMIT = 128 * 1024  # bytes: 64 KB take 6.5 us inline and 55 us through a memfd
_ALIGNMENT = 64  # bytes, of each out-of-band buffer: a cache line, and what SIMD code likes


def seal(fd: int) -> None:
    """Keep a nameless file that was made for it from getting shorter; raises OSError.

    Whoever reads a page of a mapping that is not there any more gets SIGBUS.
    """
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def _has_packets() -> bool:
    """Whether the system has what `PacketChannel` needs; Python may have what a sandbox refuses."""
    try:
        fd = os.memfd_create("primitive_jobs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            seal(fd)
        finally:
            os.close(fd)
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.close()
    except AttributeError:
        return False
    except OSError as error:  # no descriptor, or no memory, is free now: that passes
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return True


HAVE_PACKETS = _has_packets()


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
        parts = laid_out(body, buffers) if buffers else [body]
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

    @classmethod
    def of_file(cls, fd: int, size: int, buffers: int) -> Parcel:
        """One whose content is there, in a file from its beginning; it holds a duplicate."""
        parcel = cls.of_descriptor(fd)
        parcel.buffers, parcel.size = buffers, size
        return parcel

    @classmethod
    def owning(cls, fd: int, size: int, buffers: int) -> Parcel:
        """The same, but the descriptor is its own from now on."""
        parcel = cls(b"", to_file=False)
        parcel._fds.append(fd)
        parcel.buffers, parcel.size = buffers, size
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

    def copy(self) -> Parcel:
        """The same content in a parcel of its own, which refers to the same; raises OSError."""
        if self.fd >= 0:
            copy = Parcel.of_file(self.fd, self.size, self.buffers)
        else:
            copy = Parcel.of_packed(self.data, self.buffers)
        copy.refers_to = self.refers_to
        return copy

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


def laid_out(body: bytes, buffers: Sequence[memoryview]) -> list[bytes | memoryview]:
    """Return table of lengths, body, buffers; each buffer at a multiple of `_ALIGNMENT`."""
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


def _make_file(name: str, owner: list[int], flags: int = 0) -> None:
    try:
        # In one breath: no interrupt comes between the two.
        owner.extend(map(os.memfd_create, (name,), (os.MFD_CLOEXEC | flags,)))
        return
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in REFUSED:
            raise
    import tempfile

    with tempfile.TemporaryFile() as file:
        owner.append(os.dup(file.fileno()))


def nameless_file(name: str, *, sealable: bool = False) -> int:
    """A descriptor of a file that nobody else can open, and that is gone with its last one."""
    owner: list[int] = []
    _make_file(name, owner, os.MFD_ALLOW_SEALING if sealable and HAVE_PACKETS else 0)
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
