"""`Reservations`: what running jobs hold of a pool's memory and tokens, and what is left of it.

A pure part of the scheduler's state. CPUs are counted by the roster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..options import CPUS, MEMORY, Lacked, Needs
from .slots import Slot

FRESH = 0.1  # s for which a look at the machine's memory counts, and between two looks
LEAST_RESERVE, MOST_RESERVE = 64_000_000, 512_000_000  # bytes that are left to others
_RESERVE = 20  # the part of what is available that is, between these


class Room:
    """What is left, in one pass over the jobs that wait; it is taken from as the pass goes on.

    Attributes:
        cpus: That no job has.
        memory: Bytes that no job has, or has reserved; None: that is not known at this moment.
        tokens: That no job has, by name.
    """

    __slots__ = ("cpus", "memory", "tokens")

    def __init__(self, cpus: int, memory: int | None, tokens: Mapping[str, int]) -> None:
        self.cpus = cpus
        self.memory = memory
        self.tokens = {**tokens}

    def lacks(self, needs: Needs, width: int) -> tuple[Lacked, ...]:
        """Return what is too little of for a job that takes so many CPUs."""
        _, memory, tokens = needs
        lacking: list[Lacked] = [CPUS] if width > self.cpus else []
        if memory and self.memory is not None and memory > self.memory:
            lacking.append(MEMORY)
        lacking += [name for name, count in tokens if count > self.tokens.get(name, 0)]
        return tuple(lacking)

    def take(self, needs: Needs, width: int) -> None:
        """Take a job's share."""
        self.cpus -= width
        if needs.memory and self.memory is not None:
            self.memory -= needs.memory
        for name, count in needs.tokens:
            self.tokens[name] -= count


class Reservations:
    """The memory and the tokens of one pool.

    Args:
        budget: Bytes that its jobs may reserve together; None: what the machine has.
        tokens: How many there are of each name.

    Attributes:
        budget: As the argument.
        look_due: A look is to be asked for: see `seen`.
        looked_at: When the last look was.
        available: Bytes that it found, which others may have taken since.
    """

    def __init__(self, budget: int | None, tokens: Mapping[str, int]) -> None:
        self.budget = budget
        self.look_due = False
        self.looked_at = float("-inf")
        self.available = 0
        self._looking = False
        self._used: dict[int, int] = {}  # by slot, as the last look found it
        self._reserved: dict[int, int] = {}  # bytes, by slot
        self._free = {name: set(range(count)) for name, count in tokens.items()}
        self._lost = {name: set[int]() for name in tokens}  # what could not be killed has them
        self._held: dict[int, dict[str, tuple[int, ...]]] = {}  # tokens, by slot
        self._last: dict[tuple[str, int], int] = {}  # the slot that had a token last

    # --- memory ----------------------------------------------------------------------------------

    def seen(self, available: int, used: Mapping[int, int], now: float) -> None:
        """Take in a look: what the machine has left, and what each slot with a reservation uses."""
        self._looking = self.look_due = False
        self.looked_at = now
        self.available = available
        self._used = {slot: size for slot, size in used.items() if slot in self._reserved}

    def memory(self, now: float) -> int | None:
        """Return how much may be reserved now; None: that has to be looked at."""
        if self.budget is not None:
            return self.budget - sum(self._reserved.values())
        if now >= self.looked_at + FRESH:
            return None
        used = self._used
        unused = sum(max(0, size - used.get(slot, 0)) for slot, size in self._reserved.items())
        least = min(max(self.available // _RESERVE, LEAST_RESERVE), MOST_RESERVE)
        return self.available - least - unused

    def ask_for_look(self) -> None:
        """Have the machine's memory looked at, unless it is being."""
        if not self._looking:
            self._looking = self.look_due = True

    # --- tokens and all --------------------------------------------------------------------------

    def free_tokens(self) -> dict[str, int]:
        """Return how many of each name no job has."""
        return {name: len(free) for name, free in self._free.items()}

    def preferred(self, needs: Needs, slots: Iterable[Slot]) -> Slot | None:
        """Return the one of some slots that had such a token last which is free; None: none had."""
        known = {slot.number: slot for slot in slots}
        for name, _ in needs.tokens:
            for token in sorted(self._free[name]):
                slot = known.get(self._last.get((name, token), -1))
                if slot is not None:
                    return slot
        return None

    def reserve(self, slot: Slot, needs: Needs) -> None:
        """Reserve what a job needs for the slot that gets it."""
        _, memory, tokens = needs
        slot.reserves = bool(memory or tokens)
        if memory:
            self._reserved[slot.number] = memory
            self._used.pop(slot.number, None)
        if tokens:
            held = {name: self._take(name, count, slot.number) for name, count in tokens}
            self._held[slot.number] = held

    def _take(self, name: str, count: int, slot: int) -> tuple[int, ...]:
        """Take so many: those that the slot had last, then those that nobody had, then others."""
        free, last = self._free[name], self._last

        def rank(token: int) -> tuple[bool, bool, int]:
            had = last.get((name, token))
            return had != slot, had is not None, token

        taken = sorted(sorted(free, key=rank)[:count])
        free.difference_update(taken)
        for token in taken:
            last[name, token] = slot
        return tuple(taken)

    def tokens_of(self, slot: int) -> dict[str, tuple[int, ...]]:
        """Return which tokens a slot has."""
        return self._held.get(slot, {})

    def release(self, slot: Slot, *, lives_on: bool = False) -> None:
        """Take back what a slot has; its tokens stay where they are if something ``lives_on``."""
        slot.reserves = False
        self._reserved.pop(slot.number, None)
        self._used.pop(slot.number, None)
        for name, tokens in self._held.pop(slot.number, {}).items():
            (self._lost if lives_on else self._free)[name].update(tokens)

    # --- for tests -------------------------------------------------------------------------------

    def check(self, slots: Mapping[int, Slot], tokens: Mapping[str, int]) -> None:
        """Raise `AssertionError` if something is lost, given twice, or held by nobody."""
        holders = {*self._reserved, *self._held}
        assert holders == {number for number, slot in slots.items() if slot.reserves}
        for name, count in tokens.items():
            all_of_it = [*self._free[name], *self._lost[name]]
            all_of_it += [token for held in self._held.values() for token in held.get(name, ())]
            assert sorted(all_of_it) == list(range(count)), "each token is in one place"
        assert {*self._used} <= {*self._reserved}
        assert self.budget is None or sum(self._reserved.values()) <= self.budget


__all__ = ["FRESH", "Reservations", "Room"]
