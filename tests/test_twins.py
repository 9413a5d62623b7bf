"""Exceptions are copied without what led to them, whatever libraries have taught `copy`."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path

import pytest
from helpers import expect

from primitive_jobs import JobMemoryError, WorkerDiedError, errors
from primitive_jobs._common.twins import bare_twin

OURS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_each_can_be_made_in_two_steps(kind: type[BaseException]) -> None:
    """As tblib does."""
    assert type(kind.__new__(kind, "what happened")) is kind


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
