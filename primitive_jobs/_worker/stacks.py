"""In a worker: writes the Python stack of a job that goes on, when the pool's process asks for it.

The job must not notice. So the signal's handler is Python's own: it runs between two instructions,
walks the frames and writes them in one call; it imports nothing and calls nothing of the job's. The
system calls that a signal would end are gone on with (``SA_RESTART``); some it always ends, which
is why the pool's process looks first (see `_local.stacks`). A job in a call in C does not come to
the handler: then a second signal has `faulthandler` write it, in C, whose way into the frames is
only safe while Python stands still.

The answers go into a file of their own, which nobody else writes to: the stack of the worker's end
never meets them. Its descriptor appends, whatever the reader cuts off meanwhile.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import faulthandler
import os

from .._wire.notes import (
    DEEP_LOOK_SIGNAL,
    END_OF_STACK,
    LOOK_SIGNAL,
    NUMBER,
    STACKS,
    STACKS_NAME,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_MOST = 200  # frames
_write = os.write  # the true one, whatever a job puts into its place


def answer_looks(page: memoryview, out_of_reach: Callable[[int], int]) -> None:
    """Answer from now on, if the system lets us; ``page`` tells where."""
    if LOOK_SIGNAL is None or DEEP_LOOK_SIGNAL is None:
        return
    try:
        made = os.memfd_create(STACKS_NAME)
        try:
            fd = os.open(f"/proc/self/fd/{made}", os.O_RDWR | os.O_APPEND)
        finally:
            os.close(made)
    except (AttributeError, OSError):  # this system has no such files, no /proc, or refuses
        return
    fd = out_of_reach(fd)

    def answer(number: int, frame: FrameType | None) -> None:
        del number
        lines: list[str] = []
        try:
            while frame is not None and len(lines) < _MOST:
                code = frame.f_code
                lines.append(
                    f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}'
                )
                frame = frame.f_back
            _write(fd, ("\n".join(lines) + END_OF_STACK).encode("utf-8", "backslashreplace"))
        except Exception as error:
            # One that another handler has raised in the middle is the job's.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise

    signal.signal(LOOK_SIGNAL, answer)
    signal.siginterrupt(LOOK_SIGNAL, False)
    faulthandler.register(DEEP_LOOK_SIGNAL, file=fd, all_threads=False, chain=False)
    NUMBER.pack_into(page, STACKS, fd)
