"""Copies of exceptions that hold nothing of what led to them."""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


def bare_twin(error: E) -> E:
    """Return an exception of the same kind, with the same arguments and attributes, and no more.

    `copy.copy` is not it: libraries, tblib for one, teach that to keep tracebacks, causes and
    contexts, which hold frames and with them whatever is the user's.

    Raises:
        Exception: It cannot be made anew, or something else came of it.
    """
    made: Any = error.__reduce__()
    make, arguments, *rest = made
    twin: E = make(*arguments)
    if type(twin) is not type(error):
        raise TypeError(f"{type(error)!r} makes a {type(twin)!r} of itself")
    if rest and rest[0]:
        twin.__setstate__(rest[0])
    return twin


__all__ = ["bare_twin"]
