"""The arguments of many calls on their way into jobs: chunk by chunk, each as if submitted alone.

A chunk pickles once what its calls have in common: the function, and what `itertools.repeat` gives
to each of them. Every row is pickled over that as soon as it is there (see `layers`). Where that
would not mean what one pickle of function and row means, since somebody changes the function's
state meanwhile, or a function comes with the row, it is one pickle of both.
"""

from __future__ import annotations

import itertools
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._common.naming import call_name
from ..errors import SerializationError
from .calls import dump_call
from .chunk import all_plain, refused, run_chunk, run_packed
from .layers import WHOLE, Writer, is_importable, joined, parted, same
from .pickling import OUT_OF_BAND, dumps_referring, handle_types

if TYPE_CHECKING:
    from .chunk import Row
    from .layers import Packed, Part

# Iterators that run no code of the user's: so nothing changes while rows are taken from them.
_QUIET_ONES: tuple[Iterable[Any], ...] = (
    [], (), {}, {}.values(), {}.items(), set(), "", b"", range(0), range(1 << 70)
)  # fmt: skip
_QUIET = {type(iter(one)) for one in _QUIET_ONES} | {itertools.repeat, itertools.count}


class Need:
    """Among the arguments of a chunk's job: has it refer to shared data that packed rows need."""

    __slots__ = ("source",)

    def __init__(self, source: Any) -> None:
        self.source = source


handle_types[Need] = lambda need: (need.source.number, need.source)


class Rows(NamedTuple):
    """The arguments of consecutive calls, from the ``start``-th on.

    Attributes:
        start: The number of the first call.
        function: What is called; None: it is in the parts, or in the rows.
        rows: Each as `run_chunk` takes it.
        needs: The shared data that they, or the parts, refer to.
        parts: Of the layer, each with the row that it is there from.
        classes: How many classes of the program were known by then, see `RowPacker`.
        run: The packer's number.
        small: Whether Python's own pickle takes all of that, since it has no buffers of its own.
    """

    start: int
    function: Callable[..., Any] | None
    rows: list[Row]
    needs: tuple[Need, ...] = ()
    parts: Sequence[tuple[int, Part]] = ()
    classes: int = 0
    run: int = 0
    small: bool = False

    def without(self, count: int) -> Rows:
        """Return all but the first ``count``."""
        parts = [(max(0, place - count), part) for place, part in self.parts]
        return self._replace(start=self.start + count, rows=self.rows[count:], parts=parts)

    def call(
        self, limit: float | None, first: int | None, mode: int
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the job's function and arguments: those of `run_chunk`, packed if they are small.

        What is packed needs no cloudpickle, neither here nor for the answer.
        """
        args = self.function, self.rows, limit, self.needs, first, self.parts, mode, self.run
        if not self.small:
            return run_chunk, args
        return run_packed, (pickle.dumps(args, 5),)

    def first(self, count: int) -> Rows:
        """Return the first ``count``."""
        parts = [(place, part) for place, part in self.parts if place < count]
        return self._replace(rows=self.rows[:count], parts=parts)


_numbers = itertools.count(1)


class RowPacker:
    """Packs the calls of one function, chunk by chunk, in the thread that takes their arguments.

    Args:
        function: What is called.
        columns: The iterators that the arguments come from.

    Attributes:
        number: Unique in this process.
        quiet: Whether no code of the user's runs when items are taken.
        classes: Definitions of the program that came with arguments: in every layer from then on.
        learned: Set when one more is known.
        repeated: The columns whose one value is in the layer; known with the first row.
        moving: Whether somebody changes what is in the layer, so that there is none any more.
        packed: Rows, but for those that are pickled with their jobs.
        last: The layer of the last chunk, where somebody may change what is in it.
    """

    def __init__(self, function: Callable[..., Any], columns: Sequence[Iterator[Any]]) -> None:
        self.number = next(_numbers)
        self.function = function
        self.quiet = all(type(column) in _QUIET for column in columns)
        self.columns = [i for i, column in enumerate(columns) if type(column) is itertools.repeat]
        self.classes: dict[type, None] = {}
        self.learned = False
        self.repeated: list[int] | None = None
        self.moving = False
        self.packed = 0
        self.last: Packed | None = None
        self._by_name = is_by_name(function)

    def chunk(self, *, alone: bool = False, seeded: bool = False) -> ChunkPacker:
        """Begin a chunk.

        ``alone``: it is of one call only, which is pickled with the job, in one pickle; but in a
        ``seeded`` pool it is pickled here, since it is to be unpickled under the seed of the call.
        """
        return ChunkPacker(self, alone=alone, seeded=seeded)

    @property
    def direct(self) -> bool:
        """Whether the function travels with the job: by its name, and alone."""
        return self._by_name and not self.repeated


class ChunkPacker:
    """Packs one chunk's rows: see `RowPacker`.

    Attributes:
        rows: Those so far.
    """

    def __init__(self, run: RowPacker, *, alone: bool, seeded: bool) -> None:
        self.rows: list[Row] = []
        self._run = run
        self._with_job = alone and not seeded
        self._whole = alone and seeded
        self._sources: list[Any] = []
        self._large = False  # whether a row has buffers of its own
        self._begun = False
        self._watched = not run.quiet  # whether somebody may change what is common
        self._writer: Writer | None = None
        self._places: list[int] = []  # of the parts: the row that each is there from

    def add(self, row: tuple[Any, ...], *, plain: bool) -> int:
        """Pack the arguments of one more call; return their bytes.

        ``plain``: they are numbers and short texts. Whatever the pickling raises, raises; then it
        is as if it had not been called.
        """
        run = self._run
        if self._with_job:
            self.rows.append(row)
            return 0
        if not self._begun:
            self._begin(row)
        elif self._watched and _until_power_of_two(run.packed + len(self.rows)) == 0:
            run.moving = run.moving or (self._writer is not None and self._writer.has_moved())
        if not run.moving and (not self._whole or run.direct):
            nbytes = self._add_over(row, plain=plain)
            if nbytes is not None:
                return nbytes
        body, buffers, sources = dumps_referring((run.function, row))
        return self._append(body + bytes((WHOLE,)), buffers, sources)

    @property
    def free(self) -> int:
        """How many rows of numbers and short texts may just be put to `rows` from now on."""
        run = self._run
        if not self._begun or run.moving or run.repeated or self._whole:
            return 0
        if run.quiet or self._writer is None:
            return sys.maxsize
        return _until_power_of_two(run.packed + len(self.rows))

    def add_or_refuse(self, row: tuple[Any, ...]) -> None:
        """Do as `add`; but what cannot be pickled is a call that raises what `submit` would."""
        run = self._run
        try:
            self.add(row, plain=all_plain(row))
        except Exception as error:  # noqa: BLE001 - whatever a __reduce__ raises
            failure = error
            try:
                dump_call(run.function, row, {}, call_name(run.function))
            except SerializationError as told:
                failure = told
            self.rows.append(refused(failure))

    def end(self, start: int) -> Rows:
        """Return what has been packed."""
        run, writer = self._run, self._writer
        sources, parts = self._sources, []
        if writer is not None:
            sources = sources + writer.sources
            parts = list(zip(self._places, writer.parts, strict=True))
        if not self._with_job:
            run.packed += len(self.rows)
        needs = {source.number: Need(source) for source in sources}
        function = run.function if self._with_job or run.direct else None
        small = (
            not needs
            and not self._with_job
            and not self._large
            and not any(type(packed) is list for _, (_, _, packed) in parts)
        )
        known = len(run.classes)
        needed = tuple(needs.values())
        return Rows(start, function, self.rows, needed, parts, known, run.number, small)

    def _begin(self, row: tuple[Any, ...]) -> None:
        """Make the layer, of which the first row shows what each is given."""
        run = self._run
        if run.repeated is None:
            run.repeated = [place for place in run.columns if not all_plain((row[place],))]
        if not run.moving and not run.direct and not self._whole:
            self._writer = Writer(referring=True)
            columns = [(place, row[place]) for place in run.repeated]
            self._add_part(((run.function, columns), tuple(run.classes)))
            if not run.quiet:
                packed = self._writer.parts[0][2]
                run.moving = run.last is not None and not same(run.last, *parted(packed))
                run.last = packed
        self._begun = True

    def _add_part(self, value: object) -> None:
        assert self._writer is not None
        self._writer.add(value)
        self._places.append(len(self.rows))

    def _add_over(self, row: tuple[Any, ...], *, plain: bool) -> int | None:
        """Pack a row over the layer; None: that would not mean the same."""
        run = self._run
        if run.repeated:
            row = tuple(x for place, x in enumerate(row) if place not in run.repeated)
            plain = all_plain(row)
        if plain:
            self.rows.append(row)
            return 0
        writer = self._writer
        if writer is None:  # a function that is known by name
            writer = self._writer = Writer(referring=True)
            if run.classes:
                self._add_part((None, tuple(run.classes)))
        try:
            packed = writer.dumps(row)
        finally:
            if len(writer.parts) > len(self._places):
                self._places += [len(self.rows)] * (len(writer.parts) - len(self._places))
                run.classes.update(dict.fromkeys(writer.classes))
                run.learned = True
        if packed is None:
            run.moving = run.moving or writer.unsteady
            return None
        body, buffers, sources = packed
        if buffers or sources or len(body) >= OUT_OF_BAND:
            return self._append(body, buffers, sources)
        self.rows.append(body)
        return len(body)

    def _append(self, body: bytes, buffers: list[memoryview], sources: Sequence[Any]) -> int:
        packed, nbytes = joined(body, buffers)
        self._large = self._large or type(packed) is list
        self._sources += sources
        self.rows.append(packed)
        return nbytes


def is_by_name(function: Callable[..., Any]) -> bool:
    """Whether nothing of a function travels but its name."""
    kind = type(function)
    if kind is types.BuiltinFunctionType:
        if not isinstance(function.__self__, types.ModuleType):  # type: ignore[attr-defined]
            return False
    elif kind is not types.FunctionType and not issubclass(kind, type):
        return False
    return is_importable(function)


def _until_power_of_two(count: int) -> int:
    return (1 << (count - 1).bit_length()) - count
