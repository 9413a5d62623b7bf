"""Starting a worker: loky's process, with a launch of our own that cleans up after a failure.

Imported by a pool's spawner at its first start, since it imports loky.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from io import BytesIO
from multiprocessing import context, resource_tracker, util
from typing import Any

from loky.backend import fork_exec, popen_loky_posix, process, reduction, spawn
from loky.backend import resource_tracker as loky_tracker


def nameless_file(name: str) -> int:
    """A descriptor of a file that nobody else can open, and that is gone with its last one."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Launch(popen_loky_posix.Popen):  # type: ignore[misc]
    """What the new process is to know is all there, in a file, before the process is.

    So nothing blocks, whatever its size, and if this process is killed half-way there is nothing
    to complain of. Standard output and error are not flushed: they may be closed, and nothing of
    their buffers is inherited.
    """

    def __init__(self, process_obj: Any) -> None:
        self.returncode = None
        self._fds: list[int] = []
        self._launch(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Have the process inherit it; here it stays closed to what else may be started."""
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj: Any) -> None:
        context.set_spawning_popen(self)
        try:
            start = BytesIO()
            facts = spawn.get_preparation_data(process_obj.name, init_main_module=False)
            reduction.dump(facts, start)
            reduction.dump(process_obj, start)
        finally:
            context.set_spawning_popen(None)
        with contextlib.ExitStack() as ours:
            file = nameless_file("primitive_jobs-start")
            ours.callback(os.close, file)
            rest = memoryview(start.getvalue())
            while rest:
                rest = rest[os.write(file, rest) :]
            os.lseek(file, 0, os.SEEK_SET)
            # The process holds the other end for as long as it lives.
            self.sentinel, theirs = os.pipe()
            self.close = util.Finalize(self, os.close, (self.sentinel,))  # calls it once
            ours.callback(os.close, theirs)
            trackers = [t._resource_tracker.getfd() for t in (loky_tracker, resource_tracker)]
            inherited = [*self._fds, file, theirs, *trackers]
            command = [sys.executable, "-m", popen_loky_posix.__name__]
            command += ["--process-name", process_obj.name, "--pipe", str(file)]
            try:
                self.pid = fork_exec.fork_exec(command, inherited, env=process_obj.env)
            except BaseException:
                self.close()
                raise


class Process(process.LokyProcess):  # type: ignore[misc]
    """loky's process, started by our launch."""

    def __reduce__(self) -> tuple[Any, ...]:
        # In the worker it is loky's own, which needs nothing of this module.
        return object.__new__, (process.LokyProcess,), vars(self)

    @staticmethod
    def _Popen(process_obj: Any) -> _Launch:  # noqa: N802 - as multiprocessing has it
        return _Launch(process_obj)
