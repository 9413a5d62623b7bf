"""`Setting`: the options of a job that its worker has to know, and what it does about them.

It stands before the function in the pickle of a call, so the worker meets it first: a function and
arguments that look at the working directory, or at the environment, while they are unpickled find
what the job asked for. The worker comes back to its own afterwards as it does from whatever a job
has changed: see `leftovers`.
"""

from __future__ import annotations

import os

from . import present
from .failures import OwnFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Setting:
    """Options, as a pickle that has a worker `enter` them."""

    __slots__ = ("options",)

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def __reduce__(
        self,
    ) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], tuple[dict[str, Any]]]:
        return enter, (self.options,)


def enter(options: dict[str, Any]) -> dict[str, Any]:
    """In a worker: make them so; return them.

    Raises:
        OwnFailure: One of them cannot be; its cause is what the job raises.
    """
    again = present.now.again
    if again is not None and again.about and present.now.about is not None:
        return options  # others were entered in their place
    try:
        printed = options.get("output")
        if printed is not None:
            from . import redirect  # which most jobs do without

            redirect.enter(printed)
        folder = options.get("cwd")
        if folder is not None:
            os.chdir(folder)
        for name, value in options.get("env", {}).items():
            os.environ[name] = value
    except OSError as error:
        raise OwnFailure from error
    if "retry_on" in options:  # last: modules may be imported for it
        from . import retrying  # which most jobs do without

        options["retry_on"] = retrying.load(options["retry_on"])
    return options


__all__ = ["Setting", "enter"]
