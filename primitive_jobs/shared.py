"""`share`: data that many jobs use, serialized and copied once.

A handle refers to a `SharedData`, which holds the pickled object in a nameless file. A pool sends
that file's descriptor to a worker before the first job that needs it; the worker maps it. Handles
and the jobs that are not final yet hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NoReturn, TypeVar, cast

from ._common.naming import one_line, type_name
from ._engine.sources import Data
from ._wire.pickling import dumps_referring, handle_types
from .errors import SerializationError

T = TypeVar("T")


class SharedData(Data):
    """One shared object, serialized.

    Attributes:
        nbytes: Its size, in bytes.
    """

    def __init__(self, value: object) -> None:
        super().__init__()
        body, buffers, self.shared = dumps_referring(value, out_of_band=1)
        self._hold(body, buffers)
        self.nbytes = self._parcel.size


class Shared:
    """What `share` returns: stands for the object among the arguments of a job, and only there."""

    __slots__ = ("__weakref__", "_name", "_source")

    def __init__(self, value: object) -> None:
        self._name = type_name(value)
        try:
            self._source = SharedData(value)
        except (OSError, MemoryError) as error:
            raise SerializationError(f"no memory to share a {self._name}: {error}") from error
        except Exception as error:
            try:
                from ._wire.culprit import why_not
            except Exception:  # noqa: BLE001 - no descriptor is left to import with
                why = one_line(error)
            else:
                why = why_not(value, error)
            raise SerializationError(
                f"a {self._name} cannot be shared: it cannot be serialized: {why}"
            ) from error

    def __reduce__(self) -> NoReturn:
        raise SerializationError(
            "what share() returns travels only among the function and arguments of a job: it "
            "cannot be pickled, returned or given as an initializer's argument"
        )

    def __copy__(self) -> Shared:
        return self

    def __deepcopy__(self, memo: object) -> Shared:
        return self

    def __repr__(self) -> str:
        return f"<shared {self._name}, {self._source.nbytes:,} bytes>"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} has no attribute {name!r}: {_ONLY_THERE}")

    def _misused(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{self!r} cannot be used here: {_ONLY_THERE}")

    __array__ = __call__ = __getitem__ = __len__ = __iter__ = __bool__ = _misused


source_of: Callable[[Shared], SharedData] = attrgetter("_source")
handle_types[Shared] = lambda handle: (handle._source.number, handle._source)

_ONLY_THERE = (
    "it stands for its object only in a job that gets it as an argument; here, use the object"
)


def share(value: T) -> T:
    """Serialize ``value`` once, for any number of jobs; return a handle to give to them.

    Among the function and arguments of a job, at any depth, the handle arrives as the object
    itself. Each worker gets the data once and maps it, however many of its jobs use it; the
    buffers of contiguous arrays are the very pages of the one copy, and read-only::

        table = share(numpy.random.rand(10_000, 1_000))
        jobs = [run(score, table, row) for row in range(100)]

    It is a snapshot: what happens to ``value`` later is not seen by the jobs. What is no array
    buffer (dicts, lists, small objects) is made anew for each job, so that no job sees what
    another one did to it. A job that returns the object, or gives it to processes of its own,
    copies it.

    The data goes, in this process and in the workers, when the last handle is dropped and the last
    job that got it is final. A job may keep a reference in a global of its worker: then it stays
    there for as long as that.

    Args:
        value: Anything that cloudpickle can pickle; handles may be inside.

    Returns:
        The handle. It is typed as what it stands for, so that calls with it are checked as calls
        with the object; it has none of its attributes.

    Raises:
        SerializationError: It cannot be pickled, or there is no memory for it.
    """
    return cast("T", Shared(value))
