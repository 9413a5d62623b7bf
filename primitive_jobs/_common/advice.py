"""What to do instead, for those who give multiprocessing's locks and the like to jobs."""

from __future__ import annotations

import sys

_AT_START = (
    "workers get it when they start, as one of the pool's initargs, made by "
    "multiprocessing.get_context('spawn'); jobs, a proxy of a multiprocessing.Manager"
)


def on_argument(why: str) -> str:
    """What to add to the reason why an argument of a job cannot be pickled; "" as a rule."""
    if "through inheritance" in why:
        return f" ({_AT_START})"
    if "mmap.mmap" in why and "multiprocessing.heap" in sys.modules:
        return f" (if it is a RawArray or RawValue of multiprocessing: {_AT_START})"
    return ""


def on_initarg(why: str) -> str:
    """The same of an argument of an initializer."""
    if "fork context" in why:  # multiprocessing's default on Linux up to Python 3.13
        return (
            " (workers are fresh processes: make it with multiprocessing.get_context('spawn'), "
            "such as get_context('spawn').Lock())"
        )
    return ""
