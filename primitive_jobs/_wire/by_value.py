"""What of a script travels by value, beyond what cloudpickle knows of it.

A worker does not import the script. So all that can only be found by its name in ``__main__``, or
in ``__mp_main__`` (which is what a script is called in a process of multiprocessing's), is made
anew there: this says how for what cloudpickle finds by name, or takes apart in a way that loses
something. What belongs to an importable module still travels as its name.

The pickler that is made here costs no more than cloudpickle's own: what it asks is asked of
functions and classes that travel by value, the rest stands in a table by type. Used on both sides,
from the first call or answer on that cloudpickle has to pickle; what a worker needs to make
functions anew is in `functions`.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
import typing

from cloudpickle import cloudpickle

from . import functions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

_theirs: Any = cloudpickle
_sys: Any = sys
_typing: Any = typing  # with what only some versions have
_MP_MAIN = "__mp_main__"
_FROM_3_12 = sys.version_info >= (3, 12)
_LAZY: Any = getattr(types, "LazyImportType", None)  # from 3.15 on
_FROM_3_14 = sys.version_info >= (3, 14)
# The code of whatever `functools.singledispatch` makes.
_OF_DISPATCHER = functools.singledispatch(len).__code__  # type: ignore[attr-defined]
_LONGEST = 1000  # characters of an annotation that is looked at
_LARGEST = 64 * 1024  # bytes of what comes for the sake of annotations


class Pickler(_theirs.Pickler):  # type: ignore[misc]
    """cloudpickle's, with what it does about functions and classes put right."""

    verdicts: dict[int, bool] | None = None
    """Whether what annotations name comes along, by id, while this pickler is in use."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce functions and classes; all else is for the table."""
        kind = type(obj)
        if kind is types.FunctionType:
            return self._function_reduce(obj)
        if issubclass(kind, type):
            return _reduce_class(obj, self)
        return NotImplemented

    def _function_reduce(self, obj: Any) -> Any:
        if obj.__module__ != _MP_MAIN and _theirs._should_pickle_by_reference(obj):
            return NotImplemented
        return self._dynamic_function_reduce(obj)

    def _dynamic_function_reduce(self, func: Any) -> Any:
        if func.__code__ is _OF_DISPATCHER:
            return _reduce_dispatcher(func)
        try:
            state = _theirs._function_getstate(func)
        except Exception:
            if not _FROM_3_14:
                raise
            # Its annotations may name what exists for type checkers only.
            state = _theirs._function_getstate(_with_annotations_as_text(func))
        code, namespace, _, _, closure = self._function_getnewargs(func)
        slots = state[1]
        for annotation in slots["__annotations__"].values():
            if type(annotation) is not type:
                brought = slots["__globals__"]
                annotations = slots["__annotations__"].values()
                for name, value in _named(annotations, func.__globals__, self):
                    brought.setdefault(name, value)
                break
        if _LAZY is not None:
            _import_now(func, slots)
        if _FROM_3_12 and func.__type_params__:
            slots["__type_params__"] = func.__type_params__
        new = code, namespace, closure
        return functions.make_function, new, state, None, None, functions.fill_function


# --- by name, or by value ------------------------------------------------------------------------


def _has_name(obj: Any, name: str) -> bool:
    """Whether a worker finds an object by its name."""
    found = _theirs._lookup_module_and_qualname(obj, name=name)
    return (
        found is not None
        and found[0].__name__ != _MP_MAIN
        and not _theirs._is_registered_pickle_by_value(found[0])
    )


def _number(obj: object) -> str | None:
    """What to know an object by, so that it is one and the same where it comes several times."""
    try:
        return _theirs._get_or_create_tracker_id(obj)  # type: ignore[no-any-return]
    except TypeError:  # there are no weak references to its type
        return None


def _reduce_module(module: types.ModuleType) -> Any:
    if module.__name__ == _MP_MAIN:  # as of a script that was started itself: the worker's own
        return functions.import_module, ("__main__",)
    make, parts = _theirs._module_reduce(module)
    return functions.import_module if make is _theirs.subimport else make, parts


def _reduce_lazy_import(lazy: Any) -> Any:
    # It does not tell what it imports.
    return _itself, (lazy.resolve(),)


def _itself(value: Any) -> Any:
    return value


def _import_now(function: types.FunctionType, slots: dict[str, Any]) -> None:
    """Have cloudpickle's look for submodules see what a function has imported lazily."""
    lazy = [v for v in slots["__globals__"].values() if type(v) is _LAZY]
    if not lazy:
        return
    try:
        modules = [one.resolve() for one in lazy]
    except Exception:  # noqa: BLE001 - there is no such module: it cannot be pickled
        return
    names = {*function.__code__.co_names}
    for module in modules:
        for name in [*_sys.lazy_modules] if type(module) is types.ModuleType else ():
            package, _, rest = name.partition(f"{module.__name__}.")
            if not package and rest and names.issuperset(rest.split(".")):
                importlib.import_module(name)
    submodules = _theirs._find_imported_submodules(function.__code__, modules)
    slots["_cloudpickle_submodules"] += submodules


# --- functools -----------------------------------------------------------------------------------


def _reduce_cached(cached: Any) -> Any:
    """A function of `functools.lru_cache`: it arrives with nothing in its cache."""
    name = getattr(cached, "__qualname__", None)
    if type(name) is not str or _has_name(cached, name):
        return cached.__reduce__()
    state = {k: v for k, v in vars(cached).items() if k not in ("__wrapped__", "cache_parameters")}
    return _make_cached, (cached.__wrapped__, *cached.cache_parameters().values()), state


def _make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_cached_property(prop: Any) -> Any:
    state = {k: v for k, v in vars(prop).items() if k not in ("func", "lock")}  # up to Python 3.11
    return functools.cached_property, (prop.func,), state


def _reduce_dispatching_method(method: Any) -> Any:
    state = {k: v for k, v in vars(method).items() if k not in ("func", "_method_cache")}
    return functools.singledispatchmethod, (method.func,), state


def _reduce_partialmethod(method: Any) -> Any:
    # From Python 3.14 on nobody but its own type can make one anew.
    state = {k: v for k, v in vars(method).items() if k not in ("func", "args", "keywords")}
    return _make_partialmethod, (method.func, method.args, method.keywords), state


def _make_partialmethod(function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return functools.partialmethod(function, *args, **keywords)


_NOT_OF_STATE = frozenset({"register", "dispatch", "registry", "_clear_cache", "__wrapped__"})


def _reduce_dispatcher(dispatcher: Any) -> Any:
    state = {k: v for k, v in vars(dispatcher).items() if k not in _NOT_OF_STATE}
    names = dispatcher.__module__, dispatcher.__name__, dispatcher.__qualname__, dispatcher.__doc__
    return (
        functools.singledispatch,
        (dispatcher.__wrapped__,),
        ({**dispatcher.registry}, names, state),
        None,
        None,
        _fill_dispatcher,
    )


def _fill_dispatcher(dispatcher: Any, filling: Any) -> None:
    registry, names, state = filling
    for kind, function in registry.items():
        dispatcher.register(kind, function)
    dispatcher.__module__, dispatcher.__name__, dispatcher.__qualname__, dispatcher.__doc__ = names
    vars(dispatcher).update(state)


# --- typing --------------------------------------------------------------------------------------


def _reduce_new_type(new_type: Any) -> Any:
    if _has_name(new_type, new_type.__qualname__):
        return new_type.__reduce__()
    names = new_type.__name__, new_type.__qualname__, new_type.__module__
    return _make_new_type, (names, new_type.__supertype__, _number(new_type))


def _make_new_type(names: tuple[str, str, str], supertype: Any, number: str | None) -> Any:
    made = _typing.NewType(names[0], supertype)
    _, made.__qualname__, made.__module__ = names
    return _theirs._lookup_class_or_track(number, made)


_OF_VARIABLES = {
    "bound": "__bound__",
    "covariant": "__covariant__",
    "contravariant": "__contravariant__",
    "infer_variance": "__infer_variance__",
}


def _reduce_variable(variable: Any) -> Any:
    """A type variable of any kind; those of a function's or class's own brackets have no name."""
    name = variable.__name__
    if _has_name(variable, name):
        module, _ = _theirs._lookup_module_and_qualname(variable, name=name)
        return getattr, (module, name)
    parts = {
        part: getattr(variable, attribute)
        for part, attribute in _OF_VARIABLES.items()
        if getattr(variable, attribute, None)
    }
    if getattr(variable, "has_default", bool)():
        parts["default"] = variable.__default__
    constraints = getattr(variable, "__constraints__", ())
    module = getattr(variable, "__module__", None)
    return _make_variable, (type(variable), name, constraints, parts, module, _number(variable))


def _make_variable(
    kind: Any,
    name: str,
    constraints: tuple[Any, ...],
    parts: dict[str, Any],
    module: str | None,
    number: str | None,
) -> Any:
    made = kind(name, *constraints, **parts)
    made.__module__ = module
    return _theirs._lookup_class_or_track(number, made)


def _reduce_alias(alias: Any) -> Any:
    """What the statement ``type`` makes; its value may refer to it."""
    name = alias.__name__
    if _has_name(alias, name):
        return alias.__reduce__()
    number, value, parameters = _number(alias), alias.__value__, alias.__type_params__
    if parameters or not name.isidentifier():
        return _make_alias, (name, alias.__module__, value, parameters, number)
    return _begin_alias, (name, alias.__module__, number), value, None, None, _end_alias


def _make_alias(
    name: str, module: str, value: Any, parameters: tuple[Any, ...], number: str | None
) -> Any:
    scope = {"__name__": module, "make": _typing.TypeAliasType, "of": (name, value)}
    scope["parameters"] = parameters
    made = eval("make(*of, type_params=parameters)", scope)  # it asks whose names these are
    return _theirs._lookup_class_or_track(number, made)


_begun: dict[int, list[Any]] = {}
"""Where to put the values of aliases that are still being unpickled, by id."""


def _begin_alias(name: str, module: str, number: str | None) -> Any:
    value: list[Any] = []
    scope = {"__name__": module, "_of_alias": value}
    exec(f"type {name} = _of_alias[0]", scope)
    made = _theirs._lookup_class_or_track(number, scope[name])
    if made is scope[name]:  # else there is one already
        _begun[id(made)] = value
    return made


def _end_alias(alias: Any, value: Any) -> None:
    if (place := _begun.pop(id(alias), None)) is not None:
        place.append(value)


# --- classes -------------------------------------------------------------------------------------


_SLOTS = (str, tuple, list, dict, set, frozenset)


def _reduce_class(kind: Any, pickler: Pickler) -> Any:
    reduced = _theirs._class_reduce(kind)
    if reduced is NotImplemented:
        if kind.__module__ != _MP_MAIN:
            return reduced
        reduced = _theirs._dynamic_class_reduce(kind)
    if len(reduced) == 2:  # a built-in one
        return reduced
    make, new, (content, slots), *_ = reduced
    if make is _theirs._make_skeleton_class:
        given = new[3]
        given["__qualname__"] = kind.__qualname__
        # Else its objects would have a __dict__ there, and could not come back.
        if isinstance(content.get("__slots__"), _SLOTS) and typing.NamedTuple not in new[2]:
            given["__slots__"] = content.pop("__slots__")
    if _FROM_3_14 and content.keys() | vars(kind).keys() & _ANNOTATIONS:
        _annotate(kind, content)
    annotations = content.get("__annotations__")
    named: dict[str, Any] = {}
    if annotations:
        script = getattr(sys.modules.get(kind.__module__), "__dict__", {})
        named = dict(_named(annotations.values(), script, pickler))
    if not named:
        return make, new, (content, slots), None, None, _theirs._class_setstate
    return make, new, (content, slots, named), None, None, _fill_class


def _fill_class(kind: Any, filling: Any) -> Any:
    content, slots, named = filling
    nesting: Any = sys.modules.get("primitive_jobs._wire.nesting")
    if nesting is not None and nesting.cpu_share is not None:
        _script_here().update(named)
    return _theirs._class_setstate(kind, (content, slots))


_here: list[types.ModuleType] = []


def _script_here() -> dict[str, Any]:
    """In a worker: what stands for the script where somebody asks for the module of a class.

    It is a module of its own: the worker's first lines are those of another ``__main__``.
    """
    if not _here:
        main = types.ModuleType("__main__")
        vars(main).update(vars(sys.modules["__main__"]))
        sys.modules["__main__"] = main
        _here.append(main)
    return vars(_here[0])


# --- annotations ---------------------------------------------------------------------------------

_ANNOTATIONS = frozenset({"__annotations__", "__annotations_cache__", "__annotate_func__"})


def _annotate(kind: Any, content: dict[str, Any]) -> None:
    """From Python 3.14 on a class has annotations once somebody asks for them."""
    for name in _ANNOTATIONS:
        content.pop(name, None)
    try:
        content["__annotations__"] = kind.__annotations__
    except Exception:  # noqa: BLE001 - as of a function
        content["__annotations__"] = _as_text(kind)


def _reduce_forward_ref(reference: Any) -> Any:
    # From Python 3.14 on it knows all of its script.
    return _make_forward_ref, (
        reference.__forward_arg__,
        reference.__forward_module__,
        reference.__forward_is_argument__,
        reference.__forward_is_class__,
        reference.__owner__,
    )


def _make_forward_ref(text: str, module: Any, is_argument: bool, is_class: bool, owner: Any) -> Any:
    return _typing.ForwardRef(
        text, module=module, owner=owner, is_argument=is_argument, is_class=is_class
    )


def _as_text(annotated: Any) -> dict[str, str]:
    annotationlib: Any = importlib.import_module("annotationlib")
    text = annotationlib.Format.STRING
    return annotationlib.get_annotations(annotated, format=text)  # type: ignore[no-any-return]


def _with_annotations_as_text(function: Any) -> Any:
    """The same function again, since whose it is may look at it."""
    code, name, closure = function.__code__, function.__name__, function.__closure__
    again = types.FunctionType(code, function.__globals__, name, function.__defaults__, closure)
    vars(again).update(vars(function))
    again.__kwdefaults__ = function.__kwdefaults__
    again.__qualname__, again.__module__ = function.__qualname__, function.__module__
    again.__doc__ = function.__doc__
    again.__annotations__ = _as_text(function)
    return again


def _named(
    annotations: Iterable[Any], script: Mapping[str, Any], pickler: Pickler
) -> Iterator[tuple[str, Any]]:
    """What the script has under the names that annotations have as text, for `get_type_hints`.

    Only what annotations are made of: the text may be prose.
    """
    if pickler.verdicts is None:
        pickler.verdicts = {}
    for annotation in annotations:
        for name in _names_in(annotation):
            if name in script:
                value = script[name]
                if _may_come(value, pickler.verdicts):
                    yield name, value


def _names_in(annotation: Any) -> Iterable[str]:
    kind = type(annotation)
    if kind is str:
        return _names_in_text(annotation)
    if kind is typing.ForwardRef:
        return _names_in_text(annotation.__forward_arg__)
    if kind.__module__ in ("typing", "types"):  # list["Config"]
        args = getattr(annotation, "__args__", None)
        if type(args) is tuple:
            return [name for arg in args if arg is not annotation for name in _names_in(arg)]
    return ()


@functools.lru_cache(1024)
def _names_in_text(text: str) -> tuple[str, ...]:
    if len(text) > _LONGEST:
        return ()
    try:
        code = compile(text, "<annotation>", "eval", dont_inherit=True)
    except Exception:  # noqa: BLE001 - it is prose, or too deep
        return ()
    inner = [c for c in code.co_consts if type(c) is str and c != text]  # Optional["Config"]
    return tuple(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names_in_text(c))]))


class _Trial(Pickler):
    """Finds out whether something can be pickled, and is no more than a definition."""

    def __init__(self, verdicts: dict[int, bool]) -> None:
        super().__init__(_Counter(), protocol=5)
        self.dispatch_table = table({})
        self.verdicts = verdicts


class _Counter:
    """A file that takes so many bytes."""

    def __init__(self) -> None:
        self._left = _LARGEST

    def write(self, data: Any) -> None:
        """Count them."""
        self._left -= len(data)
        if self._left < 0:
            raise OverflowError


def _is_there(name: str) -> bool:
    """Whether a module is Python's own: any other may be missing in a worker, or take seconds."""
    return name.partition(".")[0] in sys.stdlib_module_names


def _may_come(value: Any, verdicts: dict[int, bool]) -> bool:
    """Whether a value comes along for the sake of annotations.

    It must neither make the pickling fail, nor cost much: that a function uses it is not said.
    """
    kind = type(value)
    if kind is types.ModuleType:
        return _is_there(value.__name__)
    if issubclass(kind, type):
        if value.__module__ != _MP_MAIN and _theirs._should_pickle_by_reference(value):
            return _is_there(value.__module__)
    elif kind.__module__ not in ("typing", "types") or kind is types.SimpleNamespace:
        return False
    else:
        args = getattr(value, "__args__", ())
        parts = (value.__origin__, *args) if hasattr(value, "__origin__") else args
        if not all(_may_come(one, verdicts) for one in parts if isinstance(one, type)):
            return False
    able = verdicts.get(id(value))
    if able is None:
        verdicts[id(value)] = True  # where its own annotations name it
        able = verdicts[id(value)] = _can_be_pickled(value, verdicts)
    return able


def _can_be_pickled(value: object, verdicts: dict[int, bool]) -> bool:
    try:
        _Trial(verdicts).dump(value)
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises
        return False
    return True


# --- code ----------------------------------------------------------------------------------------


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """Reduce a function's code as cloudpickle does, with the name of its file.

    Since 3.1.3 cloudpickle leaves that out, and the tracebacks of what was pickled by value (all
    of a notebook, a REPL and a script) would say no file and show no source line.
    """
    _, parts, *_ = _theirs.Pickler.dispatch_table[types.CodeType](code)
    return functions.make_code, (parts, "".join(code.co_filename))


def _reduce_cell(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return functions.make_cell, (cell.cell_contents,)
    except ValueError:
        return functions.make_empty_cell, ()


# --- the table -----------------------------------------------------------------------------------


def _all() -> dict[type, Callable[[Any], Any]]:
    reducers: dict[Any, Callable[[Any], Any]] = {
        types.CodeType: _reduce_code,
        types.CellType: _reduce_cell,
        types.ModuleType: _reduce_module,
        type(functools.lru_cache(_number)): _reduce_cached,
        functools.cached_property: _reduce_cached_property,
        functools.partialmethod: _reduce_partialmethod,
        functools.singledispatchmethod: _reduce_dispatching_method,
        typing.NewType: _reduce_new_type,
    }
    for name in ("TypeVar", "ParamSpec", "TypeVarTuple"):
        if hasattr(typing, name):
            reducers[getattr(typing, name)] = _reduce_variable
    if hasattr(typing, "TypeAliasType"):
        reducers[_typing.TypeAliasType] = _reduce_alias
    if _LAZY is not None:
        reducers[_LAZY] = _reduce_lazy_import
    if _FROM_3_14:
        reducers[typing.ForwardRef] = _reduce_forward_ref
    return reducers


_OURS = _all()


def table(more: Mapping[type, Callable[[Any], Any]]) -> dict[type, Callable[[Any], Any]]:
    """The reducers by type, ``more`` included.

    A plain dict of this moment: the C code looks into it for every object.
    """
    table: dict[type, Callable[[Any], Any]] = {}
    theirs: Any = _theirs.Pickler.dispatch_table  # a ChainMap
    for part in reversed(theirs.maps):
        table.update(part)
    table.update(_OURS)
    table.update(more)
    return table
