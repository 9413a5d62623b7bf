"""`job_resources`: which of its pool's tokens a job has."""

from __future__ import annotations

from .._wire import present


def job_resources() -> dict[str, tuple[int, ...]]:
    """Return the tokens that the job has which calls this, by name: those of its ``resources``.

    The tokens of a name are numbered from 0 on, and no two running jobs of a pool have the same
    one: with ``JobPool(resources={"gpu": 2})`` and ``options(resources={"gpu": 1})`` it is
    ``{"gpu": (0,)}`` or ``{"gpu": (1,)}``. Empty where the job has asked for none, outside of jobs,
    in a process that a job has forked, and in jobs of a pool that the job has made.
    """
    now = present.now
    if not now.attempt or not now.tokens:
        return {}
    import pickle

    tokens: dict[str, tuple[int, ...]] = pickle.loads(now.tokens)
    return tokens


__all__ = ["job_resources"]
