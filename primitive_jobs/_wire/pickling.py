"""Objects to bytes and back: calls, results, exceptions with their remote tracebacks.

cloudpickle does the pickling, so that lambdas, closures and whatever lives in ``__main__`` can
travel. Buffers of at least `OUT_OF_BAND` bytes stay out of the pickle (protocol 5), so that a
large array is copied once on its way. Used on both sides of the channel; does no input or output.
"""

from __future__ import annotations

import _pickle as pickle  # what `pickle` is, without the milliseconds that its import takes
import contextlib
import copyreg
import functools
import io
import os
import sys
import types

from .._common.imported import imported
from .._common.naming import call_name, message_of, one_line, type_name
from .messages import Lent

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn, Protocol

    from .seeding import Key

    Body = bytes | bytearray | memoryview
    Reducer = Callable[[Any], Any]

    class Named(Protocol):
        """A job, or whatever else has a name for messages."""

        @property
        def name(self) -> str:
            """The name."""
            ...


OUT_OF_BAND = 16 * 1024  # bytes; a smaller buffer is cheaper inside the pickle
_PROTOCOL = 5  # the first with out-of-band buffers; every supported Python has it
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})  # need no cloudpickle
SCRIPTS = frozenset({"__main__", "__mp_main__"})  # the second in multiprocessing's processes
_NOT_PICKLED = " (which cannot be pickled)"
_IS_OURS = b""  # in place of a pickled exception: a SerializationError of our own
_ENDS_PROGRAMS = (SystemExit, KeyboardInterrupt, GeneratorExit)
# By module: looked up where it is loaded, since who raised one has loaded it.
_CANCELLATIONS = {
    "asyncio.exceptions": "CancelledError",
    "concurrent.futures._base": "CancelledError",
    "trio": "Cancelled",
}


def dumps(
    value: object,
    out_of_band: int = OUT_OF_BAND,
    reducers: Mapping[type, Reducer] | None = None,
) -> tuple[bytes, list[memoryview]]:
    """Pickle ``value`` into a body and its buffers of ``out_of_band`` bytes or more.

    ``reducers`` come before those of the types themselves. Whatever the pickling raises, raises.
    """
    if type(value) in PLAIN:
        return pickle.dumps(value, _PROTOCOL), []
    buffers: list[memoryview] = []
    return dumps_whole(value, keeper(buffers, out_of_band), reducers), buffers


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
            self.dispatch_table = by_value.table({**descriptor_holders(), **reducers})
            super().__init__(file, protocol=_PROTOCOL, buffer_callback=buffer_callback)

    return Pickler


def loads(body: Body, buffers: Sequence[memoryview] = ()) -> Any:
    """The opposite of `dumps`."""
    return pickle.loads(body, buffers=buffers)


def dump_call(
    function: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    key: Key | None = None,
) -> tuple[bytes, list[memoryview], tuple[Any, ...]]:
    """Pickle one call; the third of what is returned is the shared data it refers to.

    With a ``key`` the worker seeds by it what is random.

    Raises:
        SerializationError: It cannot be pickled; the message names the function or argument.
    """
    call: tuple[Any, ...] = function, args, kwargs
    if key is not None:
        from .seeding import Entering  # which unseeded pools do without

        call = Entering(key), *call
    if _is_plain_call(function, args, kwargs):
        try:
            return pickle.dumps(call, _PROTOCOL), [], ()
        except Exception:  # noqa: BLE001 - cloudpickle will do, or say why not
            pass
    try:
        return dumps_referring(call)
    except Exception as error:
        from ..errors import SerializationError

        told = blame("the function", name, (function, args, kwargs), error)
        raise SerializationError(told) from error


def blame(kind: str, name: str, call: Any, error: BaseException, pickler_type: Any = None) -> str:
    """Say what of a call cannot be pickled: see `culprit.blame`."""
    try:
        from . import culprit
    except Exception:  # noqa: BLE001 - no descriptor is left to import with
        return f"the call of {name}() cannot be serialized: {one_line(error)}"
    return culprit.blame(kind, name, call, error, pickler_type)


def _is_plain_call(
    function: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether pickle makes of the call what cloudpickle would, in a fifth of the time."""
    kind = type(function)
    if kind is types.FunctionType:
        # By reference, as cloudpickle decides it each time: the module is known by its name, and
        # nobody registered it to be pickled by value.
        module = function.__module__
        if type(module) is not str or module in SCRIPTS or module not in sys.modules:
            return False
        if some_are_by_value():
            return False
    elif kind is not types.BuiltinFunctionType or type(function.__self__) is not types.ModuleType:  # type: ignore[attr-defined]
        return False
    for arg in args:  # a generator takes longer than all of the loop
        if type(arg) not in PLAIN:
            return False
    return not kwargs or all(type(arg) in PLAIN for arg in kwargs.values())


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


# --- exceptions ---------------------------------------------------------------------------------


def _withheld() -> tuple[type[BaseException], ...]:
    """What no caller is to meet because a job raised it.

    It would end the program, or pass for the cancellation of the task that awaits the job, which
    an event loop takes for an end that was asked for.
    """
    types: tuple[type[BaseException], ...] = _ENDS_PROGRAMS
    for module, name in _CANCELLATIONS.items():
        kind = getattr(sys.modules.get(module), "__dict__", {}).get(name)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            types += (kind,)
    return types


def _without_withheld(error: Any, withheld: tuple[type[BaseException], ...]) -> Any:
    """The same, but for a group that holds, at any depth, what is withheld: a copy with `JobError`s
    in its place. User code runs where a group has a ``derive`` of its own.
    """
    if issubclass(type(error), withheld):
        return _named(type_name(error), message_of(error))
    if not issubclass(type(error), _group_types()):
        return error
    inner = [_without_withheld(one, withheld) for one in error.exceptions]
    if all(new is old for new, old in zip(inner, error.exceptions, strict=True)):
        return error
    group = error.derive(inner)
    for name, value in error.__dict__.items():  # its notes; on 3.10 what it holds is there, too
        group.__dict__.setdefault(name, value)
    return group


def _group_types() -> tuple[type, ...]:
    found = [
        getattr(sys.modules.get(module), "BaseExceptionGroup", None)
        for module in ("builtins", "exceptiongroup")  # the second for Python 3.10
    ]
    return tuple(kind for kind in found if isinstance(kind, type))


def _named(kind: str, message: str, why: str = "") -> BaseException:
    """What comes in the place of an exception that cannot come itself."""
    from ..errors import JobError

    return JobError(_raised(kind, message, why))


def _raised(kind: str, message: str, why: str = "") -> str:
    return f"the job raised {kind}: {message}{why}"


class RemoteTraceback(Exception):
    """The cause of every exception that came from a worker: the traceback there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{_with_sources(self.text)}"""'


_FRAME = r'^ +File "(?P<file><[^"]*>|[^"]*)", line (?P<line>\d+), in .*\n(?! {4,}\S)'


def _with_sources(text: str) -> str:
    """Add the source lines that only this process can see (those of a notebook or a REPL)."""
    import linecache
    import re

    def add(frame: re.Match[str]) -> str:
        source = linecache.getline(frame["file"], int(frame["line"])).strip()
        return f"{frame[0]}    {source}\n" if source else frame[0]

    return re.sub(_FRAME, add, text, flags=re.MULTILINE)


def dump_exception(error: BaseException, skip_frames: int = 0) -> bytes:
    """Pickle an exception so that it arrives in some form whatever it is; never raises.

    ``skip_frames`` of the traceback's outermost frames, those of the worker's loop, are left out.
    """
    frames = BaseException.__dict__["__traceback__"].__get__(error)
    for _ in range(skip_frames):
        if frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
    withheld = _withheld()
    is_withheld = issubclass(type(error), withheld)
    pickled: bytes | str | None = None  # as text: why not
    if not is_withheld:
        try:
            pickled = _pickle_exception(_without_withheld(error, withheld))
        except BaseException as failure:  # noqa: BLE001 - whatever its __reduce__ raises
            pickled = _which_part(error, failure)
    text = text_of(error, frames)
    return pickle.dumps(
        (type_name(error), message_of(error), text, pickled, is_withheld), _PROTOCOL
    )


def _which_part(value: object, failure: BaseException) -> str | None:
    """Which part of an object cannot be pickled, as far as that can be told; never raises."""
    try:
        from .culprit import path_to_culprit

        return path_to_culprit(value, failure) or None
    except BaseException:  # noqa: BLE001 - nothing left to import with; a __reduce__ interrupts
        return None


def text_of(error: BaseException, frames: types.TracebackType | None) -> str:
    """The traceback as Python prints it."""
    try:
        import traceback

        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # noqa: BLE001 - a __str__ that raises, or nothing left to import with
        lines = ["Traceback (most recent call last):\n"]
        while frames is not None:
            code = frames.tb_frame.f_code
            lines.append(
                f'  File "{code.co_filename}", line {frames.tb_lineno}, in {code.co_name}\n'
            )
            frames = frames.tb_next
        return "".join(lines) + f"{type_name(error)}: {message_of(error)}\n"


def _pickle_exception(error: BaseException) -> bytes:
    parts = _taken_apart(error)
    if not some_are_by_value():
        try:  # as a rule this is all that is needed, also where a job left nothing to import with
            file = io.BytesIO()
            pickler = pickle.Pickler(file, _PROTOCOL)
            pickler.dispatch_table = copyreg.dispatch_table | descriptor_holders()
            pickler.dump(parts)
            pickled = file.getvalue()
            if b"_main__" not in pickled:  # a name in this process may be none where it goes
                return pickled
        except Exception:  # noqa: BLE001 - cloudpickle will do, or say why not
            pass
    return dumps_whole(parts)


def _taken_apart(error: BaseException) -> object:
    """An exception that pickles in the default way, as its parts; any other, as it is.

    The default way sets each attribute with setattr, which a frozen dataclass forbids.
    """
    kind = type(error)
    default = all(
        getattr(kind, name, None) is getattr(BaseException, name)
        for name in ("__reduce__", "__setstate__")
    )
    if default and kind.__reduce_ex__ is object.__reduce_ex__:
        return kind, error.args, error.__dict__
    return error


def _put_together(pickled: object) -> object:
    if not isinstance(pickled, tuple):
        return pickled
    kind, args, attributes = pickled
    error = kind(*args)
    error.__dict__.update(attributes)
    return error


def load_exception(body: Body) -> BaseException:
    """Return the exception of `dump_exception` with its remote traceback as cause.

    What cannot be unpickled, and what is withheld, comes as a `JobError`. It raises nothing but a
    Ctrl-C.
    """
    kind, message, text, pickled, is_withheld = pickle.loads(body)
    error: object = None
    why = ""
    if pickled == _IS_OURS:
        from ..errors import SerializationError

        error = SerializationError(message)
    elif isinstance(pickled, bytes):
        try:
            found = _put_together(pickle.loads(pickled))
            withheld = _withheld()
            if not issubclass(type(found), withheld):
                error = _without_withheld(found, withheld)
        except KeyboardInterrupt:
            raise
        except Exception as broken:  # noqa: BLE001 - whatever its __init__ raises
            why = f" (which cannot be unpickled here: {one_line(broken)}{_hint_at_init(broken)})"
        except BaseException as broken:  # noqa: BLE001
            why = f" (which raises {type_name(broken)} when it is unpickled)"
    elif not is_withheld:
        why = f" ({pickled})" if pickled else _NOT_PICKLED
    if not isinstance(error, BaseException):
        error = _named(kind, message, why)
    set_cause(error, RemoteTraceback(text))
    return error


def _hint_at_init(broken: Exception) -> str:
    """How an exception class travels whose ``__init__`` takes other arguments than its base's."""
    if type(broken) is not TypeError or "argument" not in message_of(broken):
        return ""
    return (
        "; an exception is made anew of its args: its __init__ has to pass all that it takes to "
        "super().__init__(), or the class to define __reduce__"
    )


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set ``__cause__``, also on exceptions that forbid setting attributes."""
    BaseException.__dict__["__cause__"].__set__(error, cause)


def what_was_raised(body: Body) -> str:
    """Type and message of what `dump_exception` took, without unpickling it."""
    kind, message, *_ = pickle.loads(body)
    return f"{kind}: {message}"


def what_comes(body: Body) -> str:
    """Type and message of what `load_exception` would return, without unpickling it."""
    kind, message, _, pickled, is_withheld = pickle.loads(body)
    if not isinstance(pickled, bytes):
        why = f" ({pickled})" if pickled else _NOT_PICKLED
        kind, message = "JobError", _raised(kind, message, "" if is_withheld else why)
    return f"{kind}: {message}" if message else kind


def add_option_hint(error: TypeError, function: Callable[..., object], kwargs: Any) -> None:
    """Say in what a call raised where options of a job belong, if it was given one of them."""
    try:
        from .._common.hints import add_option_hint

        frames = BaseException.__dict__["__traceback__"].__get__(error)
        own = frames is None or frames.tb_next is None
        add_option_hint(error, call_name(function), kwargs, own=own)
    except Exception:  # noqa: BLE001 - nothing left to import with: it goes without
        pass


_LAZY = {
    "coroutine": "an async function's; submit a function that runs it: lambda: asyncio.run(f(x))",
    "generator": "whose code has not run; submit a function that uses it up: lambda: list(f(x))",
    "async_generator": "whose code has not run; submit a function that uses it up",
}
"""Results that say that a function was called, but not run."""


def dump_unloadable(error: BaseException) -> bytes:
    """What a worker answers when it cannot unpickle a call."""
    hint = ""
    if isinstance(error, ModuleNotFoundError):  # else it would not have been pickled by its name
        hint = (
            "; a worker looks for modules where sys.path had them when it was started: "
            "restart_workers() gives the pool workers that know of later changes"
        )
    return _dump_wrapped(
        f"the function or an argument cannot be unpickled in the worker: {one_line(error)}{hint}",
        error,
    )


def dump_unpicklable_result(error: BaseException, value: object, name: str) -> bytes:
    """What a worker answers when it cannot pickle a result."""
    part, kind = _which_part(value, error), type_name(value)
    why = f"{part}: {one_line(error)}" if part else one_line(error)
    hint = f" ({_LAZY[kind]})" if kind in _LAZY else ""
    label = f"the result of {name}(), a {kind},"
    return _dump_wrapped(f"{label} cannot be serialized: {why}{hint}", error)


def _dump_wrapped(message: str, error: BaseException) -> bytes:
    """A `SerializationError` with its cause, as `dump_exception` would, without importing it."""
    frames = BaseException.__dict__["__traceback__"].__get__(error)
    text = (
        f"{text_of(error, frames)}\n"
        "The above exception was the direct cause of the following exception:\n\n"
        f"primitive_jobs.errors.SerializationError: {message}\n"
    )
    return pickle.dumps(("SerializationError", message, text, _IS_OURS, False), _PROTOCOL)


def load_result(body: Body, buffers: Sequence[memoryview], job: Named) -> Any:
    """Unpickle a job's result in the thread that asks for it.

    Raises:
        SerializationError: It cannot be unpickled here.
    """
    try:
        return pickle.loads(body, buffers=buffers)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        from ..errors import SerializationError

        raise SerializationError(
            f"the result of job {job.name} cannot be unpickled here: {one_line(error)}"
        ) from error
