"""What /proc tells of programs and workers: command, state, CPU time and memory."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from .sockets import PROC

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATES = {"T": "stopped", "t": "stopped", "Z": "ended", "X": "ended"}


class Load(NamedTuple):
    """What a process takes.

    Attributes:
        cpu: Percent of one CPU since the last look; None at the first one.
        memory: Resident bytes.
        peak: The most of it so far, in bytes; None: unknown.
    """

    cpu: float | None
    memory: int
    peak: int | None


class _Stat(NamedTuple):
    state: str
    ticks: int  # of CPU time
    started: int
    memory: int  # bytes


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / f"{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # the name may hold anything
        ticks = int(fields[11]) + int(fields[12])
        return _Stat(fields[0], ticks, int(fields[19]), int(fields[21]) * _PAGE)
    except (OSError, ValueError, IndexError):
        return None


def state_of(pid: int) -> str:
    """Return "stopped", "ended", or "" for a process that runs or waits."""
    stat = _stat(pid)
    return "ended" if stat is None else _STATES.get(stat.state, "")


def command_of(pid: int) -> str:
    """Return how a program was started; "": that is not to be seen."""
    try:
        words = (PROC / f"{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    words[:1] = [os.path.basename(words[0])]  # noqa: PTH119 - they are bytes
    return b" ".join(words).decode(errors="replace")


class Loads:
    """What processes take, between one look and the next."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, int], tuple[float, int]] = {}  # by pid and its start
        self._now: dict[tuple[int, int], tuple[float, int]] = {}

    def begin(self) -> None:
        """Begin a look."""
        self._before, self._now = self._now, {}

    def of(self, pid: int) -> Load | None:
        """Return what one takes; None: it is not there."""
        stat = _stat(pid)
        if stat is None:
            return None
        key, now = (pid, stat.started), time.monotonic()
        self._now[key] = now, stat.ticks
        cpu = None
        if key in self._before:
            then, ticks = self._before[key]
            cpu = 100.0 * (stat.ticks - ticks) / _TICKS / max(now - then, 1e-3)
        return Load(cpu, stat.memory, _peak(pid))


def _peak(pid: int) -> int | None:
    try:
        for line in (PROC / f"{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


__all__ = ["Load", "Loads", "command_of", "state_of"]
