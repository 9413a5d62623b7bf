"""What a script may define and send to jobs, as it could from an importable module.

Each is a check that runs in a job, and an object that travels there and back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import expect

HEAD = """
import contextlib, dataclasses, functools, sys, typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Callable, Generic, NamedTuple, NewType, Optional, ParamSpec
from typing import Protocol, TypedDict, TypeVar, get_type_hints, runtime_checkable
from primitive_jobs import JobPool
"""
DEFINITIONS = '''
@functools.lru_cache(maxsize=3)
def cached(x):
    """Add."""
    return x + 1

@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@functools.singledispatch
def kind(x):
    """Tell."""
    return "object"

@kind.register(int)
def _of_int(x):
    return "int"

@kind.register(list)
def _of_list(x):
    return [kind(item) for item in x]

kind.mine = 7

class Methods:
    @functools.singledispatchmethod
    def kind(self, x):
        return "object"

    @kind.register(int)
    def _(self, x):
        return "int"

    @functools.lru_cache
    def cached(self, x):
        return x + 1

    @classmethod
    @functools.cache
    def of_class(cls, x):
        return x + 2

    @staticmethod
    @functools.cache
    def static(x):
        return x + 3

    @functools.cached_property
    def slow(self):
        """Take long."""
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls

    def add(self, x, y):
        return x + y

    add_one = functools.partialmethod(add, 1)

UserId = NewType("UserId", int)
P = ParamSpec("P")
T = TypeVar("T", bound="Config")

def uses(x: UserId, call: Optional[Callable[P, T]] = None) -> "list[UserId]":
    return [UserId(x)]

@dataclass(slots=True)
class Slotted:
    x: int
    ys: list = field(default_factory=list)

class Bare:
    __slots__ = ("x", "__hidden")

    def __init__(self, x):
        self.x = self.__hidden = x

    def hidden(self):
        return self.__hidden

class Below(Bare):
    __slots__ = ()

@dataclass
class Config:
    inner: "Config | None" = None
    rate: "Rate" = 1.0

    class Inner:
        pass

Rate = NewType("Rate", float)

class Pair(NamedTuple):
    x: int
    other: "Pair | None" = None

class Settings(TypedDict, total=False):
    rate: "Rate"

@runtime_checkable
class Runs(Protocol):
    def run(self) -> int: ...

class Runner(Generic[T]):
    def run(self):
        return 1

class OfCalls(Generic[P]):
    pass

def annotated(config: Config, pairs: "dict[str, Pair]", *, last: Annotated[Rate, 1] = 1) -> Any:
    return None

@contextlib.contextmanager
def context(x):
    yield x

def wrapping(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

@wrapping
def wrapped(config: "Config") -> "Rate":
    return 1
'''
CHECKS = """
def check_lru_cache():
    assert cached(1) == cached(1) == 2 and cached.cache_info()[:3] == (1, 1, 3)
    assert cached.__wrapped__(1) == 2 and cached.cache_parameters()["maxsize"] == 3
    assert (cached.__name__, cached.__doc__, cached.__module__) == ("cached", "Add.", "__main__")
    assert fib(90) == 2880067194370816120

def check_methods():
    methods = Methods()
    assert (methods.cached(1), methods.of_class(1), Methods.static(1)) == (2, 3, 4)
    assert (methods.kind(1), methods.kind("")) == ("int", "object")
    assert (methods.slow, methods.slow, methods.calls) == (1, 1, 1)
    assert Methods.slow.__doc__ == "Take long." and methods.add_one(2) == 3

def check_singledispatch():
    assert kind([1, "", [1]]) == ["int", "object", ["int"]] and kind.mine == 7
    assert (kind.__name__, kind.__doc__, kind.__module__) == ("kind", "Tell.", "__main__")
    kind.register(str, lambda x: "str")
    assert kind("") == "str" and set(kind.registry) == {object, int, list, str}

def check_typing():
    assert uses(3) == [3] and UserId.__name__ == "UserId" and UserId.__supertype__ is int
    hints = get_type_hints(uses)
    assert hints["x"] is UserId and hints["return"].__args__[0] is UserId
    assert OfCalls.__parameters__[0] is P and OfCalls[[int]] and Runner.__parameters__[0] is T
    assert isinstance(Runner(), Runs) and not isinstance(3, Runs)

def check_type_hints():
    assert get_type_hints(annotated)["config"] is Config
    assert get_type_hints(annotated)["pairs"] == dict[str, Pair]
    assert get_type_hints(annotated)["last"] is Rate
    assert get_type_hints(wrapped) == {"config": Config, "return": Rate}
    assert get_type_hints(Config) == {"inner": Optional[Config], "rate": Rate}
    assert get_type_hints(Pair) == {"x": int, "other": Optional[Pair]}
    assert get_type_hints(Settings) == {"rate": Rate}
    assert get_type_hints(Slotted) == {"x": int, "ys": list}

def check_classes():
    assert Config.Inner.__qualname__ == "Config.Inner"
    assert not hasattr(Slotted(1), "__dict__") and dataclasses.replace(Slotted(1), x=2).x == 2
    assert Below(3).hidden() == 3 and not hasattr(Below(3), "__dict__")
    assert Pair(1)._replace(x=2) == Pair(2, None) and Settings(rate=1) == {"rate": 1}
    with context(3) as x:
        assert x == 3

def same(value):
    return value

if __name__ == "__main__":
    cached(1), Methods().slow
    with JobPool(1) as pool:
        for name, check in [*globals().items()]:
            if name.startswith("check_"):
                try:
                    pool.submit(check).result()
                except Exception as error:
                    print(name, repr(error))
        for value in UserId, Rate, P, T, Config, Pair, Slotted, Settings, Runs, Methods:
            if pool.submit(same, value).result() is not value:
                print("another", value)
        assert not hasattr(pool.submit(same, Slotted(1)).result(), "__dict__")
        for value in Slotted(1, [2]), Pair(1), Config(Config(), 2.0):
            there = pool.submit(same, [value, value]).result()
            if there != [value, value] or type(there[0]) is not type(value):
                print("other", value)
        assert pool.submit(same, Below(3)).result().hidden() == 3
        assert pool.submit(functools.partial(cached, 1)).result() == 2
        assert list(pool.map(cached, range(3))) == [1, 2, 3]
        assert list(pool.map(kind, [1, "", [2]])) == ["int", "object", ["int"]]
        assert kind("") == "object" and get_type_hints(Config)["rate"] is Rate
    print("well")
"""
POSTPONED = "from __future__ import annotations\n"


@pytest.mark.parametrize(
    ("head", "how"),
    [("", "file"), (POSTPONED, "file"), ("", "-c"), (POSTPONED, "stdin")],
    ids=["file", "postponed", "-c", "postponed stdin"],
)
def test_what_a_script_may_define(tmp_path: Path, head: str, how: str) -> None:
    expect(tmp_path, head + HEAD + DEFINITIONS + CHECKS, "well\n", how=how)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="newer syntax")
def test_type_parameters_and_aliases(tmp_path: Path) -> None:
    source = """
        from primitive_jobs import JobPool

        type Whole = int
        type Tree = int | list[Tree]
        type Of[K] = dict[K, Tree]

        def first[K](x: K, tree: Tree, of: Of[K]) -> Whole:
            return Tree.__value__.__args__[1].__args__[0] is Tree and first.__type_params__

        class Both[K, *Ts, **P]:
            def take[V](self, x: V) -> K:
                return [K.__name__ for K in Both.__type_params__], Both[int, str, [int]]

        def same(x):
            return x

        if __name__ == "__main__":
            with JobPool(1) as pool:
                print(pool.submit(first, 1, 2, {}).result(), pool.submit(Both().take, 1).result())
                both = Both, *Both.__type_params__
                print(all(pool.submit(same, x).result() is x for x in both))
                print(pool.submit(lambda: (Of[int].__args__, Whole.__value__)).result())
                print({pool.submit(same, x).result().__module__ for x in (Of, Tree, Whole)})
    """
    expected = "(K,) (['K', 'Ts', 'P'], __main__.Both[int, str, [int]])\nTrue\n"
    expect(tmp_path, source, expected + "((<class 'int'>,), <class 'int'>)\n{'__main__'}\n")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are never looked at before")
def test_annotations_that_only_type_checkers_know(tmp_path: Path) -> None:
    source = """
        import annotationlib, dataclasses, typing
        from primitive_jobs import JobPool

        if typing.TYPE_CHECKING:
            from nowhere import Missing

        def function(x: Missing, y: Known, z: int = 3) -> int:
            return z

        @dataclasses.dataclass
        class Data:
            x: int
            missing: Missing | None = None

        class Pair(typing.NamedTuple):
            missing: Missing

        class Table(typing.TypedDict):
            missing: Missing

        class Known:
            # nobody has asked for its annotations yet
            x: int
            y: "Known"

        def text(of):
            return annotationlib.get_annotations(of, format=annotationlib.Format.STRING)

        def check():
            assert function(1, 2) == 3
            assert text(function) == {"x": "Missing", "y": "Known", "z": "int", "return": "int"}
            assert text(Data) == {"x": "int", "missing": "Missing | None"}
            assert text(Pair) == text(Table) == {"missing": "Missing"}
            assert Pair(1).missing == Table(missing=1)["missing"] == 1
            assert dataclasses.replace(Data(1), x=2) == Data(2)
            assert typing.get_type_hints(Known) == {"x": int, "y": Known}
            assert Known.__annotations__["x"] is int
            return Data(1), Pair(2), dataclasses.fields(Data)[1].type

        if __name__ == "__main__":
            with JobPool(1) as pool:
                data, pair, kind = pool.submit(check).result()
                print(type(data) is Data, type(pair) is Pair, kind.__forward_arg__)
            try:
                function.__annotations__
            except NameError as error:
                print(error)
    """
    expected = "True True Missing | None\nname 'Missing' is not defined\n"
    expect(tmp_path, source, expected)


@pytest.mark.skipif(sys.version_info < (3, 15), reason="newer syntax")
def test_lazy_imports(tmp_path: Path) -> None:
    source = """
        lazy import json
        lazy from collections import OrderedDict
        lazy import xml.dom.minidom
        lazy import nowhere
        from primitive_jobs import JobPool

        def function(x):
            return json.dumps(x), OrderedDict(a=x), xml.dom.minidom.Node.ELEMENT_NODE

        def missing():
            return nowhere

        if __name__ == "__main__":
            with JobPool(1) as pool:
                print(pool.submit(function, 3).result())
                print(pool.submit(missing).exception())
    """
    expected = (
        "('3', OrderedDict({'a': 3}), 1)\n"
        "the function missing(), a function, cannot be serialized: it uses the global `nowhere` "
        "(lazy_import), which cannot be pickled: ModuleNotFoundError: No module named 'nowhere'\n"
    )
    expect(tmp_path, source, expected)


def test_an_annotation_costs_no_job(tmp_path: Path) -> None:
    """What is named by the text of an annotation alone need not be picklable, or anything."""
    source = """
        from __future__ import annotations
        import threading
        from primitive_jobs import JobPool

        class Locked:
            lock = threading.Lock()
            def other(self, x: Bad) -> Locked: ...

        class Bad:
            lock = threading.Lock()
            x: Locked

        meters = open("/dev/null")

        def function(x: Locked, y: Bad, z: meters, w: "in (m", v: meters.x = 3) -> v:
            return v

        class Data:
            x: Locked = None
            y: int = 1

        def check():
            import typing
            try:
                typing.get_type_hints(Data)
            except NameError as error:
                return Data.y, str(error)

        if __name__ == "__main__":
            with JobPool(1) as pool:
                print(pool.submit(function, 1, 2, 3, 4).result(), pool.submit(check).result())
    """
    expect(tmp_path, source, "3 (1, \"name 'Locked' is not defined\")\n")
