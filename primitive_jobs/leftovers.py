"""In a worker: takes back what a job leaves in its process and what would strike the next one.

Only what takes next to no time to notice; `JobPool` tells what stays. It is done when the answer
has been sent, so that nobody waits for it. Every worker imports this: so it imports nothing that
is not there anyway.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import faulthandler
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# With SIGCHLD ignored no exit code of a child arrives; SIGPIPE as in C ends the process.
_SIGNALS = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM)


class Leftovers:
    """The state to come back to: that of a worker which is ready for its first job.

    Args:
        stacks: The file that the Python stack of a crash goes to; None: wherever it goes now.
    """

    def __init__(self, stacks: int | None) -> None:
        self._stacks = stacks
        self._folder = _folder()
        self._mask = os.umask(0o077)
        os.umask(self._mask)
        environ: Any = os.environ
        self._environ = environ
        self._variables: dict[bytes, bytes] = {**self._environ._data}
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._handlers = [(number, signal.getsignal(number)) for number in _SIGNALS]
        self._collects = gc.isenabled()

    def take_back(self) -> None:
        """Come back to it, as far as that is possible; never raises."""
        try:
            os.umask(self._mask)
            if self._folder is not None and _folder() != self._folder:
                os.chdir(self._folder)
        except OSError:  # somebody has removed it
            pass
        try:
            # The values are the same objects, as a rule: then nobody looks into them.
            if self._environ._data != self._variables or os.environ is not self._environ:
                self._take_back_variables()
            for number, handler in self._handlers:
                if signal.getsignal(number) is not handler and handler is not None:
                    signal.signal(number, handler)
            if self._stacks is not None:  # it cannot be asked where it goes
                faulthandler.enable(self._stacks, all_threads=False)
            if gc.isenabled() is not self._collects:
                (gc.enable if self._collects else gc.disable)()
            self._take_back_streams()
        except Exception:  # noqa: BLE001 - a thread that goes on may change them meanwhile
            pass

    def _take_back_variables(self) -> None:
        os.environ = self._environ  # noqa: B003 - another object was put there, perhaps
        before, now = self._variables, dict(self._environ._data)
        for name in now.keys() - before.keys():
            del os.environb[name]
        for name, value in before.items():
            if now.get(name) != value:
                os.environb[name] = value

    def _take_back_streams(self) -> None:
        given, out, err = self._streams
        try:
            if sys.stdin is given and sys.stdout is out and sys.stderr is err:
                return
        except AttributeError:  # one of them was deleted
            pass
        sys.stdin, sys.stdout, sys.stderr = given, out, err


def _folder() -> str | None:
    """The working directory; None if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - a path object takes longer
    except OSError:
        return None
