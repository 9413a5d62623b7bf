"""`Checkpoint`: what a job wanted kept, where the pool's process holds it.

While the job runs that is one of two files which its worker writes in turn: so whoever reads one
looks afterwards whether it is still what the worker's page says (`traces`). Once the job is over
nobody writes there any more. What is short is held as bytes then, so that it costs no descriptor.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from .._wire import pickling
from .._wire.messages import Lent
from .._wire.parcel import INLINE_LIMIT, Parcel, unpack

_NOTED = struct.Struct("QQQQQQ")  # `notes.CHECKPOINT` without the number at the end


class Header(NamedTuple):
    """What a worker has noted of a checkpoint.

    Attributes:
        number: Grows from one to the next of a worker.
        attempt: Whose it is.
        call: Which call of a chunk has made it; 0 where the job is one call.
        size: Its bytes.
        buffers: How many buffers they hold.
        held: Bytes that all files of the attempt hold.
    """

    number: int
    attempt: int
    call: int
    size: int
    buffers: int
    held: int

    @property
    def slot(self) -> int:
        """In which of the two files it is."""
        return self.number & 1


def header_of(noted: bytes) -> Header:
    """Return what a worker has noted; raises `struct.error` where that is nothing of the kind."""
    return Header(*_NOTED.unpack(noted))


class Checkpoint:
    """One that nobody changes any more.

    Args:
        call: Which call of a chunk has made it.
        buffers: How many buffers its content holds.
        content: The content, or a descriptor of the file that begins with it.
        size: Bytes of that.
    """

    __slots__ = ("_buffers", "_content", "_size", "call")

    def __init__(
        self, call: int, buffers: int, content: bytes | bytearray | Lent, size: int
    ) -> None:
        self.call = call
        self._buffers = buffers
        self._content = content
        self._size = size

    def load(self) -> Any:
        """Return what the job wanted kept, made anew; raises whatever the unpickling does."""
        return loaded(self.to_bytes(), self._buffers)

    def parcel(self) -> Parcel:
        """Return it ready to be sent to another worker; raises OSError."""
        content = self._content
        if isinstance(content, Lent):
            return Parcel.of_file(content.fd, self._size, self._buffers)
        return Parcel.of_packed(content, self._buffers)

    def to_bytes(self) -> bytes | bytearray:
        """Return its content; raises OSError."""
        content = self._content
        return read(content.fd, self._size) if isinstance(content, Lent) else content

    @property
    def buffers(self) -> int:
        """How many buffers the content holds."""
        return self._buffers


def kept(header: Header, file: Lent) -> Checkpoint:
    """Return the checkpoint in a file that nobody writes any more; raises OSError."""
    if header.size > INLINE_LIMIT:
        return Checkpoint(header.call, header.buffers, file, header.size)
    return Checkpoint(header.call, header.buffers, bytes(read(file.fd, header.size)), header.size)


def read(fd: int, size: int) -> bytearray:
    """Return so many bytes from a file's beginning; raises OSError where it has fewer."""
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        got = os.preadv(fd, [view[done:]], done)
        if not got:
            raise OSError(f"a checkpoint of {size} bytes has {done}")
        done += got
    return content


def loaded(content: bytes | bytearray, buffers: int) -> Any:
    """Return the object in a checkpoint's content."""
    if buffers:
        return pickling.loads(*unpack(memoryview(content), buffers))[1]
    return pickling.loads(content)[1]


__all__ = ["Checkpoint", "Header", "header_of", "kept", "loaded", "read"]
