"""Objects to bytes and back.

cloudpickle does the pickling, so that lambdas, closures and whatever lives in ``__main__`` can
travel. Buffers of at least `OUT_OF_BAND` bytes stay out of the pickle (protocol 5), so that a
large array is copied once on its way. Used on both sides of the channel; does no input or output.
"""

from __future__ import annotations

import _pickle as pickle  # what `pickle` is, without the milliseconds that its import takes
import contextlib
import functools
import io
import os
import sys

from .._common.imported import imported
from .._common.naming import type_name
from .messages import Lent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    Body = bytes | bytearray | memoryview
    Reducer = Callable[[Any], Any]


OUT_OF_BAND = 16 * 1024  # bytes; a smaller buffer is cheaper inside the pickle
PROTOCOL = 5  # the first with out-of-band buffers; every supported Python has it
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})  # need no cloudpickle
_SMALL = 32  # items of what is looked through before it is pickled
SCRIPTS = frozenset({"__main__", "__mp_main__"})  # the second in multiprocessing's processes


def dumps(
    value: object,
    out_of_band: int = OUT_OF_BAND,
    reducers: Mapping[type, Reducer] | None = None,
) -> tuple[bytes, list[memoryview]]:
    """Pickle ``value`` into a body and its buffers of ``out_of_band`` bytes or more.

    ``reducers`` come before those of the types themselves. Whatever the pickling raises, raises.
    """
    if type(value) in PLAIN or _holds_plain(value):
        return pickle.dumps(value, PROTOCOL), []
    buffers: list[memoryview] = []
    return dumps_whole(value, keeper(buffers, out_of_band), reducers), buffers


def _holds_plain(value: object) -> bool:
    """Whether it is a small tuple, list or dict of what is plain: pickle writes the same bytes then
    as cloudpickle, which a worker need not import for them.
    """
    kind = type(value)
    if (kind is not tuple and kind is not list and kind is not dict) or len(value) > _SMALL:  # type: ignore[arg-type]
        return False
    if not all(type(part) in PLAIN for part in value):  # type: ignore[attr-defined]
        return False
    return kind is not dict or all(type(part) in PLAIN for part in value.values())  # type: ignore[attr-defined]


def keeper(
    buffers: list[memoryview], limit: int = OUT_OF_BAND
) -> Callable[[pickle.PickleBuffer], bool]:
    """What a pickler asks whether a buffer belongs into the pickle; else ``buffers`` get it."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < limit:
            return True
        buffers.append(raw)
        return False

    return keep


def dumps_whole(
    value: object,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    reducers: Mapping[type, Reducer] | None = None,
) -> bytes:
    """Pickle ``value`` into one piece, but for what ``buffer_callback`` takes."""
    file = io.BytesIO()
    pickler_type()(file, reducers or {}, buffer_callback).dump(value)
    return file.getvalue()


reserve: list[int] = []
"""In a worker: a descriptor that is given up where a job has left none to import with."""


@functools.cache
def pickler_type() -> Any:
    """Cloudpickle's pickler, which is imported when the first job needs it."""
    try:
        from . import by_value
    except Exception:
        if not reserve:
            raise
        with contextlib.suppress(OSError):  # a job may have closed it
            os.close(reserve.pop())
        from . import by_value

    class Pickler(by_value.Pickler):
        def __init__(
            self,
            file: io.BytesIO,
            reducers: Mapping[type, Reducer],
            buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
        ) -> None:
            self.dispatch_table = by_value.table({**own_reducers(), **reducers})
            super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)

    return Pickler


def loads(body: Body, buffers: Sequence[memoryview] = ()) -> Any:
    """The opposite of `dumps`."""
    return pickle.loads(body, buffers=buffers)


def some_are_by_value() -> bool:
    """Whether modules are registered with cloudpickle to be pickled by value."""
    cloudpickle = imported("cloudpickle.cloudpickle")
    return cloudpickle is not None and bool(cloudpickle.list_registry_pickle_by_value())


def let_frames_go(error: BaseException | None) -> None:
    """Drop the tracebacks of an exception and of what led to it: their frames hold arguments."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        BaseException.with_traceback(error, None)
        error = BaseException.__dict__["__context__"].__get__(error)


LEFT_OUT: Any = ...
"""What an argument's name refers to at last in a frame that an exception holds: not the object,
which would be kept alive, nor nothing, over which IPython stumbles when it shows arguments."""


# --- shared data ---------------------------------------------------------------------------------

handle_types: dict[type, Callable[[Any], tuple[int, Any]]] = {}
"""What stands for shared data, and how to get its number and the data; filled by its module."""

lending: list[Callable[[dict[int, Any]], dict[type, Reducer]]] = []
"""Makes the reducers for what holds a descriptor; filled by its module."""

received: dict[int, Any] = {}
"""In a worker: the shared data that calls may refer to, by number; `Message`s, mapped once."""

awaited: dict[int, Any] = {}
"""In a worker: the results of other jobs that came for the next call, by number; `Message`s."""


def descriptor_holders() -> dict[type, Reducer]:
    """The types whose objects stand for a descriptor of their process, where they are loaded.

    Each with a reducer that says that they cannot travel.
    """
    get = sys.modules.get
    sock = getattr(get("socket"), "socket", None)
    connection = getattr(get("multiprocessing.connection"), "Connection", None)
    # A copy of that, which pickles more.
    other = getattr(get("multiprocess.connection"), "Connection", None)
    derived = () if connection is None else connection.__subclasses__()
    return _holders(sock, connection, other, *derived)


def own_reducers() -> dict[type, Reducer]:
    """Return those that come before the ones of the types themselves in every pickle."""
    if "torch" not in sys.modules:
        return descriptor_holders()
    from . import tensors

    return {**descriptor_holders(), **tensors.reducers()}


@functools.lru_cache(maxsize=1)  # it is looked into for each pickle
def _holders(sock: type | None, *connections: type | None) -> dict[type, Reducer]:
    def refuse(holder: object) -> NoReturn:
        name = type_name(holder)
        raise TypeError(
            f"a {name} stands for a file descriptor of its process: it travels only among the "
            "arguments of a job or of an initializer"
        )

    kinds = [*filter(None, connections)]
    for kind in kinds:  # those that are added, too
        kinds += set(kind.__subclasses__()).difference(kinds)
    # Python refuses what is derived from a socket.
    return dict.fromkeys([*kinds, sock] if sock else kinds, refuse)


def dumps_referring(
    value: object, out_of_band: int = OUT_OF_BAND
) -> tuple[bytes, list[memoryview], tuple[Any, ...]]:
    """Pickle as `dumps` does; the third of what is returned is the shared data referred to."""
    found: dict[int, Any] = {}
    body, buffers = dumps(value, out_of_band, referring(found))
    return body, buffers, tuple(found.values())


def referring(found: dict[int, Any]) -> dict[type, Reducer]:
    """Reducers for handles, which note in ``found`` what they referred to."""

    def reducer(number_and_data: Callable[[Any], tuple[int, Any]]) -> Reducer:
        def refer(handle: Any) -> tuple[Any, ...]:
            number, data = number_and_data(handle)
            found[number] = data
            return load_received, (number,)

        return refer

    # Of a copy: in another thread a module may be imported that adds to it.
    reducers = {kind: reducer(get) for kind, get in handle_types.copy().items()}
    for make in lending:
        reducers |= make(found)
    return reducers


def load_received(number: int) -> Any:
    data = received.get(number)
    if data is None:
        from ..errors import SerializationError

        raise SerializationError("the shared data has not reached this process")
    if type(data) is Lent:
        return data
    return loads(data.body, [buffer.toreadonly() for buffer in data.buffers])


def load_awaited(number: int) -> Any:
    """Return another job's result, once: it is this call's own, buffers included."""
    message = awaited.pop(number, None)
    if message is None:
        from ..errors import SerializationError

        raise SerializationError("the result of another job has not reached this process")
    return loads(message.body, message.buffers)
