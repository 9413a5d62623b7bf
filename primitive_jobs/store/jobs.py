"""`StoredJob`, the job of a point; and `Pending`, which stands for it until its row is written."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import platform
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from .._engine.stored import Raw, StoredTracker, failure_of, past_outcome
from .._wire.messages import Message
from ..errors import JobError
from ..insight.of_job import Observed
from ..insight.salvage import Checkpoint
from ..insight.traces import Kept
from ..job import PrimitiveJob, record_of
from ..status import JobStatus
from .checkpoints import Pace
from .contents import Content, content_of, plain_of
from .keys import shown
from .rows import StoredRow

if TYPE_CHECKING:
    from .._wire.seeding import Key

T = TypeVar("T")

_TAIL = 4096  # bytes of the output
_TEXT = 10_000  # characters of an error's text
PYTHON = platform.python_version()


class Origin(NamedTuple):
    """Whose results they are.

    Attributes:
        name, version, module: As `StoredRow` has them.
        code: The hash of the code; "" where none can be made.
        parts: What that is made of, by name.
    """

    name: str
    version: str | None
    module: str
    code: str
    parts: dict[str, str]

    @property
    def tag(self) -> str:
        """What a checkpoint has to have in common with whoever goes on from it."""
        return self.code if self.version is None else ""


class Point(NamedTuple):
    """One call.

    Attributes:
        key: 32 hexadecimal digits.
        args, kwargs: What the function is called with.
        arguments: By name, as they are shown.
        seed: Of its randomness; None: its pool has no seed.
    """

    key: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: Mapping[str, object]
    seed: Key | None


class StoredJob(PrimitiveJob[T]):
    """The job of a point that a store keeps; made by `StoredFunction`."""

    __slots__ = ()

    def __init__(
        self, function: Callable[..., T], point: Point, goes_on: Checkpoint | None = None
    ) -> None:
        super().__init__(function, *point.args, **point.kwargs)
        self._tracker = self._record.tracker = StoredTracker()
        self._record.key = point.seed
        if goes_on is not None:
            self._record.kept = kept = Kept()
            kept.checkpoint = goes_on

    @classmethod
    def of_row(cls, row: StoredRow) -> StoredJob[T]:
        """Return one that has ended as a row says; its result is read when it is asked for."""
        job = cls(_past, Point(row.key, (), row.arguments, {}, row.seed))
        job._be_past(row)
        job.metadata["key"] = row.key
        return job

    def _be_past(self, row: StoredRow) -> None:
        outcome = past_outcome(row.status, row.parts)
        tracker = StoredTracker()
        tracker.be_past(outcome, row.started, row.ended, row.attempts)
        self._call = self._submits = None
        self._tracker = self._record.tracker = tracker
        self._record.name = row.name
        self._record.kept = kept = Kept()
        kept.usage = row.usage

    def resubmit(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `JobError`: the point is submitted again through its `StoredFunction`."""
        raise JobError(
            f"job {self.name} belongs to a store: submit its point again, which goes on from its "
            "last checkpoint"
        )


def _past(**_: object) -> Any:
    """Stands for a function that is not called again."""


class _Seen(Observed):
    """What can be read of a job without its handle."""

    __slots__ = ("_record", "_tracker")

    def __init__(self, record: Any) -> None:
        self._record = record
        self._tracker = record.tracker


class Pending:
    """A job of which no row is written yet.

    It holds no handle: that goes where its owner lets go of it.

    Args:
        origin: Of the function.
        point: The call; its arguments are not kept.
        job: Its job.
        ended: Called with this when the job is final: on the dispatcher's thread, as a rule; in a
            race twice.

    Attributes:
        key: The point's.
        origin: As given.
        pace: When its checkpoint is looked at next.
        record: The job's.
        resumed: The checkpoint from which it goes on.
        size: Bytes of its outcome, once it is final.
        taken: The writer has it; that thread's.
    """

    def __init__(
        self, origin: Origin, point: Point, job: StoredJob[Any], ended: Callable[[Pending], object]
    ) -> None:
        self.key = point.key
        self.origin = origin
        self.pace = Pace()
        self.record = record_of(job)
        self.resumed = None if self.record.kept is None else self.record.kept.checkpoint
        self.size = 0
        self.taken = False
        self._shown = shown(point.arguments)
        self._raw: list[Raw] = []  # once it is final
        self._ended = ended
        self._guard = threading.Lock()
        self._row: StoredRow | Exception | None = None
        self._waiters: list[Callable[[StoredRow | Exception], object]] = []
        self.record.tracker.call_when_final(self._final)

    def _final(self) -> None:
        # It may be called twice, and an interrupt may end the first call anywhere.
        tracker = self.record.tracker
        if not self._raw and isinstance(tracker, StoredTracker):
            self._raw.append(tracker.take_raw())
        raw = self._raw[0]
        if isinstance(raw, Message):
            self.size = len(raw.body) + sum(len(each) for each in raw.buffers)
        self._ended(self)

    def call_when_written(self, waiter: Callable[[StoredRow | Exception], object]) -> None:
        """Have ``waiter`` called with the row, or with why there is none; at once if that is so.

        On the writer's thread, as a rule: it must not block.
        """
        with self._guard:
            if self._row is None:
                self._waiters.append(waiter)
                return
        waiter(self._row)

    def written(self, row: StoredRow | Exception) -> None:
        """Tell those who wait."""
        with self._guard:
            self._row = row
            waiters, self._waiters = self._waiters, []
        self._raw[:] = [None]
        for waiter in waiters:
            waiter(row)

    # --- its row, on the writer's thread ------------------------------------------------------

    def values(self) -> tuple[dict[str, Any], Content | None]:
        """Return what goes into the columns of its row, and into its content."""
        tracker = self.record.tracker
        steps = tracker.steps()
        status, ended, _ = steps[-1]
        started, duration = _last_run(steps)
        raw = self._raw[0]
        error_type = error_text = traceback = plain = None
        content: Content | None = None
        if status is JobStatus.DONE and isinstance(raw, Message):
            content = content_of(raw.body, raw.buffers)
            plain = None if raw.buffers else plain_of(raw.body)
        elif status is JobStatus.ERROR:
            body = failure_of(raw, self.record.name)
            content = content_of(body, ())
            error_type, error_text, traceback = pickle.loads(body)[:3]
        values: dict[str, Any] = {
            "key": self.key,
            "name": self.origin.name,
            "version": self.origin.version,
            "python": PYTHON,
            "arguments": self._shown,
            "status": status.name,
            "started": started,
            "ended": ended,
            "duration": duration,
            "usage": self._usage(duration),
            "attempts": tracker.attempts,
            "seed": None if self.record.key is None else json.dumps(self.record.key),
            "error_type": error_type,
            "error_text": None if error_text is None else error_text[:_TEXT],
            "traceback": traceback,
            "output": None,
            "progress": None,
            "size": 0 if content is None else content.size,
            "plain": plain,
            "buffers": 0 if content is None else content.buffers,
        }
        if self.record.kept is not None or self.record.prints is not None:
            self._tell(values)
        for name in ("error_type", "error_text", "traceback", "output"):
            if values[name] is not None:  # SQLite has no halves of characters
                values[name] = values[name].encode("utf-8", "backslashreplace").decode()
        return values, content

    def _usage(self, duration: float | None) -> str | None:
        kept = self.record.kept
        if duration is None:
            return None
        if kept is None or kept.usage is None:
            return json.dumps([duration, None, None, None, False])
        wall, *rest = kept.usage
        return json.dumps([duration if math.isnan(wall) else wall, *rest])

    def _tell(self, values: dict[str, Any]) -> None:
        """Add what it has printed and reported; what cannot be read is passed over."""
        seen = _Seen(self.record)
        with contextlib.suppress(Exception):
            values["output"] = seen.output(_TAIL)
        with contextlib.suppress(Exception):
            told = seen.progress
            if told is not None:
                facts = {"fraction": told.fraction, "message": told.message}
                values["progress"] = json.dumps({**facts, "values": told.values})


def _last_run(
    steps: list[tuple[JobStatus, float, float]],
) -> tuple[float | None, float | None]:
    """When the last attempt began, on the wall clock, and how many s it took; None: none did."""
    for (status, when, at), (_, _, until) in zip(steps[-2::-1], steps[:0:-1], strict=True):
        if status is JobStatus.RUNNING:
            return when, until - at
    return None, None


__all__ = ["PYTHON", "Origin", "Pending", "Point", "StoredJob"]
