"""CPython's own tests of `multiprocessing.Pool`, run in place with ours.

Those that it cannot meet are named here with the reason. One of these that begins to pass is a
failure, too: then it is to be taken out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from helpers import ROOT, script

pytest.importorskip("test._test_multiprocessing", reason="this Python comes without its tests")

# What each ends with, and why.
NOT_MET = {
    "_TestPool.test_make_pool": (
        "AttributeError: 'Pool' object has no attribute '_pool'",
        "it counts the processes in a private list; ours start when calls need them",
    ),
    "_TestPool.test_map_unplicklable": (
        "SerializationError: argument 1 of sqr(), a A, cannot be serialized: RuntimeError",
        "what a __reduce__ raises is the cause of an error that says which argument it was",
    ),
    "_TestPool.test_traceback": (
        "AssertionError: <class 'primitive_jobs._wire.failures.RemoteTraceback'> is not",
        "the cause is of our own class; its text has the line that the test looks for",
    ),
    "_TestPoolWorkerErrors.test_unpickleable_result": (
        "AssertionError: MaybeEncodingError not raised by get",
        "the result is a lambda, which can travel",
    ),
    "_TestPoolWorkerLifetime.test_pool_worker_lifetime": (
        "AttributeError: 'Pool' object has no attribute '_pool'",
        "it looks at the private list; test_maxtasksperchild asks the workers for their pids",
    ),
}
LEAST = 25  # tests that a Python has besides these

CODE = "import sys, cpython_pool; cpython_pool.main(sys.argv[1:])"


def outcomes_of(names: Iterable[str] = ()) -> tuple[dict[str, str], str]:
    """What becomes of these tests of theirs, or of all; and what was written to stderr."""
    path = f"{ROOT}:{ROOT / 'tests'}"
    with script("-c", CODE, *names, env={"PYTHONPATH": path}) as started:
        status, out, errors = started.finish()
        assert status == 0, errors
        started.assert_nothing_left()
    return json.loads(out), errors


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return outcomes_of()[0]


def test_theirs_pass_but_for_those_that_are_named(found: dict[str, str]) -> None:
    bad = {name: what for name, what in found.items() if what != "ok"}
    assert not bad.keys() - NOT_MET.keys(), bad
    assert len(found) >= LEAST + len(NOT_MET)


@pytest.mark.parametrize("name", NOT_MET)
def test_one_that_is_named_still_fails_and_for_that_reason(
    name: str, found: dict[str, str]
) -> None:
    assert found[name].startswith(NOT_MET[name][0]), "it may have to be taken out of the table"


def test_they_leave_nothing_behind(found: dict[str, str]) -> None:
    """Those that fail leave their pools open; of the others nothing is left, as they check."""
    _, errors = outcomes_of(found.keys() - NOT_MET.keys())
    assert "Dangling" not in errors
    assert not errors
