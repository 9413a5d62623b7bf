"""`WorkerEvents`: takes in what became of a worker: its start, its readiness, its end.

A pure part of the scheduler. What a worker answers about its job is not in here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._wire.evidence import Evidence
from .events import (
    Died,
    Faulted,
    Gone,
    InitFailed,
    Lesson,
    Lost,
    NotInitialized,
    Ready,
    Started,
    StartFailed,
)
from .job_table import JobTable
from .roster import Roster
from .slots import DYING, IDLE, STARTING, WARMING, Slot
from .staffing import Staffing


class WorkerEvents:
    """The ways of the workers of one pool.

    Args:
        roster: The pool's workers.
        staffing: When more of them are started.
        table: The pool's jobs.
    """

    def __init__(self, roster: Roster, staffing: Staffing, table: JobTable) -> None:
        self._roster = roster
        self._staffing = staffing
        self._table = table
        self._slots = roster.slots

    def handlers(self) -> dict[type, Callable[[Any], None]]:
        """Return which event is taken in by what."""
        return {
            Started: self._on_started,
            StartFailed: self._on_start_failed,
            Ready: self._on_ready,
            Lesson: self._on_lesson,
            InitFailed: self._on_init_failed,
            Died: self._on_died,
            Faulted: self._on_faulted,
            Gone: self._on_gone,
        }

    def _on_started(self, event: Started) -> None:
        self._roster.started(event.slot)

    def _on_start_failed(self, event: StartFailed) -> None:
        called_off = self._slots[event.slot].state is not STARTING
        slot = self._roster.forget(event.slot)
        if not called_off:
            self._not_ready(slot, Lost(event.evidence))

    def _on_ready(self, event: Ready) -> None:
        self._staffing.ready(event.slot)

    def _on_lesson(self, event: Lesson) -> None:
        slot = self._slots.get(event.slot)
        if slot is not None and slot.state is IDLE and slot.spare and not slot.served:
            self._roster.teach(slot)

    def _on_init_failed(self, event: InitFailed) -> None:
        slot = self._slots.get(event.slot)
        if slot is not None and slot.state is WARMING:
            self._roster.kill(slot)
            self._not_ready(slot, NotInitialized(event.message, None))

    def _not_ready(self, slot: Slot, fate: Lost | NotInitialized) -> None:
        if self._staffing.not_ready(slot, by_chance=isinstance(fate, Lost)):
            self._table.fail_waiting(fate, slot.width)

    def _on_died(self, event: Died) -> None:
        slot = self._slots.get(event.slot)
        if slot is not None and slot.state is not DYING:
            slot.died = True
            self._roster.lose(slot)

    def _on_faulted(self, event: Faulted) -> None:
        slot = self._slots.get(event.slot)
        if slot is not None and slot.state is not DYING:
            slot.fault = event.error
            self._roster.lose(slot)

    def _on_gone(self, event: Gone) -> None:
        evidence = event.evidence
        slot = self._roster.forget(event.slot, lives_on=evidence.left is not None)
        if slot.fault is not None:
            evidence = Evidence(**{**vars(evidence), "error": slot.fault})
        if slot.line:
            self._table.end_line(slot, evidence)
        if slot.job is not None:
            self._roster.warm = True
            self._table.worker_gone(slot, slot.job, evidence)
        elif slot.unclear:
            raised = evidence.initializing and slot.died
            self._not_ready(slot, NotInitialized(None, evidence) if raised else Lost(evidence))


__all__ = ["WorkerEvents"]
