"""Keys of stored calls: canonical encodings, bound arguments, and a table of keys that last."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import functools
import gc
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import PATIENCE, ROOT, case
from hypothesis import given, settings
from hypothesis import strategies as st

from primitive_jobs import share
from primitive_jobs.store.canonical import encode, module_name
from primitive_jobs.store.keys import (
    Binding,
    call_of,
    from_arguments,
    from_key_value,
    key_of,
    seed_words,
    shown,
)

# --- a table of keys ------------------------------------------------------------------------------

# What is stored under these keys on one Python is looked for on another one, and by later versions
# of this library: they must not change.
SHAPES = """
import dataclasses
import datetime as dt
import enum
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from primitive_jobs import share

BERLIN = ZoneInfo("Europe/Berlin")


class Point(NamedTuple):
    x: int
    y: float


class Spin(NamedTuple):
    up: bool


@dataclasses.dataclass
class Config:
    T: float
    sizes: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    __slots__ = ("name",)
    name: str


class Phase(enum.Enum):
    SOLID = 1
    ALIAS = 1


class Order(enum.IntEnum):
    FIRST = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Mask(enum.IntFlag):
    A = 1
    B = 2
    C = 4
"""
TABLE = r"""
532667f105ce3f97ea83d7eea278832b None
a8ba49b8836c4b0ad404d13f55e11721 True
55168c0e137d6cf2d8c9b32ceb693420 False
b574a8357f970d025f4a4c14f61b0371 0
d6650e7cca6cc9e0f8fdebcabdc128fc 1
49f7f975a43d77fc7128e2968c2b052f -1
7d91f5a14afeda844cdbfb710808909a 255
9d440540b05720e349827505acd21e86 -(2**63)
df870e0c83e44665d824a35473836e28 10**5000
081ae8ec5c6eb5bc56d993a686ce2f9a 0.0
835a2c1312d071b08e4328564a087c0e -0.0
1d1ed0417914c889cea967e67fe6ff5a 1.0
65f13ccab6c763372678b1a4c25251de 0.1
5205ebafaf6ccbafd0ce77f7a7689a93 1e-320
ff100f69e4f1fe5fa6f6a54f6b1dc3aa 1e22
fea4434d0a3a6f569c4ee38feb6d6e28 float("inf")
37c82d3d7f09153a9b77b88dda5dc4e6 float("-nan")
19115a228dc2a303e307e64d6761d58b 1j
b2e4354913faf345e29b03923dda848c complex(float("nan"), -0.0)
6850beeac8a6c968c71db72269483316 ""
e38f2d831f0f6dca73fa63c7cf9d2fac "1"
826cd676f4228d9164dd7d6cc09bba42 "é\u0301"
c0639c6117b76694a8a9fc0585999bd0 "\udc80\n"
0dfd31325a520cdc472edbe7900dd42e "a" * 5000
01171491ecbdfcc647a4eb7aaac81172 b""
8e0c8427dd0e18f38efcf7982d494990 b"1"
c6d93f45291ea416482f4e9ed5704067 bytes(2000)
1fdabfccb43b7454bf96a72ff465f2bc ()
a996072f580c09c483b0c7d4bae85172 (1,)
5676ce5004a1f3d0621e61c7562db3a6 (1, (2.5, "x"))
2057351eb32a17e5c3d57a5f76064ef8 []
e2430eae9787cec1e416c8261445cbe9 [1]
2f3e8adb351e18f6a49e3069e708b4f2 [[], [[]]]
b6af2234980013a242abbc0079f0aa96 list(range(1000))
99a3694dfef9487afce8bf70012ba18a {}
9318b2230b4282572184545397478d32 {"T": 2.27, "L": 64}
9318b2230b4282572184545397478d32 {"L": 64, "T": 2.27}
fa906f5f6c6306eb1a9aff1975793918 {1: "a", None: [True], (1, 2): {}}
9bcbdcc4d7248e0a6e84b877889cf266 set()
19b12d27cf7f4f2d360e6a6cf58dbb22 {3, 1, 2}
0cf6710439a2a74672a85de7b675b363 {"b", "a", "cc", ""}
0c9ac9ce2c358e2a4f0bd554886ccb6c frozenset({(1, "a"), (2, "b")})
60fc0ea2423631ac8a2684a61701d455 range(10)
e597132143cc86d6301ac4cdba92cf48 range(0, -10, -3)
2523d88d009c32ff3ebf6b1e6ca3ba4a slice(1, None, 2)
2052234fc3b0f980d8bfcb2426348fb9 Point(1, 2.0)
860c0ff505e46bbb3e82eb799083ec46 Spin(up=True)
680207ace6297857353e1c3c90e7457d Config(2.27, sizes=[8, 16])
447eefe16cfe609014979325ccd2f09c Frozen("x")
dc907a89c8590ba67c950f8043fca731 Phase.SOLID
dc907a89c8590ba67c950f8043fca731 Phase.ALIAS
9c187dbde897b4754011076c2bae180c Order.FIRST
56091505c80435bafdc9b43df1741dd3 Access.READ | Access.WRITE
791b2fb812ecced7b95099ac8303e243 ~Mask.A
bbb41d84d0a18b069500c94d00b8473b Path("data") / "run 1"
5e52bb15fa8854b7c462b25b73aa0680 PurePosixPath("/")
cf3c6be1b84e47fbfc9fa0267f1f121a dt.date(2024, 2, 29)
0947b68d90a99f16dc71b18822ddd92c dt.datetime(2024, 2, 29, 12, 30, 15, 5)
6dbf65b1d936b5ea485b509532b8324a dt.datetime(2024, 10, 27, 2, tzinfo=BERLIN)
b7ee734663e867632e2dd6a280212f6e dt.datetime(2024, 10, 27, 2, fold=1, tzinfo=BERLIN)
9acabc3f1a637c79bed5fa8222905918 dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
ae1cbbab40cc19faf5c25bd01a31252c dt.time(12, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET"))
b33378306a0e8c01c631e7d57f5d6baa dt.timedelta(days=-1, microseconds=7)
f95464b3e3891805e7189493290abcad Decimal("-1.50")
2d8ecb447e3ecbcfd4b5ac78656ad749 Decimal("NaN")
5fcf437adc85b0c2531a3a872e3b0487 Fraction(6, -4)
202dd166de9b14c9abca3092e38dbfb9 UUID(int=2**100 + 1)
65f13ccab6c763372678b1a4c25251de np.float64(0.1)
d6650e7cca6cc9e0f8fdebcabdc128fc np.int64(1)
a8ba49b8836c4b0ad404d13f55e11721 np.bool_(True)
19115a228dc2a303e307e64d6761d58b np.complex128(1j)
e38f2d831f0f6dca73fa63c7cf9d2fac np.str_("1")
efd31cc5ce525019aae27c5318f23ed9 np.float32(0.1)
3f6692b02fcb95c2169f9d67d063e695 np.uint8(1)
beb72f38e61b42870417adbf2416ff99 np.datetime64("2024-02-29", "D")
ef5a38ddfc1a8ec477e497334ad300b6 np.dtype("f8")
3687b699dd9a75208b8f8f79c8c49b67 np.dtype([("a", "i1"), ("b", ">f8", (2,))], align=True)
983a0ae7ec2266109c4e910c057fb8b0 np.array(1.0)
df31172b25e09ea7221923fc04c3f1d8 np.array([1, 2, 3])
1a774af02e480581a042894278de13e6 np.arange(6.0).reshape(2, 3)
1a774af02e480581a042894278de13e6 np.asfortranarray(np.arange(6.0).reshape(2, 3))
5986077b4218bdfa07e81f9fc3875090 np.arange(12.0)[::2].reshape(2, 3)
1a774af02e480581a042894278de13e6 np.arange(6, dtype=">f8").reshape(2, 3)
e58311f646cd056b1528ab19cd9ca9ea np.arange(6.0, dtype="f4").reshape(2, 3)
5adc29344727de398f435babcdc0501e np.zeros((0, 3))
e454da428751d622ad4a7c960f03f061 np.array(["a", "bc"])
3b1044060f5c3f53a1d97baa4b09937e np.array(["2024-02-29", "NaT"], "M8[ns]")
52b9e1d20920398666b1ac674c8f2f2d np.array([True, False])
f996ef70da0a90e446220067fffe4cbc np.zeros(2, [("a", "i1"), ("b", "f8")])
f996ef70da0a90e446220067fffe4cbc np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True))
f1bc95858ec197e573d401b2f4a69eb2 np.ones((300, 300))[10:200, ::3]
1a774af02e480581a042894278de13e6 share(np.arange(6.0).reshape(2, 3))
e16b006ffb33676862ab5102e56574a0 share({"table": share([1, 2]), "T": 2.27})
"""
LOOK_UP = """
import sys
import shapes
from primitive_jobs.store.keys import from_arguments, key_of

for line in sys.stdin:
    print(key_of("f", from_arguments({"x": eval(line, vars(shapes))})))
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_the_keys_of_the_table_in_a_fresh_interpreter(tmp_path: Path, hash_seed: str) -> None:
    (tmp_path / "shapes.py").write_text(SHAPES)
    lines = [line.partition(" ") for line in TABLE.strip().splitlines()]
    assert len(lines) >= 80
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP],
        input="\n".join(expression for _, _, expression in lines),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=env,
        check=False,
    )
    assert not done.stderr
    made = done.stdout.split()
    wrong = [line for line, key in zip(lines, made, strict=True) if line[0] != key]
    assert not wrong


# --- pairs ----------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: float
    y: float


class Place(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass
class Config:
    T: Any
    L: int = 64

    @functools.cached_property
    def table(self) -> list[int]:
        return [self.L]


@dataclasses.dataclass
class Other:
    T: Any
    L: int = 64


class Phase(enum.Enum):
    SOLID = 1
    LIQUID = 2


class Order(enum.IntEnum):
    FIRST = 1


def with_attribute(config: Config, **more: object) -> Config:
    vars(config).update(more)
    return config


SIX = np.arange(6.0)
PADDED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
BERLIN = dt.timezone(dt.timedelta(hours=1), "CET")
NOON = dt.datetime(2024, 1, 1, 12)  # noqa: DTZ001

DIFFERENT: list[tuple[object, object]] = [
    (1, 1.0),
    (1, True),
    (1.0, True),
    (0, False),
    (0, None),
    (0.0, -0.0),
    (0j, complex(0, -0.0)),
    (1, 1 + 0j),
    ("1", 1),
    ("1", b"1"),
    ("", None),
    ([1], (1,)),
    ([1, 2], [2, 1]),
    ([[1], 2], [1, [2]]),
    ([1, [2, 3]], [1, 2, 3]),
    (["ab", "c"], ["a", "bc"]),
    ({1}, frozenset({1})),
    ({1: 2}, [(1, 2)]),
    ({1: 2, 3: 4}, {1: 4, 3: 2}),
    (range(3), [0, 1, 2]),
    ((1.0, 2.0), Point(1.0, 2.0)),
    (Point(1, 2), Place(1, 2)),
    (Config(1), Other(1)),
    (Config(1), Config(2)),
    (Config(1), with_attribute(Config(1), seed=3)),
    (Phase.SOLID, Phase.LIQUID),
    (Phase.SOLID, 1),
    (Order.FIRST, 1),
    (Path("a"), "a"),
    (NOON, NOON.replace(tzinfo=dt.timezone.utc)),
    (NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=dt.timezone.utc)),
    (NOON, NOON.replace(fold=1)),
    (np.float32(1), 1.0),
    (np.float32(1), np.float16(1)),
    (np.int32(1), 1),
    (np.array(1.0), 1.0),
    (SIX, list(SIX)),
    (SIX, SIX.astype("f4")),
    (SIX, SIX.astype(int)),
    (SIX, SIX.reshape(2, 3)),
    (SIX.reshape(3, 2), SIX.reshape(2, 3)),
    (SIX.reshape(2, 3), SIX.reshape(2, 3, order="F")),
    (np.zeros((0, 3)), np.zeros((3, 0))),
    (np.zeros(0), np.zeros(0, "f4")),
    (np.zeros(1000), np.zeros(1001)),
    (np.zeros(2, PADDED), np.zeros(2, [("a", "i1"), ("c", "f8")])),
    (np.array(["2024"], "M8[D]"), np.array(["2024"], "M8[D]").astype("M8[s]")),
    (np.dtype("<f8"), np.dtype(">f8")),
    ("a" * 5000, "a" * 5001),
    (bytes(5000), "\0" * 5000),
    (["a" * 5000], ("a" * 5000,)),
]
EQUAL: list[tuple[object, object]] = [
    (float("nan"), float("-nan")),
    ([math.nan], [np.float64("nan")]),
    ({"T": 1, "L": 2}, {"L": 2, "T": 1}),
    ({1, 2, 3}, {3, 2, 1}),
    (1, np.int64(1)),
    (1.5, np.float64(1.5)),
    (True, np.bool_(True)),
    ("a", np.str_("a")),
    (np.float32("nan"), -np.float32("nan")),
    (SIX.reshape(2, 3), np.asfortranarray(SIX.reshape(2, 3))),
    (SIX[::2], SIX[::2].copy()),
    (SIX, SIX.astype(">f8")),
    (np.array(["a"]), np.array(["a"]).astype(">U1")),
    (np.ones(2, PADDED), np.ones(2, [("a", "i1"), ("b", "f8")])),
    (10**5000, 10**5000),
]


@pytest.mark.parametrize("pair", DIFFERENT)
def test_what_differs_has_another_encoding(pair: tuple[object, object]) -> None:
    one, other = pair
    assert encode(one) != encode(other)
    assert encode({"x": [one]}) != encode({"x": [other]})


def test_what_is_equal_has_one_encoding() -> None:
    for one, other in EQUAL:
        with case((one, other)):
            assert encode(one) == encode(other)
    used = Config(1)
    assert used.table
    assert encode(used) == encode(Config(1)), "what is cached follows from the rest"


def test_shared_data_is_what_it_stands_for() -> None:
    # Made here: as long as they live they hold descriptors.
    for one, other in (
        (SIX, share(SIX)),
        ({"T": SIX}, share({"T": share(SIX)})),
        (np.ones((200, 200)), share(np.ones((200, 200)))),
        (Config([1]), Config(share([1]))),
    ):
        with case((one, other)):
            assert encode(one) == encode(other)
    with pytest.raises(TypeError, match=r"in what is shared at \[0\], objects of type Mine"):
        from_arguments({"first": 1, "x": share([Mine()])})
    gc.collect()  # that error's frames hold it


def test_an_encoding_is_short_whatever_it_is_of() -> None:
    for value in (b"a" * 10**6, np.zeros(10**6), [*range(10**4)], {n: "x" * n for n in range(500)}):
        assert len(encode(value)) < 100


def test_shared_data_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handle: Any = share([1, 2, 3])
    first = encode(handle)
    monkeypatch.setattr("primitive_jobs.store.canonical._read", None)
    assert encode(handle) == first


# --- properties -----------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.integers(),
    st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf]),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types throughout: what a key must tell."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one != one and other != other) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same_in_any_order([*one.items()], [*other.items()])
    if isinstance(one, (set, frozenset)):
        return same_in_any_order([*one], [*other])
    return bool(one == other)


def same_in_any_order(some: list[Any], others: list[Any]) -> bool:
    rest = [*others]
    for one in some:
        found = next((n for n, other in enumerate(rest) if same(one, other)), None)
        if found is None:
            return False
        del rest[found]
    return not rest


@settings(deadline=None)
@given(values, values)
def test_encodings_are_equal_where_values_are(one: object, other: object) -> None:
    assert (encode(one) == encode(other)) == same(one, other)


@settings(deadline=None)
@given(st.lists(scalars, max_size=3), st.lists(scalars, max_size=3))
def test_they_are_in_lists_of_few(one: list[object], other: list[object]) -> None:
    assert (encode(one) == encode(other)) == same(one, other)


def in_another_order(value: Any, order: random.Random) -> Any:
    """The same value with the items of its dicts and sets put in anew."""
    if isinstance(value, dict):
        items = [(key, in_another_order(part, order)) for key, part in value.items()]
        order.shuffle(items)
        return dict(items)
    if isinstance(value, (list, tuple)):
        return type(value)(in_another_order(part, order) for part in value)
    if isinstance(value, (set, frozenset)):
        parts = [*value]
        order.shuffle(parts)
        return type(value)(parts)
    return value


@settings(deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_the_order_of_dicts_and_sets_does_not_matter(value: object, order: random.Random) -> None:
    assert encode(value) == encode(in_another_order(value, order))


# --- what is refused ------------------------------------------------------------------------------


class Mine:
    pass


class Text(str):
    __slots__ = ()


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def circle() -> list[object]:
    value: list[object] = []
    value.append({"again": value})
    return value


REFUSED: list[tuple[object, str]] = [
    (Mine(), "objects of type Mine"),
    ({"T": [1, Config(Mine())]}, r"at \['T'\]\[1\]\.T cannot"),
    ((1, {Mine(): 2}), r"at \[1\] \(a key of type Mine\)"),
    (Text("a"), "Text"),
    (collections.Counter("a"), "Counter"),
    (collections.OrderedDict(), "OrderedDict"),
    (bytearray(), "bytearray"),
    (lambda: 1, "function"),
    (math.sin, "builtin_function_or_method"),
    (int, "objects of type type"),
    (np.array([None]), "dtype object"),
    (np.longdouble(1), "dtype"),
    (np.zeros(2, [("a", "O")]), "dtype object"),
    (np.ma.array([1]), "MaskedArray"),
    (nested(10_000), "nested more than"),
    (circle(), "contains itself"),
    (dataclasses.make_dataclass("Lines", ["x"], bases=(list,))(1), "Lines"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_has_no_encoding_is_refused_by_its_place(value: object, words: str) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        from_arguments({"first": 1, "x": value})
    text = str(caught.value)
    assert text.startswith("the argument 'x'")
    assert "give key=" in text
    assert len(text) < 400
    assert caught.value.__cause__ is None


def test_a_stack_that_is_nearly_full_is_no_recursion_error() -> None:
    def deeper() -> None:
        try:
            deeper()
        except RecursionError:
            encode(nested(90))

    with pytest.raises(TypeError, match="nested too deep"):
        deeper()


# --- scripts --------------------------------------------------------------------------------------

SCRIPT = """
import dataclasses
from primitive_jobs.store.canonical import encode

@dataclasses.dataclass
class Config:
    T: float

def main():
    print(encode(Config(1.5)))

if __name__ == "__main__":
    main()
"""


def test_classes_of_a_script_go_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SCRIPT)
    ways = ["model.py"], ["-m", "model"], ["-c", "import model; model.main()"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    said = {
        subprocess.run(
            [sys.executable, *way],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        ).stdout
        for way in ways
    }
    assert len(said) == 1
    assert b"model" in said.pop()
    assert module_name("a.b") == "a.b"


# --- arguments ------------------------------------------------------------------------------------


def simulate(t: float, size: int = 64, *rest: int, verbose: bool = False, **more: Any) -> None: ...


def by_position(t: float, /, size: int = 64) -> None: ...


class Model:
    def __init__(self, k: int = 1) -> None:
        self.k = k

    def run(self, t: float) -> None: ...

    def __call__(self, t: float) -> None: ...

    @classmethod
    def make(cls, t: float) -> None: ...

    @staticmethod
    def plain(t: float) -> None: ...


class Derived(Model):
    pass


MODEL = Model()
ALL = {"t": 1, "size": 64, "rest": (), "more": {}}


def test_points() -> None:
    assert call_of({"t": 1}) == ((), {"t": 1})
    assert call_of((1, 2)) == ((1, 2), {})
    assert call_of(1) == ((1,), {})
    assert call_of([1, 2]) == (([1, 2],), {})
    assert call_of(Point(1, 2)) == ((Point(1, 2),), {})
    with pytest.raises(TypeError, match="type int"):
        call_of({1: 2})


def test_arguments_are_bound_with_their_defaults() -> None:
    binding = Binding(simulate, ("verbose", "debug"))
    for point in (1, (1,), {"t": 1}, (1, 64), {"size": 64, "t": 1}, {"t": 1, "verbose": True}):
        assert binding.bind(point) == ALL
    assert binding.bind({"t": 1, "debug": 1, "h": 2}) == ALL | {"more": {"h": 2}}
    assert Binding(simulate).bind(1) == ALL | {"verbose": False}
    assert Binding(by_position).bind(1) == {"t": 1, "size": 64}
    with pytest.raises(TypeError, match=r"simulate\(\) does not take this point: missing"):
        binding.bind(())
    with pytest.raises(ValueError, match=r"'verbos'.*by_position"):
        Binding(by_position, "verbos")


@pytest.mark.parametrize(
    ("function", "point", "arguments"),
    [
        (MODEL.run, 1, {"self": MODEL, "t": 1}),
        (MODEL, 1, {"self": MODEL, "t": 1}),
        (Model.run, (MODEL, 1), {"self": MODEL, "t": 1}),
        (Model.plain, 1, {"t": 1}),
        (Derived.make, 1, {"cls": "test_store_keys.Derived", "t": 1}),
        (Model, 2, {"k": 2}),
        (functools.partial(simulate, verbose=True), 1, ALL | {"verbose": True}),
        (functools.partial(functools.partial(by_position, 2), size=3), (), {"t": 2, "size": 3}),
        (functools.partial(MODEL.run, 1), {}, {"self": MODEL, "t": 1}),
        (functools.lru_cache(by_position), 1, {"t": 1, "size": 64}),
        (math.hypot, (3, 4), {"0": 3, "1": 4}),
        (functools.partial(math.hypot, 3), 4, {"0": 3, "1": 4}),
        ([1, 2].count, 1, {"0": [1, 2], "1": 1}),
        (int, {"base": 2}, {"base": 2}),
        (np.sin, 1, {"0": 1}),
    ],
)
def test_what_comes_along_with_a_callable_is_an_argument(
    function: Callable[..., Any], point: object, arguments: dict[str, object]
) -> None:
    assert Binding(function).bind(point) == arguments


# --- keys -----------------------------------------------------------------------------------------


def test_each_part_of_a_key_counts() -> None:
    content = from_arguments({"x": 1})
    made = [
        key_of("f", content),
        key_of("g", content),
        key_of("f", content, version=1),
        key_of("f", content, version="1"),
        key_of("f", content, entropy=1),
        key_of("f", content, entropy=(1, 2)),
        key_of("f", from_arguments({"y": 1})),
        key_of("f", from_key_value({"x": 1})),
        key_of("f", from_key_value(1)),
    ]
    assert len({*made}) == len(made)
    assert key_of("f", from_arguments({"x": 1, "y": 2})) == key_of(
        "f", from_arguments({"y": 2, "x": 1})
    )
    with pytest.raises(TypeError, match="what key= has made of the point cannot"):
        from_key_value(Mine())
    with pytest.raises(TypeError, match="version= cannot"):
        key_of("f", content, version=Mine())


def test_the_words_of_a_key() -> None:
    assert seed_words("0000000100000002ffffffff0000000a") == (1, 2, 2**32 - 1, 10)
    key = key_of("f", b"")
    assert "".join(f"{word:08x}" for word in seed_words(key)) == key


# --- to look at -----------------------------------------------------------------------------------


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_arguments_to_look_at() -> None:
    arguments = {
        "T": 2.27,
        "L": np.int64(64),
        "nan": math.nan,
        "flags": (True, None, {"a": [np.float32(0.5)]}),
        "table": np.zeros((3, 4)),
        "bad": Unspeakable(),
        "worse": [Unspeakable()],
        "surrogate": "\udc80",
        "point": Point(1, 2),
    }
    said = json.loads(shown(arguments))
    assert said == said | {
        "T": 2.27,
        "L": 64,
        "nan": "nan",
        "flags": [True, None, {"a": [0.5]}],
        "table": "array of float64, shape (3, 4)",
        "surrogate": "\udc80",
        "point": "Point(x=1, y=2)",
    }
    assert "Unspeakable" in said["bad"]
    assert "Unspeakable" in said["worse"]
    for long in ("x" * 10**6, [*range(10**5)], 10**5000, circle(), {"a": "b" * 500}, nested(5000)):
        assert len(shown({"x": long})) < 300
