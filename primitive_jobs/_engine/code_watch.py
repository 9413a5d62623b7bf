"""Notices that code was imported anew in this process, so that workers may hold an older version.

What tells of it:

* `importlib.reload` asks the finders for a module that it hands them (``target``);
* an import asks them for a module that was there before (``del sys.modules["m"]; import m``);
* in IPython, with its extension autoreload, a module's file has another time than before: its
  newer versions patch a module without importing it.

Python's own modules do not count: nobody edits them, and some libraries import a copy of one (torch
does so, of ``heapq`` and ``operator``).

A pool compares one number at each submit. The finder finds nothing itself; it stays for good, since
taking one out of ``sys.meta_path`` would let an import that is under way in another thread skip the
next one. It costs each import a fraction of a microsecond. No worker has it, unless a job makes a
pool.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from typing import Any

_AUTORELOAD = "IPython.extensions.autoreload"
_MOST_NEW = 1000
_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120


class CodeWatch:
    """A finder that finds nothing and takes note.

    Without a lock (see `lock_free`): imports run on any thread, and in signal handlers.

    Attributes:
        tick: Another number whenever `changes` has to be asked again.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.tick = 0
        self._changes = 0
        self._known: set[str] = set()  # modules that are or were there
        self._new: set[str] = set()  # names that were looked for; of some there is no module
        self._shell: Any = None
        self._times: dict[str, float] = {}  # of files, by module

    def install(self) -> None:
        """Begin to watch; again is allowed."""
        if not any(finder is self for finder in sys.meta_path):
            self._known.update(list(sys.modules))
            sys.meta_path.insert(0, self)  # before whoever finds the module
        shell = ipython_shell()
        if shell is not None and shell is not self._shell:
            self._shell = shell
            self._on_cell()
            for event in ("pre_run_cell", "post_run_cell"):
                shell.events.register(event, self._on_cell)

    def changes(self) -> int:
        """Return another number than before if code has changed since."""
        # Only what was really imported is known: a package may be looked for often, and in vain.
        for name in list(self._new):
            if name in sys.modules:
                self._known.add(name)
                self._new.discard(name)
        if len(self._new) > _MOST_NEW:
            self._new.clear()
        return self._changes

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> None:
        """Take note, as the finder that it is to the import system."""
        if target is not None or name in self._known:
            if not _is_pythons(name, path):
                self._changed()
        else:
            self._new.add(name)
            self.tick = next(self._numbers)

    def _changed(self) -> None:
        # Numbers are drawn once each: whatever another thread writes meanwhile, it is another one.
        self._changes = self.tick = next(self._numbers)

    def _on_cell(self, *_: object) -> None:
        """A cell of IPython begins or has ended: has a file changed that autoreload looks at?"""
        if _AUTORELOAD not in sys.modules:
            return
        before, now = self._times, dict(_file_times())
        self._times = now
        if any(before.get(name, time) != time for name, time in now.items()):
            self._changed()


def _is_pythons(name: str, path: Sequence[str] | None) -> bool:
    """Whether a module is the one of that name that comes with Python."""
    if name.partition(".")[0] not in sys.stdlib_module_names:
        return False
    spec = PathFinder.find_spec(name, path)  # else somebody's own may come before it
    place = os.path.join(_LIBRARY, *name.split("."))  # noqa: PTH118 - compared as text
    return spec is None or spec.origin is None or spec.origin.startswith(place)


def ipython_shell() -> Any:
    """Return the running session of IPython, None where there is none."""
    find = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return None if find is None else find()


def _file_times() -> Iterator[tuple[str, float]]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # a lazy module stays one
        if isinstance(file, str) and file.endswith(".py"):
            try:
                yield name, os.stat(file).st_mtime  # noqa: PTH116 - a path object takes longer
            except OSError:
                continue


code_watch = CodeWatch()
