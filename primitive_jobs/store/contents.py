"""Results as bytes: a worker's pickle, unchanged, with its buffers; in the database or beside it.

From `LARGE` bytes on it is a file of its own in the folder beside the database, written under
another name and renamed before its row is written: so a row's file is whole, and a file without a
row is what a program left that was killed in between. `plain_of` makes JSON of a result that
consists of what JSON has; whoever looks at that unpickles nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import struct
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._wire.parcel import laid_out, unpack

LARGE = 128 * 1024  # bytes: as a file it takes 0.9 ms, in the database 2.1
_MOST_PLAIN = 64 * 1024  # bytes of a pickle that is looked at
_DRAFT = ".draft"
RESULT, CHECKPOINT = ".result", ".checkpoint"


class Content(NamedTuple):
    """A pickle and its buffers.

    Attributes:
        parts: The bytes, in order.
        buffers: How many buffers they hold.
    """

    parts: Sequence[bytes | memoryview]
    buffers: int

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts))


def content_of(body: bytes | bytearray | memoryview, buffers: Sequence[memoryview]) -> Content:
    """Return what is stored of a message."""
    whole = bytes(body) if isinstance(body, bytearray) else body
    flat = [buffer.cast("B") if buffer.nbytes else buffer for buffer in buffers]
    return Content(laid_out(bytes(whole), flat) if buffers else [whole], len(buffers))


def parts_of(content: bytes | bytearray, buffers: int) -> tuple[memoryview, list[memoryview]]:
    """Return body and buffers of stored content; `struct.error` where it is too short."""
    view = memoryview(content)
    return unpack(view, buffers) if buffers else (view, [])


# --- files ----------------------------------------------------------------------------------------


def write_file(folder: Path, name: str, parts: Iterable[bytes | memoryview]) -> None:
    """Make a file with this content appear as a whole, for good; raises OSError."""
    draft = folder / f"{name}.{uuid.uuid4().hex[:8]}{_DRAFT}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    _sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder appear for good, for its owner alone; raises OSError."""
    if not folder.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path: Path) -> bytearray:
    """Return what is in a file, in memory that may be written to; raises OSError."""
    with path.open("rb", buffering=0) as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        view = memoryview(content)
        while view:
            got = file.readinto(view)
            if not got:
                raise OSError(f"{path} got shorter while it was read")
            view = view[got:]
    return content


def new_name(key: str) -> str:
    """Return a name for the file of a point's result, which none before it has had."""
    return f"{key}-{uuid.uuid4().hex[:8]}{RESULT}"


def sweep_out(folder: Path, kept: set[str]) -> None:
    """Delete drafts, and results that no row names: what programs left that were killed."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name.endswith(_DRAFT) or (path.suffix == RESULT and path.name not in kept):
                with contextlib.suppress(OSError):
                    path.unlink()


# --- as JSON --------------------------------------------------------------------------------------

_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"}
_FORMATS |= {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


class _NoSuchPlace(Exception):
    """A pickle names what is not allowed."""


class _DType:
    """Stands for a numpy dtype, without numpy."""

    def __init__(self, code: str, *_: object) -> None:
        self.format = _FORMATS[code]
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.order = ">"


def _scalar(dtype: _DType, data: bytes) -> Any:
    """Stands for what makes a numpy scalar."""
    (value,) = struct.unpack(dtype.order + dtype.format, data)
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _Unpickler(pickle.Unpickler):
    """Runs no code but that above."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _NoSuchPlace from None


def plain_of(body: bytes | bytearray | memoryview) -> str | None:
    """Return a pickled result as JSON; None where it is not of what JSON has.

    Numpy's scalars come as Python's, tuples as lists. No code of anybody's runs.
    """
    if len(body) > _MOST_PLAIN:
        return None
    try:
        value = _Unpickler(io.BytesIO(body)).load()
        if not _is_plain(value):
            return None
        return json.dumps(value, separators=(",", ":"))
    except Exception:  # noqa: BLE001 - whatever a pickle that is something else leads to
        return None


def _is_plain(value: object) -> bool:
    """Whether JSON has it."""
    rest = [value]
    seen = 0
    while rest:
        seen += 1
        if seen > _MOST_PLAIN:  # it holds itself, perhaps
            return False
        each = rest.pop()
        kind = type(each)
        if kind in (dict, list, tuple):
            if kind is dict:
                if not all(type(key) is str for key in each):  # type: ignore[attr-defined]
                    return False
                each = each.values()  # type: ignore[attr-defined]
            rest += each  # type: ignore[arg-type]
        elif each is not None and kind not in (bool, int, float, str):
            return False
    return True


def strict(value: Any) -> Any:
    """Return plain data with None for numbers that JSON of others cannot read: NaN, infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [strict(each) for each in value]
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    return value


__all__ = [
    "CHECKPOINT",
    "LARGE",
    "RESULT",
    "Content",
    "content_of",
    "make_folder",
    "new_name",
    "parts_of",
    "plain_of",
    "read_file",
    "strict",
    "sweep_out",
    "write_file",
]
