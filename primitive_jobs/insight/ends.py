"""How attempts end: in words, and in colours for a light page and a dark one.

White text can be read on the colours for a light page, and dark text on the others. They differ in
lightness, too, for those who do not see all colours; and what was killed is hatched.
"""

from __future__ import annotations

from typing import NamedTuple

from ..snapshots import AttemptEnd


class Look(NamedTuple):
    """What one way to end looks like.

    Attributes:
        words: What a legend calls it.
        light: Its colour on a light page.
        dark: That on a dark page.
    """

    words: str
    light: str
    dark: str


LOOKS: dict[AttemptEnd, Look] = {
    "returned": Look("returned", "#2f6fb0", "#6cb0f0"),
    "raised": Look("raised", "#a16207", "#f0c04a"),
    "cancelled": Look("cancelled", "#6e7781", "#a3adb8"),
    "timeout": Look("past the timeout", "#d9480f", "#ff9a5c"),
    "memory": Look("over the memory limit", "#8e3ba8", "#d9a0f0"),
    "died": Look("worker died", "#a3123f", "#ff7088"),
    "running": Look("running", "#1a7f5a", "#4cc38a"),
}
"""All ends, in the order in which they are told; what comes later is drawn on top."""

KILLED: tuple[AttemptEnd, ...] = ("cancelled", "timeout", "memory", "died")
"""Those of attempts that were stopped, and brought nothing."""

__all__ = ["KILLED", "LOOKS", "Look"]
