"""`PooledSampler` and `PooledEstimator`: V2 primitives whose pubs are jobs."""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub

from .._common.naming import type_name
from ..base_pool import BasePool, PoolView, options_of, worker_count
from ..job import PrimitiveJob
from ..pool import default_pool
from .job import PooledJob, ask_cancel_parts, submit_parts
from .parts import pack, seconds_of, split
from .remote import VALIDATION, run_part


class _Pooled:
    """What both wrappers share: the wrapped primitive's attributes are theirs."""

    _primitive: Any
    _pool: BasePool | PoolView | None

    def __init__(self, primitive: object, pool: BasePool | PoolView | None, base: Any) -> None:
        if not isinstance(primitive, base):
            raise TypeError(
                f"{type(self).__name__} wraps a {base.__name__}, not a {type_name(primitive)}"
            )
        if pool is not None and not isinstance(pool, (BasePool, PoolView)):
            raise TypeError(
                f"pool must be a JobPool, a JobPool.options(...) or None, not {type_name(pool)}"
            )
        if isinstance(primitive, _Pooled):  # else each worker would have a pool of its own
            pool = primitive._pool if pool is None else pool
            primitive = primitive._primitive
        vars(self).update(_primitive=primitive, _pool=pool)

    def __getattr__(self, name: str) -> Any:
        if name in ("_primitive", "_pool") or name.startswith("__"):  # while it is unpickled, say
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._primitive, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._primitive, name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._primitive)})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._primitive!r}>"

    def _prepare(self, pubs: list[Any]) -> PooledJob:
        """Check the pubs as the wrapped primitive does; return their job, not submitted yet."""
        validate = getattr(self._primitive, VALIDATION, None)
        if validate is not None:  # raises or warns, with the places that the pubs have here
            validate(pubs)
        pool = default_pool() if self._pool is None else self._pool
        options = options_of(pool)
        name = options.name or type_name(self._primitive)
        ranges = split(
            [seconds_of(pub) for pub in pubs],
            worker_count(pool),
            together=options.limits.unlimited,
        )
        calls = pack(self._primitive, pubs, ranges)
        names = [f"{name}[{place.start}:{place.stop}]" for place in ranges]
        parts = [PrimitiveJob(run_part, *call) for call in calls]
        job = PooledJob(name, parts, todo=(pool, names))
        job.metadata.update(options.metadata or {})
        return job


class PooledSampler(_Pooled, BaseSamplerV2):  # type: ignore[misc]
    """A V2 sampler whose pubs run in the worker processes of a pool.

    It wraps another one, such as ``StatevectorSampler``, ``BackendSamplerV2`` or Aer's
    ``SamplerV2``, and has its attributes (``options``, ``seed``, ``default_shots``, ...).

    With a seed the counts do not depend on the number of workers. They are those of the wrapped
    sampler itself where that gives each pub the same seed (``StatevectorSampler`` with a number),
    or samples on an ``AerSimulator``. Else only those of the first pub are, and each other one has
    a seed made from the given one and its place. Where the seed, or another attribute, is a
    generator of NumPy's, each pub has a generator of its own in its place, made from numbers that
    are drawn from it when `run` is called. Without a seed each pub is random.

    Args:
        sampler: The sampler to wrap. It is copied to the workers at each `run`. Of one that is
            wrapped already the wrapped one, and its pool where none is given here.
        pool: A `JobPool`, or what `JobPool.options` returns; default: `default_pool()`. With the
            option ``timeout`` or ``memory_limit`` each pub is a job of its own.

    Raises:
        TypeError: ``sampler`` is no V2 sampler, or ``pool`` no pool.
    """

    def __init__(self, sampler: Any, pool: BasePool | PoolView | None = None) -> None:
        super().__init__(sampler, pool, BaseSamplerV2)

    def run(self, pubs: Iterable[Any], *, shots: int | None = None) -> PooledJob:
        """Run the pubs; return their job at once.

        Args:
            pubs: As for any V2 sampler. They are checked, and copied, here and now.
            shots: For pubs that do not say; default: that of the wrapped sampler.

        Raises:
            SerializationError: The sampler or a circuit cannot be sent to a worker.
            PoolClosedError: The pool was shut down, or the interpreter is going down.
            Exception: What the wrapped sampler raises for pubs that are wrong.
        """
        number = _default(self._primitive, "default_shots") if shots is None else shots
        job = self._prepare([SamplerPub.coerce(pub, number) for pub in pubs])
        try:
            submit_parts(job)
            return job
        except BaseException:  # whoever called has no handle: nothing of it must run
            ask_cancel_parts(job)
            raise


class PooledEstimator(_Pooled, BaseEstimatorV2):  # type: ignore[misc]
    """A V2 estimator whose pubs run in the worker processes of a pool; see `PooledSampler`.

    It wraps ``StatevectorEstimator``, ``BackendEstimatorV2``, Aer's ``EstimatorV2`` or another one.
    Aer's gives each pub the same seed, as ``StatevectorEstimator`` does with a number.

    Args:
        estimator: The estimator to wrap. It is copied to the workers at each `run`.
        pool: As in `PooledSampler`.

    Raises:
        TypeError: ``estimator`` is no V2 estimator, or ``pool`` no pool.
    """

    def __init__(self, estimator: Any, pool: BasePool | PoolView | None = None) -> None:
        super().__init__(estimator, pool, BaseEstimatorV2)

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> PooledJob:
        """Run the pubs; return their job at once.

        Args:
            pubs: As for any V2 estimator. They are checked, and copied, here and now.
            precision: For pubs that do not say; default: that of the wrapped estimator.

        Raises:
            SerializationError: The estimator or a circuit cannot be sent to a worker.
            PoolClosedError: The pool was shut down, or the interpreter is going down.
            Exception: What the wrapped estimator raises for pubs that are wrong.
        """
        number = _default(self._primitive, "default_precision") if precision is None else precision
        job = self._prepare([EstimatorPub.coerce(pub, number) for pub in pubs])
        try:
            submit_parts(job)
            return job
        except BaseException:  # whoever called has no handle: nothing of it must run
            ask_cancel_parts(job)
            raise


def _default(primitive: Any, name: str) -> Any:
    """What it takes for pubs that do not say; None if it keeps that to itself."""
    found = getattr(primitive, name, None)
    return getattr(getattr(primitive, "options", None), name, None) if found is None else found


__all__ = ["PooledEstimator", "PooledSampler"]
