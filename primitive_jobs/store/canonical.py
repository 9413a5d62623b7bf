"""Values to bytes, canonically: equal arguments of a function have equal bytes, in every process.

Pickles will not do: they differ between Python versions, with the order of a set and with who else
refers to an object. Here each type of a closed list has one encoding of its own. What is not on
the list is refused, with its place in the argument.

The encoding of a value is a tag that names its type, the length of what follows, and that. Long
content is replaced by its BLAKE2b, at every level: so the bytes of a large array are never
copied, and no encoding is longer than some kilobytes. Since all parts are delimited, two values
have one encoding only if they are equal, of the same types, at every level.

On the list are None, bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset,
range and slice; namedtuples, dataclasses (with all attributes but cached properties), enums (by
name) and flags (by value); paths, dates, times, timedeltas, Decimal, Fraction, UUID; arrays,
scalars and dtypes of numpy, but for objects and long doubles; handles of `share`, as what they
stand for. It goes by exact type: a subclass may mean something else by the same content. numpy's
scalars of Python's own width are the numbers that they look like. Each NaN of a float is one value;
those in arrays are their bytes. A time with a zone is what the clock shows there, not the instant.
"""

from __future__ import annotations

import enum
import functools
import io
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .._common.imported import imported
from .._common.naming import one_line, type_name
from .._wire.parcel import HAVE_PACKETS, map_file, unpack
from .._wire.pickling import SCRIPTS, handle_types

if TYPE_CHECKING:
    import datetime as dt
    import decimal
    import fractions
    import pathlib
    import uuid
    import zoneinfo

    Encoder = Callable[[Any, int], bytes]

_LONGEST = 1024  # bytes of content; more is replaced by its digest
_DIGEST = 32  # bytes: no two contents will ever have the same
_DEEPEST = 100  # levels, of three frames each: Python allows a thousand
_LONGEST_PATH = 80  # characters
_MOST_SEARCHED = 100_000  # objects, for the place of the one that was refused

_ADVICE = "give key=, a callable that makes of a point what it is to be known by"


class _RefusedError(Exception):
    """A value cannot be encoded."""

    def __init__(self, value: object, why: str) -> None:
        super().__init__(why)
        self.value = value
        self.why = why


def encode(value: object, place: str = "the value") -> bytes:
    """Return the canonical encoding of a value.

    Args:
        value: Anything that is on the list.
        place: What to call it in an error.

    Raises:
        TypeError: It, or something in it, is not on the list.
    """
    try:
        return _encode(value, 0)
    except _RefusedError as refused:
        where = place + _at(_path(value, refused.value))
        why = refused.why
    except RecursionError:
        where, why = place, "it is nested too deep for the stack that is left"
    raise TypeError(f"{where} cannot be part of a key: {why}; {_ADVICE}")


def module_name(module: str) -> str:
    """The name of a module, and for a script the one that it has where it is imported."""
    if module not in SCRIPTS:
        return module
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m name
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if not isinstance(file, str):  # a notebook
        return "__main__"
    return file.rpartition("/")[2].removesuffix(".py")


def _encode(value: object, depth: int) -> bytes:
    kind = type(value)
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        encoder = _find_encoder(kind, value)
    if depth > _DEEPEST:
        raise _RefusedError(
            value, f"it is nested more than {_DEEPEST} levels deep, or contains itself"
        )
    return encoder(value, depth + 1)


def _pack(tag: bytes, content: Any) -> bytes:
    """Delimit bytes, or a view: a tag has no digits and no ``#``, so that its end is clear."""
    size = len(content)
    if size > _LONGEST:
        return b"%b#%b" % (tag, blake2b(content, digest_size=_DIGEST).digest())
    return b"%b%d:%b" % (tag, size, content)


def _all(values: Iterable[object], depth: int) -> list[bytes]:
    return [_encode(value, depth) for value in values]


# --- of Python's own ------------------------------------------------------------------------------


def _none(_: None, __: int) -> bytes:
    return b"none0:"


def _bool(value: bool, _: int) -> bytes:
    return b"bool1:1" if value else b"bool1:0"


def _int(value: int, _: int) -> bytes:
    return _pack(b"int", b"%x" % value)  # of decimals Python writes so many only


def _float(value: float, _: int) -> bytes:
    return _pack(b"float", float.__repr__(value).encode())  # the shortest; of each NaN "nan"


def _complex(value: complex, _: int) -> bytes:
    parts = float.__repr__(value.real), float.__repr__(value.imag)
    return _pack(b"complex", " ".join(parts).encode())


def _str(value: str, _: int = 0) -> bytes:
    return _pack(b"str", value.encode("utf-8", "surrogatepass"))  # names of files have surrogates


def _bytes(value: bytes, _: int) -> bytes:
    return _pack(b"bytes", value)


def _tuple(value: tuple[object, ...], depth: int) -> bytes:
    return _pack(b"tuple", b"".join(_all(value, depth)))


def _list(value: list[object], depth: int) -> bytes:
    return _pack(b"list", b"".join(_all(value, depth)))


def _set(value: set[object], depth: int) -> bytes:
    return _pack(b"set", b"".join(sorted(_all(value, depth))))


def _frozenset(value: frozenset[object], depth: int) -> bytes:
    return _pack(b"frozenset", b"".join(sorted(_all(value, depth))))


def _dict(value: dict[object, object], depth: int) -> bytes:
    # Sorted by the keys, and by the values where several keys are NaN.
    items = sorted((_encode(k, depth), _encode(v, depth)) for k, v in value.items())
    return _pack(b"dict", b"".join(part for item in items for part in item))


def _range(value: range, depth: int) -> bytes:
    return _pack(b"range", b"".join(_all((value.start, value.stop, value.step), depth)))


def _slice(value: slice, depth: int) -> bytes:
    return _pack(b"slice", b"".join(_all((value.start, value.stop, value.step), depth)))


# --- of classes that somebody has written ---------------------------------------------------------


def _class(kind: type) -> bytes:
    return _str(module_name(kind.__module__)) + _str(kind.__qualname__)


def _enum(value: enum.Enum, _: int) -> bytes:
    return _pack(b"enum", _class(type(value)) + _str(value.name))


def _flag(value: enum.Flag, depth: int) -> bytes:
    number: int = value.value
    if number < 0:  # what ~flag is in Python 3.10; from 3.11 on it is this
        known = functools.reduce(lambda bits, flag: bits | flag.value, type(value), 0)
        number += max(1 << known.bit_length(), 1 << number.bit_length())
    return _pack(b"flag", _class(type(value)) + _int(number, depth))


def _namedtuple(value: Any, depth: int) -> bytes:
    names = map(_str, type(value).__match_args__)
    return _pack(b"namedtuple", _class(type(value)) + b"".join([*names, *_all(value, depth)]))


def _dataclass(value: object, depth: int) -> bytes:
    parts = [_class(type(value))]
    for name, part in _attributes(value):
        parts += _str(name), _encode(part, depth)
    return _pack(b"dataclass", b"".join(parts))


def _attributes(value: Any) -> Iterator[tuple[str, object]]:
    """The fields of a dataclass's instance, and what else has been set, in an order of its own."""
    from dataclasses import fields

    names = [field.name for field in fields(value)]
    for name in names:
        try:
            part = getattr(value, name)
        except Exception as error:  # noqa: BLE001 - whatever a descriptor raises
            raise _RefusedError(value, f"its field {name} cannot be read: {error!r}") from None
        yield name, part
    more = getattr(value, "__dict__", {})
    for name in sorted(more.keys() - {*names}):
        # What is cached follows from the rest, and is there or not.
        if not isinstance(getattr(type(value), name, None), functools.cached_property):
            yield name, more[name]


def _is_namedtuple(kind: type) -> bool:
    return tuple in kind.__bases__ and "_fields" in kind.__dict__


def _is_dataclass(kind: type) -> bool:
    """Whether it was made one itself, and has no content beyond its attributes."""
    foreign = ("builtins", "collections", "numpy")
    return "__dataclass_fields__" in kind.__dict__ and not any(
        base.__module__ in foreign for base in kind.__mro__ if base is not object
    )


# --- of the standard library ----------------------------------------------------------------------


def _path_of_file(value: pathlib.PurePath, _: int) -> bytes:
    return _pack(type(value).__name__.encode(), _str(str(value)))


def _date(value: dt.date, _: int) -> bytes:
    return _pack(b"date", value.isoformat().encode())


def _datetime(value: dt.datetime, depth: int) -> bytes:
    # By what the clock shows and by the zone: a job may ask for either.
    wall = value.replace(tzinfo=None, fold=0).isoformat()
    parts = _str(wall), _int(value.fold, depth), _encode(value.tzinfo, depth)
    return _pack(b"datetime", b"".join(parts))


def _time(value: dt.time, depth: int) -> bytes:
    wall = value.replace(tzinfo=None, fold=0).isoformat()
    parts = _str(wall), _int(value.fold, depth), _encode(value.tzinfo, depth)
    return _pack(b"time", b"".join(parts))


def _timedelta(value: dt.timedelta, depth: int) -> bytes:
    parts = value.days, value.seconds, value.microseconds
    return _pack(b"timedelta", b"".join(_all(parts, depth)))


def _timezone(value: dt.timezone, depth: int) -> bytes:
    name = value.tzname(None)
    return _pack(b"timezone", _encode(value.utcoffset(None), depth) + _str(name))


def _zoneinfo(value: zoneinfo.ZoneInfo, _: int) -> bytes:
    if value.key is None:
        raise _RefusedError(value, "a ZoneInfo without a key has no name")
    return _pack(b"zoneinfo", _str(value.key))


def _decimal(value: decimal.Decimal, _: int) -> bytes:
    sign, digits, exponent = value.as_tuple()  # what str() says depends on the context
    return _pack(b"decimal", f"{sign} {''.join(map(str, digits))} {exponent}".encode())


def _fraction(value: fractions.Fraction, depth: int) -> bytes:
    return _pack(b"fraction", b"".join(_all((value.numerator, value.denominator), depth)))


def _uuid(value: uuid.UUID, _: int) -> bytes:
    return _pack(b"uuid", value.bytes)


# --- of numpy, where it is loaded -----------------------------------------------------------------


def _array(value: Any, _: int) -> bytes:
    form, packed = _form(value.dtype, value)
    array = value if value.dtype == packed else value.astype(packed)
    shape = " ".join(map(str, value.shape)).encode()
    return _pack(b"array", form + _pack(b"shape", shape) + _pack(b"data", _content(array)))


def _content(array: Any) -> bytes | memoryview:
    """The bytes of an array in C order; a view of them where it is laid out so."""
    if not array.nbytes:
        return b""
    flat = imported("numpy").ascontiguousarray(array).reshape(-1)
    return memoryview(flat.view("u1"))


def _form(dtype: Any, owner: object) -> tuple[bytes, Any]:
    """The encoding of what a dtype says of an array's elements, and the dtype that is so laid out.

    That is little-endian, and without padding, whose bytes are random.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        form, packed = _form(base, owner)
        return _pack(b"sub", form + _str(str(shape))), imported("numpy").dtype((packed, shape))
    if dtype.names is not None:
        parts: list[bytes] = []
        fields = []
        for name in dtype.names:
            form, packed = _form(dtype.fields[name][0], owner)
            parts += _str(name), form
            fields.append((name, packed))
        return _pack(b"struct", b"".join(parts)), imported("numpy").dtype(fields)
    if not _is_plain(dtype):
        raise _RefusedError(owner, f"the dtype {dtype} has no content of a defined form")
    packed = dtype.newbyteorder("<")
    return _pack(b"plain", packed.str.encode()), packed


def _is_plain(dtype: Any) -> bool:
    # Not objects, numpy 2's texts of any length, long doubles, nor what others have registered.
    own = dtype.type.__module__ == "numpy"
    return own and dtype.kind in "biufcSUVmM" and dtype.char not in "gG"


def _dtype(value: Any, depth: int) -> bytes:
    """Encode one that is an argument itself: byte order and layout are told, too."""
    form, _ = _form(value, value)
    return _pack(b"dtype", form + b"".join(_layout(value, depth)))


def _layout(dtype: Any, depth: int) -> Iterator[bytes]:
    if dtype.subdtype is not None:
        yield from _layout(dtype.subdtype[0], depth)
    elif dtype.names is not None:
        yield _int(dtype.itemsize, depth)
        for name in dtype.names:
            part, offset = dtype.fields[name][:2]
            yield _int(offset, depth)
            yield from _layout(part, depth)
    else:
        yield _str(dtype.str)


def _scalar(value: Any, depth: int) -> bytes:
    form, packed = _form(value.dtype, value)
    alike = _ENCODERS[_AS_PYTHON[packed.str]] if packed.str in _AS_PYTHON else None
    if alike is not None:
        return alike(value.item(), depth)
    if packed.kind in "SU":
        return _encode(value.item(), depth)
    if packed.kind in "fc":
        content = _encode(value.item(), depth)  # where each NaN is one
    else:
        array = imported("numpy").asarray(value)
        content = _pack(b"data", _content(array.astype(packed)))
    return _pack(b"scalar", form + content)


_AS_PYTHON: dict[str, type] = {"|b1": bool, "<i8": int, "<f8": float, "<c16": complex}


# --- of `share` -----------------------------------------------------------------------------------

_known: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()  # of shared data


def _shared(handle: Any, depth: int) -> bytes:
    """A handle is what it stands for. That is read once; large arrays are mapped for it."""
    _, source = handle_types[type(handle)](handle)
    known = _known.get(source)
    if known is None:
        try:
            value = _read(source)
        except Exception as error:  # noqa: BLE001 - whatever its unpickling raises
            raise _RefusedError(handle, f"it cannot be read back: {one_line(error)}") from None
        try:
            known = _known[source] = _encode(value, depth)
        except _RefusedError as refused:
            where = _at(_path(value, refused.value))
            raise _RefusedError(handle, f"in what is shared{where}, {refused.why}") from None
    return known


def _read(source: Any) -> object:
    """Make the object of shared data, and of the data that it refers to."""
    import _pickle as pickle

    inner = {one.number: one for one in source.shared}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            if name == "load_received":  # what a worker does with what it has got
                return lambda number: _read(inner[number])
            return super().find_class(module, name)

    parcel = source.parcel_for(packets=HAVE_PACKETS)
    if parcel.fd >= 0:
        content = map_file(parcel.fd, parcel.size, mmap.MAP_PRIVATE)
    else:
        content = memoryview(parcel.data)
    body, buffers = unpack(content, parcel.buffers) if parcel.buffers else (content, [])
    readonly = [buffer.toreadonly() for buffer in buffers]
    return Unpickler(io.BytesIO(body), buffers=readonly).load()


# --- which encoder --------------------------------------------------------------------------------

_ENCODERS: dict[type, Encoder] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    complex: _complex,
    str: _str,
    bytes: _bytes,
    tuple: _tuple,
    list: _list,
    set: _set,
    frozenset: _frozenset,
    dict: _dict,
    range: _range,
    slice: _slice,
}

_OF_MODULES: dict[str, dict[str, Encoder]] = {
    "datetime": {
        "date": _date,
        "datetime": _datetime,
        "time": _time,
        "timedelta": _timedelta,
        "timezone": _timezone,
    },
    "zoneinfo": {"ZoneInfo": _zoneinfo},
    "decimal": {"Decimal": _decimal},
    "fractions": {"Fraction": _fraction},
    "uuid": {"UUID": _uuid},
    "pathlib": dict.fromkeys(
        ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"), _path_of_file
    ),
    "numpy": {"ndarray": _array},
}


def _find_encoder(kind: type, value: object) -> Encoder:
    # Not kept for classes that a program may make again and again.
    if issubclass(kind, enum.Enum):
        return _flag if issubclass(kind, enum.Flag) else _enum
    if _is_dataclass(kind):
        return _dataclass
    if _is_namedtuple(kind):
        return _namedtuple
    if kind in handle_types:
        return _shared
    encoder = _of_modules(kind)
    if encoder is None:
        raise _RefusedError(value, f"objects of type {type_name(value)} have no canonical encoding")
    _ENCODERS[kind] = encoder
    return encoder


def _of_modules(kind: type) -> Encoder | None:
    for module, encoders in _OF_MODULES.items():
        there = imported(module)
        for name, encoder in encoders.items():
            if there is not None and getattr(there, name, None) is kind:
                return encoder
    numpy = imported("numpy")
    if numpy is None:
        return None
    if issubclass(kind, numpy.dtype):
        return _dtype
    if issubclass(kind, numpy.generic) and kind.__module__ == "numpy":
        return _scalar
    return None


# --- where it is ----------------------------------------------------------------------------------


def _at(path: str) -> str:
    if not path:
        return ""
    short = path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + "..."
    return short if short.startswith(" ") else f" at {short}"


def _path(value: object, target: object) -> str:
    """How to come from a value to what was refused in it; empty: it is that, or was not found."""
    seen = {id(value)}
    rest = [(value, "")]
    while rest and len(seen) < _MOST_SEARCHED:
        owner, path = rest.pop()
        for step, part in _parts(owner):
            if part is target:
                return path + step
            if id(part) not in seen:
                seen.add(id(part))
                rest.append((part, path + step))
    return ""


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    kind = type(value)
    if kind is dict:
        for key, part in value.items():
            name = repr(key) if type(key) in (str, int, float, bool) else type_name(key)
            yield f"[{name}]", part
            yield f" (a key of type {type_name(key)})", key
    elif kind in (list, tuple):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif kind in (set, frozenset):
        yield from ((" (an element)", part) for part in value)
    elif kind is slice:
        yield from ((f".{name}", getattr(value, name)) for name in ("start", "stop", "step"))
    elif _is_namedtuple(kind):
        yield from (
            (f".{name}", part) for name, part in zip(kind.__match_args__, value, strict=False)
        )
    elif _is_dataclass(kind):
        with_names = iter(_attributes(value))
        while True:
            try:
                name, part = next(with_names)
            except (StopIteration, _RefusedError):
                return
            yield f".{name}", part


__all__ = ["encode", "module_name"]
