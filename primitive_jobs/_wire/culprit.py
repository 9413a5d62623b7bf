"""What makes an object unpicklable: by which global, closure variable, attribute or item it is.

Imported once something could not be pickled. It asks the pickler: of an object that cannot be
pickled, it tries the parts that the pickler would take, goes into the first that cannot be either,
and so on. It runs for as long as the pickling itself, and then for `PATIENCE` at most; it is
bounded in depth and in the number of parts, too. Where the user's methods raise, it ends with what
it has found.
"""

from __future__ import annotations

import functools
import itertools
import time
import types

from .._common import naming
from .._common.advice import on_argument, on_initarg
from . import pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    Part = tuple[str, object]
    """How it is said, as an attribute or item (".x", "[0]") or a clause ("uses ..."); itself."""

PATIENCE = 1.0  # s, after which no other part is tried
_LOOK = 1024  # objects between two looks at the clock
_DEEPEST = 16  # parts in parts
_MOST = 1_000_000  # parts of one object
_LONGEST = 40  # characters of a key


def blame(
    kind: str,
    name: str,
    call: tuple[Callable[..., object], tuple[Any, ...], Mapping[str, Any]],
    error: BaseException,
    pickler_type: Any = None,
) -> str:
    """Say what of a call cannot be pickled, and why.

    Args:
        kind: Of its function.
        name: Of its function.
        call: Function, arguments, those with names.
        error: What the pickler has raised.
        pickler_type: That of the pickler, if it is none of `pickling`'s.
    """
    function, args, kwargs = call
    whose = f"{name}()" if pickler_type is None else f"{kind} {name}()"
    parts: list[tuple[str, object]] = [(f"{kind} {name}()", function)]
    parts += [(f"argument {place} of {whose}", arg) for place, arg in enumerate(args, 1)]
    parts += [(f"argument {key!r} of {whose}", arg) for key, arg in kwargs.items()]
    make_pickler = _pickler_maker(pickler_type)
    for label, part in parts:
        try:
            make_pickler(None).dump(part)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - whatever a __reduce__ raises
            why = why_not(part, error, pickler_type)
            return f"{label}, a {naming.type_name(part)}, cannot be serialized: {why}"
    return f"the call of {whose} cannot be serialized: {_with_advice(error, pickler_type)}"


def why_not(value: object, error: BaseException, pickler_type: Any = None) -> str:
    """Say why an object cannot be pickled: by which part of it, as far as that can be told.

    "its `.lock` cannot be pickled: TypeError: ..."; arguments as those of `blame`.
    """
    why = _with_advice(error, pickler_type)
    path = path_to_culprit(value, error, pickler_type)
    return f"{path}: {why}" if path else why


def _with_advice(error: BaseException, pickler_type: Any) -> str:
    why = naming.one_line(error)
    return why + (on_argument if pickler_type is None else on_initarg)(why)


def path_to_culprit(value: object, error: BaseException, pickler_type: Any = None) -> str:
    """Say which part of an object cannot be pickled; "" if that is itself, or cannot be told.

    Nothing but a Ctrl-C is raised.
    """
    if isinstance(error.__cause__, RecursionError) or isinstance(error, MemoryError):
        return ""  # each part may do
    search = _Search(_pickler_maker(pickler_type))
    try:
        return _sentence([(text, naming.type_name(part)) for text, part in search.follow(value)])
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - whatever the user's methods raise
        return ""
    finally:
        search.path.clear()  # a class, which only the garbage collector frees, knows it


def _pickler_maker(kind: Any = None) -> Callable[[type | None], Any]:
    """What makes picklers that only try; of a type that has a class's methods, too, if given."""
    kinds: dict[type | None, Any] = {None: kind or pickling.pickler_type()}

    def make(mixin: type | None) -> Any:
        if mixin is not None and mixin not in kinds:
            kinds[mixin] = type("Pickler", (mixin, kinds[None]), {})
        return kinds[mixin](_Nowhere(), pickling.referring({}), pickling.keeper([]))

    return make


class _Nowhere:
    """A file, as far as a pickler sees."""

    def write(self, data: object) -> None:
        """Let it go."""


class _OutOfTime(Exception):
    """The search ends with what it has found."""


class _Search:
    def __init__(self, make_pickler: Callable[[type | None], Any]) -> None:
        path: dict[int, object] = {}
        end = time.monotonic() + PATIENCE
        count = 0

        class AroundPath:
            """What refers back to an object that is gone into is not to blame for it."""

            def persistent_id(self, value: object) -> int | None:
                nonlocal count
                count += 1
                if count % _LOOK == 0 and time.monotonic() > end:
                    raise _OutOfTime
                return 0 if id(value) in path else None

        self.path = path  # what it has gone into, by id
        self._around_path = AroundPath
        self._make_pickler = make_pickler
        self._end = end

    def follow(self, value: object) -> Iterator[Part]:
        """From an object to the innermost part that is to blame."""
        for _ in range(_DEEPEST):
            self.path[id(value)] = value
            try:
                parts = _parts(value, self._make_pickler(None))
                found = self._first_bad(list(itertools.islice(parts, _MOST)))
            except Exception:  # noqa: BLE001 - it cannot be taken apart, or it is out of time
                return
            if found is None:
                return
            yield found
            value = found[1]

    def _first_bad(self, parts: list[Part]) -> Part | None:
        # That they fail is known, or none is to blame: the last look tells.
        parts = [p for p in parts if type(p[1]) not in pickling.PLAIN and id(p[1]) not in self.path]
        low, high = 0, len(parts)  # one between these two
        while high - low > 1:
            middle = (low + high) // 2
            if self._fails(parts[low:middle]):
                high = middle
            else:
                low = middle
        return parts[low] if self._fails(parts[low:high]) else None

    def _fails(self, parts: list[Part]) -> bool:
        if time.monotonic() > self._end:
            raise _OutOfTime
        try:
            self._make_pickler(self._around_path).dump([part for _, part in parts])
        except _OutOfTime:
            raise
        except Exception:  # noqa: BLE001 - whatever a __reduce__ raises
            return True
        return False


# --- the parts of an object ----------------------------------------------------------------------


def _parts(value: Any, pickler: Any) -> Iterable[Part]:
    kind = type(value)
    if kind in (list, tuple):
        return (
            (f"[{place}]", item)
            for place, item in enumerate(value)
            if type(item) not in pickling.PLAIN
        )
    if kind is dict:
        return _items(value.items())
    if kind in (set, frozenset):
        return (("has an item", item) for item in value)
    if kind is types.MethodType:
        name = value.__func__.__name__
        return ("is a method of an object", value.__self__), (
            f"is the method `{name}`",
            value.__func__,
        )
    if kind is functools.partial:
        return _parts_of_partial(value)
    reduced = pickler.reducer_override(value)
    if reduced is NotImplemented:
        reducer = pickler.dispatch_table.get(kind)
        reduced = value.__reduce_ex__(5) if reducer is None else reducer(value)
    if type(reduced) is not tuple:  # its name
        return ()
    if kind is types.FunctionType and "__globals__" in reduced[2][1]:
        return _parts_of_function(value, *reduced[2])
    if issubclass(kind, type):
        return _parts_of_class(value, *reduced[2:3])
    return _parts_of_reduced(value, *reduced)


def _items(items: Iterable[tuple[Any, Any]]) -> Iterator[Part]:
    for key, value in items:
        if type(value) in pickling.PLAIN and type(key) in pickling.PLAIN:
            continue
        if all(type(one) in pickling.PLAIN for one in (key if type(key) is tuple else (key,))):
            text = repr(key)
            yield f"[{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}]", value
        else:
            yield "has a key", key
            yield "[...]", value


def _parts_of_partial(partial: Any) -> Iterator[Part]:
    yield f"calls `{getattr(partial.func, '__name__', '...')}`", partial.func
    for place, value in enumerate(partial.args, 1):
        yield f"gives the argument {place}", value
    for name, value in partial.keywords.items():
        yield f"gives the argument {name!r}", value
    yield from _attributes(vars(partial))


def _parts_of_function(
    function: types.FunctionType, attributes: dict[str, Any], slots: dict[str, Any]
) -> Iterator[Part]:
    code = function.__code__
    for name, value in slots["__globals__"].items():
        yield f"uses the global `{name}`", value
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"uses the closure variable `{name}`", cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    named = [*zip(names, defaults, strict=True), *(function.__kwdefaults__ or {}).items()]
    for name, value in named:
        yield f"has a default of its argument `{name}`", value
    yield from _attributes(attributes)
    for name, value in (slots["__annotations__"] or {}).items():
        yield f"has an annotation of `{name}`", value


def _parts_of_class(kind: Any, state: Any = ()) -> Iterator[Part]:
    for content in state[:1]:
        yield from _attributes(content)
    for base in kind.__bases__:
        yield f"has the base class `{base.__name__}`", base


def _parts_of_reduced(
    value: Any,
    make: Any = None,
    args: Any = (),
    state: Any = None,
    items: Any = None,
    pairs: Any = None,
    *_: Any,
) -> Iterator[Part]:
    """What an object's ``__reduce__`` has returned."""
    for content in state if type(state) is tuple and len(state) == 2 else (state,):
        if type(content) is dict:
            yield from _attributes(content)
        elif content is not None:
            yield "has a state", content
    for place, item in enumerate(items or ()):
        yield f"[{place}]", item
    yield from _items(pairs or ())
    if isinstance(value, BaseException):
        yield ".args", BaseException.__dict__["args"].__get__(value)
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", ())  # of a named one
        for place, item in enumerate(tuple.__iter__(value)):
            yield f".{fields[place]}" if place < len(fields) else f"[{place}]", item
    yield "is made by a function", make
    attributes = {id(held): name for name, held in _dict_of(value).items()}
    for arg in args if type(args) is tuple else ():
        if arg is type(value):
            yield f"is of the class `{arg.__name__}`", arg
        elif id(arg) in attributes:
            yield f".{attributes[id(arg)]}", arg
        elif type(arg) is types.MethodType or make is getattr:
            yield "belongs to an object", arg
        else:
            yield "has a part", arg


def _dict_of(value: Any) -> dict[str, Any]:
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if type(found) is dict else {}


def _attributes(attributes: dict[str, Any]) -> Iterator[Part]:
    return ((f".{name}", value) for name, value in attributes.items())


# --- in words ------------------------------------------------------------------------------------


def _sentence(steps: list[tuple[str, str]]) -> str:
    """Say it: "it uses the global `cfg` (Config), whose `.solver.lock` cannot be pickled"."""
    clauses: list[tuple[str, str]] = []
    for text, kind in steps:
        if clauses and _is_place(text) and _is_place(clauses[-1][0]):
            text = clauses.pop()[0] + text
        clauses.append((text, kind))
    said = ""
    for text, kind in clauses:
        if _is_place(text):
            said += f", whose `{text}`" if said else f"its `{text}`"
        else:
            said += f", which {text}" if said else f"it {text}"
        said += f" ({kind})"
    if not said:
        return ""
    text, kind = clauses[-1]
    if _is_place(text):
        return said.removesuffix(f" ({kind})") + " cannot be pickled"
    return f"{said}, which cannot be pickled"


def _is_place(text: str) -> bool:
    return text[0] in ".["
