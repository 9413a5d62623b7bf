"""A chunk of a `map`: many calls in one job. How its arguments and results travel; its loop.

Used on both sides of the channel, so it imports little. Every call's arguments and every result
are pickled on their own, at the moment they are there, over a layer of what the calls have in
common (see `layers`): so a call means the same whatever it shares a chunk with, also where an
iterable or a function hands out one buffer again and again; and what cannot be pickled costs no
neighbour anything. Numbers and short texts need none of that and go along as they are, a whole
chunk in one pickle; what was pickled on its own is `Packed` among them.
"""

from __future__ import annotations

import _pickle as pickle
import _signal as signal  # type: ignore[import-not-found]
import os
from time import perf_counter

from .._common import naming
from . import failures, pickling
from .layers import WHOLE, Reader, Writer, joined, state_of
from .leftovers import after_call
from .present import now as the_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeGuard

    from .layers import Packed, Part

    Row = tuple[Any, ...] | Packed  # the arguments of one call; or packed with the function
    Reply = tuple[list[Any], bytes | None, float, int, list[Part], bool | None]
    """Values of the calls made, in order; the exception that ended them, if one did (see
    `failures.dump_exception`); seconds they took; bytes of the values that were pickled; the layer
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
    run: int | None = None,
    *,
    packed: bool = False,
) -> Any:
    """In a worker: call ``function`` with each row; end early at an exception.

    Also after ``limit`` s, with the call that is being made then: whoever has the rows sees by the
    number of values which are left. Where the job has a key, ``first`` is the first call's number
    below it. ``parts`` are those of the layer, each with the row that it is there from; ``run``
    is the number of the mapping. The `Reply` is ``packed`` where it has no buffers of its own: then
    it needs no cloudpickle.
    """
    pid, latest = os.getpid(), float("inf") if limit is None else limit
    common = Common(function, parts, mode, run)
    results = Results(alone=len(rows) == 1)
    values: list[Any] = []
    failure = None
    seeds: Any = None
    if first is not None:
        from . import seeding as seeds  # which unseeded pools do without
    start = before = perf_counter()
    for row in rows:
        try:
            if first is not None:
                seeds.enter_call(first + len(values))
            call = common.steady
            if call is None or type(row) is not tuple:
                call, row = common.prepare(len(values), row)
                if first is not None:
                    seeds.reseed()
            the_job.call = len(values)
            value = call(*row)
            if type(value) not in NUMBERS and not is_plain(value):
                value = results.pack(call, value)
            if common.state is not None:
                common.check()
            after_call()
        except BaseException as error:  # noqa: BLE001 - it is the call's
            failure = _dump_failure(error, pid)
            break
        values.append(value)
        now = perf_counter()
        if now - before > _FORK_TIME:
            exit_if_forked(pid)
        if now - start - common.aside - results.aside >= latest:
            break
        before = now
    seconds = perf_counter() - start - common.aside - results.aside
    reply: Reply = values, failure, seconds, results.nbytes, results.parts, common.moved
    return pickle.dumps(reply, 5) if packed and not results.large else reply


def run_packed(packed: bytes) -> Any:
    """Do as `run_chunk`, whose arguments are packed."""
    try:
        args = pickle.loads(packed)
    except Exception as error:  # noqa: BLE001 - whatever the import of the function's module raises
        reply: Reply = [], failures.dump_unloadable(error), 0.0, 0, [], None
        return reply
    return run_chunk(*args, packed=True)


def reply_of(result: Reply | bytes) -> Reply:
    """Return the reply in what a job has returned."""
    return pickle.loads(result) if isinstance(result, bytes) else result


class Common:
    """In a worker: what the calls of a chunk have in common, as each is to get it.

    Attributes:
        steady: What to call, where `prepare` has nothing to do for arguments that were not packed.
        state: What is to be checked after the call, None: nothing.
        moved: Whether a call has changed what is common; None: nobody has looked.
        aside: Seconds that went into what is done once for a chunk.
    """

    def __init__(
        self,
        function: Callable[..., object] | None,
        parts: Sequence[tuple[int, Part]],
        mode: int,
        run: int | None,
    ) -> None:
        self._run = run
        self.steady = function if not parts else None
        self.state: bytes | None = None
        self.moved: bool | None = None
        self.aside = 0.0
        self._parts = parts
        self._mode = mode
        self._function = function
        self._columns: Sequence[tuple[int, Any]] = ()
        self._values: list[Any] = []  # of the parts that are loaded
        self._reader = Reader()

    def prepare(self, place: int, row: Row) -> tuple[Callable[..., object], tuple[Any, ...]]:
        """Return function and arguments of the next call."""
        try:
            if self.steady is None and self._parts:
                self._load(place)
            if isinstance(row, tuple):
                args = row
            else:
                args = self._reader.load(row)
                if is_whole(row):
                    return args[0], args[1]
        except Unfit:
            raise
        except Exception as error:  # noqa: BLE001 - whatever unpickling raises
            raise Unfit(failures.dump_unloadable(error)) from None
        if self._columns:
            several = list(args)
            for column, value in self._columns:
                several.insert(column, value)
            args = tuple(several)
        assert self._function is not None
        return self._function, args

    def _load(self, place: int) -> None:
        """Have the parts that belong to the next row."""
        if self._mode != FRESH and len(self._values) == len(self._parts):
            return
        start = perf_counter()
        if self._mode == FRESH:
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
        if self._mode == CHECKED and len(self._values) > known and _unchanged != self._checking():
            self.state = state_of(self._values)
            if self.state is None:
                self._mode, self.moved = FRESH, True
        if self._mode != FRESH:  # else it is each call's
            self.aside += perf_counter() - start
        self._settle()

    def _checking(self) -> tuple[int | None, int]:
        """What the check is about: the mapping's function, and so many classes."""
        return self._run, sum(len(classes) for _, classes in self._values)

    def check(self) -> None:
        """After a call: has it changed what others are to get?"""
        global _unchanged
        start = perf_counter()
        self.moved = bool(self.moved) or state_of(self._values) != self.state
        if self.moved:
            self._mode = FRESH
        elif self._run is not None:
            _unchanged = self._checking()
        self.state = None
        self._settle()
        self.aside += perf_counter() - start

    def _settle(self) -> None:
        more = self._columns or self._mode == FRESH or len(self._values) < len(self._parts)
        self.steady = None if more else self._function


class Results:
    """In a worker: packs what the calls return, each when it is there.

    Args:
        alone: There is one call only.

    Attributes:
        nbytes: Of all that was packed.
        aside: As that of `Common`.
    """

    def __init__(self, *, alone: bool) -> None:
        self.nbytes = 0
        self.aside = 0.0
        self._alone = alone
        self._large = False
        self._writer: Writer | None = None

    @property
    def parts(self) -> list[Part]:
        """The layer of definitions that the results have in common."""
        return [] if self._writer is None else self._writer.parts

    @property
    def large(self) -> bool:
        """Whether there are buffers in what is packed."""
        return self._large or any(type(part) is list for _, _, part in self.parts)

    def pack(self, function: Callable[..., object], value: object) -> Packed:
        try:
            body, buffers = self._pickled(value)
        except Exception as error:  # noqa: BLE001 - whatever pickling raises
            name = naming.call_name(function)
            raise Unfit(failures.dump_unpicklable_result(error, value, name)) from None
        if not buffers and len(body) < pickling.OUT_OF_BAND:
            self.nbytes += len(body)
            return body
        self._large = True
        # The next call may make use of the same buffers.
        packed, nbytes = joined(body, buffers, copied=not self._alone)
        self.nbytes += nbytes
        return packed

    def _pickled(self, value: object) -> tuple[bytes, list[memoryview]]:
        if not self._alone:
            writer = self._writer = self._writer or Writer()
            known = len(writer.parts)
            start = perf_counter()
            packed = writer.dumps(value)
            if len(writer.parts) > known:
                self.aside += perf_counter() - start
            if packed is not None:
                return packed[0], packed[1]
        body, buffers = pickling.dumps(value)
        return body + bytes((WHOLE,)), buffers


def is_plain(value: object) -> bool:
    return all_plain(value) if type(value) is tuple else all_plain((value,))


def exit_if_forked(pid: int) -> None:
    """End a child that the call forked and let return: the other calls are not its to make."""
    if os.getpid() != pid:
        os._exit(0)


_unchanged: tuple[int | None, int] | None = None
"""In a worker: the last layer that its first call has left as it was. Several chunks are under way
before the first reply, and each would look at it twice."""


def is_whole(row: Packed) -> bool:
    """Whether the function is packed with the arguments."""
    return (row if isinstance(row, bytes) else memoryview(row[0]))[-1] == WHOLE


class Unfit(Exception):
    """Carries what `pickling` says of arguments or a result that cannot travel."""


def refused(error: Exception) -> Packed:
    """Return, in place of a row that cannot be pickled, one whose call raises the error."""
    return pickling.dumps_whole(_Refused(failures.dump_exception(error))) + bytes((WHOLE,))


class _Refused:
    def __init__(self, failure: bytes) -> None:
        self._failure = failure

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_unfit, (self._failure,)


def _raise_unfit(failure: bytes) -> None:
    raise Unfit(failure)


def _dump_failure(error: BaseException, pid: int) -> bytes:
    exit_if_forked(pid)
    if type(error) is SystemExit and error.code == _SIGTERM_EXIT:
        raise error  # the whole job is told to end
    if type(error) is Unfit:
        return error.args[0]  # type: ignore[no-any-return]
    about = the_job.about
    if about is not None and len(about) > 2 and "retry_on" in about[2]:
        from . import retrying  # which most jobs do without

        if retrying.counts(error):
            raise error  # it is the only call: the whole job is tried again
    return failures.dump_exception(error, skip_frames=1)


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
            from ..errors import SerializationError

            raise SerializationError(
                f"result {self._label}[{place}] cannot be unpickled here: {naming.one_line(error)}"
            ) from error
