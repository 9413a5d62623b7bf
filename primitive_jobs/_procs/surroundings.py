"""Whether a pool can work in this process at all: looked at before anything of it is there."""

from __future__ import annotations

import os

from .._common.imported import imported
from .._wire import nesting
from .interpreter import check_not_frozen

MAX_DEPTH = 3  # of workers in workers, unless the environment says otherwise
DEPTH_VARIABLE = "PRIMITIVE_JOBS_MAX_DEPTH"
_NEEDED_OF_GEVENT = ("threading", "select", "subprocess", "queue")


def check_surroundings() -> None:
    """Raise where a pool would start processes without end, or hang.

    Raises:
        RuntimeError: This is a frozen program, a job at the greatest depth, or gevent or eventlet
            have patched what a pool needs. The message says what works instead.
        ValueError: The environment variable for the depth is no int above 0.
    """
    check_not_frozen()
    _check_depth()
    check_unpatched()


def _check_depth() -> None:
    limit = _max_depth()
    if nesting.depth >= limit:
        raise RuntimeError(
            f"no pool can be made in this job: it runs in a worker of a worker, {nesting.depth} "
            f"deep, and {limit} is the limit. Most likely a module submits jobs when it is "
            "imported: the workers import it for its functions, and start workers in turn. Have "
            "it submit in a function, or under 'if __name__ == \"__main__\":'. If jobs are meant "
            f"to nest so deep, set the environment variable {DEPTH_VARIABLE}"
        )


def _max_depth() -> int:
    text = os.environ.get(DEPTH_VARIABLE)
    if text is None:
        return MAX_DEPTH
    try:
        limit = int(text)
    except ValueError:
        limit = 0
    if limit < 1:
        raise ValueError(
            f"the environment variable {DEPTH_VARIABLE} must be an int from 1 on, not {text!r}"
        )
    return limit


def check_unpatched() -> None:
    """Raise `RuntimeError` where gevent or eventlet have patched what a pool needs."""
    gevent = imported("gevent.monkey")
    if gevent is not None:
        names = [name for name in _NEEDED_OF_GEVENT if gevent.is_module_patched(name)]
        if names:
            keep = ", ".join(f"{n}=False" for n in ("thread", "select", "subprocess", "queue"))
            raise _patched(
                "gevent", names, f"patch_all({keep})", "gevent.get_hub().threadpool.apply"
            )
    eventlet = imported("eventlet.patcher")
    if eventlet is not None:
        names = [name for name in ("thread", "select") if eventlet.is_monkey_patched(name)]
        if names:
            how = "monkey_patch(socket=True, time=True, os=True)"
            raise _patched("eventlet", names, how, "from eventlet import tpool; tpool.execute")


def _patched(library: str, names: list[str], patch: str, wait: str) -> RuntimeError:
    return RuntimeError(
        f"no pool can work here: {library} has patched {', '.join(names)}, so that a pool's "
        "threads would wait for one another for ever. What works: leave these modules as they are "
        f"({patch}), and wait for a job off the event loop ({wait}(job.result)); or use the pool "
        "in a process of its own that is not patched"
    )


__all__ = ["check_surroundings", "check_unpatched"]
