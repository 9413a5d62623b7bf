"""Keys: what a stored call is known by, and what its arguments are shown as.

A key is the BLAKE2b over the name of the function, its version, the pool's entropy and the
arguments, all in their canonical encoding. It has 128 bits: of a thousand million keys two are the
same with a probability of 1e-21, it is short enough to be copied by hand, and it makes four
words of a spawn key, of which a point's seed is made.

Arguments are bound to the signature first: `f(1)`, `f(x=1)` and a default that is spelled out are
one call. What a partial or a bound method brings along is an argument like the others.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import reprlib
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any

from .._common.imported import imported
from .._common.naming import call_name, type_name
from .canonical import encode, module_name

_SIZE = 16  # bytes of a key
_PERSON = b"primitive_jobs/1"  # of another form of keys this is another one
_LONGEST = 200  # characters that one argument is shown with

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword arguments."""


# --- points and arguments -------------------------------------------------------------------------


def call_of(point: object) -> Call:
    """Return what the function is called with for a point.

    That is a dict of keyword arguments, a tuple of positional ones, or anything else as the only
    argument. A namedtuple is such a single value.

    Raises:
        TypeError: A dict has keys that are no names.
    """
    if isinstance(point, dict):
        for name in point:
            if type(name) is not str:
                raise TypeError(
                    "a point that is a dict holds keyword arguments, but this one has a key of "
                    f"type {type_name(name)}; a dict that is the argument itself goes into a "
                    "tuple: (point,)"
                )
        return (), {**point}
    if type(point) is tuple:
        return point, {}
    return (point,), {}


class Binding:
    """How the arguments of one function are brought into one form.

    Args:
        function: The function; partials and bound methods are taken apart.
        ignore: Names of arguments that are left out.

    Raises:
        ValueError: The function has no argument of a name to be ignored.
    """

    def __init__(self, function: Callable[..., object], ignore: Iterable[str] = ()) -> None:
        if isinstance(ignore, str):
            ignore = (ignore,)
        self._name = call_name(function)
        self._ignore = frozenset(ignore)
        target, self._args, self._kwargs = _taken_apart(function)
        self.signature = _signature(target)
        if self.signature is not None:
            self._check_ignore(self.signature)

    def bind(self, point: object) -> dict[str, object]:
        """Return all arguments of a point's call by name, those with defaults included.

        A function without a signature, as many in C, has positional arguments by number.

        Raises:
            TypeError: The function does not take them.
        """
        return self.without_ignored(self.bind_call(*call_of(point)))

    def bind_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments of a call by name, those included that are to be ignored.

        Raises:
            TypeError: The function does not take them.
        """
        args, kwargs = (*self._args, *args), {**self._kwargs, **kwargs}
        if self.signature is None:
            return _by_number(args, kwargs)
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}() does not take this point: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def without_ignored(self, arguments: dict[str, Any]) -> dict[str, object]:
        """Return bound arguments but those that make no difference."""
        if not self._ignore:
            return arguments
        kept = {name: value for name, value in arguments.items() if name not in self._ignore}
        more = self._name_of_more()
        if more in kept:
            given = kept[more].items()
            kept[more] = {name: value for name, value in given if name not in self._ignore}
        return kept

    def _name_of_more(self) -> str | None:
        """What the function calls its other keyword arguments; None: it takes none."""
        parameters = {} if self.signature is None else self.signature.parameters
        kind = inspect.Parameter.VAR_KEYWORD
        return next((name for name, one in parameters.items() if one.kind is kind), None)

    def _check_ignore(self, signature: inspect.Signature) -> None:
        unknown = sorted(self._ignore - signature.parameters.keys())
        if unknown and self._name_of_more() is None:
            raise ValueError(
                f"ignore names {unknown[0]!r}, but {self._name}() has no such argument"
            )


def _taken_apart(function: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What is called in the end, and the arguments that come with it.

    They decide what is computed: of two partials of one function, each has its own points.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while True:
        kind = type(function)
        if kind is functools.partial:
            args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
            function = function.func
        elif kind is types.MethodType:
            owner = function.__self__
            args, function = (_name_of_class(owner), *args), function.__func__
        elif kind is types.BuiltinMethodType:
            owner = function.__self__
            if isinstance(owner, types.ModuleType | None):  # it is no method
                return function, args, kwargs
            return function, (_name_of_class(owner), *args), kwargs
        else:
            method = _python_method(kind, "__call__")
            if isinstance(function, type) or method is None or hasattr(function, "__wrapped__"):
                return function, args, kwargs
            args, function = (function, *args), method


def _name_of_class(owner: object) -> object:
    """What a method is called with; in place of a class its name, which can be encoded."""
    if isinstance(owner, type):
        return f"{module_name(owner.__module__)}.{owner.__qualname__}"
    return owner


def _python_method(kind: type, name: str) -> Callable[..., object] | None:
    method = getattr(kind, name, None)
    return method if type(method) is types.FunctionType else None


def _signature(function: Any) -> inspect.Signature | None:
    """The signature of a Python function; None for C, where Python versions differ about it."""
    if isinstance(function, type):
        kinds = (type(function), "__call__"), (function, "__new__"), (function, "__init__")
        written = any(_python_method(kind, name) for kind, name in kinds)
    else:
        written = type(function) is types.FunctionType or hasattr(function, "__wrapped__")
    if not written:
        return None
    try:
        if sys.version_info >= (3, 14):  # names that are not there yet are none of our business
            from annotationlib import Format

            return inspect.signature(function, annotation_format=Format.FORWARDREF)
        return inspect.signature(function)
    except ValueError:
        return None


def _by_number(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, object]:
    for name in kwargs:
        if not name.isidentifier():  # it might be a number
            raise TypeError(f"{name!r} is no name of an argument")
    return {**{str(number): value for number, value in enumerate(args)}, **kwargs}


# --- keys -----------------------------------------------------------------------------------------


def from_arguments(arguments: Mapping[str, object]) -> bytes:
    """Return what stands for bound arguments in a key.

    Raises:
        TypeError: One of them cannot be encoded; it is named.
    """
    parts = (
        encode(name) + encode(value, f"the argument {name!r}")
        for name, value in sorted(arguments.items())
    )
    return b"arguments " + b"".join(parts)


def from_key_value(value: object) -> bytes:
    """Return the same for what ``key=`` has made of a point.

    Raises:
        TypeError: It cannot be encoded.
    """
    return b"key " + encode(value, "what key= has made of the point")


def key_of(name: str, content: bytes, *, version: object = None, entropy: object = None) -> str:
    """Return the key of a call, of 32 hexadecimal digits.

    Args:
        name: The function's name in the store.
        content: What `from_arguments` or `from_key_value` has made of the point.
        version: The one that was given for the function; None: none was.
        entropy: What the pool's randomness follows from; None: the pool has no seed.

    Raises:
        TypeError: The version cannot be encoded.
    """
    key = blake2b(digest_size=_SIZE, person=_PERSON)
    key.update(encode(name))
    key.update(encode(version, "version="))
    key.update(encode(entropy, "the pool's seed"))
    key.update(content)  # it is the last, so that where it ends is clear
    return key.hexdigest()


def seed_words(key: str) -> tuple[int, int, int, int]:
    """The four words of 32 bits that a key is, for a spawn key."""
    first, second, third, fourth = struct.unpack(">4I", bytes.fromhex(key))
    return first, second, third, fourth


# --- arguments to look at -------------------------------------------------------------------------


class _NotPlainError(Exception):
    """JSON has no form of a value, or only a long one."""


class _Short(reprlib.Repr):
    """A repr that looks at the begin of long things only, and says of arrays what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 10

    def repr_ndarray(self, array: Any, _: int) -> str:
        """What it is; called by the type's name."""
        return f"array of {array.dtype}, shape {array.shape}"


def shown(arguments: Mapping[str, object]) -> str:
    """Return arguments as a JSON object: plain values as they are, of others a short text.

    What somebody's ``__repr__`` raises is not raised here.
    """
    return json.dumps({name: _shown_one(value) for name, value in arguments.items()})


def _shown_one(value: object) -> object:
    try:
        plain = _plain(value, 0)
        if len(json.dumps(plain)) <= _LONGEST:
            return plain
    except _NotPlainError:
        pass
    try:
        text = _Short().repr(value)
    except Exception:  # noqa: BLE001 - it is somebody else's
        text = f"<{type_name(value)}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _plain(value: Any, depth: int) -> object:
    value = _as_python(value)
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int and value.bit_length() <= 3 * _LONGEST:
        return value
    if kind is float:
        return value if math.isfinite(value) else repr(value)  # JSON has neither NaN nor infinity
    if kind in (list, tuple, dict) and len(value) <= _LONGEST and depth <= 5:  # 5: reads well
        if kind is not dict:
            return [_plain(part, depth + 1) for part in value]
        if all(type(name) is str for name in value):
            return {name: _plain(part, depth + 1) for name, part in value.items()}
    raise _NotPlainError


def _as_python(value: Any) -> Any:
    """The number that a numpy scalar is, whose repr has changed with numpy 2."""
    numpy = imported("numpy")
    if numpy is not None and isinstance(value, numpy.bool_ | numpy.integer | numpy.floating):
        item = value.item()
        return item if type(item) in (bool, int, float) else value
    return value


__all__ = [
    "Binding",
    "Call",
    "call_of",
    "from_arguments",
    "from_key_value",
    "key_of",
    "seed_words",
    "shown",
]
