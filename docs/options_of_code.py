"""What the reference tells of options: read from signatures and docstrings, never typed twice."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from primitive_jobs._common.signatures import PoolOptionsDict
from primitive_jobs.options import JobOptions
from primitive_jobs.pool import JobPool

_ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)  # of a section, in a cleaned docstring


class Option(NamedTuple):
    """One option: how a caller writes it, and what its docstring says; no default: it is needed."""

    name: str
    type: str
    default: str
    text: str

    @property
    def summary(self) -> str:
        """The first sentence, as far as a colon or the default."""
        return re.split(r"\.(?: |$)|: |; default", self.text, maxsplit=1)[0]


def job_options() -> list[Option]:
    """Return the options of a job, in the order of `JobOptions`."""
    texts = section(JobOptions, "Attributes")
    return [
        Option(field.name, str(field.type), repr(field.default), texts[field.name])
        for field in dataclasses.fields(JobOptions)
    ]


def pool_options(names: Iterable[str] | None = None) -> list[Option]:
    """Return the arguments of `JobPool`, or those with these names."""
    return _arguments(JobPool, names)


def cluster_options() -> list[Option]:
    """Return the arguments of `ClusterPool`; it needs `distributed`, or a mock of that."""
    from primitive_jobs.cluster import ClusterPool

    return _arguments(ClusterPool)


def _arguments(pool: Any, names: Iterable[str] | None = None) -> list[Option]:
    texts = section(pool, "Args")
    parameters = inspect.signature(pool.__init__).parameters
    return [
        Option(name, str(parameters[name].annotation), _default(parameters[name]), texts[name])
        for name in (texts if names is None else names)
    ]


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is inspect.Parameter.empty else repr(parameter.default)


def handed_on() -> list[Option]:
    """Return the arguments of `JobPool` that `JobExecutor` hands on."""
    return pool_options(PoolOptionsDict.__annotations__)


def section(documented: Any, title: str) -> Mapping[str, str]:
    """Return the entries of a section of a docstring, each as one line."""
    text = inspect.cleandoc(documented.__doc__ or "")
    body = re.split(r"^\w+:\n(?= )", text.split(f"\n{title}:\n")[1], flags=re.MULTILINE)[0]
    _, *parts = _ENTRY.split(body)
    return {
        name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)
    }


__all__ = ["Option", "cluster_options", "handed_on", "job_options", "pool_options", "section"]
