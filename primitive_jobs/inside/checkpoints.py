"""`checkpoint` and `resume`: what a job wants kept of what it has done, whatever becomes of it.

Each attempt writes into two nameless files in turn. The pool gets the descriptor of each once, when
it is made; then the worker notes in the page which one is the newest, and how long it is. So the
pool has the last whole checkpoint wherever the worker dies: it is the one before while another is
being written. At the end of the attempt the worker closes its descriptors.

A lock is held while one is written, and by the end of the attempt. The main thread sends the
outcome afterwards: so no two threads use the channel at a time.
"""

from __future__ import annotations

import functools
import os
import resource
import types
from _thread import RLock
from pathlib import Path
from time import monotonic_ns

from .._wire import facts, notes, pickling, rng_states
from .._wire.messages import CHECKPOINTS
from .._wire.parcel import laid_out, nameless_file
from .._wire.present import now
from .reporting import as_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any
else:
    Any = object  # for `typing.get_type_hints`

_CALLED = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
)
_LARGE = 64 << 20  # bytes, from which on an older checkpoint is not left to take memory

_lock = RLock()  # which knows whether its thread has it


class _Files:
    """The files of the present attempt; used by whoever holds the lock.

    Attributes:
        attempt: Whose they are.
        spent: ns that its checkpoints have taken.
        last: ns that the last one has taken.
        held: Bytes that each file holds.
        first: The number of its first one, which is even: such are in the first file.
        over: The attempt is, and its descriptors are closed.
    """

    def __init__(self, attempt: int, before: int) -> None:
        self.attempt = attempt
        self.first = (before | 1) + 1
        self.spent = self.last = 0
        self.over = False
        self.held = [0, 0]
        self._fds = [-1, -1]

    def is_due(self, most: float) -> bool:
        """Whether one more would take no more than ``most`` percent of the job's time."""
        took = monotonic_ns() - now.began
        return (self.spent + self.last) * 100 <= most * took

    def of(self, slot: int) -> int:
        """Return the descriptor of a file, which is made when it is first asked for."""
        if self._fds[slot] < 0:
            fd = nameless_file("primitive_jobs-checkpoint")
            try:
                assert now.lend is not None, "that of a worker is set"
                now.lend(fd, CHECKPOINTS)
            except BaseException:
                os.close(fd)
                raise
            self._fds[slot] = fd
        return self._fds[slot]

    def shrink(self, slot: int, size: int) -> None:
        """Have a file hold no more than so much."""
        if self._fds[slot] >= 0 and self.held[slot] > size:
            os.ftruncate(self._fds[slot], size)
            self.held[slot] = size

    def close(self) -> None:
        """Close the descriptors: the pool has its own."""
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = [-1, -1]


_files = _Files(0, 0)
_number = 0  # of the last checkpoint of this process; written by whoever holds the lock


def checkpoint(state: object, *, force: bool = False, most: float = 5.0) -> bool:
    """Keep what the job has done so far: its owner, or its next attempt, has it whatever happens.

    `PrimitiveJob.partial_result` returns the last one, while the job runs and after its end, be it
    a cancel, a limit, a crash or a kill. `resume` returns it in the next attempt, if the job has
    ``retries``, and in a job made by `PrimitiveJob.resubmit`. With it the states of `random`, of
    numpy's old functions, of `job_rng` and of torch on the CPU are kept, as they are once ``state``
    was called: what is drawn after a `resume` is what would have been drawn.

    It goes to memory of the pool's process, not to disk, and counts towards ``memory_limit``. In an
    inner loop it is skipped as a rule: in 0.5 us.

    Args:
        state: What is kept, pickled as a result is, with copies of data of `share`; or a function,
            method or `functools.partial` that is called without arguments where one is due, and
            returns it. To keep a function, have another one return it.
        force: Whether it is always written; default False: as long as all of them together take at
            most ``most`` percent of the job's time so far.
        most: That percentage; default 5.

    Returns:
        Whether it was written. False also outside of a job, in a process that a job has forked, and
        in a handler of a signal that comes while one is being written. What a thread keeps that a
        job has left behind is taken for the next job's.

    Raises:
        TypeError, ValueError: ``force`` is no bool, or ``most`` no number from 0 on.
        MemoryError: The job would pass its ``memory_limit`` by it; nothing was written.
        OSError: The system refuses the memory, a descriptor, or so large a file (RLIMIT_FSIZE).
        Exception: Whatever ``state`` raises, and whatever its pickling does.
    """
    global _files
    if force is not True and force is not False:
        raise TypeError(f"force must be True or False, not {type(force).__name__}")
    if type(most) is not float:
        most = as_number("most", most)
    if not most >= 0:
        raise ValueError(f"most must be a percentage from 0 on, not {most!r}")
    attempt = now.attempt
    if not attempt or _lock._is_owned():  # type: ignore[attr-defined]
        return False  # that is a handler of a signal, in the middle of one
    if not force and _files.attempt == attempt and not _files.is_due(most):
        return False
    began = monotonic_ns()
    # Outside of the lock: whatever that takes, it holds up no end of a job.
    made = state() if isinstance(state, _CALLED) else state
    content = pickling.dumps((rng_states.save(), made))
    with _lock:
        if now.attempt != attempt or (_files.attempt == attempt and _files.over):
            return False  # the job has ended meanwhile, and this is a thread that it left
        if _files.attempt != attempt:
            now.ending.append(_end)
            _files = _Files(attempt, _number)
        _write(_files, *content)
        _files.last = monotonic_ns() - began
        _files.spent += _files.last
    return True


def _write(files: _Files, body: bytes, buffers: list[memoryview]) -> None:
    global _number
    page = now.page
    assert page is not None, "that of a worker is set"
    parts: Sequence[bytes | memoryview] = laid_out(body, buffers) if buffers else [body]
    size = sum(map(len, parts))
    # By what is published, whatever has interrupted an earlier call: never is the newest one
    # written over.
    noted = notes.newest_checkpoint(page, files.attempt)
    number = files.first if noted is None else notes.NUMBER.unpack_from(noted)[0] + 1
    slot = number & 1
    _check_memory(files, slot, size)
    fd, place = files.of(slot), 0
    page[notes.WRITING_AT : notes.WRITING_AT + 8] = notes.NUMBER.pack(number)
    files.held[slot] = max(files.held[slot], size)
    for part in parts:
        rest = memoryview(part)
        while rest:
            written = os.pwrite(fd, rest, place)
            rest, place = rest[written:], place + written
    held = sum(files.held)
    header = number, files.attempt, now.call, size, len(buffers), held, number
    _number = number
    at = notes.checkpoint_at(slot)
    page[at : at + notes.CHECKPOINT.size] = notes.CHECKPOINT.pack(*header)
    if held > _LARGE:
        files.shrink(slot, size)
        files.shrink(1 - slot, 0)


def _check_memory(files: _Files, slot: int, size: int) -> None:
    options = now.about[2] if now.about is not None and len(now.about) > 2 else {}
    limit = options.get("memory_limit") or options.get("memory")
    if limit is None:
        return
    resident = int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
    held = files.held[1 - slot] + max(size, files.held[slot])
    if resident + held > limit:
        raise MemoryError(
            f"a checkpoint of {size:,} bytes would pass the job's memory_limit of {limit:,} bytes: "
            f"its process holds {resident:,}, and its checkpoints would hold {held:,}"
        )


def _end(told: dict[int, bytes]) -> None:
    """At the end of the attempt: what it has kept goes along with its outcome."""
    with _lock:
        page = now.page
        last = None if page is None else notes.newest_checkpoint(page, now.attempt)
        if last is not None:
            told[facts.CHECKPOINT] = last
        _files.over = True
        _files.close()


def resume(default: Any = None) -> Any:
    """Return the last checkpoint of an earlier attempt, and have random numbers go on from there.

    That is one of the same job, which has ``retries``, or of the job that this one is a
    `PrimitiveJob.resubmit` of. In a call of a `map` it is that of the same call.

    Args:
        default: Returned where there is none: in a first attempt, outside of a job.

    Returns:
        The same object each time.

    Raises:
        Exception: Whatever the unpickling raises.
    """
    again = now.again
    if again is None or again.state is None or again.call != now.call or not now.attempt:
        return default
    if not again.loaded:
        saved, state = pickling.loads(again.state.body, again.state.buffers)
        rng_states.restore(saved)
        again.loaded.append(state)
    return again.loaded[0]


__all__ = ["checkpoint", "resume"]
