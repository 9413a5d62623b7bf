"""Jobs that wait for jobs: one among the arguments of another arrives as its result."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import operator
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import pytest
from helpers import (
    PATIENCE,
    case,
    descriptors,
    double,
    expect,
    fail,
    hold,
    interrupt_everywhere,
    interrupted,
    sampled,
    until,
)

from primitive_jobs import (
    DependencyError,
    InitializerError,
    JobCancelledError,
    JobExecutor,
    JobFailuresWarning,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PoolClosedError,
    PrimitiveJob,
    SerializationError,
    SweepStore,
    WorkerDiedError,
    as_completed,
    gather,
    job_rng,
    race,
    run,
    track,
    wait,
)
from primitive_jobs import pool as pool_module
from primitive_jobs._engine import standing
from primitive_jobs._engine.arguments import replaced
from primitive_jobs._engine.awaited import Awaited, Result
from primitive_jobs._engine.stored import _Read
from primitive_jobs._engine.tracker import StatusTracker
from primitive_jobs._procs.process import WorkerConfig
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs.job import record_of

np = pytest.importorskip("numpy")

cloudpickle.register_pickle_by_value(sys.modules[__name__])

QUEUED, DONE, ERROR = JobStatus.QUEUED, JobStatus.DONE, JobStatus.ERROR
LARGE = 300_000  # numbers of 8 bytes: more than a message carries inside


def any_of(job: Any) -> Any:
    """A job, where the function's type asks for its result."""
    return job


def keep(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def second(_: Any, value: Any) -> Any:
    return value


def total(numbers: Any) -> Any:
    return sum(numbers)


def ones(count: int) -> Any:
    return np.ones(count)


def spoil(array: Any) -> tuple[bool, float]:
    """What an array holds before it is changed, and whether it can be."""
    before = float(array.sum())
    array[:] = -1
    return bool(array.flags.writeable), before


def is_same(one: Any, other: Any) -> bool:
    return one is other


def mark(path: Path) -> None:
    path.touch()


@dataclass
class Model:
    a: Any
    b: Any = None
    c: Any = field(default=None, init=False)
    shared: ClassVar[Any] = None


@dataclass(frozen=True)
class Frozen:
    a: Any


@dataclass(frozen=True, slots=True)
class Slim:
    a: Any
    b: Any


class Plain:
    def __init__(self, a: Any) -> None:
        self.a = a

    def step(self, *_: Any) -> str:
        return "stepped"


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - as users write them


def value_of(holder: Any) -> Any:
    return holder.a


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


# --- what arrives --------------------------------------------------------------------------------


def test_a_job_among_the_arguments_arrives_as_its_result(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate, 21)
    b = two.submit(keep, a, 5, named=a)
    assert b.status() is QUEUED
    assert b.waiting_for == "job 'hold'"
    gate.touch()
    assert b.result(PATIENCE) == ((21, 5), {"named": 21})
    assert a.result(PATIENCE) == 21
    assert b.waiting_for is None
    assert [status.name for status, _ in b.history()][:3] == [
        "INITIALIZING",
        "VALIDATING",
        "QUEUED",
    ]


SHAPES: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (lambda job: job, lambda value: value),
    (lambda job: [job, [job]], lambda value: value[1][0]),
    (lambda job: (1, (job,)), lambda value: value[1][0]),
    (lambda job: {"a": {"b": [job]}}, lambda value: value["a"]["b"][0]),
    (lambda job: Model([job], b=2), lambda value: value.a[0]),
    (lambda job: Model(1, {"x": job}), lambda value: value.b["x"]),
    (lambda job: Frozen((job,)), lambda value: value.a[0]),
    (lambda job: Slim(1, job), lambda value: value.b),
    (lambda job: [Frozen(Model(Slim(job, 2)))], lambda value: value[0].a.a.a),
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_at_any_depth(pool: JobPool, shape: int) -> None:
    put, get = SHAPES[shape]
    job = pool.submit(double, 4)
    assert get(pool.submit(second, 0, put(job)).result(PATIENCE)) == 8
    job.result(PATIENCE)
    assert get(pool.submit(second, None, put(job)).result(PATIENCE)) == 8, "ended, and looked at"


def test_what_the_caller_has_is_not_changed(pool: JobPool) -> None:
    job = pool.submit(double, 4)
    args: list[Any] = [job, {"x": job}, Model(job), Frozen(job)]
    before = copy.copy(args)
    arrived = pool.submit(second, 0, args).result(PATIENCE)
    assert arrived[:2] == [8, {"x": 8}]
    assert (arrived[2].a, arrived[3].a) == (8, 8)
    assert args == before
    assert args[1]["x"] is job
    assert args[2].a is job


def test_one_job_is_one_object_and_its_future_too(pool: JobPool) -> None:
    with JobExecutor(pool=pool) as executor:
        future = executor.submit(ones, 3)
        assert pool.submit(is_same, future, [future][0]).result(PATIENCE)
        assert pool.submit(is_same, future.job, future).result(PATIENCE)
        assert executor.submit(total, future).result(PATIENCE) == 3


def test_what_refers_to_itself() -> None:
    job = PrimitiveJob(double, 1)
    loop: list[Any] = [job]
    loop.append((loop, [loop]))
    table: dict[str, Any] = {"loop": loop}
    table["self"] = table
    model = Model(table)
    model.b = model
    args, kwargs = replaced((model, loop), {}, lambda _: 7)
    made, copied = args
    assert made.b is made
    assert made.a["self"] is made.a
    assert made.a["loop"] is copied
    assert copied[0] == 7
    assert copied[1][0] is copied
    assert copied[1][1][0] is copied
    assert kwargs == {}


def test_what_holds_no_job_is_not_copied() -> None:
    job = PrimitiveJob(double, 1)
    others: list[Any] = [[1], {"a": 2}, Model(3), (4,)]
    args, _ = replaced((others, job), {}, lambda _: 7)
    assert args[0] is others
    assert args[1] == 7
    Model.shared = job
    try:
        assert replaced(([Model(1)], job), {}, lambda _: 7)[0][0] == [Model(1)], "no field"
    finally:
        Model.shared = None


def test_nested_deep(pool: JobPool) -> None:
    nest: Any = pool.submit(double, 4)
    for _ in range(50):
        nest = ([nest],)
    arrived = pool.submit(second, 0, nest).result(PATIENCE)
    for _ in range(50):
        arrived = arrived[0][0]
    assert arrived == 8


def test_functions_and_classes_of_the_program_arrive_as_their_own(pool: JobPool) -> None:
    made = pool.submit(Plain, 3)
    assert pool.submit(lambda one: isinstance(one, Plain) and one.a, made).result(PATIENCE) == 3
    function: Any = pool.submit(lambda: lambda x: x + 1)
    assert pool.submit(lambda f: f(1), function).result(PATIENCE) == 2


def test_none_is_a_result(pool: JobPool) -> None:
    nothing = pool.submit(keep().__class__)
    assert pool.submit(second, nothing, None).result(PATIENCE) is None
    none = pool.submit(second, 0, None)
    assert pool.submit(keep, none).result(PATIENCE) == ((None,), {})


# --- the bytes -----------------------------------------------------------------------------------


class Unread:
    """Says where it is unpickled."""

    def __init__(self) -> None:
        self.pids = [os.getpid()]

    def __reduce__(self) -> Any:
        return _read_here, (self.pids,)


def _read_here(pids: list[int]) -> Unread:
    made = Unread()
    made.pids = [*pids, os.getpid()]
    return made


@pytest.mark.parametrize("size", [0, 100, 10_000, LARGE])
def test_a_result_is_not_unpickled_on_its_way(two: JobPool, size: int) -> None:
    made: Any = two.submit(lambda: (Unread(), np.ones(size)))
    pids = two.submit(lambda pair: pair[0].pids, made).result(PATIENCE)
    assert os.getpid() not in pids
    assert len(pids) == 2


@pytest.mark.parametrize("size", [10, 10_000, LARGE])
def test_each_job_has_a_result_of_its_own(one: JobPool, size: int) -> None:
    made = one.submit(ones, size)
    users = [one.submit(spoil, made) for _ in range(3)]
    assert [user.result(PATIENCE) for user in users] == [(True, size)] * 3
    assert made.result(PATIENCE).sum() == size
    made.result()[:] = 3
    assert one.submit(spoil, made).result(PATIENCE) == (True, 3 * size), "as it is now"


@pytest.mark.parametrize("size", [10, 10_000, LARGE])
def test_what_the_caller_does_to_a_result_does_not_reach_who_waited(
    two: JobPool, size: int, gate: Path
) -> None:
    made, gated = two.submit(ones, size), two.submit(hold, gate)
    user = two.submit(second, gated, [made])
    array = made.result(PATIENCE)
    array[:] = 7
    gate.touch()
    assert user.result(PATIENCE)[0].sum() == size


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize("size", [10, 10_000, LARGE])
def test_a_result_that_is_there_already(pool: JobPool, size: int, looked_at: bool) -> None:
    made = pool.submit(ones, size)
    assert made.wait(PATIENCE)
    if looked_at:
        made.result()
    assert pool.submit(spoil, made).result(PATIENCE) == (True, size)
    assert pool.submit(spoil, made).result(PATIENCE) == (True, size)
    assert made.result().sum() == size


def test_a_large_result_holds_a_descriptor_while_somebody_waits(pool: JobPool, gate: Path) -> None:
    gated = pool.submit(hold, gate)
    pool.submit(double, 1).result(PATIENCE)
    gc.collect()
    before = descriptors()
    made = pool.submit(ones, LARGE)
    users = [pool.submit(second, [made], gated) for _ in range(5)]
    assert made.wait(PATIENCE)
    until(lambda: descriptors() == before + 1, "it is one, whoever waits")
    made.result()
    gate.touch()
    assert all(user.wait(PATIENCE) for user in users)
    del users
    until(lambda: descriptors() <= before, "its descriptor is closed")


def test_large_results_that_nobody_has_asked_for_keep_few_descriptors(pool: JobPool) -> None:
    pool.submit(double, 1).result(PATIENCE)
    gc.collect()
    before = descriptors()
    made = [pool.submit(ones, LARGE + number) for number in range(40)]
    wait(made)
    assert descriptors() <= before + 16
    users = [pool.submit(spoil, job) for job in made]
    assert [user.result(PATIENCE) for user in users] == [(True, LARGE + n) for n in range(40)]
    assert [len(job.result()) for job in made] == [LARGE + n for n in range(40)]
    until(lambda: descriptors() <= before, "nobody has not asked for one")


def test_where_no_descriptor_is_free_the_bytes_are_held(
    two: JobPool, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("primitive_jobs._engine.awaited.file_limit", lambda: 0)
    gated = two.submit(hold, gate)
    made = two.submit(ones, LARGE)
    users = [two.submit(keep, gated, made) for _ in range(2)]
    gate.touch()
    assert [user.result(PATIENCE)[0][1].sum() for user in users] == [LARGE] * 2


def test_the_portable_channel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "WorkerConfig", functools.partial(WorkerConfig, packets=False))
    with JobPool(2) as pool:
        for size in (10, 5_000, LARGE):
            made = pool.submit(ones, size)
            users = [pool.submit(spoil, made) for _ in range(2)]
            assert [user.result(PATIENCE) for user in users] == [(True, size)] * 2
            assert pool.submit(spoil, made).result(PATIENCE) == (True, size)


class OnceOnly:
    """Can be pickled in a worker, and not again."""

    def __reduce__(self) -> Any:
        return _made_anew, (os.getpid(),)


def _made_anew(pid: int) -> Any:
    return OnceOnly() if pid == os.getpid() else threading.Lock()


def test_a_result_that_cannot_be_pickled_again(pool: JobPool) -> None:
    made = pool.submit(OnceOnly)
    made.result(PATIENCE)
    user = pool.submit(keep, made)
    error = user.exception(PATIENCE)
    assert isinstance(error, DependencyError)
    assert "has a result that cannot be sent to it: cannot pickle" in str(error)
    assert isinstance(error.__cause__, TypeError)
    assert error.job is made


def test_a_result_is_pickled_again_where_it_was_read_in_between(two: JobPool) -> None:
    """What is done where a result is missed by the one who ends its job: on a thread of its own."""
    made = two.submit(ones, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Awaited, "expect", lambda _: None)
        patch.setattr(Awaited, "take_unread", lambda _: False)
        gated = two.submit(time.sleep, 0.2)
        user = two.submit(keep, gated, made)
        made.result(PATIENCE)[:] = 2
        assert user.result(PATIENCE)[0][1].sum() in (100, 200), "one or the other"


def test_bytes_of_a_message_are_a_snapshot() -> None:
    buffer = bytearray(b"abc")
    result = Result.of(Message(Kind.RETURNED, 1, memoryview(buffer)))
    buffer[:] = b"xyz"
    assert bytes(result.parcel_for(packets=True).data) == b"abc"


# --- elsewhere -----------------------------------------------------------------------------------


ELSEWHERE: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "`.a`": lambda job: (keep, Plain(job)),
    "closure variable `job`": lambda job: (lambda: job,),
    "has an item": lambda job: (keep, {job}),
    "has a key": lambda job: (keep, {job: 1}),
    ".b": lambda job: (keep, Pair(1, job)),
    "is a method of an object": lambda job: (Plain(job).step,),
    "gives the argument 1": lambda job: (functools.partial(keep, job),),
    "a list, cannot be serialized: its `[0].a[0]`": lambda job: (keep, [Plain([job])]),
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_an_unfinished_job_anywhere_else_is_refused_at_once(
    two: JobPool, gate: Path, place: str
) -> None:
    unfinished = two.submit(hold, gate)
    refused = two.submit(*ELSEWHERE[place](unfinished))
    assert refused.status() is ERROR
    error = refused.exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert place in str(error)
    assert "job hold has not ended" in str(error)
    gate.touch()
    unfinished.result(PATIENCE)
    two.submit(*ELSEWHERE[place](unfinished)).result(PATIENCE)  # a final one travels


def test_a_final_one_travels_as_a_job(pool: JobPool) -> None:
    final = pool.submit(double, 4)
    final.wait(PATIENCE)
    assert pool.submit(final.result).result(PATIENCE) == 8
    box = Plain(final)
    arrived = pool.submit(keep, box, final).result(PATIENCE)[0]
    assert arrived[0].a.job_id() == final.job_id()
    assert arrived[1] == 8


def test_a_job_that_is_both_among_the_arguments_and_elsewhere(two: JobPool, gate: Path) -> None:
    unfinished = two.submit(hold, gate)
    refused = two.submit(keep, unfinished, Plain(unfinished))
    assert isinstance(refused.exception(PATIENCE), SerializationError)
    gate.touch()


def test_what_else_cannot_be_pickled_is_named_beside_a_job(two: JobPool, gate: Path) -> None:
    unfinished = two.submit(hold, gate)
    for args in ((unfinished, threading.Lock()), (threading.Lock(), unfinished)):
        error = two.submit(keep, *args).exception(PATIENCE)
        assert isinstance(error, SerializationError)
        assert "a lock, cannot be serialized" in str(error)
        assert f"argument {1 + (args[0] is unfinished)} of keep()" in str(error)
    gate.touch()


def test_jobs_that_a_method_keeps(two: JobPool, gate: Path) -> None:
    """Real code: ``self.jobs.append(pool.submit(self.step))``."""

    class Runner:
        def __init__(self) -> None:
            self.jobs: list[Any] = []

        def go(self, pool: JobPool) -> None:
            self.jobs.append(pool.submit(self.step, gate))

        def step(self, gate: Path) -> None:
            hold(gate)

    runner = Runner()
    runner.go(two)
    runner.go(two)
    error = runner.jobs[1].exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert "`.jobs[0]`" in str(error)
    gate.touch()
    assert runner.jobs[0].result(PATIENCE) is None


class Careless:
    """Catches all that its pickling raises."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __reduce__(self) -> Any:
        try:
            pickle.dumps(self.job)
        except BaseException:
            return str, ("caught",)
        return str, ("not caught",)


def test_whoever_catches_everything_is_not_waited_for(two: JobPool, gate: Path) -> None:
    unfinished = two.submit(hold, gate)
    assert two.submit(second, 0, Careless(unfinished)).result(PATIENCE) == "caught"
    job = two.submit(keep, unfinished, Careless(unfinished))
    gate.touch()
    assert job.result(PATIENCE) == ((None, "caught"), {})
    assert two.submit(second, 0, Careless(unfinished)).result(PATIENCE) == "not caught"


@dataclass(frozen=True)
class Immutable:
    """Copied by nothing but itself, as what cannot change often is."""

    x: Any

    def __copy__(self) -> Immutable:
        return self

    def __deepcopy__(self, memo: object) -> Immutable:
        return self


@dataclass
class Counted:
    """Its pickling copies what is in it, and tells how often it was."""

    x: Any
    times: int = 0
    __private: int = 7

    def __getstate__(self) -> dict[str, Any]:
        return {**copy.deepcopy(self.__dict__), "times": self.times + 1}


@dataclass
class Slotted:
    __slots__ = ("__hidden", "x")
    x: Any

    def hide(self, value: int) -> Slotted:
        self.__hidden = value
        return self

    def hidden(self) -> int:
        return self.__hidden


@dataclass
class Listed(list[int]):
    """Made by more than `object`."""

    x: Any = None


def test_what_the_caller_has_is_not_changed_however_it_is_copied(two: JobPool, gate: Path) -> None:
    job = two.submit(hold, gate, 3)
    immutable, counted, slotted, listed = (
        Immutable(job),
        Counted(job),
        Slotted(job).hide(5),
        Listed(job),
    )
    mine = [immutable, counted, slotted, listed]
    got = two.submit(keep, mine)
    assert [each.x for each in (immutable, counted, slotted, listed)] == [job] * 4
    gate.touch()
    ((found,), _) = got.result(PATIENCE)
    assert [each.x for each in found] == [3] * 4
    assert (found[1].times, counted.times) == (2, 0), "once on its way there, once back"
    assert found[2].hidden() == 5
    assert [each.x for each in (immutable, counted, slotted, listed)] == [job] * 4


@dataclass
class Raising:
    x: Any

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            raise ValueError("not now")
        return super().__getattribute__(name)


@dataclass
class ListedOnce(list[int]):
    x: Any = None

    def __copy__(self) -> ListedOnce:
        return self


def test_what_cannot_be_looked_into_is_an_error_of_the_job(two: JobPool, gate: Path) -> None:
    job = two.submit(hold, gate)
    deep: Any = job
    for _ in range(20_000):
        deep = (deep,)
    for argument, words in (
        ([job, Raising(1)], "ValueError: not now"),
        (deep, "cannot be"),
        (ListedOnce(job), "a ListedOnce cannot be copied"),
    ):
        error = two.submit(keep, argument).exception(PATIENCE)
        assert isinstance(error, SerializationError)
        assert words in str(error)
    gate.touch()


def test_what_comes_between_the_delivery_and_the_end_has_the_original(
    two: JobPool, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dispatcher has looked for those that wait; one comes, before the end is to be seen."""
    came: list[PrimitiveJob[Any]] = []
    job = two.submit(hold, gate, [1, 2])
    settle = StatusTracker.settle

    def with_one_more(tracker: StatusTracker, *args: Any) -> Any:
        if came or tracker is not record_of(job).tracker:
            return settle(tracker, *args)
        came.append(two.submit(keep, job))
        ended = settle(tracker, *args)
        job.result().append(3)  # by somebody who is faster than all that follows
        return ended

    monkeypatch.setattr(StatusTracker, "settle", with_one_more)
    two.submit(keep, job)
    gate.touch()
    until(lambda: came, "it has come")
    assert came[0].result(PATIENCE) == (([1, 2],), {})
    assert job.result(PATIENCE) == [1, 2, 3]


def test_a_failure_in_a_store_is_not_read_by_the_pools_thread(
    two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long_failure(n: int) -> None:
        raise ValueError("x" * 3000)

    threads: set[str] = set()
    body: Any = vars(_Read)["body"]

    def noting(read: _Read) -> Any:
        threads.add(threading.current_thread().name)
        return body.fget(read)

    with SweepStore(tmp_path / "store") as store:
        job = store.function(long_failure, version="1", retry_errors=False).submit(two, 1)
        assert isinstance(job.exception(PATIENCE), ValueError)
    monkeypatch.setattr(_Read, "body", property(noting, body.fset))
    with SweepStore(tmp_path / "store") as store:
        job = store.function(long_failure, version="1", retry_errors=False).submit(two, 1)
        error = two.submit(keep, job).exception(PATIENCE)
        assert isinstance(error, DependencyError)
        assert str(error).endswith("which it waits for, failed")
        assert isinstance(error.__cause__, ValueError)
    assert threads == {threading.current_thread().name}


def test_pickling_a_job_outside_of_a_submit_waits_as_before(two: JobPool, gate: Path) -> None:
    unfinished = two.submit(hold, gate, 3)
    timer = threading.Timer(0.1, gate.touch)
    timer.start()
    assert pickle.loads(pickle.dumps(unfinished)).result() == 3
    timer.join()


def test_one_that_is_not_submitted_is_refused(pool: JobPool) -> None:
    made = PrimitiveJob(double, 1)
    error = pool.submit(keep, [made]).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert "argument 1 of keep(), a list, cannot be serialized: its `[0]`" in str(error)
    assert "job double is not submitted yet: submit it first" in str(error)
    cancelled = PrimitiveJob(double, 1)
    cancelled.cancel()
    error = pool.submit(keep, cancelled).exception(PATIENCE)
    assert isinstance(error, DependencyError)
    made.submit(pool)
    assert pool.submit(double, any_of(made)).result(PATIENCE) == 4


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_goes_down_the_line(two: JobPool, gate: Path, tmp_path: Path) -> None:
    gated = two.submit(hold, gate)
    a = two.submit(second, gated, 1)
    bad = two.options(name="bad").submit(lambda _: fail("mine"), gated)
    b = two.submit(keep, bad, a)
    c = two.submit(mark, any_of([b, tmp_path / "ran"]))
    d = two.submit(keep, {"c": c})
    gate.touch()
    for job in (b, c, d):
        error = job.exception(PATIENCE)
        assert isinstance(error, DependencyError)
        assert error.job is bad
        assert isinstance(error.__cause__, ValueError)
        assert str(error.__cause__) == "mine"
        assert job.attempts == 0
        with pytest.raises(DependencyError):
            job.result()
        with pytest.raises(DependencyError):
            job.result()
        assert "DependencyError" in repr(job)
    assert str(b.exception()) == (
        "job keep was not run: job bad, which it waits for, failed: ValueError: mine"
    )
    assert str(c.exception()) == (
        "job mark was not run: job keep, which it waits for, was not run either, because of job "
        "bad, which failed: ValueError: mine"
    )
    assert a.result(PATIENCE) == 1
    assert not (tmp_path / "ran").exists()


def test_one_that_had_failed_before(pool: JobPool) -> None:
    for look in (False, True):
        bad = pool.submit(fail, "before")
        bad.wait(PATIENCE)
        if look:
            bad.exception()
        error = pool.submit(keep, [bad]).exception(PATIENCE)
        assert isinstance(error, DependencyError)
        assert error.job is bad
        assert isinstance(error.__cause__, ValueError)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("options", "function", "kind"),
    [
        ({}, _crash, WorkerDiedError),
        ({"timeout": 0.1}, lambda: time.sleep(60), JobTimeoutError),
        ({}, threading.Lock, SerializationError),
    ],
)
def test_each_way_of_dying(
    two: JobPool, options: dict[str, Any], function: Callable[[], Any], kind: type
) -> None:
    bad = two.options(**options).submit(function)
    error = two.submit(keep, bad).exception(PATIENCE)
    assert isinstance(error, DependencyError)
    assert isinstance(error.__cause__, kind)
    assert error.job is bad


def test_a_cancel_of_what_is_waited_for(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate)
    until(a.running, "it runs")
    b = two.submit(keep, a)
    c = two.submit(keep, b)
    assert a.cancel()
    for job in (b, c):
        error = job.exception(PATIENCE)
        assert isinstance(error, DependencyError)
        assert "was cancelled" in str(error)
        assert isinstance(error.__cause__, JobCancelledError)
        assert error.job is a


def test_a_cancel_of_who_waits_cancels_nothing_else(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate, 5)
    b = two.submit(double, any_of(a))
    other = two.submit(double, any_of(a))
    c = two.submit(keep, b)
    assert b.cancel()
    assert b.status() is JobStatus.CANCELLED
    error = c.exception(PATIENCE)
    assert isinstance(error, DependencyError)
    assert error.job is b
    assert not a.in_final_state()
    gate.touch()
    assert a.result(PATIENCE) == 5
    assert other.result(PATIENCE) == 10
    counts = two.snapshot().counts
    assert (counts.queued, counts.running) == (0, 0)


def test_the_error_travels(pool: JobPool) -> None:
    bad = pool.submit(fail, "mine")
    waited = pool.submit(keep, bad)
    error = waited.exception(PATIENCE)
    assert isinstance(error, DependencyError)
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is DependencyError
    assert str(copied) == str(error)
    assert copied.job.job_id() == bad.job_id()
    past = pickle.loads(pickle.dumps(waited))
    assert isinstance(past.exception(), DependencyError)
    again = pool.submit(lambda: (_ for _ in ()).throw(error)).exception(PATIENCE)
    assert isinstance(again, DependencyError)


def test_a_handle_that_nobody_has_any_more_is_named_all_the_same(pool: JobPool) -> None:
    waited = pool.submit(keep, pool.submit(fail, "mine"))
    last = pool.submit(keep, waited)
    del waited
    error = last.exception(PATIENCE)
    assert isinstance(error, DependencyError)
    assert error.job.name == "fail"
    assert isinstance(error.job.exception(), ValueError)


def test_who_looks_at_the_last_one_has_looked_at_the_first(
    makers: Any, recwarn: pytest.WarningsRecorder
) -> None:
    with makers.pool(1) as fresh:
        bad = fresh.submit(fail, "mine")
        fresh.submit(keep, bad)
        last = fresh.submit(keep, fresh.submit(keep, bad))
        assert isinstance(last.exception(PATIENCE), DependencyError)
    assert not recwarn.list


def test_a_failure_that_nobody_looks_at_is_told_once(makers: Any) -> None:
    def let_fail() -> None:
        with makers.pool(1) as fresh:
            bad = fresh.submit(fail, "mine")
            wait([fresh.submit(keep, bad) for _ in range(3)])
            del bad

    with pytest.warns(JobFailuresWarning, match="1 of 4 jobs failed.*'fail'"):
        let_fail()


def test_an_initializers_failure_fails_only_what_could_have_started(tmp_path: Path) -> None:
    from helpers import raise_it

    gate = tmp_path / "gate"
    with JobPool(1) as other, JobPool(1, initializer=raise_it, initargs=(OSError("no"),)) as pool:
        a = other.submit(hold, gate)
        waiting = pool.submit(keep, a)
        assert isinstance(pool.submit(double, 1).exception(PATIENCE), InitializerError)
        assert waiting.status() is QUEUED
        gate.touch()
        assert isinstance(waiting.exception(PATIENCE), InitializerError)


def test_retries_of_a_dependency_are_its_own_affair(two: JobPool, tmp_path: Path) -> None:
    def die_twice(folder: Path) -> int:
        tries = len(list(folder.iterdir()))
        (folder / str(tries)).touch()
        if tries < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return tries

    a = two.options(retries=2).submit(die_twice, tmp_path)
    assert two.submit(double, any_of(a)).result(PATIENCE) == 4
    assert a.attempts == 3


@pytest.mark.parametrize("size", [10, LARGE])
def test_retries_of_who_waited_have_the_result_again(
    two: JobPool, tmp_path: Path, size: int
) -> None:
    def die_once(array: Any, folder: Path) -> float:
        seen = float(array.sum())
        array[:] = 0
        if not (folder / "tried").exists():
            (folder / "tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return seen

    made = two.submit(ones, size)
    job = two.options(retries=1).submit(die_once, any_of(made), tmp_path)
    assert job.result(PATIENCE) == size
    assert job.attempts == 2


def test_resubmit_has_the_result_again(two: JobPool) -> None:
    made = two.submit(ones, LARGE)
    job = two.options(keep_call=True).submit(spoil, made)
    assert job.result(PATIENCE) == (True, LARGE)
    made.result()[:] = 5
    del made
    assert job.resubmit().result(PATIENCE) == (True, LARGE)
    with JobPool(1) as other:
        assert job.resubmit(other).result(PATIENCE) == (True, LARGE)


@pytest.mark.parametrize("look", [False, True])
def test_resubmit_of_one_that_never_got_it(two: JobPool, gate: Path, look: bool) -> None:
    made = two.submit(hold, gate, 4)
    job = two.options(keep_call=True).submit(keep, made)
    assert job.cancel()
    again = job.resubmit()
    assert again.waiting_for == "job 'hold'"
    gate.touch()
    assert again.result(PATIENCE) == ((4,), {})
    if look:
        made.result()
    third = job.resubmit()
    assert third.result(PATIENCE) == ((4,), {})
    bad = two.submit(fail)
    unmet = two.options(keep_call=True).submit(keep, bad)
    assert isinstance(unmet.exception(PATIENCE), DependencyError)
    assert isinstance(unmet.resubmit().exception(PATIENCE), DependencyError)


# --- pools and their ends ------------------------------------------------------------------------


def test_jobs_of_several_pools_and_past_ones(tmp_path: Path) -> None:
    with JobPool(1) as one, JobPool(1) as other:
        a = one.submit(ones, LARGE)
        b = other.submit(spoil, a)
        past = pickle.loads(pickle.dumps(one.submit(double, 3)))
        assert other.submit(keep, past, b).result(PATIENCE) == ((6, (True, LARGE)), {})
    assert run(double, any_of(past)).result(PATIENCE) == 12
    with JobPool(1) as third:
        assert third.submit(keep, b, a).result(PATIENCE)[0][0] == (True, LARGE), "its pool is gone"


def test_a_shutdown_waits_for_those_that_wait(gate: Path) -> None:
    with JobPool(1) as other:
        pool = JobPool(1)
        waiting = pool.submit(keep, other.submit(hold, gate, 3))
        pool.shutdown(wait=False)
        assert waiting.status() is QUEUED
        with pytest.raises(PoolClosedError):
            pool.submit(double, 1)
        gate.touch()
        pool.shutdown()
        assert waiting.result(PATIENCE) == ((3,), {})


def test_a_shutdown_that_cancels(gate: Path) -> None:
    with JobPool(1) as other:
        pool = JobPool(1)
        a = other.submit(hold, gate, 3)
        waiting = pool.submit(keep, a)
        after = other.submit(keep, waiting)
        pool.shutdown(cancel=True)
        assert waiting.status() is JobStatus.CANCELLED
        assert isinstance(after.exception(PATIENCE), DependencyError)
        gate.touch()
        assert a.result(PATIENCE) == 3


def test_the_pool_of_what_is_waited_for_is_shut_down(gate: Path) -> None:
    with JobPool(1) as pool:
        for cancel in (False, True):
            other = JobPool(1)
            a = other.submit(hold, gate, 3)
            waiting = pool.submit(keep, a)
            other.shutdown(wait=False, cancel=cancel)
            if not cancel:
                gate.touch()
                assert waiting.result(PATIENCE) == ((3,), {})
                gate.unlink()
            else:
                assert isinstance(waiting.exception(PATIENCE), DependencyError)
            other.shutdown()


def test_cancel_all_and_counts(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate)
    until(a.running, "it runs")
    waiting = [two.submit(keep, a) for _ in range(3)]
    seen = two.snapshot()
    assert (seen.counts.queued, seen.counts.running) == (3, 1)
    assert [job.waiting_for for job in seen.jobs] == [None, *["job 'hold'"] * 3]
    assert set(two.jobs()) == {a, *waiting}
    two.cancel_all()
    assert all(job.cancelled() for job in [a, *waiting])
    assert two.snapshot().counts.queued == 0


def test_a_dropped_pool_finishes_what_waits(gate: Path) -> None:
    pool = JobPool(1)
    waiting = pool.submit(keep, pool.submit(hold, gate, 3))
    del pool
    gc.collect()
    gate.touch()
    assert waiting.result(PATIENCE) == ((3,), {})


def test_the_programs_end_waits_for_those_that_wait(tmp_path: Path) -> None:
    source = """
        import time
        from primitive_jobs import JobPool, run

        def slow(): time.sleep(0.3); return 5
        def show(value): print(value, flush=True)

        if __name__ == "__main__":
            pool = JobPool(1)
            run(show, pool.submit(slow))
        """
    expect(tmp_path, source, "5\n")


def test_in_a_fork_of_the_program(two: JobPool, gate: Path, tmp_path: Path) -> None:
    a = two.submit(hold, gate, 4)
    waiting = two.submit(keep, a)
    pid = os.fork()
    if pid == 0:  # the child
        try:
            texts = [type(waiting.exception(5)).__name__]
            with JobPool(1) as mine:
                error = mine.submit(keep, a).exception(PATIENCE)
                texts.append(type(error).__name__)
                texts.append(str(mine.submit(keep, mine.submit(double, 2)).result(PATIENCE)))
            (tmp_path / "told").write_text(" ".join(texts))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    gate.touch()
    assert waiting.result(PATIENCE) == ((4,), {})
    assert (tmp_path / "told").read_text() == "JobError DependencyError ((4,), {})"


def test_in_a_job(pool: JobPool) -> None:
    def nest(x: int) -> Any:
        with JobPool(1) as inner:
            return inner.submit(
                operator.add, inner.submit(double, x), inner.submit(double, 1)
            ).result()

    assert pool.submit(nest, any_of(pool.submit(double, 5))).result(PATIENCE) == 22


# --- the other ways to submit --------------------------------------------------------------------


def test_map(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate, 100)
    rows: list[Any] = [1, 2, a, 4, [a], 6, a]
    for size in (None, 1, 3):
        with case(size):
            results = two.map(keep, rows, range(7), chunksize=size)
            timer = threading.Timer(0.1, gate.touch)
            timer.start()
            expected = [1, 2, 100, 4, [100], 6, 100]
            assert [args for args, _ in results] == list(zip(expected, range(7), strict=True))
            timer.join()
            gate.unlink()
            a = two.submit(hold, gate, 100)
            rows = [1, 2, a, 4, [a], 6, a]
    gate.touch()


def test_map_over_many_jobs(pool: JobPool) -> None:
    rows: list[Any] = [pool.submit(double, x) for x in range(200)]
    jobs = pool.map(double, rows)
    assert list(jobs) == [4 * x for x in range(200)]


def test_map_with_a_seed() -> None:
    def draw(x: int) -> tuple[int, float]:
        return x, float(job_rng().random())

    with JobPool(2, seed=5) as pool:
        plain = list(pool.map(draw, range(6)))
    with JobPool(2, seed=5) as pool, JobPool(1) as other:
        rows: list[Any] = [other.submit(int, 0), 1, 2, other.submit(int, 3), 4, 5]
        assert list(pool.map(draw, rows)) == plain


def test_map_where_a_row_fails(two: JobPool) -> None:
    bad = two.submit(fail, "mine")
    rows: list[Any] = [1, 2, bad, 4]
    results = two.map(double, rows)
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(DependencyError) as caught:
        next(results)
    assert caught.value.job is bad
    elsewhere: list[Any] = [Plain(PrimitiveJob(double, 1))]
    with pytest.raises(SerializationError, match=r"item 0 of map\(\).*`.a`"):
        list(two.map(keep, elsewhere))


def test_the_executors_map_and_futures(make_executor: Any, gate: Path) -> None:
    with make_executor(2) as executor:
        future = executor.submit(hold, gate, 10)
        rows: list[Any] = [1, future, 3, [future], future]
        for size in (1, 2, 10):
            results = executor.map(keep, rows, chunksize=size)
            gate.touch()
            assert [args[0] for args, _ in results] == [1, 10, 3, [10], 10]
        waiting = executor.submit(double, future)
        assert waiting.result(PATIENCE) == 20
        assert waiting.done()


def test_gather_race_await_and_track(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate, 4)
    jobs = [two.submit(operator.add, any_of(a), x) for x in range(3)]
    threading.Timer(0.1, gate.touch).start()
    assert gather(jobs) == [4, 5, 6]
    assert race([two.submit(double, any_of(a))]) == 8
    assert {job.result() for job in as_completed(jobs, PATIENCE)} == {4, 5, 6}
    more = [two.submit(double, any_of(job)) for job in jobs]
    assert sorted(job.result() for job in track(more)) == [8, 10, 12]

    async def wait_for_it() -> Any:
        return await two.submit(keep, two.submit(double, any_of(a)))

    assert asyncio.run(wait_for_it()) == ((8,), {})


def test_a_task_that_is_cancelled_cancels_who_waits_alone(two: JobPool, gate: Path) -> None:
    a = two.submit(hold, gate, 4)

    async def give_up() -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_awaited(two.submit(keep, a)), 0.1)

    asyncio.run(give_up())
    assert not a.in_final_state()
    gate.touch()
    assert a.result(PATIENCE) == 4


async def _awaited(job: PrimitiveJob[Any]) -> Any:
    return await job


def test_a_store_needs_a_key_for_a_job(tmp_path: Path, pool: JobPool, gate: Path) -> None:
    """Without one its points are known by their arguments; a job that runs has no value yet."""
    a = pool.submit(hold, gate, 4)
    with SweepStore(tmp_path / "results.db") as store:
        with pytest.raises(TypeError, match="PrimitiveJob"):
            store.function(keep, version=1).submit(pool, a)
        kept = store.function(keep, version=1, key=lambda job: job.name)
        job = kept.submit(pool, a)
        assert job.waiting_for == "job 'hold'"
        gate.touch()
        assert job.result(PATIENCE) == ((4,), {})
    with SweepStore(tmp_path / "results.db") as store:
        again = store.function(keep, version=1, key=lambda job: job.name).submit(pool, a)
        assert again.result(PATIENCE) == ((4,), {})


# --- many ----------------------------------------------------------------------------------------

# Beyond the depth at which Python's own recursion ends; and as many as a pool has to bear.
how_many = pytest.mark.parametrize("many", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])


@how_many
@pytest.mark.timeout(120)
def test_a_long_chain(pool: JobPool, many: int) -> None:
    job = pool.submit(operator.add, 0, 1)
    for _ in range(many):
        job = pool.submit(operator.add, any_of(job), 1)
    assert job.result(PATIENCE * 3) == many + 1


@how_many
@pytest.mark.timeout(120)
def test_a_fan_and_a_diamond(pool: JobPool, gate: Path, many: int) -> None:
    a = pool.submit(hold, gate, 1)
    fan = [pool.submit(operator.add, any_of(a), x) for x in range(many)]
    joined = pool.submit(total, fan)
    assert joined.waiting_for == "job 'hold'" or joined.waiting_for == "job 'add'"
    gate.touch()
    assert joined.result(PATIENCE * 3) == sum(range(1, many + 1))


@how_many
@pytest.mark.timeout(120)
@pytest.mark.parametrize("cancel", [False, True])
def test_a_long_chain_that_fails(pool: JobPool, gate: Path, cancel: bool, many: int) -> None:
    first = pool.submit(hold, gate)
    jobs = [pool.submit(lambda _: fail("mine"), first)]
    for _ in range(many):
        jobs.append(pool.submit(keep, jobs[-1]))
    if cancel:
        jobs[0].cancel()
    gate.touch()
    error = jobs[-1].exception(PATIENCE)
    assert isinstance(error, DependencyError)
    assert error.job is jobs[0]
    assert isinstance(error.__cause__, JobCancelledError if cancel else ValueError)
    assert all(isinstance(job.exception(PATIENCE), DependencyError) for job in jobs[1:])
    last = pool.submit(keep, jobs[-1])
    del jobs, first, error
    assert isinstance(last.exception(PATIENCE), DependencyError)


@how_many
@pytest.mark.timeout(120)
def test_a_long_chain_that_is_cancelled_from_its_end(pool: JobPool, gate: Path, many: int) -> None:
    jobs = [pool.submit(hold, gate)]
    for _ in range(many):
        jobs.append(pool.submit(keep, jobs[-1]))
    assert all(job.cancel() for job in reversed(jobs[1:]))
    assert not jobs[0].in_final_state()
    gate.touch()
    assert jobs[0].result(PATIENCE) is None
    until(lambda: not record_of(jobs[0]).tracker._waiters, "nobody waits for it")


# --- what stays, and for how long ----------------------------------------------------------------


def test_a_job_lets_go_of_what_it_has_waited_for(pool: JobPool) -> None:
    a = pool.submit(double, 4)
    b = pool.submit(double, any_of(a))
    gone = weakref.ref(a)
    assert b.result(PATIENCE) == 16
    del a
    pool.submit(double, 1).result(PATIENCE)
    until(lambda: (gc.collect(), gone())[1] is None, "nobody has it")


def test_results_are_dropped_with_the_last_job_that_waits(pool: JobPool, gate: Path) -> None:
    first = gate.with_name("first")
    a = pool.submit(lambda: (hold(first), ones(LARGE))[1])
    gated = pool.submit(hold, gate)
    users = [pool.submit(keep, any_of(gated), a) for _ in range(2)]
    first.touch()
    assert a.wait(PATIENCE)
    contents = [getattr(each, "content", None) for each in record_of(users[0]).awaits]
    found = [weakref.ref(each) for each in contents if each is not None]
    contents.clear()
    assert len(found) == 1
    users[0].cancel()
    assert found[0]() is not None
    gate.touch()
    assert users[1].result(PATIENCE)[0][1].sum() == LARGE
    until(lambda: found[0]() is None, "nothing holds its bytes")


DEAD: list[threading.Thread] = []


class Mark:
    """Says where it went; what arrives does not."""

    def __del__(self) -> None:
        DEAD.append(threading.current_thread())

    def __reduce__(self) -> Any:
        return object, ()


# Of the jobs that are dropped after the end of their pool, before that of its block.
@pytest.mark.filterwarnings("ignore::primitive_jobs.JobFailuresWarning")
@pytest.mark.parametrize("end", ["done", "unmet", "cancelled", "dropped"])
def test_no_thread_of_a_pool_lets_a_handle_go(makers: Any, gate: Path, end: str) -> None:
    DEAD.clear()
    with makers.pool(1) as first, makers.pool(1) as other:
        a = first.options(metadata={"mark": Mark()}).submit(hold, gate)
        jobs = [other.submit(keep, a) for _ in range(3)]
        jobs += [first.submit(keep, jobs[0])]
        del a
        if end == "unmet":
            first.cancel_all()
        if end == "cancelled":
            for job in jobs:
                job.cancel()
        if end == "dropped":
            del jobs
        gate.touch()
        first.shutdown()
        other.shutdown()
        jobs = []
        job = None
    gc.collect()
    until(lambda: DEAD, "it has gone")
    for thread in DEAD:
        assert "dispatcher" not in thread.name, thread
    gate.unlink(missing_ok=True)


def test_a_fault_in_taking_a_result_ends_the_job(two: JobPool, gate: Path) -> None:
    def broken(_: Any) -> bool:
        raise MemoryError("none left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Awaited, "expect", lambda _: None)
        a = two.submit(hold, gate)
        b = two.submit(keep, a)
        patch.setattr(Awaited, "take_unread", broken)
        gate.touch()
        error = b.exception(PATIENCE)
    assert isinstance(error, DependencyError)
    assert isinstance(error.__cause__, MemoryError)


@sampled(13)
def test_an_interrupt_at_any_opcode_of_a_submit(two: JobPool, gate: Path, stride: int) -> None:
    a = two.submit(hold, gate, 3)
    submitted: list[PrimitiveJob[Any]] = []

    def attempt(place: int) -> bool:
        hit = interrupted(lambda: submitted.append(two.submit(keep, [a])), place)
        assert standing._submit.asked is None, "no submit pickles here any more"
        return hit

    assert interrupt_everywhere(attempt, stride) * stride > 500
    assert all(job.status() is QUEUED for job in submitted)
    gate.touch()
    assert all(job.result(PATIENCE) == (([3],), {}) for job in submitted)
    until(lambda: not two.jobs(), "no other is left")


@pytest.mark.local
def test_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from clusters import dask_cluster

    from primitive_jobs.cluster import ClusterPool

    with (
        dask_cluster(tmp_path, 2) as cluster,
        ClusterPool(cluster.address, 2) as there,
        JobPool(1) as here,
    ):
        for size in (10, LARGE):
            made = there.submit(ones, size)
            users = [there.submit(spoil, made), there.submit(spoil, made), here.submit(spoil, made)]
            assert [user.result(PATIENCE) for user in users] == [(True, size)] * 3
            back = there.submit(spoil, here.submit(ones, size))
            assert back.result(PATIENCE) == (True, size)
            assert there.submit(spoil, made).result(PATIENCE) == (True, size)
        bad = there.submit(fail, "mine")
        error = here.submit(keep, there.submit(keep, bad)).exception(PATIENCE)
        assert isinstance(error, DependencyError)
        assert error.job is bad
