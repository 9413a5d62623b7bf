"""How much memory processes hold, who has children, what signals do, if the OOM killer came.

Reads what the system tells (psutil, /proc, /sys) and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import psutil

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes; what /proc counts memory in


class Unmeasurable(OSError):
    """The system does not show a process, or not what it holds."""


def measurable() -> bool:
    """Whether the system shows what processes hold: in short, if not for certain."""
    return sys.platform != "linux" or (PROC / "self/statm").exists()


def hidden(pid: int) -> bool:
    """Whether there is such a process, but /proc, which may be missing, does not show it."""
    if sys.platform != "linux":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not (PROC / str(pid)).exists()


def resident(pid: int) -> int:
    """Resident memory of one process in bytes; 0 if it is gone.

    Raises:
        Unmeasurable: It is not gone, but not to be seen.
        OSError: It cannot be read now, as when no descriptor is free.
    """
    if sys.platform == "linux":
        return _resident(pid)
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.Error as error:
        raise Unmeasurable(str(error)) from error


def _resident(pid: int) -> int:
    """The same by proc_pid_statm(5) alone, which takes a quarter of the time."""
    try:
        return int((PROC / str(pid) / "statm").read_bytes().split(None, 2)[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError) as error:
        if hidden(pid):
            raise Unmeasurable(f"/proc does not show process {pid}") from error
        return 0
    except PermissionError as error:
        raise Unmeasurable(str(error)) from error


def open_statm(pid: int) -> int:
    """Open what `resident_by` reads, as long as the process is there; raises OSError."""
    return os.open(PROC / str(pid) / "statm", os.O_RDONLY)


def resident_by(statm: int) -> int | None:
    """The same in 2 us, by a descriptor; None: it tells nothing, or somebody has closed it."""
    try:
        return int(os.pread(statm, 128, 0).split(None, 2)[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return None


def peak_memory(pid: int) -> int:
    """Most resident memory that a process had since it last began anew, in bytes; 0: not known."""
    try:
        text = (PROC / str(pid) / "status").read_bytes()
    except OSError:
        return 0
    _, _, rest = text.partition(b"VmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if rest else 0


def tree_memory(root: int, limit: int) -> int:
    """Resident memory in bytes of a process and all below it; 0 if it is gone.

    Raises `Unmeasurable` as `resident` does.

    Pages that these share count in each of them, which takes a moment to see; so they are counted
    once only where the sum is more than ``limit``, on Linux as proportional set sizes
    (proc_pid_smaps_rollup(5)).
    """
    pids = tree_of(root)
    total = sum(map(resident, pids))
    if total <= limit or len(pids) == 1:
        return total
    return sum(map(_proportional, pids))


def _proportional(pid: int) -> int:
    import psutil

    try:
        sizes = psutil.Process(pid).memory_full_info()
        return int(getattr(sizes, "pss", sizes.rss))
    except psutil.AccessDenied:  # it runs as somebody else
        return resident(pid)
    except psutil.Error:
        return 0


def tree_of(root: int) -> list[int]:
    """The process and all below it."""
    if not (PROC / "thread-self/children").exists():  # not Linux, or without CONFIG_PROC_CHILDREN
        import psutil

        with contextlib.suppress(psutil.Error):
            below: list[psutil.Process] = psutil.Process(root).children(recursive=True)
            return [root, *(process.pid for process in below)]
    found = [root]
    for pid in found:
        found += children_of(pid)
    return found


def children_of(pid: int) -> list[int]:
    """The processes right below one; none where the system does not tell in this way."""
    found: list[int] = []
    # Some microseconds per thread, where psutil would read about every process there is.
    for children in (PROC / f"{pid}/task").glob("*/children"):  # proc_tid_children(5)
        with contextlib.suppress(OSError):  # that thread has ended
            found += map(int, children.read_bytes().split())
    return found


def processes_below(root: int) -> list[psutil.Process]:
    """The processes below one."""
    pids = tree_of(root)[1:]
    found = []
    if pids:
        import psutil

        for pid in pids:
            with contextlib.suppress(psutil.Error, OSError):
                found.append(psutil.Process(pid))
    return found


def has_children(pid: int) -> bool | None:
    """Whether a process has any child; None where the system does not tell in this way.

    In 0.05 ms, where a look at every process there is takes milliseconds. A child that ends
    meanwhile may hide a later one in these lists (proc_tid_children(5)), but never the first.
    """
    found = False
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # a thread has ended
                found = found or bool((task / "children").read_bytes())
    except OSError:
        return None
    return found


class SignalStatus(NamedTuple):
    """What the main thread of a process has to do with a signal, and what it does."""

    caught: bool  # there is a handler
    blocked: bool
    pending: bool  # one is still to be delivered
    state: str  # R(unning), S(leeping), T (stopped), ...: proc_pid_status(5)


def signal_status(pid: int, number: int) -> SignalStatus | None:
    """None where the system does not tell, or the process is gone."""
    try:
        text = (PROC / str(pid) / "status").read_text(encoding="ascii", errors="replace")
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        caught, blocked, own, shared = (
            bool(int(fields[name], 16) >> (number - 1) & 1)
            for name in ("SigCgt", "SigBlk", "SigPnd", "ShdPnd")
        )
        return SignalStatus(caught, blocked, own or shared, fields["State"][0])
    except (OSError, KeyError, ValueError):
        return None


def oom_kills() -> dict[str, int]:
    """How often the kernel's OOM killer has killed: in the machine, in this process's cgroup.

    Empty where the system does not tell. Sources: oom_kill in /proc/vmstat; in memory.events of
    cgroup v2; in memory.oom_control of cgroup v1.
    """
    found = {}
    for place, path in [("machine", PROC / "vmstat"), ("cgroup", _cgroup_file())]:
        count = None if path is None else _oom_count(path)
        if count is not None:
            found[place] = count
    return found


def _cgroup_file() -> Path | None:
    with contextlib.suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")
            for candidate in (
                CGROUPS / "memory" / inside / "memory.oom_control",
                CGROUPS / "memory/memory.oom_control",  # of a container that sees its own as root
            ):
                if controllers == "memory" and candidate.exists():
                    return candidate
            for candidate in (
                CGROUPS / inside / "memory.events",
                CGROUPS / "memory.events",
            ):
                if not controllers and candidate.exists():
                    return candidate
    return None


def _oom_count(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
