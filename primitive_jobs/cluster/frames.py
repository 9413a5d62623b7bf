"""What a pool and its nodes say to each other: the names of the frames, and what travels in them.

=============  ====================================================================================
pool -> node   ``config`` (what all workers have in common), ``start``, ``evict`` (end a worker, or
               the start of one), ``run``, ``leave``, ``terminate``, ``kill``, ``watch``,
               ``unwatch``, ``share``, ``forget``, ``grant`` (of a lease)
node -> pool   ``lease`` (asks for one), ``started``, ``start_failed``, ``ready``, ``init_failed``,
               ``taken``, ``not_taken``, ``answer`` (the outcome of a job), ``over_memory``,
               ``died``, ``faulted``, ``gone``, ``reclaimed``, ``traces`` (what a job has
               reported and kept), ``printing`` and ``printed`` (what it prints, and has printed),
               ``bye`` (the lease has ended)
=============  ====================================================================================

A reader passes over a frame that it does not know. `VERSION` is in the names of all that a pool
asks for, so that two versions of this package can use one cluster side by side.
"""

from __future__ import annotations

import sys
from typing import Any

import primitive_jobs

from .._wire.evidence import Evidence
from .._wire.messages import Message
from .._wire.parcel import Content, Parcel, unpack
from ..errors import InitializerError
from .line import Data, Frame

VERSION = 1
PREFIX = f"primitive_jobs-{VERSION}"
"""What every key, handler and plugin of ours begins with."""
ATTACH = f"{PREFIX}-attach"  # pool -> node: from now on the connection is a `Line`
SESSION_END = f"{PREFIX}-session-end"  # pool -> node: answer when nothing of the pool is left
WATCH = f"{PREFIX}-watch"  # pool -> scheduler: tell of places and threads
PLACE = f"{PREFIX}-place"  # node -> scheduler -> pool: a place is there
RELAY = f"{PREFIX}-relay"  # pool -> scheduler: carry a connection on to a node


def versions() -> dict[str, str]:
    """Return what has to be the same in a pool's program and on its nodes.

    Functions that travel by value are code of one version of Python, and refer to this package.
    """
    return {
        "Python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        # None is known where it is not installed, but only found on the path.
        "primitive_jobs": str(getattr(primitive_jobs, "__version__", "of no version")),
    }


def listed(named: dict[str, str]) -> str:
    """Return versions as text."""
    return ", ".join(f"{name} {version}" for name, version in named.items())


def place_key(pool: str, number: int) -> str:
    """Return the key of the Dask task that is a pool's ``number``th place."""
    return f"{PREFIX}-place-{pool}-{number}"


# --- contents -------------------------------------------------------------------------------------


def packed(content: Content | None) -> tuple[Data | None, int]:
    """Return the bytes of a content that is held in no file, and the number of its buffers."""
    if isinstance(content, Parcel):
        return content.data, content.buffers
    return content, 0


def unpacked(frame: Frame) -> Content:
    """Return the content that came in a frame."""
    data, buffers = frame.get("data") or b"", frame.get("buffers", 0)
    if not buffers and isinstance(data, bytes):
        return data
    return Parcel.of_packed(data, buffers)


def answer_frame(kind: str, slot: int, message: Message) -> tuple[Frame, Data]:
    """Return a worker's message as a frame, and its data."""
    frame = {
        "frame": kind,
        "slot": slot,
        "kind": int(message.kind),
        "attempt": message.attempt,
        "lost": message.lost,
        "buffers": len(message.buffers),
        "notes": message.notes,
    }
    if not message.buffers:
        return frame, message.body
    return frame, Parcel(bytes(message.body), message.buffers, to_file=False).data


def message_of(frame: Frame) -> Message:
    """Return the message that came in a frame; its buffers can be written to."""
    data = frame.get("data") or b""
    kind, attempt, lost = frame["kind"], frame["attempt"], frame["lost"]
    notes = frame["notes"]
    if not frame["buffers"]:
        return Message(kind, attempt, data, lost=lost, notes=notes)
    if isinstance(data, bytes):
        data = bytearray(data)
    return Message(kind, attempt, *unpack(memoryview(data), frame["buffers"]), lost, notes=notes)


# --- evidence -------------------------------------------------------------------------------------

_PLAIN = (
    "pid",
    "exitcode",
    "noted",
    "initializing",
    "stack",
    "peak_memory",
    "cut_off",
    "out_of_memory",
    "left",
    "hint",
)


def evidence_as_dict(evidence: Evidence) -> dict[str, Any]:
    """Return it as plain data; of its exception, the kind and the text."""
    told = {name: getattr(evidence, name) for name in _PLAIN}
    error = evidence.error
    told["error"] = None if error is None else (type(error).__name__, str(error))
    return told


def evidence_of(told: dict[str, Any], node: str) -> Evidence:
    """Return what a node has told of a worker."""
    facts = {name: told[name] for name in _PLAIN}
    return Evidence(**facts, node=node, error=_error_of(told["error"], node))


def _error_of(told: tuple[str, str] | None, node: str) -> BaseException | None:
    if told is None:
        return None
    kind, text = told
    if kind == InitializerError.__name__:
        return InitializerError(text)
    return RuntimeError(f"on node {node}: {kind}: {text}")


__all__ = [
    "ATTACH",
    "PLACE",
    "PREFIX",
    "RELAY",
    "SESSION_END",
    "VERSION",
    "WATCH",
    "answer_frame",
    "evidence_as_dict",
    "evidence_of",
    "message_of",
    "packed",
    "place_key",
    "unpacked",
]
