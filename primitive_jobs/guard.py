"""A small process that outlives the pool's: it kills what jobs forked once that one is dead.

Run as a script of its own (``python -I -S guard.py PARENT_PID``); imports nothing of the package.
It reads lines ``+GROUP`` and ``-GROUP`` from standard input, the process groups of the workers.
When the parent dies it sends SIGKILL to those it knows then; at the end of its input it goes.
The death is seen through a pidfd: the input's end may come late, while a fork of the parent has it
open. Where there are no pidfds, the end of the input has to do.
"""

import contextlib
import os
import select
import signal
import sys


def main(parent: int) -> None:
    """Watch until the parent dies, or closes our input when no worker is left."""
    groups: set[int] = set()
    os.set_blocking(0, False)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # it is dead already
            poller.register(os.pidfd_open(parent), select.POLLIN)
    rest, at_end = b"", False
    while os.getppid() == parent and not (at_end and not groups):
        poller.poll()
        if at_end:  # so it is the death
            break
        rest, at_end = read(rest, groups)
        if at_end:
            poller.unregister(0)
            if not hasattr(os, "pidfd_open"):
                break
    if not at_end:
        read(rest, groups)  # what it said last
    kill(groups)


def read(rest: bytes, groups: set[int]) -> tuple[bytes, bool]:
    """Take in what the parent has said; return the incomplete last line, and if that is all."""
    while True:
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return rest, False
        if not data:
            return b"", True
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))


def kill(groups: set[int]) -> None:
    """End every process of the groups."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    main(int(sys.argv[1]))
    os._exit(0)  # its pool waits for it: nothing is left that an interpreter's end would do
