"""A call with jobs among its arguments: what is pickled in their places, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._common.naming import one_line
from .._wire.calls import dump_call
from ..errors import SerializationError
from ..status import JobStatus
from .arguments import replaced
from .awaited import Awaited, Place
from .record import JobRecord
from .standing import (
    NOT_YET,
    Standing,
    blame_refusing,
    dumps_refusing,
    job_of,
    record_of,
    set_needs,
)

if TYPE_CHECKING:
    from .._wire.calls import Dumped
    from .._wire.present import About
    from .._wire.seeding import Key


def dump_waiting(
    function: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    called: str,
    key: Key | None = None,
    about: About = (),
) -> tuple[Dumped, list[Awaited], list[Any]]:
    """Pickle a call with places for results; return that, the results, and the jobs they are of.

    Raises:
        SerializationError: It cannot be pickled, or there is a job elsewhere that has not ended.
    """
    try:
        args, kwargs, awaits, jobs = _with_places(args, kwargs)
    except Exception as error:  # of a property, or of what is too deep
        raise SerializationError(
            f"an argument of {called}() holds a job, and cannot be looked into: {one_line(error)}"
        ) from error
    ways = dumps_refusing, blame_refusing
    return dump_call(function, args, kwargs, called, key, about, *ways), awaits, jobs


def _with_places(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], list[Awaited], list[Any]]:
    """Return arguments with a `Place` for each job, the results for these, and the jobs.

    A job that is not submitted yet, or is being submitted, stays where it is: the pickler refuses
    it. So none waits for one that comes later, and no jobs wait for each other.
    """
    places: dict[JobRecord, Place] = {}
    awaits: list[Awaited] = []
    jobs: list[Any] = []

    def stand_in(standing: Standing) -> Place | Standing:
        record: JobRecord = record_of(standing)
        if not _is_submitted(record):
            return standing
        place = places.get(record)
        if place is None:
            awaited = Awaited(record)
            place = places[record] = Place(awaited.number)
            awaits.append(awaited)
            jobs.append(job_of(standing))
        return place

    args, kwargs = replaced(args, kwargs, stand_in)
    return args, kwargs, awaits, jobs


def _is_submitted(record: JobRecord) -> bool:
    tracker, link = record.tracker, record.link
    if tracker.outcome is None and link is not None and link.of_parent:
        tracker.abandon(link.owner)
    return tracker.outcome is not None or tracker.status not in NOT_YET


def expect(record: JobRecord, awaits: list[Awaited], jobs: list[Any]) -> None:
    """Have a job that is being submitted wait for results; take those that are there."""
    if not awaits:
        return
    set_needs(record.handle, jobs)
    record.awaits = tuple(awaits)
    for awaited, job in zip(awaits, jobs, strict=True):
        awaited.expect()
        other = record_of(job).tracker.outcome  # after that: whoever ends it now sees it
        if other is not None and other.status is JobStatus.DONE and awaited.content is None:
            try:
                if not awaited.take_unread():
                    awaited.pickle_again(job)
            except Exception as error:  # noqa: BLE001 - of a store's file, say
                awaited.failure = error


__all__ = ["dump_waiting", "expect"]
