"""Checkpoints of stored jobs, as files beside the database: they outlive the program.

The program has the checkpoints of its jobs in memory, whatever kind of pool they run in. The
writer's thread copies those that are new here, about once a second for each running job, and the
last one of a job that ends without a result. The next program has the job `resume` from there.

A file begins with the checkpoint as a worker has sent it, so that it can be lent to a worker as it
is; what has to be known of it stands behind that.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from pathlib import Path

from .._wire.messages import Lent
from .._wire.parcel import INLINE_LIMIT
from ..insight.salvage import Checkpoint
from .contents import CHECKPOINT, write_file

_PAUSE = 1.0  # s between two copies of a job's
_SHARE = 0.05  # of the time, at most, that copies of a job's may take
_MAGIC = b"pjstchk1"
_END = struct.Struct("<H8sQQI16s")  # size of the name, magic, size, buffers, CRC-32, code
_LONGEST = 1000  # bytes of a function's name
_CHUNK = 1 << 20  # bytes that are read at a time


def _place(folder: Path, key: str) -> Path:
    return folder / f"{key}{CHECKPOINT}"


def write(folder: Path, key: str, name: str, code: str, checkpoint: Checkpoint) -> None:
    """Keep a point's checkpoint, in the place of an earlier one; raises OSError."""
    content = checkpoint.to_bytes()
    told = name.encode("utf-8", "replace")[:_LONGEST]
    checksum = zlib.crc32(content)
    end = _END.pack(len(told), _MAGIC, len(content), checkpoint.buffers, checksum, _tag(code))
    write_file(folder, f"{key}{CHECKPOINT}", [memoryview(content), told, end])


def read(folder: Path, key: str, code: str) -> Checkpoint | None:
    """Return a point's checkpoint; None: there is none, it is damaged, or of another code."""
    try:
        fd = os.open(_place(folder, key), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    lent = Lent(0, fd)  # which closes it
    with contextlib.suppress(OSError, struct.error):
        _, size, buffers, checksum, tag = _end_of(fd)
        if tag != _tag(code) or _checksum(fd, size) != checksum:
            return None
        if size > INLINE_LIMIT:
            return Checkpoint(0, buffers, lent, size)
        return Checkpoint(0, buffers, os.pread(fd, size, 0), size)
    return None


def _end_of(fd: int) -> tuple[bytes, int, int, int, bytes]:
    """Name, size, buffers, checksum and code; `struct.error` where it is no checkpoint."""
    whole = os.fstat(fd).st_size
    place = max(0, whole - _END.size)
    length, magic, size, buffers, checksum, tag = _END.unpack(os.pread(fd, _END.size, place))
    if magic != _MAGIC or size + length != place:
        raise struct.error("it is no checkpoint")
    return os.pread(fd, length, size), size, buffers, checksum, tag


def of_function(folder: Path, name: str) -> list[str]:
    """Return the keys of the points of a function that have one."""
    told = name.encode("utf-8", "replace")[:_LONGEST]
    found = []
    for key in listed(folder):
        with contextlib.suppress(OSError, struct.error):
            lent = Lent(0, os.open(_place(folder, key), os.O_RDONLY | os.O_CLOEXEC))
            if _end_of(lent.fd)[0] == told:
                found.append(key)
    return found


def listed(folder: Path) -> set[str]:
    """Return the keys of the points that have one."""
    with contextlib.suppress(FileNotFoundError):
        names = (path.name for path in folder.iterdir())
        return {name.removesuffix(CHECKPOINT) for name in names if name.endswith(CHECKPOINT)}
    return set()


def forget(folder: Path, key: str) -> None:
    """Delete a point's checkpoint, if there is one."""
    with contextlib.suppress(OSError):
        _place(folder, key).unlink()


def _tag(code: str) -> bytes:
    return bytes.fromhex(code)[:16].ljust(16, b"\0")


def _checksum(fd: int, size: int) -> int:
    checksum, place = 0, 0
    while place < size:
        chunk = os.pread(fd, min(_CHUNK, size - place), place)
        if not chunk:
            return -1
        checksum, place = zlib.crc32(chunk, checksum), place + len(chunk)
    return checksum


class Pace:
    """When the next copy of a job's checkpoint is due; the writer's thread uses it.

    Attributes:
        last: What tells the checkpoint that was copied last from others.
    """

    __slots__ = ("_not_before", "_of", "last")

    def __init__(self) -> None:
        self.last: object = None
        self._of: object = None
        self._not_before = time.monotonic() + _PAUSE

    def is_due(self, attempt: object) -> bool:
        """Whether that of an attempt may be looked at."""
        if attempt != self._of:
            self._of, self.last = attempt, None
        return time.monotonic() >= self._not_before

    def spent(self, seconds: float) -> None:
        """A copy, or a look, took so long."""
        self._not_before = time.monotonic() + max(_PAUSE, seconds / _SHARE)


__all__ = ["Pace", "forget", "listed", "of_function", "read", "write"]
