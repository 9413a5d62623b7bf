"""What a worker sends in the place of a result: exceptions, with their remote tracebacks.

Also a result, where it cannot be pickled there or unpickled here.
"""

from __future__ import annotations

import _pickle as pickle
import contextlib
import copyreg
import io
import sys
import types

from .._common.naming import call_name, message_of, one_line, type_name
from .pickling import PROTOCOL, descriptor_holders, dumps_whole, some_are_by_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from .pickling import Body

    class Named(Protocol):
        """A job, or whatever else has a name for messages."""

        @property
        def name(self) -> str:
            """The name."""
            ...


_NOT_PICKLED = " (which cannot be pickled)"
_IS_OURS = b""  # in place of a pickled exception: a SerializationError of our own


class OwnFailure(Exception):
    """Raised while a call is unpickled, where its cause is to be what the job raises."""


_ENDS_PROGRAMS = (SystemExit, KeyboardInterrupt, GeneratorExit)
# By module: looked up where it is loaded, since who raised one has loaded it.
_CANCELLATIONS = {
    "asyncio.exceptions": "CancelledError",
    "concurrent.futures._base": "CancelledError",
    "trio": "Cancelled",
}


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
    return pickle.dumps((type_name(error), message_of(error), text, pickled, is_withheld), PROTOCOL)


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
            pickler = pickle.Pickler(file, PROTOCOL)
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


def add_notes(error: BaseException, notes: Sequence[str]) -> None:
    """Add to ``__notes__``, also on exceptions that forbid it, and before Python 3.11."""
    with contextlib.suppress(Exception):  # a class with a __dict__ of its own ways
        own = error.__dict__.get("__notes__")
        error.__dict__["__notes__"] = [*(own if isinstance(own, list) else ()), *notes]


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
    if isinstance(error, OwnFailure) and error.__cause__ is not None:
        return dump_exception(error.__cause__, skip_frames=2)
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
    return pickle.dumps(("SerializationError", message, text, _IS_OURS, False), PROTOCOL)


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
