"""What the workers do; every peer's worker imports it from here, and so pickles only a reference.

It imports as little as a worker can have use of.
"""

from __future__ import annotations


def noop() -> None:
    """Do nothing."""


def same(value: object) -> object:
    """Return the argument."""
    return value
