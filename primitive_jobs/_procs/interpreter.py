"""Which program worker processes are started with, and whether it can be one."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from typing import Any

from .._common.imported import imported

# A script is compiled each time that it is run; what is imported is not. So it is run from where an
# import of it keeps its bytecode, which is checked as an import does, and may be missing. It finds
# its name and its arguments as if it had been given to the interpreter.
_RUN_SCRIPT = (
    "import sys; from _frozen_importlib_external import SourceFileLoader; "
    "__file__ = sys.argv[1]; del sys.argv[0]; "
    "exec(SourceFileLoader(__name__, __file__).get_code(__name__))"
)
_WHERE = "PYTHONHOME", "PYTHONPLATLIBDIR"  # its standard library is
_REMEDY = "multiprocessing.set_executable(path) says which Python interpreter workers run on"


def executable() -> str:
    """Return the path of the interpreter that processes are started with; "" if there is none.

    It is multiprocessing's: what `multiprocessing.set_executable` was given, else the
    ``sys.executable`` that multiprocessing found when it first looked.
    """
    spawn = imported("multiprocessing.spawn")
    chosen = None if spawn is None else spawn.get_executable()
    path = os.fsdecode(chosen or sys.executable or "")
    return path and os.path.abspath(path)  # noqa: PTH100 - the guard changes its directory


def check_not_frozen() -> None:
    """Raise `RuntimeError` where what would be started is this program, again and again.

    A program made by PyInstaller, cx_Freeze or the like is its own ``sys.executable``.
    """
    path = executable()
    if getattr(sys, "frozen", False) and (
        _is_this_program(path) or path == os.path.abspath(sys.executable or "")  # noqa: PTH100
    ):
        raise RuntimeError(
            "no pool can be made in a frozen program (sys.frozen is set): its sys.executable is "
            f"itself ({path!r}), which would start itself without end; {_REMEDY}"
        )


def _is_this_program(path: str) -> bool:
    try:
        return os.path.samefile(path, "/proc/self/exe")  # noqa: PTH121
    except OSError:
        return False


def check_startable() -> None:
    """Raise what tells why no worker can be started, as far as that can be known before.

    Raises:
        RuntimeError: No interpreter is known, or it is this program: see `check_not_frozen`.
        OSError: There is no such file.
    """
    check_not_frozen()
    path = executable()
    if not path:
        raise RuntimeError(f"sys.executable is not set, so no worker can be started; {_REMEDY}")
    try:
        os.stat(path)  # noqa: PTH116 - a path object takes longer
    except (FileNotFoundError, NotADirectoryError) as error:
        raise unstartable(path, error.errno or errno.ENOENT) from None
    except OSError:  # a program that has given up rights may not see it: trying tells more
        pass


def unstartable(path: str, code: int) -> OSError:
    """Return what is raised where the system does not execute the interpreter."""
    return OSError(code, f"{os.strerror(code)}; {_REMEDY}", path)


def flags() -> list[str]:
    """Return this interpreter's options (-W, -X dev, -O), as multiprocessing's processes have."""
    try:
        return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined, no-any-return]
    except ValueError:  # somebody took something out of sys.warnoptions
        return []


def isolation() -> list[str]:
    """Return the options of a script that is to begin as soon as it can, and knows nothing of the
    user's: without site, and without variables, but where the interpreter is found by one.

    Nor does it write bytecode: it would not hear of a wish to have none.
    """
    needed = not sys.flags.ignore_environment and any(map(os.environ.get, _WHERE))
    return ["-s" if needed else "-I", "-S", "-B"]


def is_doubtful() -> bool:
    """Return whether it may be a program that embeds Python, going by its name."""
    return "py" not in os.path.basename(executable()).lower()  # noqa: PTH119


def script(module: str) -> list[str]:
    """Return the arguments that have it run a module of this package, which is not imported here.

    Raises:
        RuntimeError: Its source is nowhere.
    """
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None and os.path.isfile(spec.origin):  # noqa: PTH113
        return ["-c", _RUN_SCRIPT, spec.origin]
    loader: Any = None if spec is None else spec.loader  # the package is inside of an archive
    source = None if loader is None else loader.get_source(module)
    if source is None:
        raise RuntimeError(
            f"no worker can be started: the source of {module} is not part of this program"
        )
    return ["-c", source]


def hint() -> str:
    """Return what to say of a worker that has ended before it came to run our first line."""
    if not os.access(executable(), os.X_OK):
        return str(unstartable(executable(), errno.EACCES))
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"{executable()!r}, with which it was started, did not come as far as running this "
        f"package: it has to be a Python {version} interpreter that can import it; {_REMEDY}"
    )


__all__ = [
    "check_not_frozen",
    "check_startable",
    "executable",
    "flags",
    "hint",
    "is_doubtful",
    "isolation",
    "script",
    "unstartable",
]
