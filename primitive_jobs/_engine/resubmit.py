"""`submit_again`: a new job of a call that another one has made, from the same payload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._wire.parcel import Parcel
from ..errors import JobError
from ..insight.traces import Kept
from .again import Again
from .awaited import Awaited
from .given import Given

if TYPE_CHECKING:
    from .record import JobRecord, PoolLink


def submit_again(
    record: JobRecord, made: JobRecord, link: PoolLink | None, *, resume: bool
) -> None:
    """Queue the call of ``record``, which is over, as the job ``made``.

    Raises:
        JobError: It is not over, or its call is gone.
        PoolClosedError: The pool takes no job.
        SerializationError: It cannot go where the pool's workers are.
        OSError: No descriptor is free.
    """
    if record.tracker.outcome is None:
        raise JobError(f"job {record.name} is not over: cancel it, or wait for it, before resubmit")
    payload = record.payload
    if payload is None or link is None:
        raise JobError(
            f"the call of job {record.name} is not there any more: it stays where the job has a "
            "checkpoint and did not return, or the option keep_call=True"
        )
    link.check_open()
    copy = payload.copy() if isinstance(payload, Parcel) else Parcel.of_packed(payload, 0)
    kept = record.kept
    checkpoint = kept.checkpoint if resume and kept is not None else None
    if checkpoint is not None:  # until it has one of its own
        made.kept = Kept()
        made.kept.checkpoint = checkpoint
    made.awaits = tuple(source for source in copy.refers_to if isinstance(source, Awaited))
    made.key = record.key
    made.link = link
    # Its tokens were those of the job before.
    copy.refers_to = tuple(each for each in copy.refers_to if not isinstance(each, Given))
    made.payload = Again(1, checkpoint, made.about()).with_call(link.repack(copy))
    if made.tracker.submitted() and made.tracker.serialized():
        link.enlist(made)


__all__ = ["submit_again"]
