"""Whether a pool can work in this process at all: looked at before anything of it is there."""

from __future__ import annotations

import os

from .._common.unpatched import check_unpatched
from .._wire import nesting
from .interpreter import check_not_frozen

MAX_DEPTH = 3  # of workers in workers, unless the environment says otherwise
DEPTH_VARIABLE = "PRIMITIVE_JOBS_MAX_DEPTH"


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


__all__ = ["check_surroundings"]
