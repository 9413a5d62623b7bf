"""The README on other libraries: its table's code runs there and here, and what it says is so.

A statement that another version of a peer no longer shows is an expected failure that says so: the
README has to follow. With the version that the README names it is a failure.
"""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import version
from typing import Any, NamedTuple

import pytest
from helpers import ROOT, script

README = (ROOT / "README.md").read_text(encoding="utf-8")

# Cells whose two sides come to something else: that is what the row is there for.
DIFFERENT = {
    ("concurrent.futures", "future.cancel()"): ("False", "True"),
    ("loky", "future.cancel()"): ("False", "True"),
    ("Qiskit", "job.cancel()"): ("False", "True"),
    ("Qiskit", "PrimitiveJob(simulate, 3).status()"): (
        "raises JobError",
        "<JobStatus.INITIALIZING",
    ),
}

# What the other table has in a column, by whether the peer's shortcoming was seen.
WORDS = {
    "stops a running call": {True: "no", False: "yes"},
    "a crash costs": {True: "everything pending", False: "its own"},
    "lambdas": {True: "no", False: "yes"},
    "functions defined after the workers' start": {True: "no", False: "yes"},
}


class Row(NamedTuple):
    left: str
    right: str
    statements: list[str]


class Section(NamedTuple):
    """The rows of one peer."""

    named: str
    """The version that the README names; two of them: from, to."""
    rows: list[Row]


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of the README, the table's head first."""
    text = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:1] + lines[2:]]


def peer_and_version(cell: str) -> tuple[str, str]:
    found = re.fullmatch(r"`?([\w.]+)`?,?(?: CPython)? ([\d.]+(?: to [\d.]+)?)", cell)
    assert found, f"the README must name a peer and its version: {cell}"
    return found[1], found[2]


def code_of(cell: str) -> str:
    lines = re.findall(r"`(.+?)`(?:<br>|$)", cell)
    assert lines, f"no code: {cell}"
    return "\n".join(lines)


def sections() -> dict[str, Section]:
    found: dict[str, Section] = {}
    for left, right, statements in table("Coming from ...")[1:]:
        if left.startswith("**"):
            name, named = peer_and_version(left.replace("**", ""))
            found[name] = Section(named, [])
            continue
        row = Row(code_of(left), code_of(right), [s for s in statements.split("; ") if s])
        found[name].rows.append(row)
    return found


SECTIONS = sections()


def installed(peer: str) -> str:
    of_python = peer in ("concurrent.futures", "multiprocessing.Pool")
    return platform.python_version() if of_python else version(peer.lower())


def is_named(peer: str) -> bool:
    """Whether the installed version is the one, or among those, that the README names."""
    first, _, last = SECTIONS[peer].named.partition(" to ")
    size = first.count(".") + 1

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:size])

    return number(first) <= number(installed(peer)) <= number(last or first)


def see(peer: str) -> dict[str, Any]:
    rows = [(row.left, row.right) for row in SECTIONS[peer].rows]
    with script(str(ROOT / "tests" / "coming_from.py"), peer) as started:
        status, out, err = started.finish(json.dumps(rows))
    assert status == 0, err
    seen: dict[str, Any] = json.loads(out or "null")
    assert seen, err
    return seen


class Problems:
    """What of the README is not so: with us, and with the peer."""

    def __init__(self) -> None:
        self.of_us: list[str] = []
        self.of_peer: list[str] = []

    def add_rows(self, peer: str, there: list[str], here: list[str]) -> None:
        for row, came_there, came_here in zip(SECTIONS[peer].rows, there, here, strict=True):
            alike = "" if not came_there.startswith("raises") else "a value", came_there
            expected_there, expected_here = DIFFERENT.get((peer, row.left), alike)
            if not came_there.startswith(expected_there):
                self.of_peer.append(f"{row.left!r} comes to {came_there}")
            if not came_here.startswith(expected_here) or came_here.startswith("raises"):
                self.of_us.append(f"{row.right!r} comes to {came_here}, not {expected_here}")

    def add_statements(self, shown: dict[str, tuple[bool, bool]]) -> None:
        for text, (there, here) in shown.items():
            if not there:
                self.of_peer.append(text)
            if here:
                self.of_us.append(f"it is so here, too: {text}")

    def add_columns(self, peer: str, there: dict[str, bool], here: dict[str, bool]) -> None:
        """The other table, of "Why another pool"."""
        head, ours, *others = table("Why another pool")
        assert head[1:] == [*WORDS]
        cells = {peer_and_version(row[0])[0]: row[1:] for row in others}[peer]
        for column, cell, our_cell in zip(head[1:], cells, ours[1:], strict=True):
            key = f"column: {column}"
            if not cell.startswith(WORDS[column][there[key]]):
                self.of_peer.append(f"{column}: {cell}")
            if not our_cell.startswith(WORDS[column][here[key]]):
                self.of_us.append(f"{column}: {our_cell}")


@pytest.mark.parametrize("peer", SECTIONS)
def test_what_the_readme_says_of_it(peer: str) -> None:
    if peer == "Qiskit":
        pytest.importorskip("qiskit.primitives")
    seen = see(peer)
    assert not seen["errors"], "\n".join(seen["errors"])
    (values_there, there), (values_here, here) = seen["there"], seen["here"]
    said = {statement for row in SECTIONS[peer].rows for statement in row.statements}
    columns = {f"column: {column}" for column in WORDS} & there.keys()
    assert said == there.keys() - columns, "each statement of the README is tried, and no other"
    problems = Problems()
    problems.add_rows(peer, values_there, values_here)
    problems.add_statements({text: (there[text], here[text]) for text in said})
    if columns:
        problems.add_columns(peer, there, here)
    assert not problems.of_us, "\n".join(problems.of_us)
    if problems.of_peer:
        say = f"not so with {peer} {installed(peer)}: " + "; ".join(problems.of_peer)
        if is_named(peer):
            pytest.fail(f"the README is wrong: {say}")
        pytest.xfail(f"the README, which names {SECTIONS[peer].named}, has to follow: {say}")


def test_the_other_table_has_the_same_peers() -> None:
    peers = [peer_and_version(row[0]) for row in table("Why another pool")[2:]]
    assert peers
    for peer, named in peers:
        assert SECTIONS[peer].named == named
