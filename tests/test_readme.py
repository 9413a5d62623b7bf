"""The README: its code runs, its commands are those that are tested, its names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import primitive_jobs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run_script(code: str, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_blocks_run(number: int, tmp_path: Path) -> None:
    if "qiskit" in BLOCKS[number]:  # an extra that is not that for the tests
        pytest.importorskip("qiskit")
    assert run_script(BLOCKS[number], tmp_path)


def test_the_first_block_says_what_it_prints(tmp_path: Path) -> None:
    assert run_script(BLOCKS[0], tmp_path).split() == ["144", "True"]
    assert len(BLOCKS[0].splitlines()) <= 15
    assert len(BLOCKS) >= 3


def test_the_two_commands() -> None:
    assert [command.strip() for command in COMMANDS] == [
        "python -m pip install . && python -m primitive_jobs demo",
        'python -m pip install ".[test]" && python -m pytest',
    ]
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_public_name_is_there_and_told_of() -> None:
    for name in primitive_jobs.__all__:
        assert getattr(primitive_jobs, name) is not None
        assert re.search(rf"\b{name}\b", README), f"the README does not name {name}"
