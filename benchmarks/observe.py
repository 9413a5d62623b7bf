"""What the benchmarks see of other processes: who arrived, who is gone, what memory is whose."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from typing_extensions import Self

POLL = 1e-4  # s; short, but asleep: a busy caller would hold up the threads of the pool
_numbers = itertools.count(1)


class Meeting:
    """Where jobs say that they run, and in which process; and where they wait to be released.

    To be left before the pool is, whose end waits for them.
    """

    def __init__(self) -> None:
        self.address = f"\0primitive_jobs-benchmark-{os.getpid()}-{next(_numbers)}"  # no file
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(256)
        self._links: list[socket.socket] = []

    def next(self, timeout: float = 20) -> int:
        """Wait for the next job to arrive, and return the pid of its process."""
        self._listener.settimeout(timeout)
        link, _ = self._listener.accept()
        self._links.append(link)
        link.settimeout(timeout)
        return int.from_bytes(link.recv(8, socket.MSG_WAITALL), "little")

    def release(self) -> None:
        """Let every job go that has arrived."""
        while self._links:
            self._links.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._listener.close()


def exists(pid: int) -> bool:
    """Return whether there is still such a process; one that nobody has waited for still is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int, timeout: float = 30) -> None:
    """Wait until the pid is free again."""
    end = time.monotonic() + timeout
    while exists(pid):
        if time.monotonic() > end:
            raise TimeoutError(f"the process was not gone after {timeout} s")
        time.sleep(POLL)


def memory(pid: int) -> dict[str, int]:
    """Return the process's `private` memory, and its `proportional` one (PSS), in bytes."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, size = line.partition(":")
        found[name] = int(size.split()[0]) * 1024
    private = found["Private_Clean"] + found["Private_Dirty"]
    return {"private": private, "proportional": found["Pss"]}


def print_peak_memory(interval: float = 0.1) -> None:
    """Watch the parent and all its children but this process, until stdin ends; print the peak.

    It is the most that the sum of their proportional memory was at one moment, in bytes, looked at
    every ``interval`` s, and once more at the end.
    """
    parent, peak, ended = psutil.Process(os.getppid()), 0, False
    print("watching", flush=True)
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], interval)[0])
        total = 0
        for process in (parent, *parent.children(recursive=True)):
            if process.pid != os.getpid():
                # It may be gone by now, or a zombie, which has no memory.
                with contextlib.suppress(OSError, KeyError):
                    total += memory(process.pid)["proportional"]
        peak = max(peak, total)
    print(peak)


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What a thread has used since it started."""

    switches: int
    """Voluntary context switches: each is a wait that ended, or will, in a wake-up."""
    cpu_ns: int


def usage(pids: Iterable[int]) -> dict[tuple[int, int], Usage]:
    """Return it for each thread of these processes, by pid and thread id."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # they come and go
            for task in Path(f"/proc/{pid}/task").iterdir():
                status = (task / "status").read_text(encoding="utf-8")
                switches = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
                cpu_ns = (task / "schedstat").read_text(encoding="ascii").split()[0]
                if switches is not None:
                    found[pid, int(task.name)] = Usage(int(switches[1]), int(cpu_ns))
    return found
