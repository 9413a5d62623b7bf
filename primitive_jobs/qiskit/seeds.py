"""What the pubs of a run are seeded with, each so that it does not matter where it runs."""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from qiskit.primitives import BaseSamplerV2, StatevectorEstimator, StatevectorSampler

from .._common.imported import imported

# Where Qiskit's primitives, and Aer's, keep what they are seeded with.
_SEED = "_seed"
_OPTIONS = "_options"


class Seed(NamedTuple):
    """What a copy of the primitive is seeded with, and how."""

    setter: Callable[[Any, Any], None]
    value: Any


def seeds_for(primitive: Any, pubs: Sequence[Any]) -> list[list[Seed]]:
    """What each of the pubs is seeded with; nothing: as the primitive is."""
    columns: list[Sequence[Seed | None]] = [
        _streams_from(name, value, len(pubs))
        for name, value in getattr(primitive, "__dict__", {}).items()
        if isinstance(value, _STREAMS)
    ]
    columns.append(_numbers_for(primitive, pubs))
    return [[one for one in row if one is not None] for row in zip(*columns, strict=True)]


def _numbers_for(primitive: Any, pubs: Sequence[Any]) -> Sequence[Seed | None]:
    count = len(pubs)
    seed = getattr(primitive, _SEED, None)
    options = getattr(primitive, _OPTIONS, None)
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
    if seeds_each_pub_alike(primitive) or not isinstance(seed, numbers.Integral):
        return [None] * count
    if not _is_of_aer(getattr(primitive, "_backend", None)):
        values = _numbers_from(int(seed), count, bits=31)  # what any simulator takes
    elif isinstance(primitive, BaseSamplerV2):
        values = _numbers_of_aer(int(seed), pubs)
    else:
        values = _numbers_from(int(seed), count, bits=63)
    return [Seed(setter, value) for value in values]


_STREAMS = (np.random.Generator, np.random.BitGenerator, np.random.RandomState)


def _streams_from(name: str, stream: Any, count: int) -> list[Seed]:
    """What puts a generator of the same kind, but of its own, in the attribute's place."""
    # Drawn, not spawned: so it depends on the generator's state, and moves it on.
    old = isinstance(stream, np.random.RandomState)
    draw = stream.randint if old else np.random.default_rng(stream).integers
    words = tuple(int(word) for word in draw(2**32, size=4, dtype=np.uint32))
    return [Seed(_set_stream, (name, type(stream), words, place)) for place in range(count)]


def seeds_each_pub_alike(primitive: Any) -> bool:
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
    setattr(primitive, _SEED, seed)


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
    options = dataclasses.replace(getattr(primitive, _OPTIONS), seed_simulator=seed)
    setattr(primitive, _OPTIONS, options)


def _set_run_option(primitive: Any, seed: int) -> None:
    options = getattr(primitive, _OPTIONS)
    run_options = {**options.run_options, "seed_simulator": seed}
    setattr(primitive, _OPTIONS, dataclasses.replace(options, run_options=run_options))


__all__ = ["Seed", "seeds_each_pub_alike", "seeds_for"]
