"""Whatever `submit(f, x)` means, `map(f, [x])` means: the table of all ways in which it might not.

The cases are in `map_cases` and `map_cases_own`, run once as programs and once as modules.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MODULES = ["map_cases", "map_cases_own"]
PATIENCE = 300.0  # s
ENDS = ("SerializationError", "raised")  # of the results of a map, wherever they stand


@pytest.mark.local
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("way", ["by value", "by reference"])
@pytest.mark.parametrize("module", MODULES)
def test_a_call_of_map_means_what_submit_means(module: str, way: str) -> None:
    imported = f"from {module} import *; main(CASES, ONLY_BY_VALUE, {module!r})"
    program = [f"{module}.py"] if way == "by value" else ["-c", imported]
    done = subprocess.run(
        [sys.executable, *program],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wrong = []
    for name, outcomes in json.loads(done.stdout).items():
        expected = outcomes.pop("submit")
        ends = [i for i, text in enumerate(expected) if text.startswith(ENDS)]
        expected = expected[: ends[0] + 1] if ends else expected
        for label, got in outcomes.items():
            if got != expected:
                right = sum(a == b for a, b in zip(got, expected, strict=False))
                wrong.append(f"{name}, {label}: {right} of {len(expected)} right")
    assert not wrong, "\n".join(wrong)
