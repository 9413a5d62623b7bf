"""What is said of something that cannot be pickled: by which part of it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import itertools
import re
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import cloudpickle
import pytest
from helpers import PATIENCE

from primitive_jobs import InitializerError, JobError, JobPool, SerializationError, share
from primitive_jobs._wire import culprit
from primitive_jobs._wire.calls import dump_call

LOCK = threading.Lock()
REASON = "TypeError: cannot pickle '_thread.lock' object"


class Solver:
    def __init__(self) -> None:
        self.size = 3
        self.lock = threading.Lock()

    def run(self, x: int) -> int:
        return x


@dataclasses.dataclass
class Config:
    name: str = "a name"
    solver: Any = dataclasses.field(default_factory=Solver)


class Pair(NamedTuple):
    first: Any
    second: Any


class Slotted:
    __slots__ = ("held", "size")

    def __init__(self) -> None:
        self.size, self.held = 1, threading.Lock()


class Reducing:
    def __init__(self, held: object) -> None:
        self.held = held

    def __reduce__(self) -> Any:
        return Reducing, (self.held,)


class Mapping(dict[str, object]):
    pass


class Circular:
    def __init__(self) -> None:
        self.child = Child(self)
        self.lock = threading.Lock()


class Child:
    def __init__(self, parent: Circular) -> None:
        self.parent = parent


def by_value(source: str, name: str, **variables: object) -> Any:
    """What a script defines."""
    space: dict[str, Any] = {"__name__": "__main__", **variables}
    exec(source, space)
    return space[name]


def said(function: Callable[..., Any], *args: object, **kwargs: object) -> str:
    try:
        dump_call(function, args, kwargs, "simulate")
    except SerializationError as error:
        return str(error)
    raise AssertionError("it was pickled")


# --- functions -----------------------------------------------------------------------------------


def closure() -> Callable[[], object]:
    held = [1, {"a key": threading.Lock()}]
    return lambda: held


USES = "def simulate(x=1): return cfg.name"
ABOVE = f"{USES}\ndef helper(): return simulate\ndef outer(): return [helper() for _ in ()]"
FAR = (
    f"{ABOVE}\ndef wrapping():\n    def inner(): return outer()\n    return inner\nfar = wrapping()"
)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (
            by_value(USES, "simulate", cfg=Config()),
            "it uses the global `cfg` (Config), whose `.solver.lock` cannot be pickled",
        ),
        (
            by_value(USES, "simulate", cfg=LOCK),
            "it uses the global `cfg` (lock), which cannot be pickled",
        ),
        (
            by_value(FAR, "far", cfg=Config()),
            (
                "it uses the global `outer` (function), which uses the global `helper` (function), "
                "which uses the global `simulate` (function), which uses the global `cfg` "
                "(Config), whose `.solver.lock` cannot be pickled"
            ),
        ),
        (
            closure(),
            "it uses the closure variable `held` (list), whose `[1]['a key']` cannot be pickled",
        ),
        (
            by_value("def simulate(x, y=cfg, *, z=2): pass", "simulate", cfg=Config()),
            "it has a default of its argument `y` (Config), whose `.solver.lock` cannot be pickled",
        ),
        (
            by_value("def simulate(x, y=2, *, z=cfg): pass", "simulate", cfg=LOCK),
            "it has a default of its argument `z` (lock), which cannot be pickled",
        ),
        (
            by_value("def simulate(): pass\nsimulate.kept = cfg", "simulate", cfg=LOCK),
            "its `.kept` cannot be pickled",
        ),
        (
            by_value("def calls_itself(): return calls_itself, cfg", "calls_itself", cfg=LOCK),
            "it uses the global `cfg` (lock), which cannot be pickled",
        ),
        (Solver().run, "it is a method of an object (Solver), whose `.lock` cannot be pickled"),
        (
            functools.partial(max, 1, Config()),
            "it gives the argument 2 (Config), whose `.solver.lock` cannot be pickled",
        ),
        (
            functools.partial(max, key=LOCK),
            "it gives the argument 'key' (lock), which cannot be pickled",
        ),
        (
            functools.partial(by_value(USES, "simulate", cfg=LOCK), 1),
            (
                "it calls `simulate` (function), which uses the global `cfg` (lock), "
                "which cannot be pickled"
            ),
        ),
        (
            by_value(
                "class A:\n    held = cfg\n    def __call__(self): pass\na = A()", "a", cfg=LOCK
            ),
            "it is of the class `A` (type), whose `.held` cannot be pickled",
        ),
        (
            functools.lru_cache(by_value(USES, "simulate", cfg=LOCK)),
            (
                "its `.__wrapped__` (function), which uses the global `cfg` (lock), "
                "which cannot be pickled"
            ),
        ),
    ],
    ids=itertools.count(),
)
def test_functions(function: Any, why: str) -> None:
    kind = type(function).__name__
    assert said(function) == (
        f"the function simulate(), a {kind}, cannot be serialized: {why}: {REASON}"
    )


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        (Config(), "its `.solver.lock` cannot be pickled"),
        ([1, [Config()]], "its `[1][0].solver.lock` cannot be pickled"),
        ({"x": 1, ("y", 2): LOCK}, "its `[('y', 2)]` cannot be pickled"),
        ({Pair(1, 2): LOCK}, "its `[...]` cannot be pickled"),
        ({LOCK: 1}, "it has a key (lock), which cannot be pickled"),
        ({1, LOCK}, "it has an item (lock), which cannot be pickled"),
        (Pair(1, LOCK), "its `.second` cannot be pickled"),
        (Slotted(), "its `.held` cannot be pickled"),
        (Reducing(LOCK), "its `.held` cannot be pickled"),
        (Mapping(x=LOCK), "its `['x']` cannot be pickled"),
        (collections.deque([1, LOCK]), "its `[1]` cannot be pickled"),
        (ValueError("text", LOCK), "its `.args[1]` cannot be pickled"),
        (Circular(), "its `.lock` cannot be pickled"),
        ([lambda: LOCK], ""),
    ],
    ids=itertools.count(),
)
def test_arguments(argument: Any, why: str) -> None:
    if not why:  # of this module, so by value only where somebody wants it so
        argument = [by_value("f = lambda: cfg", "f", cfg=LOCK)]
        why = "its `[0]` (function), which uses the global `cfg` (lock), which cannot be pickled"
    for label, args, kwargs in (("2", (1, argument), {}), ("'config'", (), {"config": argument})):
        assert said(max, *args, **kwargs) == (
            f"argument {label} of simulate(), a {type(argument).__name__}, cannot be serialized: "
            f"{why}: {REASON}"
        )


def test_the_object_itself() -> None:
    assert said(max, LOCK) == (f"argument 1 of simulate(), a lock, cannot be serialized: {REASON}")


def test_shared_data_is_not_to_blame() -> None:
    text = said(max, [share([1]), LOCK])
    assert "its `[1]` cannot be pickled" in text
    with pytest.raises(SerializationError, match=r"a dict cannot be shared: .* its `\['x'\]` cann"):
        share({"x": LOCK})


# --- what may go wrong ---------------------------------------------------------------------------


def test_many_items_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "PATIENCE", PATIENCE)
    start = time.monotonic()
    items = [(n,) for n in range(50_000)]
    assert "its `[50000]` cannot be pickled" in said(max, [*range(300_000), *items, LOCK][300_000:])
    assert "its `[300000].lock` cannot" in said(max, [*range(300_000), Solver(), *range(9)])
    assert time.monotonic() - start < PATIENCE


def test_the_search_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has found so far is told; it never goes on for the sake of more."""
    clock = itertools.count()
    monkeypatch.setattr(culprit, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    monkeypatch.setattr(culprit, "PATIENCE", 2)
    deep: Any = LOCK
    for _ in range(8):
        deep = [deep]
    assert f"its `[0][0]` cannot be pickled: {REASON}" in said(max, deep)


def test_very_deep_ones() -> None:
    deep: Any = LOCK
    for _ in range(100):
        deep = [deep]
    assert f"its `{16 * '[0]'}` cannot be pickled: {REASON}" in said(max, deep)
    for _ in range(100_000):
        deep = [deep]
    text = said(max, deep)
    assert "recursion" in text
    assert "its `" not in text


class Hostile:
    """Raises something else each time."""

    raised = 0

    def __init__(self, errors: list[BaseException]) -> None:
        self.errors = errors

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __reduce_ex__(self, protocol: object) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return iter, (itertools.count,), itertools.count(), itertools.count(), 3

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("after", range(1, 6))
def test_hostile_ones(kind: type[BaseException], after: int) -> None:
    """Whatever the search meets, what is told and raised stays what it was."""
    errors = [*[ValueError("first")] * after, *[kind("other")] * 20]
    text = said(max, [Hostile(errors)])
    assert re.fullmatch(
        r"argument 1 of simulate\(\), a list, cannot be serialized: (its .*: )?ValueError: first",
        text,
    )


def test_nothing_is_kept() -> None:
    """No garbage collection is needed to free what was looked at."""
    config = Config()
    known = weakref.ref(config.solver)
    gc.disable()
    try:
        assert "its `.solver.lock`" in said(max, config)
        del config
        assert known() is None
    finally:
        gc.enable()


class Endless:
    """Has no end of items, and one that cannot be pickled among the first."""

    def __reduce__(self) -> Any:
        return list, (), None, itertools.chain([1, LOCK], itertools.repeat(2))


def test_endless_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "_MOST", 1000)
    assert "its `[1]` cannot be pickled" in said(max, Endless())


# --- results, exceptions, initializers -----------------------------------------------------------


class Failed(Exception):
    def __init__(self, held: object) -> None:
        super().__init__("text")
        self.held = held


def give(failing: bool) -> Any:
    if failing:
        raise Failed([threading.Lock()])
    return {"solver": Solver()}


def test_results_and_exceptions(one: JobPool) -> None:
    with pytest.raises(SerializationError) as lost:
        one.submit(give, False).result(PATIENCE)
    assert str(lost.value) == (
        "the result of give(), a dict, cannot be serialized: its `['solver'].lock` cannot be "
        f"pickled: {REASON}"
    )
    job = one.submit(give, True)
    with pytest.raises(
        JobError, match=r"^the job raised Failed: text \(its `.held\[0\]` cannot be"
    ):
        job.result(PATIENCE)
    assert "(its `.held[0]` cannot be pickled)" in repr(job)
    with pytest.raises(SerializationError, match=r"its `\['solver'\].lock` cannot be pickled"):
        list(one.map(give, [False, False], chunksize=2))
    with pytest.raises(SerializationError, match=r"item 1 of map.*, a list, .*its `\[0\]` cannot"):
        list(one.map(repr, [[1], [LOCK]]))


def test_initializers() -> None:
    for initializer, initargs, why in (
        (print, (1, Config()), r"argument 2 of the initializer print\(\), a Config, .*: its `.sol"),
        (closure(), (), r"the initializer .*lambda>\(\), a function, .*closure variable `held`"),
    ):
        with (
            JobPool(1, initializer=initializer, initargs=initargs) as pool,
            pytest.raises(InitializerError, match=why),
        ):
            pool.submit(abs, 1).result(PATIENCE)


def test_nothing_is_looked_for_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "_Search", None)
    assert cloudpickle.loads(dump_call(max, ([1],), {}, "max")[0])[2] == ([1],)
