"""The hash of a function's code: what it notices, what it does not, and what it refuses."""

from __future__ import annotations

import ast
import functools
import importlib
import linecache
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import PATIENCE, ROOT

from primitive_jobs.store import syntax
from primitive_jobs.store.code import CodeHash, changes, code_of

Load = Callable[..., ModuleType]

HELPERS = '''
"""Helpers."""
import math

SCALE = 3.0
UNUSED = 1

def energy(x):
    return SCALE * math.sin(x) + even(x)

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

class Lattice:
    """A lattice."""
    sites = 64

    def __init__(self, size):
        self.size = size

    def bonds(self):
        return 2 * self.size

    @property
    def area(self):
        return area(self)

    @staticmethod
    def name():
        return "square"

def area(lattice):
    return lattice.size ** 2
'''
SIMULATION = '''
import dataclasses
import functools
import re
from math import sqrt
from typing import NamedTuple

import helpers
from helpers import Lattice as Grid

TC = 2.269
SIZES = [8, 16]
PATTERN = "a+"
WORDS = re.compile(PATTERN)

def other(x):
    return x

def another(x):
    return -x

METHODS = {"one": other, "two": [another]}

def logged(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner

class Point(NamedTuple):
    x: int = 3

    def norm(self):
        return self.x

@dataclasses.dataclass
class Torus(Grid):
    twist: float = 0.5
    marks: list = dataclasses.field(default_factory=list)

    def bonds(self):
        return super().bonds() + self.twist

@functools.lru_cache(maxsize=None)
def cached(x):
    return x + 1

def scaled(factor):
    def scale(x):
        return factor * x
    return scale

double = scaled(2)

@logged
def simulate(T, L=64, *, words=WORDS, start=other, verbose=False):
    """Simulate."""
    # a comment
    match L:
        case {"a": 1, **rest}:
            pass
        case [1, *others]:
            pass
    text = f"{T!r:>{L}} {{}} " "more" f"{T=}{L:}"
    local = [cached(i) for i in range(L) if (last := i)]
    return helpers.energy(TC) + sqrt(T) + Torus(L).bonds() + METHODS["one"](Point()) + double(T)

class Model(Grid):
    rate = 0.1

    def run(self, T):
        return self.rate * T

    def __call__(self, T):
        return simulate(T)
'''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write modules, and import them anew, the first one last."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # as new as what it is of

    def load(simulation: str, helpers: str = HELPERS) -> ModuleType:
        for name, source in (("helpers", helpers), ("simulation", simulation)):
            path = tmp_path / f"{name}.py"
            path.write_text(textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        # The tests' own module of that name must not be what is found.
        monkeypatch.delitem(sys.modules, "helpers", raising=False)
        return importlib.import_module("simulation")

    return load


# --- what counts ----------------------------------------------------------------------------------

NO_CHANGE = [
    ("# a comment", "# another one"),
    ("    # a comment\n", ""),
    ('"""Simulate."""', '"""Simulate\n\n    more than before.\n    """'),
    ('    """Simulate."""\n', ""),
    ("TC = 2.269", "\n\nTC = 2.2690  # critical"),
    ("sqrt(T) + Torus", "(sqrt(T)) + Torus"),
    ('"more" f"{T=}{L:}"', 'f"more" f"{T=}" "" f"{L}"'),
    ("def run(self, T):", "def run(self, T):  # it"),
    ("def scaled(factor):", "def unused():\n    pass\n\ndef scaled(factor):"),
    ("SIZES = [8, 16]", "SIZES = [8, 32]"),
    ("class Model(Grid):\n    rate = 0.1", "class Model(Grid):\n    rate = 0.2"),
]


@pytest.mark.parametrize(("old", "new"), NO_CHANGE, ids=[old for old, _ in NO_CHANGE])
def test_what_makes_no_difference(load: Load, old: str, new: str) -> None:
    before = code_of(load(SIMULATION).simulate)
    assert old in SIMULATION
    after = code_of(load(SIMULATION.replace(old, new)).simulate)
    assert changes(before.parts, after.parts) == []
    assert before == after


CHANGE = [
    ("sqrt(T) + Torus", "sqrt(T) - Torus", ["simulate"]),
    ("(last := i)", "(last := T)", ["simulate"]),
    ("{T!r:>{L}}", "{T!s:>{L}}", ["simulate"]),
    ("{{}}", "{{ }}", ["simulate"]),
    ("case [1, *others]", "case [2, *others]", ["simulate"]),
    ("L=64", "L=65", ["default of L"]),
    ("verbose=False", "verbose=0", ["default of verbose"]),
    ("start=other", "start=another", ["simulate"]),
    ("def simulate(T, L=64,", "def simulate(T, L,", ["simulate", "default of L (gone)"]),
    ("TC = 2.269", "TC = 2.27", ["TC"]),
    ("re.compile(PATTERN)", "re.compile(PATTERN, re.I)", ["WORDS"]),
    ('PATTERN = "a+"', 'PATTERN = "b+"', ["PATTERN"]),
    ("from math import sqrt", "from numpy import sqrt", ["sqrt"]),
    ("return -x", "return +x", ["another"]),
    ('"two": [another]', '"two": []', ["METHODS['two'] (new)", "another (gone)", "simulate"]),
    ("return function(*args, **kwargs)", "function()", ["simulate (wrapper)", "logged"]),
    ("return self.x", "return 2", ["Point.norm"]),
    ("x: int = 3", "x: int = 4", ["Point"]),
    ("twist: float = 0.5", "twist: float = 0.6", ["Torus"]),
    ("+ self.twist", "- self.twist", ["Torus.bonds"]),
    ("return x + 1", "return x + 2", ["cached"]),
    ("scaled(2)", "scaled(3)", ["factor of scaled.<locals>.scale"]),
    ("return factor * x", "return factor + x", ["scaled.<locals>.scale"]),
]


@pytest.mark.parametrize(("old", "new", "parts"), CHANGE, ids=[old for old, _, _ in CHANGE])
def test_what_does(load: Load, old: str, new: str, parts: list[str]) -> None:
    before = code_of(load(SIMULATION).simulate)
    assert old in SIMULATION
    after = code_of(load(SIMULATION.replace(old, new)).simulate)
    assert before.digest != after.digest
    assert sorted(changes(before.parts, after.parts)) == sorted(parts)


CHANGE_OF_HELPERS = [
    ("SCALE = 3.0", "SCALE = 3", ["helpers.SCALE"]),
    ("math.sin(x)", "math.cos(x)", ["helpers.energy"]),
    ("even(n - 1)", "even(n - 3)", ["helpers.odd"]),
    ("sites = 64", "sites = 65", ["helpers.Lattice"]),
    ("return 2 * self.size", "return self.size", ["helpers.Lattice.bonds"]),
    ("return area(self)", "return 1", ["helpers.Lattice.area", "helpers.area (gone)"]),
    ('return "square"', 'return "cubic"', ["helpers.Lattice.name"]),
    ("lattice.size ** 2", "lattice.size ** 3", ["helpers.area"]),
    ("UNUSED = 1", "UNUSED = 2", []),
    ('"""A lattice."""', '"""A grid."""', []),
]


@pytest.mark.parametrize(
    ("old", "new", "parts"), CHANGE_OF_HELPERS, ids=[old for old, _, _ in CHANGE_OF_HELPERS]
)
def test_helpers_in_another_module_count(load: Load, old: str, new: str, parts: list[str]) -> None:
    before = code_of(load(SIMULATION).simulate)
    assert old in HELPERS
    after = code_of(load(SIMULATION, HELPERS.replace(old, new)).simulate)
    assert changes(before.parts, after.parts) == parts
    assert (before.digest == after.digest) is (not parts)


def test_callables_of_all_kinds_lead_to_what_they_call(load: Load) -> None:
    module = load(SIMULATION)
    simulate, model = module.simulate, module.Model(1)
    expected = code_of(simulate)
    assert code_of(functools.partial(simulate, 1, L=3)) == expected
    assert code_of(functools.lru_cache(simulate)) == expected
    parts = code_of(model.run).parts
    assert {"Model", "Model.run", "helpers.Lattice", "helpers.Lattice.bonds"} <= parts.keys()
    assert "Model.rate" not in parts, "it is in the class"
    assert {"Model.__call__", "simulate"} <= code_of(model).parts.keys()
    assert code_of(module.Model).parts == code_of(model).parts
    assert "another" in code_of(functools.partial(simulate, module.another)).parts
    other = module.scaled(3)
    assert changes(code_of(module.double).parts, code_of(other).parts) == [
        "factor of scaled.<locals>.scale"
    ]


def test_state_is_left_out(load: Load) -> None:
    module = load(
        """
        count = 0
        def simulate(x):
            global count
            count += 1
            return __name__, undefined(x)
        """
    )
    before = code_of(module.simulate)
    vars(module)["count"] = 1
    assert code_of(module.simulate) == before
    assert [*before.parts] == ["simulate"]


# --- everywhere the same --------------------------------------------------------------------------

SAY = "import sys, simulation; from primitive_jobs.store.code import code_of; "
SCRIPT = """
if __name__ == "__main__":
    from primitive_jobs.store.code import code_of
    print(code_of(simulate).digest)
"""
# On each Python: a store may be opened by another one.
DIGEST = "19f7c8f481f712d3"


def test_it_is_the_same_in_each_process_and_on_each_python(load: Load, tmp_path: Path) -> None:
    found = code_of(load(SIMULATION + SCRIPT).simulate)
    assert found.digest == DIGEST
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONHASHSEED": "7"}
    for way in (
        ["simulation.py"],
        ["-m", "simulation"],
        ["-O", "simulation.py"],
        ["-c", SAY + "print(code_of(simulation.simulate).digest)"],
    ):
        done = subprocess.run(
            [sys.executable, *way],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        assert done.stdout == f"{DIGEST}\n", way


def test_functions_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython compiles the statements of a cell one by one."""
    space: dict[str, Any] = {"__name__": "__main__"}

    def run(number: int, cell: str) -> None:
        name = f"<cell {number}>"
        lines = textwrap.dedent(cell).splitlines(keepends=True)
        entry = sum(map(len, lines)), None, lines, name
        monkeypatch.setitem(linecache.cache, name, entry)
        for statement in ast.parse("".join(lines)).body:
            exec(compile(ast.Module([statement], []), name, "exec"), space)

    run(1, "import math\nTC = 2\ndef helper(x):\n    return math.sin(x)\n")
    run(2, "\ndef simulate(x):\n    return helper(x) + TC\n")
    before = code_of(space["simulate"]).parts
    assert sorted(before) == ["TC", "helper", "simulate"]
    run(3, "TC = 3\n\ndef helper(x):\n    return math.cos(x)\n")
    assert sorted(changes(before, code_of(space["simulate"]).parts)) == ["TC", "helper"]


# --- edited since ---------------------------------------------------------------------------------


def edit(module: ModuleType, old: str, new: str) -> None:
    path = Path(str(module.__file__))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edit_on_disk_is_no_code_that_was_loaded(load: Load) -> None:
    module = load(SIMULATION)
    before = code_of(module.simulate)
    edit(module, "# a comment", "# another comment\n\n")
    edit(module, "TC = 2.269", "\n\n# it is loaded\nTC = 2.3")
    assert code_of(module.simulate) == before, "neither of this is what the function is"
    edit(module, "sqrt(T) + Torus", "sqrt(T) - Torus")
    with pytest.raises(ValueError, match=r"of simulate .*simulation\.py.*give version="):
        code_of(module.simulate)
    edit(module, "sqrt(T) - Torus", "sqrt(T) + Torus")
    assert code_of(module.simulate) == before
    edit(module, "return -x", "return (")
    with pytest.raises(ValueError, match="is not valid now"):
        code_of(module.simulate)


def test_an_edit_of_a_helper_names_both(load: Load) -> None:
    module = load(SIMULATION)
    edit(module.helpers, "even(n - 1)", "even(n - 2)")
    with pytest.raises(ValueError, match=r"of helpers\.odd, which simulate uses, changes"):
        code_of(module.simulate)


# --- refused --------------------------------------------------------------------------------------


def test_what_has_no_source_asks_for_a_version(load: Load) -> None:
    space: dict[str, Any] = {}
    exec("def made(x):\n    return x", space)
    refused: list[tuple[Any, str]] = [
        (lambda x: x, "it is a lambda"),
        (space["made"], "made changes: its source is not known"),
        (math.sin, "sin changes: it is not written in Python"),
        (functools.partial(math.sin), "sin changes"),
        (np.sin, "not written in Python"),
        ([].append, "not written in Python"),
        (int, "not written in Python"),
    ]
    for function, words in refused:
        with pytest.raises(TypeError, match=words) as caught:
            code_of(function)
        assert str(caught.value).endswith("; give version=")
    module = load("key = lambda x: x\ndef simulate(x):\n    return key(x)\n")
    with pytest.raises(TypeError, match="of <lambda>, which simulate uses, changes"):
        code_of(module.simulate)


def test_an_expression_of_any_depth_is_no_recursion_error(load: Load) -> None:
    module = load("def simulate(x):\n    return " + "-" * 90 + "x" + " + x" * 80 + "\n")
    assert code_of(module.simulate).parts

    def deeper() -> None:
        try:
            deeper()
        except RecursionError:
            code_of(module.simulate)

    with pytest.raises(TypeError, match="nested too deep"):
        deeper()


def test_what_pip_has_put_into_any_folder_is_not_followed(load: Load, tmp_path: Path) -> None:
    module = load(SIMULATION)
    assert "helpers.energy" in code_of(module.simulate).parts
    target = tmp_path / "target"
    (target / "vendored-1.0.dist-info").mkdir(parents=True)
    (target / "vendored.py").write_text("def energy(x):\n    return x\n")
    sys.path.insert(0, str(target))
    try:
        module = load("import vendored\ndef simulate(x):\n    return vendored.energy(x)\n")
        assert [*code_of(module.simulate).parts] == ["simulate"]
    finally:
        sys.path.remove(str(target))
        del sys.modules["vendored"]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(x, y=a, *z: b, w: c = d, **v) -> e: return x, y, z, w, v", "a d c b e"),
        ("def f():\n x = a\n for y in b: x, y\n with c as z: z\n del x", "a b c"),
        ("def f(): return [x + a for x in b for y in x if y]", "b a"),
        ("def f(): return [x for x in x]", "x"),
        ("def f(): return (lambda x, y=a: x + y + b)", "a b"),
        ("def f(): return a.b.c(d.e)[g].h", "a.b.c d.e g"),
        ("def f():\n def g(x): return x, h\n return g, x", "h x"),
        ("def f():\n class A(b):\n  c = d\n return A", "b d"),
        ("def f():\n global s\n s += a", "a"),
        ("def f():\n try: pass\n except a as e: e\n import b.c as d, g.h\n return d, g", "a"),
        ("def f():\n match a:\n  case {'b': x, **y}: x, y\n  case [*z, b.C()] as w: z, w", "a b.C"),
        ("@a\ndef f():\n if (x := b): return x", "a b"),
        ("def f():\n [y := x for x in a]\n return y", "a"),
    ],
)
def test_global_names(source: str, names: str) -> None:
    node = ast.parse(source).body[0]
    assert [".".join(chain) for chain in syntax.global_names(node)] == names.split()


def test_a_hash_is_plain_data() -> None:
    code = CodeHash("0", {"f": "1"})
    assert (code.digest, code.parts) == ("0", {"f": "1"})
    assert changes({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"}) == [
        "b",
        "d (new)",
        "c (gone)",
    ]
