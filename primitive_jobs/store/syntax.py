"""The definition of a function as a syntax tree: to find it, to hash it, to see what it names.

The hash has to be the same on every Python, where `ast.dump`, `ast.unparse` and bytecode are not:
it walks the tree itself, and leaves out what versions differ in. Comments and positions are not in
the tree; docstrings are left out, too.

A tree is made of what is on disk now, which need not be what was loaded. So the definition is
compiled, and has to be the code that the function has.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import linecache
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, TypeAlias

from .canonical import encode

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Origin: TypeAlias = str | ast.expr
"""Where a global name is from: its import, or the expression that was assigned."""
Chain = tuple[str, ...]
"""A global name, and the attributes that are taken of it one after the other."""

_SIZE = 8  # bytes of a part's hash: it is compared with its own former one alone
_MODULES_KEPT = 16  # trees
_STATEMENTS_KEPT = 64  # compiled
_FUTURE = __future__.annotations.compiler_flag  # the only one that makes a difference
_SHAPE = (
    "co_name",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_flags",
    "co_code",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_exceptiontable",  # from Python 3.11 on
)


class NoSourceError(Exception):
    """A function's definition cannot be found; the message says why.

    Attributes:
        edited: There is one, and it is not what was loaded.
    """

    def __init__(self, why: str, *, edited: bool = False) -> None:
        super().__init__(why)
        self.edited = edited


# --- finding --------------------------------------------------------------------------------------


def definition_of(function: types.FunctionType) -> Definition:
    """Return the node of a function's definition.

    Raises:
        NoSourceError: There is none, or it is not what the function was made of.
    """
    code = function.__code__
    if code.co_name == "<lambda>":
        raise NoSourceError("it is a lambda")
    tree = tree_of(code.co_filename, function.__globals__)
    for nodes in (_at_line(tree, code), _by_name(tree, code)):
        for statement, node in nodes:
            # IPython compiles the statements of a cell one by one.
            for alone in (False, True):
                if _is_compiled_to(tree, statement, node, code, alone=alone):
                    return node
    raise NoSourceError(
        f"in {code.co_filename} there is another definition now than the one that was loaded",
        edited=True,
    )


def class_definition(tree: ast.Module, qualname: str) -> ast.ClassDef | None:
    """Return the last definition of a class; None: there is none, as of one made by a call."""
    found: ast.AST = tree
    for name in qualname.split("."):
        if name == "<locals>":
            continue
        nodes = [node for node in _definitions(found) if node.name == name]
        if not nodes:
            return None
        found = nodes[-1]
    return found if isinstance(found, ast.ClassDef) else None


def tree_of(filename: str, namespace: Mapping[str, Any]) -> ast.Module:
    """Return the tree of a source file, or of a notebook's cell; raises `NoSourceError`."""
    linecache.checkcache(filename)
    text = "".join(_lines(filename, namespace))
    if not text:
        raise NoSourceError("its source is not known")
    try:
        return _parse(text)
    except (SyntaxError, ValueError) as error:
        raise NoSourceError(f"{filename} is not valid now: {error}", edited=True) from None


def has_source(function: types.FunctionType) -> bool:
    """Whether there is a source for a function, which may define another one."""
    return bool(_lines(function.__code__.co_filename, function.__globals__))


def _lines(filename: str, namespace: Mapping[str, Any]) -> list[str]:
    if filename == "<string>":  # of each exec; from Python 3.13 on that of -c is found
        return []
    return linecache.getlines(filename, dict(namespace))


@functools.lru_cache(_MODULES_KEPT)
def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they came when it was loaded
        return ast.parse(text)


@functools.lru_cache(_MODULES_KEPT)
def origins_of(tree: ast.Module) -> Mapping[str, Origin]:
    """Where a module's own statements take its global names from."""
    found: dict[str, Origin] = {}
    for node in _outside_definitions(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = f"import {alias.name if alias.asname else name}"
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                found[alias.asname or alias.name] = f"from {module} import {alias.name}"
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in _stored(targets):
                found[name] = node.value
    return found


def _outside_definitions(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a body, and of conditions, loops and the like in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _outside_definitions(child)


def _definitions(node: ast.AST) -> list[ast.ClassDef | Definition]:
    return [
        child
        for child in _outside_definitions(node)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", ())
    lines: list[int] = [decorator.lineno for decorator in decorators]
    return min([node.lineno, *lines])


def _functions(statement: ast.stmt, name: str) -> Iterator[Definition]:
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            yield node


def _at_line(tree: ast.Module, code: types.CodeType) -> Iterator[tuple[ast.stmt, Definition]]:
    line = code.co_firstlineno
    for statement in tree.body:
        if _first_line(statement) <= line <= (statement.end_lineno or 0):
            for node in _functions(statement, code.co_name):
                if _first_line(node) == line:
                    yield statement, node


def _by_name(tree: ast.Module, code: types.CodeType) -> Iterator[tuple[ast.stmt, Definition]]:
    """The same for where lines were put in or taken out above since it was loaded."""
    for statement in tree.body:
        for node in _functions(statement, code.co_name):
            yield statement, node


def _imports(tree: ast.Module) -> list[ast.stmt]:
    """The import statements of a module, on which the code for calls of what they name depends."""
    return [
        node for node in _outside_definitions(tree) if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def _is_compiled_to(
    tree: ast.Module, statement: ast.stmt, node: Definition, code: types.CodeType, *, alone: bool
) -> bool:
    flags = code.co_flags & _FUTURE
    line = _first_line(node)
    every = _codes_of(tree, statement, code.co_filename, flags, alone=alone)
    return any(one.co_firstlineno == line and _is_same(one, code) for one in every)


@functools.lru_cache(_STATEMENTS_KEPT)  # a class has many methods
def _codes_of(
    tree: ast.Module, statement: ast.stmt, filename: str, flags: int, *, alone: bool
) -> tuple[types.CodeType, ...]:
    """The codes in a whole statement: a method's names depend on its class, for one."""
    module = ast.Module([*([] if alone else _imports(tree)), statement], [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tuple(_codes(compile(module, filename, "exec", flags, dont_inherit=True)))
        except (SyntaxError, ValueError):  # a RecursionError would not come again
            return ()


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from _codes(const)


def _is_same(one: object, other: object) -> bool:
    """Whether two codes do the same: positions and names of files do not matter."""
    if type(one) is not type(other):
        return False
    if isinstance(one, types.CodeType) and isinstance(other, types.CodeType):
        shape = all(getattr(one, name, None) == getattr(other, name, None) for name in _SHAPE)
        return shape and _is_same(one.co_consts, other.co_consts)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, frozenset):
        return one == other
    return repr(one) == repr(other)  # tells 0.0 from -0.0


# --- hashing --------------------------------------------------------------------------------------


def hash_of(*parts: bytes) -> str:
    """The hash of a part; the texts are delimited, or of one length."""
    return blake2b(b"".join(parts), digest_size=_SIZE).hexdigest()


def bare(node: ast.AST) -> bytes:
    """Return a node's encoding: without positions, docstrings, and what Python versions add."""
    out: list[bytes] = []
    _emit(node, out)
    return b"".join(out)


def without_defaults(node: Definition) -> Definition:
    """A copy without the defaults of its parameters."""
    node = copy.copy(node)
    node.args = copy.copy(node.args)
    node.args.defaults, node.args.kw_defaults = [], []
    return node


def defaults_of(node: Definition) -> dict[str, ast.expr]:
    """The expressions of the defaults, by parameter."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    parameters = [
        *positional[len(positional) - len(arguments.defaults) :],
        *arguments.kwonlyargs,
    ]
    expressions = [*arguments.defaults, *arguments.kw_defaults]
    pairs = zip(parameters, expressions, strict=True)
    return {parameter.arg: default for parameter, default in pairs if default is not None}


def without_methods(node: ast.ClassDef) -> ast.ClassDef:
    """A copy of a class without the functions that are defined in it."""
    node = copy.copy(node)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    node.body = [statement for statement in node.body if not isinstance(statement, kinds)]
    return node


_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


@functools.cache  # as many as there are types of nodes
def _fields_of(kind: type[ast.AST]) -> tuple[tuple[str, bytes], ...]:
    fields: tuple[str, ...] = kind.__match_args__
    return tuple((name, name.encode() + b"=") for name in sorted({*fields} - _LEFT_OUT))


def _emit(node: Any, out: list[bytes]) -> None:
    kind: Any = type(node)
    out.append(b"(" + kind.__name__.encode() + b" ")
    if kind is ast.Constant:
        out.append(b"..." if node.value is ... else encode(node.value))
    else:
        for name, label in _fields_of(kind):
            value: Any = getattr(node, name, None)
            if name == "values" and kind is ast.JoinedStr:
                value = _merged(value)
            elif name == "body" and type(value) is list:
                value = [one for one in value if not _is_text(one)]
            elif name == "format_spec" and value is not None and not _merged(value.values):
                value = None
            if value is None or value == []:
                continue
            out.append(label)
            for part in value if type(value) is list else (value,):
                if isinstance(part, ast.AST):
                    _emit(part, out)
                else:
                    out.append(encode(part))  # a name, a number, or nothing
    out.append(b")")


def _is_text(statement: ast.AST) -> bool:
    """Whether it is a docstring, or another text that nobody uses."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, whose texts Python 3.12 and others divide in other ways."""
    parts: list[ast.expr] = []
    for value in values:
        last = parts[-1] if parts else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            parts[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            parts.append(value)
    return parts


# --- names ----------------------------------------------------------------------------------------


def global_names(node: ast.AST, *, bound: Iterable[str] = ()) -> list[Chain]:
    """Return what a definition reads of its module, in the order of the text.

    Names that it assigns itself with ``global`` are state, and left out.
    """
    names = _Names()
    names.visit(node, frozenset(bound))
    return [chain for chain in names.found if chain[0] not in names.assigned]


class _Names:
    """Goes through a tree with the names that are local at each place.

    Of classes no name is local, since their methods do not see them: one that a module has, too,
    is found in vain.

    Attributes:
        found: Global names and their attributes; a dict for its order.
        assigned: Names that the definition declares global.
    """

    def __init__(self) -> None:
        self.found: dict[Chain, None] = {}
        self.assigned: set[str] = set()

    def visit(self, node: ast.AST, bound: frozenset[str]) -> None:
        if isinstance(node, ast.Name | ast.Attribute):
            self._visit_chain(node, bound)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._visit_function(node, bound)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            first = node.generators[0]
            self.visit(first.iter, bound)  # the one that is evaluated outside
            inner = bound | {*_stored(one.target for one in node.generators)}
            for child in ast.iter_child_nodes(node):
                self.visit(child, inner)
        else:
            if isinstance(node, ast.Global):
                self.assigned.update(node.names)
            for child in ast.iter_child_nodes(node):
                self.visit(child, bound)

    def _visit_chain(self, node: ast.Name | ast.Attribute, bound: frozenset[str]) -> None:
        attributes: list[str] = []
        owner: ast.AST = node
        while isinstance(owner, ast.Attribute):
            attributes.append(owner.attr)
            owner = owner.value
        if not isinstance(owner, ast.Name):
            self.visit(owner, bound)
        elif owner.id not in bound and not isinstance(owner.ctx, ast.Store):
            chain = (owner.id, *reversed(attributes))
            self.found[chain] = None

    def _visit_function(self, node: Definition | ast.Lambda, bound: frozenset[str]) -> None:
        arguments = node.args
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default, bound)
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
        for argument in every:
            if argument.annotation is not None:
                self.visit(argument.annotation, bound)
        inner = bound | {argument.arg for argument in every}
        if isinstance(node, ast.Lambda):
            self.visit(node.body, inner | {*_stored([node.body])})
            return
        for child in (*node.decorator_list, *filter(None, [node.returns])):
            self.visit(child, bound)
        declared = {
            name for one in _own(node.body) if isinstance(one, ast.Global) for name in one.names
        }
        inner |= {*_stored(node.body)}
        for statement in node.body:
            self.visit(statement, inner - declared)


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of one scope."""
    for node in nodes:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            # Only := in there is of this scope.
            for inner in ast.walk(node):
                if isinstance(inner, ast.NamedExpr):
                    yield inner.target
            continue
        yield from _own(ast.iter_child_nodes(node))


def _stored(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that a scope gives a value to."""
    for node in _own(nodes):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
            case ast.ExceptHandler(name=str(name)):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name
            case ast.Nonlocal(names=names):
                yield from names
            case ast.alias(name=name, asname=asname):
                yield asname or name.partition(".")[0]


__all__ = [
    "Chain",
    "Definition",
    "NoSourceError",
    "Origin",
    "bare",
    "class_definition",
    "defaults_of",
    "definition_of",
    "global_names",
    "has_source",
    "hash_of",
    "origins_of",
    "tree_of",
    "without_defaults",
    "without_methods",
]
