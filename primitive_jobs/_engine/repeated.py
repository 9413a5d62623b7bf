"""Large buffers that come with call after call: sent to each worker once, and private to each call.

They are known again by their owner, an object that lives for as long as the memory is its own, and
by where they are in that. What is in them is not looked at again: a comparison takes a sixth of the
time of a copy, and would hold up a caller that has many workers. So all batches of one call of
joblib's `Parallel` have what the first one had, as with joblib's own processes.
"""

from __future__ import annotations

import collections
import pickle
import weakref

from .._common.imported import imported
from .._wire.copies import LEAST, Copies, address_of
from .._wire.messages import KEEP
from .._wire.rows import Need
from .sources import Data

_MOST = 32  # of them at a time: each has a descriptor here, and one in each worker
_KEPT = 8  # of those that came again: they stay while no call that waits or runs has them


class Repeated(Data):
    """A buffer, of which each call that refers to it has a copy.

    Attributes:
        owner: Whose memory it was.
    """

    notes = KEEP

    def __init__(self, buffer: memoryview, owner: weakref.ref[object]) -> None:
        super().__init__()
        self.owner = owner
        self._hold(pickle.dumps(Copies(self.number), 5), (buffer,))


class RepeatedBuffers:
    """What the batches of one call of `Parallel` have brought so far.

    Several threads may use it at once: at worst a buffer is sent twice.
    """

    def __init__(self) -> None:
        # By address and bytes. The jobs that wait or run hold them.
        self._known: weakref.WeakValueDictionary[tuple[int, int], Repeated] = (
            weakref.WeakValueDictionary()
        )
        self._again: collections.deque[Repeated] = collections.deque(maxlen=_KEPT)

    def placed(self, buffer: memoryview) -> pickle.PickleBuffer | Need:
        """Return what is pickled in the place of a buffer: that, or what refers to a source."""
        address = None if buffer.nbytes < LEAST else address_of(buffer)
        owner = None if address is None else _owner_of(buffer)
        if address is None or owner is None:
            return pickle.PickleBuffer(buffer)
        where = address, buffer.nbytes
        source = self._known.get(where)
        if source is not None and source.owner() is owner():
            if source not in self._again:
                self._again.append(source)
            return Need(source)
        if len(self._known) >= _MOST:
            return pickle.PickleBuffer(buffer)
        try:
            source = Repeated(buffer, owner)
        except (OSError, MemoryError):  # it goes the way of all others, or that says why not
            return pickle.PickleBuffer(buffer)
        self._known[where] = source
        return Need(source)

    def let_go(self) -> None:
        """Keep none any more."""
        self._again.clear()


def _owner_of(buffer: memoryview) -> weakref.ref[object] | None:
    """Return who has the memory of a buffer for as long as he lives; None: that is not known."""
    numpy = imported("numpy")
    owner: object = buffer.obj
    while isinstance(owner, numpy.ndarray) and owner.base is not None:
        owner = owner.base
    owner = getattr(owner, "owner", owner)  # that of torch's: see `tensors`
    try:
        return weakref.ref(owner)
    except TypeError:
        return None


__all__ = ["Repeated", "RepeatedBuffers"]
