"""How much memory the machine, or the cgroup, has left: `_procs.available`."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from primitive_jobs._procs import available, probe
from primitive_jobs._procs.available import anonymous_memory, available_memory, total_memory

MB = 1_000_000


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else f"{content}\n"
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a /sys/fs/cgroup of its own, with 1,000 MB of which 600 are available."""
    for module in (available, probe):
        monkeypatch.setattr(module, "PROC", tmp_path / "proc")
        monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc", meminfo="MemTotal: 1000000 kB\nMemAvailable:  600000 kB\n")
    write(tmp_path / "proc/self", cgroup="0::/a/b\n")
    (tmp_path / "cgroup").mkdir()
    return tmp_path


STAT = "inactive_file {}\nactive_file {}\nslab_reclaimable {}\nanon 5\n"


def test_the_machine_alone(system: Path) -> None:
    assert (total_memory(), available_memory()) == (1000 * 1024_000, 600 * 1024_000)


def test_no_proc(system: Path) -> None:
    (system / "proc/meminfo").unlink()
    assert total_memory() == 0, "nobody knows"


def test_the_tightest_group_counts_and_its_file_cache_is_free(system: Path) -> None:
    write(system / "cgroup", cgroup__controllers="memory")
    inner = {"memory__current": 250 * MB, "memory__max": "max", "memory__high": 300 * MB}
    write(system / "cgroup/a/b", **inner, memory__stat=STAT.format(10 * MB, 20 * MB, 5 * MB))
    outer = {"memory__current": 390 * MB, "memory__max": 400 * MB, "memory__high": "max"}
    write(system / "cgroup/a", **outer, memory__stat=STAT.format(0, 30 * MB, 0))
    assert total_memory() == 300 * MB
    assert available_memory() == 40 * MB
    (system / "cgroup/a/memory.current").write_text(str(370 * MB))
    assert available_memory() == 60 * MB
    (system / "cgroup/a/b/memory.high").write_text("max")
    assert total_memory() == 400 * MB


def test_version_1(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("3:cpu:/x\n4:memory:/a\n0::/\n")
    stat = "inactive_file 1\ntotal_inactive_file 3000000\ntotal_active_file 4000000\n"
    numbers = {"memory__usage_in_bytes": 90 * MB, "memory__limit_in_bytes": 100 * MB}
    write(system / "cgroup/memory/a", **numbers, memory__stat=stat)
    endless = {"memory__usage_in_bytes": 95 * MB, "memory__limit_in_bytes": 9223372036854771712}
    write(system / "cgroup/memory", **endless, memory__stat="")
    assert (total_memory(), available_memory()) == (100 * MB, 17 * MB)


def test_a_container_that_sees_its_own_group_as_the_root(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/of/the/host\n")
    numbers = {"memory__current": 60 * MB, "memory__max": 100 * MB}
    write(system / "cgroup", cgroup__controllers="memory", **numbers, memory__stat="")
    assert available_memory() == 40 * MB


def test_what_is_shared_is_nobodys() -> None:
    with mmap.mmap(-1, 80 * MB) as shared:
        shared.write(bytes(80 * MB))
        before = anonymous_memory(os.getpid())
        block = bytearray(50 * MB)
        block[::4096] = b"x" * len(block[::4096])
        after = anonymous_memory(os.getpid())
        assert 45 * MB < after - before < 60 * MB
        assert probe.tree_memory(os.getpid(), 0) > after + 75 * MB
        del block
