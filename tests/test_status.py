"""`JobStatus` against Qiskit's, and the table of moves against one written down independently."""

from __future__ import annotations

import enum
import itertools

import pytest

from primitive_jobs import FINAL_STATES, JobStatus
from primitive_jobs.status import TRANSITIONS

TEXTS = {
    "INITIALIZING": "job is being initialized",
    "QUEUED": "job is queued",
    "VALIDATING": "job is being validated",
    "RUNNING": "job is actively running",
    "CANCELLED": "job has been cancelled",
    "DONE": "job has successfully run",
    "ERROR": "job incurred error",
}
MOVES = """
INITIALIZING -> VALIDATING CANCELLED
VALIDATING -> QUEUED CANCELLED ERROR
QUEUED -> RUNNING CANCELLED ERROR
RUNNING -> QUEUED DONE CANCELLED ERROR
DONE ->
CANCELLED ->
ERROR ->
"""

QiskitStatus = enum.Enum(  # type: ignore[misc]
    "JobStatus", TEXTS, module="qiskit.providers.jobstatus"
)
Stranger = enum.Enum("JobStatus", TEXTS, module="elsewhere")  # type: ignore[misc]


def test_names_and_texts() -> None:
    assert {status.name: status.value for status in JobStatus} == TEXTS
    assert FINAL_STATES == (JobStatus.DONE, JobStatus.CANCELLED, JobStatus.ERROR)


@pytest.mark.parametrize("pair", list(itertools.product(TEXTS, TEXTS)))
def test_equality_with_qiskit(pair: tuple[str, str]) -> None:
    ours, theirs = JobStatus[pair[0]], QiskitStatus[pair[1]]
    same = pair[0] == pair[1]
    assert (ours == theirs) is same
    assert (theirs == ours) is same
    assert ({hash(ours), hash(theirs)} == {hash(ours)}) is same
    assert (JobStatus[pair[0]] == JobStatus[pair[1]]) is same


def test_no_equality_with_anything_else() -> None:
    assert Stranger["DONE"] != JobStatus.DONE
    with pytest.warns(UserWarning, match=r"JobStatus\.DONE == 'DONE' is False"):
        assert JobStatus.DONE != "DONE"
    assert JobStatus.DONE != "elsewhere"
    assert JobStatus.DONE.value != JobStatus.DONE


@pytest.mark.parametrize("pair", list(itertools.product(TEXTS, TEXTS)))
def test_every_move(pair: tuple[str, str]) -> None:
    allowed = {line.split()[0]: set(line.split()[2:]) for line in MOVES.splitlines() if line}
    legal = JobStatus[pair[1]] in TRANSITIONS[JobStatus[pair[0]]]
    assert legal is (pair[1] in allowed[pair[0]])
