"""Ways in which a call of `map` could differ from one of `submit`: what calls have in common.

See `map_table`: as a program, what is defined here travels by value; imported, by reference.
"""

from __future__ import annotations

import collections
import enum
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from map_table import CALLS, Case, main

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


class Part:
    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.placed = 0


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


class Oops(Exception):
    def __init__(self, number: int, more: object) -> None:
        super().__init__(number, more)
        self.more = more


class Counted:
    made = 0

    def count(self) -> int:
        type(self).made += 1
        return type(self).made


def place_of(part: object, parts: Iterable[object]) -> int:
    return next((i for i, other in enumerate(parts) if other is part), -1)


class Model:
    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.log: list[int] = []
        self.calls = 0

    def place(self, part: Any) -> int:
        return place_of(part, self.parts)

    def place_pair(self, pair: Any) -> tuple[int, int]:
        return place_of(pair[0], self.parts), place_of(pair[1], self.parts)

    def mark(self, part: Any) -> int:
        part.placed += 1
        return sum(other.placed for other in self.parts)

    def step(self, i: int) -> tuple[int, list[int]]:
        self.calls += 1
        self.log.append(i)
        return self.calls, self.log

    def __call__(self, part: Any) -> int:
        return self.place(part)

    def owns(self, other: Any) -> bool:
        return other is self

    def owns_method(self, method: Any) -> bool:
        return method.__self__ is self


def parts_of(count: int = CALLS) -> list[Any]:
    return [Part(i) for i in range(count)]


def find(parts: Any, part: Any) -> int:
    return place_of(part, parts)


# --- identity between an argument and what is the function's own ----------------------------------


@case
def method(_: Any) -> tuple[Any, ...]:
    model = Model(parts_of())
    return model.place, model.parts


@case
def method_of_many_parts(_: Any) -> tuple[Any, ...]:
    model = Model(parts_of(500))
    return model.place, model.parts[-CALLS:]


@case
def method_pairs(_: Any) -> tuple[Any, ...]:
    model = Model(parts_of())
    return model.place_pair, [(part, model.parts[3]) for part in model.parts]


@case
def partial(_: Any) -> tuple[Any, ...]:
    parts = parts_of()
    return functools.partial(find, parts), parts


@case
def partial_by_keyword(_: Any) -> tuple[Any, ...]:
    parts = parts_of()
    return functools.partial(find, part=parts[7]), [parts] * CALLS


@case
def closure(_: Any) -> tuple[Any, ...]:
    parts = parts_of()
    return lambda part: place_of(part, parts), parts


@case
def callable_object(_: Any) -> tuple[Any, ...]:
    model = Model(parts_of())
    return model, model.parts


@case
def default(_: Any) -> tuple[Any, ...]:
    parts = parts_of()

    def call(part: Any, among: Any = parts) -> int:
        return place_of(part, among)

    return call, parts


@case
def default_by_keyword(_: Any) -> tuple[Any, ...]:
    parts = parts_of()

    def call(part: Any, *, among: Any = parts) -> int:
        return place_of(part, among)

    return call, parts


@case
def attribute_of_a_function(_: Any) -> tuple[Any, ...]:
    parts = parts_of()

    def call(part: Any) -> int:
        return place_of(part, call.parts)  # type: ignore[attr-defined]

    call.parts = parts  # type: ignore[attr-defined]
    return call, parts


PARTS = parts_of()


def find_in_global(part: Any) -> int:
    return place_of(part, PARTS)


@case
def global_list(_: Any) -> tuple[Any, ...]:
    return find_in_global, PARTS


@case
def repeated(_: Any) -> tuple[Any, ...]:
    parts = parts_of()
    return find, itertools.repeat(parts), parts


@case
def repeated_twice(_: Any) -> tuple[Any, ...]:
    table: list[Any] = [[], []]

    def call(a: Any, i: int, b: Any) -> tuple[bool, bool, int]:
        return a is b[0], a is b[1], i

    return call, itertools.repeat(table[1]), range(CALLS), itertools.repeat(table)


@case
def repeated_and_bound(_: Any) -> tuple[Any, ...]:
    model = Model(parts_of())

    def call(other: Any, part: Any) -> tuple[bool, int]:
        return other is model, other.place(part)

    return call, itertools.repeat(model), model.parts


@case
def only_repeated(_: Any) -> tuple[Any, ...]:
    return len, itertools.repeat([1, 2, 3], CALLS)


@case
def kinds_of_parts(_: Any) -> tuple[Any, ...]:
    kinds: list[Any] = [
        [1], {1: 2}, {3}, frozenset({9, 8}), (1, [2]), bytearray(b"x"), bytearray(30_000),
        np.zeros(3), np.zeros(30_000), Slotted(1), Params(1), Frozen(1), Pair(1, [2]), Box([1]),
        Items([1]), collections.deque([1]), collections.OrderedDict(a=1), object(), Oops(1, 2),
        lambda: 1, Params, Color, Color.RED, print, np.dtype("f8"), range(3), slice(1, 2),
    ]  # fmt: skip
    model = Model(kinds)
    return model.place, kinds + kinds


@case
def array_of_the_function(_: Any) -> tuple[Any, ...]:
    arrays = [np.full(n, n) for n in (10, 5000) * 20]
    model = Model(arrays)
    return model.place, arrays


@case
def itself(_: Any) -> tuple[Any, ...]:
    model = Model([])
    return model.owns, [model] * CALLS


@case
def its_method(_: Any) -> tuple[Any, ...]:
    model = Model([])
    return model.owns_method, [model.place, Model([]).place] * 20


def is_this_function(other: Any) -> bool:
    return other is is_this_function


@case
def the_function_itself(_: Any) -> tuple[Any, ...]:
    return is_this_function, [is_this_function] * CALLS


# --- fresh arguments, fresh state -----------------------------------------------------------------


def pop(items: list[Any]) -> int:
    items.pop()
    return len(items)


@case
def one_list_for_all(_: Any) -> tuple[Any, ...]:
    return pop, [[1, 2, 3]] * CALLS


@case
def repeated_and_changed(_: Any) -> tuple[Any, ...]:
    return pop, itertools.repeat([1, 2, 3], CALLS)


@case
def a_common_part(_: Any) -> tuple[Any, ...]:
    common: list[int] = []

    def call(row: Any) -> int:
        row[0].append(1)
        return len(row[0])

    return call, [(common, i) for i in range(CALLS)]


@case
def twice_in_a_row(_: Any) -> tuple[Any, ...]:
    def call(a: Any, b: Any) -> tuple[bool, bool]:
        return a is b, a is b[0] if b and a is not b else False

    rows: list[tuple[Any, Any]] = []
    for i in range(CALLS):
        a: list[Any] = [i]
        rows.append((a, a) if i % 2 else (a, [a]))
    return call, [a for a, _ in rows], [b for _, b in rows]


@case
def recursive_data(_: Any) -> tuple[Any, ...]:
    rows: list[Any] = []
    for i in range(CALLS):
        a: list[Any] = [i]
        a.append(a)
        rows.append(a)
    return lambda a: a[1][1] is a, rows


@case
def counter_object(_: Any) -> tuple[Any, ...]:
    return Model([]).step, range(CALLS)


@case
def counter_in_a_closure(_: Any) -> tuple[Any, ...]:
    count = 0

    def call(i: int) -> int:
        nonlocal count
        count += 1
        return count

    return call, range(CALLS)


@case
def counter_in_a_default(_: Any) -> tuple[Any, ...]:
    def call(i: int, seen: list[int] = []) -> int:  # noqa: B006
        seen.append(i)
        return len(seen)

    return call, range(CALLS)


@case
def counter_in_a_partial(_: Any) -> tuple[Any, ...]:
    def call(seen: list[int], i: int) -> int:
        seen.append(i)
        return len(seen)

    return functools.partial(call, []), range(CALLS)


@case
def counter_in_an_attribute(_: Any) -> tuple[Any, ...]:
    def call(i: int) -> int:
        call.count += 1  # type: ignore[attr-defined]
        return call.count  # type: ignore[attr-defined,no-any-return]

    call.count = 0  # type: ignore[attr-defined]
    return call, range(CALLS)


COUNT = 0
SEEN: list[int] = []


def count_up(i: int) -> int:
    global COUNT
    COUNT += 1
    return COUNT


def note_seen(i: int) -> list[int]:
    SEEN.append(i)
    return SEEN


@by_value
def global_number(_: Any) -> tuple[Any, ...]:
    return count_up, range(CALLS)


@by_value
def global_list_changed(_: Any) -> tuple[Any, ...]:
    return note_seen, range(CALLS)


@by_value
def class_attribute(_: Any) -> tuple[Any, ...]:
    return lambda i: Counted().count(), range(CALLS)


@by_value
def class_attribute_by_the_argument(_: Any) -> tuple[Any, ...]:
    return lambda item: item.count(), [Counted() for _ in range(CALLS)]


@by_value
def class_attribute_by_a_late_argument(_: Any) -> tuple[Any, ...]:
    return lambda item: item if item == 0 else item.count(), [0] * 8 + [Counted()] * 12


@case
def array_changed(_: Any) -> tuple[Any, ...]:
    def call(table: Any, i: int) -> float:
        table[-1] += 1
        return float(table[-1])

    return functools.partial(call, np.zeros(30_000)), range(CALLS)


@case
def bytes_changed(_: Any) -> tuple[Any, ...]:
    def call(table: Any, i: int) -> int:
        table[-1] += 1
        return int(table[-1])

    return call, itertools.repeat(bytearray(30_000)), range(CALLS)


@case
def part_changed(_: Any) -> tuple[Any, ...]:
    model = Model(parts_of())
    return model.mark, model.parts


# --- what the iterable changes --------------------------------------------------------------------


def at_each(change: Callable[[int], object], start: int = 0) -> Iterator[int]:
    for i in range(CALLS):
        if i >= start:
            change(i)
        yield i


LEVEL = 0


def set_level(i: int) -> None:
    global LEVEL
    LEVEL = i


@by_value
def global_moves(_: Any) -> tuple[Any, ...]:
    set_level(0)
    return lambda i: (i, LEVEL), at_each(set_level)


@by_value
def global_moves_from_the_second(_: Any) -> tuple[Any, ...]:
    set_level(0)
    return lambda i: (i, LEVEL), at_each(set_level, 1)


@by_value
def global_moves_and_objects_come(_: Any) -> tuple[Any, ...]:
    set_level(0)
    return lambda item: (item.x, LEVEL), (Params(i) for i in at_each(set_level))


@case
def closure_moves(_: Any) -> tuple[Any, ...]:
    level = 0

    def change(i: int) -> None:
        nonlocal level
        level = i

    return lambda i: (i, level), at_each(change)


@case
def model_moves(_: Any) -> tuple[Any, ...]:
    model = Model([])
    return model.step, at_each(model.log.append)


@case
def model_gets_parts(_: Any) -> tuple[Any, ...]:
    model = Model([])

    def items() -> Iterator[Any]:
        for i in range(CALLS):
            model.parts.append(Part(i))
            yield model.parts[-1]

    return model.place, items()


@case
def repeated_table_moves(_: Any) -> tuple[Any, ...]:
    table: list[int] = []
    return lambda t, i: (i, len(t)), itertools.repeat(table), at_each(table.append)


@case
def array_of_the_function_moves(_: Any) -> tuple[Any, ...]:
    array = np.zeros(30_000)

    def change(i: int) -> None:
        array[-1] = i

    return functools.partial(lambda a, i: (i, float(a[-1])), array), at_each(change)


@case
def equal_parts_take_the_place(_: Any) -> tuple[Any, ...]:
    model = Model([])

    def items() -> Iterator[Any]:
        for _ in range(CALLS):
            model.parts = [Part(1), Part(1)]
            yield model.parts[1]

    return model.place, items()


if __name__ == "__main__":
    main(CASES, set(), __name__)
