"""`prints_of`: where a job's output goes, by its option."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from ..insight.printed import LAST, Prints
from ..insight.tee import Tee

_UNSAFE = re.compile(r"[^\w.+-]+")
_LONGEST = 100  # characters of a name in a path


def prints_of(
    output: str,
    name: str,
    job_id: Callable[[], str],
    call: Callable[[Callable[[], object]], object],
) -> tuple[Prints, str]:
    """Return where a job's output goes, and what its worker is told of that.

    Args:
        output: "capture", "tee" or the pattern of a path.
        name: The job's.
        job_id: Returns the job's.
        call: Calls what it is given soon, on a thread where users' code may run.
    """
    if output == "capture":
        return Prints(None), output
    if output == "tee":
        return Prints(None, Tee(name, call)), output
    safe = _UNSAFE.sub("_", name)[:_LONGEST].lstrip(".") or "job"
    path = os.path.abspath(output.format(name=safe, id=job_id()))  # noqa: PTH100 - no `Path` is made
    # The worker formats it, as the job may do with its options: that changes nothing any more.
    return Prints(path), path.replace("{", "{{").replace("}", "}}")


def for_error(prints: Prints | None) -> dict[str, Any]:
    """Return what an error tells of its job's output; nothing is read from a file for it."""
    if prints is None:
        return {}
    if prints.path is not None:
        return {"output_file": prints.path}
    return {"output": prints.printed.text(LAST)}


def in_words(prints: Prints | None) -> str:
    """Return what the text of an error says of it."""
    if prints is None:
        return ""
    if prints.path is not None:
        return f"; it printed to {prints.path}"
    return "; what it printed last is the error's output" if prints.printed else ""


__all__ = ["for_error", "in_words", "prints_of"]
