"""`Fact`: a frozen record, as cheap to import and to make as can be.

All of its kinds are frozen dataclasses for the type checker. At run time it takes the place of that
decorator, which takes 1 ms for each class when this is imported; and those that every job needs
have an `__init__` written out, in which they are made in 0.25 us instead of 0.7 us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        """Change nothing."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Fact:
    """A record whose fields are its annotations; equal to another of its kind with equal fields."""

    _fields: ClassVar[tuple[str, ...]] = ()

    if not TYPE_CHECKING:

        def __init_subclass__(cls) -> None:
            cls._fields = cls.__match_args__ = tuple(cls.__annotations__)

        def __init__(self, *values: object, **named: object) -> None:
            if len(values) > len(self._fields) or not named.keys() <= set(self._fields):
                raise TypeError(f"{type(self).__name__}{self._fields} got {values} and {named}")
            self.__dict__.update(zip(self._fields, values, strict=False), **named)

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({', '.join(shown)})"


__all__ = ["Fact"]
