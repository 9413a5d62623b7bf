"""Objects whose methods misbehave: names, callables, arguments, exceptions, streams."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE

from primitive_jobs import JobError, JobPool, JobStatus, SerializationError, WorkerDiedError

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# --- they cannot be described ---------------------------------------------------------------------


class Text(str):
    __slots__ = ()

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    def __format__(self, spec: str) -> NoReturn:
        raise RuntimeError("no format")

    __repr__ = __str__


class NamedBadly:
    def __getattribute__(self, name: str) -> Any:
        return Text("bad") if name == "__qualname__" else object.__getattribute__(self, name)

    def __call__(self) -> None:
        os._exit(3)


def test_a_name_with_methods_of_its_own(attacked: JobPool) -> None:
    for job in (
        attacked.options(name=Text("bad")).submit(os._exit, 3),
        attacked.submit(NamedBadly()),
    ):
        assert job.wait(PATIENCE)
        assert isinstance(job.exception(), WorkerDiedError)
        assert repr(job)


class UnpicklableText(Exception):
    def __str__(self) -> str:
        return Text("text")


class Unreadable(Exception):
    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(f"no {name}")


class NamelessMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__name__") and "JOB" in os.environ:
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class Nameless(metaclass=NamelessMeta):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickling")


class NamelessError(Exception, metaclass=NamelessMeta):
    pass


def return_nameless() -> Nameless:
    os.environ["JOB"] = "1"
    return Nameless()


def raise_nameless() -> NoReturn:
    os.environ["JOB"] = "1"
    raise NamelessError("x")


class NamelessCallable:
    def __getattr__(self, name: str) -> NoReturn:
        if "JOB" in os.environ:
            raise ValueError(name)
        raise AttributeError(name)

    def __call__(self) -> Any:
        os.environ["JOB"] = "1"
        return threading.Lock()


def raise_unpicklable_text() -> NoReturn:
    raise UnpicklableText


def raise_unreadable() -> NoReturn:
    raise Unreadable


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (raise_unpicklable_text, UnpicklableText),
        (raise_unreadable, JobError),
        (raise_nameless, JobError),
        (return_nameless, SerializationError),
        (NamelessCallable(), SerializationError),
    ],
)
def test_what_cannot_be_described(
    attacked: JobPool, attack: Callable[[], object], kind: type[Exception]
) -> None:
    error = attacked.submit(attack).exception(PATIENCE)
    assert not isinstance(error, WorkerDiedError)
    assert isinstance(error, JobError) or type(error) is kind


# --- streams, and a stack that is nearly used up --------------------------------------------------


class Stream(io.StringIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> NoReturn:
        raise self.error


def no_stdout() -> int:
    del sys.stdout
    return 5


def exiting_stdout() -> int:
    sys.stdout = Stream(SystemExit(1))
    return 5


def interrupting_stderr() -> int:
    sys.stderr = Stream(KeyboardInterrupt())
    return 5


def low_recursion_limit() -> list[int]:
    frame: Any = sys._getframe()
    depth = 0
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    for limit in range(depth, depth + 50):
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(limit)
            break
    return [5]


@pytest.mark.parametrize(
    "attack", [no_stdout, exiting_stdout, interrupting_stderr, low_recursion_limit]
)
def test_a_result_is_not_lost(attacked: JobPool, attack: Callable[[], object]) -> None:
    assert attacked.submit(attack).result(PATIENCE) in (5, [5])


# --- what looks like something else ---------------------------------------------------------------


class WithoutTraceback(Exception):
    def with_traceback(self, tb: object) -> Any:
        return None


def raise_without_traceback() -> NoReturn:
    raise WithoutTraceback("x")


def test_an_exception_with_a_with_traceback_of_its_own(attacked: JobPool) -> None:
    with pytest.raises(WithoutTraceback):
        attacked.submit(raise_without_traceback).result(PATIENCE)


class Hostile:
    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError(f"no {name}") if name == "func" else AttributeError(name)

    def __call__(self) -> int:
        return 5


def test_a_callable_with_a_hostile_getattr(attacked: JobPool) -> None:
    assert attacked.submit(Hostile()).result(PATIENCE) == 5


class NotCallable:
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    "call",
    [
        lambda pool, odd: pool.submit(odd),
        lambda pool, odd: pool.options(timeout=odd),
        lambda pool, odd: pool.options(priority=odd),
    ],
)
def test_a_wrong_argument_that_cannot_be_shown(
    attacked: JobPool, call: Callable[[JobPool, object], object]
) -> None:
    with pytest.raises(TypeError):
        call(attacked, NotCallable())


class Refusing:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickling")


def test_a_call_that_cannot_be_serialized_is_let_go(attacked: JobPool) -> None:
    """Its arguments, perhaps large, live as long as the job: the error's traceback has them."""
    value = Refusing()
    gone = weakref.ref(value)
    job = attacked.submit(print, value)
    del value
    gc.collect()
    assert job.status() is JobStatus.ERROR
    assert gone() is None
