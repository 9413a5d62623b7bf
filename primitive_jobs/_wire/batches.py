"""The tasks of one of joblib's batches on their way into a job: each as if submitted alone.

Every task is pickled on its own, over a layer (see `layers`) where several call one function, and
unpickled when its turn comes; every result is pickled when it is there. So no task sees what
another does to what both were given. The content of a large array that several tasks are given
travels once: each gets a copy of it.

Used on both sides of the channel.
"""

from __future__ import annotations

import io
import os
import pickle
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._common import naming
from . import calls, chunk, failures, pickling
from .chunk import all_plain
from .copies import LEAST, Copies, address_of
from .layers import MAIN, WHOLE, Writer, fast_pickler
from .leftovers import after_call
from .present import now
from .rows import Need, is_by_name

if TYPE_CHECKING:
    from .layers import Part
    from .pickling import Reducer

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    Layer = tuple[Callable[..., Any] | None, list[tuple[int, Part]]]
    """The function, unless it is in the parts; these, each with the task that it is there from."""
    Row = tuple[int | None, Any]
    """The number of its layer, None: the function is packed with the arguments; the arguments and
    those by name, which are packed unless they are numbers and short texts: the body, or a list of
    it and the numbers of its buffers."""

_MOST_MISSES = 4  # as in `layers`
_SHORT = 64  # items; a list of more is as well pickled


# --- in the caller's process ----------------------------------------------------------------------


class Packer:
    """Packs the tasks of a batch; none of the user's code runs in between, but while pickling.

    Args:
        tasks: Functions, their arguments, and those by name.
        reducers: Come before those of the types themselves.
        placed: Returns what is pickled in the place of a buffer; see `copies.own`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        reducers: Mapping[type, Reducer],
        placed: Callable[[memoryview], Any],
    ) -> None:
        self._reducers = reducers
        self._placed = placed
        self._buffers: list[Any] = []
        # They stay, or another one might get the place of one that is gone.
        self._originals: list[memoryview] = []
        self._number_of: dict[tuple[int, int], int] = {}  # of a buffer
        self._sources: dict[int, Any] = {}
        self._layers: list[_Layer] = []
        self._layer_of: dict[object, _Layer | None] = {}
        self._latest: object = self
        self._latest_layer: _Layer | None = None
        self._misses = 0 if not pickling.some_are_by_value() else _MOST_MISSES
        self._tasks = tasks
        self._count: Counter[object] | None = None
        self._rows: list[Row] = []
        for task in tasks:
            self._rows.append(self._packed(task))

    def arguments(self) -> tuple[Any, ...]:
        """Return those of `run_tasks`."""
        for layer in self._layers:
            for source in layer.writer.sources:
                self._sources[source.number] = source
        layers = [layer.packed() for layer in self._layers]
        needs = [Need(source) for source in self._sources.values()]
        return layers, self._rows, self._buffers, needs

    def _packed(self, task: Task) -> Row:
        function, args, kwargs = task
        try:
            layer = self._layer(function)
            if layer is not None:
                if all_plain(args) and (not kwargs or all_plain(kwargs.values())):
                    return layer.number, (args, kwargs)
                packed = layer.dumps((args, kwargs), len(self._rows))
                if packed is not None:
                    return layer.number, self._parted(*packed)
            return None, self._parted(*self._whole(task))
        except Exception as error:  # noqa: BLE001 - whatever a __reduce__ raises
            return None, chunk.refused(_told(task, error))

    def _layer(self, function: Callable[..., Any]) -> _Layer | None:
        """Return what the calls of a function have in common; None: there is one only."""
        if function is self._latest:
            return self._latest_layer
        key = _identity(function)
        if key not in self._layer_of:
            layer = None
            if is_by_name(function):
                layer = self._new_layer(function, None)
            elif self._calls_of(key) > 1:
                layer = self._new_layer(None, function)
            self._layer_of[key] = layer
        self._latest, self._latest_layer = function, self._layer_of[key]
        return self._latest_layer

    def _calls_of(self, key: object) -> int:
        if self._count is None:
            self._count = Counter(_identity(function) for function, _, _ in self._tasks)
        return self._count[key]

    def _new_layer(
        self, by_name: Callable[..., Any] | None, common: Callable[..., Any] | None
    ) -> _Layer | None:
        writer = Writer(referring=True, reducers=self._reducers)
        layer = _Layer(len(self._layers), by_name, writer)
        # A large array of the function's is better sent apart than compared and copied.
        if common is not None and not layer.add_function(common, len(self._rows)):
            return None
        self._layers.append(layer)
        return layer

    def _whole(self, task: Task) -> tuple[bytes, list[memoryview], tuple[Any, ...]]:
        """Pickle function and arguments together, as a job that has nothing else does."""
        function, args, kwargs = task
        value = function, (args, kwargs)
        found: dict[int, Any] = {}
        reducers = {**pickling.referring(found), **self._reducers}
        if self._misses < _MOST_MISSES:
            try:
                body, buffers = _dumps_fast(value, reducers)
                if body.find(MAIN) < 0:
                    return body + _WHOLE, buffers, tuple(found.values())
            except Exception:  # noqa: BLE001 - cloudpickle will do, or say why not
                pass
            self._misses += 1
        found.clear()
        body, buffers = pickling.dumps(value, reducers=reducers)
        return body + _WHOLE, buffers, tuple(found.values())

    def _parted(self, body: bytes, buffers: list[memoryview], sources: tuple[Any, ...]) -> Any:
        for source in sources:
            self._sources[source.number] = source
        if not buffers and len(body) < pickling.OUT_OF_BAND:
            return body
        return [pickle.PickleBuffer(body), *map(self._number, buffers)]

    def _number(self, buffer: memoryview) -> int:
        address = address_of(buffer)
        key = id(buffer.obj) if address is None else address, buffer.nbytes
        number = self._number_of.setdefault(key, len(self._buffers))
        if number == len(self._buffers):
            self._originals.append(buffer)
            self._buffers.append(self._placed(buffer))
        return number


class _Layer:
    """What the calls of one function have in common.

    Args:
        number: Its place among all.
        function: Where it travels by its name; else it is in the writer's first part.
        writer: Of the parts.
    """

    def __init__(self, number: int, function: Callable[..., Any] | None, writer: Writer) -> None:
        self.number = number
        self.function = function
        self.writer = writer
        self._places: list[int] = []

    def add_function(self, function: Callable[..., Any], place: int) -> bool:
        self._places.append(place)
        return self.writer.add(((function, ()), ()), LEAST)

    def dumps(
        self, value: object, place: int
    ) -> tuple[bytes, list[memoryview], tuple[Any, ...]] | None:
        """Pickle the arguments of a task; None: not over this layer."""
        writer = self.writer
        if writer.unsteady:
            return None
        try:
            return writer.dumps(value)
        finally:
            self._places += [place] * (len(writer.parts) - len(self._places))

    def packed(self) -> Layer:
        return self.function, list(zip(self._places, self.writer.parts, strict=True))


_WHOLE = bytes((WHOLE,))


def _identity(function: Any) -> object:
    """What two calls of one function have in common: a method is made anew by each look at it."""
    if type(function) is types.MethodType:
        return id(function.__func__), id(function.__self__)
    return id(function)


def _dumps_fast(value: object, reducers: dict[type, Reducer]) -> tuple[bytes, list[memoryview]]:
    file = io.BytesIO()
    buffers: list[memoryview] = []
    fast_pickler(pickle.Pickler, file, reducers, pickling.keeper(buffers)).dump(value)
    return file.getvalue(), buffers


def _told(task: Task, error: Exception) -> Exception:
    """What `submit` says of a task that cannot be pickled."""
    from ..errors import SerializationError

    function, args, kwargs = task
    try:
        calls.dump_call(function, args, kwargs, naming.call_name(function))
    except SerializationError as told:
        return told
    return error


def unpacked(reply: Reply, label: str) -> list[Any]:
    """Unpickle the results of a batch.

    Raises:
        SerializationError: One cannot be unpickled here.
    """
    results = chunk.Unpacker(reply.parts, label)
    values = list(reply.values)
    for place in reply.packed:
        values[place] = results.unpack(values[place], place)
    return values


# --- in a worker ----------------------------------------------------------------------------------


class Reply(NamedTuple):
    """What a batch's job returns.

    Attributes:
        values: The results.
        packed: Which of them are packed: all but numbers and short texts, and lists of these.
        parts: The layer of the packed ones.
    """

    values: list[Any]
    packed: list[int]
    parts: list[Part]


def run_tasks(layers: list[Layer], rows: list[Row], buffers: list[Any], _needs: object) -> Reply:
    """Make the calls of a batch, one after the other; what one raises, raises."""
    pid = os.getpid()
    arguments = _Arguments(layers, rows, buffers)
    results = chunk.Results(alone=False)
    values: list[Any] = []
    packed: list[int] = []
    numbers, exit_if_forked = chunk.NUMBERS, chunk.exit_if_forked
    try:
        for place, (layer, row) in enumerate(rows):
            common = arguments.common[layer]
            function = common.steady
            if function is None or type(row) is not tuple:
                function, row = arguments.unpacked(common, place, row)
            args, kwargs = row
            now.call = place
            value: Any = function(*args, **kwargs)
            del args, kwargs, row  # their buffers may serve the next one
            exit_if_forked(pid)
            kind = type(value)
            if kind in numbers:
                pass
            elif kind is list and len(value) <= _SHORT and all_plain(value):
                value = value[:]
            elif not chunk.is_plain(value):
                value = results.pack(function, value)
                packed.append(place)
            if common.state is not None:
                common.check()
            after_call()
            values.append(value)
    except chunk.Unfit as unfit:
        error = failures.load_exception(unfit.args[0])
        raise error from error.__cause__
    return Reply(values, packed, results.parts)


class _Arguments:
    """In a worker: what each task is given, unpickled when its turn comes."""

    def __init__(self, layers: list[Layer], rows: list[Row], buffers: list[Any]) -> None:
        self.common: dict[int | None, chunk.Common] = {
            number: chunk.Common(function, parts, chunk.CHECKED, None)
            for number, (function, parts) in enumerate(layers)
        }
        self.common[None] = chunk.Common(None, (), chunk.KEPT, None)
        self._buffers = buffers
        self._left = Counter(number for _, row in rows if type(row) is list for number in row[1:])

    def unpacked(
        self, common: chunk.Common, place: int, row: Any
    ) -> tuple[Callable[..., Any], Any]:
        if type(row) is list:
            row = [row[0], *map(self._buffer, row[1:])]
        return common.prepare(place, row)

    def _buffer(self, number: int) -> memoryview:
        """Return a buffer that nobody else has."""
        buffer = self._buffers[number]
        self._left[number] -= 1
        is_last = not self._left[number]
        if type(buffer) is Copies:
            return buffer.new(is_last=is_last)
        if is_last:
            self._buffers[number] = None
            return memoryview(buffer)
        return memoryview(bytearray(buffer))
