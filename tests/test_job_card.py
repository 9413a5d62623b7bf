"""What a failed job says of itself where it is shown: its exception, on one line."""

from __future__ import annotations

import os
import pickle
import re
import sys
from html import unescape
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE, double, raise_it

from primitive_jobs import JobExecutor, JobPool, PrimitiveJob

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Watched(ValueError):
    """Its unpickling leaves a trace in this process."""

    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.unpickled_here = True",)


def raise_watched() -> NoReturn:
    raise Watched("seen")


def diverge(temperature: float) -> NoReturn:
    raise ValueError(f"T={temperature} diverged")


def failed(pool: JobPool, error: BaseException) -> PrimitiveJob[Any]:
    job = pool.submit(raise_it, error)
    assert job.wait(PATIENCE)
    return job


def card(job: PrimitiveJob[Any]) -> str:
    return unescape(re.sub("<[^>]*>", " ", job._repr_html_()))


def test_repr_and_card_say_what_was_raised(pool: JobPool) -> None:
    job = pool.options(name="cold").submit(diverge, 2.0)
    assert job.wait(PATIENCE)
    what = "ERROR ValueError: T=2.0 diverged"
    shown = rf"<PrimitiveJob {job.job_id()} 'cold' {what}, \d+\.\d{{3}} s>"
    for _ in range(2):
        assert re.fullmatch(shown, repr(job))
        assert what in card(job)
        assert isinstance(job.exception(), ValueError)  # from here on it is there, unpickled


def test_others_say_what_they_said(pool: JobPool) -> None:
    job = pool.submit(double, 2)
    assert job.result(PATIENCE) == 4
    assert re.fullmatch(rf"<PrimitiveJob {job.job_id()} 'double' DONE \d+\.\d{{3}} s>", repr(job))
    cancelled = PrimitiveJob(double, 2)
    cancelled.cancel()
    assert " CANCELLED 0." in repr(cancelled)
    assert "CANCELLED" in card(cancelled)


def test_nothing_is_unpickled_for_it(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unpickled_here", False, raising=False)
    job = pool.submit(raise_watched)
    assert job.wait(PATIENCE)
    assert "ERROR Watched: seen, " in repr(job)
    assert "ERROR Watched: seen" in card(job)
    assert not vars(sys)["unpickled_here"]
    assert job.exception() is not None
    assert vars(sys)["unpickled_here"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ERROR ValueError, "),
        (ValueError("two\nlines\t and   more"), "ERROR ValueError: two lines and more, "),
        (ValueError("red \x1b[31m and \x00"), r"ERROR ValueError: red \x1b[31m and \x00, "),
        (OSError(2, "no such thing"), "ERROR FileNotFoundError: [Errno 2] no such thing, "),
        (ValueError("a name \udcff"), r"ERROR ValueError: a name \udcff, "),
        (SystemExit(3), "ERROR JobError: the job raised SystemExit: 3, "),
    ],
)
def test_it_is_one_line_that_can_be_printed(pool: JobPool, error: BaseException, text: str) -> None:
    job = failed(pool, error)
    for _ in range(2):
        assert text in repr(job)
        repr(job).encode()
        job.exception()


def test_it_is_of_bounded_length(pool: JobPool) -> None:
    job = failed(pool, ValueError("x" * 10_000_000))
    for _ in range(2):
        assert re.search(r"ERROR ValueError: x{100,190}\.\.\., ", repr(job))
        assert len(card(job)) < 1000
        job.exception()


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I will not be shown")

    __repr__ = __str__


def test_one_that_cannot_be_shown(pool: JobPool) -> None:
    job = failed(pool, Hostile())
    for _ in range(2):
        assert "ERROR Hostile: (its message cannot be shown), " in repr(job)
        job.exception()


def test_what_the_pool_itself_says_of_the_end(one: JobPool) -> None:
    unpicklable = one.submit(print, sys._getframe())
    assert "ERROR SerializationError: argument 1 of print(), a frame, cannot" in repr(unpicklable)
    late = one.options(timeout=0.1).submit(__import__("time").sleep, 1000)
    assert late.wait(PATIENCE)
    assert "ERROR JobTimeoutError: job sleep (" in repr(late)
    dead = one.submit(os._exit, 7)
    assert dead.wait(PATIENCE)
    assert "ERROR WorkerDiedError: job _exit (" in repr(dead)
    assert "ERROR WorkerDiedError: job _exit (" in card(dead)


def test_an_initializer_that_raised() -> None:
    with JobPool(1, initializer=diverge, initargs=(3.0,)) as pool:
        job = pool.options(name="cold").submit(double, 1)
        assert job.wait(PATIENCE)
        before = repr(job)
        assert "ERROR InitializerError: job cold: the pool's preload or initializer" in before
        assert "raised ValueError: T=3.0 diverged, " in before
        assert job.exception() is not None
        assert repr(job) == before


def test_a_job_that_was_pickled(pool: JobPool) -> None:
    job = pool.options(name="cold").submit(diverge, 2.0)
    copied: PrimitiveJob[Any] = pickle.loads(pickle.dumps(job))
    assert "ERROR ValueError: T=2.0 diverged, " in repr(copied)
    assert "ERROR ValueError: T=2.0 diverged" in card(copied)


def test_a_future(pool: JobPool) -> None:
    with JobExecutor(pool=pool) as executor:
        future = executor.submit(diverge, 2.0)
        assert future.job.wait(PATIENCE)
        assert "state=finished raised ValueError: T=2.0 diverged job='diverge' " in repr(future)
        good = executor.submit(double, 1)
        assert good.result(PATIENCE) == 2
        assert "state=finished job='double' " in repr(good)


def send_nonsense() -> None:
    """Send, in the place of the answer, one that no worker would send."""
    import gc

    from primitive_jobs._wire.channel import PacketChannel, StreamChannel
    from primitive_jobs._wire.messages import Kind

    kinds = PacketChannel, StreamChannel
    channel = next(thing for thing in gc.get_objects() if type(thing) in kinds)
    channel.send(Kind.RAISED, 1, b"no pickle at all")
    os._exit(0)


def test_what_is_no_message_of_a_workers() -> None:
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(send_nonsense)
        assert job.wait(PATIENCE)
        assert "ERROR (unknown), " in repr(job)
