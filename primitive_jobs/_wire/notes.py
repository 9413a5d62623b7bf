"""What a worker and its pool share beside the channel: a page of memory, a name, a signal."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import mmap
import struct
import sys

PAGE_SIZE = mmap.PAGESIZE  # bytes shared with the pool; the stack of its end follows behind them
NOTES = struct.Struct("<QQQ")  # the attempt that began, whether the initializer runs, and
# the peak memory (ru_maxrss) that the process started with
NAME = "primitive_jobs"  # of the process, as ps and top show it: 15 bytes at most
STACK_SIGNAL: int | None = signal.SIGRTMAX if sys.platform == "linux" else None
"""What asks a worker for its Python stack right before it is killed; hardly anybody else's."""

__all__ = ["NAME", "NOTES", "PAGE_SIZE", "STACK_SIGNAL"]
