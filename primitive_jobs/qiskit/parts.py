"""The pubs of a run put into parts, and what each part is sent, serialized once."""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub

from .._common.naming import one_line, type_name
from .._engine.sources import Source, file_limit
from .._wire.pickling import dumps_whole
from ..errors import SerializationError
from ..shared import share, source_of
from .seeds import Seed, seeds_for

# What a pub may be expected to take; see seconds_of.
_PER_GATE = 100e-6  # s, of Qiskit's own work
_PER_AMPLITUDE = 50e-9  # s, for each gate
_ENOUGH = 0.02  # s that are worth a job of their own
_PARTS_PER_WORKER = 4  # at least, so that no worker is left without work early
_COPIED = 1_000_000  # bytes, of the copies that the parts of a run may have instead of sharing

Place = tuple[int, int]
"""Where something stands in the block: its first byte, and the first that is not its."""


def seconds_of(pub: Any) -> float:
    """About how long a pub takes, for a state vector: which ones are short is all that matters."""
    circuit = pub.circuit
    per_gate: float = _PER_GATE + _PER_AMPLITUDE * 2.0 ** min(circuit.num_qubits, 60)
    return float(max(1, pub.size)) * (len(circuit.data) + 10) * per_gate


def split(seconds: Sequence[float], workers: int, *, together: bool) -> list[range]:
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
        _sources.add(source_of(shared))
        return shared

    def key(self) -> bytes:
        """What tells the first object from those of other blocks."""
        return hashlib.blake2b(self._pieces[0], digest_size=16).digest()


class Pub(NamedTuple):
    """A pub on its way: everything but the circuit, which may be that of others as well."""

    kind: type[Any]
    circuit: Place
    rest: dict[str, Any]
    seeds: list[Seed]


_REST = {
    SamplerPub: ("parameter_values", "shots"),
    EstimatorPub: ("observables", "parameter_values", "precision"),
}


def pack(
    primitive: Any, pubs: Sequence[Any], ranges: Sequence[range]
) -> list[tuple[Any, bytes, Place, list[Pub]]]:
    """Return the arguments of `run_part` for each part."""
    block = _Block()
    place = block.add(primitive, f"the wrapped {type_name(primitive)}")
    packed = []
    for number, (pub, seeds) in enumerate(zip(pubs, seeds_for(primitive, pubs), strict=True)):
        kind = SamplerPub if isinstance(pub, SamplerPub) else EstimatorPub
        rest = {name: getattr(pub, name) for name in _REST[kind]}
        circuit = block.add(pub.circuit, f"the circuit of pub {number}")
        packed.append(Pub(kind, circuit, rest, seeds))
    whole, key = block.for_parts(len(ranges)), block.key()
    return [(whole, key, place, [packed[i] for i in one]) for one in ranges]


__all__ = ["Place", "Pub", "pack", "seconds_of", "split"]
