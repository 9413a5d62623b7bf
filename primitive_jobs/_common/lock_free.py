"""What the parts without a lock rely on, with the GIL and in a free-threaded build.

Callers, a pool's threads, finalizers and signal handlers share state without a lock: whoever was
interrupted while it held one would stop all others. Nor does the GIL help: a free-threaded build
has none. Each such part is one of these patterns, and its comment names what decides there.

===================  ===============================================================================
operation            what is relied on, and where
===================  ===============================================================================
one call of a list,  It happens whole, under the object's own lock: ``append``, ``pop``, ``x[i]``,
dict, set or deque   ``x[i] = v``, ``del d[k]``, ``in``, ``clear``, slices, ``list += tuple``; a
                     dict's ``get``, ``pop``, ``popitem``, ``setdefault``. Two calls: two moments.
a gate               Append, then look at ``[0]``: whose is first has it; nobody but that one takes
                     it out. A job's gate, `_loaded`, `_id` and `_submits`; an offer's claims;
                     `Engine._begun`; `Unseen._turn`; the bar that has the terminal.
a thing taken out    ``pop`` and ``popleft`` give each thing to one thread. Whoever finds nothing
                     catches that: ``if x: x.pop()`` asks at one moment and takes at another.
                     The inbox after the end, a parcel's descriptor, a callback's turn, those who
                     wait for an end, failures that nobody has looked at.
store, then look     Each of two threads stores its own before it looks at the other's: at least one
                     sees the other. A store into a container or an attribute gives back the lock of
                     that object, which no later look can come before. Inbox and `asleep`, or
                     `ended`; the guard's users and a fleet's `_ended`; waiters and outcome; `_dead`
                     and `_posted`; futures pending and `_closed`, or `_shut_down`; joblib's jobs
                     and `_aborted`; `circles`.
stored last          What says that something is there is stored after it (a store releases, a look
                     acquires): an outcome; a walk before `noted`; `at` before `when`; the failure
                     before the number that it is `_earliest` by; an offer, when nothing of it
                     changes any more.
the page             A worker notes in shared memory when it began an attempt, then which, then that
                     it is the last one. Who reads finds the former behind the latter. A place is
                     used again only after `noted` was set, which is read after the place.
read once            What another thread may replace is read into a name, and asked there.
written by one       ``+=`` on a number is a look and a store: each count has one writer.
the next number      ``next`` of an `itertools.count` gives each number once (seeds, shared data,
                     chunks, changes of code). No other iterator may have two users at a time.
a copy               ``list`` of a dict, of its values or items, or of a set, and a list's or dict's
                     ``copy`` are of one moment. A deque's is not, nor is any loop over what others
                     change: `snapshot`, `members`.
the last reference   In a free-threaded build what one thread has made and another drops is freed
                     when the former runs again, and a dispatcher may sleep for long. So what is
                     the user's is held by what the user's thread has made, as `_loaded` is, and
                     the end of a job is that of its tracker, not of its outcome. In every build,
                     no thread of a pool holds what is the user's: see `record`.
===================  ===============================================================================

See the free-threading HOWTO of Python's documentation; how CPython 3.13 and 3.14 do it, in the
functions of ``Objects/listobject.c``, ``dictobject.c``, ``Modules/_collectionsmodule.c``.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from typing import TypeVar

T = TypeVar("T")

_TRIES = 8


def snapshot(changing: deque[T]) -> list[T]:
    """What is in a deque that other threads change meanwhile; nobody is waited for.

    What was taken out at its head while this went on may hide as many others.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(RuntimeError):  # it changed meanwhile
            return list(changing)
    items: list[T] = []
    with contextlib.suppress(IndexError):  # it has become shorter
        for place in range(len(changing)):
            items.append(changing[place])  # noqa: PERF401 - what is there by then is kept
    return items


def members(changing: weakref.WeakSet[T]) -> list[T]:
    """What is in a set that any thread may add to, or take out of, at this moment."""
    while True:
        with contextlib.suppress(RuntimeError):  # it changed meanwhile
            return list(changing)


__all__ = ["members", "snapshot"]
