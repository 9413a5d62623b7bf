"""`map`: the size of chunks, what a chunk does to its calls (nothing), and the ends it may have."""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from helpers import (
    PATIENCE,
    case,
    double,
    hold,
    interrupt_everywhere,
    interrupted,
    raise_it,
    sampled,
    until,
)

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobPool,
    JobTimeoutError,
    PoolClosedError,
    ResultTimeoutError,
    SerializationError,
    WorkerDiedError,
    mapping,
    share,
    wait,
)
from primitive_jobs._wire import chunk
from primitive_jobs._wire.chunk import all_plain, run_chunk
from primitive_jobs.mapping import GROWTH, MOST_BYTES, MOST_CALLS, TARGET, ChunkSize

if TYPE_CHECKING:
    from makers import MakePool

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def fifty(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Automatic chunks have fifty calls from the first to the last. Returns how many each made."""
    made: list[int] = []

    def start(size: ChunkSize) -> None:
        size.calls = 50

    monkeypatch.setattr(ChunkSize, "__init__", start)
    monkeypatch.setattr(ChunkSize, "learn", lambda _, count, *__: made.append(count))
    return made


def note(folder: Path, item: int) -> int:
    """Leave a trace of each call, and so of a second one with the same item."""
    (folder / str(item)).touch(exist_ok=False)
    return item


class Clock:
    """One that goes on as told."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.ahead


def pass_time(seconds: float) -> None:
    """In a worker: put on the clock that its chunks are timed by."""
    clock = vars(chunk)["perf_counter"]
    if not isinstance(clock, Clock):
        clock = vars(chunk)["perf_counter"] = Clock()
    clock.ahead += seconds


def noted(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def take(results: Iterator[Any]) -> tuple[list[Any], BaseException]:
    """The results before the error, and that."""
    got: list[Any] = []
    try:
        got.extend(iter(lambda: next(results), object()))
    except BaseException as error:
        with pytest.raises(StopIteration):
            next(results)
        return got, error
    raise AssertionError("unreachable")


# Whatever the chunks, map() does the same.
CHUNKS: list[int | None] = [None, 1, 4, 100]
every_chunksize = pytest.mark.parametrize("chunksize", CHUNKS)


# --- the size of chunks: pure --------------------------------------------------------------------


def walk(durations: Iterable[float], size: ChunkSize | None = None) -> list[int]:
    """The size after each chunk, whose calls take as long as one of these."""
    size = size or ChunkSize()
    sizes = []
    for seconds in durations:
        before = size.calls
        size.learn(before, before * seconds)
        sizes.append(size.calls)
        assert 1 <= size.calls <= min(MOST_CALLS, before * GROWTH)
    return sizes


def test_size_of_short_calls() -> None:
    for seconds in (1e-6, 1e-5, 1e-4, 1e-3):
        sizes = walk([seconds] * 20)
        assert sizes == sorted(sizes)
        assert sizes[-1] == pytest.approx(min(MOST_CALLS, TARGET / seconds), rel=0.1)


def test_size_of_calls_that_take_no_time() -> None:
    assert walk([0.0] * 20)[-1] == MOST_CALLS


@pytest.mark.parametrize("seconds", [TARGET * 0.51, TARGET, 0.02, 1e6, math.inf])
def test_size_of_long_calls(seconds: float) -> None:
    assert walk([seconds] * 20) == [1] * 20


def test_size_of_calls_that_get_slower() -> None:
    size = ChunkSize()
    assert walk([1e-6] * 20, size)[-1] == MOST_CALLS
    assert walk([1e-3], size) == [10]  # at once
    assert walk([0.02], size) == [1]
    size = ChunkSize()
    seconds = 1e-6
    while seconds < 1:  # each chunk's calls take twice as long as those before
        before = size.calls
        size.learn(before, before * seconds)
        assert size.calls * seconds <= max(TARGET * GROWTH, seconds)
        seconds *= 2
    assert size.calls == 1


def test_size_of_alternating_calls() -> None:
    sizes = walk([1e-5, 0.02] * 20)
    assert set(sizes[1::2]) == {1}
    assert set(sizes[::2]) == {GROWTH}


def test_small_chunks_say_little_of_large_ones() -> None:
    size = ChunkSize()
    size.calls = 1000
    size.learn(1, 30e-6)  # one that was under way all the time; it was slow, being the first
    assert size.calls == 1000
    size.calls = 1
    size.learn(1000, 0.009)  # one from before the calls got slow
    assert size.calls == GROWTH
    size.calls = 3
    size.learn(1000, 0.011)
    assert size.calls == 3


def test_size_by_bytes() -> None:
    size = ChunkSize()
    for _ in range(20):
        size.learn(size.calls, 1e-6, size.calls * MOST_BYTES // 10)
    assert size.calls in (9, 10)
    size.learn(10, 1e-6, 100 * MOST_BYTES)
    assert size.calls == 1


def test_what_needs_no_pickle_of_its_own() -> None:
    class Number(int):
        pass

    assert all_plain((None, True, 1, 1.5, 1j, "a" * 1000))
    others: list[Any] = [[], (), {}, Number(1), np.float64(1), b"", "a" * 5000, int]
    for other in others:
        assert not all_plain((1, other))


# --- a chunk, in this process --------------------------------------------------------------------


def test_a_chunk_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "perf_counter", Clock())
    rows: list[Any] = [(0.0,), (300.0,), (0.0,), (0.0,)]
    values, failure, seconds, nbytes, parts, moved = run_chunk(pass_time, rows, 200.0)
    assert (values, failure, nbytes, parts, moved) == ([None, None], None, 0, [], None)
    assert seconds >= 300.0
    assert len(run_chunk(pass_time, rows, None)[0]) == 4


# --- results and their order ---------------------------------------------------------------------


@every_chunksize
def test_results(pool: JobPool, chunksize: int | None) -> None:
    run_map = functools.partial(pool.map, chunksize=chunksize)
    assert list(run_map(pow, [2, 3, 4], [1, 2])) == [2, 9]
    assert list(run_map(double, [])) == []
    assert list(run_map(double, range(500))) == [2 * i for i in range(500)]
    texts = ["", "a" * 5000, b"b", b"c" * 100_000]
    assert list(run_map(lambda x, y: [x, {y: x}], texts, range(4))) == [
        [text, {i: text}] for i, text in enumerate(texts)
    ]
    arrays = [np.full(n, n) for n in (1, 10, 5000, 200_000)]
    for array, result in zip(arrays, run_map(lambda x: x + 1, arrays), strict=True):
        assert np.array_equal(result, array + 1)
        result[0] = 0  # writable


def test_more_calls_than_one_chunk_may_have(pool: JobPool) -> None:
    count = 3 * MOST_CALLS
    assert list(pool.map(abs, range(-count, 0))) == list(range(count, 0, -1))
    found = list(pool.map(abs, range(-count, 0), ordered=False))
    assert sorted(found) == list(range(1, count + 1))


def test_unordered_results_come_as_they_are_there(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = pool.map(
        lambda i: hold(gate, i) if i == 0 else i, range(20), chunksize=1, ordered=False
    )
    assert sorted(next(results) for _ in range(19)) == list(range(1, 20))
    gate.touch()
    assert list(results) == [0]


def test_ordered_results_wait_for_the_first(pool: JobPool, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", tmp_path / "marks"
    marks.mkdir()
    results = pool.map(
        lambda i: hold(gate, i) if i == 0 else note(marks, i), range(20), chunksize=1
    )

    def open_gate() -> None:
        until(lambda: noted(marks)[-1:] == [19], "the others")
        gate.touch()

    opener = threading.Thread(target=open_gate)
    opener.start()
    assert list(results) == list(range(20))
    opener.join()


def test_map_of_a_view(pool: JobPool) -> None:
    assert list(pool.options(priority=1).map(double, range(10))) == list(range(0, 20, 2))


@pytest.mark.local
def test_a_view_follows_a_resize(one: JobPool, tmp_path: Path) -> None:
    view = one.options(priority=1)
    one.resize(3)
    results = view.map(hold, itertools.repeat(tmp_path / "never"))
    assert len(one.jobs()) == 7
    results.close()


# --- each call is as if it were alone ------------------------------------------------------------

SCRATCH = [0]


def fill_scratch(item: int) -> list[int]:
    SCRATCH[0] = item
    return SCRATCH


@every_chunksize
def test_a_result_is_a_snapshot(pool: JobPool, chunksize: int | None) -> None:
    assert list(pool.map(fill_scratch, range(100), chunksize=chunksize)) == [
        [i] for i in range(100)
    ]


@pytest.mark.parametrize("size", [1, 10_000], ids=["small", "80 kB"])
@every_chunksize
def test_arguments_are_a_snapshot(pool: JobPool, chunksize: int | None, size: int) -> None:
    def reuse() -> Iterator[Any]:
        array = np.zeros(size)
        for i in range(50):
            array[:] = i
            yield array

    assert list(pool.map(lambda a: float(a[-1]), reuse(), chunksize=chunksize)) == list(range(50))


@every_chunksize
def test_arguments_are_a_calls_own(pool: JobPool, chunksize: int | None) -> None:
    def consume(items: list[int]) -> int:
        items.pop()
        return len(items)

    found = pool.map(consume, itertools.repeat([1, 2, 3], 100), chunksize=chunksize)
    assert list(found) == [2] * 100


@every_chunksize
def test_shared_data(pool: JobPool, chunksize: int | None) -> None:
    table = share(np.arange(100_000))
    rows = pool.map(
        lambda t, i: int(t[i]), itertools.repeat(table), range(100), chunksize=chunksize
    )
    del table
    assert list(rows) == list(range(100))


@every_chunksize
def test_a_fork_in_a_call_makes_no_other(
    pool: JobPool, tmp_path: Path, chunksize: int | None
) -> None:
    def fork(i: int) -> int:
        if i == 2 and os.fork() == 0:
            return -1  # the child gets into the loop of its chunk
        return note(tmp_path, i) if i != 2 else i

    assert list(pool.map(fork, range(20), chunksize=chunksize)) == list(range(20))
    assert noted(tmp_path) == [i for i in range(20) if i != 2]


def test_what_is_left_of_a_chunk_is_done_once(
    pool: JobPool, tmp_path: Path, fifty: list[int]
) -> None:
    def call(i: int) -> int:
        if i >= 40:
            pass_time(0.025)
        return note(tmp_path, i)

    assert list(pool.map(call, range(60))) == list(range(60))
    assert noted(tmp_path) == list(range(60))
    assert sum(fifty) == 60
    assert fifty.count(1) >= 19
    assert sorted(pool.map(lambda i: call(i) - 100, range(100, 160), ordered=False)) == list(
        range(60)
    )


def test_shared_data_for_what_is_left(pool: JobPool, fifty: list[int]) -> None:
    table = share([1, 2])

    def call(data: list[int], i: int) -> int:
        pass_time(0.015)
        return data[i]

    rows = pool.map(call, itertools.repeat(table), [i % 2 for i in range(20)])
    del table
    assert list(rows) == [1, 2] * 10
    assert max(fifty) == 2


# --- an exception stands where its result would --------------------------------------------------


@every_chunksize
def test_the_results_before_an_exception(
    one: JobPool, tmp_path: Path, chunksize: int | None
) -> None:
    def call(folder: Path, i: int) -> float:
        note(folder, i)
        return 6 / (2 - i)

    for ordered in (True, False):
        with case(f"ordered={ordered}"):
            folder = tmp_path / str(ordered)
            folder.mkdir()
            calls = functools.partial(call, folder)
            got, error = take(one.map(calls, range(50), chunksize=chunksize, ordered=ordered))
            assert got == [3, 6]
            assert type(error) is ZeroDivisionError
            text = str(error.__cause__)
            assert "return 6 / (2 - i)" in text
            assert "run_chunk" not in text
            until(lambda: not one.jobs(), "the rest cancelled")
            if chunksize == 100:
                assert noted(folder) == [0, 1, 2]


class Unpicklable:
    def __init__(self, *_: object) -> None:
        pass

    def __reduce__(self) -> Any:
        raise RuntimeError("never pickled")


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("never pickled")


def refuse() -> None:
    raise RuntimeError("never unpickled")


class Unloadable:
    def __reduce__(self) -> Any:
        return refuse, ()


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unpicklable result": (Unpicklable, SerializationError, r"the result of call\(\), a Unpickla"),
    "unloadable result": (
        Unloadable,
        SerializationError,
        r"result call\[7\] cannot be unpickled here",
    ),
    "unpicklable exception": (
        lambda: raise_it(UnpicklableError("oh")),
        JobError,
        r"raised UnpicklableError: oh \(which cannot be pickled\)",
    ),
    "sys.exit": (lambda: sys.exit(3), JobError, "raised SystemExit: 3"),
    "Ctrl-C": (lambda: raise_it(KeyboardInterrupt()), JobError, "raised KeyboardInterrupt"),
    "StopIteration": (
        lambda: next(iter(())),
        RuntimeError,
        r"call\(\) raised StopIteration",
    ),
}


@every_chunksize
def test_what_comes_of_one_call(two: JobPool, tmp_path: Path, chunksize: int | None) -> None:
    for kind, (make, expected, message) in BAD.items():
        folder = tmp_path / kind
        folder.mkdir()

        def call(i: int, folder: Path = folder, make: Callable[[], Any] = make) -> Any:
            note(folder, i)
            return make() if i == 7 else i

        call.__qualname__ = "call"
        with case(kind):
            got, error = take(two.map(call, range(30), chunksize=chunksize))
            assert got == list(range(7))
            with pytest.raises(expected, match=message):
                raise error
            assert noted(folder)[:8] == list(range(8))


@every_chunksize
def test_an_argument_that_cannot_be_pickled(
    two: JobPool, tmp_path: Path, chunksize: int | None
) -> None:
    locks = [[], [], [], threading.Lock(), [], []]
    message = r"item 3 of map\(\): argument 2 of .* a lock"
    for ordered in (True, False):
        with case(f"ordered={ordered}"):
            folder = tmp_path / str(ordered)
            folder.mkdir()
            call = functools.partial(lambda folder, i, _: note(folder, i), folder)
            got, error = take(two.map(call, range(6), locks, chunksize=chunksize, ordered=ordered))
            assert sorted(got) == [0, 1, 2]
            with pytest.raises(SerializationError, match=message):
                raise error
            assert noted(folder) == [0, 1, 2]


@every_chunksize
def test_an_argument_that_cannot_be_unpickled(two: JobPool, chunksize: int | None) -> None:
    items = [[0], [1], Unloadable(), [3]]
    got, error = take(two.map(lambda x: x, items, chunksize=chunksize))
    assert got == [[0], [1]]
    with pytest.raises(SerializationError, match="argument cannot be unpickled in the worker"):
        raise error


@every_chunksize
def test_a_function_that_cannot_be_pickled(pool: JobPool, chunksize: int | None) -> None:
    lock = threading.Lock()
    got, error = take(pool.map(lambda i: lock, range(4), chunksize=chunksize))
    assert got == []
    with pytest.raises(SerializationError, match=r"item 0 of map\(\): the function .*<lambda>"):
        raise error


@every_chunksize
def test_an_iterable_that_raises(two: JobPool, chunksize: int | None) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise LookupError("no more")

    for ordered in (True, False):
        with case(f"ordered={ordered}"):
            got, error = take(two.map(double, items(), chunksize=chunksize, ordered=ordered))
            assert sorted(got) == list(range(0, 20, 2))
            assert type(error) is LookupError
            assert error.__traceback__ is not None


@every_chunksize
def test_cancel_all(one: JobPool, tmp_path: Path, chunksize: int | None) -> None:
    results = one.map(lambda i: hold(tmp_path / "never") if i else i, [0, 1], chunksize=chunksize)
    until(lambda: any(job.running() for job in one.jobs()), "RUNNING")
    if chunksize in (None, 1):
        assert next(results) == 0
    one.cancel_all()
    got, error = take(results)
    assert got == []
    assert isinstance(error, JobCancelledError)


def test_cancel_of_one_chunk_with_grace(one: JobPool, tmp_path: Path) -> None:
    results = one.map(hold, [tmp_path / "never"] * 2, chunksize=1)
    first, second = one.jobs()
    until(first.running, "RUNNING")
    assert first.cancel(grace=PATIENCE)  # the call's SystemExit is none of its results
    _, error = take(results)
    assert isinstance(error, JobCancelledError)
    assert "hold[0]" in str(error)
    assert second.wait(PATIENCE)
    assert second.cancelled()


@every_chunksize
def test_death(one: JobPool, chunksize: int | None) -> None:
    results = one.map(lambda i: os.kill(os.getpid(), signal.SIGKILL), [0, 1], chunksize=chunksize)
    got, error = take(results)
    assert got == []
    assert isinstance(error, WorkerDiedError)
    assert error.signal == signal.SIGKILL
    assert list(one.map(double, [1, 2])) == [2, 4]


def test_retries_make_all_calls_of_a_chunk_again(one: JobPool, tmp_path: Path) -> None:
    def call(i: int) -> int:
        if i == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        (tmp_path / f"{i} {os.getpid()}").touch()
        return i

    assert list(one.options(retries=1).map(call, range(3), chunksize=3)) == [0, 1, 2]
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["0", "0", "1", "2", "d"]


def test_the_pool_is_shut_down_meanwhile(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1)
    results = pool.map(double, itertools.count(), chunksize=1)
    assert next(results) == 0
    pool.shutdown()
    got, error = take(results)
    assert got == list(range(2, 2 * len(got) + 1, 2))
    assert len(got) >= 2
    assert isinstance(error, PoolClosedError)


# --- the options ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("fifty")
def test_an_automatic_chunk_may_take_longer_than_the_timeout_of_a_call(pool: JobPool) -> None:
    naps = pool.options(timeout=0.5).map(time.sleep, [0.02] * 50)  # 1 s
    assert list(naps) == [None] * 50


@pytest.mark.usefixtures("fifty")
def test_a_call_passes_its_timeout(one: JobPool) -> None:
    for count in (1, 2):
        got, error = take(one.options(timeout=0.2).map(time.sleep, [600] * count))
        assert got == []
        assert isinstance(error, JobTimeoutError)


def test_a_timeout_is_for_a_given_chunk(one: JobPool) -> None:
    view = one.options(timeout=0.5)
    assert list(view.map(time.sleep, [0.0] * 3, chunksize=3)) == [None] * 3
    got, error = take(view.map(time.sleep, [0.4] * 3, chunksize=3))
    assert got == []
    assert isinstance(error, JobTimeoutError)


def test_names(one: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    for size, view, names in (
        (1, one, ["hold[0]", "hold[1]", "hold[2]"]),
        (None, one, ["hold[0]", "hold[1]", "hold[2]"]),
        (2, one, ["hold[0:2]", "hold[2:4]", "hold[4]"]),
        (3, one.options(name="sweep"), ["sweep[0:3]", "sweep[3:5]"]),
    ):
        results = view.map(hold, [gate] * 5, chunksize=size)
        assert [job.name for job in one.jobs()] == names
        results.close()
        until(lambda: not one.jobs(), "cancelled")


# --- ahead of the consumer, and not too far ------------------------------------------------------


@every_chunksize
def test_endless(one: JobPool, chunksize: int | None) -> None:
    taken = itertools.count()
    results = one.map(double, taken, chunksize=chunksize)
    assert [next(results) for _ in range(2000)] == [2 * i for i in range(2000)]
    assert next(taken) < 2000 + mapping.ITEMS_AHEAD + 3 * MOST_CALLS
    results.close()
    until(lambda: not one.jobs(), "the rest of the map cancelled")


def test_how_far_ahead(two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer waits for the first result, while the others come."""

    def check(make: Callable[[int], Any], chunksize: int, *, least: int, most: int) -> None:
        gate = tmp_path / f"{chunksize} {make.__qualname__}"
        taken: list[int] = []

        def items() -> Iterator[int]:
            for i in itertools.count():
                taken.append(i)
                yield i

        def call(i: int) -> Any:
            return hold(gate, i) if i == 0 else make(i)

        results = two.map(call, items(), chunksize=chunksize)
        first: list[Any] = []
        consumer = threading.Thread(target=lambda: first.append(next(results)))
        consumer.start()
        until(lambda: len(taken) >= least and len(two.jobs()) == 1, "the others have ended")
        assert len(taken) <= most
        gate.touch()
        consumer.join()
        assert first == [0]
        results.close()

    monkeypatch.setattr(mapping, "JOBS_AHEAD", 40)
    monkeypatch.setattr(mapping, "ITEMS_AHEAD", 100)
    check(abs, 1, least=40, most=40)
    check(abs, 5, least=100, most=100)
    check(abs, 1000, least=5000, most=5000)  # as many as keep two workers busy
    monkeypatch.setattr(mapping, "BYTES_AHEAD", 100_000)
    check(bytes_of, 1, least=11, most=15)  # 10 results there, and what was under way


def bytes_of(_: int) -> bytes:
    return bytes(10_000)


def test_large_arguments_make_small_chunks(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    learn = ChunkSize.learn

    def spy(size: ChunkSize, count: int, seconds: float, nbytes: int = 0) -> None:
        calls.append(count)
        learn(size, count, 0.0, nbytes)

    monkeypatch.setattr(ChunkSize, "learn", spy)
    arrays = (np.zeros(MOST_BYTES // 32) for _ in range(50))  # a quarter of it
    assert list(pool.map(len, arrays)) == [MOST_BYTES // 32] * 50
    assert 2 <= max(calls) <= 4
    calls.clear()
    assert len(list(pool.map(lambda _: np.zeros(MOST_BYTES // 32), range(50)))) == 50
    assert 2 <= max(calls) <= 4


def test_a_slow_iterable_makes_small_chunks(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def spy(size: ChunkSize, count: int, seconds: float, nbytes: int = 0) -> None:
        calls.append(count)
        size.calls = 1000

    def items() -> Iterator[int]:
        for i in range(40):
            clock.ahead += 0.005
            yield i

    clock = Clock()
    monkeypatch.setattr(mapping, "perf_counter", clock)
    monkeypatch.setattr(ChunkSize, "learn", spy)
    assert list(pool.map(abs, items())) == list(range(40))
    assert max(calls) <= 3


def test_results_and_jobs_are_let_go(pool: JobPool) -> None:
    results = pool.map(np.zeros, range(5), chunksize=2)
    jobs = [weakref.ref(job) for job in pool.jobs()]
    for result in results:
        last = weakref.ref(result)
        del result
        assert last() is None
    until(lambda: not any(job() for job in jobs), "the jobs are gone")


def test_an_error_holds_nothing(pool: JobPool) -> None:
    """No cycle keeps a mapping alive once its error is gone: that would be the collector's."""

    class Items:
        def __iter__(self) -> Iterator[int]:
            yield 1
            raise LookupError

    for function, items in ((lambda i: 1 // i, [0]), (double, Items())):
        results = pool.map(function, items, chunksize=1)
        run: Any = results._progress
        gone = weakref.ref(run)
        del run
        raised = False
        try:
            list(results)
        except (ZeroDivisionError, LookupError):
            raised = True
        assert raised
        del results
        assert gone() is None


@pytest.mark.local
def test_a_worker_loads_no_more_for_a_chunk(one: JobPool) -> None:
    (loaded,) = one.map(eval, ["sorted(__import__('sys').modules)"])
    assert "primitive_jobs._wire.chunk" in loaded
    assert not {"primitive_jobs.mapping", "primitive_jobs.pool", "numpy"} & set(loaded)


def test_map_loses_nothing(make_pool: MakePool) -> None:
    with make_pool(2) as pool:
        results = pool.map(abs, range(-100, 0))
        until(lambda: not pool.jobs(), "the end of the jobs that map submits ahead")
        assert list(results) == list(range(100, 0, -1))


# --- ends before the last result -----------------------------------------------------------------


def test_timeout(one: JobPool, tmp_path: Path) -> None:
    with pytest.raises(ResultTimeoutError):
        list(one.map(hold, [tmp_path / "gate"], timeout=0.05))
    until(lambda: not one.jobs(), "the map's job cancelled")


@pytest.mark.parametrize("end", ["close", "drop", "drop unused"])
def test_the_rest_is_cancelled(one: JobPool, tmp_path: Path, end: str) -> None:
    gate = tmp_path / "gate"
    results = one.map(lambda i: i if i == 0 else hold(gate, i), range(3))
    if end != "drop unused":
        assert next(results) == 0
    until(lambda: len(one.jobs()) == 2, "the first has ended")
    jobs = one.jobs()
    if end == "close":
        results.close()
    del results
    assert not wait(jobs, PATIENCE).not_done
    assert all(job.cancelled() for job in jobs)


@sampled(193)
def test_interrupts(
    two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    # What is raised in a finalizer goes there; pytest would keep it, and with it the iterator.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    never = tmp_path / "never"
    until(lambda: not two.jobs(), "idle")

    def start(place: int) -> bool:
        hit = interrupted(lambda: two.map(hold, itertools.repeat(never)), place)
        until(lambda: not two.jobs(), f"nothing runs after an interrupt at {place}")
        return hit

    def consume(place: int) -> bool:
        results = [two.map(lambda i: [i], range(3), chunksize=2)]
        hit = interrupted(lambda: list(results.pop()), place)
        until(lambda: not two.jobs(), f"nothing runs after an interrupt at {place}")
        return hit

    assert interrupt_everywhere(start, stride) * stride > 450
    assert interrupt_everywhere(consume, stride) * stride > 450
    assert list(two.map(double, range(100))) == list(range(0, 200, 2))
