"""Layers: what many pickles have in common is pickled once, and each of them on its own over that.

::

    Writer.add(common) ─► part ─────────────► Reader.add ─► objects
    Writer.dumps(value) ─► body, which refers ─► Reader.load, over the same objects
                           to the objects

So a value may hold objects that belong to what is common (identity is kept), but never shares any
with another value: it is pickled when it is there, whatever happens to it later.

A body refers to an object by its place. While the objects are few, the pickler's memo begins with
them, at the speed of C, and the reader puts as many into the memo of its own first; how many stands
in the body's last byte, which no unpickler looks at. Of many, each body would have to copy as many
entries: then it is `persistent_id` that knows them, at the price of a call in Python for each part
of the value.

Used on both sides of the channel, so it imports little.
"""

from __future__ import annotations

import _pickle as pickle
import copyreg
import functools
import io
import types

from . import pickling
from .pickling import keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    # A pickle's body; if it is large or has buffers, a list of all these.
    Packed = bytes | list[Any]
    Part = tuple[int, list[int], Packed]
    """How many objects were in the memo already; where in the memo those are that it adds; its
    pickle."""

MOST_IN_MEMO = 64  # objects; copying them takes each side some 3 us for each value
WHOLE = 255  # the last byte of what refers to no layer
ALONE = 254  # the same of what happens to refer to nothing in its layer
MAIN = b"_main__"  # of __main__ and of __mp_main__
# What bears no identity that anybody could rely on. No text is known to a memo, so that the name of
# a module stands in every body which refers to what is in that.
_NO_IDENTITY = frozenset({str, bytes, types.CodeType, types.BuiltinFunctionType})


def _framed(opcodes: bytes) -> bytes:
    """A pickle's beginning, in a frame: outside of one each opcode is read from the file alone."""
    return opcodes and b"\x80\x05\x95" + len(opcodes).to_bytes(8, "little") + opcodes


@functools.cache
def _puts(count: int) -> bytes:
    """The beginning of a pickle that puts the first ``count`` objects into its memo."""
    # BININT1, its argument, BINPERSID, MEMOIZE, POP
    return _framed(b"".join(b"K" + bytes([place]) + b"Q\x940" for place in range(count)))


@functools.cache
def _counts(count: int) -> bytes:
    """A pickle after which an unpickler has so many entries in its memo: NONE, MEMOIZE..., STOP."""
    return _framed(b"N" + b"\x94" * count + b".")


class _Unpickler(pickle.Unpickler):
    """One that is given objects by their places."""

    def __init__(self, body: bytes, buffers: Sequence[Any], objects: list[Any]) -> None:
        super().__init__(io.BytesIO(body), buffers=buffers)
        self._objects = objects

    def persistent_load(self, place: int) -> Any:
        return self._objects[place]


def _load_over(memo: Any, count: int, body: bytes, buffers: Sequence[Any]) -> Any:
    """Unpickle with the entries of another unpickler's memo, copied in C.

    Setting a memo does not tell the unpickler how many entries there are, by which it numbers the
    next one: so it has to have seen as many before.
    """
    unpickler = pickle.Unpickler(io.BytesIO(_counts(count) + body), buffers=buffers)
    unpickler.load()
    unpickler.memo = memo
    return unpickler.load()


@functools.cache
def _memo_can_be_set() -> bool:
    """Whether the former works with this Python: no documentation says so."""
    known = [object(), object()]
    first = _Unpickler(_puts(2) + b"N.", (), known)
    first.load()
    # EMPTY_LIST, MEMOIZE, BINGET 1, BINGET 2, TUPLE3
    return bool(
        _load_over(first.memo, 2, b"\x80\x05]\x94h\x01h\x02\x87.", ())[1:] == (known[1], [])
    )


class Reader:
    """Unpickles what a `Writer` has pickled."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._memos: dict[int, Any] = {}  # with so many of the objects

    def add(self, part: Part, *, copied: bool = False) -> Any:
        """Unpickle the next part and return it; ``copied``: its buffers can be used once more."""
        count, places, packed = part
        body, buffers = parted(packed)
        if copied:
            buffers = [memoryview(bytearray(buffer)) for buffer in buffers]
        pickled = _puts(count) + bytes(body)
        unpickler = _Unpickler(pickled, buffers, self._objects)
        value = unpickler.load()
        if places:
            memo = unpickler.memo.copy()
            self._objects += [memo[place] for place in places]
        return value

    def load(self, packed: Packed) -> Any:
        """Unpickle a value over the parts."""
        if type(packed) is bytes:
            body: pickling.Body = packed
            buffers: Sequence[Any] = ()
        else:
            body, buffers = parted(packed)
        count = body[-1]
        if count >= ALONE or not self._objects:
            return pickle.loads(body, buffers=buffers)
        if count and _memo_can_be_set():
            return _load_over(self._memo(count), count, bytes(body), buffers)
        return _Unpickler(_puts(count) + bytes(body), buffers, self._objects).load()

    def _memo(self, count: int) -> Any:
        memo = self._memos.get(count)
        if memo is None:
            unpickler = _Unpickler(_puts(count) + b"N.", (), self._objects)
            unpickler.load()
            memo = self._memos[count] = unpickler.memo
        return memo


def joined(
    body: bytes, buffers: Sequence[memoryview], *, copied: bool = True
) -> tuple[Packed, int]:
    """Join a pickle's parts; return that and its bytes.

    Large parts get past the pickling of what holds this without another copy. ``copied``: whatever
    happens to the original's buffers from now on.
    """
    if not buffers and len(body) < pickling.OUT_OF_BAND:
        return body, len(body)
    nbytes = len(body) + sum(buffer.nbytes for buffer in buffers)
    views = [pickle.PickleBuffer(bytearray(b) if copied else b) for b in buffers]
    return [pickle.PickleBuffer(body), *views], nbytes


def parted(packed: Packed) -> tuple[pickling.Body, list[memoryview]]:
    """The opposite of `joined`."""
    return (packed, []) if isinstance(packed, bytes) else (packed[0], packed[1:])


def _reduce_method(method: types.MethodType) -> tuple[Any, ...]:
    """Reduce as cloudpickle does: Python's own way does not find private ones."""
    return types.MethodType, (method.__func__, method.__self__)


@functools.cache
def _definitions_pickler() -> Any:
    """Cloudpickle's pickler, that notes which definitions of the program it has pickled."""

    class Pickler(pickling.pickler_type()):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            reduced = super().reducer_override(obj)
            if reduced is not NotImplemented:
                if isinstance(obj, types.FunctionType):
                    self.functions.append(obj)
                elif len(reduced) > 2:  # without a state it is a built-in one
                    self.classes.append(obj)
            return reduced

    return Pickler


def _by_place(kind: Any) -> Any:
    """Make a type of picklers that refer to objects by their places (``place_of``, an id)."""

    class Pickler(kind):  # type: ignore[misc]
        def persistent_id(self, obj: object) -> int | None:
            return self.place_of(id(obj))  # type: ignore[no-any-return]

    return Pickler


@functools.cache
def _picklers_by_place() -> tuple[Any, Any]:
    return _by_place(pickle.Pickler), _by_place(_definitions_pickler())


class Writer:
    """Pickles value after value, each on its own, over parts that they have in common.

    Definitions of the program (classes of a script) that come with a value get a part of their own.

    Args:
        referring: Whether handles of shared data may be among the values.
        reducers: Come before those of the types themselves.

    Attributes:
        parts: Those made so far.
        values: What they are the pickles of.
        classes: The definitions that have come with values.
        sources: The shared data that the parts refer to.
        unsteady: Whether a part is never the same, or somebody changes what is in it.
    """

    def __init__(
        self, *, referring: bool = False, reducers: Mapping[type, pickling.Reducer] | None = None
    ) -> None:
        self.parts: list[Part] = []
        self.values: list[object] = []
        self.classes: list[type] = []
        self.sources: list[Any] = []
        self.unsteady = False
        self._settled = 0  # parts
        self._objects: list[Any] = []
        # As an unused pickler has it: it is copied in a third of the time that a dict takes.
        self._memo: Any = None
        self._in_memo = 0  # objects
        self._place_of: Callable[[int], int | None] | None = None  # once a memo is too small
        # No name here refers to the picklers' owner: a cycle would keep what they know alive.
        self._found: dict[int, Any] = {}
        self._buffers: list[memoryview] = []
        self._pieces: list[bytes] = []
        self._file = _File(self._pieces)
        handles = pickling.referring(self._found) if referring else {}
        self._reducers = {**handles, **(reducers or {})}
        self._cloud: Any = None
        self._fast: Any = None
        self._misses = 0 if not pickling.some_are_by_value() else _MOST_MISSES

    # --- what is common ----------------------------------------------------------------------

    def add(self, value: object, most: float = float("inf")) -> bool:
        """Pickle what the values will have in common; not if a buffer has ``most`` bytes or more.

        Whatever the pickling raises, raises.
        """
        count = self._in_memo
        body, buffers = self._dump(self._ready_cloud(), value)
        if any(buffer.nbytes >= most for buffer in buffers):
            return False
        self.sources += self._found.values()
        self.parts.append((count, [], joined(body, buffers)[0]))
        self.values.append(value)
        return True

    def _settle(self) -> bool:
        """Find out which objects the last part has added; False: none can be relied on.

        What comes with a second pickling too is no by-product of the first. If that differs,
        somebody has changed it meanwhile, or it is never the same.
        """
        if self.unsteady or self._settled == len(self.parts):
            return not self.unsteady
        first = self._cloud.memo.copy()
        count, places, packed = self.parts[-1]
        body, buffers = self._dump(self._ready_cloud(), self.values[-1])
        if not same(packed, body, buffers):
            self.unsteady = True
            return False
        second = self._cloud.memo.copy()
        for name, (place, obj) in first.items():
            if place >= count and type(obj) not in _NO_IDENTITY and name in second:
                places.append(place)
                self._objects.append(obj)
        self._settled = len(self.parts)
        self._know()
        return True

    def has_moved(self) -> bool:
        """Whether what is in the first part has changed, or others stand where its objects did."""
        if not self.parts:
            return False
        pickler = _definitions_pickler()(self._file, self._reducers, keeper(self._buffers))
        pickler.classes, pickler.functions = [], []
        body, buffers = self._dump(pickler, self.values[0], over=False)
        if not same(self.parts[0][2], body, buffers):
            return True
        now = pickler.memo.copy()
        return not all(id(obj) in now for obj in self._objects[: len(self.parts[0][1])])

    def _know(self) -> None:
        """Have the picklers know all objects, by one way or the other."""
        if len(self._objects) <= MOST_IN_MEMO:
            holder = pickle.Pickler(io.BytesIO())
            holder.memo = {id(obj): (place, obj) for place, obj in enumerate(self._objects)}
            self._memo, self._in_memo = holder.memo, len(self._objects)
            return
        self._memo, self._in_memo = None, 0
        self._place_of = {id(obj): place for place, obj in enumerate(self._objects)}.get
        variables = self._cloud.globals_ref
        self._cloud = self._fast = None
        self._ready_cloud().globals_ref = variables

    # --- value after value -------------------------------------------------------------------

    def dumps(self, value: object) -> tuple[bytes, list[memoryview], tuple[Any, ...]] | None:
        """Pickle a value; return that, its buffers, and the shared data that it refers to.

        None: not over this layer, since a function comes with it, which may have more in common
        with what is in the layer than objects: variables.
        """
        if self._settled != len(self.parts) and not self._settle():
            return None
        if self._misses < _MOST_MISSES:
            try:
                body, buffers = self._dump(self._fast or self._ready_fast(), value)
                if body.find(MAIN) < 0:  # `in` takes a microsecond longer
                    return body, buffers, tuple(self._found.values()) if self._found else ()
            except Exception:  # noqa: BLE001 - cloudpickle will do, or say why not
                pass
            self._misses += 1
        while True:
            cloud = self._ready_cloud()
            body, buffers = self._dump(cloud, value)
            if not cloud.classes:
                break
            classes = tuple(dict.fromkeys(cloud.classes))
            if any(known is kind for known in self.classes for kind in classes):
                self.unsteady = True
                return None
            self.classes += classes
            self.add((None, classes))
            if not self._settle():
                return None
            self._misses = min(self._misses, 1)  # it was the class that it could not pickle
        return None if cloud.functions else (body, buffers, tuple(self._found.values()))

    def _ready_fast(self) -> Any:
        if self._fast is None:
            kind = pickle.Pickler if self._place_of is None else _picklers_by_place()[0]
            self._fast = fast_pickler(kind, self._file, self._reducers, keeper(self._buffers))
            if self._place_of is not None:
                self._fast.place_of = self._place_of
        return self._fast

    def _ready_cloud(self) -> Any:
        if self._cloud is None:
            by_memo = self._place_of is None
            kind = _definitions_pickler() if by_memo else _picklers_by_place()[1]
            self._cloud = kind(self._file, self._reducers, keeper(self._buffers))
            if not by_memo:
                self._cloud.place_of = self._place_of
        self._cloud.classes, self._cloud.functions = [], []
        return self._cloud

    def _dump(
        self, pickler: Any, value: object, *, over: bool = True
    ) -> tuple[bytes, list[memoryview]]:
        pieces, buffers = self._pieces, self._buffers
        pieces.clear()
        if self._found:
            self._found.clear()
        if buffers:
            buffers.clear()
        if over and self._in_memo:
            pickler.memo = self._memo
        else:
            pickler.clear_memo()
        pickler.dump(value)
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        # The opcodes that refer to a memo, BINGET and LONG_BINGET, or to objects: BINPERSID
        if 0x68 not in body and 0x6A not in body and 0x51 not in body:
            return body + _ALONE, buffers[:]
        return body + _LAST[self._in_memo if over else 0], buffers[:]


class _File:
    """What picklers write to: most of them once."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.write = pieces.append


_ALONE = bytes((ALONE,))
_LAST = [bytes((count,)) for count in range(MOST_IN_MEMO + 1)]
_MOST_MISSES = 4


def fast_pickler(
    kind: Any,
    file: Any,
    reducers: dict[type, Callable[[Any], Any]],
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
) -> Any:
    """Make a pickler of Python's own; it raises, or names the program, where it will not do."""
    pickler = kind(file, 5, buffer_callback=buffer_callback)
    method: dict[type, Any] = {types.MethodType: _reduce_method}
    pickler.dispatch_table = copyreg.dispatch_table | method | pickling.own_reducers() | reducers
    return pickler


def same(packed: Packed, body: pickling.Body, buffers: Sequence[memoryview]) -> bool:
    """Whether these are what `joined` was given, still with the same content."""
    before, others = parted(packed)
    # A large one is a `PickleBuffer`, which is equal to nothing but itself.
    return (
        bytes(before) == bytes(body)
        and len(others) == len(buffers)
        and all(bytearray(one) == other for one, other in zip(others, buffers, strict=True))
    )


def is_importable(definition: object) -> bool:
    """Whether a function or class is pickled as its name, which is none of the program's own."""
    if pickling.some_are_by_value():
        return False
    try:
        return pickle.dumps(definition, 5).find(MAIN) < 0
    except Exception:  # noqa: BLE001 - it is not to be found by its name
        return False


def state_of(values: Sequence[object]) -> bytes | None:
    """Pickle objects so that any change to them shows; None: that is not possible."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            return not buffer.raw().readonly
        except BufferError:  # not contiguous
            return True

    try:
        file = io.BytesIO()
        fast_pickler(pickle.Pickler, file, {}, keep).dump(values)
        state = file.getvalue()
        if state.find(MAIN) < 0:
            return state
    except Exception:  # noqa: BLE001 - as above
        pass
    try:
        return pickling.dumps_whole(values, keep)
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises
        return None
