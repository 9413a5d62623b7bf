"""Keyword arguments that several signatures have in common, for type checkers and `help`.

A new option is added here, to its class in `options`, and to nothing else.
"""

import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from numpy.random import SeedSequence
    from typing_extensions import Self, Unpack
else:  # typing_extensions is not needed to run; Python 3.10 has neither of them
    Self = getattr(typing, "Self", object)
    Unpack = getattr(typing, "Unpack", typing.Optional)
    SeedSequence = Any  # nor is numpy

Seed: TypeAlias = typing.Union[int, Sequence[int], SeedSequence]  # noqa: UP007 - it is evaluated


class JobOptionsDict(TypedDict, total=False):
    """The fields of `JobOptions`, as keyword arguments."""

    name: str | None
    metadata: Mapping[str, Any] | None
    timeout: float | None
    priority: int
    memory_limit: float | str | None
    retries: int
    grace: float
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    keep_call: bool
    output: str | os.PathLike[str] | None
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None
    retry_delay: float
    cpus: int
    memory: float | str | None
    resources: Mapping[str, int] | None


class PoolOptionsDict(TypedDict, total=False):
    """Arguments of `JobPool` that `JobExecutor` hands on."""

    env: Mapping[str, str] | None
    threads_per_worker: int | None
    idle_timeout: float | None
    max_jobs_per_worker: int | None
    memory_limit: float | str | None
    memory: float | str | None
    resources: Mapping[str, int] | None
    output: str | os.PathLike[str]
    forward_logs: bool
    preload: Iterable[str] | None
    spare_workers: int
    seed: Seed | None
    on_exit: Literal["wait", "cancel"]
    visible: bool


__all__ = ["JobOptionsDict", "PoolOptionsDict", "Seed", "Self", "Unpack"]
