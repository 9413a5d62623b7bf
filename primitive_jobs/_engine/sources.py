"""What is sent to a worker ahead of the jobs that refer to it, once, however many they are.

A call's pickle says a number in its place; the payload of the job holds the `Source`. When that
goes, with the last job that got it, it says so to the pools it was sent by, and they to their
workers. `Descriptor` is the one for sockets and multiprocessing's connections: their pickles would
be the bare number of a descriptor, which is another one in another process.
"""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from .._wire import pickling
from .._wire.messages import Kind
from .._wire.parcel import HAVE_PACKETS, Parcel

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_numbers = itertools.count(1)


class User(Protocol):
    """A pool that has sent a source to its workers."""

    def forget(self, number: int) -> None:
        """Have the workers let it go; called by a finalizer, so it neither blocks nor raises."""


class Source:
    """Something that workers are sent ahead.

    Attributes:
        kind: Of the message that brings it.
        notes: What goes with it.
        number: Unique in this process.
        shared: The sources that it refers to itself.
    """

    kind: Kind
    notes = b""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.shared: Sequence[Source] = ()
        # Each pool's thread adds it; whoever drops the pool takes it out.
        self._users: set[weakref.ref[User]] = set()

    def parcel_for(self, *, packets: bool) -> Parcel:
        """What to send, over either kind of channel."""
        raise NotImplementedError

    def used_by(self, user: User) -> None:
        """Have ``user.forget(number)`` called at the end of this."""
        self._users.add(weakref.ref(user, self._users.discard))

    def __del__(self) -> None:
        for known in list(getattr(self, "_users", ())):  # none, where an interrupt came very early
            user = known()
            if user is not None:
                user.forget(self.number)


class Data(Source):
    """Pickled data, in a nameless file where there are such."""

    kind = Kind.SHARE

    def _hold(self, body: bytes, buffers: Sequence[memoryview]) -> None:
        """Take in a pickle and its buffers; raises OSError or MemoryError."""
        self._parcel = Parcel(body, buffers, to_file=HAVE_PACKETS)
        if HAVE_PACKETS:
            self._parcel.file()  # never changed after this: several pools' threads may use it

    def parcel_for(self, *, packets: bool) -> Parcel:
        """What to send, over either kind of channel."""
        return self._parcel if packets else self._parcel.copy_of_bytes()


# --- descriptors ----------------------------------------------------------------------------------


class Descriptor(Source):
    """A duplicate of a descriptor, open for as long as a job that got it is not final.

    So its owner may close his own as soon as the job is submitted, a retry gets it, too, and of a
    job that never runs nothing is left. Each call gets a duplicate of its own.
    """

    kind = Kind.LEND

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._parcel = Parcel.of_descriptor(fd)

    def is_of(self, fd: int) -> bool:
        """Whether it is a duplicate of what a number stands for now."""
        return os.path.sameopenfile(fd, self._parcel.fd)

    def parcel_for(self, *, packets: bool) -> Parcel:
        """The same over both."""
        del packets
        return self._parcel


# Many jobs may get the same one, and hold it with one descriptor. Written by any thread; at worst
# two that come at once make two sources.
_lent: weakref.WeakKeyDictionary[Any, weakref.ref[Descriptor]] = weakref.WeakKeyDictionary()


def _source_of(holder: Any) -> Descriptor:
    fd = holder.fileno()
    try:
        known = _lent.get(holder)
    except TypeError:  # a connection that cannot be hashed: each job has a descriptor of its own
        return Descriptor(fd)
    source = None if known is None else known()
    if source is None or not source.is_of(fd):  # another file may have its number by now
        source = Descriptor(fd)
        _lent[holder] = weakref.ref(source)
    return source


def _lending(found: dict[int, Any]) -> dict[type, pickling.Reducer]:
    """Reducers for what holds a descriptor; they note in ``found`` what they referred to."""

    def refer(holder: Any) -> int:
        source = _source_of(holder)
        found[source.number] = source
        return source.number

    def reduce_connection(connection: Any) -> tuple[Any, ...]:
        state = {**connection.__dict__}
        state.pop("_handle", None)
        return _make_connection, (refer(connection), type(connection), state)

    def reduce_socket(sock: socket.socket) -> tuple[Any, ...]:
        facts = sock.family, sock.type, sock.proto, sock.gettimeout()
        return _make_socket, (refer(sock), *facts)

    sock = getattr(sys.modules.get("socket"), "socket", None)
    return {
        kind: reduce_socket if kind is sock else reduce_connection
        for kind in pickling.descriptor_holders()
    }


pickling.lending.append(_lending)


def file_limit() -> int:
    """How many queued calls may hold a descriptor: a quarter of what the process may have."""
    import resource

    try:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a sandbox refuses it
        soft = 1024
    return 1 << 16 if soft == resource.RLIM_INFINITY else soft // 4


# --- in a worker ----------------------------------------------------------------------------------


def _make_connection(number: int, kind: Any, state: dict[str, Any]) -> Any:
    connection = kind.__new__(kind)
    connection.__dict__.update(state)
    connection._handle = _duplicate(number)
    return connection


def _make_socket(
    number: int, family: int, kind: int, proto: int, timeout: float | None
) -> socket.socket:
    import socket

    made = socket.socket(family, kind, proto, fileno=_duplicate(number))
    made.settimeout(timeout)
    return made


def _duplicate(number: int) -> int:
    return os.dup(pickling.load_received(number).fd)


__all__ = ["Data", "Descriptor", "Source", "User", "file_limit"]
