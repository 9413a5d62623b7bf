"""Exceptions are copied without what led to them, whatever libraries have taught `copy`."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
from pathlib import Path

import pytest
from helpers import expect

from primitive_jobs import ClusterError, JobError, JobMemoryError, WorkerDiedError, errors
from primitive_jobs._common.twins import bare_twin

OURS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__ and issubclass(kind, BaseException)
]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_each_can_be_made_in_two_steps(kind: type[BaseException]) -> None:
    """As tblib does."""
    assert type(kind.__new__(kind, "what happened")) is kind


def anew(error: BaseException, way: str) -> BaseException:
    """What comes of an exception by pickling or copying."""
    if way == "twin":
        return bare_twin(error)
    made: BaseException = (
        pickle.loads(pickle.dumps(error)) if way == "pickle" else getattr(copy, way)(error)
    )
    return made


def one_of(kind: type[BaseException]) -> BaseException:
    """One with a value of its own for each attribute."""
    init = kind.__init__
    code = init.__code__ if inspect.isfunction(init) else None
    named = [] if code is None else code.co_varnames[2 : 2 + code.co_kwonlyargcount]
    error = kind("what happened", **{name: -9 - n for n, name in enumerate(named)})
    error.mine = "of the user"  # type: ignore[attr-defined]
    return error


def check_all() -> None:
    """Each of our classes comes back from each way as it was; also run where tblib is at work."""
    for kind in [*OURS, Subclass]:
        for way in ("pickle", "copy", "deepcopy", "twin"):
            error = one_of(kind) if kind is not Subclass else Subclass("a", 7)
            twin = anew(error, way)
            assert type(twin) is kind, (kind, way)
            assert (str(twin), twin.args) == (str(error), error.args), (kind, way)
            assert vars(twin) == vars(error), (kind, way)


class Subclass(JobError):
    """What users may make of it: its arguments are not those of `JobError`."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(f"{text}{number}")
        self.number = number


def test_each_survives_pickle_and_copy() -> None:
    check_all()
    died = one_of(ClusterError)
    assert isinstance(died, ClusterError)
    values = {died.pid, died.exitcode, died.stack, died.ran, died.peak_memory, died.node}
    assert len(values - {None}) == 6, "the loop sets them all"


def test_each_survives_where_tblib_is_at_work(tmp_path: Path) -> None:
    pytest.importorskip("tblib")
    source = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import tblib.pickling_support
        import test_twins

        tblib.pickling_support.install()
        test_twins.check_all()
        print("well")
    """
    expect(tmp_path, source, "well\n")


def test_a_twin_has_the_attributes_and_nothing_else() -> None:
    with pytest.raises(JobMemoryError) as caught:
        raise JobMemoryError("too much", limit=1, peak=2, stack="here") from ValueError("before")
    twin = bare_twin(caught.value)
    assert (twin.args, twin.limit, twin.peak, twin.stack) == (("too much",), 1, 2, "here")
    assert (twin.__cause__, twin.__context__, twin.__traceback__) == (None, None, None)
    died = bare_twin(WorkerDiedError("died", pid=7, exitcode=-9))
    assert (str(died), died.pid, died.exitcode) == ("died", 7, -9)
    lost = bare_twin(FileNotFoundError(errno.ENOENT, "not there", "the file"))
    assert (lost.errno, lost.filename) == (errno.ENOENT, "the file")


class Other(Exception):
    def __reduce__(self) -> tuple[type[ValueError], tuple[()]]:
        return ValueError, ()


def test_what_makes_something_else_of_itself() -> None:
    with pytest.raises(TypeError, match=r"makes a .*ValueError"):
        bare_twin(Other())


def test_where_tblib_pickles_exceptions(tmp_path: Path) -> None:
    """Whoever imports `distributed` has that, and `adaptive` does."""
    pytest.importorskip("tblib")
    source = """
        import gc, weakref
        import tblib.pickling_support
        from primitive_jobs import JobMemoryError, JobPool, WorkerDiedError

        tblib.pickling_support.install()

        class Mine:
            pass

        def fail(mine):
            raise ValueError("mine")

        def grow():
            return bytearray(10**9)

        def end():
            import os
            os._exit(3)

        with JobPool(1) as pool:
            held = Mine()
            known = weakref.ref(held)
            job = pool.submit(fail, held)
            del held
            print(repr(job.exception()))
            gc.collect()
            print(known())
            limited = pool.options(memory_limit="300 MB").submit(grow)
            error = limited.exception()
            print(type(error).__name__, error.limit, error.peak > error.limit)
            error = pool.submit(end).exception()
            print(type(error).__name__, error.exitcode, error.__traceback__)
    """
    output = "ValueError('mine')\nNone\nJobMemoryError 300000000 True\nWorkerDiedError 3 None\n"
    expect(tmp_path, source, output)
