"""A resource tracker, that of multiprocessing or of loky: a script of its own
(``tracker.py MODULE PIPE FOLDER...``); imports nothing of the package.

Of ``loky.backend``, which lies in the folders, it imports no more than that module: all of loky
takes longer than the start of a worker.
"""

from __future__ import annotations

import sys


def main(module: str, pipe: int, folders: list[str]) -> None:
    """Be the tracker that reads the pipe, until nobody has its other end."""
    sys.path[:] = [place for place in sys.path if place]  # nothing of the current folder's
    import importlib
    import types

    package, _, _ = module.rpartition(".")
    if package == "loky.backend":
        for name, places in (("loky", []), (package, folders)):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = places
    importlib.import_module(module).main(pipe)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
