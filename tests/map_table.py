"""Runs cases by `submit`, by `map` with chunks of several sizes, and by an executor's `map`.

Each case makes a function and the iterables for it anew. What a call returns tells what it has
seen. Prints as JSON how each of them ended; `test_map_semantics` compares.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from primitive_jobs import JobExecutor, JobPool, mapping

Case = Callable[[Any], tuple[Any, ...]]
# Three chunks of five, a first, one between and a last; what goes wrong in a case does so in that.
CALLS = 15
BAD = 12
CHUNKS: dict[str, int | None] = {"1": 1, "5": 5, "automatic": None, "fifty": None}
PATIENCE = 60.0  # s


def shown(value: Any, module: str) -> str:
    """A value by its type, which must be the caller's own, and what is in it."""
    kind = type(value)
    own = vars(sys.modules[module]).get(kind.__name__)
    if kind.__module__ == module and own not in (kind, None):
        return f"another {kind.__name__}"
    if isinstance(value, (list, tuple)):
        return f"{kind.__name__}[{', '.join(shown(item, module) for item in value)}]"
    if isinstance(value, Exception) or kind.__name__ == "Box":
        return f"{kind.__name__}{shown(sorted(vars(value).items()), module)}"
    return f"{kind.__name__} {value!r}"


class Table:
    """Runs the cases of a module."""

    def __init__(self, pool: JobPool, module: str) -> None:
        self.pool = pool
        self.module = module

    def outcome_of(self, ask: Callable[[], Any]) -> str:
        try:
            return shown(ask(), self.module)
        except StopIteration:
            return "no more"
        except Exception as error:
            if type(error).__name__ == "Oops":
                return f"raised {shown(error, self.module)}"
            return type(error).__name__

    def by_submit(self, make: Case) -> list[str]:
        function, *iterables = make(self.pool)
        jobs = [self.pool.submit(function, *row) for row in zip(*iterables, strict=False)]
        asks = [functools.partial(job.result, PATIENCE) for job in jobs]
        return [self.outcome_of(ask) for ask in asks]

    def by_map(self, make: Case, start: Callable[..., Iterator[Any]]) -> list[str]:
        function, *iterables = make(self.pool)
        results = start(function, *iterables)
        return list(iter(lambda: self.outcome_of(lambda: next(results)), "no more"))

    def compare(self, make: Case) -> dict[str, list[str]]:
        found = {"submit": self.by_submit(make)}
        start: Callable[..., Iterator[Any]]
        for label, size in CHUNKS.items():
            before = mapping.ChunkSize.__init__
            if label == "fifty":
                setattr(mapping.ChunkSize, "__init__", start_with_fifty)  # noqa: B010
            try:
                start = functools.partial(self.pool.map, chunksize=size)
                found[label] = self.by_map(make, start)
            finally:
                setattr(mapping.ChunkSize, "__init__", before)  # noqa: B010
        with JobExecutor(pool=self.pool) as executor:
            for size in (1, 5):
                start = functools.partial(executor.map, chunksize=size)
                found[f"executor {size}"] = self.by_map(make, start)
        return found


def start_with_fifty(size: mapping.ChunkSize) -> None:
    size.calls = 50


def main(cases: dict[str, Case], left_out: set[str], module: str) -> None:
    """Run the cases, or those named as the program's arguments."""
    wanted = sys.argv[1:] or [name for name in cases if name not in left_out]
    with JobPool(2) as pool:
        table = Table(pool, module)
        print(json.dumps({name: table.compare(cases[name]) for name in wanted}))
