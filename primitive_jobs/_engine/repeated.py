"""Large buffers that come with call after call: sent to each worker once, and private to each call.

One is known again by where it is in memory and by what is in it: that is compared, each time, with
what was sent. So each call has it as it was when the call was submitted, whoever has written to it
since. To compare takes a quarter of the time of a copy, and lets other threads run.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import pickle
import time
import weakref
from typing import TYPE_CHECKING, Any

from .._common.imported import imported
from .._wire.copies import LEAST, Copies, address_of
from .._wire.messages import KEEP
from .._wire.parcel import map_file, unpack
from .._wire.rows import Need
from .sources import Data

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST = 32  # of them at a time: each has a descriptor here, and one in each worker
# Of those that came again: they stay while no call that waits or runs has them.
_KEPT = 8
_KEPT_BYTES = 1 << 30  # but the latest, which may have more
# One thread compares for all workers: it shall be at that a quarter of its time.
_TIMES = 4
_LONGEST = 0.1  # s, for which a batch is made longer; half of what joblib's backend makes shorter


class Repeated(Data):
    """A buffer as it was, of which each call that refers to it has a copy.

    Attributes:
        owner: Whose memory it was, and for as long as that lives; None: that is not known.
        nbytes: The buffer's size.
    """

    notes = KEEP

    def __init__(self, buffer: memoryview, owner: weakref.ref[object] | None) -> None:
        super().__init__()
        self.owner = owner
        self.nbytes = buffer.nbytes
        self._content: memoryview | None = None  # mapped when it is first compared
        self._hold(pickle.dumps(Copies(self.number), 5), (buffer,))

    def may_come_again(self) -> bool:
        """Whether its memory is still there."""
        return self.owner is not None and self.owner() is not None

    def is_same(self, buffer: memoryview) -> bool:
        """Whether a buffer of this size has the same in it; raises OSError."""
        if self._content is None:
            parcel = self._parcel
            whole = (
                memoryview(parcel.data)
                if parcel.fd < 0
                else map_file(parcel.fd, parcel.size, mmap.MAP_SHARED)
            )
            self._content = unpack(whole, parcel.buffers)[1][0]
        return not _memcmp()(address_of(buffer), address_of(self._content), self.nbytes)


@functools.cache
def _memcmp() -> Any:
    """C's: three quarters of the time of numpy's comparison of blocks; it holds no lock."""
    import ctypes

    function = ctypes.CDLL(None).memcmp
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    return function


class RepeatedBuffers:
    """What the batches of one call of `Parallel` have brought so far.

    Several threads may use it at once: at worst a buffer is sent twice, or one more than so many.

    Args:
        workers: How many take batches.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._batches = 0
        self._compared = 0.0  # s, for all of them
        # The jobs that wait or run hold them. By address and bytes, each as it was at last.
        self._known: weakref.WeakValueDictionary[tuple[int, int], Repeated] = (
            weakref.WeakValueDictionary()
        )
        self._alive: weakref.WeakSet[Repeated] = weakref.WeakSet()
        self._again: list[Repeated] = []
        self._latest: Repeated | None = None  # it may come again before a job holds it

    def next_batch(self) -> Callable[[memoryview], pickle.PickleBuffer | Need]:
        """Return `placed`, for a batch more."""
        self._batches += 1
        return self.placed

    def seconds_wanted(self) -> float:
        """How long a batch should run, so that the comparisons for it hold up no worker."""
        if not self._batches:
            return 0.0
        return min(_TIMES * self._workers * self._compared / self._batches, _LONGEST)

    def placed(self, buffer: memoryview) -> pickle.PickleBuffer | Need:
        """Return what is pickled in the place of a buffer: that, or what refers to a source."""
        address = None if buffer.nbytes < LEAST else address_of(buffer)
        source = None
        if address is not None:
            # Else it goes the way of all others, or that says why not.
            with contextlib.suppress(OSError, MemoryError):
                source = self._source((address, buffer.nbytes), buffer)
        return pickle.PickleBuffer(buffer) if source is None else Need(source)

    def _source(self, where: tuple[int, int], buffer: memoryview) -> Repeated | None:
        source = self._known.get(where)
        started = time.perf_counter()
        is_same = source is not None and source.is_same(buffer)
        self._compared += time.perf_counter() - started
        kept = [each for each in self._again if each is not source and each.may_come_again()]
        if source is not None and is_same and source.may_come_again():
            kept.append(source)
        while len(kept) > _KEPT or (
            len(kept) > 1 and sum(each.nbytes for each in kept) > _KEPT_BYTES
        ):
            del kept[0]
        self._again = kept
        if is_same:
            return source
        if len(self._alive) >= _MOST:
            return None
        self._known[where] = source = Repeated(buffer, _owner_of(buffer))
        self._alive.add(source)
        self._latest = source
        return source

    def let_go(self) -> None:
        """Keep none any more."""
        self._again, self._latest = [], None


def _owner_of(buffer: memoryview) -> weakref.ref[object] | None:
    """Return who has the memory of a buffer for as long as he lives; None: that is not known."""
    numpy = imported("numpy")
    owner: Any = buffer.obj
    while isinstance(owner, numpy.ndarray) and owner.base is not None:
        owner = owner.base
    owner = getattr(owner, "owner", owner)  # that of torch's: see `tensors`
    try:
        return weakref.ref(owner)
    except TypeError:
        return None


__all__ = ["Repeated", "RepeatedBuffers"]
