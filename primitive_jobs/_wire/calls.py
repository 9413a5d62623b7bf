"""A call as bytes, by pickle where that does, else by cloudpickle; and why it cannot be pickled."""

from __future__ import annotations

import _pickle as pickle
import sys
import types

from .._common.naming import one_line
from .pickling import PLAIN, PROTOCOL, SCRIPTS, dumps_referring, some_are_by_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .present import About
    from .seeding import Key

    Dumped = tuple[bytes, list[memoryview], tuple[Any, ...]]


def dump_call(
    function: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    key: Key | None = None,
    about: About = (),
    dumps: Callable[[Any], Dumped] = dumps_referring,
    tell: Callable[..., str] | None = None,
) -> Dumped:
    """Pickle one call; the third of what is returned is the shared data it refers to.

    With a ``key`` the worker seeds by it what is random. What is told ``about`` the job is first.
    ``dumps`` and ``tell`` are what pickles, and what says why it fails, of what needs cloudpickle.

    Raises:
        SerializationError: It cannot be pickled; the message names the function or argument.
    """
    call: tuple[Any, ...] = about, function, args, kwargs
    if key is not None:
        from .seeding import Entering  # which unseeded pools do without

        call = about, Entering(key), function, args, kwargs
    if _is_plain_call(function, args, kwargs):
        try:
            return pickle.dumps(call, PROTOCOL), [], ()
        except Exception:  # noqa: BLE001 - cloudpickle will do, or say why not
            pass
    try:
        return dumps(call)
    except Exception as error:
        from ..errors import SerializationError

        told = (tell or blame)("the function", name, (function, args, kwargs), error)
        raise SerializationError(told) from error


def blame(kind: str, name: str, call: Any, error: BaseException, pickler_type: Any = None) -> str:
    """Say what of a call cannot be pickled: see `culprit.blame`."""
    try:
        from . import culprit
    except Exception:  # noqa: BLE001 - no descriptor is left to import with
        return f"the call of {name}() cannot be serialized: {one_line(error)}"
    return culprit.blame(kind, name, call, error, pickler_type)


def _is_plain_call(
    function: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether pickle makes of the call what cloudpickle would, in a fifth of the time."""
    kind = type(function)
    if kind is types.FunctionType:
        # By reference, as cloudpickle decides it each time: the module is known by its name, and
        # nobody registered it to be pickled by value.
        module = function.__module__
        if type(module) is not str or module in SCRIPTS or module not in sys.modules:
            return False
        if some_are_by_value():
            return False
    elif kind is not types.BuiltinFunctionType or type(function.__self__) is not types.ModuleType:  # type: ignore[attr-defined]
        return False
    for arg in args:  # a generator takes longer than all of the loop
        if type(arg) not in PLAIN:
            return False
    return not kwargs or all(type(arg) in PLAIN for arg in kwargs.values())


__all__ = ["blame", "dump_call"]
