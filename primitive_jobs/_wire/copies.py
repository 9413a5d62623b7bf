"""Buffers that several calls are given, each to have for itself, and that reach a worker once.

The pool sends the content as a file, ahead of the calls (`_engine.repeated`). The worker keeps its
descriptor and maps it for each call, privately: what nobody writes to is the very pages of the one
copy, and what a call writes to is that call's own.

Used on both sides of the channel.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref

from .._common.imported import imported
from . import pickling
from .messages import Lent
from .parcel import map_file, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .messages import Filed

LEAST = 1 << 20  # bytes; what is smaller is copied as fast as a file is made and sent for it


class Copies:
    """In a worker: gives out copies of a buffer to the calls of one job; it is what is pickled.

    A mapping that nobody has any more, and that nobody has written to, is given out again: to map
    40 MB anew and to read all of it takes three times as long, since each page has to be looked up.
    """

    __slots__ = ("__weakref__", "_number", "_spare")

    def __init__(self, number: int) -> None:
        self._number = number
        self._spare: memoryview | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Copies, (self._number,)

    def new(self, *, is_last: bool = True) -> memoryview:
        """Return a copy that nobody else has, and that can be written to.

        Args:
            is_last: Whether this job needs no other one after it.
        """
        data = pickling.received[self._number]
        if type(data) is not Kept:
            return memoryview(bytearray(data.buffers[0]))
        content, self._spare = self._spare, None
        if content is None:
            content = data.mapped()
        if content is None:
            return memoryview(bytearray(data.buffers[0]))
        numpy = None if is_last else imported("numpy")
        if numpy is not None:
            # What is made of the buffer keeps this alive, so that its end is theirs. The garbage
            # collector does not see it: that would tell its end before a __del__ brings it back.
            area = numpy.frombuffer(content, numpy.uint8)
            weakref.finalize(area, _take_back, weakref.ref(self), content).atexit = False
            content = memoryview(area)
        return unpack(content, len(data.buffers))[1][0]


def _take_back(owner: weakref.ref[Copies], content: memoryview) -> None:
    copies = owner()
    if copies is not None and is_unwritten(content):
        copies._spare = content


def address_of(buffer: memoryview) -> int | None:
    """Return where a buffer is in memory; None: numpy, which tells, is not imported."""
    numpy = imported("numpy")
    if numpy is None:
        return None
    array = numpy.frombuffer(buffer, dtype=numpy.uint8)
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def own(buffer: Any) -> memoryview:
    """Return what came in the place of a buffer, as a buffer."""
    return buffer.new() if type(buffer) is Copies else buffer


class Kept:
    """In a worker: a content as it came, with the descriptor of its file.

    Args:
        message: It has the file.
        out_of_reach: Moves a descriptor to where no job takes it for its own.

    Attributes:
        body: The pickle.
        buffers: The one buffer.
    """

    __slots__ = ("_file", "_identity", "_size", "body", "buffers")

    def __init__(self, message: Filed, out_of_reach: Callable[[int], int]) -> None:
        self.body = message.body
        self.buffers: Sequence[memoryview] = message.buffers
        self._size = message.file.size
        self._file: Lent | None = None
        with contextlib.suppress(OSError):  # no descriptor is free: its mapping will do
            file = Lent(message.attempt, out_of_reach(os.dup(message.file.fd)))
            self._identity = _identity(file.fd)
            self._file = file
        message.file.close()

    def mapped(self) -> memoryview | None:
        """Return the whole content, mapped for one user; None: the file cannot be mapped."""
        file = self._file
        with contextlib.suppress(OSError):
            # A job may have closed it, and the number is another file's then.
            if file is not None and _identity(file.fd) == self._identity:
                return map_file(file.fd, self._size, mmap.MAP_PRIVATE)
        return None


def is_unwritten(content: memoryview) -> bool:
    """Whether a private mapping of a file still has the file's own pages; False: or not known."""
    numpy, address = imported("numpy"), address_of(content)
    if numpy is None or address is None:
        return False
    first, count = address // mmap.PAGESIZE, -(-len(content) // mmap.PAGESIZE)
    try:
        # Opened each time: in a child that a job has forked it is another one.
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = os.pread(fd, count * 8, first * 8)
        finally:
            os.close(fd)
    except OSError:
        return False
    kinds = numpy.frombuffer(entries, numpy.uint64) >> numpy.uint64(61)
    return len(kinds) == count and bool(((kinds == _NOT_MAPPED) | (kinds == _OF_FILE)).all())


# The three highest bits: present, swapped, of a file. A page that was written to is of none.
_NOT_MAPPED, _OF_FILE = 0b000, 0b101


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
