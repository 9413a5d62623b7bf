"""Jobs among the arguments of a call: they are found, and something else is put in their place.

Looked into are the arguments themselves, and what is exactly a list, a tuple or a dict (its
values), or a dataclass (its fields), at any depth. What holds a job is copied for that, all else is
left as it is: the user's own objects are not changed. What refers to itself, or twice to one thing,
does so in the copy.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable
from types import MemberDescriptorType
from typing import Any

from .standing import Standing

_FIELDS = "__dataclass_fields__"


class _Finder:
    """What of some arguments holds a job, at whatever depth.

    Attributes:
        holders: Those that do, by their ids.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self.holders: dict[int, object] = {}
        inside: dict[int, list[Any]] = {}  # in what a container is
        seen: dict[int, object] = {}
        with_jobs: list[object] = []
        waiting = list(roots)
        for root in waiting:
            seen[id(root)] = root
        while waiting:
            outer = waiting.pop()
            has_job = False
            for part in parts_of(outer):
                if isinstance(part, Standing):
                    has_job = True
                elif is_container(part):
                    inside.setdefault(id(part), []).append(outer)
                    if id(part) not in seen:
                        seen[id(part)] = part
                        waiting.append(part)
            if has_job:
                with_jobs.append(outer)
        while with_jobs:
            holder = with_jobs.pop()
            if id(holder) not in self.holders:
                self.holders[id(holder)] = holder
                with_jobs += inside.get(id(holder), ())


def is_container(value: object) -> bool:
    """Whether it is looked into."""
    kind = type(value)
    return kind is list or kind is tuple or kind is dict or hasattr(kind, _FIELDS)


def parts_of(value: Any) -> Iterable[Any]:
    """What is in it."""
    kind = type(value)
    if kind is list or kind is tuple:
        return value  # type: ignore[no-any-return]
    if kind is dict:
        return value.values()  # type: ignore[no-any-return]
    if hasattr(kind, _FIELDS):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return ()


class _Replacer:
    """Copies holders, with something else in the place of each job."""

    def __init__(self, holders: dict[int, object], stand_in: Callable[[Standing], object]) -> None:
        self._holders = holders
        self._stand_in = stand_in
        self._copies: dict[int, Any] = {}
        self._unfilled: list[Any] = []  # what was copied, and has its own content yet

    def of(self, root: Any) -> Any:
        """Return what stands for a value."""
        copied = self._of(root)
        while self._unfilled:
            self._fill(self._unfilled.pop())
        return copied

    def _of(self, value: Any) -> Any:
        if isinstance(value, Standing):
            return self._stand_in(value)
        if id(value) not in self._holders:
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        kind = type(value)
        if kind is tuple:  # what it refers to itself by is no tuple: that ends here
            copied: Any = tuple([self._of(part) for part in value])
        else:
            copied = kind() if kind is list or kind is dict else _copy_of(value)
            self._unfilled.append(value)
        return self._copies.setdefault(id(value), copied)

    def _fill(self, value: Any) -> None:
        copied, kind = self._copies[id(value)], type(value)
        if kind is list:
            copied += [self._of(part) for part in value]
        elif kind is dict:
            copied.update((key, self._of(part)) for key, part in value.items())
        else:
            for field in dataclasses.fields(value):
                part = getattr(value, field.name, None)
                if isinstance(part, Standing) or id(part) in self._holders:
                    object.__setattr__(copied, field.name, self._of(part))  # it may be frozen


def _copy_of(value: Any) -> Any:
    """Return a copy of a dataclass's object, made without code of the user's, as far as can be.

    Raises:
        TypeError: It is copied by nothing but itself, and must not be changed.
    """
    kind = type(value)
    try:
        copied = object.__new__(kind)
    except TypeError:  # it is of a type in C, too
        copied = copy.copy(value)
        if copied is value:
            raise TypeError(f"a {kind.__name__} cannot be copied") from None
        return copied
    if hasattr(value, "__dict__"):
        copied.__dict__.update(value.__dict__)
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            member = base.__dict__.get(_mangled(base, name))
            if isinstance(member, MemberDescriptorType) and name not in ("__dict__", "__weakref__"):
                with contextlib.suppress(AttributeError):  # it is not set
                    member.__set__(copied, member.__get__(value))
    return copied


def _mangled(kind: type, name: str) -> str:
    """Return what a private name of a class is called there."""
    private = name.startswith("__") and not name.endswith("__")
    return f"_{kind.__name__.lstrip('_')}{name}" if private else name


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], stand_in: Callable[[Standing], object]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with what ``stand_in`` makes of each job; that is called in their order."""
    replacer = _Replacer(_Finder((args, kwargs)).holders, stand_in)
    return replacer.of(args), replacer.of(kwargs)


__all__ = ["replaced"]
