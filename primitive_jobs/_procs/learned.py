"""`Learned`: what the workers of a pool have imported, for those that have had no job."""

from __future__ import annotations

import re
from collections.abc import Callable

_NAME = re.compile(r"[a-zA-Z]\w*(\.[a-zA-Z]\w*)*", re.ASCII)
_MOST = 60_000  # bytes of names: they fit into one message


class Learned:
    """The names of modules, in the order in which they became known.

    Attributes:
        names: Replaced as a whole: one thread writes, another one reads.
        tell: Called when there are more, on the thread that takes them in.
    """

    __slots__ = ("_known", "_room", "names", "tell")

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.tell: Callable[[], object] | None = None
        self._known: set[str] = set()
        self._room = _MOST

    def take(self, told: bytes) -> None:
        """Take in what a worker has told: see `_worker.imports`."""
        names = told.decode("ascii", "replace").split("\n")
        new = []
        for name in dict.fromkeys(names):
            if self._is_new(name) and len(name) < self._room:
                self._room -= len(name) + 1
                new.append(name)
        if new:
            self._known.update(new)
            self.names = (*self.names, *new)
            if self.tell is not None:
                self.tell()

    def _is_new(self, name: str) -> bool:
        return name not in self._known and _NAME.fullmatch(name) is not None


__all__ = ["Learned"]
