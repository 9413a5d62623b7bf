"""The types of the public interface: `typed/contract.py` for the checkers; hints at run time."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import primitive_jobs
from primitive_jobs import JobExecutor, JobOptions, JobPool, PrimitiveJob
from primitive_jobs._common.signatures import JobOptionsDict, PoolOptionsDict
from primitive_jobs.pool import PoolView
from primitive_jobs.waiting import DoneAndNotDone

ROOT = Path(__file__).parents[1]


# One interpreter checks for all of them: the session `types` does, and no run of the suite.
VERSIONS = [f"3.{minor}" for minor in range(10, 15)]


def checked(folder: Path, *command: str) -> tuple[int, str]:
    """Run a type checker of this environment, which writes into ``folder`` only."""
    caches = ("MYPY_CACHE_DIR", "PYRIGHT_PYTHON_CACHE_DIR", "XDG_CACHE_HOME", "npm_config_cache")
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={
            **os.environ,
            **dict.fromkeys(caches, str(folder)),
            "PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT": "1",  # downloads nothing
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # that a newer one exists
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.checkers
@pytest.mark.timeout(180)
@pytest.mark.parametrize("python", VERSIONS)
def test_mypy(tmp_path: Path, python: str) -> None:
    options = ("--strict", "--python-version", python)
    status, output = checked(tmp_path, "mypy", *options, "tests/typed/contract.py")
    assert status == 0, output
    assert "no issues found in 1 source file" in output


@pytest.mark.checkers
@pytest.mark.timeout(180)
@pytest.mark.parametrize("python", VERSIONS)
def test_pyright(tmp_path: Path, python: str) -> None:
    """Of the contract and of the package itself; see `[tool.pyright]`."""
    options = ("--pythonpath", sys.executable, "--pythonversion", python)
    status, output = checked(tmp_path, "pyright", *options, "--outputjson")
    assert status == 0, output
    found = json.loads(output)
    assert found["generalDiagnostics"] == []
    contract, package = ROOT / "tests/typed", ROOT / "primitive_jobs"
    expected = len([*contract.glob("*.py"), *package.rglob("*.py")])
    assert found["summary"]["filesAnalyzed"] == expected


def test_the_types_are_shipped() -> None:
    assert (files(primitive_jobs) / "py.typed").is_file()


# --- at run time ----------------------------------------------------------------------------------


PUBLIC = [
    value
    for name in primitive_jobs.__all__
    if inspect.isfunction(value := getattr(primitive_jobs, name))
]
METHODS = [
    value
    for kind in (PrimitiveJob, JobPool, PoolView, JobExecutor)
    for name in dir(kind)
    if name == "__init__" or not name.startswith("_")
    if inspect.isfunction(value := getattr(kind, name))
    if value.__module__.startswith("primitive_jobs")
]


@pytest.mark.parametrize("function", [*PUBLIC, *METHODS], ids=lambda f: str(f.__qualname__))
def test_the_hints_can_be_read(function: Callable[..., Any]) -> None:
    hints = get_type_hints(function)
    names = inspect.signature(function).parameters.keys() - {"self"}
    assert names <= hints.keys()


def test_typing_extensions_is_not_needed() -> None:
    code = (
        "import sys; from primitive_jobs import *; run(abs, -1).result();"
        "print('typing_extensions' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_keyword_arguments_are_the_options() -> None:
    job_options = get_type_hints(JobOptionsDict)
    assert job_options == get_type_hints(JobOptions)
    pool = inspect.signature(JobPool).parameters.keys()
    executor = inspect.signature(JobExecutor).parameters.keys()
    assert PoolOptionsDict.__annotations__.keys() == pool - executor
    hints = get_type_hints(JobPool.__init__)
    for name, hint in get_type_hints(PoolOptionsDict).items():
        assert hints[name] == hint


def test_what_wait_returns_is_generic() -> None:
    assert DoneAndNotDone[int].__args__ == (int,)  # type: ignore[attr-defined]
    done, not_done = DoneAndNotDone[int](set(), set())
    assert (done, not_done) == (set(), set())
