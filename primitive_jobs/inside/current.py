"""`current_job`: what a job knows of itself."""

from __future__ import annotations

from .._common import identity
from .._wire import present

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..options import JobOptions


class CurrentJob:
    """The job that is being run in this process; made by `current_job`.

    Attributes:
        name: As `PrimitiveJob.name`: from its options, else that of its function.
        attempt: 1 at first, one more with each of its ``retries``.
    """

    __slots__ = ("_drawn", "_told", "attempt", "name")

    def __init__(self, about: present.About, attempt: int) -> None:
        self.name: str = about[0]
        self.attempt = attempt
        self._drawn: bytes = about[1]
        self._told: dict[str, object] = about[2] if len(about) > 2 else {}

    @property
    def id(self) -> str:
        """What `PrimitiveJob.job_id` returns, there and in its program."""
        return identity.text_of(self._drawn)

    @property
    def options(self) -> JobOptions:
        """Its options, but for ``metadata``, which stays with its program."""
        from ..options import JobOptions

        told = self._told
        retry_on = told.get("retry_on")
        if isinstance(retry_on, bytes):  # its call is still being unpickled
            from .._wire import retrying

            told = {**told, "retry_on": retrying.load(retry_on)}
        return JobOptions(name=self.name, **told)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.name!r}, attempt {self.attempt}>"


def current_job() -> CurrentJob | None:
    """Return the job that calls this; None outside of jobs.

    A call of a `map` is in a job that may make several calls: that is the one. In a process that
    the job forks there is none.
    """
    about = present.about()
    if about is None or not present.now.attempt:
        return None
    again = present.now.again
    return CurrentJob(about, 1 if again is None else again.tries)


__all__ = ["CurrentJob", "current_job"]
