"""Qiskit's V2 primitives with their pubs spread over the workers of a pool; needs Qiskit.

::

    run(pubs) ─► coerced, checked ─► pack: the primitive and each circuit, serialized once
                                        │ one block, of shared memory if it is large
                                        ▼
    PooledJob ◄─ one PrimitiveJob for each part: a pub, or some short ones ══► run_part

Each pub is run by a copy of the wrapped primitive's own ``run``, in a call of its own wherever
others in the same call would make a difference; so what comes out depends neither on the number of
workers nor on how the pubs are put into parts.

It is an adapter, which may use all but the workers' inside. Its modules:

======  =========================================================
job     the job of a run, which has parts
parts   pubs put into parts, and packed
pooled  the sampler and the estimator
remote  what a worker does with a part, and what comes back of it
seeds   what each pub is seeded with
======  =========================================================
"""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

try:
    from .job import PooledJob, combined_status
    from .pooled import PooledEstimator, PooledSampler
except ModuleNotFoundError as error:
    raise ImportError(
        "primitive_jobs.qiskit needs Qiskit 2.0 or newer, which the extra `qiskit` installs: "
        f"{error}"
    ) from error

__all__ = ["PooledEstimator", "PooledJob", "PooledSampler", "combined_status"]
