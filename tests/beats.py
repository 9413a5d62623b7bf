"""Jobs that note when they were alive, so that one sees whether two attempts of a job overlapped.

Times are of CLOCK_MONOTONIC, which all processes of a machine share. Workers import this, so it
imports neither pytest nor a test module.
"""

from __future__ import annotations

import itertools
import os
import signal
import struct
import time
from pathlib import Path
from typing import NamedTuple

_NOTE = struct.Struct("<dd")  # when it began, and when it was seen alive last
_PAUSE = 0.002  # s between two notes: a span is so much too short at most
END = "end"  # the file that ends all jobs in a folder


class Span(NamedTuple):
    """One process of one attempt of a job."""

    pid: int
    began: float
    seen: float


def beat(folder: Path, name: str, seconds: float = 1000.0, *, breed: bool = False) -> str:
    """Be alive for so long, or until the file ``end`` is there; return the name.

    With ``breed`` so is a child, in a session of its own, whom SIGTERM does not end.
    """
    child = os.fork() if breed else -1
    if child == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _note(folder, name, seconds)
        finally:
            os._exit(0)
    _note(folder, name, seconds)
    if child > 0:
        os.waitpid(child, 0)
    return name


def _note(folder: Path, name: str, seconds: float) -> None:
    began = time.monotonic()
    file = os.open(folder / f"{name}.{os.getpid()}.{time.monotonic_ns()}", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            now = time.monotonic()
            os.pwrite(file, _NOTE.pack(began, now), 0)
            if now >= began + seconds or (folder / END).exists():
                break
            time.sleep(_PAUSE)
    finally:
        os.close(file)


def spans(folder: Path, name: str = "*") -> dict[str, list[Span]]:
    """Return what processes noted, by the names of their jobs, the first to begin first."""
    found: dict[str, list[Span]] = {}
    for path in folder.glob(f"{name}.*.*"):
        job, pid, _ = path.name.rsplit(".", 2)
        note = path.read_bytes()
        if len(note) == _NOTE.size:  # else it has not begun
            found.setdefault(job, []).append(Span(int(pid), *_NOTE.unpack(note)))
    return {job: sorted(found[job], key=lambda span: span.began) for job in found}


def of_one(folder: Path, name: str) -> list[Span]:
    """Return the spans of one job."""
    return spans(folder, name).get(name, [])


def overlaps(of_job: list[Span]) -> list[tuple[Span, Span]]:
    """Return which processes were alive at the same time; of a job that does not ``breed``."""
    return [(one, two) for one, two in itertools.pairwise(of_job) if two.began < one.seen]


__all__ = ["END", "Span", "beat", "of_one", "overlaps", "spans"]
