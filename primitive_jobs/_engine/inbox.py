"""`Inbox`: what all threads have to say to a pool's dispatcher, and what wakes that up.

There is no lock; `lock_free` says what is relied on. Every thread says what it has to say by
appending to the inbox, a deque, and ringing the bell where the dispatcher sleeps; both can be done
in a signal handler and in a finalizer. The dispatcher sets `asleep` before it looks into the inbox
for the last time, and a sender looks at `asleep` after it appended: so no command is left lying
while the dispatcher sleeps. In the same way a sender looks at `ended` afterwards: whoever takes a
command out of the inbox of a pool that has ended answers it, on any thread.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from .poller import Bell


class Inbox:
    """The commands that a dispatcher has not taken in yet.

    Args:
        refuse: Answers a command that came after the end of the pool; called on any thread.

    Attributes:
        commands: Any thread appends; the dispatcher alone takes out, until it has ended.
        asleep: Whether the dispatcher has to be woken; it alone writes that.
        ended: Whether the pool has ended; written last by the one that ends it.
    """

    __slots__ = ("_refuse", "asleep", "bell", "commands", "ended")

    def __init__(self, refuse: Callable[[Any], None]) -> None:
        self.commands: collections.deque[Any] = collections.deque()
        self.asleep = False
        self.ended = False
        self.bell = Bell()
        self._refuse = refuse

    def tell(self, command: Any) -> None:
        """Have the dispatcher take a command in, or have it refused; returns at once."""
        self.commands.append(command)
        if self.asleep:
            self.wake()
        elif self.ended:
            self.refuse()

    def wake(self) -> None:
        """Have the dispatcher look into the inbox."""
        self.bell.ring()
        if self.ended:
            self.refuse()

    def end(self) -> None:
        """From now on every command is refused."""
        self.ended = True
        self.refuse()

    def refuse(self) -> None:
        """Answer what came too late."""
        while True:
            try:
                command = self.commands.popleft()
            except IndexError:
                return
            self._refuse(command)


__all__ = ["Inbox"]
