"""Everything at once: a short cut of it in every run, the long one with ``-m soak``."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import descriptors
from storm import Storm

SHORT, LONG = 1.5, 600.0  # s
AGAIN = 3.0  # s, at least, that each further one takes if the first had too few jobs
WARM = 1.0  # s, before anything is counted
HAPPENS = ["CANCELLED", "DONE", "ERROR", "JobMemoryError"]
with contextlib.suppress(OSError):  # refused: nobody else's process can be signalled for certain
    os.close(os.pidfd_open(os.getpid()))
    HAPPENS.append("outside SIGKILL")
GROWTH = 150e6  # bytes of resident memory that the caller may have more after it than before


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def blow(folder: Path, seconds: float, seed: int, tell: Callable[[str, object], None]) -> None:
    Storm(folder, seed).blow(WARM)  # what is imported and kept once is there after this
    before = resident(), threading.active_count(), descriptors()
    report = Counter(Storm(folder, seed + 1).blow(seconds))
    for more in range(2, 8):  # on a slow machine a short one has few jobs
        if not all(report[what] for what in HAPPENS):
            report += Counter(Storm(folder, seed + more).blow(max(AGAIN, 2 * seconds)))
    after = resident(), threading.active_count(), descriptors()
    lines = [f"storm of {seconds:.0f} s, seed {seed}:"]
    lines += [f"  {what:24} {count}" for what, count in sorted(report.items())]
    lines += [f"  {'memory, before -> after':24} {before[0] / 1e6:.0f} -> {after[0] / 1e6:.0f} MB"]
    tell("report", "\n".join(lines))
    assert after[1:] == before[1:], "threads or descriptors were left"
    assert after[0] - before[0] < GROWTH
    assert report["jobs"] > 10 * seconds
    for what in HAPPENS:
        assert report[what] > 0, f"nothing of it happened: {what}"
    assert not list(folder.iterdir()), "a job ran after its end was told"
    time.sleep(0.5)
    assert not list(folder.iterdir()), "a job ran after its end was told"


@pytest.mark.timeout(120)
def test_storm(marks: Path, record_property: Callable[[str, object], None]) -> None:
    blow(marks, SHORT, 1, record_property)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_long_storm(marks: Path, record_property: Callable[[str, object], None]) -> None:
    faulthandler.cancel_dump_traceback_later()  # its limit is meant for tests of ordinary length
    seed = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 1_000_000)))
    blow(marks, LONG, seed, record_property)
