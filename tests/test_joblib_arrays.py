"""A large array that many tasks of joblib's are given: sent once, and each task's own."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from helpers import PATIENCE, descriptors, until
from joblib import Parallel, delayed

import primitive_jobs.joblib
from primitive_jobs import JobPool
from primitive_jobs._engine import repeated, sources
from primitive_jobs._engine.repeated import RepeatedBuffers
from primitive_jobs._wire import pickling
from primitive_jobs._wire.copies import LEAST, Copies, Kept
from primitive_jobs._wire.messages import Filed, Kind, Message
from primitive_jobs._wire.parcel import HAVE_PACKETS, Parcel
from primitive_jobs._wire.rows import Need

MakePool = Callable[..., JobPool]
COUNT = 24
SIZE = LEAST // 8 + 1000  # float64
SMALL = pickling.OUT_OF_BAND // 8  # the least that is no part of a pickle


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    primitive_jobs.joblib.register()


@pytest.fixture(scope="module")
def pool(workers: JobPool) -> JobPool:
    return workers


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is sent apart."""
    sizes: list[int] = []

    class Counted(repeated.Repeated):
        def __init__(self, buffer: memoryview, owner: Any) -> None:
            super().__init__(buffer, owner)
            sizes.append(buffer.nbytes)

    monkeypatch.setattr(repeated, "Repeated", Counted)
    return sizes


@pytest.fixture(params=[1, 5, "auto"])
def parallel(pool: JobPool, request: pytest.FixtureRequest) -> Iterator[Parallel]:
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        yield Parallel(batch_size=request.param)


def data(start: int = 0, size: int = SIZE) -> Any:
    return np.arange(start, start + size, dtype=float)


def add_one(array: Any) -> float:
    array += 1
    return float(array.sum())


# --- what a task gets -----------------------------------------------------------------------------


def test_every_task_has_it_for_itself_and_it_is_sent_once(
    parallel: Parallel, made: list[int]
) -> None:
    array = data()
    expected = array.sum() + SIZE
    assert parallel(delayed(add_one)(array) for _ in range(COUNT)) == [expected] * COUNT
    assert (array == data()).all()
    assert made == [array.nbytes]


def test_those_who_only_read_have_what_those_who_write_do_not_touch(parallel: Parallel) -> None:
    def read_or_write(array: Any, place: int) -> float:
        if place % 3 == 0:
            array[place] = -1
        return float(array[: COUNT + 1].sum())

    array, total = data(), sum(range(COUNT + 1))
    expected = [total - (i + 1 if i % 3 == 0 else 0) for i in range(COUNT)]
    assert parallel(delayed(read_or_write)(array, i) for i in range(COUNT)) == expected


def test_what_a_task_has_kept_stays_its_own(parallel: Parallel) -> None:
    def keep(array: Any, place: int) -> tuple[int, list[float]]:
        import primitive_jobs

        kept: list[Any] = primitive_jobs.__dict__.setdefault("_kept_by_test", [])
        kept.append((place, array))
        array[0] = place
        return os.getpid(), [float(each[0]) - own for own, each in kept]

    def forget() -> None:
        import primitive_jobs

        primitive_jobs.__dict__.pop("_kept_by_test", None)

    array = data()
    try:
        seen = parallel(delayed(keep)(array, i) for i in range(COUNT))
        assert all(not any(differences) for _, differences in seen)
        assert sum(len(differences) for _, differences in seen) > COUNT
    finally:
        parallel(delayed(forget)() for _ in range(COUNT))


def test_one_buffer_twice_in_a_task(parallel: Parallel) -> None:
    """As with `submit`: one object stays one, and two views of one memory are two."""

    def write(one: Any, same: Any, view: Any) -> tuple[bool, float, float]:
        one[0] = 7
        return one is same, float(view[0, 0]), float(view[-1, -1])

    array = data()
    expected = [(True, 0.0, float(SIZE - 1))] * COUNT
    view = array.reshape(2, -1)
    assert parallel(delayed(write)(array, array, view) for _ in range(COUNT)) == expected


class Table:
    def __init__(self, array: Any) -> None:
        self.array = array

    def write(self, place: int) -> float:
        self.array[place] += 1
        return float(self.array[:COUNT].sum())


def write_to(array: Any, place: int) -> float:
    return Table(array).write(place)


@pytest.mark.parametrize("how", ["closure", "partial", "method"])
def test_one_that_belongs_to_the_function(parallel: Parallel, made: list[int], how: str) -> None:
    array = np.zeros(SIZE)

    def write(place: int) -> float:
        return write_to(array, place)

    function: Any = {
        "closure": write,
        "partial": functools.partial(write_to, array),
        "method": Table(array).write,
    }[how]
    assert parallel(delayed(function)(i) for i in range(COUNT)) == [1.0] * COUNT
    assert made == [array.nbytes]
    assert not array.any()


def as_submitted(value: Any) -> tuple[Any, ...]:
    array = value.to_numpy() if hasattr(value, "to_numpy") else value
    flags = array.flags
    found = str(type(value)), str(array.dtype), flags.writeable, flags.f_contiguous, array.shape
    return *found, repr(np.ma.getmaskarray(array).ravel()[:9]), repr(array.ravel()[:9])


KINDS: dict[str, Callable[[], Any]] = {
    "Fortran": lambda: np.asfortranarray(data(size=1000 * 400).reshape(1000, 400)),
    "strided": lambda: data(size=4 * SIZE)[::2],
    "view": lambda: data(size=4 * SIZE)[SIZE:],
    "transposed": lambda: data(size=1000 * 400).reshape(1000, 400).T,
    "objects": lambda: np.array(["text", None] * SIZE, dtype=object),
    "structured": lambda: np.zeros(SIZE, dtype=[("a", float), ("b", int)]),
    "matrix": lambda: np.matrix(data(size=1000 * 400).reshape(1000, 400)),
    "masked": lambda: np.ma.masked_less(data(), 10),
    "times": lambda: np.arange(SIZE).astype("datetime64[s]"),
    "frame": lambda: pd.DataFrame({"a": data(), "b": data(1), "c": np.arange(SIZE)}),
    "from memory": lambda: np.frombuffer(bytearray(8 * SIZE), float),
    "from bytes": lambda: np.frombuffer(bytes(8 * SIZE), float),
}


def read_only(size: int = SIZE) -> Any:
    array = data(size=size)
    array.flags.writeable = False
    return array


KINDS["read-only"] = read_only
KINDS["small"] = lambda: data(size=SMALL)
KINDS["small read-only"] = lambda: read_only(SMALL)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_all_kinds_arrive_as_with_submit(pool: JobPool, kind: str) -> None:
    array = KINDS[kind]()
    expected = pool.submit(as_submitted, array).result(PATIENCE)
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        parallel = Parallel(batch_size=2, pre_dispatch="all")  # some wait for a worker
        found = parallel(delayed(as_submitted)(array) for _ in range(8))
    assert found == [expected] * 8


# --- when it is taken -----------------------------------------------------------------------------


def test_each_call_takes_it_anew(pool: JobPool) -> None:
    array = data()
    with (
        joblib.parallel_config(backend="primitive_jobs", pool=pool),
        Parallel(batch_size=1) as parallel,
    ):
        for step in range(3):
            array[:] = step
            assert parallel(delayed(np.max)(array) for _ in range(4)) == [step] * 4


RINGS: dict[str, Callable[[int], list[Any]]] = {
    "views": lambda count: list(np.empty((count, SIZE))),
    "objects": lambda count: [np.empty(SIZE) for _ in range(count)],
    "buffers": lambda count: [bytearray(8 * SIZE) for _ in range(count)],
}


def fresh(place: Any) -> Any:
    """Another object over the same memory, where it is no array that owns it."""
    if type(place) is bytearray:
        return np.frombuffer(place)
    return place if place.base is None else place[:]


@pytest.mark.parametrize("count", [5, 12])  # fewer and more than are kept
@pytest.mark.parametrize("kind", RINGS)
def test_a_ring_that_is_refilled(pool: JobPool, kind: str, count: int) -> None:
    """Each frame goes to two tasks, which joblib takes together."""
    ring = RINGS[kind](count)

    def ends(array: Any) -> tuple[float, float]:
        return float(array[0]), float(array[-1])

    def tasks() -> Iterator[Any]:
        for number in range(40):
            place = ring[number % len(ring)]
            fresh(place)[:] = number
            yield delayed(ends)(fresh(place))
            yield delayed(ends)(fresh(place))

    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        found = Parallel(batch_size=1)(tasks())
    assert found == [(number, number) for number in range(40) for _ in range(2)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("size", [5, SMALL, SIZE])
def test_a_task_has_an_array_as_it_was_when_its_batch_was_submitted(
    pool: JobPool, size: int, batch_size: int
) -> None:
    """Also where it waits for a worker until joblib has taken more from the iterable."""
    array = data(size=size)
    together = 2 * batch_size  # so many joblib takes at a time

    def tasks() -> Iterator[Any]:
        for number in range(8 * together):
            if number % together == 0:
                array[-1] = number // together
            yield delayed(np.take)(array, [-1])

    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        found = Parallel(batch_size=batch_size, pre_dispatch=2 * together)(tasks())
    assert [float(last) for (last,) in found] == [i // together for i in range(8 * together)]


def test_an_array_that_has_the_place_of_one_that_is_gone(parallel: Parallel) -> None:
    tasks = (delayed(np.max)(np.full(SIZE, float(i))) for i in range(COUNT))
    assert parallel(tasks) == list(map(float, range(COUNT)))


def source_of(buffers: RepeatedBuffers, array: Any) -> Any:
    placed = buffers.placed(memoryview(array).cast("B"))
    return placed.source if isinstance(placed, Need) else None


@pytest.mark.parametrize("packets", [True, False])
def test_what_is_in_it_is_what_it_is_known_by(
    monkeypatch: pytest.MonkeyPatch, packets: bool
) -> None:
    monkeypatch.setattr(sources, "HAVE_PACKETS", packets and HAVE_PACKETS)
    buffers, array = RepeatedBuffers(), data()
    first = source_of(buffers, array)
    assert first is not None
    assert source_of(buffers, array) is first
    assert source_of(buffers, array[:]) is first
    for place in (-1, 0, SIZE // 2):
        array[place] += 0.5
        other = source_of(buffers, array)
        assert other is not None
        assert other is not first
        assert source_of(buffers, array) is other
        first = other


def test_what_nobody_can_have_again_is_let_go() -> None:
    buffers, array, other = RepeatedBuffers(), data(), data()
    source = weakref.ref(source_of(buffers, array))
    source_of(buffers, array)
    source_of(buffers, other)
    assert source() is not None
    del array
    source_of(buffers, other)
    assert source() is None


def test_what_came_again_is_kept_up_to_a_number_and_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kept(arrays: list[Any]) -> list[bool]:
        buffers = RepeatedBuffers()
        found = [
            weakref.ref(source_of(buffers, array)) for array in arrays if source_of(buffers, array)
        ]
        return [source() is not None for source in found]

    arrays = [data(i) for i in range(repeated._KEPT + 1)]
    assert kept(arrays) == [False] + [True] * repeated._KEPT
    monkeypatch.setattr(repeated, "_KEPT_BYTES", 2 * 8 * SIZE)
    assert kept(arrays[:4]) == [False, False, True, True]
    monkeypatch.setattr(repeated, "_KEPT_BYTES", 1)
    assert kept(arrays[:2]) == [False, True]


def test_one_that_is_refilled_is_sent_apart_only_so_often() -> None:
    buffers, array, found = RepeatedBuffers(), data(), []
    for number in range(repeated._MOST + 8):
        array[0] = number
        found.append(source_of(buffers, array))
    assert [source is not None for source in found] == [True] * repeated._MOST + [False] * 8
    found[0] = None  # a job has ended
    assert source_of(buffers, array) is not None


def test_no_more_than_so_many_are_sent_apart(pool: JobPool) -> None:
    arrays = [data(i) for i in range(repeated._MOST + 8)]
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        found = Parallel(batch_size=len(arrays) // 2)(delayed(np.min)(each) for each in arrays)
    assert found == list(map(float, range(len(arrays))))


@pytest.mark.parametrize(("step", "wanted"), [(1 / 1024, 4 * 8 / 1024), (1.0, 0.1)])
def test_how_long_a_batch_should_run_follows_from_what_comparisons_take(
    monkeypatch: pytest.MonkeyPatch, step: float, wanted: float
) -> None:
    clock = SimpleNamespace(perf_counter=functools.partial(next, itertools.count(0, step)))
    monkeypatch.setattr("primitive_jobs._engine.repeated.time", clock)
    buffers, array = RepeatedBuffers(8), data()
    assert buffers.seconds_wanted() == 0
    for _ in range(4):
        buffers.next_batch()(memoryview(array).cast("B"))
    assert buffers.seconds_wanted() == wanted


def test_batches_get_longer_where_comparisons_take_long(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These tasks are long enough for one to be a batch."""
    batches: list[int] = []
    plain = RepeatedBuffers.next_batch

    def next_batch(buffers: RepeatedBuffers) -> Any:
        batches[-1] += 1
        return plain(buffers)

    monkeypatch.setattr(RepeatedBuffers, "next_batch", next_batch)
    for wanted in (0, 1000):
        batches.append(0)
        monkeypatch.setattr(RepeatedBuffers, "seconds_wanted", lambda _, wanted=wanted: wanted)
        with joblib.parallel_config(backend="primitive_jobs", pool=pool):
            Parallel()(delayed(time.sleep)(0.03) for _ in range(COUNT))
    assert batches[0] == COUNT
    assert batches[1] < COUNT


def test_small_ones_go_with_their_tasks(parallel: Parallel, made: list[int]) -> None:
    array = data(size=LEAST // 8 - 1)
    assert parallel(delayed(np.max)(array) for _ in range(COUNT)) == [array[-1]] * COUNT
    assert not made


# --- what becomes of it ---------------------------------------------------------------------------


def received() -> int:
    return len(pickling.received)


@pytest.mark.local
def test_it_goes_with_the_call(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    array = data()
    alive: list[Any] = []
    before = descriptors()
    plain = RepeatedBuffers.placed

    def placed(buffers: RepeatedBuffers, buffer: memoryview) -> Any:
        found = plain(buffers, buffer)
        alive.append(pool.submit(received).result(PATIENCE))
        return found

    monkeypatch.setattr(RepeatedBuffers, "placed", placed)
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        Parallel(batch_size=1)(delayed(np.max)(array) for _ in range(COUNT))
    assert max(alive) > 0
    gc.collect()
    until(lambda: not any(pool.submit(received).result(PATIENCE) for _ in range(4)), "let go")
    until(lambda: descriptors() <= before, "descriptors are back")


@pytest.mark.local
def test_a_worker_that_dies_is_replaced_by_one_that_gets_it(
    make_pool: MakePool, tmp_path: Path
) -> None:
    def die_once(array: Any, place: int) -> float:
        mark = tmp_path / "mark"
        if place == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(array[place])

    array = data()
    with (
        make_pool(2, spare_workers=0) as pool,
        joblib.parallel_config(backend="primitive_jobs", pool=pool, retries=1),
    ):
        found = Parallel(batch_size=1)(delayed(die_once)(array, i) for i in range(COUNT))
    assert found == list(map(float, range(COUNT)))
    assert (tmp_path / "mark").exists()


def test_calls_in_several_threads(pool: JobPool) -> None:
    array, found = data(), dict[int, list[float]]()

    def call(number: int) -> None:
        with joblib.parallel_config(backend="primitive_jobs", pool=pool):
            found[number] = Parallel()(delayed(add_one)(array) for _ in range(COUNT))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == dict.fromkeys(range(3), [data().sum() + SIZE] * COUNT)


# --- in a worker ----------------------------------------------------------------------------------


def mappings() -> int:
    """How many this worker has of files that were sent, beside one for each content."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return sum("memfd:primitive_jobs" in line for line in lines) - len(pickling.received)


@pytest.mark.local
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_a_mapping_that_no_task_has_stays_for_the_next_one_alone(
    pool: JobPool, batch_size: int
) -> None:
    arrays = [data(i) for i in range(repeated._KEPT)]

    def look(array: Any) -> int:
        assert array.sum()
        return mappings()

    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        parallel = Parallel(batch_size=batch_size)
        found = parallel(delayed(look)(array) for array in arrays for _ in range(4))
        without = min(Parallel()(delayed(mappings)() for _ in range(4)))
    assert max(found) <= without + 1


NUMBER = -1  # no source has it


@pytest.fixture
def take_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Kept]:
    """Has this process have an array that is sent apart, as a worker has it."""

    def take_in() -> Kept:
        content = memoryview(data()).cast("B")
        message = Filed(Kind.SHARE, NUMBER, memoryview(b"N."), (content,), 0, b"keep")
        message.file = Parcel(b"N.", (content,), to_file=True)
        message.file.file()
        kept = Kept(message, lambda fd: fd)
        monkeypatch.setitem(pickling.received, NUMBER, kept)
        return kept

    return take_in


@pytest.fixture
def copies(take_in: Callable[[], Kept]) -> Copies:
    take_in()
    return Copies(NUMBER)


def array_of(copies: Copies) -> Any:
    return np.frombuffer(copies.new(is_last=False), float)


def place_of(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_mapping_that_was_only_read_is_given_out_again(copies: Copies) -> None:
    array = array_of(copies)
    assert array.sum() == data().sum()
    place = place_of(array)
    del array
    again, other = array_of(copies), array_of(copies)
    assert place_of(again) == place
    assert place_of(other) != place
    again[5] = other[6] = -1
    assert (other[5], again[6]) == (5, 6)


def test_a_mapping_that_was_written_to_is_not(copies: Copies) -> None:
    for place in (0, SIZE // 2, SIZE - 1):
        array = array_of(copies)
        assert array.sum() == data().sum()
        array[place] = -1
        view = array[:10]
        del array
        assert copies._spare is None
        del view
        assert copies._spare is None


def test_after_the_last_call_of_a_job_no_mapping_stays(copies: Copies) -> None:
    array_of(copies)
    assert copies._spare is not None
    array = np.frombuffer(copies.new(), float)
    assert copies._spare is None
    assert (array == data()).all()
    del array
    assert copies._spare is None


def test_what_a_finalizer_brings_back_keeps_its_mapping(copies: Copies) -> None:
    found: list[memoryview] = []

    class Holder:
        itself: object
        buffer: memoryview

        def __del__(self) -> None:
            found.append(self.buffer)

    holder = Holder()
    holder.itself, holder.buffer = holder, copies.new(is_last=False)
    del holder
    gc.collect()
    other = array_of(copies)
    np.frombuffer(found[0], float)[0] = 77
    assert other[0] == 0


def test_without_numpy_each_has_a_mapping_of_its_own(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("primitive_jobs._wire.copies.imported", lambda name: None)
    for _ in range(2):
        array = array_of(copies)
        assert (array == data()).all()
        array[0] = -1
        del array
        assert copies._spare is None


def test_a_file_that_a_job_has_closed(take_in: Callable[[], Kept]) -> None:
    kept = take_in()
    assert kept._file is not None
    fd = kept._file.fd
    os.close(fd)
    for other in (False, True):
        if other:
            spare = os.open(os.devnull, os.O_RDONLY)
            if spare != fd:
                os.dup2(spare, fd)
                os.close(spare)
        first, second = array_of(Copies(NUMBER)), array_of(Copies(NUMBER))
        first[0] = -1
        assert (second == data()).all()


@pytest.mark.parametrize("call", ["dup", "fstat"])
def test_a_file_that_cannot_be_kept(
    take_in: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        take_in()
    first, second = array_of(Copies(NUMBER)), array_of(Copies(NUMBER))
    first[0] = -1
    assert (second == data()).all()


def test_without_a_page_map_each_has_a_mapping_of_its_own(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError

    monkeypatch.setattr(os, "pread", refuse)
    array = array_of(copies)
    del array
    assert copies._spare is None
    assert (array_of(copies) == data()).all()


def test_what_came_without_a_file_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    content = data()
    message = Message(Kind.SHARE, 3, b"N.", (memoryview(content).cast("B"),))
    monkeypatch.setitem(pickling.received, 3, message)
    first = np.frombuffer(Copies(3).new(), float)
    first[0] = -1
    assert content[0] == 0
    assert (np.frombuffer(Copies(3).new(), float) == content).all()
