"""`Evidence`: what whoever has reaped a worker tells of its end."""

from __future__ import annotations

from .fact import Fact


class Evidence(Fact):
    """What is known of a worker after its death."""

    pid: int | None = None
    exitcode: int | None = None
    # The last attempt that it began, 0 where it certainly began none; None: not known.
    noted: int | None = None
    initializing: bool = False  # it died inside the initializer
    stack: str | None = None
    peak_memory: int | None = None  # bytes, of the process itself, in its last job
    cut_off: bool = False  # it was alive, without its channel, and was killed for that
    out_of_memory: str | None = None  # what makes a SIGKILL look like the kernel's OOM killer's
    error: BaseException | None = None  # why it could not be started, be used on, or be ended
    usage: bytes | None = None  # of the attempt in which it died: see `facts.USAGE_FORM`
    left: str | None = None  # what of it may live on, and why it was not killed
    node: str | None = None  # address of the Dask worker on whose machine it was; None: on this one
    node_lost: str | None = None  # why that is known to be lost, as in "its process ended"
    hint: str | None = None  # what to say if it exits, since it did not come to our first line


__all__ = ["Evidence"]
