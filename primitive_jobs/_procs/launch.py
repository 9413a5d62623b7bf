"""Starting a worker: loky's process, with a launch of our own that cleans up after a failure.

Imported by a pool's spawner at its first start, since it imports loky.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import sys
from multiprocessing import process, spawn, util
from multiprocessing.context import set_spawning_popen
from typing import Any

from loky.backend import fork_exec, popen_loky_posix
from loky.backend.process import LokyProcess

from .._wire import (
    by_value,  # noqa: F401 - what callers pickle by: later no descriptor may be free to import it
)
from .._wire.parcel import nameless_file
from . import trackers
from .interpreter import executable, flags, script

_BOOT = "primitive_jobs._worker.boot"


class _Launch(popen_loky_posix.Popen):  # type: ignore[misc]
    """What the new process is to know is all there, in a file, before the process is.

    So nothing blocks, whatever its size, and if this process is killed half-way there is nothing
    to complain of. Standard output and error are not flushed: they may be closed, and nothing of
    their buffers is inherited.
    """

    def __init__(self, process_obj: Process) -> None:
        self.returncode = None
        self._fds: list[int] = []
        self._open: list[int] = []
        self._launch(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Have the process inherit it; here it stays closed to what else may be started."""
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Close the sentinel, once; in a fork of this process, too, unlike `util.Finalize`."""
        while self._open:
            os.close(self._open.pop())

    def _launch(self, process_obj: Process) -> None:
        set_spawning_popen(self)  # pyright: ignore[reportArgumentType]
        try:
            facts, aside = _facts(process_obj)
        finally:
            set_spawning_popen(None)
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as failed:
            # The process holds the far end for as long as it lives.
            self.sentinel, theirs = os.pipe()
            self._open = [self.sentinel]
            failed.callback(self.close)
            ours.callback(os.close, theirs)
            file = nameless_file("primitive_jobs-start")
            ours.callback(os.close, file)
            for part in (marshal.dumps({**facts, "sentinel": theirs}), aside):
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(file, rest) :]
            os.lseek(file, 0, os.SEEK_SET)
            trackers = [facts[name] for name in ("tracker_fd", "mp_tracker_fd")]
            inherited = [*self._fds, *process_obj.inherited, file, theirs, *trackers]
            command = [executable(), *flags(), *script(_BOOT), str(file)]
            self.pid = fork_exec.fork_exec(command, inherited, env=process_obj.env)
            failed.pop_all()


def _facts(process_obj: Process) -> tuple[dict[str, Any], bytes]:
    """What `boot` takes in: what multiprocessing and loky tell a process of theirs, what the worker
    is told; and, of any size, what was kept aside of the initializer.
    """
    spawn._check_not_importing_main()  # type: ignore[attr-defined]
    path = [place if place != "" else process.ORIGINAL_DIR for place in sys.path]  # type: ignore[attr-defined]
    ours, of_loky = trackers.prepare()
    facts = {
        "name": process_obj.name,
        "authkey": bytes(process.current_process().authkey),
        "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]
        "dir": os.getcwd(),  # noqa: PTH109 - it is a text
        # A subclass of str, or a Path, may mean something to somebody here, but not there.
        "sys_path": [str.__str__(place) for place in path if isinstance(place, str)],
        "sys_argv": [str.__str__(word) for word in sys.argv if isinstance(word, str)],
        "mp_tracker_fd": ours,
        "tracker_fd": of_loky,
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]
    }
    if util._logger is not None:  # type: ignore[attr-defined]
        facts["log_level"] = util.get_logger().getEffectiveLevel()
    told, aside = process_obj.told, b""
    initializer = told["initializer"]
    if initializer is not None:
        aside = initializer.dump_aside()
        told = {**told, "initializer": initializer.by_value}
    parent_name = process_obj._parent_name  # pyright: ignore[reportAttributeAccessIssue]
    return {**facts, "parent_name": parent_name, "worker": told}, aside


class Process(LokyProcess):  # type: ignore[misc]
    """loky's process, with our launch here and our own first lines there.

    loky's own script imports all of loky, which takes longer than everything else together.

    Args:
        name: For multiprocessing.
        env: Environment variables besides those of this process.
        told: The arguments of `loop.main`.
        inherited: Descriptors that it gets, under the same numbers.
    """

    def __init__(
        self, name: str, env: dict[str, str], told: dict[str, Any], inherited: list[int]
    ) -> None:
        super().__init__(name=name, env=env)
        self.told = told
        self.inherited = inherited

    @staticmethod
    def _Popen(process_obj: Any) -> _Launch:  # noqa: N802 - as multiprocessing has it
        return _Launch(process_obj)
