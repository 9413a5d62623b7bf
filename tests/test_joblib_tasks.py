"""A task of joblib's means what `submit` of its call means, whatever it shares a batch with."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from helpers import PATIENCE, meet
from joblib import Parallel, delayed

import primitive_jobs.joblib
from primitive_jobs import JobPool, SerializationError, share

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
COUNT = 40


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobPool]:
    """A pool of two that both run already."""
    primitive_jobs.joblib.register()
    with JobPool(2, idle_timeout=None, spare_workers=0) as shared:
        folder = tmp_path_factory.mktemp("meeting")
        jobs = [shared.submit(meet, folder, 2) for _ in range(2)]
        assert len({job.result(PATIENCE) for job in jobs}) == 2
        yield shared


@pytest.fixture
def two() -> Iterator[JobPool]:
    """A pool of two for one test: a call that ends early costs the workers that are at it."""
    with JobPool(2, spare_workers=0) as fresh:
        yield fresh
        fresh.shutdown(cancel=True)


@pytest.fixture(params=[1, 10, "auto"])
def run(pool: JobPool, request: pytest.FixtureRequest) -> Callable[[list[Task]], list[Any]]:
    """Runs tasks by `Parallel`; what `submit` gives has to be the same."""

    def run(tasks: list[Task]) -> list[Any]:
        expected = [pool.submit(f, *args, **kw).result(PATIENCE) for f, args, kw in tasks]
        with joblib.parallel_config(backend="primitive_jobs", pool=pool):
            found: list[Any] = Parallel(batch_size=request.param, pre_dispatch="all")(tasks)
        assert found == expected
        return found

    return run


Run = Callable[[list[Task]], list[Any]]


class Table:
    """Knows its rows, and counts its calls."""

    def __init__(self) -> None:
        self.rows: list[Any] = [[1], [2]]
        self.calls = 0
        self.buffer = [0]

    def has(self, row: Any) -> bool:
        return any(row is mine for mine in self.rows)

    def count(self, _: int, step: int = 1) -> int:
        self.calls += step
        return self.calls

    def reuse(self, value: int) -> list[int]:
        self.buffer[0] = value
        return self.buffer


def one_of(rows: list[Any], row: Any) -> bool:
    return any(row is mine for mine in rows)


def append(values: list[int], value: int) -> list[int]:
    values.append(value)
    return list(values)


def are_one(one: Any, two: Any = None, *, three: Any = None) -> bool:
    return one is (three if two is None else two)


def add_one(array: Any) -> float:
    array += 1
    return float(array.sum())


# --- arguments and the function's state -----------------------------------------------------------


def test_an_argument_is_what_the_function_knows(run: Run) -> None:
    table = Table()
    others: list[Any] = [*table.rows, [3]]
    tasks = [delayed(table.has)(others[i % 3]) for i in range(COUNT)]
    assert run(tasks) == [i % 3 < 2 for i in range(COUNT)]
    known = functools.partial(one_of, table.rows)
    assert run([delayed(known)(others[i % 3]) for i in range(COUNT)]) == [
        i % 3 < 2 for i in range(COUNT)
    ]
    rows = table.rows

    def closed(row: Any) -> bool:
        return any(row is mine for mine in rows)

    assert run([delayed(closed)(others[i % 3]) for i in range(COUNT)]) == [
        i % 3 < 2 for i in range(COUNT)
    ]


def test_every_call_finds_the_state_that_was_sent(run: Run) -> None:
    table = Table()
    assert run([delayed(table.count)(i) for i in range(COUNT)]) == [1] * COUNT
    assert run([delayed(table.count)(i, step=2) for i in range(COUNT)]) == [2] * COUNT
    calls = 0

    def count(_: int) -> int:
        nonlocal calls
        calls += 1
        return calls

    assert run([delayed(count)(i) for i in range(COUNT)]) == [1] * COUNT
    calls = 5
    assert run([delayed(count)(i) for i in range(COUNT)]) == [6] * COUNT


def test_no_task_sees_what_another_does_to_an_argument(run: Run) -> None:
    values: list[int] = []
    assert run([delayed(append)(values, i) for i in range(COUNT)]) == [[i] for i in range(COUNT)]
    by_name = [delayed(append)(value=i, values=values) for i in range(COUNT)]
    assert run(by_name) == [[i] for i in range(COUNT)]

    def local(values: list[int], value: int) -> int:
        values.append(value)
        return len(values)

    assert run([delayed(local)(values, i) for i in range(COUNT)]) == [1] * COUNT


@pytest.mark.parametrize("size", [10, 100_000])
def test_no_task_sees_what_another_does_to_an_array(run: Run, size: int) -> None:
    array = np.zeros(size)
    assert run([delayed(add_one)(array) for _ in range(COUNT)]) == [float(size)] * COUNT
    columns = np.asfortranarray(np.zeros((size // 10, 10)))
    assert run([delayed(add_one)(columns) for _ in range(COUNT)]) == [float(size)] * COUNT
    assert not array.any()


def test_one_object_stays_one_within_a_task(run: Run) -> None:
    one, other = [1], [1]
    tasks = [delayed(are_one)(one, one if i % 2 else other) for i in range(COUNT)]
    assert run(tasks) == [bool(i % 2) for i in range(COUNT)]
    by_name = [delayed(are_one)(one, three=one if i % 2 else other) for i in range(COUNT)]
    assert run(by_name) == [bool(i % 2) for i in range(COUNT)]
    local = [delayed(lambda one, two: one is two)(one, one) for _ in range(COUNT)]
    assert run(local) == [True] * COUNT


def test_functions_of_a_batch_have_nothing_in_common(run: Run) -> None:
    table, values = Table(), [0]

    def grow(value: int) -> int:
        values.append(value)
        return len(values)

    def see(_: int) -> int:
        return len(values)

    functions = [grow, see, table.count, functools.partial(append, values), abs]
    tasks = [delayed(functions[i % 5])(i) for i in range(COUNT)]
    assert run(tasks)[:5] == [2, 1, 1, [0, 3], 4]
    each = [delayed(functools.partial(append, values))(i) for i in range(COUNT)]
    assert run(each) == [[0, i] for i in range(COUNT)]
    called = [delayed(lambda f, x: f(x))(grow, i) for i in range(COUNT)]
    assert run(called) == [2] * COUNT


# --- results --------------------------------------------------------------------------------------


def test_a_result_is_what_it_was_when_the_call_returned(run: Run) -> None:
    table = Table()
    assert run([delayed(table.reuse)(i) for i in range(COUNT)]) == [[i] for i in range(COUNT)]
    shared: list[int] = [0]

    def reuse(value: int) -> list[int]:
        shared[0] = value
        return shared

    assert run([delayed(reuse)(i) for i in range(COUNT)]) == [[i] for i in range(COUNT)]


BUFFER = [0]
ARRAYS = np.zeros(3), np.zeros(4000)


def into_buffer(value: int) -> list[int]:
    BUFFER[0] = value
    return BUFFER


def into_array(which: int, value: int) -> Any:
    ARRAYS[which][:] = value
    return ARRAYS[which]


@pytest.mark.parametrize("batch_size", [1, 10, "auto"])
def test_results_share_nothing(pool: JobPool, batch_size: Any) -> None:
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        parallel = Parallel(batch_size=batch_size, pre_dispatch="all")
        lists = parallel(delayed(into_buffer)(i) for i in range(COUNT))
        assert lists == [[i] for i in range(COUNT)]
        assert len({id(one) for one in lists}) == COUNT
        for which in range(2):
            arrays = parallel(delayed(into_array)(which, i) for i in range(COUNT))
            assert [set(array) for array in arrays] == [{float(i)} for i in range(COUNT)]
            arrays[0][:] = -1
            assert arrays[1][0] == 1


def test_results_of_a_class_of_the_script(run: Run) -> None:
    class Found(tuple[int, ...]):
        __slots__ = ()

    tasks = [delayed(lambda x: Found((x, x)))(i) for i in range(COUNT)]
    found = run(tasks)
    assert found == [(i, i) for i in range(COUNT)]
    assert {type(one).__name__ for one in found} == {"Found"}
    given = [delayed(sum)(Found((i, i))) for i in range(COUNT)]
    assert run(given) == [2 * i for i in range(COUNT)]


# --- what cannot travel, and what refers to something ---------------------------------------------


def test_what_cannot_be_pickled_costs_no_task_before_it(two: JobPool, tmp_path: Path) -> None:
    def touch(place: int, _: Any) -> None:
        (tmp_path / str(place)).touch()

    tasks = [delayed(touch)(i, threading.Lock() if i == 15 else None) for i in range(20)]
    with (
        joblib.parallel_config(backend="primitive_jobs", pool=two),
        pytest.raises(SerializationError, match=r"argument 2 of .*touch\(\), a lock"),
    ):
        Parallel(batch_size=10, pre_dispatch="all")(tasks)
    found = {int(path.name) for path in tmp_path.iterdir()}
    assert found - {*range(10)} == {*range(10, 15)}


@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_result_that_cannot_be_pickled_is_named(two: JobPool, batch_size: int) -> None:
    name = r"lock\(\), a lock" if batch_size == 10 else "lock"
    tasks = [delayed(threading.Lock)() for _ in range(20)]
    with (
        joblib.parallel_config(backend="primitive_jobs", pool=two),
        pytest.raises(SerializationError, match=name),
    ):
        Parallel(batch_size=batch_size, pre_dispatch="all")(tasks)


def test_shared_data_is_met_as_one_object(run: Run) -> None:
    data = list(range(1000))
    handle = share(data)
    assert run([delayed(sum)(handle) for _ in range(COUNT)]) == [sum(data)] * COUNT
    total = functools.partial(sum, handle)
    assert run([delayed(total)() for _ in range(COUNT)]) == [sum(data)] * COUNT

    def local(values: Any, start: int) -> int:
        return int(sum(values)) + start

    assert run([delayed(local)(handle, i) for i in range(COUNT)]) == [
        sum(data) + i for i in range(COUNT)
    ]


@pytest.mark.parametrize("in_function", [False, True])
def test_mapped_files_are_mapped_in_every_task(
    pool: JobPool, tmp_path: Path, in_function: bool
) -> None:
    table = np.memmap(tmp_path / "table", dtype=float, shape=(COUNT, 10), mode="w+")

    def write(place: int, whole: Any = None) -> str:
        (table if in_function else whole)[place] = place
        return type(table if in_function else whole).__name__

    given = {} if in_function else {"whole": table}
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        kinds = Parallel(batch_size=10)(delayed(write)(i, **given) for i in range(COUNT))
    assert kinds == ["memmap"] * COUNT
    assert (table == np.arange(float(COUNT))[:, None]).all()
