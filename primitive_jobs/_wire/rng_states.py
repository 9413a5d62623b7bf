"""Where the random generators of a job are, as bytes: a job that goes on draws what comes next.

Those are `random`, numpy's old functions, the generator of `job_rng`, and torch's own on the CPU.
Each is set in its place: what a job has got hold of stays the same object.
"""

# torch is there only where a job has it.
# pyright: reportMissingImports=false

from __future__ import annotations

import _pickle as pickle

from .._common.imported import imported
from . import seeding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def save() -> bytes:
    """Return where they are; of modules that are not imported, nothing."""
    random, legacy, torch = map(imported, ("random", "numpy.random", "torch"))
    states: list[Any] = [None, None, None, None]
    if random is not None:
        states[0] = random.getstate()
    if legacy is not None:
        states[1] = legacy.get_state(legacy=False)
    generator = seeding.generator()
    if generator is not None:
        states[2] = _state_of(generator.bit_generator)
    if torch is not None:
        states[3] = bytes(torch.get_rng_state().tolist())
    return pickle.dumps(states, 5)


def restore(saved: bytes) -> None:
    """Have them go on from there."""
    of_random, of_legacy, of_generator, of_torch = pickle.loads(saved)
    if of_random is not None:
        import random

        random.setstate(of_random)
    if of_legacy is not None:
        from numpy import random as numpy_random

        numpy_random.set_state(of_legacy)
    if of_generator is not None:
        _set(seeding.job_rng().bit_generator, of_generator)
    if of_torch is not None:
        import torch

        torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))


def _state_of(bits: Any) -> Any:
    """Its state with the sequence that its children come from, which counts them."""
    return bits.state, getattr(bits, "seed_seq", None) or bits._seed_seq


def _set(bits: Any, state: Any) -> None:
    try:
        bits.__setstate__(state)
    except (TypeError, ValueError):  # numpy 1.26 and before take the state alone
        bits.state = state[0]
        _spawned_alike(bits, state[1])


def _spawned_alike(bits: Any, sequence: Any) -> None:
    own = getattr(bits, "seed_seq", None) or bits._seed_seq
    missing = sequence.n_children_spawned - own.n_children_spawned
    if missing > 0:
        own.spawn(missing)  # they are others' already; the next one is the next


__all__ = ["restore", "save"]
