"""A large array that many tasks of joblib's are given: sent once, and each task's own."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from helpers import PATIENCE, descriptors, until
from joblib import Parallel, delayed

import primitive_jobs.joblib
from primitive_jobs import JobPool
from primitive_jobs._engine import repeated
from primitive_jobs._engine.repeated import RepeatedBuffers
from primitive_jobs._wire import pickling
from primitive_jobs._wire.copies import LEAST, Copies, Kept
from primitive_jobs._wire.messages import Filed, Kind, Message
from primitive_jobs._wire.parcel import Parcel
from primitive_jobs._wire.rows import Need

MakePool = Callable[..., JobPool]
COUNT = 24
SIZE = LEAST // 8 + 1000  # float64


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


def read_only() -> Any:
    array = data()
    array.flags.writeable = False
    return array


KINDS["read-only"] = read_only


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_all_kinds_arrive_as_with_submit(pool: JobPool, kind: str) -> None:
    array = KINDS[kind]()
    expected = pool.submit(as_submitted, array).result(PATIENCE)
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        found = Parallel(batch_size=2)(delayed(as_submitted)(array) for _ in range(8))
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


def test_a_call_has_it_as_it_was_first(pool: JobPool, tmp_path: Path) -> None:
    """As joblib's own processes."""
    array = data()

    def look(array: Any, place: int) -> float:
        (tmp_path / str(place)).touch()
        return float(array[0])

    def tasks() -> Iterator[Any]:
        yield delayed(look)(array, 0)
        yield delayed(look)(array, 1)
        until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "both have run")
        array[0] = 99
        yield delayed(look)(array, 2)
        yield delayed(look)(array, 3)

    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        assert Parallel(batch_size=1, pre_dispatch=2)(tasks()) == [0.0] * 4


def test_an_array_that_has_the_place_of_one_that_is_gone(parallel: Parallel) -> None:
    tasks = (delayed(np.max)(np.full(SIZE, float(i))) for i in range(COUNT))
    assert parallel(tasks) == list(map(float, range(COUNT)))


def test_who_owns_the_memory_is_what_it_is_known_by() -> None:
    memory = ctypes.create_string_buffer(LEAST)
    address = ctypes.addressof(memory)
    buffers = RepeatedBuffers()

    def placed(owner: Any) -> Any:
        return buffers.placed(memoryview(np.frombuffer(owner, np.uint8)))

    def owner() -> Any:
        return (ctypes.c_ubyte * LEAST).from_address(address)

    first = np.frombuffer(memory, np.uint8)
    one, again = buffers.placed(memoryview(first)), buffers.placed(memoryview(first))
    assert isinstance(one, Need)
    assert isinstance(again, Need)
    assert one.source is again.source
    other = np.frombuffer(owner(), np.uint8)
    elsewhere = buffers.placed(memoryview(other))
    assert isinstance(elsewhere, Need)
    assert elsewhere.source is not one.source


def test_no_more_than_so_many_are_sent_apart(pool: JobPool) -> None:
    arrays = [data(i) for i in range(repeated._MOST + 8)]
    with joblib.parallel_config(backend="primitive_jobs", pool=pool):
        found = Parallel(batch_size=len(arrays) // 2)(delayed(np.min)(each) for each in arrays)
    assert found == list(map(float, range(len(arrays))))


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


def take_in() -> Kept:
    """What a worker makes of an array that is sent apart."""
    content = memoryview(data()).cast("B")
    message = Filed(Kind.SHARE, 1, memoryview(b"N."), (content,), 0, b"keep")
    message.file = Parcel(b"N.", (content,), to_file=True)
    message.file.file()
    return Kept(message, lambda fd: fd)


def array_of(kept: Kept) -> Any:
    return np.frombuffer(kept.mapped(), float)


def place_of(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_mapping_that_was_only_read_is_given_out_again() -> None:
    kept = take_in()
    array = array_of(kept)
    assert array.sum() == data().sum()
    place = place_of(array)
    del array
    again, other = array_of(kept), array_of(kept)
    assert place_of(again) == place
    assert place_of(other) != place
    again[5] = other[6] = -1
    assert (other[5], again[6]) == (5, 6)


def test_a_mapping_that_was_written_to_is_not() -> None:
    kept = take_in()
    for place in (0, SIZE // 2, SIZE - 1):
        array = array_of(kept)
        assert array.sum() == data().sum()
        array[place] = -1
        view = array[:10]
        del array
        assert kept.spare is None
        del view
        assert kept.spare is None


def test_a_file_that_a_job_has_closed() -> None:
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
        first, second = array_of(kept), array_of(kept)
        first[0] = -1
        assert (second == data()).all()


def test_without_a_page_map_each_has_a_mapping_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError

    kept = take_in()
    monkeypatch.setattr(os, "pread", refuse)
    array = array_of(kept)
    del array
    assert kept.spare is None
    assert (array_of(kept) == data()).all()


def test_what_came_without_a_file_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    content = data()
    message = Message(Kind.SHARE, 3, b"N.", (memoryview(content).cast("B"),))
    monkeypatch.setitem(pickling.received, 3, message)
    first = np.frombuffer(Copies(3).new(), float)
    first[0] = -1
    assert content[0] == 0
    assert (np.frombuffer(Copies(3).new(), float) == content).all()
