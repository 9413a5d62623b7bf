"""`serialize`: makes of a call what a worker is sent, or ends its job.

A function of its own also since Python 3.12 has an inner `try` line outside of an outer `try`: so
no interrupt in the caller's submit comes in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._wire.calls import dump_call
from .._wire.parcel import INLINE_LIMIT, Parcel
from .._wire.pickling import let_frames_go
from ..errors import SerializationError
from ..options import DEFAULT_LIMITS
from .record import JobRecord, PoolLink
from .standing import Met, blame_unless_met, dumps_unless_met

if TYPE_CHECKING:
    from .._wire.calls import Dumped

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""Function, arguments, those with names."""


def serialize(
    record: JobRecord,
    link: PoolLink,
    call: Call,
    called: str,
) -> bool:
    """Make the payload of a job; where that fails the job ends, and this is False."""
    failure: SerializationError
    try:
        body, buffers, refers_to = _dumped(record, call, called)
        if len(body) <= INLINE_LIMIT and not buffers and not refers_to:
            # What prints into a pipe is neither handed over by its caller nor sent ahead: that is
            # for what is no parcel. And the pool looks at once at what has needs.
            limits = record.limits
            alone = record.is_piped or (limits is not DEFAULT_LIMITS and limits.needs is not None)
            record.payload = Parcel.of_packed(body, 0) if alone else body
            if record.kept is not None:
                record.go_on_from(record.kept)
            return True
    except SerializationError as error:
        let_frames_go(error)
        failure = error
    else:
        try:
            record.payload = link.pack(body, buffers, refers_to)
            if record.kept is not None:
                record.go_on_from(record.kept)
            return True
        except SerializationError as error:  # it cannot go where the workers are
            let_frames_go(error)
            failure = error
        except (OSError, MemoryError) as error:
            failure = SerializationError(
                f"no memory for the {len(body) + sum(b.nbytes for b in buffers)} bytes of the "
                f"call of {called}(): {error}"
            )
            failure.__cause__ = error
    link.fail_early(record, failure)
    if record.awaits:
        record.drop_payload()
    return False


def _dumped(record: JobRecord, call: Call, called: str) -> Dumped:
    """Pickle a call; where there is a job among the arguments, it stands for its result."""
    told = record.key, record.about()
    try:
        return dump_call(*call, called, *told, dumps_unless_met, blame_unless_met)
    except Met:
        pass
    from .waiting_calls import dump_waiting, expect  # most calls do without

    (body, buffers, refers_to), awaits, jobs = dump_waiting(*call, called, *told)
    expect(record, awaits, jobs)
    return body, buffers, (*refers_to, *awaits)


__all__ = ["serialize"]
