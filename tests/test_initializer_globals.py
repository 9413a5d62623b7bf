"""What an initializer sets in the globals of a script, a notebook or a REPL, its jobs see."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from helpers import expect
from notebooks import run_cells, text_of

BODY = """
import functools, math, multiprocessing, pickle, sqlite3, sys, threading
from concurrent.futures import ProcessPoolExecutor
from primitive_jobs import JobExecutor, JobPool

setting = None
cache = {}
table = [0, 0]
connection = None
nan = math.nan
lock = None
untouched = 3
nested = {"a": [1, {"b": {}}]}

def init(value):
    global setting, connection, late, nan, lock
    setting = value
    late = value + 1
    nan = value
    cache["model"] = value
    table[1] = value
    nested["a"][1]["b"]["c"] = value
    connection = sqlite3.connect(":memory:")
    connection.execute("create table numbers (n)")
    lock = threading.Lock()
    with_attribute.value = value
    prepare_more(value)

def prepare_more(value):
    global more
    more = value + 2

more = 0

def get_setting(_=None):
    return setting

def get_all(_=None):
    (count,) = connection.execute("select count(*) from numbers").fetchone()
    with lock:
        deepest = nested["a"][1]["b"]
        return setting, late, cache, table, nan, count, more, untouched, deepest

def with_attribute(_=None):
    return with_attribute.value

def through_another(_=None):
    return get_setting()

def by_nested_function(_=None):
    def inner():
        return setting
    return inner()

class Model:
    def __init__(self, factor=1):
        self.factor = factor
    def __call__(self, _=None):
        return setting * self.factor
    def method(self, _=None):
        return setting * self.factor
    @staticmethod
    def static(_=None):
        return setting
    @classmethod
    def of_class(cls, _=None):
        return setting
    @property
    def prop(self):
        return setting

def by_property(model):
    return model.prop

def rebind(_=None):
    global setting
    before, setting = setting, "rebound"
    return before, setting

class Unreadable(Exception):
    def look(self):
        return connection

def fail(_=None):
    raise Unreadable(setting)

class Row:
    def __init__(self, value):
        self.value = value
    def save(self):
        return connection

def make_row(_=None):
    return Row(setting)
"""

CALLS = """
def see(executor):
    submit = lambda f, *args: executor.submit(f, *args).result()
    print(submit(get_setting), submit(get_all), submit(with_attribute))
    print(submit(through_another), submit(by_nested_function))
    print(submit(functools.partial(get_setting, 1)))
    print(submit(Model(2)), submit(Model(2).method), submit(Model.static), submit(Model.of_class))
    print(submit(by_property, Model()))
    print(submit(make_row).value)
    try:
        submit(fail)
    except Unreadable as error:
        print(error)
    print({*executor.map(get_setting, range(50))}, {*executor.map(Model(3), range(50))})
    print({*executor.map(get_setting, range(50), chunksize=7)})
"""

OURS_ALONE = """
def see_more(pool):
    submit = lambda f, *args: pool.submit(f, *args).result()
    by = "a closure"
    print(submit(lambda: setting), submit(lambda: (by, setting)))
    print(submit(lambda: eval("setting")), submit(lambda f: f(), get_setting))
    print({submit(rebind) for _ in range(20)}, submit(get_setting))
    print({*pool.map(rebind, range(20), chunksize=1)})
"""

SEEN = """\
7 (7, 8, {'model': 7}, [0, 7], 7, 0, 9, 3, {'c': 7}) 7
7 7
7
14 14 7 7
7
7
7
{7} {21}
{7}
"""

MORE_SEEN = """\
7 ('a closure', 7)
7 7
{(7, 'rebound')} 7
{(7, 'rebound')}
"""


def program(*parts: str) -> str:
    return "".join(map(textwrap.dedent, parts))


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_a_script(how: str, tmp_path: Path) -> None:
    make = """
    if __name__ == "__main__":
        with JobPool(2, initializer=init, initargs=(7,)) as pool:
            see(pool)
            see_more(pool)
        with JobExecutor(2, initializer=init, initargs=(7,)) as executor:
            see(executor)
    """
    source = program(BODY, CALLS, OURS_ALONE, make)
    expect(tmp_path, source, SEEN + MORE_SEEN + SEEN, how=how)


def test_concurrent_futures_does_the_same(tmp_path: Path) -> None:
    make = """
    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, context, initializer=init, initargs=(7,)) as executor:
            see(executor)
    """
    expect(tmp_path, program(BODY, CALLS, make), SEEN)


@pytest.mark.parametrize(
    "initializer",
    [
        "functools.partial(init, 7)",
        "lambda: init(7)",
        "Setting(7).set",
        "(lambda f: lambda: f(7))(init)",
        "functools.partial(lambda body: pickle.loads(body)(7), cloudpickle.dumps(init))",
    ],
    ids=["partial", "lambda", "method", "closure", "pickled by itself"],
)
def test_initializers_of_every_kind(initializer: str, tmp_path: Path) -> None:
    make = f"""
    import cloudpickle

    class Setting:
        def __init__(self, value):
            self.value = value
        def set(self):
            init(self.value)

    if __name__ == "__main__":
        with JobPool(1, initializer={initializer}) as pool:
            see(pool)
    """
    expect(tmp_path, program(BODY, CALLS, make), SEEN)


def test_what_the_caller_sets_later_counts_more(tmp_path: Path) -> None:
    make = """
    def get_cache():
        return cache

    def get_late():
        return late

    if __name__ == "__main__":
        with JobPool(1, initializer=init, initargs=(7,)) as pool:
            print(pool.submit(get_setting).result(), pool.submit(get_cache).result())
            setting, cache["mine"], late, nan = 99, 1, 100, 1.5
            print(pool.submit(get_setting).result(), pool.submit(get_cache).result())
            print(pool.submit(get_late).result(), pool.submit(lambda: nan).result())
            del late
            setting, cache, nan = None, {}, math.nan  # as they were
            print(pool.submit(get_setting).result(), pool.submit(get_cache).result())
            print(pool.submit(get_late).result(), pool.submit(lambda: nan).result())
            nested["a"][1]["b"]["d"] = 1
            print(pool.submit(lambda: nested).result())
            def with_attribute(_=None):
                return getattr(with_attribute, "value", "new")
            print(pool.submit(with_attribute).result())
    """
    expected = """\
7 {'model': 7}
99 {'mine': 1}
100 1.5
7 {'model': 7}
8 7
{'a': [1, {'b': {'d': 1}}]}
new
"""
    expect(tmp_path, program(BODY, make), expected)


@pytest.mark.parametrize("pool", ["JobPool", "JobExecutor", "ProcessPoolExecutor"])
def test_an_initializer_that_does_not_name_what_it_sets(pool: str, tmp_path: Path) -> None:
    source = f"""
    from concurrent.futures import ProcessPoolExecutor
    from primitive_jobs import JobExecutor, JobPool

    setting = None

    def init(values):
        globals().update(values)
        exec("made = setting + 1", globals())

    def look(_=None):
        return setting, made

    if __name__ == "__main__":
        with {pool}(1, initializer=init, initargs=({{"setting": 7}},)) as pool:
            print(pool.submit(look).result(), *pool.map(look, range(2), chunksize=2))
    """
    expect(tmp_path, source, "(7, 8) (7, 8) (7, 8)\n")


def test_what_is_kept_does_not_travel_back(tmp_path: Path) -> None:
    """Else the class of a result would bring it to the caller, or be unable to travel."""
    make = """
    if __name__ == "__main__":
        with JobPool(1, initializer=init, initargs=(7,)) as pool:
            print(pool.submit(make_row).result().save())
            print(pool.submit(lambda: get_setting).result()())
            print(pool.submit(lambda: rebind() and get_setting).result()())
            print(pool.submit(lambda: pool_in_job()).result())
    """
    inner = """
    def pool_in_job():
        with JobPool(1) as inner:
            return setting, inner.submit(lambda: (setting, connection)).result()
    """
    expect(tmp_path, program(BODY, inner, make), "None\nNone\nrebound\n(7, (None, None))\n")


def test_values_that_refer_to_functions(tmp_path: Path) -> None:
    source = """
    from primitive_jobs import JobPool

    class Params:
        def __init__(self, x):
            self.x = x

    def even(n):
        return registry["one"] if n == 0 else odd(n - 1)

    def odd(n):
        return registry["one"] if n == 0 else even(n - 1)

    registry = {"even": even, "odd": odd, "params": Params(1), "class": Params}

    def init():
        registry["one"] = registry["even"].__name__

    def look():
        return even(3), registry["one"], registry["params"].x, [*registry]

    if __name__ == "__main__":
        with JobPool(1, initializer=init) as pool:
            print(pool.submit(look).result())
            print(pool.submit(even, 5).result(), pool.submit(odd, 5).result())
            registry["params"] = Params(2)
            print(pool.submit(lambda: [*registry]).result())
    """
    expected = """\
('even', 'even', 1, ['even', 'odd', 'params', 'class', 'one'])
even even
['even', 'odd', 'params', 'class']
"""
    expect(tmp_path, source, expected)


def test_no_eq_of_the_user_is_called(tmp_path: Path) -> None:
    source = """
    from primitive_jobs import JobPool

    class Evil:
        def __eq__(self, other):
            raise RuntimeError("compared")
        __hash__ = None

    class Unpicklable:
        "Comes in a pickle, and cannot be pickled again."
        def __init__(self):
            self.pid = os.getpid()
        def __reduce__(self):
            if os.getpid() != program:
                raise SystemError("pickled again")
            return Unpicklable, ()

    import os
    program = os.getpid()
    first, second, third = Evil(), Evil(), Unpicklable()

    def init():
        global first, third
        first = "set"
        second.x = "changed"
        third = "bound"

    if __name__ == "__main__":
        with JobPool(1, initializer=init) as pool:
            print(pool.submit(lambda: (first, second.x, third)).result())
    """
    expect(tmp_path, source, "('set', 'changed', 'bound')\n")


def test_a_large_array(tmp_path: Path) -> None:
    source = """
    import numpy as np
    from primitive_jobs import JobPool

    filled, read = np.zeros(100_000), np.ones(100_000)

    def init():
        filled[:] = read[0] + 4

    if __name__ == "__main__":
        with JobPool(1, initializer=init) as pool:
            print(pool.submit(lambda: filled.sum() + read.sum()).result())
            filled[0] = 1
            print(pool.submit(lambda: filled.sum() + read.sum()).result())
    """
    expect(tmp_path, source, "600000.0\n100001.0\n")


def test_jobs_without_an_initializer_of_the_script(tmp_path: Path) -> None:
    """Nothing is replaced where there is nothing to keep."""
    source = """
    from primitive_jobs import JobPool

    def nothing(): pass

    def replaced():
        from cloudpickle import cloudpickle
        return "kept_globals" in cloudpickle._function_setstate.__code__.co_filename

    if __name__ == "__main__":
        for initializer in (None, print, nothing):
            with JobPool(1, initializer=initializer) as pool:
                print(pool.submit(replaced).result(), flush=True)
    """
    expect(tmp_path, source, "False\n\nFalse\nFalse\n")


def test_a_notebook(tmp_path: Path) -> None:
    cells = {
        "define": "from primitive_jobs import JobPool, JobExecutor\nstate, models = None, {}",
        "init": """
def init(value):
    global state
    state = value
    models["m"] = value

def use(_=None):
    return state, dict(models)
""",
        "pool": "pool = JobPool(2, initializer=init, initargs=(7,))",
        "use": "print(pool.submit(use).result(), {str(r) for r in pool.map(use, range(30))})",
        "executor": """
with JobExecutor(1, initializer=init, initargs=(7,)) as executor:
    print(executor.submit(use).result(), executor.submit(lambda: state).result())
""",
        "set": "state = 99",
        "use again": "print(pool.submit(use).result())",
        "define again": "def use(_=None): return 'new', state\nstate = None",
        "use new": "print(pool.submit(use).result())",
        "end": "pool.shutdown()",
    }
    outputs = dict(zip(cells, run_cells("notebook", tmp_path, [*cells.values()]), strict=True))
    found = (7, {"m": 7})
    assert text_of(outputs["use"]) == f"{found} { {str(found)} }\n"
    assert text_of(outputs["executor"]) == f"{found} 7\n"
    assert text_of(outputs["use again"]) == f"{(99, {'m': 7})}\n"
    assert text_of(outputs["use new"]) == "('new', 7)\n"
