"""The functions of a user who comes from another pool, in a module, as every pool can take them."""

from __future__ import annotations

import os
import time

grid = [1, 2, 3, 4, 5]
pairs = [(1, 2), (3, 4)]
setting = "as imported"


def simulate(x: int) -> int:
    return x * x


def add(x: int, y: int) -> int:
    return x + y


def slow(x: int) -> None:
    time.sleep(1000)


def endless() -> None:
    slow(0)


def crash() -> None:
    os._exit(3)


def prepare(value: object) -> None:
    global setting
    setting = str(value)


def prepared() -> str:
    return setting
