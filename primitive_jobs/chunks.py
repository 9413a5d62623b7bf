"""A chunk of a `map`: many calls in one job. How its arguments and results travel; its loop.

Used on both sides of the channel, so it imports little. Every call's arguments and every result
are pickled on their own, at the moment they are there: so a call means the same whatever it shares
a chunk with, also where an iterable or a function hands out one buffer again and again; and what
cannot be pickled costs no neighbour anything. Numbers and short texts need none of that and go
along as they are, a whole chunk in one pickle; what was pickled on its own is `Packed` among them.
"""

from __future__ import annotations

import _pickle as pickle
import _signal as signal  # type: ignore[import-not-found]
import os
from time import perf_counter

from . import serialize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeGuard

    Packed = (
        bytes | list[Any]
    )  # a pickle's body; if it is large or has buffers, a list of all these
    Row = tuple[Any, ...] | Packed  # the arguments of one call
    Reply = tuple[list[Any], bytes | None, float, int]
    """Values of the calls made, in order; the exception that ended them, if one did (see
    `serialize.dump_exception`); seconds they took; bytes of the values that were pickled."""

NUMBERS = frozenset({type(None), bool, int, float, complex})
_SHORT = 1024  # characters; a longer text is worth a pickle of its own, whose size is known
_FORK_TIME = 20e-6  # s that a fork of a Python process takes at the very least
_SIGTERM_EXIT = 128 + signal.SIGTERM  # how a worker's SystemExit on SIGTERM is known


def all_plain(values: Iterable[object]) -> bool:
    """Whether all are immutable, small, and certain to survive a pickling."""
    for value in values:
        kind = type(value)
        if kind in NUMBERS:
            continue
        if kind is not str or len(value) > _SHORT:  # type: ignore[arg-type]
            return False
    return True


def is_packed(value: Any) -> TypeGuard[Packed]:
    """Whether a value of a chunk was pickled on its own."""
    return type(value) is bytes or type(value) is list


def pack_row(
    packer: serialize.Packer, row: tuple[Any, ...], *, copied: bool
) -> tuple[Packed, int, tuple[Any, ...]]:
    """Pickle the arguments of one call; return that, its bytes, and the shared data in it.

    ``copied``: the caller may change large buffers before the chunk is sent.
    """
    body, buffers, shared = packer.dumps(row)
    packed, nbytes = _packed(body, buffers, copied=copied)
    return packed, nbytes, shared


def _packed(body: bytes, buffers: list[memoryview], *, copied: bool) -> tuple[Packed, int]:
    """Join a pickle's parts; ``copied``: whatever happens to the original's buffers from now on.

    Large parts get past the pickling of the whole chunk without another copy.
    """
    if not buffers and len(body) < serialize.OUT_OF_BAND:
        return body, len(body)
    nbytes = len(body) + sum(buffer.nbytes for buffer in buffers)
    views = [pickle.PickleBuffer(bytearray(b) if copied else b) for b in buffers]
    return [pickle.PickleBuffer(body), *views], nbytes


def run_chunk(
    function: Callable[..., object],
    rows: list[Row],
    limit: float | None,
    _shared: object = None,
    first: int | None = None,
) -> Reply:
    """In a worker: call ``function`` with each row; end early at an exception.

    Also after ``limit`` s, with the call that is being made then: whoever has the rows sees by the
    number of values which are left. Where the job has a key, ``first`` is the first call's number
    below it.
    """
    pid = os.getpid()
    latest = float("inf") if limit is None else limit
    copied = len(rows) > 1  # the next call may make use of the same buffers
    packer: serialize.Packer | None = None
    values: list[Any] = []
    failure = None
    nbytes = 0
    seeds: Any = None
    if first is not None:
        from . import randomness as seeds  # which unseeded pools do without
    start = before = perf_counter()
    for row in rows:
        try:
            if first is not None:
                seeds.enter_call(first + len(values))
            if not isinstance(row, tuple):
                row = _load_row(row)
                if first is not None:
                    seeds.reseed()
            value = function(*row)
            if type(value) not in NUMBERS and not _is_plain(value):
                packer = packer or serialize.Packer()
                value, more = _pack_result(packer, function, value, copied=copied)
                nbytes += more
        except BaseException as error:
            _exit_if_forked(pid)
            if type(error) is SystemExit and error.code == _SIGTERM_EXIT:
                raise  # the whole job is told to end
            failure = _dump_failure(error)
            break
        values.append(value)
        now = perf_counter()
        if now - before > _FORK_TIME:
            _exit_if_forked(pid)
        if now - start >= latest:
            break
        before = now
    return values, failure, perf_counter() - start, nbytes


def _is_plain(value: object) -> bool:
    return all_plain(value) if type(value) is tuple else all_plain((value,))


def _exit_if_forked(pid: int) -> None:
    """End a child that the call forked and let return: the other calls are not its to make."""
    if os.getpid() != pid:
        os._exit(0)


class _Unfit(Exception):
    """Carries what `serialize` says of arguments or a result that cannot travel."""


def _load_row(row: Packed) -> tuple[Any, ...]:
    try:
        return serialize.loads(*_parts(row))  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - whatever unpickling raises
        raise _Unfit(serialize.dump_unloadable(error)) from None


def _pack_result(
    packer: serialize.Packer, function: Callable[..., object], value: object, *, copied: bool
) -> tuple[Packed, int]:
    try:
        body, buffers, _ = packer.dumps(value)
    except Exception as error:  # noqa: BLE001 - whatever pickling raises
        name = serialize.call_name(function)
        raise _Unfit(serialize.dump_unpicklable_result(error, value, name)) from None
    return _packed(body, buffers, copied=copied)


def _dump_failure(error: BaseException) -> bytes:
    if type(error) is _Unfit:
        return error.args[0]  # type: ignore[no-any-return]
    return serialize.dump_exception(error, skip_frames=1)


def unpack_result(packed: Packed, label: str, place: int) -> Any:
    """Unpickle the ``place``-th result of the mapping named ``label``, in the consumer's thread.

    Raises:
        SerializationError: It cannot be unpickled here.
    """
    try:
        return serialize.loads(*_parts(packed))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        from .errors import SerializationError

        raise SerializationError(
            f"result {label}[{place}] cannot be unpickled here: {serialize.one_line(error)}"
        ) from error


def _parts(packed: Packed) -> tuple[serialize.Body, list[memoryview]]:
    return (packed, []) if isinstance(packed, bytes) else (packed[0], packed[1:])
