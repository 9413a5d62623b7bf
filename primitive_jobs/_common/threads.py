"""The library's own threads: daemons, which know nothing of the context they are made in."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable


def make_thread(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    """Make a thread, called ``primitive_jobs-`` and its name.

    Its context is empty. One that it inherits (`sys.flags.thread_inherit_context`) would hold
    objects of whoever makes a pool for as long as that pool lives.
    """
    name = f"primitive_jobs-{name}"
    if sys.version_info >= (3, 14):
        empty = contextvars.Context()
        return threading.Thread(target=target, name=name, args=args, daemon=True, context=empty)
    return threading.Thread(target=target, name=name, args=args, daemon=True)
