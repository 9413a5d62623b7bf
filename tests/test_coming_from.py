"""The pages "Coming from ...": their code runs there and here, and what they say is so.

A statement that another version of a peer no longer shows is an expected failure that says so: the
pages have to follow. With the version that they name it is a failure.
"""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import version
from typing import Any

import pytest
from helpers import ROOT, script

from docs.coming_from_rows import COLUMNS, OURS, PEERS

# Cells whose two sides come to something else: that is what the row is there for.
DIFFERENT = {
    ("concurrent.futures", "future.cancel()"): ("False", "True"),
    ("loky", "future.cancel()"): ("False", "True"),
    ("Qiskit", "job.cancel()"): ("False", "True"),
    ("Dask", "future.cancel()"): ("None", "True"),
    ("Ray", "ray.cancel(ref)"): ("None", "True"),
    ("Qiskit", "PrimitiveJob(simulate, 3).status()"): (
        "raises JobError",
        "<JobStatus.INITIALIZING",
    ),
}

# How the cells of the table of all peers begin, by whether the peer's shortcoming was seen.
WORDS = {
    "stops a running call": {True: "no", False: "yes"},
    "a crash costs": {True: "everything pending", False: "its own"},
    "lambdas": {True: "no", False: "yes"},
    "functions defined after the workers' start": {True: "no", False: "yes"},
}
# This peer's death of a worker is of another kind.
WORDS_OF = {
    ("multiprocessing.Pool", "a crash costs"): {
        True: "its own: `get()` waits",
        False: "its own job",
    }
}


def installed(peer: str) -> str:
    return platform.python_version() if PEERS[peer].of_python else version(peer.lower())


def is_named(peer: str) -> bool:
    """Whether the installed version is the one, or among those, that the pages name."""
    first, _, last = PEERS[peer].version.partition(" to ")
    size = first.count(".") + 1

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:size])

    return number(first) <= number(installed(peer)) <= number(last or first)


def see(peer: str) -> dict[str, Any]:
    rows = [(row.write, row.instead) for row in PEERS[peer].rows]
    with script(str(ROOT / "tests" / "coming_from.py"), peer) as started:
        status, out, err = started.finish(json.dumps(rows))
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith('{"there": ')]
    assert lines, err
    seen: dict[str, Any] = json.loads(lines[-1])  # Ray prints, too
    return seen


class Problems:
    """What is said and is not so: with us, and with the peer."""

    def __init__(self) -> None:
        self.of_us: list[str] = []
        self.of_peer: list[str] = []

    def add_rows(self, peer: str, there: list[str], here: list[str]) -> None:
        for row, came_there, came_here in zip(PEERS[peer].rows, there, here, strict=True):
            alike = "" if not came_there.startswith("raises") else "a value", came_there
            expected_there, expected_here = DIFFERENT.get((peer, row.write), alike)
            if not came_there.startswith(expected_there):
                self.of_peer.append(f"{row.write!r} comes to {came_there}")
            if not came_here.startswith(expected_here) or came_here.startswith("raises"):
                self.of_us.append(f"{row.instead!r} comes to {came_here}, not {expected_here}")

    def add_statements(self, shown: dict[str, tuple[bool, bool]]) -> None:
        for text, (there, here) in shown.items():
            if not there:
                self.of_peer.append(text)
            if here:
                self.of_us.append(f"it is so here, too: {text}")

    def add_columns(self, peer: str, there: dict[str, bool], here: dict[str, bool]) -> None:
        """The table of all peers."""
        for column, cell, our_cell in zip(COLUMNS, PEERS[peer].columns, OURS, strict=True):
            key = f"column: {column}"
            words = WORDS_OF.get((peer, column), WORDS[column])
            if not cell.startswith(words[there[key]]):
                self.of_peer.append(f"{column}: {cell}")
            if not our_cell.startswith(words[here[key]]):
                self.of_us.append(f"{column}: {our_cell}")


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_said_of_it(peer: str) -> None:
    if peer == "Qiskit":
        pytest.importorskip("qiskit.primitives")
    if peer == "Dask":
        pytest.importorskip("distributed")
    if peer == "Ray":  # 80 MB: not in the extra for the tests
        pytest.importorskip("ray", reason="Ray is not installed")
    seen = see(peer)
    assert not seen["errors"], "\n".join(seen["errors"])
    (values_there, there), (values_here, here) = seen["there"], seen["here"]
    said = {statement for row in PEERS[peer].rows for statement in row.different}
    columns = {f"column: {column}" for column in COLUMNS} & there.keys()
    assert said == there.keys() - columns, "each statement of the page is tried, and no other"
    assert bool(columns) == bool(PEERS[peer].columns)
    problems = Problems()
    problems.add_rows(peer, values_there, values_here)
    problems.add_statements({text: (there[text], here[text]) for text in said})
    if columns:
        problems.add_columns(peer, there, here)
    assert not problems.of_us, "\n".join(problems.of_us)
    if problems.of_peer:
        say = f"not so with {peer} {installed(peer)}: " + "; ".join(problems.of_peer)
        if is_named(peer):
            pytest.fail(f"the pages are wrong: {say}")
        pytest.xfail(f"the pages, which name {PEERS[peer].version}, have to follow: {say}")


def test_every_peer_has_a_page() -> None:
    pages = (ROOT / "docs" / "coming-from").glob("*.md")
    shown = {
        name
        for page in pages
        for name in re.findall(r"^```\{coming-from\} (\S+)$", page.read_text(), re.MULTILINE)
    }
    assert shown == PEERS.keys()
