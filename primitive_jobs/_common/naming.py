"""What to call functions, types and errors in messages, whatever they are; nothing here raises."""

from __future__ import annotations

import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def call_name(function: Callable[..., object]) -> str:
    """What to call a function in messages: its qualified name, or its type's."""
    if type(function) is types.FunctionType:
        return str.__str__(function.__qualname__)  # which may be of a subclass, with its own ways
    try:
        name = getattr(function, "__qualname__", None)
        if not isinstance(name, str):
            name = getattr(getattr(function, "func", None), "__qualname__", None)  # a partial
    except Exception:  # noqa: BLE001 - whatever a __getattr__ raises
        name = None
    return str.__str__(name) if isinstance(name, str) else type_name(function)


def type_name(value: object) -> str:
    """The name of an object's type, whatever a metaclass says."""
    return str(type.__dict__["__name__"].__get__(type(value)))


def message_of(error: BaseException) -> str:
    """An exception's text."""
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - a __str__ that raises
        return "(its message cannot be shown)"


def one_line(error: BaseException) -> str:
    """Type and message, whatever the exception's methods do."""
    message = " ".join(message_of(error).split())
    return f"{type_name(error)}: {message}" if message else type_name(error)
