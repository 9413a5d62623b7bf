"""What a worker process runs first: a script of its own (``boot.py FD``), since nothing of the
program that starts it can be imported yet.

It imports as little as can be: an interpreter is there in some 10 ms, and each module that every
worker imports is paid for at every start. What multiprocessing and loky are to know of the parent,
they are told if a job ever imports them.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# The descriptors that it inherits.
_TOLD = ("channel_fd", "page_fd")
_INHERITED = ("sentinel", "mp_tracker_fd", "tracker_fd")


def main(fd: int) -> None:
    """Take in what `launch` has written into the file ``fd``; be a worker."""
    with open(fd, "rb") as file:
        start: dict[str, Any] = marshal.load(file)
        told = start["worker"]
        if told["initializer"] is not None:
            told["initializer"] = file.read(), told["initializer"]
    sys.path[:] = start["sys_path"]
    sys.argv[:] = start["sys_argv"]
    os.chdir(start["dir"])
    from primitive_jobs._wire import import_hook
    from primitive_jobs._worker import loop

    _let_stdin_go(loop.out_of_reach)
    for facts, names in ((told, _TOLD), (start, _INHERITED)):
        facts.update((name, loop.out_of_reach(facts[name])) for name in names)
    settings = _settings(start)
    for name in settings.keys() & sys.modules.keys():  # what a sitecustomize has imported
        settings.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, import_hook.AfterImport(settings))
    loop.main(**told)


def _let_stdin_go(out_of_reach: Callable[[int], int]) -> None:
    """Leave the terminal's or a pipe's input to the parent, as multiprocessing does."""
    try:
        if sys.stdin is not None:
            sys.stdin.close()
    except (OSError, ValueError):
        pass
    null = out_of_reach(os.open(os.devnull, os.O_RDONLY))
    sys.stdin = open(null, encoding="utf-8", closefd=False)  # noqa: SIM115


def _settings(start: dict[str, Any]) -> dict[str, Callable[[Any], object]]:
    def know_the_parent(process: Any) -> None:
        me = process.current_process()
        me.name = start["name"]
        me.authkey = start["authkey"]
        process.ORIGINAL_DIR = start["orig_dir"]
        process._parent_process = process._ParentProcess(
            start["parent_name"], start["worker"]["parent_pid"], None
        )

    def log(util: Any) -> None:
        if start.get("log_to_stderr"):
            util.log_to_stderr(start.get("log_level"))
        elif "log_level" in start:
            util.get_logger().setLevel(start["log_level"])

    def note_subprocess(module: Any) -> None:
        from primitive_jobs._worker import orphans

        orphans.note_subprocess(module)

    def pickle_by_value(reduction: Any) -> None:
        try:
            from primitive_jobs._wire import forking
        except (ImportError, OSError):  # a job has left nothing to import with
            return
        forking.pickle_by_value(reduction)

    def forward(module: Any) -> None:
        try:
            from primitive_jobs._worker import log_handler
        except (ImportError, OSError):  # a job has left nothing to import with
            return
        log_handler.install(module.root)

    wanted = start["worker"]["log_levels"] is not None
    return {
        **({"logging": forward} if wanted else {}),
        "_posixsubprocess": note_subprocess,
        "multiprocessing.process": know_the_parent,
        "multiprocessing.reduction": pickle_by_value,
        "multiprocessing.util": log,
        "multiprocessing.resource_tracker": lambda m: _use(m, start["mp_tracker_fd"]),
        "loky.backend.resource_tracker": lambda m: _use(m, start["tracker_fd"]),
    }


def _use(tracker_module: Any, fd: int) -> None:
    tracker_module._resource_tracker._fd = fd


if __name__ == "__main__":
    main(int(sys.argv[1]))
