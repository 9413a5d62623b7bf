"""A chunk of a `map`: many calls in one job. How its arguments and results travel; its loop.

Used on both sides of the channel, so it imports little. Every call's arguments and every result
are pickled on their own, at the moment they are there, over a layer of what the calls have in
common (see `layers`): so a call means the same whatever it shares a chunk with, also where an
iterable or a function hands out one buffer again and again; and what cannot be pickled costs no
neighbour anything. Numbers and short texts need none of that and go along as they are, a whole
chunk in one pickle; what was pickled on its own is `Packed` among them.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import os
from time import perf_counter

from . import serialize
from .layers import WHOLE, Reader, Writer, joined, state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeGuard

    from .layers import Packed, Part

    Row = tuple[Any, ...] | Packed  # the arguments of one call; or packed with the function
    Reply = tuple[list[Any], bytes | None, float, int, list[Part], bool | None]
    """Values of the calls made, in order; the exception that ended them, if one did (see
    `serialize.dump_exception`); seconds they took; bytes of the values that were pickled; the layer
    of these; whether a call has changed what it has in common with others, None: not known."""

KEPT, CHECKED, FRESH = 0, 1, 2
"""What becomes of the layer after a call: it stays; it stays if the first call has not changed it;
each call gets it anew."""
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


def run_chunk(
    function: Callable[..., object] | None,
    rows: list[Row],
    limit: float | None,
    _shared: object = None,
    first: int | None = None,
    parts: Sequence[tuple[int, Part]] = (),
    mode: int = KEPT,
) -> Reply:
    """In a worker: call ``function`` with each row; end early at an exception.

    Also after ``limit`` s, with the call that is being made then: whoever has the rows sees by the
    number of values which are left. Where the job has a key, ``first`` is the first call's number
    below it. ``parts`` are those of the layer, each with the row that it is there from.
    """
    pid = os.getpid()
    latest = float("inf") if limit is None else limit
    common = _Common(function, parts, mode)
    results = Writer()
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
            call, args = common.prepare(len(values), row)
            if first is not None:
                seeds.reseed()
            value = call(*args)
            if type(value) not in NUMBERS and not _is_plain(value):
                value, more = _pack_result(results, call, value)
                nbytes += more
            common.check()
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
        if now - start - common.checking >= latest:
            break
        before = now
    seconds = perf_counter() - start - common.checking
    return values, failure, seconds, nbytes, results.parts, common.moved


class _Common:
    """In a worker: what the calls of a chunk have in common, as each is to get it.

    Attributes:
        moved: Whether a call has changed it; None: nobody has looked.
        checking: Seconds that the looking took.
    """

    def __init__(
        self,
        function: Callable[..., object] | None,
        parts: Sequence[tuple[int, Part]],
        mode: int,
    ) -> None:
        self.moved: bool | None = None
        self.checking = 0.0
        self._parts = parts
        self._mode = mode
        self._function = function
        self._columns: Sequence[tuple[int, Any]] = ()
        self._values: list[Any] = []  # of the parts that are loaded
        self._reader = Reader()
        self._state: bytes | None = None  # before the call; None: it is not looked at

    def prepare(self, place: int, row: Row) -> tuple[Callable[..., object], tuple[Any, ...]]:
        """Return function and arguments of the next call."""
        try:
            if self._parts:
                self._load(place)
            if isinstance(row, tuple):
                args = row
            else:
                loaded: Any = self._reader.load(row)
                if is_whole(row):
                    return loaded[0], loaded[1]
                args = loaded
        except _Unfit:
            raise
        except Exception as error:  # noqa: BLE001 - whatever unpickling raises
            raise _Unfit(serialize.dump_unloadable(error)) from None
        if self._columns:
            several = list(args)
            for column, value in self._columns:
                several.insert(column, value)
            args = tuple(several)
        assert self._function is not None
        return self._function, args

    def _load(self, place: int) -> None:
        """Have the parts that belong to the next row."""
        if self._mode == FRESH and self._values:
            self._values = []
            self._reader = Reader()
        known = len(self._values)
        for since, part in self._parts[known:]:
            if since > place:
                break
            value = self._reader.add(part, copied=self._mode != KEPT)
            self._values.append(value)
            if value[0] is not None:
                self._function, self._columns = value[0]
        if self._mode == CHECKED and len(self._values) > known:
            start = perf_counter()
            self._state = state_of(self._values)
            if self._state is None:
                self._mode, self.moved = FRESH, True
            self.checking += perf_counter() - start

    def check(self) -> None:
        """After a call: has it changed what others are to get?"""
        if self._state is None:
            return
        start = perf_counter()
        self.moved = bool(self.moved) or state_of(self._values) != self._state
        if self.moved:
            self._mode = FRESH
        self._state = None
        self.checking += perf_counter() - start


def _is_plain(value: object) -> bool:
    return all_plain(value) if type(value) is tuple else all_plain((value,))


def _exit_if_forked(pid: int) -> None:
    """End a child that the call forked and let return: the other calls are not its to make."""
    if os.getpid() != pid:
        os._exit(0)


def is_whole(row: Packed) -> bool:
    """Whether the function is packed with the arguments."""
    return memoryview(row if isinstance(row, bytes) else row[0])[0] == WHOLE


class _Unfit(Exception):
    """Carries what `serialize` says of arguments or a result that cannot travel."""


def refused(error: Exception) -> Packed:
    """Return, in place of a row that cannot be pickled, one whose call raises the error."""
    return bytes((WHOLE,)) + serialize.dumps_whole(_Refused(serialize.dump_exception(error)))


class _Refused:
    def __init__(self, failure: bytes) -> None:
        self._failure = failure

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_unfit, (self._failure,)


def _raise_unfit(failure: bytes) -> None:
    raise _Unfit(failure)


def _pack_result(
    writer: Writer, function: Callable[..., object], value: object
) -> tuple[Packed, int]:
    try:
        packed = writer.dumps(value)
        if packed is None:
            body, buffers = serialize.dumps(value)
            return joined(bytes((WHOLE,)) + body, buffers)
    except Exception as error:  # noqa: BLE001 - whatever pickling raises
        name = serialize.call_name(function)
        raise _Unfit(serialize.dump_unpicklable_result(error, value, name)) from None
    return joined(*packed[:2])


def _dump_failure(error: BaseException) -> bytes:
    if type(error) is _Unfit:
        return error.args[0]  # type: ignore[no-any-return]
    return serialize.dump_exception(error, skip_frames=1)


class Unpacker:
    """Unpickles the results of a chunk, in the consumer's thread.

    Args:
        parts: The layer of the results.
        label: The mapping's name.
    """

    def __init__(self, parts: Sequence[Part], label: str) -> None:
        self._parts = parts
        self._label = label
        self._reader = Reader()
        self._loaded = 0

    def unpack(self, packed: Packed, place: int) -> Any:
        """Unpickle the ``place``-th result of the mapping.

        Raises:
            SerializationError: It cannot be unpickled here.
        """
        try:
            for part in self._parts[self._loaded :]:
                self._reader.add(part)
                self._loaded += 1
            return self._reader.load(packed)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            from .errors import SerializationError

            raise SerializationError(
                f"result {self._label}[{place}] cannot be unpickled here: "
                f"{serialize.one_line(error)}"
            ) from error
