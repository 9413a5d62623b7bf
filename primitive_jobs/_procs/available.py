"""How much memory this machine, or the cgroup that this process is in, has left; Linux only.

Sources: /proc/meminfo (proc_meminfo(5)); memory.current, memory.max, memory.high and memory.stat of
cgroup v2, and memory.usage_in_bytes, memory.limit_in_bytes and memory.stat of v1 (the kernel's
admin guide). What a cgroup is charged for includes files that were read: these are dropped where
the memory is wanted, so they count as free. Swap does not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from .probe import CGROUPS, PAGE, PROC, tree_of

# Of v1 those with `total_` count what is below the group, too, as its usage does.
_FREE_V2 = ("inactive_file", "active_file", "slab_reclaimable")
_FREE_V1 = ("total_inactive_file", "total_active_file")
_NO_LIMIT = 1 << 60  # v1 has no word for it: its largest number of pages


def total_memory() -> int:
    """Return the bytes that could ever be had: of the machine, or of the smallest cgroup.

    0: /proc does not tell.
    """
    try:
        limits: list[float] = [_meminfo("MemTotal")]
    except OSError:
        return 0
    limits += [min(group.limits(), default=math.inf) for group in _groups()]
    return int(min(limits))


def available_memory() -> int:
    """Return the bytes that may be had now without swapping."""
    return int(min([_meminfo("MemAvailable"), *(group.left() for group in _groups())]))


def anonymous_memory(root: int) -> int:
    """Return the bytes that a process and all below it hold of their own; 0 if it is gone.

    What several share, such as a library or an array of `share`, is nobody's.
    """
    return sum(map(_anonymous, tree_of(root)))


def _anonymous(pid: int) -> int:
    try:
        fields = (PROC / str(pid) / "statm").read_bytes().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * PAGE  # resident, and of that shared: proc_pid_statm


def _meminfo(name: str) -> int:
    for line in (PROC / "meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name}")


class _Group:
    """One cgroup, of either version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        v2 = (folder / "memory.current").exists()
        self._limits = ("memory.max", "memory.high") if v2 else ("memory.limit_in_bytes",)
        self._usage = "memory.current" if v2 else "memory.usage_in_bytes"
        self._free = _FREE_V2 if v2 else _FREE_V1

    def limits(self) -> Iterator[int]:
        """Each of its limits, in bytes."""
        for name in self._limits:
            with contextlib.suppress(OSError, ValueError):  # "max" is none
                limit = int((self._folder / name).read_text())
                if limit < _NO_LIMIT:
                    yield limit

    def left(self) -> float:
        """How many bytes it may still take."""
        limit = min(self.limits(), default=None)
        if limit is None:
            return math.inf
        try:
            used = int((self._folder / self._usage).read_text())
            lines = (self._folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            return math.inf
        stat = dict(line.split(" ", 1) for line in lines)
        return limit - used + sum(int(stat.get(name, 0)) for name in self._free)


def _groups() -> list[_Group]:
    """The cgroup that this process is in, and those above it, as far as they are to be seen."""
    with contextlib.suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                together = CGROUPS / controllers
                root = together if together.exists() else CGROUPS / "memory"
            elif not controllers and (CGROUPS / "cgroup.controllers").exists():
                root = CGROUPS
            else:
                continue
            inside = root / path.lstrip("/")
            # In a container this may be a path of the host: then its own group is the root.
            folders = [inside, *inside.parents] if inside.exists() else [root]
            return [_Group(each) for each in folders if each == root or root in each.parents]
    return []


__all__ = ["anonymous_memory", "available_memory", "total_memory"]
