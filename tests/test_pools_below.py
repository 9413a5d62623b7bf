"""A script's functions and classes where it is not ``__main__``.

In what multiprocessing started, and in pools of any kind inside a job.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import expect

SCRIPT = '''
import concurrent.futures, enum, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NewType, TypeVar
import loky
from primitive_jobs import JobExecutor, JobPool, default_pool, run

Height = NewType("Height", float)
T = TypeVar("T")
here = sys.modules[__name__]

@dataclass
class Point:
    x: int

class Colour(enum.Enum):
    RED = 1

class Bad(Exception):
    pass

def step(point: Point, *, unused: T = None) -> Height:
    if point.x < 0:
        raise Bad(point)
    return Point(point.x + 1)

def same(value):
    assert value is Colour.RED and here and Height(1) == 1
    return value

def check(what):
    """Identity of classes holds on the way back."""
    point, points, others, colour, error = what
    assert isinstance(point, Point) and all(isinstance(p, Point) for p in points + others), what
    assert colour is Colour.RED and type(error) is Bad and error.args == (Point(-1),), what
    assert [p.x for p in (point, *points, *others)] == [2, 1, 2, 1, 2], what

def with_ours():
    points = [Point(0), Point(1)]
    with JobPool(1) as pool:
        what = (
            pool.submit(step, Point(1)).result(),
            list(pool.map(step, points)),
            list(JobExecutor(pool=pool).map(step, points, chunksize=2)),
            pool.submit(same, Colour.RED).result(),
            pool.submit(step, Point(-1)).exception(),
        )
    check(what)
    return what

def with_default():
    assert run(step, Point(1)).result() == Point(2)
    default_pool().shutdown()
    return with_ours()

def with_theirs(method):
    points = [Point(0), Point(1)]
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        what = (
            pool.submit(step, Point(1)).result(),
            list(pool.map(step, points)),
            list(pool.map(step, points, chunksize=2)),
            pool.submit(same, Colour.RED).result(),
            pool.submit(step, Point(-1)).exception(),
        )
    check(what)
    return what

def tell(pipe, function, *args):
    try:
        pipe.send(function(*args))
    except BaseException as error:
        pipe.send(repr(error))

def with_process(method, function=with_default):
    """Of an answer in a process of multiprocessing's."""
    context = get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=tell, args=(theirs, function))
    process.start()
    theirs.close()
    what = ours.recv()
    process.join()
    ours.close()
    check(what)
    return what

def below(depth, function, *args):
    with JobPool(1) as pool:
        if depth > 1:
            return pool.submit(below, depth - 1, function, *args).result()
        return pool.submit(function, *args).result()

if __name__ == "__main__":
'''
WAYS = {
    "spawn": 'with_process("spawn")',
    "forkserver": 'with_process("forkserver")',
    "executor": """
with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
    check(pool.submit(with_ours).result())
""",
    "loky": """
def move(point):  # of what loky itself can send
    return Point(point.x + 1)
def of_two():
    with JobPool(1) as pool:
        assert isinstance(pool.submit(move, Point(1)).result(), Point)
        return list(pool.map(move, [Point(0), Point(1)]))
for name in "loky", "loky_init_main":
    with loky.ProcessPoolExecutor(1, context=loky.backend.get_context(name)) as pool:
        assert pool.submit(of_two).result() == [Point(1), Point(2)]
""",
    "ours in a job in a job": "check(below(2, with_ours))",
    "a fork in a job": 'check(below(1, with_theirs, "fork"))',
    "ours in a process in a job": 'check(below(1, with_process, "spawn", with_ours))',
    "theirs in theirs in a job": """
def twice():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(with_theirs, "spawn").result()
check(below(1, twice))
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_functions_of_the_script(tmp_path: Path, way: str) -> None:
    body = WAYS[way].strip() + '\nprint("well")'
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    expect(tmp_path, SCRIPT + indented, "well\n", flags="-W ignore::DeprecationWarning")


def test_what_is_taught_stays_in_the_job(tmp_path: Path) -> None:
    source = """
        import multiprocessing, pickle
        from multiprocessing.reduction import ForkingPickler
        from primitive_jobs import JobPool

        class Point:
            pass

        def give(queue):
            queue.put(Point())

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.SimpleQueue()
            with JobPool(1, initializer=give, initargs=(queue,)) as pool:
                pool.submit(pow, 2, 3).result()
                print(type(queue.get()) is Point)
            print(hasattr(ForkingPickler, "reducer_override"))
            queue.close()
    """
    expect(tmp_path, source, "True\nFalse\n")
