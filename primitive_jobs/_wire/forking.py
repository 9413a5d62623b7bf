"""Processes that a job starts by multiprocessing itself: they get what is the script's by value.

multiprocessing, and so `concurrent.futures`, pickles functions and classes as their names. In a
worker the script's have none: they came by value. So they go on by value, and so does what comes
back, from a process that has got them. Imported where a job imports ``multiprocessing.reduction``.
"""

from __future__ import annotations

import functools
import types

from .._common.imported import imported
from . import pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CACHED = type(functools.lru_cache(len))


def pickle_by_value(reduction: Any) -> None:
    """Teach the pickler of ``multiprocessing.reduction``, unless somebody else has."""
    if not hasattr(reduction.ForkingPickler, "reducer_override"):
        reduction.ForkingPickler.reducer_override = _reduce


def _reduce(pickler: object, obj: Any) -> Any:
    del pickler
    kind = type(obj)
    if kind is types.FunctionType or kind is _CACHED or issubclass(kind, type):
        if _has_lost_its_name(obj):
            return _load, (pickling.dumps_whole(obj),)
    elif kind.__name__ == "NewType" and _has_lost_its_name(obj):
        return _load, (pickling.dumps_whole(obj),)
    return NotImplemented


def _has_lost_its_name(obj: Any) -> bool:
    """Whether something is the script's, of which no process below a worker has more than it got.

    What a worker itself finds under the name (see `by_value`) is not there in those.
    """
    module = getattr(obj, "__module__", None)
    return type(module) is str and module in pickling.SCRIPTS


def _load(body: bytes) -> Any:
    process = imported("multiprocessing.process")
    # The second: what the process is to do is still being unpickled.
    if process is not None and (
        process.parent_process() is not None
        or getattr(process.current_process(), "_inheriting", False)
    ):
        from multiprocessing import reduction

        pickle_by_value(reduction)
    return pickling.loads(body)
