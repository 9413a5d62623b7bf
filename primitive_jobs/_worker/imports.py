"""`Imports`: which modules of libraries jobs have imported here, for spares that are started later.

What a job has imported stays in its worker, and the next job there does not wait for it. A spare
that takes the place of a killed worker would begin without. So a worker tells, with the outcome of
the job that brought them, the names of new modules: of those of the standard library and of
installed packages alone, whose import does what that of any other process does.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_INSTALLED = ("site-packages", "dist-packages")
_MOST = 30_000  # bytes of names that are told at once


class Imports:
    """What is known of this worker's modules."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Take all that are there now for known."""
        self._known = set(sys.modules)

    def are_new(self) -> bool:
        """Whether there may be others by now; in 0.1 us."""
        return len(sys.modules) > len(self._known)

    def news(self) -> bytes:
        """Return the names of those, in the order of their imports; b"": of libraries none is."""
        known, self._known = self._known, set(sys.modules)
        folders = _folders()
        names = [
            name
            for name, module in list(sys.modules.items())
            if name not in known and _is_of_library(name, module, folders)
        ]
        told = "\n".join(names).encode("ascii", "ignore")
        return told if len(told) <= _MOST else told[:_MOST].rpartition(b"\n")[0]


def import_them(names: Iterable[str]) -> None:
    """Import what siblings have imported; what cannot be imported, whoever needs it will see."""
    here = os.getpid()
    for name in names:
        try:
            __import__(name)
        except BaseException:  # noqa: BLE001 - foreign code
            pass
        if os.getpid() != here:  # a fork that it has made, and not ended
            os._exit(0)


def _folders() -> tuple[str, ...]:
    found = [path for path in sys.path if os.path.basename(path) in _INSTALLED]  # noqa: PTH119
    return tuple(os.path.join(path, "") for path in [os.path.dirname(os.__file__), *found])  # noqa: PTH118, PTH120


def _is_of_library(name: str, module: Any, folders: tuple[str, ...]) -> bool:
    """Whether it may be imported by this name elsewhere, and is of what is installed.

    Private ones are imported by those that need them.
    """
    if name.startswith("_") or "._" in name:
        return False
    spec = getattr(module, "__spec__", None)
    if spec is None or getattr(spec, "name", None) != name:
        return False
    origin = getattr(spec, "origin", None)
    return isinstance(origin, str) and origin.startswith(folders)


__all__ = ["Imports", "import_them"]
