"""An initializer: pickled once, when its pool is made; sent to each worker that starts.

What of its arguments can be pickled only while a process is being started, multiprocessing's
locks, queues, connections and the like, is kept aside: the pickle says at which place it is in a
list that is pickled at each start. Everything else is a snapshot, so that all workers of a pool
get the same, and none of the user's code runs on the spawner thread. Used on both sides.
"""

from __future__ import annotations

import io
import sys

from .._common import naming
from . import calls, failures, pickling
from .parcel import HAVE_PACKETS, Content, Parcel, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .channel import PacketChannel, StreamChannel
    from .kept_globals import Keeper
    from .messages import Kind, Message

_BY_VALUE = b"fill_function"  # of `functions`: none travels by value without it
_THEIR_PACKAGES = frozenset({"multiprocessing", "_multiprocessing", "loky"})


class Initializer:
    """Function and arguments that each worker runs first.

    One that cannot be pickled is still one: then each start of a worker raises.

    Attributes:
        by_value: Whether functions travel with it that have globals of their own.
    """

    def __init__(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        # Written here, in the thread that makes the pool; the spawner only reads, until `close`.
        self._aside: list[object] = []
        self._content: Content = b""
        self._failure: tuple[str, str] | None = None
        self.by_value = False
        try:
            body, buffers = _dumps((function, args), self._aside)
            self.by_value = _BY_VALUE in body
            self._content = _pack(body, buffers)
        except (KeyboardInterrupt, SystemExit):  # of the thread that makes the pool
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a __reduce__ raises
            # The texts only: an exception of the user's is not to be dropped by the pool.
            frames = BaseException.__dict__["__traceback__"].__get__(error)
            name = naming.call_name(function)
            kind = _pickler_type([])
            why = calls.blame("the initializer", name, (function, args, {}), error, kind)
            self._failure = why, failures.text_of(error, frames)

    def check(self) -> None:
        """Raise `InitializerError` where it cannot be pickled."""
        if self._failure is not None:
            from ..errors import InitializerError

            why, text = self._failure
            raise InitializerError(why) from failures.RemoteTraceback(text)

    def dump_aside(self) -> bytes:
        """Pickle what is kept aside, while a process is being started on this thread.

        Raises:
            InitializerError: It cannot be pickled, not even now.
        """
        if not self._aside:
            return b""
        from multiprocessing.reduction import ForkingPickler

        from loky.backend import reduction

        extra: Any = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        try:
            return bytes(reduction.dumps(self._aside, _lock_reducers() | extra, protocol=5))
        except BaseException as error:
            from .._common.advice import on_initarg
            from ..errors import InitializerError

            why = naming.one_line(error)
            raise InitializerError(
                f"the initializer's arguments cannot be serialized: {why}{on_initarg(why)}"
            ) from error

    def to_other_machine(self) -> tuple[bytes | bytearray, int, dict[str, Any]]:
        """Return what `from_other_machine` makes the same of: bytes, buffers, plain data."""
        failure = self._failure
        if self._aside:
            why = (
                "the initializer's arguments cannot be sent to another machine: what "
                "multiprocessing shares (locks, queues, connections, Value, Array) is known on "
                "this one only"
            )
            failure = why, ""
        facts = {"by_value": self.by_value, "failure": failure}
        content = self._content
        if isinstance(content, Parcel):
            copy = content.copy_of_bytes()
            return copy.data, copy.buffers, facts
        return content, 0, facts

    @classmethod
    def from_other_machine(
        cls, data: bytes | bytearray, buffers: int, facts: dict[str, Any]
    ) -> Initializer:
        """Make one of what another machine's has said of itself."""
        made = cls.__new__(cls)
        made._aside = []
        made._content = Parcel.of_packed(data, buffers) if buffers else bytes(data)
        failure = facts["failure"]
        made._failure = None if failure is None else (failure[0], failure[1])
        made.by_value = facts["by_value"]
        return made

    def send(self, channel: PacketChannel | StreamChannel, kind: Kind) -> None:
        """Send it to a worker; raises as the channel's `send` does."""
        channel.send(kind, 0, self._content)

    def close(self) -> None:
        """Give the descriptor back that large arguments are held by."""
        if isinstance(self._content, Parcel):
            self._content.close()

    def let_go(self) -> None:
        """Drop what is kept aside, which is the user's, when no worker is started any more."""
        self._aside.clear()


def _lock_reducers() -> dict[type, pickling.Reducer]:
    """For Python 3.10, where the address of a fork context's lock would travel, and be used."""
    if sys.version_info >= (3, 11):
        return {}
    from multiprocessing import synchronize

    def reduce(lock: Any) -> Any:
        if lock._semlock.name is None:
            raise RuntimeError("A SemLock created in a fork context is being shared")
        return lock.__reduce_ex__(5)

    kinds = "Lock", "RLock", "Semaphore", "BoundedSemaphore"
    return {getattr(synchronize, kind): reduce for kind in kinds}


def load(message: Message, aside: bytes, by_value: bool) -> tuple[Any, Any, Keeper | None]:
    """In a worker: return function, arguments, and who is to keep what they set, if need be."""
    if message.lost:
        raise OSError(f"the initializer's arguments could not be received: {message.lost}")
    keeper: Keeper | None = None
    if by_value:
        from .kept_globals import Keeper

        keeper = Keeper()
    if aside:
        _received.extend(pickling.loads(aside))
    try:
        function, args = pickling.loads(message.body, message.buffers)
    finally:
        _received.clear()
    if keeper is not None:
        keeper.unpickled()
    return function, args, keeper


_received: list[object] = []
"""In a worker, while an initializer is unpickled: what was kept aside of its arguments."""


def _get_received(place: int) -> object:
    return _received[place]


# --- the pickle that is made once ---------------------------------------------------------------


def _pack(body: bytes, buffers: list[memoryview]) -> Content:
    try:
        return pack(body, buffers, to_file=HAVE_PACKETS)
    except OSError:  # no descriptor free, now
        return pack(body, buffers, to_file=False)


def _pickler_type(aside: list[object]) -> Any:
    """A pickler that puts what is to be pickled at each start into ``aside`` instead."""
    base: Any = pickling.pickler_type()
    started_with: dict[type, bool] = {}

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, value: object) -> Any:
            kind = type(value)
            travels_at_start = started_with.get(kind)
            if travels_at_start is None:
                travels_at_start = started_with[kind] = _is_theirs(kind)
            if not travels_at_start or not _is_shared(value):
                return super().reducer_override(value)
            aside.append(value)  # once: the pickler remembers it
            return _get_received, (len(aside) - 1,)

    return Pickler


def _dumps(call: tuple[Any, ...], aside: list[object]) -> tuple[bytes, list[memoryview]]:
    buffers: list[memoryview] = []
    file = io.BytesIO()
    _pickler_type(aside)(file, {}, pickling.keeper(buffers)).dump(call)
    return file.getvalue(), buffers


def _is_theirs(kind: type) -> bool:
    """Whether its instances are multiprocessing's or loky's to pickle, as a process is started."""
    import functools
    import types
    from multiprocessing.reduction import ForkingPickler

    from loky.backend import reduction

    for base in kind.__mro__:
        module = base.__dict__.get("__module__")
        if isinstance(module, str) and not _THEIR_PACKAGES.isdisjoint(module.split(".")):
            return True
    extra: Any = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    if kind not in extra and kind not in reduction._dispatch_table:
        return False
    # Python pickles these by itself, with whatever of the user's they hold.
    own = (types.MethodType, types.MethodDescriptorType, types.WrapperDescriptorType)
    return not issubclass(kind, (*own, functools.partial))


def _is_shared(value: object) -> bool:
    """Whether it is no ctypes object of the process's own: that is pickled like anything else."""
    import ctypes

    data: Any = ctypes.c_int.__mro__[-2]  # _ctypes._CData, which has no public name
    return not isinstance(value, data) or hasattr(value, "_wrapper")
