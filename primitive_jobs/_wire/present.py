"""`now`: the job that this process is at; its worker's loop writes it, `inside` reads it.

Everywhere else, and between two jobs, there is none: `attempt` is 0. So it is in a child that a job
has forked: what that does is not the job's doing any more.
"""

from __future__ import annotations

from .messages import AGAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .messages import Message

    About = tuple[Any, ...]
    """Name, what the id is made of, and, where there are any, options that are not the default."""


class Again:
    """What comes with a call that is not the first attempt, or goes on with another job's.

    Attributes:
        about: What the job is told in the place of what its call says, as a pickle; b"": nothing.
        tries: How many attempts it is now.
        call: Which call of a chunk has left the state.
        state: A checkpoint, as it came; None: there is none.
        loaded: What was made of that, once somebody has asked.
    """

    __slots__ = ("about", "call", "loaded", "state", "tries")

    def __init__(self, message: Message) -> None:
        self.tries, self.call, has_state = AGAIN.unpack_from(message.notes)
        self.about = message.notes[AGAIN.size :]
        self.state = message if has_state else None
        self.loaded: list[Any] = []


class Present:
    """The job that a worker is at; written by its loop, on its main thread.

    Attributes:
        attempt: The number of its attempt in the pool; 0: there is none.
        about: What its pool has told of it; None: its call is being unpickled.
        call: Which call of a chunk it makes; 0 where it is one call.
        again: What came with it, where it is not its first attempt, or goes on with what another
            job has left; else None.
        began: When, in ns of the monotonic clock.
        message: As which it came, until it is unpickled.
        page: What is shared with the pool; None: this process is no worker.
        left: In a child that a job has forked: what is told of that job; else None.
        lend: Sends the pool a descriptor, for the present attempt, and of what it is.
        tokens: Which of its pool's tokens it has, as a pickle; None: it has none.
        ending: Called when it has ended, in this order, on the main thread, with the facts that
            travel with its outcome. What raises is passed over.
    """

    __slots__ = (
        "about",
        "again",
        "attempt",
        "began",
        "call",
        "ending",
        "left",
        "lend",
        "message",
        "page",
        "tokens",
    )

    def __init__(self) -> None:
        self.attempt = 0
        self.about: About | None = None
        self.call = 0
        self.again: Again | None = None
        self.began = 0
        self.message: Message | None = None
        self.page: memoryview | None = None
        self.tokens: bytes | None = None
        self.left: About | None = None
        self.lend: Callable[[int, int], None] | None = None
        self.ending: list[Callable[[dict[int, bytes]], object]] = []


now = Present()
_ENTER = f"{__package__}.setting", "enter"


def leave() -> None:
    """In a child that a job has forked: there is no job."""
    if now.attempt:
        now.left = now.about
    now.attempt = 0
    now.about = now.message = now.again = None
    now.ending.clear()


def about() -> About | None:
    """What is told of the present job; None where there is none."""
    told, message = now.about, now.message
    if told is None and message is not None:  # its function is being unpickled, or its arguments
        told = _read_ahead(message)
    return told


def _read_ahead(message: Message) -> About | None:
    """Read the beginning of a call's pickle, up to the first class or function in it."""
    import io
    import pickle

    class Enough(Exception):
        pass

    class Unpickler(pickle._Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == _ENTER:  # it was called; here it has no effect
                return dict
            raise Enough

    reader = Unpickler(io.BytesIO(message.body), buffers=message.buffers)
    try:
        reader.load()
    except Enough:
        pass
    memo: dict[int, Any] = reader.memo  # type: ignore[attr-defined]
    # The tuples in it come first.
    found = [each for each in memo.values() if type(each) is tuple and len(each) > 1]
    return found[0] if found else None


__all__ = ["About", "Again", "Present", "about", "leave", "now"]
