"""`MapResults`: what a pool's ``map`` returns, an iterator that can say how far the calls are.

`Followed` is whatever `track` can show the progress of besides jobs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from operator import attrgetter
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Progress(Protocol):
    """Calls under way, for whoever shows them.

    Attributes:
        on_wait: Called whenever the consumer is about to wait for a result; it returns when it is
            to be called again, on the monotonic clock, or None. What it raises ends the waiting.
    """

    on_wait: Callable[[], float | None] | None

    def total(self) -> int | None:
        """Return how many calls there will be; None where the iterables do not say."""
        ...

    def calls_ended(self) -> int:
        """Return how many calls have returned."""
        ...

    def jobs_running(self) -> int:
        """Return how many jobs, of one or several calls each, run now."""
        ...


class Followed(Iterable[T_co]):
    """Results of calls that are under way."""

    __slots__ = ("__weakref__", "_progress")
    _progress: Progress

    @abstractmethod
    def close(self) -> None:
        """There are no further results for whoever has iterated."""


class MapResults(Followed[T_co], Iterator[T_co]):
    """The results of `JobPool.map`, in its order.

    To be iterated over once. `track` shows how far it is.
    """

    __slots__ = ("_results",)

    def __init__(self, results: Generator[T_co, None, None], progress: Progress) -> None:
        self._results = results
        self._progress = progress

    def __iter__(self) -> Iterator[T_co]:  # noqa: PYI034
        return self._results  # a loop asks that itself then, in C

    def __next__(self) -> T_co:
        return next(self._results)

    def close(self) -> None:
        """Cancel what is unfinished; there are no further results then."""
        self._results.close()

    def __repr__(self) -> str:
        progress, total = self._progress, self._progress.total()
        of = "" if total is None else f" of {total}"
        return f"<{type(self).__name__}: {progress.calls_ended()}{of} calls have returned>"


progress_of: Callable[[Followed[Any]], Progress] = attrgetter("_progress")

__all__ = ["Followed", "MapResults", "Progress", "progress_of"]
