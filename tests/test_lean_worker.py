"""A worker imports little before it has to: what a job may do to the imports that come later."""

from __future__ import annotations

import copy
import errno
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import cloudpickle
import pytest
from helpers import PATIENCE

from primitive_jobs import JobPool, SerializationError

# Its functions are pickled by reference, so that the worker has imported nothing for them.
MODULE = """
import resource, sys
held = []

def hold_all_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    while True:
        try:
            held.append(open("/dev/null"))
        except OSError as error:
            return error

def raise_what_comes():
    raise hold_all_descriptors()

def raise_an_own_error():
    hold_all_descriptors()
    raise OwnError(1, "two")

def return_a_list():
    hold_all_descriptors()
    return [1, [2]]

def return_what_cannot_be():
    hold_all_descriptors()
    return sys._getframe()

class OwnError(Exception):
    pass

class OldFinder:
    def find_module(self, name, path=None):
        return None

def name_with_an_old_finder():
    sys.meta_path.insert(0, OldFinder())
    import multiprocessing
    return multiprocessing.current_process().name
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (tmp_path / "lean_jobs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    return importlib.import_module("lean_jobs")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "lean_jobs", raising=False)


def test_a_function_by_value_needs_no_cloudpickle() -> None:
    """Its import takes longer than all else that a worker does before its first job."""
    factor = [2]

    def have(*numbers: int, add: int = 1) -> tuple[int, bool, bool]:
        def imported(name: str) -> bool:
            return name in sys.modules

        total = sum(factor[0] * number for number in numbers) + add
        return total, imported("cloudpickle"), imported("primitive_jobs._wire.functions")

    class Own:
        pass

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with JobPool(1) as pool:
            for answer in ((13, False, True), (13, False, True)):
                assert pool.submit(have, 1, 2, 3).result(PATIENCE) == answer
            # Where more comes it is imported, and fills in from then on.
            assert pool.submit(lambda: have(1, 2, 3)[0]).result(PATIENCE) == 13
            assert type(pool.submit(Own).result(PATIENCE)) is Own
            assert pool.submit(have, 1, 2, 3).result(PATIENCE) == (13, True, True)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_errors_and_results_of_a_job_that_holds_all_descriptors(module: object) -> None:
    with JobPool(1, max_jobs_per_worker=1) as pool:

        def submit(name: str) -> object:
            return pool.submit(getattr(module, name)).result(PATIENCE)

        with pytest.raises(OSError, match="Too many open files") as caught:
            submit("raise_what_comes")
        assert caught.value.errno == errno.EMFILE
        assert "in raise_what_comes" in str(caught.value.__cause__)
        with pytest.raises(module.OwnError) as own:  # type: ignore[attr-defined]
            submit("raise_an_own_error")
        assert own.value.args == (1, "two")
        assert submit("return_a_list") == [1, [2]]
        with pytest.raises(SerializationError, match="cannot be serialized") as lost:
            submit("return_what_cannot_be")
        assert "direct cause" in str(lost.value.__cause__)


def test_a_finder_of_the_old_kind(module: object) -> None:
    with JobPool(1) as pool:
        job = pool.submit(module.name_with_an_old_finder)  # type: ignore[attr-defined]
        assert job.result(PATIENCE).startswith("job-worker-")


def test_a_package_in_an_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There its first script is no file that an interpreter could be started with."""
    found = importlib.util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        spec = copy.copy(found(name))  # that of a module that is imported is its own
        if spec is not None:
            spec.origin = str(tmp_path / "app.pyz" / "boot.py")
        return spec

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with JobPool(1) as pool:
        assert pool.submit(abs, -2).result(PATIENCE) == 2
        assert pool.submit(eval, "__import__('sys').argv").result(PATIENCE)
