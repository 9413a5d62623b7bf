"""`Awaited`: another job's result on its way to a job that waits for it; and `Result`, its bytes.

A worker has sent the result as a pickle, in a datagram or in a file. It is sent on as it is, ahead
of the call that it is for: nobody unpickles it here, and a file is not even read::

    worker ═══► Message ──► Result ◄── Awaited ◄── payload of a job ═══► another worker
                   │           ▲ ◄──── Awaited ◄── payload of another one
                   └► Outcome: for who asks for the result

Each `Awaited` is one job's, and lives as long as its payload: it is sent with each attempt. The
`Result` is made once, by the dispatcher of the job that has ended, before anybody can see that:
whoever asks for the result may change what it is made of. Where that was too early, somebody who
has seen the end makes it.
"""

from __future__ import annotations

import collections
import contextlib
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._common.lock_free import members
from .._wire.messages import Filed, Kind, Message
from .._wire.parcel import HAVE_PACKETS, INLINE_LIMIT, Parcel
from .._wire.pickling import dumps
from .sources import Source, file_limit

if TYPE_CHECKING:
    from .tracker import Holder, StatusTracker

    class Ends(Protocol):
        """A job's record."""

        name: str
        tracker: StatusTracker
        wanted: weakref.WeakSet[Awaited] | None


_in_files: set[int] = set()  # the ids of those results that hold a descriptor


class Result:
    """A pickled result, never changed: several pools' threads may use it."""

    __slots__ = ("__weakref__", "_parcel")

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = parcel
        if parcel.fd >= 0:
            _in_files.add(id(self))

    @classmethod
    def of(cls, message: Message) -> Result:
        """Return the one that a worker has sent; raises OSError or MemoryError."""
        file = message.file if type(message) is Filed else None  # once: see `Filed`
        if file is not None and _may_hold_descriptor():
            return cls(file)
        body, buffers = message.body, message.buffers
        return cls._packed(body, buffers)

    @classmethod
    def of_value(cls, value: object) -> Result:
        """Return that of a result which somebody has unpickled: whatever the pickling raises."""
        return cls._packed(*dumps(value))

    @classmethod
    def _packed(cls, body: bytes | bytearray | memoryview, buffers: Sequence[memoryview]) -> Result:
        large = len(body) + sum(each.nbytes for each in buffers) > INLINE_LIMIT
        to_file = large and HAVE_PACKETS and _may_hold_descriptor()
        if not to_file:
            body = bytes(body)  # of an inline message it is what whoever unpickles it may change
        return cls(Parcel(body, buffers, to_file=to_file))  # type: ignore[arg-type]

    def __del__(self) -> None:
        _in_files.discard(id(self))

    def parcel_for(self, *, packets: bool) -> Parcel:
        """What to send, over either kind of channel."""
        if not packets:
            return self._parcel.copy_of_bytes()
        if self._parcel.fd >= 0:
            return self._parcel
        return Parcel.of_packed(self._parcel.data, self._parcel.buffers)


def _may_hold_descriptor() -> bool:
    return len(_in_files) < file_limit()


class Awaited(Source):
    """A result that one job waits for.

    Attributes:
        record: That of the job that it is of, until it is there.
        content: The result, once it is there. Written by one thread at a time: see above.
        failure: Why it is not, though the job has returned it: it cannot be pickled again.
    """

    kind = Kind.RESULT

    def __init__(self, record: Ends) -> None:
        super().__init__()
        self.record: Ends | None = record
        self.content: Result | None = None
        self.failure: Exception | None = None

    def parcel_for(self, *, packets: bool) -> Parcel:
        """What to send, over either kind of channel."""
        assert self.content is not None, "the job was held back until then"
        return self.content.parcel_for(packets=packets)

    def expect(self) -> None:
        """Have the result put here when the job ends, before anybody can ask for it."""
        record = self.record
        assert record is not None, "it is not there yet"
        wanted = record.wanted
        if wanted is None:  # where two come at once, one is put aside, and finds it later
            record.wanted = wanted = weakref.WeakSet()
        wanted.add(self)

    def take_unread(self) -> bool:
        """Take the result of a job that has returned, unless somebody has unpickled it."""
        record = self.record
        if self.content is None and record is not None:
            outcome = record.tracker.outcome
            source = None if outcome is None else outcome.source
            if not isinstance(source, Message):
                return False
            self.content = Result.of(source)
        return True

    def pickle_again(self, job: Holder) -> None:
        """Take the result that somebody has unpickled; where code of the user's may run."""
        record = self.record
        assert record is not None, "it is not there yet"
        outcome = record.tracker.outcome
        assert outcome is not None, "it has returned"
        value, _ = outcome.load(job)
        try:
            self.content = Result.of_value(value)
        except Exception as error:  # noqa: BLE001 - whatever a __reduce__ raises
            self.failure = error


class Place:
    """What is pickled in the place of a job: the result that comes ahead of the call."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __deepcopy__(self, memo: object) -> Place:
        """Itself: a dataclass may copy what is in it while it is pickled."""
        return self

    def __copy__(self) -> Place:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from .._wire.pickling import load_awaited

        return load_awaited, (self.number,)


_UNREAD = 16  # results in files at most whose files are kept for jobs that may come
_unread: collections.deque[weakref.ref[Filed]] = collections.deque()  # all pools'


def keep_file(message: Filed) -> None:
    """Keep the file of a result, which nobody has unpickled yet, and close that of an earlier one.

    Called by the one who has settled its job. With the message, which goes as soon as somebody
    has unpickled it, the file is closed, too.
    """
    _unread.append(weakref.ref(message))
    if len(_unread) > _UNREAD:
        with contextlib.suppress(IndexError):  # another pool's thread was faster
            earlier = _unread.popleft()()
            if earlier is not None:
                earlier.file = None


class Over:
    """In the place of all that a job has waited for, when nothing is sent any more."""

    __slots__ = ()
    record = None


OVER = (Over(),)


def deliver(wanted: weakref.WeakSet[Awaited], message: Message) -> None:
    """Give a result to those who wait for it; raises OSError or MemoryError."""
    waiting = [each for each in members(wanted) if each.content is None]
    if waiting:
        content = Result.of(message)
        for awaited in waiting:
            awaited.content = content


__all__ = ["OVER", "Awaited", "Over", "Place", "Result", "deliver", "keep_file"]
