"""Checks of what a caller may set: `JobOptions` for a job, and the helpers for every other number.

A wrong value raises a `TypeError` or `ValueError` that names the argument, what it got and what
is right; nothing is ever coerced in silence.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any


def check_seconds(name: str, value: object, *, positive: bool = False) -> float | None:
    """Return ``value`` as seconds, None for None or infinity (no limit).

    Raises:
        TypeError: It is no real number (a bool is none).
        ValueError: It is NaN, or ``positive`` is asked for and it is not above 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a number of seconds or None, not {type(value).__name__} {value!r}"
        )
    seconds = float(value)
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds or None, not NaN")
    if positive and seconds <= 0:
        raise ValueError(f"{name} must be greater than 0 seconds (None is no limit), not {value!r}")
    return None if seconds == math.inf else seconds


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises:
        TypeError: It is no integer (a bool is none).
        ValueError: It is below ``least``.
    """
    count = check_int(name, value)
    if count < least:
        raise ValueError(f"{name} must be greater than {least - 1}, not {count}")
    return count


def check_int(name: str, value: object) -> int:
    """Return ``value`` as an int; raise `TypeError` for anything else, bool included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, not {type(value).__name__} {value!r}")
    return int(value)


def check_callable(name: str, value: object) -> None:
    """Raise `TypeError` unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__} {value!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class JobOptions:
    """What can be said of one job, besides its function and arguments.

    Attributes:
        name: Shown in messages and in ``repr``; default: the function's name.
        metadata: A dict that travels with the job, copied here; default: empty.
        timeout: Seconds the job may run, from RUNNING on, per attempt; then its process is
            killed and it ends with `JobTimeoutError`. Default None: no limit.
        priority: An int; higher runs first, first come first served within. Default 0.

    Raises:
        TypeError, ValueError: On construction, naming the option that is wrong.
    """

    name: str | None = None
    metadata: Mapping[str, Any] | None = None
    timeout: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name must be a str or None, not {type(self.name).__name__}")
        if isinstance(self.metadata, Mapping):
            object.__setattr__(self, "metadata", dict(self.metadata))
        elif self.metadata is not None:
            raise TypeError(f"metadata must be a dict or None, not {type(self.metadata).__name__}")
        object.__setattr__(self, "timeout", check_seconds("timeout", self.timeout, positive=True))
        object.__setattr__(self, "priority", check_int("priority", self.priority))

    def replace(self, changes: Mapping[str, Any]) -> JobOptions:
        """Return these options with ``changes`` made; an unknown name is a `TypeError`."""
        if not changes:
            return self
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"unknown option {name!r}; the options are {', '.join(known)}")
        return dataclasses.replace(self, **changes)


DEFAULT_OPTIONS = JobOptions()
