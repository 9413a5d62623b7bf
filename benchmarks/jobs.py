"""What the workers do; every peer's worker imports it from here, and so pickles only a reference.

It imports little, so that it weighs little in a worker. What does not end by itself is ended by
the benchmark; should that fail, after `LONGEST` s.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Any

LONGEST = 120  # s
IN_C = 10**10  # about as long


def noop() -> None:
    """Do nothing."""


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def greet(address: str) -> None:
    """Arrive."""
    arrive(address).close()


def same(value: object) -> object:
    """Return the argument."""
    return value


def element_of(array: Any, place: int) -> float:
    """Return one element."""
    return float(array[place])


def sum_of(array: Any, place: int) -> float:
    """Return the sum of all elements."""
    del place
    return float(array.sum())


def numbers(size: int) -> Any:
    """Return an array of so many bytes."""
    import numpy as np

    return np.arange(size // 8, dtype=np.float64)


def last(array: Any) -> float:
    """Return the last number of an array, all of which is read."""
    return float(max(array[:: 4096 // 8].max(), array[-1]))


def total(values: list[int]) -> int:
    """Return the sum."""
    return sum(values)


def minimum(place: float, times: int) -> float:
    """Return where a parabola has its minimum, which SciPy has found so many times."""
    from scipy.optimize import minimize

    found = [minimize(lambda x: (x[0] - place) ** 2, [place + 1.0]) for _ in range(times)]
    return float(found[-1].x[0])


def compute(steps: int) -> int:
    """Keep one core busy, without memory or the operating system."""
    state = 1
    for _ in range(steps):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
    return state


def arrive(address: str) -> socket.socket:
    """Tell a `Meeting` this process's pid."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(address)
    link.sendall(os.getpid().to_bytes(8, "little"))
    return link


def hold(address: str) -> int:
    """Arrive, wait to be released, return the pid."""
    with arrive(address) as link:
        link.settimeout(LONGEST)
        link.recv(1)
    return os.getpid()


def spin(address: str) -> None:
    """Arrive, then compute in Python."""
    with arrive(address):
        pass
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        pass


def compute_in_c(address: str) -> None:
    """Arrive, then stay in one C call that holds the GIL, and looks at no signal."""
    with arrive(address):
        pass
    any(itertools.repeat(False, IN_C))


class Table:
    """An array and a count of how often it was pickled in this process."""

    pickled = 0

    def __init__(self, values: Any) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        Table.pickled += 1
        return Table, (self.values,)


def sum_block(table: Table, block: int, blocks: int) -> float:
    """Return the sum over one of so many equal parts."""
    size = len(table.values) // blocks
    return float(table.values[block * size : (block + 1) * size].sum())


def sum_and_hold(table: Table, address: str) -> float:
    """Read all of the array, arrive, and keep it until released."""
    total = float(table.values.sum())
    hold(address)
    return total


# --- for pools that give their workers data when they start ------------------------------------

_kept: list[Table] = []


def keep_table(table: Table) -> None:
    """Initialize a worker."""
    _kept[:] = [table]


def with_table(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function with the table of this worker."""
    return function(_kept[0], *args)
