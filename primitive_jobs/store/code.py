"""`code_of`: what a function is made of, so that changed code with stored results is noticed.

A stored result is right for as long as the code that made it is the same. So the store records a
hash of it, which takes in:

* the definition of the function, without comments and docstrings, and the values of its defaults;
* what its names refer to in its module, and so on from there: functions, classes (with methods and
  bases), constants that can be encoded, and functions in lists and dicts; also as attributes of
  modules, such as ``helpers.energy``;
* what it encloses (its closure), what it wraps, and what a partial or a method is made of.

The standard library, what is installed (site-packages) and this package are not followed: of those
it is recorded what the name was imported from.

A list or dict of a module counts with what is in it at that time.

Not followed is what only a run can tell: ``getattr``, names that are looked up in a dict by a text,
methods of objects whose class nothing names, imports inside of functions, global variables that
functions assign to, code in C, files that are read, and the versions of installed packages. Where
that matters, and for lambdas and code without a source, there is ``version=``.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from .._common.naming import call_name, type_name
from .._wire.pickling import SCRIPTS
from . import syntax
from .canonical import encode, module_name

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_OURS = __name__.partition(".")[0]
_MOST_PARTS = 1000  # of a list or dict that is looked through for functions
_DEEPEST = 3  # levels of lists and dicts that are
_BY_EXPRESSION = "by its expression"  # what stands for a value without an encoding
_MISSING = object()
# What every module has: it tells where it lies, not what it does.
_OF_EACH_MODULE = frozenset(
    {
        "__annotations__",
        "__builtins__",
        "__cached__",
        "__debug__",
        "__doc__",
        "__file__",
        "__loader__",
        "__name__",
        "__package__",
        "__path__",
        "__spec__",
    }
)


@dataclasses.dataclass(frozen=True)
class CodeHash:
    """What code a function stood for when it was asked.

    Attributes:
        digest: Of all parts, in hexadecimal digits.
        parts: The hash of each part by its name: ``simulate``, ``helpers.energy``, ``TC``,
            ``default of L``. To tell what has changed.
    """

    digest: str
    parts: Mapping[str, str]


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Say which parts of two hashes differ, in the order of the second one."""
    said = [
        name if name in before else f"{name} (new)"
        for name, digest in after.items()
        if before.get(name) != digest
    ]
    return said + [f"{name} (gone)" for name in before if name not in after]


def code_of(function: Callable[..., object]) -> CodeHash:
    """Return the hash of a function's code.

    It is the same in each process and on each Python version.

    Raises:
        TypeError: The function, or one that it uses, has no source: it is a lambda, in C, or was
            made by ``exec``.
        ValueError: The source was edited since it was loaded.
    """
    return _Walk(function).result()


class _Walk:
    """Goes from a function to all that it uses; each part once, so that circles end.

    Attributes:
        parts: The hashes, by the names of the parts.
    """

    def __init__(self, root: Any) -> None:
        self.parts: dict[str, str] = {}
        self._root = call_name(root)
        self._labels: dict[int, tuple[str, Any]] = {}  # by id; they keep what it is of
        self._taken: set[str] = set()
        self._queue: deque[tuple[str, Any]] = deque()
        self._module: object = None
        self._enter(root)

    def result(self) -> CodeHash:
        """Go through all that is found, until nothing is new."""
        while self._queue:
            label, thing = self._queue.popleft()
            try:
                if isinstance(thing, type):
                    self._hash_class(label, thing)
                else:
                    self._hash_function(label, thing)
            except syntax.NoSourceError as error:
                raise self._refusal(label, error) from None
            except RecursionError:
                raise self._refusal(label, syntax.NoSourceError("it is nested too deep")) from None
        every = [encode(name) + encode(part) for name, part in sorted(self.parts.items())]
        return CodeHash(syntax.hash_of(*every), self.parts)

    def _refusal(self, label: str, error: syntax.NoSourceError) -> Exception:
        used = "" if label == self._root else f", which {self._root} uses,"
        kind = ValueError if error.edited else TypeError
        hint = "run it anew, or give version=" if error.edited else "give version="
        return kind(
            f"the store cannot tell when the code of {label}{used} changes: {error}; {hint}"
        )

    def _enter(self, root: Any) -> None:
        """Begin with what is called in the end.

        The arguments of a partial and the state of an object are part of each key: here it is
        their code that matters.
        """
        along: list[Any] = []
        target: Any = root
        while not _is_code(target):
            if type(target) is functools.partial:
                along += target.args, target.keywords.values()
                target = target.func
            elif type(target) is types.MethodType:
                owner = target.__self__
                along.append(owner if isinstance(owner, type) else type(owner))
                target = target.__func__
            elif _wrapped(target) is not None:
                target = _wrapped(target)
            else:
                target = type(target)
        if isinstance(target, type) and not _is_written(target):
            raise self._refusal(self._root, syntax.NoSourceError("it is not written in Python"))
        self._module = target.__module__
        self._add(target)
        self._root = self._label(self._module, target.__qualname__)
        for one in along:
            for thing in (one,) if isinstance(one, type) else one:
                if _is_code(thing) or type(thing) is types.MethodType:
                    self._refer("what is called", thing)

    # --- what a name refers to --------------------------------------------------------------------

    def _add(self, thing: Any) -> str:
        """Have a function or class hashed, if it is not yet; return what it is called."""
        known = self._labels.get(id(thing))
        if known is None:
            label = self._label(thing.__module__, thing.__qualname__)
            if isinstance(thing, types.FunctionType) and _wrapped(thing) is not None:
                label += " (wrapper)"  # it has the name of the other one
            unique, number = label, 1
            while unique in self._taken:  # a function may make functions
                number += 1
                unique = f"{label} #{number}"
            self._taken.add(unique)
            known = self._labels[id(thing)] = unique, thing
            self._queue.append(known)
        return known[0]

    def _label(self, module: object, name: str) -> str:
        if module == self._module or not isinstance(module, str):
            return name
        return f"{module_name(module)}.{name}"

    def _refer(
        self, name: str, value: Any, origin: syntax.Origin | None = None, depth: int = 0
    ) -> str:
        """Return what stands for a value in the hash of what uses it; follow it, if that is code.

        Args:
            name: What a constant is called among the parts.
            value: It.
            origin: What the module has it from, if that is known.
            depth: In how many lists or dicts it is.
        """
        if isinstance(value, types.ModuleType):
            return f"module {_name_of(value)}"
        if _is_code(value):
            if _is_followed(value.__module__):
                return self._add(value)
        elif type(value) is functools.partial:
            every = (value.func, *value.args, *value.keywords.items())
            return " ".join(self._refer(f"{name}[{n}]", one) for n, one in enumerate(every))
        elif type(value) is types.MethodType:
            return self._refer(name, value.__func__) + self._refer(
                f"{name}'s object", value.__self__
            )
        wrapped = _wrapped(value)
        if wrapped is not None:
            return self._refer(name, wrapped)
        said = self._refer_to_constant(name, value, origin, depth)
        if _is_written(type(value)):
            said += " " + self._add(type(value))
        return said

    def _refer_to_constant(
        self, name: str, value: Any, origin: syntax.Origin | None, depth: int
    ) -> str:
        try:
            self.parts[name] = syntax.hash_of(encode(value))
        except Exception:  # noqa: BLE001 - it is not on the list, or its attributes raise
            pass
        else:
            return "constant"
        small = type(value) in (list, tuple, dict) and len(value) <= _MOST_PARTS
        if small and depth < _DEEPEST:  # a table of functions, say
            items = value.items() if type(value) is dict else enumerate(value)
            return " ".join(
                f"{at!r}: {self._refer(f'{name}[{at!r}]', one, depth=depth + 1)}"
                for at, one in items
                if type(at) in (str, int, float, bool)
            )
        if not isinstance(origin, ast.expr):
            self.parts[name] = syntax.hash_of(encode(origin or _foreign_name(value)))
        else:
            self.parts[name] = syntax.hash_of(syntax.bare(origin))
        return _BY_EXPRESSION

    def _refer_to_all(
        self,
        chains: list[syntax.Chain],
        space: Mapping[str, Any],
        origins: Mapping[str, syntax.Origin],
    ) -> bytes:
        said = []
        every = [*chains]  # it gets longer by what the expressions of globals name
        for number, chain in enumerate(every):
            name = chain[0]
            if name not in space or name in _OF_EACH_MODULE:  # it is a builtin
                continue
            label, value, origin = self._look_up(chain, space, origins)
            if value is _MISSING or value is getattr(builtins, name, _MISSING):
                continue
            known = label in self.parts
            reference = self._refer(label, value, origin)
            if number < len(chains):
                said.append(f"{'.'.join(chain)}: {reference}")
            if reference == _BY_EXPRESSION and not known and origin is origins.get(name):
                every += syntax.global_names(origin) if isinstance(origin, ast.expr) else ()
        return encode(said)

    def _look_up(
        self, chain: syntax.Chain, space: Mapping[str, Any], origins: Mapping[str, syntax.Origin]
    ) -> tuple[str, Any, syntax.Origin | None]:
        """Return label, value and origin of a global name, and of what it has as attributes.

        Attributes are those of modules: what else may have some is not asked.
        """
        name, *attributes = chain
        label, value = self._label(space.get("__name__"), name), space[name]
        origin = origins.get(name)
        for attribute in attributes:
            if not isinstance(value, types.ModuleType) or not _is_followed(_name_of(value)):
                break
            label = self._label(_name_of(value), attribute)
            origin = _origins_of_module(value).get(attribute)
            value = vars(value).get(attribute, _MISSING)
        return label, value, origin

    # --- hashing ----------------------------------------------------------------------------------

    def _hash_function(self, label: str, function: types.FunctionType) -> None:
        wrapped = _wrapped(function)
        if wrapped is not None:
            inner = self._refer(label, wrapped)
            if _is_installed(function.__code__.co_filename):
                self.parts[label] = syntax.hash_of(encode(inner))
                return
        space = function.__globals__
        node = syntax.definition_of(function)
        origins = syntax.origins_of(syntax.tree_of(function.__code__.co_filename, space))
        said = [
            f"{name}: {self._refer(f'{name} of {label}', value)}"
            for name, value in _enclosed(function)
        ]
        nodes = syntax.defaults_of(node)
        for name, value in _defaults(function):
            title = f"default of {name}" + (f" of {label}" if label != self._root else "")
            said.append(f"{name}= {self._refer(title, value, nodes.get(name))}")
        chains = syntax.global_names(node, bound=function.__code__.co_freevars)
        used = self._refer_to_all(chains, space, origins)
        bare = syntax.bare(syntax.without_defaults(node))
        self.parts[label] = syntax.hash_of(bare, used, encode(said))

    def _hash_class(self, label: str, kind: type) -> None:
        said = [self._refer("", base) for base in kind.__bases__ if _is_written(base)]
        members = [one for value in list(vars(kind).values()) for one in _functions_in(value)]
        node, space, origins = _source_of_class(kind, members)
        content = b""
        if node is not None:
            bare = syntax.without_methods(node)
            chains = syntax.global_names(bare)
            content = syntax.bare(bare) + self._refer_to_all(chains, space, origins)
        elif _is_namedtuple(kind):
            content = encode(getattr(kind, "__match_args__", ()))
        for function in members:
            # What was made for a dataclass follows from its definition.
            made = _is_made(function) and (node is not None or _is_namedtuple(kind))
            if _is_followed(function.__module__) and not made:
                said.append(self._add(function))
        self.parts[label] = syntax.hash_of(content, encode(sorted(said)))


# --- functions and classes ------------------------------------------------------------------------


def _is_code(value: object) -> bool:
    return isinstance(value, type | types.FunctionType)


def _wrapped(value: Any) -> Any:
    """What a decorator has left in what it returned; None: nothing."""
    try:
        return vars(value).get("__wrapped__")
    except Exception:  # noqa: BLE001 - it has no attributes, or strange ones
        return None


def _enclosed(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is empty as yet
            pass


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    yield from zip(names, defaults, strict=True)
    yield from sorted((function.__kwdefaults__ or {}).items(), key=lambda item: item[0])


def _functions_in(member: Any) -> list[types.FunctionType]:
    """The functions that an attribute of a class is made of."""
    parts = [member]
    if isinstance(member, property):
        parts = [member.fget, member.fset, member.fdel]
    elif isinstance(member, staticmethod | classmethod):
        parts = [member.__func__]
    elif isinstance(member, functools.cached_property | functools.partialmethod):
        parts = [member.func]
    elif not isinstance(member, types.FunctionType) or _is_installed(member.__code__.co_filename):
        parts = [_wrapped(member)]  # the wrapper is somebody else's
    # From Python 3.14 on annotations are made by a function.
    return [
        part
        for part in parts
        if isinstance(part, types.FunctionType) and part.__code__.co_name != "__annotate__"
    ]


def _is_made(function: types.FunctionType) -> bool:
    """Whether it was not written as a function: by a dataclass, say, or it is a lambda."""
    return function.__code__.co_name == "<lambda>" or not syntax.has_source(function)


def _is_namedtuple(kind: type) -> bool:
    return tuple in kind.__bases__ and "_fields" in vars(kind)


def _source_of_class(
    kind: type, members: list[types.FunctionType]
) -> tuple[Any, Mapping[str, Any], Mapping[str, syntax.Origin]]:
    """Return definition, global names and their origins of a class; without a definition: None."""
    own = [one for one in members if one.__module__ == kind.__module__ and not _is_made(one)]
    module = sys.modules.get(kind.__module__)
    space = own[0].__globals__ if own else getattr(module, "__dict__", {})
    filename = own[0].__code__.co_filename if own else space.get("__file__")
    if isinstance(filename, str):
        try:
            tree = syntax.tree_of(filename, space)
        except syntax.NoSourceError:
            return None, space, {}
        return syntax.class_definition(tree, kind.__qualname__), space, syntax.origins_of(tree)
    return None, space, {}


# --- modules --------------------------------------------------------------------------------------


def _name_of(module: types.ModuleType) -> str:
    return str(vars(module).get("__name__"))


def _origins_of_module(module: types.ModuleType) -> Mapping[str, syntax.Origin]:
    space = vars(module)
    try:
        return syntax.origins_of(syntax.tree_of(str(space.get("__file__")), space))
    except syntax.NoSourceError:
        return {}


def _is_written(kind: type) -> bool:
    """Whether the user has written a class."""
    return _is_followed(kind.__module__)


def _is_followed(module: object) -> bool:
    """Whether a module is the user's, rather than the standard library's or an installed one."""
    if not isinstance(module, str) or module in SCRIPTS:
        return True
    top = module.partition(".")[0]
    if top == _OURS:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str):
        return top not in sys.stdlib_module_names
    folder = PurePath(str(getattr(sys.modules.get(top), "__file__", None) or file)).parent
    if hasattr(sys.modules.get(top), "__path__"):
        folder = folder.parent
    return not _is_installed(file) and not _has_installed(folder)


@functools.lru_cache(1024)
def _is_installed(file: str) -> bool:
    if file.startswith("<frozen "):
        return True
    path = PurePath(file)
    library = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return not _INSTALLED.isdisjoint(path.parts) or any(map(path.is_relative_to, library))


@functools.lru_cache(1024)
def _has_installed(folder: PurePath) -> bool:
    """Whether pip has installed into a folder of another name, as with ``--target``."""
    return any(True for _ in Path(folder).glob("*.dist-info"))


def _foreign_name(value: Any) -> str:
    """What to call something that was not imported by a statement, roughly, on every Python."""
    module, name = type(value).__module__, type_name(value)
    if callable(value):
        try:
            module = value.__module__ or module
            name = value.__name__
        except Exception:  # noqa: BLE001 - whatever it raises
            pass
    return f"{str(module).partition('.')[0]}.{name}"


__all__ = ["CodeHash", "changes", "code_of"]
