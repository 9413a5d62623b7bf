"""`Meter`: the time and memory that each job takes, in a process that runs many.

CPU is what the process had used after a job less what it had used after the one before: nothing
between two jobs takes long. Its peak of memory begins anew before each: the kernel lets a process
reset its own (proc_pid_clear_refs(5)). Both cost some us, so that jobs below 1 ms go without: what
such have used in all is put right after each ms of them, once the answer is out.

What was used before a job is noted in the page, too: so the pool can tell what one took that died.
"""

from __future__ import annotations

import os
import resource

from .._wire import notes
from .._wire.facts import USAGE_FORM
from . import orphans

_SELF, _CHILDREN = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
_SHORT = 1_000_000  # ns
_STATUS = "/proc/self/status"
_CLEAR_REFS = "/proc/self/clear_refs"
_RESET_PEAK = b"5"


class Meter:
    """Measures the jobs of this worker, one after the other.

    Args:
        page: What it shares with the pool.
    """

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._inherited = resource.getrusage(_SELF).ru_maxrss  # KB; no peak is told below it
        self._started = orphans.last_started()
        self._user = self._system = 0.0
        self._of_children = (0.0, 0.0)
        self._short = 0  # ns of jobs that were not measured
        self._resets = False
        self.begin()

    def _read(self) -> bool:
        """Read what was used up to now; return whether all of it is known."""
        used = resource.getrusage(_SELF)
        self._user, self._system = used.ru_utime, used.ru_stime
        started = orphans.last_started()
        alone = started is self._started and not orphans.may_be()
        if not alone:
            self._started = started
            used = resource.getrusage(_CHILDREN)
            self._of_children = used.ru_utime, used.ru_stime
        return alone

    def is_long(self, took: int) -> bool:
        """Whether a job that took so many ns is measured."""
        if took >= _SHORT:
            return True
        self._short += took
        return False

    def measure(self, took: int) -> bytes:
        """Return what the job used that took so many ns: see `facts.USAGE_FORM`."""
        user = self._user + self._of_children[0]
        system = self._system + self._of_children[1]
        exact = self._read()
        user = self._user + self._of_children[0] - user
        system = self._system + self._of_children[1] - system
        peak = self._peak() if self._resets else 0
        self._measured = True
        return USAGE_FORM.pack(took * 1e-9, user, system, peak, exact and peak > 0)

    def _peak(self) -> int:
        """Bytes; 0: not known."""
        peak = resource.getrusage(_SELF).ru_maxrss
        if peak > self._inherited:
            return peak * 1024
        try:
            with open(_STATUS, "rb", buffering=0) as file:  # noqa: PTH123 - `pathlib` is not needed
                text = file.read()
        except OSError:
            return 0
        _, _, rest = text.partition(b"VmHWM:")
        return int(rest.split(None, 1)[0]) * 1024 if rest else 0

    def begin(self) -> None:
        """Before the first job: what came before, as an initializer, is no job's."""
        self._read()
        self._begin_anew(0)

    def settle(self, attempt: int) -> None:
        """After the answer of an attempt: begin anew, if that is due."""
        if self._measured:
            self._begin_anew(attempt)
        elif self._short >= _SHORT:
            self._read()
            self._begin_anew(attempt)

    def _begin_anew(self, attempt: int) -> None:
        self._measured = False
        self._short = 0
        self._resets = self._reset()
        user = self._user + self._of_children[0]
        system = self._system + self._of_children[1]
        noted = notes.METER.pack(attempt, user, system, self._resets)
        self._page[notes.METER_AT : notes.METER_AT + notes.METER.size] = noted

    def _reset(self) -> bool:
        try:
            fd = os.open(_CLEAR_REFS, os.O_WRONLY)  # each time: a job may close what it finds open
        except OSError:
            return False
        try:
            os.write(fd, _RESET_PEAK)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


__all__ = ["Meter"]
