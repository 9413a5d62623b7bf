"""Qiskit's V2 primitives with their pubs spread over the workers of a pool; needs Qiskit.

::

    run(pubs) ─► coerced, checked ─► _pack: the primitive and each circuit, serialized once
                                        │ one block, of shared memory if it is large
                                        ▼
    PooledJob ◄─ one PrimitiveJob for each part: a pub, or some short ones ══► _run_part

Each pub is run by a copy of the wrapped primitive's own ``run``, in a call of its own wherever
others in the same call would make a difference; so what comes out depends neither on the number of
workers nor on how the pubs are put into parts.
"""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import copyreg
import dataclasses
import hashlib
import numbers
import pickle
import sys
import time
import uuid
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

try:
    import numpy as np
    from qiskit.primitives import (
        BaseEstimatorV2,
        BasePrimitiveJob,
        BaseSamplerV2,
        PrimitiveResult,
        StatevectorEstimator,
        StatevectorSampler,
    )
    from qiskit.primitives.containers import DataBin
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub
    from qiskit.providers import JobStatus as QiskitStatus
except ModuleNotFoundError as error:
    raise ImportError(
        "primitive_jobs.qiskit needs Qiskit 2.0 or newer, which the extra `qiskit` installs: "
        f"{error}"
    ) from error

from ._common.imported import imported
from ._common.naming import one_line, type_name
from ._engine.job_table import file_limit
from ._engine.record import JobRecord
from ._engine.sources import Source
from ._wire.pickling import dumps_whole
from .base_pool import BasePool, PoolView
from .errors import (
    JobCancelledError,
    JobError,
    PoolClosedError,
    ResultTimeoutError,
    SerializationError,
)
from .job import PrimitiveJob
from .options import check_grace, check_seconds
from .pool import default_pool
from .shared import share
from .status import FINAL_STATES, JobStatus

__all__ = ["PooledEstimator", "PooledJob", "PooledSampler", "combined_status"]

# What a pub may be expected to take; see _seconds.
_PER_GATE = 100e-6  # s, of Qiskit's own work
_PER_AMPLITUDE = 50e-9  # s, for each gate
_ENOUGH = 0.02  # s that are worth a job of their own
_PARTS_PER_WORKER = 4  # at least, so that no worker is left without work early

Place = tuple[int, int]
"""Where something stands in the block: its first byte, and the first that is not its."""


# --- results that travel -------------------------------------------------------------------------


def _make_data_bin(shape: tuple[int, ...], data: dict[str, Any]) -> Any:
    return DataBin(shape=shape, **data)


def _reduce_data_bin(data_bin: Any) -> tuple[Any, ...]:
    return _make_data_bin, (data_bin.shape, dict(data_bin.items()))


if "__setattr__" in vars(DataBin):  # Qiskit up to 2.0: pickled, but not unpickled
    copyreg.pickle(DataBin, _reduce_data_bin)


# --- the status of many ---------------------------------------------------------------------------


def combined_status(statuses: Sequence[JobStatus]) -> JobStatus:
    """Return the status of a job that has parts with these statuses.

    It is final only when every part is: then ERROR if a part has failed, else CANCELLED if one was
    cancelled, else DONE. Before, it is RUNNING from the day on which the first part began;
    VALIDATING as long as there is a part that is not queued yet; INITIALIZING if all are so new.
    """
    found = set(statuses)
    if found and found <= set(FINAL_STATES):
        for status in (JobStatus.ERROR, JobStatus.CANCELLED):
            if status in found:
                return status
        return JobStatus.DONE
    if found & {JobStatus.RUNNING, *FINAL_STATES}:
        return JobStatus.RUNNING
    if found == {JobStatus.QUEUED}:
        return JobStatus.QUEUED
    return JobStatus.VALIDATING if found - {JobStatus.INITIALIZING} else JobStatus.INITIALIZING


class _Together:
    """Cancels all parts of a job once one of them has ended without a result."""

    def __init__(self, parts: Sequence[PrimitiveJob[Any]]) -> None:
        self._records = [part._record for part in parts]
        self._cancelling = False
        for record in self._records:
            record.tracker.call_when_final(partial(self._ended, record))

    def _ended(self, part: JobRecord) -> None:
        # Called on the pool's own thread: it only asks, waits for nothing, and holds no part.
        if part.tracker.look() is JobStatus.DONE or self._cancelling:
            return
        self._cancelling = True  # those that are cancelled now get here, too
        for other in self._records:
            other.ask_cancel()


# --- the job --------------------------------------------------------------------------------------


class PooledJob(BasePrimitiveJob):  # type: ignore[misc]  # Any, where Qiskit is not followed
    """The job that `PooledSampler.run` and `PooledEstimator.run` return.

    A ``qiskit.primitives.BasePrimitiveJob`` whose ``status()`` is a ``qiskit.providers.JobStatus``.
    It has parts, a `PrimitiveJob` for one pub or some short ones. The first that fails, or is
    cancelled, has the others cancelled.

    Pickling it waits for its end, as with Qiskit's own job; then result or error, id, metadata and
    status travel.

    Attributes:
        metadata: A dict, from the option of that name of the pool's view.
        name: From the options; without, the type of the wrapped primitive.
        parts: The `PrimitiveJob` of each part, in the order of the pubs.
    """

    def __init__(self, name: str, parts: Sequence[PrimitiveJob[_PartResult]]) -> None:
        super().__init__(str(uuid.uuid4()))
        self.metadata: dict[str, Any] = {}
        self.name = name
        self.parts = tuple(parts)
        self._results: list[Any] = []  # the first one counts
        self._unwarned = [True]  # empty: the warnings were given
        self._todo: list[tuple[BasePool | PoolView, list[str]]] = []  # until it is submitted
        _Together(self.parts)

    def _submit(self) -> None:
        """Submit the parts, once; the name that Qiskit's primitives call.

        If it raises, its caller cancels the job. Not this, nor a function between the two: an
        interrupt may come in the caller itself, right after this has returned.
        """
        if not self._todo:
            raise JobError(f"job {self.name} was submitted before")
        pool, names = self._todo.pop()
        for part, name in zip(self.parts, names, strict=True):
            _submit_part(part, pool, name)

    def _ask_cancel(self, grace: float | None = None) -> list[PrimitiveJob[_PartResult]]:
        """Have every part cancelled; return those to wait for."""
        return [part for part in self.parts if part._ask_cancel(grace)]

    # --- what Qiskit's job has -------------------------------------------------------------------

    def status(self) -> Any:
        """Return the status as it is now, a ``qiskit.providers.JobStatus``; never blocks."""
        return QiskitStatus[self._status().name]

    def _status(self) -> JobStatus:
        return combined_status([part.status() for part in self.parts])

    def done(self) -> bool:
        """Return whether the status is DONE: ended with a result."""
        return self._status() is JobStatus.DONE

    def running(self) -> bool:
        """Return whether the status is RUNNING: it has begun, and has not ended."""
        return self._status() is JobStatus.RUNNING

    def cancelled(self) -> bool:
        """Return whether the status is CANCELLED."""
        return self._status() is JobStatus.CANCELLED

    def in_final_state(self) -> bool:
        """Return whether the status is DONE, CANCELLED or ERROR; nothing of it runs then."""
        return self._status() in FINAL_STATES

    def cancel(self, *, grace: float | None = None) -> bool:
        """Stop every part for real; when this returns True, nothing of the job runs any more.

        Args:
            grace: Seconds between SIGTERM and SIGKILL; default: the option ``grace`` of the pool's
                view, which is 0, SIGKILL at once, unless given.

        Returns:
            True exactly when the job's final status is CANCELLED.

        Raises:
            TypeError, ValueError: ``grace`` is no finite number of seconds from 0 on.
        """
        seconds = None if grace is None else check_grace(grace)
        for part in self._ask_cancel(seconds):
            part.wait()
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Return the ``PrimitiveResult``, the same object each time, waiting for it.

        Its pub results are in the order of the pubs. The first call that has waited long enough
        also gives the warnings that came up in the workers, each once, to this process's filters.

        Args:
            timeout: Seconds to wait at most; default None: as long as it takes.

        Raises:
            ResultTimeoutError: It is not ready in time; the job goes on.
            JobCancelledError: The job was cancelled.
            BaseException: Whatever the first part to fail raised, with the remote traceback as
                cause; what `PrimitiveJob.result` raises where a worker died or a limit was passed.
        """
        self.wait_for_final_state(timeout)
        status = self._status()
        if status is JobStatus.CANCELLED:
            raise JobCancelledError(f"job {self.name} was cancelled")
        if status is JobStatus.DONE and not self._results:
            self._results.append(self._put_together())
        try:
            self._unwarned.pop()
        except IndexError:  # somebody has been here before
            pass
        else:
            _give_warnings(self.parts)
        if status is JobStatus.ERROR:
            failed = [part for part in self.parts if part.status() is JobStatus.ERROR]
            min(failed, key=lambda part: part._tracker.ended_at()).result()
        return self._results[0]

    def _put_together(self) -> Any:
        results = [part.result() for part in self.parts]
        return PrimitiveResult(
            [one for result in results for one in result.pub_results], metadata=results[0].metadata
        )

    # --- beyond Qiskit ---------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job is final, at most ``timeout`` s; return whether it is."""
        seconds = check_seconds("timeout", timeout)
        end = None if seconds is None else time.monotonic() + seconds
        return all(
            part.wait(None if end is None else max(0.0, end - time.monotonic()))
            for part in self.parts
        )

    def wait_for_final_state(self, timeout: float | None = None) -> None:
        """Wait until the job is final.

        Raises:
            ResultTimeoutError: It is not, after ``timeout`` s; the job goes on.
        """
        if not self.wait(timeout):
            raise ResultTimeoutError(
                f"job {self.name} is {self._status().name} after {timeout} s of waiting; it goes on"
            )

    def __repr__(self) -> str:
        ended = sum(part.in_final_state() for part in self.parts)
        return (
            f"<{type(self).__name__} {self.job_id()} {self.name!r} {self._status().name} "
            f"{ended} of {len(self.parts)} parts>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Wait for the end; the parts know how to travel."""
        self.wait()
        state = (self.job_id(), self.name, self.metadata, self.parts, bool(self._unwarned))
        return _rebuild, state


def _submit_part(part: PrimitiveJob[Any], pool: BasePool | PoolView, name: str) -> None:
    """Submit it, unless one before has ended without a result by now, and had it cancelled."""
    if part.in_final_state():
        part._call = None
        return
    part._record.inner = True
    try:
        part.submit(pool, name=name)
    except PoolClosedError:
        raise  # this cancels it, too
    except JobError:
        if not part.cancelled():
            raise


def _rebuild(
    job_id: str,
    name: str,
    metadata: dict[str, Any],
    parts: tuple[PrimitiveJob[_PartResult], ...],
    unwarned: bool,
) -> PooledJob:
    job = PooledJob(name, parts)
    job._job_id = job_id
    job.metadata = metadata
    job._unwarned = [True] if unwarned else []
    return job


# --- the primitives -------------------------------------------------------------------------------


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
        validate = getattr(self._primitive, "_validate_pubs", None)
        if validate is not None:  # raises or warns, with the places that the pubs have here
            validate(pubs)
        pool = default_pool() if self._pool is None else self._pool
        options = pool._options
        name = options.name or type_name(self._primitive)
        ranges = _split(
            [_seconds(pub) for pub in pubs], pool._worker_count(), together=options.limits.unlimited
        )
        calls = _pack(self._primitive, pubs, ranges)
        job = PooledJob(name, [PrimitiveJob(_run_part, *call) for call in calls])
        job.metadata.update(options.metadata or {})
        names = [f"{name}[{place.start}:{place.stop}]" for place in ranges]
        job._todo.append((pool, names))
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
            job._submit()
            return job
        except BaseException:  # whoever called has no handle: nothing of it must run
            job._ask_cancel()
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
            job._submit()
            return job
        except BaseException:  # whoever called has no handle: nothing of it must run
            job._ask_cancel()
            raise


def _default(primitive: Any, name: str) -> Any:
    """What it takes for pubs that do not say; None if it keeps that to itself."""
    found = getattr(primitive, name, None)
    return getattr(getattr(primitive, "options", None), name, None) if found is None else found


# --- in parts -------------------------------------------------------------------------------------


def _seconds(pub: Any) -> float:
    """About how long a pub takes, for a state vector: which ones are short is all that matters."""
    circuit = pub.circuit
    per_gate: float = _PER_GATE + _PER_AMPLITUDE * 2.0 ** min(circuit.num_qubits, 60)
    return float(max(1, pub.size)) * (len(circuit.data) + 10) * per_gate


def _split(seconds: Sequence[float], workers: int, *, together: bool) -> list[range]:
    """Return the places of the pubs that make up each part, in order; one empty part for none.

    Args:
        seconds: About how long each takes.
        workers: How many parts run at a time.
        together: Whether short ones may share a part.
    """
    most = min(_ENOUGH, sum(seconds) / (_PARTS_PER_WORKER * workers)) if together else 0.0
    parts = []
    start, length = 0, 0.0
    for place, one in enumerate(seconds):
        if place > start and length + one > most:
            parts.append(range(start, place))
            start, length = place, 0.0
        length += one
    if start < len(seconds) or not seconds:
        parts.append(range(start, len(seconds)))
    return parts


_COPIED = 1_000_000  # bytes, of the copies that the parts of a run may have instead of sharing
_sources: weakref.WeakSet[Source] = weakref.WeakSet()
"""What is shared now."""


class _Block:
    """Pickles, one behind the other; each of them is there once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._places: dict[int, Place] = {}

    def add(self, value: object, what: str) -> Place:
        """Pickle an object, which outlives this, if it is not there; return its place.

        Raises:
            SerializationError: It cannot be pickled.
        """
        if id(value) in self._places:
            return self._places[id(value)]
        try:
            piece = dumps_whole(value)
        except Exception as error:
            raise SerializationError(
                f"{what} cannot be sent to a worker process: it cannot be serialized: "
                f"{one_line(error)}"
            ) from error
        place = self._places[id(value)] = (self._size, self._size + len(piece))
        self._pieces.append(piece)
        self._size += len(piece)
        return place

    def for_parts(self, count: int) -> Any:
        """What stands for all of it among the arguments of so many jobs.

        Something shared holds a descriptor until its last job has ended, and runs may be many.
        """
        whole = b"".join(self._pieces)
        if count == 1 or count * len(whole) <= _COPIED or len(_sources) >= file_limit():
            return whole
        shared: Any = share(np.frombuffer(whole, np.uint8))
        _sources.add(shared._source)
        return shared

    def key(self) -> bytes:
        """What tells the first object from those of other blocks."""
        return hashlib.blake2b(self._pieces[0], digest_size=16).digest()


class _Seed(NamedTuple):
    """What a copy of the primitive is seeded with, and how."""

    setter: Callable[[Any, Any], None]
    value: Any


class _Pub(NamedTuple):
    """A pub on its way: everything but the circuit, which may be that of others as well."""

    kind: type[Any]
    circuit: Place
    rest: dict[str, Any]
    seeds: list[_Seed]


_REST = {
    SamplerPub: ("parameter_values", "shots"),
    EstimatorPub: ("observables", "parameter_values", "precision"),
}


def _pack(
    primitive: Any, pubs: Sequence[Any], ranges: Sequence[range]
) -> list[tuple[Any, bytes, Place, list[_Pub]]]:
    """Return the arguments of `_run_part` for each part."""
    block = _Block()
    place = block.add(primitive, f"the wrapped {type_name(primitive)}")
    packed = []
    for number, (pub, seeds) in enumerate(zip(pubs, _seeds(primitive, pubs), strict=True)):
        kind = SamplerPub if isinstance(pub, SamplerPub) else EstimatorPub
        rest = {name: getattr(pub, name) for name in _REST[kind]}
        circuit = block.add(pub.circuit, f"the circuit of pub {number}")
        packed.append(_Pub(kind, circuit, rest, seeds))
    whole, key = block.for_parts(len(ranges)), block.key()
    return [(whole, key, place, [packed[i] for i in one]) for one in ranges]


# --- seeds ----------------------------------------------------------------------------------------


def _seeds(primitive: Any, pubs: Sequence[Any]) -> list[list[_Seed]]:
    """What each of the pubs is seeded with; nothing: as the primitive is."""
    columns: list[Sequence[_Seed | None]] = [
        _streams_from(name, value, len(pubs))
        for name, value in getattr(primitive, "__dict__", {}).items()
        if isinstance(value, _STREAMS)
    ]
    columns.append(_numbers_for(primitive, pubs))
    return [[one for one in row if one is not None] for row in zip(*columns, strict=True)]


def _numbers_for(primitive: Any, pubs: Sequence[Any]) -> Sequence[_Seed | None]:
    count = len(pubs)
    seed = getattr(primitive, "_seed", None)
    options = getattr(primitive, "_options", None)
    in_run_options = (getattr(options, "run_options", None) or {}).get("seed_simulator")
    of_backend = getattr(getattr(primitive, "_backend", None), "options", None)
    setter: Callable[[Any, Any], None] = _set_seed
    if seed is not None:
        pass
    elif getattr(options, "seed_simulator", None) is not None:
        seed, setter = options.seed_simulator, _set_option  # type: ignore[union-attr]
    elif in_run_options is not None:
        seed, setter = in_run_options, _set_run_option
    elif getattr(of_backend, "seed_simulator", None) is not None:
        seed = of_backend.seed_simulator  # type: ignore[union-attr]
        setter = _set_option if hasattr(options, "seed_simulator") else _set_seed
    if _seeds_each_pub_alike(primitive) or not isinstance(seed, numbers.Integral):
        return [None] * count
    if not _is_of_aer(getattr(primitive, "_backend", None)):
        values = _numbers_from(int(seed), count, bits=31)  # what any simulator takes
    elif isinstance(primitive, BaseSamplerV2):
        values = _numbers_of_aer(int(seed), pubs)
    else:
        values = _numbers_from(int(seed), count, bits=63)
    return [_Seed(setter, value) for value in values]


_STREAMS = (np.random.Generator, np.random.BitGenerator, np.random.RandomState)


def _streams_from(name: str, stream: Any, count: int) -> list[_Seed]:
    """What puts a generator of the same kind, but of its own, in the attribute's place."""
    # Drawn, not spawned: so it depends on the generator's state, and moves it on.
    old = isinstance(stream, np.random.RandomState)
    draw = stream.randint if old else np.random.default_rng(stream).integers
    words = tuple(int(word) for word in draw(2**32, size=4, dtype=np.uint32))
    return [_Seed(_set_stream, (name, type(stream), words, place)) for place in range(count)]


def _seeds_each_pub_alike(primitive: Any) -> bool:
    """Whether it gives each pub the seed that it has itself; else one goes on after another."""
    alike: list[Any] = [StatevectorSampler, StatevectorEstimator]
    aer = imported("qiskit_aer.primitives")  # there, if the primitive is one of them
    if aer is not None:
        alike.append(aer.EstimatorV2)
    return isinstance(primitive, tuple(alike))


def _is_of_aer(backend: object) -> bool:
    return any(kind.__module__.startswith("qiskit_aer.") for kind in type(backend).__mro__)


def _numbers_of_aer(seed: int, pubs: Iterable[Any]) -> Iterator[int]:
    """Yield the seeds with which Aer samples what it would, were the pubs not spread.

    Those with the same number of shots would be one run there, in which the seed grows from one
    circuit (after the parameters have been put in) to the next.
    """
    circuits: Counter[int] = Counter()
    for pub in pubs:
        number = seed + _AER_STEP * circuits[pub.shots]
        yield (number + 2**63) % 2**64 - 2**63  # it overflows there
        circuits[pub.shots] += pub.size


_AER_STEP = 2113


def _numbers_from(seed: int, count: int, *, bits: int) -> Iterator[int]:
    """Yield the seed, and then others of so many bits made from it, all different."""
    given: set[int] = set()
    sequence = np.random.SeedSequence([abs(seed), int(seed < 0)])
    number = seed
    while len(given) < count:
        if number not in given:
            given.add(number)
            yield number
        (child,) = sequence.spawn(1)
        number = int(child.generate_state(1, np.uint64)[0]) >> (64 - bits)


def _set_seed(primitive: Any, seed: int) -> None:
    primitive._seed = seed


def _set_stream(primitive: Any, seed: tuple[str, type[Any], tuple[int, ...], int]) -> None:
    name, kind, words, place = seed
    sequence = np.random.SeedSequence(words, spawn_key=(place,))
    stream: Any
    if issubclass(kind, np.random.RandomState):
        stream = kind(np.random.MT19937(sequence))
    elif issubclass(kind, np.random.BitGenerator):
        stream = kind(sequence)
    else:
        stream = np.random.default_rng(sequence)
    setattr(primitive, name, stream)


def _set_option(primitive: Any, seed: int) -> None:
    primitive._options = dataclasses.replace(primitive._options, seed_simulator=seed)


def _set_run_option(primitive: Any, seed: int) -> None:
    run_options = {**primitive._options.run_options, "seed_simulator": seed}
    primitive._options = dataclasses.replace(primitive._options, run_options=run_options)


# --- in a worker ----------------------------------------------------------------------------------


class _Warning(NamedTuple):
    """A warning on its way to the caller."""

    pickled: bytes
    """Message and category."""
    text: str
    filename: str
    lineno: int
    module: str | None


class _PartResult(NamedTuple):
    """What a part comes to."""

    pub_results: list[Any]
    metadata: dict[str, Any]
    warnings: list[_Warning]


_LUGGAGE = "_primitive_jobs_warnings"
"""The attribute of an exception that brings the warnings before it."""

_latest: list[tuple[bytes, Any]] = []
"""The primitive that the last part had, and its key: making one may take longer than a pub."""


def _run_part(block: Any, key: bytes, primitive: Place, pubs: list[_Pub]) -> _PartResult:
    """In a worker: run some pubs, each as if it were alone."""
    view = memoryview(block)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # the caller's filters decide, but each comes once
        try:
            if not _latest or _latest[0][0] != key:
                _latest[:] = [(key, pickle.loads(view[slice(*primitive)]))]
            results = _run_pubs(_latest[0][1], view, pubs)
        except Exception as error:
            if caught:
                vars(error)[_LUGGAGE] = [_on_its_way(one) for one in caught]
            raise
    return _PartResult(
        [one for result in results for one in result],
        results[0].metadata,
        [_on_its_way(one) for one in caught],
    )


def _run_pubs(original: Any, view: memoryview, pubs: Sequence[_Pub]) -> list[Any]:
    """Return the result of each run: one for all, where no pub is seeded in a way of its own."""
    made = [
        pub.kind(pickle.loads(view[slice(*pub.circuit)]), **pub.rest, validate=False)
        for pub in pubs
    ]
    # Each run starts a thread: a tenth of what a small pub takes.
    if not pubs or (_seeds_each_pub_alike(original) and not any(pub.seeds for pub in pubs)):
        return [_run(original, [], made)]
    return [_run(original, pub.seeds, [one]) for pub, one in zip(pubs, made, strict=True)]


def _run(original: Any, seeds: Sequence[_Seed], pubs: list[Any]) -> Any:
    primitive = copy.copy(original)
    if hasattr(primitive, "_validate_pubs"):
        primitive._validate_pubs = _validated
    for seed in seeds:
        seed.setter(primitive, seed.value)
    return primitive.run(pubs).result()


def _validated(pubs: object) -> None:
    """The caller has done it, and given the warnings with the right places."""
    del pubs


def _on_its_way(warning: warnings.WarningMessage) -> _Warning:
    text = str(warning.message)
    try:
        pickled = dumps_whole((warning.message, warning.category))
    except Exception:  # noqa: BLE001 - it is somebody else's
        pickled = dumps_whole((text, UserWarning))
    modules = [
        name
        for name, module in list(sys.modules.items())
        if getattr(module, "__dict__", {}).get("__file__") == warning.filename
    ]
    module = modules[0] if modules else None
    return _Warning(pickled, text, warning.filename, warning.lineno, module)


def _warnings_of(part: PrimitiveJob[_PartResult]) -> list[_Warning]:
    if part.done():
        return part.result().warnings
    error = part.exception() if part.status() is JobStatus.ERROR else None
    return getattr(error, _LUGGAGE, [])


def _give_warnings(parts: Iterable[PrimitiveJob[_PartResult]]) -> None:
    """Give the warnings of all parts again, each once, as if it had been here."""
    found = {one[1:]: one for part in parts for one in _warnings_of(part)}
    for one in found.values():
        try:
            message, category = pickle.loads(one.pickled)
        except Exception:  # noqa: BLE001 - it is somebody else's
            message, category = one.text, UserWarning
        # Without a name it is made from that of the file; None would keep the warning to itself.
        where: dict[str, Any] = {} if one.module is None else {"module": one.module}
        module = sys.modules.get(one.module or "")
        if module is not None:
            where["registry"] = vars(module).setdefault("__warningregistry__", {})
        warnings.warn_explicit(message, category, one.filename, one.lineno, **where)
