"""Reproducible randomness: the seed of every job follows from its pool's seed and its number.

The caller numbers the jobs of a seeded pool as they are submitted (`Seeds`), and the key made of
that travels with the call. The worker sets what is random there by it, before it unpickles the rest
(`enter`), since that may draw too; and once more right before the call (`reseed`), since modules
are imported meanwhile in some workers and not in others. So neither the number of workers nor the
order in which jobs end makes a difference, and a second attempt gets what the first one had. Used
on both sides, so it imports little.
"""

from __future__ import annotations

import itertools
import sys

from .._common.imported import imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeGuard

    from numpy.random import Generator, SeedSequence

    from .._common.signatures import Seed

    Entropy = int | tuple[int, ...]
    Key = tuple[Entropy, tuple[int, ...]]
    """The ``entropy`` and the ``spawn_key`` of a `numpy.random.SeedSequence`."""
else:
    Generator = object  # for `typing.get_type_hints`

_LEGACY = 0x6C656761  # the child for what is older than SeedSequence; nobody spawns so many
_STORED = 0x73746F72  # the child whose children have words in the place of numbers
_POOL_SIZE = 4  # that of a SeedSequence, unless it is made with another one
_job_key: Key | None = None  # in a worker: that of the job
# In a worker: that of the call which the job is making, and what `job_rng` has made of it.
_call: tuple[Key, list[Generator]] | None = None
_bit_generator: Any = None  # what numpy's old functions have before the first job
_hooked = False  # whether modules are seeded when they are imported


class Seeds:
    """The keys of one pool's jobs, one after the other.

    Args:
        seed: An int from 0 on, several of them, or a `numpy.random.SeedSequence`, whose children
            that were not spawned yet are taken; it is not changed.

    Raises:
        TypeError: It is none of these.
        ValueError: It is negative, empty, or a sequence of another pool_size than numpy's own.
    """

    def __init__(self, seed: Seed) -> None:
        self._numbers = itertools.count()
        self._spawn_key: tuple[int, ...] = ()
        entropy: object = seed
        if _is_seed_sequence(seed):
            if seed.pool_size != _POOL_SIZE:
                raise ValueError(
                    f"seed must be a SeedSequence of pool_size {_POOL_SIZE}, not {seed.pool_size}"
                )
            entropy, self._spawn_key = seed.entropy, tuple(map(int, seed.spawn_key))
            self._numbers = itertools.count(seed.n_children_spawned)  # others have those
        self._entropy = _check_entropy(entropy)

    def next(self) -> Key:
        """The next job's key."""
        return self._entropy, (*self._spawn_key, next(self._numbers))

    @property
    def root(self) -> Key:
        """That from which all of them follow."""
        return self._entropy, self._spawn_key

    def of_words(self, words: tuple[int, ...]) -> Key:
        """The key of a job that has words of 32 bits in the place of a number, which it leaves."""
        return self._entropy, (*self._spawn_key, _STORED, *words)


class Entering:
    """A key that has a worker `enter` it as soon as it is unpickled, before what comes after it."""

    __slots__ = ("_key",)

    def __init__(self, key: Key) -> None:
        self._key = key

    def __reduce__(self) -> tuple[Callable[[Key], None], tuple[Key]]:
        return enter, (self._key,)


def child(key: Key, number: int) -> Key:
    """The key of the ``number``-th call of those that have ``key`` in common."""
    entropy, spawn_key = key
    return entropy, (*spawn_key, number)


def _is_seed_sequence(seed: object) -> TypeGuard[SeedSequence]:
    random = imported("numpy.random")
    return random is not None and isinstance(seed, random.SeedSequence)


def _check_entropy(entropy: object) -> Entropy:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from ..options import check_count, check_iterable, shown

    if not isinstance(entropy, Iterable) or isinstance(
        entropy,
        (str, bytes, bytearray, AbstractSet, Mapping),  # the last two have no order
    ):
        return check_count("seed", entropy, least=0)
    parts = tuple(check_count("seed", e, least=0) for e in check_iterable("seed", "ints", entropy))
    if not parts:
        raise ValueError(f"seed must be an int or several, not none of them: {shown(entropy)}")
    return parts


# --- in a worker ----------------------------------------------------------------------------------


def enter(key: Key) -> None:
    """Seed all that is random by the key of the job that comes next."""
    global _job_key
    _job_key = key
    _seed_by(key)


def enter_call(number: int) -> None:
    """The same for the ``number``-th of the calls that a `map` has made of jobs with one key."""
    assert _job_key is not None
    _seed_by(child(_job_key, number))


def _seed_by(key: Key) -> None:
    global _call
    _call = key, []
    _hook()
    reseed()


def reseed() -> None:
    """Have what is random begin anew, but for the generator of `job_rng`."""
    for name, seed in _SEEDERS.items():
        if sys.modules.get(name) is not None:
            __import__(name)  # waits for a thread that is in the middle of it
            seed(sys.modules[name])


def _hook() -> None:
    """Have what is imported later seeded then."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    from .import_hook import AfterImport

    absent = {name: seed for name, seed in _SEEDERS.items() if name not in sys.modules}
    sys.meta_path.insert(0, AfterImport(absent))


def _text() -> str:
    """The key of the call."""
    assert _call is not None
    entropy, spawn_key = _call[0]
    parts = (entropy,) if isinstance(entropy, int) else entropy
    # Not in decimals, of which Python writes so many only.
    return " ".join([*map(hex, parts), "/", *map(hex, spawn_key)])


def _seed_random(random: Any) -> None:
    random.seed(_text())  # of which it takes the SHA-512


def _seed_legacy_numpy(random: Any) -> None:
    global _bit_generator
    assert _call is not None
    entropy, spawn_key = _call[0]
    if hasattr(random, "set_bit_generator"):  # numpy 1.24; a job may have set another one
        if _bit_generator is None:
            _bit_generator = random.get_bit_generator()
        elif random.get_bit_generator() is not _bit_generator:
            random.set_bit_generator(_bit_generator)
    sequence = random.SeedSequence(entropy, spawn_key=(*spawn_key, _LEGACY))
    random.seed(sequence.generate_state(4))


def _seed_torch(torch: Any) -> None:
    from hashlib import sha512

    torch.manual_seed(int.from_bytes(sha512(_text().encode()).digest()[:8], "little"))


_SEEDERS: dict[str, Callable[[Any], object]] = {
    "random": _seed_random,
    "numpy.random": _seed_legacy_numpy,
    "torch": _seed_torch,
}


def generator() -> Generator | None:
    """Return what `job_rng` has returned in this call; None: nothing yet, or it has no key."""
    return _call[1][0] if _call is not None and _call[1] else None


def job_rng() -> Generator:
    """Return the random generator of the job that calls this.

    In a job of a ``JobPool(seed=...)`` it is the same one at each call, and what it yields follows
    from the pool's seed and the job's number alone: it is ``numpy.random.default_rng(child)`` with
    the child of that number of ``numpy.random.SeedSequence(seed)``, where jobs are numbered from 0
    on as they are submitted, those that fail or are cancelled included; a `map` has one number,
    and its calls are the children of that, in the order of the items. A retry gets a fresh one
    with the same seed. Elsewhere, that is outside of a job and in pools without a seed, each call
    returns a new generator that nobody can foresee.

    Not for several threads of a job at a time: let each have one of ``job_rng().spawn(n)``. The
    same for processes that the job forks: each would have a copy of it, with the same numbers.

    Raises:
        ImportError: There is no numpy.
    """
    try:
        from numpy import random
    except ImportError as error:
        raise ImportError(f"job_rng() returns a numpy generator, but: {error}") from error
    call = _call
    if call is None:
        return random.default_rng()
    (entropy, spawn_key), made = call
    if not made:
        made.append(random.default_rng(random.SeedSequence(entropy, spawn_key=spawn_key)))
    return made[0]  # the first one, also if several threads have made one
