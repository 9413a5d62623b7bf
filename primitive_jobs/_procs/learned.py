"""`Learned`: what the workers of a pool have imported for their jobs, for the spares to come."""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-zA-Z]\w*(\.[a-zA-Z]\w*)*", re.ASCII)
_MOST = 3000  # names


class Learned:
    """The names of modules, in the order in which they became known.

    Attributes:
        names: Replaced as a whole: one thread writes, another one reads.
    """

    __slots__ = ("_known", "names")

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._known: set[str] = set()

    def take(self, told: bytes) -> None:
        """Take in what a worker has told: see `_worker.imports`."""
        names = told.decode("ascii", "replace").split("\n")
        new = [name for name in dict.fromkeys(names) if self._is_new(name)]
        new = new[: _MOST - len(self.names)]
        if new:
            self._known.update(new)
            self.names = (*self.names, *new)

    def _is_new(self, name: str) -> bool:
        return name not in self._known and _NAME.fullmatch(name) is not None


__all__ = ["Learned"]
