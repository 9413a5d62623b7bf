"""Objects to bytes and back, above all the broken ones."""

from __future__ import annotations

import dataclasses
import linecache
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from primitive_jobs import JobError, SerializationError
from primitive_jobs._common.naming import call_name
from primitive_jobs._wire.calls import dump_call
from primitive_jobs._wire.failures import (
    RemoteTraceback,
    dump_exception,
    dump_unloadable,
    dump_unpicklable_result,
    load_exception,
    load_result,
)
from primitive_jobs._wire.pickling import OUT_OF_BAND, dumps, loads


def travel(value: object) -> Any:
    return loads(*dumps(value))


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def crossed(error: BaseException) -> BaseException:
    return load_exception(dump_exception(error))


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**70), 1.5, 2j, "ä\ud800", b"", [1, {"a": (2, 3)}], {1, 2}, range(5)],
    ids=repr,
)
def test_round_trip(value: object) -> None:
    got = travel(value)
    assert got == value
    assert type(got) is type(value)


def test_functions_of_every_kind() -> None:
    offset = 3

    def closure(x: int) -> int:
        return x + offset

    class Local:
        def __init__(self, base: int) -> None:
            self.base = base

        def method(self, x: int) -> int:
            return self.base * x

    assert travel(closure)(4) == 7
    assert travel(lambda x: x * offset)(4) == 12
    assert travel(Local(5).method)(4) == 20
    assert travel(partial(closure, 1))() == 4
    assert travel(Local)(2).method(3) == 6


@pytest.mark.parametrize("size", [OUT_OF_BAND - 1, OUT_OF_BAND])
def test_large_buffers_stay_outside(size: int) -> None:
    array = np.arange(size, dtype=np.uint8)
    body, buffers = dumps({"array": array})
    assert len(buffers) == (size >= OUT_OF_BAND)
    assert (len(body) < size) == (size >= OUT_OF_BAND)
    assert np.array_equal(loads(body, buffers)["array"], array)


def test_arrays_that_are_not_contiguous() -> None:
    array = np.arange(40_000).reshape(200, 200)
    for view in (array[::2, ::3], array.T, np.asfortranarray(array)):
        assert np.array_equal(travel(view), view)

    class Raw:
        def __reduce_ex__(self, protocol: object) -> Any:
            return bytes, (pickle.PickleBuffer(memoryview(bytes(100_000))[::2]),)

    with pytest.raises((BufferError, pickle.PicklingError)):
        dumps(Raw())


# --- calls ---------------------------------------------------------------------------------------


def simulate(*args: object, **kwargs: object) -> None:
    """Stands for what a user calls."""


class Reluctant:
    def __reduce__(self) -> Any:
        raise ValueError("I stay\nhere")


@pytest.mark.parametrize(
    ("args", "kwargs", "culprit"),
    [
        ((1, Reluctant()), {}, "argument 2 of simulate(), a Reluctant,"),
        ((Reluctant(), 2), {}, "argument 1 of simulate(), a Reluctant,"),
        ((1,), {"y": 1, "x": Reluctant()}, "argument 'x' of simulate(), a Reluctant,"),
    ],
)
def test_culprit_among_the_arguments(
    args: tuple[object, ...], kwargs: dict[str, object], culprit: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        dump_call(simulate, args, kwargs, "simulate")
    assert str(caught.value) == f"{culprit} cannot be serialized: ValueError: I stay here"
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value, pickle.PicklingError)


def test_interrupt_goes_through() -> None:
    class Interrupting:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump_call(simulate, (Interrupting(),), {}, "simulate")


def test_call_travels() -> None:
    about = "divmod", b"0123456789abcdef"
    dumped = dump_call(divmod, (7, 2), {"z": None}, "divmod", about=about)
    assert loads(*dumped[:2]) == (about, divmod, (7, 2), {"z": None})


def test_call_names() -> None:
    class Adder:
        def __call__(self) -> None: ...

        def add(self) -> None: ...

    assert call_name(simulate) == "simulate"
    assert call_name(partial(simulate, 1)) == "simulate"
    assert call_name(Adder()).endswith("Adder")
    assert call_name(Adder().add).endswith("Adder.add")
    assert call_name(len) == "len"


# --- exceptions ----------------------------------------------------------------------------------


class Plain(Exception):
    pass


class NeedsTwo(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no")


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoTextAtAll(NoText):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __reduce__(self) -> Any:
        raise TypeError("no")


class NoBool(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def _raise(error: BaseException) -> None:
    raise error


class RaisesWhenLoaded(Exception):
    def __init__(self, what: BaseException) -> None:
        super().__init__("hostile")
        self.what = what

    def __reduce__(self) -> Any:
        return _raise, (self.what,)


class LoadsAsText(Exception):
    def __reduce__(self) -> Any:
        return str, ("no exception",)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Plain("p"), Plain, "p"),
        (Frozen(3), Frozen, "3"),
        (NoBool("b"), NoBool, "b"),
        (OSError(2, "gone", "file"), FileNotFoundError, "gone"),
        (NeedsTwo(1, 2), JobError, "NeedsTwo: 1 and 2 (which cannot be unpickled here"),
        (NeedsTwo(1, 2), JobError, "super().__init__(), or the class to define __reduce__)"),
        (Unpicklable("u"), JobError, "Unpicklable: u (which cannot be pickled)"),
        (NoTextAtAll(), JobError, "its message cannot be shown"),
        (RaisesWhenLoaded(ValueError("v")), JobError, "RaisesWhenLoaded: hostile"),
        (RaisesWhenLoaded(SystemExit(1)), JobError, "which raises SystemExit when it is"),
        (RaisesWhenLoaded(GeneratorExit()), JobError, "which raises GeneratorExit when it is"),
        (LoadsAsText("l"), JobError, "LoadsAsText: l"),
        (SystemExit(3), JobError, "SystemExit: 3"),
        (KeyboardInterrupt(), JobError, "KeyboardInterrupt"),
        (GeneratorExit(), JobError, "GeneratorExit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exceptions_arrive(error: BaseException, kind: type, text: str) -> None:
    try:
        raise error
    except BaseException as caught:
        got = crossed(caught)
    assert type(got) is kind
    assert text in str(got)
    assert isinstance(got.__cause__, RemoteTraceback)
    if not isinstance(error, NoText):
        assert type(error).__qualname__ in str(got.__cause__)
    assert "test_exceptions_arrive" in str(got.__cause__)


def test_exception_without_text_keeps_its_type() -> None:
    got = crossed(raised(lambda: _raise(NoText())))
    assert type(got) is NoText
    assert "NoText" in str(got.__cause__)


def test_chain_and_notes_stay_in_the_text() -> None:
    def chained() -> None:
        try:
            raise KeyError("the first")
        except KeyError as first:
            error = Plain("the second")
            if hasattr(error, "add_note"):
                error.add_note("a note of mine")
            raise error from first

    error = raised(chained)
    text = str(crossed(error).__cause__)
    assert "KeyError: 'the first'" in text
    assert "The above exception was the direct cause" in text
    assert "Plain: the second" in text
    assert 'raise KeyError("the first")' in text
    if hasattr(error, "add_note"):
        assert "a note of mine" in text
        assert crossed(error).__notes__ == ["a note of mine"]


def test_outermost_frames_are_left_out() -> None:
    def inner() -> None:
        raise Plain("deep")

    error = raised(inner)
    cause = load_exception(dump_exception(error, skip_frames=1)).__cause__
    assert "in inner" in str(cause)
    assert "in raised" not in str(cause)
    assert "in raised" in str(crossed(error).__cause__)
    more = load_exception(dump_exception(error, skip_frames=99)).__cause__
    assert "in inner" in str(more)


def test_each_load_is_a_new_object() -> None:
    body = dump_exception(raised(lambda: _raise(Plain("p"))))
    assert load_exception(body) is not load_exception(body)


def test_wrapped_answers() -> None:
    error = raised(lambda: _raise(ValueError("inner\nreason")))
    got = load_exception(dump_unloadable(error))
    assert type(got) is SerializationError
    assert "cannot be unpickled in the worker: ValueError: inner reason" in str(got)
    assert "ValueError: inner" in str(got.__cause__)
    got = load_exception(dump_unpicklable_result(error, [1], "simulate"))
    assert type(got) is SerializationError
    assert str(got).startswith("the result of simulate(), a list, cannot be serialized: ValueError")


@pytest.mark.parametrize("error", [ValueError("v"), SystemExit(1), GeneratorExit()])
def test_result_that_cannot_be_loaded(error: BaseException) -> None:
    body, buffers = dumps(RaisesWhenLoaded(error))
    with pytest.raises(SerializationError, match=r"the result of job sim cannot be unpickled"):
        load_result(body, buffers, SimpleNamespace(name="sim"))


def test_sources_are_filled_in() -> None:
    name = "<cell 1 of the test>"
    source = "def f():\n    return 1 / zero\n"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    text = (
        "Traceback (most recent call last):\n"
        f'  File "{name}", line 2, in f\n'
        '  File "<unknown>", line 1, in g\n'
        '  File "there.py", line 1, in h\n'
        "    already()\n"
        "ZeroDivisionError: division by zero\n"
    )
    try:
        shown = str(RemoteTraceback(text))
    finally:
        del linecache.cache[name]
    assert shown == '\n"""\n' + text.replace("in f\n", "in f\n    return 1 / zero\n") + '"""'
    assert str(pickle.loads(pickle.dumps(RemoteTraceback(text)))) == f'\n"""\n{text}"""'


def test_code_by_value_keeps_the_name_of_its_file() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    source = "class A:\n    def f(self):\n        return lambda: (lambda: 1)\n"
    exec(compile(source, "a cell", "exec"), space)  # what a notebook does
    for value in (space["A"]().f, space["A"]().f()):
        body, buffers = dumps(value)
        assert b"a cell" in body
        loaded = loads(body, buffers)
        while callable(loaded):
            assert loaded.__code__.co_filename == "a cell"
            loaded = loaded()
        assert loaded == 1
