"""The README: its code runs, its commands are those that are tested, and it stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT
from pages import assert_printed, run_page

from docs.coming_from_rows import comparison

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_blocks_run_and_print_what_it_says(tmp_path: Path) -> None:
    (sweep, in_order), *others = run_page(README, tmp_path)
    assert in_order is not None
    assert sorted(sweep.split("\n")) == sorted(in_order.split("\n"))  # as they are completed
    assert len(others) == 2
    for printed, expected in others:
        assert expected is not None
        assert_printed(printed, expected)


def test_the_two_commands() -> None:
    assert [command.strip() for command in COMMANDS] == [
        "python -m pip install . && python -m primitive_jobs demo",
        'python -m pip install ".[test]" && python -m pytest',
    ]
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.encode()) <= 8192


def test_it_has_the_table_of_all_peers() -> None:
    assert comparison() in README


@pytest.mark.parametrize("page", sorted({*re.findall(r"\]\(([^)#:]+)", README)}))
def test_its_links_lead_somewhere(page: str) -> None:
    assert (ROOT / page).is_file()


def test_it_names_every_page() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "how-to").glob("*.md")}
    missing = {page for page in pages if f"({page})" not in README}
    assert missing == {"docs/how-to/index.md"}
