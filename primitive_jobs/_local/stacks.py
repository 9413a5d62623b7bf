"""Asks workers of this machine for the Python stack of a job that goes on, and reads the answer.

All of it is the dispatcher's thread's, and a few system calls: the worker's file is opened by its
number in /proc each time. A worker that has a job and is not being killed is not reaped, so its pid
is its own. What could go wrong:

- A signal makes some system calls return early though its handler says otherwise; signal(7) says
  which. Python's own `time.sleep` and `select` go on after it (PEP 475), a call in C may not. So a
  job in one of these is asked only if that is wanted.
- `faulthandler` may crash a process that is at work in Python. So it is asked only where Python has
  not answered for a second, though its thread had the time for that: then it is in a call in C. One
  that sleeps is in one, too, and handles the signal before it returns from there.
- What is said against it may hold for a moment only, so whoever asks may ask again.
- The job has closed the file, blocked or let go of the signal, or become another program: all that
  shows in /proc, and nothing is sent.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

from .._engine.fleet import Stacks
from .._procs.probe import PROC, signal_status
from .._procs.process import WorkerProcess
from .._wire.notes import DEEP_LOOK_SIGNAL, LOOK_SIGNAL, NUMBER, STACKS, STACKS_NAME

_MOST = 64 * 1024  # bytes of a stack that are read
_SILENCE = 0.9  # s, for which a process does not answer that is in a call in C
_ENOUGH = 0.05  # s of CPU time, in which Python comes to the handler many times

# Those of signal(7) that are never restarted, by machine: the numbers are the kernel's own.
_ENDED_EARLY = {
    "x86_64": {
        7: "poll",
        23: "select",
        34: "pause",
        35: "nanosleep",
        42: "connect",
        43: "accept",
        44: "sendto",
        45: "recvfrom",
        46: "sendmsg",
        47: "recvmsg",
        65: "semop",
        69: "msgsnd",
        70: "msgrcv",
        128: "rt_sigtimedwait",
        130: "rt_sigsuspend",
        208: "io_getevents",
        220: "semtimedop",
        230: "clock_nanosleep",
        232: "epoll_wait",
        270: "pselect6",
        271: "ppoll",
        281: "epoll_pwait",
        288: "accept4",
        299: "recvmmsg",
        307: "sendmmsg",
        333: "io_pgetevents",
        426: "io_uring_enter",
        441: "epoll_pwait2",
    },
    "aarch64": {
        4: "io_getevents",
        22: "epoll_pwait",
        72: "pselect6",
        73: "ppoll",
        101: "nanosleep",
        115: "clock_nanosleep",
        133: "rt_sigsuspend",
        137: "rt_sigtimedwait",
        188: "msgrcv",
        189: "msgsnd",
        192: "semtimedop",
        193: "semop",
        202: "accept",
        203: "connect",
        206: "sendto",
        207: "recvfrom",
        211: "sendmsg",
        212: "recvmsg",
        242: "accept4",
        243: "recvmmsg",
        269: "sendmmsg",
        292: "io_pgetevents",
        426: "io_uring_enter",
        441: "epoll_pwait2",
    },
}


class _Asked(NamedTuple):
    """When a process was asked.

    Attributes:
        pid: Its process id.
        cpu: The CPU time of its main thread by then, in s.
        at: When, on the monotonic clock.
    """

    pid: int
    cpu: float
    at: float


class LocalStacks(Stacks):
    """The stacks of one fleet's workers.

    Args:
        processes: Its workers, by slot.
    """

    def __init__(self, processes: dict[int, WorkerProcess]) -> None:
        self._processes = processes
        self._asked: dict[int, _Asked] = {}  # by slot: the last time, as long as it matters

    def ask(self, slot: int, *, deep: bool, force: bool) -> str:
        """Ask a worker."""
        process = self._processes[slot]
        number = DEEP_LOOK_SIGNAL if deep else LOOK_SIGNAL
        if number is None:
            return "this system has no signal for it"
        try:
            file = _file_of(process)
            if deep and file.stat().st_size:
                return ""  # it has answered this moment
            why = _why_not(process.pid, number) or ("" if force else _ended_early(process.pid))
            why = why or (self._why_not_deep(slot) if deep else "")
            if why:
                return why
            if not deep:
                os.truncate(file, 0)
                self._forget()
                self._asked[slot] = _Asked(process.pid, _cpu_time(process.pid), time.monotonic())
            os.kill(process.pid, number)
        except OSError as error:
            return f"it cannot be asked: {error}"
        return ""

    def _forget(self) -> None:
        for slot in self._asked.keys() - self._processes.keys():
            del self._asked[slot]

    def _why_not_deep(self, slot: int) -> str:
        """Why a process may be at work in Python; "": it is in a call in C for certain."""
        pid, asked = self._processes[slot].pid, self._asked.get(slot)
        if asked is None or asked.pid != pid or time.monotonic() - asked.at < _SILENCE:
            return "it was not asked before"
        assert LOOK_SIGNAL is not None, "it was asked by it"
        status = signal_status(pid, LOOK_SIGNAL)
        sleeps = status is not None and status.state in "SD" and not status.pending
        if sleeps or _cpu_time(pid) - asked.cpu >= _ENOUGH:
            return ""
        return "it has not come to run since it was asked: the machine is busy"

    def text(self, slot: int) -> str:
        """Return what it has written."""
        with _file_of(self._processes[slot]).open("rb", buffering=0) as file:
            return file.read(_MOST).decode(errors="replace")


def _file_of(process: WorkerProcess) -> Path:
    """Where its file is; raises OSError where it is not what it was."""
    (fd,) = NUMBER.unpack_from(process.page, STACKS)
    path = PROC / f"{process.pid}/fd/{fd}"
    if not fd or f"/memfd:{STACKS_NAME}" not in str(path.readlink()):
        raise OSError("the process has no file to write it to")
    return path


def _why_not(pid: int, number: int) -> str:
    status = signal_status(pid, number)
    if status is None:
        return "/proc does not show what it does"
    if not status.caught or status.blocked:  # for some us, while it answers or forks, or for good
        return "the job has taken or blocked the signal for it"
    return "the process is stopped" if status.state in "Tt" else ""


def _cpu_time(pid: int) -> float:
    """Of a process's main thread, in s; raises OSError."""
    try:
        text = (PROC / f"{pid}/task/{pid}/stat").read_text(errors="replace")
        fields = text.rpartition(")")[2].split()  # the name may hold anything
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError) as error:
        raise OSError("/proc does not show its CPU time") from error


def _ended_early(pid: int) -> str:
    """Why a signal might end what it does, or that it cannot be told; "": it will not."""
    force = "--force asks all the same"
    try:
        word = (PROC / f"{pid}/syscall").read_text().split()[0]
    except (OSError, IndexError):
        word = ""
    calls = _ENDED_EARLY.get(platform.machine())
    if word == "running" or (calls is not None and word.lstrip("-").isdigit()):
        call = None if word == "running" or calls is None else calls.get(int(word))
        if call is None:
            return ""
        return (
            f"it is in the system call {call}, which that ends early: Python's own sleep and "
            f"select go on, but a call in C may not; {force}"
        )
    return f"it cannot be told whether it is in a system call that this ends early; {force}"


__all__ = ["LocalStacks"]
