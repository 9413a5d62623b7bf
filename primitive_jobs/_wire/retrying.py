"""`retry_on`: how its classes travel, and whether what a job has raised is of one of them.

A worker imports this for jobs that have the option alone.
"""

from __future__ import annotations

import _pickle as pickle
import os

from .._common.naming import one_line
from . import failures, present
from .pickling import dumps_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Kinds = tuple[type[BaseException], ...]

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - a worker's import
_LONGEST = 500  # characters of an exception's text that are told


# --- in the caller's process ----------------------------------------------------------------------


def dump(kinds: Kinds) -> bytes:
    """Pickle the classes: those of a script by value, as its functions.

    Raises:
        SerializationError: One of them cannot be pickled.
    """
    try:
        return dumps_whole(kinds)
    except Exception as error:
        from ..errors import SerializationError

        text = f"the exception classes of retry_on cannot be serialized: {one_line(error)}"
        raise SerializationError(text) from error


# --- in a worker ----------------------------------------------------------------------------------


def load(pickled: bytes) -> Kinds:
    """Return the classes; raises whatever the unpickling does."""
    kinds: Kinds = pickle.loads(pickled)
    return kinds


def counts(error: BaseException) -> bool:
    """Whether the present job may be tried again after what it has raised.

    So it is where ``except`` with the classes would catch that; no code of the user's runs here.
    """
    about = present.now.about
    if about is None or len(about) < 3:
        return False
    kinds = about[2].get("retry_on", ())
    bases = type.__dict__["__mro__"].__get__(type(error))
    return any(base is kind for kind in kinds for base in bases)


def own_frames(error: BaseException) -> int:
    """How many of its traceback's outermost frames are of this package."""
    count, frames = 0, _frames_of(error)
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        count, frames = count + 1, frames.tb_next
    return count


def text_of(error: BaseException) -> bytes:
    """What was raised, and where, in a line for the job's notes, as UTF-8."""
    text = one_line(error)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    frames = _frames_of(error)
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is not None:
        code = frames.tb_frame.f_code
        file = code.co_filename.rpartition(os.sep)[2]
        text += f" ({file}, line {frames.tb_lineno}, in {code.co_name})"
    return text.encode("utf-8", "backslashreplace")


def _frames_of(error: BaseException) -> Any:
    return BaseException.__dict__["__traceback__"].__get__(error)


def dump_raised(error: BaseException) -> tuple[bytes, bytes]:
    """Return an exception that counts as `failures.dump_exception` does, and its `text_of`."""
    return failures.dump_exception(error, skip_frames=own_frames(error)), text_of(error)


__all__ = ["counts", "dump", "dump_raised", "load"]
