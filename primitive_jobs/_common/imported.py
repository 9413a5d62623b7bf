"""Modules that others have imported: what they say is asked for, and none is imported for it.

`sys.modules` has a module from the begin of its import on, when most of its names are not there
yet, and another thread may be in the middle of that.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def imported(name: str) -> Any:
    """Return a module whose import has ended; None where it has not, or never began.

    Nobody can have told, or got, anything of a module before.
    """
    module = sys.modules.get(name)
    # What the import system itself goes by; a module without a spec was put there as it is.
    under_way = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return None if under_way else module


__all__ = ["imported"]
