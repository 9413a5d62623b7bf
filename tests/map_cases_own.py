"""Ways in which a call of `map` could differ from one of `submit`: what each call has of its own.

See `map_table`: as a program, what is defined here travels by value; imported, by reference.
"""

from __future__ import annotations

import enum
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from map_table import BAD, CALLS, Case, main

from primitive_jobs import PrimitiveJob, share

T = TypeVar("T")
CASES: dict[str, Case] = {}
# Where functions travel by reference, what is theirs stays in the worker from job to job.
ONLY_BY_VALUE: set[str] = set()


def case(make: Case) -> Case:
    CASES[make.__name__] = make
    return make


def by_value(make: Case) -> Case:
    ONLY_BY_VALUE.add(make.__name__)
    return case(make)


# --- what travels ---------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Params:
    x: int
    tags: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    x: int


class Pair(NamedTuple):
    left: Any
    right: Any


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content

    def get(self) -> T:
        return self.content


class Items(list[Any]):
    pass


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Oops(Exception):
    def __init__(self, number: int, more: object) -> None:
        super().__init__(number, more)
        self.more = more


class Only:
    """There is one in each process."""

    one: Any = None

    def __reduce__(self) -> Any:
        return the_only, ()


def the_only() -> Only:
    if Only.one is None:
        Only.one = Only()
    return Only.one  # type: ignore[no-any-return]


LEVEL = 0


def set_level(i: int) -> None:
    global LEVEL
    LEVEL = i


# --- one buffer again and again -------------------------------------------------------------------


def ring_of(count: int, make: Callable[[], Any]) -> Iterator[Any]:
    ring = [make() for _ in range(count)]
    for i in range(CALLS):
        buffer = ring[i % count]
        buffer[0] = i % 256
        yield buffer


def first_of(buffer: Any) -> int:
    return int(buffer[0])


BUFFERS: dict[str, Callable[[], Any]] = {
    "list": lambda: [0],
    "dict": lambda: {0: 0},
    "bytearray": lambda: bytearray(10),
    "large_bytearray": lambda: bytearray(20_000),
    "array": lambda: np.zeros(3),
    "large_array": lambda: np.zeros(3000),
}
for kind, count in itertools.product(BUFFERS, (1, 2, 3)):
    CASES[f"ring_of_{count}_{kind}"] = functools.partial(
        lambda _, kind, count: (first_of, ring_of(count, BUFFERS[kind])), kind=kind, count=count
    )
    CASES[f"ring_of_{count}_{kind}_in_tuples"] = functools.partial(
        lambda _, kind, count: (
            lambda row: (row[0], int(row[1][0])),
            ((0, buffer) for buffer in ring_of(count, BUFFERS[kind])),
        ),
        kind=kind,
        count=count,
    )


# --- shared data and jobs -------------------------------------------------------------------------


@case
def shared_in_the_function(_: Any) -> tuple[Any, ...]:
    table = share([1, 2, 3])
    return functools.partial(lambda t, i: (t.append(i), len(t)), table), range(CALLS)


@case
def shared_in_rows(_: Any) -> tuple[Any, ...]:
    table = share([1, 2, 3])
    return lambda row: (row[0].append(1), len(row[0])), [(table, i) for i in range(CALLS)]


@case
def shared_and_repeated(_: Any) -> tuple[Any, ...]:
    table, array = share([1, 2, 3]), share(np.arange(5000))

    def call(t: Any, a: Any, i: int) -> tuple[int, int, bool]:
        t.append(i)
        return len(t), int(a[i]), bool(a.flags.writeable)

    return call, itertools.repeat(table), itertools.repeat(array), range(CALLS)


@case
def shared_in_both(_: Any) -> tuple[Any, ...]:
    table = share([1, 2, 3])
    return functools.partial(lambda t, u: t is u, table), [table] * CALLS


@case
def jobs(pool: Any) -> tuple[Any, ...]:
    job = pool.submit(pow, 2, 3)
    return lambda item: item[0] + item[1], [(job, i) for i in range(CALLS)]


@case
def a_job_now_and_then(pool: Any) -> tuple[Any, ...]:
    job = pool.submit(pow, 2, 3)
    return lambda item: item, [i if i % 4 else job for i in range(CALLS)]


@case
def an_unfinished_job_elsewhere(_: Any) -> tuple[Any, ...]:
    return lambda item: item, [i if i != 5 else {PrimitiveJob(abs, 1)} for i in range(CALLS)]


@case
def a_finished_job_of_the_function(pool: Any) -> tuple[Any, ...]:
    job = pool.submit(pow, 2, 3)
    job.wait()
    return functools.partial(lambda a, b: (a.result(), b), job), [job, 1] * (CALLS // 2)


# --- definitions of the program -------------------------------------------------------------------


@case
def objects_of_the_program(_: Any) -> tuple[Any, ...]:
    return lambda item: (item.x, isinstance(item, Params)), [Params(i) for i in range(CALLS)]


@case
def objects_that_come_late(_: Any) -> tuple[Any, ...]:
    def call(item: Any) -> str:
        return f"{item}" if isinstance(item, int) else type(item).__name__

    others = [Params(1), Frozen(2), Box(3), Color.RED, Slotted(4), Items([5]), Pair(6, 7)]
    return call, [0] * 7 + [1, *others] * 5


@case
def results_of_the_program(_: Any) -> tuple[Any, ...]:
    def call(i: int) -> Any:
        kinds = [Params(i), Frozen(i), Pair(i, Color.BLUE), Box(i), Color.RED, Oops(i, [i]), Params]
        return kinds[i % 7]

    return call, range(CALLS)


@case
def arguments_returned(_: Any) -> tuple[Any, ...]:
    return lambda item: item, [Params(i, [i]) for i in range(CALLS)]


@case
def exceptions_of_the_program(_: Any) -> tuple[Any, ...]:
    def call(i: int) -> int:
        if i == BAD:
            raise Oops(i, Params(i))
        return i

    return call, range(CALLS)


@case
def members(_: Any) -> tuple[Any, ...]:
    def call(item: Any) -> tuple[bool, bool]:
        return item[0] is Color.RED, item[1] is Rights.READ

    return call, [(Color.RED, Rights.READ), (Color.BLUE, Rights.WRITE)] * 20


@case
def the_only_one(_: Any) -> tuple[Any, ...]:
    return lambda a, b: (a is b, a is the_only()), [the_only()] * CALLS, [the_only()] * CALLS


@case
def classes_as_arguments(_: Any) -> tuple[Any, ...]:
    return lambda kind: kind is Params, [Params, Frozen, int, Color] * 10


@case
def a_local_class(_: Any) -> tuple[Any, ...]:
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    return lambda item: (item.x, type(item) is Local), [Local(i) for i in range(CALLS)]


@case
def functions_as_arguments(_: Any) -> tuple[Any, ...]:
    return lambda call: call(3), [lambda x, k=k: x + k for k in range(CALLS)]


@case
def closures_over_one_cell(_: Any) -> tuple[Any, ...]:
    state = [0]

    def add(n: int) -> None:
        state.append(n)

    def call(also: Any, i: int) -> list[int]:
        also(i)
        return state

    return call, [add] * CALLS, range(CALLS)


def read_level() -> int:
    return LEVEL


def set_level_and_read(read: Any) -> int:
    set_level(5)
    return int(read())


@by_value
def functions_that_share_globals(_: Any) -> tuple[Any, ...]:
    set_level(1)
    return set_level_and_read, [read_level] * CALLS


@case
def methods_as_arguments(_: Any) -> tuple[Any, ...]:
    return lambda get: get(), [Box(i).get for i in range(CALLS)]


@case
def texts(_: Any) -> tuple[Any, ...]:
    return lambda row: row, [["__main__", b"__main__", "x" * 2000, i] for i in range(CALLS)]


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@case
def recursion(_: Any) -> tuple[Any, ...]:
    return fibonacci, [i % 10 for i in range(CALLS)]


# --- what cannot travel ---------------------------------------------------------------------------


@case
def an_argument_that_cannot(_: Any) -> tuple[Any, ...]:
    rows: list[Any] = [[i] for i in range(CALLS)]
    rows[BAD] = threading.Lock()
    return lambda row: row, rows


@case
def a_result_that_cannot(_: Any) -> tuple[Any, ...]:
    return lambda i: threading.Lock() if i == BAD else [i], range(CALLS)


def refuse(*_: object) -> None:
    raise RuntimeError("never unpickled")


class Unloadable:
    def __reduce__(self) -> Any:
        return refuse, ()


@case
def an_argument_that_does_not_arrive(_: Any) -> tuple[Any, ...]:
    rows: list[Any] = [[i] for i in range(CALLS)]
    rows[BAD] = Unloadable()
    return lambda row: row, rows


@case
def a_result_that_does_not_arrive(_: Any) -> tuple[Any, ...]:
    return lambda i: Unloadable() if i == BAD else [i], range(CALLS)


if __name__ == "__main__":
    main(CASES, set(), __name__)
