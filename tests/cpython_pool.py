"""Run by test_multiprocessing_peer: CPython's own tests of `Pool`, in place, with ours.

In a process of its own, since they set what a whole process has. `main` takes names of tests,
``class.test``; without any it runs all. stdout gets what became of each, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import sys
import unittest
from typing import Any

from primitive_jobs.multiprocessing import Pool

theirs: Any = importlib.import_module("test._test_multiprocessing")
script_helper: Any = importlib.import_module("test.support.script_helper")
NAMES = [name for name in dir(theirs) if name.startswith("_TestPool")]
IMPORT = "from multiprocessing import Pool"
OUR_IMPORT = "from primitive_jobs.multiprocessing import Pool"


def short(test: Any) -> str:
    """Return a test's class and name."""
    return ".".join(test.id().split(".")[-2:])


class Outcomes(unittest.TestResult):
    """What became of each test: "ok", "skipped: why", or the exception's last line."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def _note(self, test: Any, outcome: str) -> None:
        self.found[short(test)] = outcome

    # The names are unittest's.

    def addSuccess(self, test: Any) -> None:
        self._note(test, "ok")

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, f"skipped: {reason}")

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, f"{err[0].__name__}: {err[1]}"[:500])

    def addFailure(self, test: Any, err: Any) -> None:
        self.addError(test, err)


for _name in NAMES:  # by name, since workers import their classes from here
    globals()[_name] = type(
        _name,
        (getattr(theirs, _name), theirs.ProcessesMixin, unittest.TestCase),
        {"Pool": staticmethod(Pool), "__module__": __name__},
    )


def main(wanted: list[str]) -> None:
    """Run them, and print what was found."""
    multiprocessing.Pool = Pool  # type: ignore[assignment]  # where some of them take it
    run = script_helper.assert_python_ok

    def run_with_ours(*args: str) -> Any:
        return run(*(arg.replace(IMPORT, OUR_IMPORT) for arg in args), __isolated=False)

    script_helper.assert_python_ok = run_with_ours
    outcomes = Outcomes()
    with contextlib.redirect_stdout(sys.stderr):
        load = unittest.defaultTestLoader.loadTestsFromTestCase
        tests = [test for name in NAMES for test in load(globals()[name])]
        unittest.TestSuite(test for test in tests if not wanted or short(test) in wanted).run(
            outcomes
        )
    print(json.dumps(outcomes.found))
