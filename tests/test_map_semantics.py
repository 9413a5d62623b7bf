"""Whatever `submit(f, x)` means, `map(f, [x])` means: the table of all ways in which it might not.

The cases are in `map_cases` and `map_cases_own`, run as programs and as modules: in every run each
case in one of the ways, by turns, in a soak in both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import map_cases
import map_cases_own
import pytest

FOLDER = Path(__file__).parent
MODULES = [map_cases, map_cases_own]
WAYS = ["by value", "by reference"]
PATIENCE = 300.0  # s
ENDS = ("SerializationError", "raised")  # of the results of a map, wherever they stand


def cases(module: ModuleType, way: str, part: str) -> list[str]:
    """The names of those that are run in this way."""
    names = [name for name in module.CASES if name not in module.ONLY_BY_VALUE]
    chosen = names if part == "all" else names[WAYS.index(way) :: len(WAYS)]
    return chosen + (sorted(module.ONLY_BY_VALUE) if way == "by value" else [])


@pytest.mark.parametrize("module", MODULES)
def test_each_case_is_run_in_every_run(module: ModuleType) -> None:
    run = [name for way in WAYS for name in cases(module, way, "some")]
    assert sorted(run) == sorted(module.CASES)
    assert set(cases(module, "by value", "all")) == module.CASES.keys()


@pytest.mark.local
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("part", ["some", pytest.param("all", marks=pytest.mark.soak)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("module", MODULES)
def test_a_call_of_map_means_what_submit_means(module: ModuleType, way: str, part: str) -> None:
    name = module.__name__
    imported = f"from {name} import *; main(CASES, ONLY_BY_VALUE, {name!r})"
    program = [f"{name}.py"] if way == "by value" else ["-c", imported]
    chosen = cases(module, way, part)
    done = subprocess.run(
        [sys.executable, *program, *chosen],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == chosen
    wrong = []
    for name, outcomes in found.items():
        expected = outcomes.pop("submit")
        ends = [i for i, text in enumerate(expected) if text.startswith(ENDS)]
        expected = expected[: ends[0] + 1] if ends else expected
        for label, got in outcomes.items():
            if got != expected:
                right = sum(a == b for a, b in zip(got, expected, strict=False))
                wrong.append(f"{name}, {label}: {right} of {len(expected)} right")
    assert not wrong, "\n".join(wrong)
