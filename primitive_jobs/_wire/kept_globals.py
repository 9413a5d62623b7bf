"""In a worker: what an initializer sets in the globals of a script is there for the jobs.

cloudpickle sends functions of ``__main__`` by value, with the globals that they refer to, and each
pickle makes a namespace of its own. So an initializer sets globals that no job sees, and each job
brings what its caller has. Therefore two functions of cloudpickle are replaced in a worker whose
initializer came by value:

* The one that fills a function in. While the initializer is unpickled and runs, it notes what came
  into its namespaces. Afterwards those names are kept, by module, that the initializer has bound
  anew, or whose value it has changed. A job's function gets what is kept if it brings the same as
  the initializer had brought: what its caller has set since then counts more.
* The one that takes a function apart, to pickle it. The class of a result may travel by value, and
  its methods with it; not with what is kept, which may be unable to travel: what the job has
  brought goes back instead.

Each job has a namespace of its own: what it binds anew ends with it.
"""

from __future__ import annotations

import sys

from . import pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _pickle as pickle
    from collections.abc import Callable
    from types import CodeType, FunctionType, ModuleType
    from typing import Any

    Namespace = dict[str, Any]
    Brought = tuple[object, bytes | None]
    """What a namespace was given: a value, and its digest where it may be changed."""


class _Absent:
    """Stands for no value at all."""


_ABSENT = (_Absent, None)
_UNKNOWN = (_Absent, b"")
"""What the initializer sets without naming it, by ``globals().update()`` say: it is not told what
its caller had there."""
_OF_EVERY_MODULE = frozenset({"__builtins__", "__name__", "__package__", "__path__", "__file__"})
_REPLACED = "__primitive_jobs_replaced__"
"""In a namespace: for each name with a kept value, that value and the one it stands in for."""


class Keeper:
    """Keeps what one initializer sets. Written until `keep` has returned; jobs only read."""

    def __init__(self) -> None:
        from cloudpickle import cloudpickle

        self._digester = _Digester()
        self._kept: dict[object, dict[str, tuple[object, Brought]]] = {}  # by module and name
        self._noted: dict[int, tuple[Namespace, dict[str, Brought]]] = {}
        self._named: set[str] = set()  # by the code of any function that was filled in
        self._digests = False  # whether what is noted is whole, and gets its digest at once
        self._fill: Callable[[FunctionType, Any], None] = cloudpickle._function_setstate
        self._take_apart: Callable[[FunctionType], Any] = cloudpickle._function_getstate
        self._cloudpickle: ModuleType = cloudpickle
        self._put("_function_setstate", self._fill_and_note)

    def _put(self, name: str, method: Callable[..., Any]) -> None:
        """Put a method in the place of a function of cloudpickle's, as which it is pickled, too."""

        def function(*args: Any) -> Any:
            return method(*args)

        function.__module__ = self._cloudpickle.__name__
        function.__name__ = function.__qualname__ = name
        setattr(self._cloudpickle, name, function)

    # --- while the initializer is unpickled and runs -----------------------------------------

    def _fill_and_note(self, function: FunctionType, state: Any) -> None:
        brought = state[1]["__globals__"]
        self._fill(function, state)
        namespace = function.__globals__
        self._named |= _names_in(function.__code__)
        _, noted = self._noted.setdefault(id(namespace), (namespace, {}))
        for name, value in brought.items():
            if name not in noted:
                digest = self._digester.of_changeable(value) if self._digests else None
                noted[name] = value, digest

    def unpickled(self) -> None:
        """The initializer is there, and is about to run."""
        for _, noted in self._noted.values():
            for name, (value, _) in noted.items():
                noted[name] = value, self._digester.of_changeable(value)
        self._digests = True

    def keep(self) -> None:
        """The initializer has run: keep what it has set, for the jobs."""
        for namespace, noted in self._noted.values():
            replaced = {}
            for name, value in [*namespace.items()]:
                brought = noted.get(name, _ABSENT if name in self._named else _UNKNOWN)
                if name in _OF_EVERY_MODULE or self._is_unchanged(value, brought):
                    continue
                module = namespace.get("__name__")
                self._kept.setdefault(module, {})[name] = value, brought
                if value is not brought[0]:
                    replaced[name] = value, brought[0]
            namespace[_REPLACED] = replaced
        self._noted.clear()
        if self._kept:
            self._put("_function_setstate", self._fill_with_kept)
            self._put("_function_getstate", self._take_apart_without_kept)
        else:
            self._cloudpickle._function_setstate = self._fill  # type: ignore[attr-defined]

    def _is_unchanged(self, value: object, brought: Brought) -> bool:
        before, digest = brought
        return value is before and (digest is None or self._digester.of(value) == digest)

    # --- for the jobs ------------------------------------------------------------------------

    def _fill_with_kept(self, function: FunctionType, state: Any) -> None:
        brought = state[1]["__globals__"]
        self._fill(function, state)
        namespace = function.__globals__
        kept = self._kept.get(namespace.get("__name__"))
        if kept is None:
            return
        replaced = namespace.setdefault(_REPLACED, {})
        for name, (value, first) in kept.items():
            if name in brought:
                now = brought[name]
                # Another function of the same job has brought the same object, most likely.
                known = name in replaced and replaced[name][1] is now
                if known or self._is_same(now, first):
                    namespace[name] = value
                    replaced[name] = value, now
                else:
                    replaced.pop(name, None)
            elif name not in namespace:  # it does not name it, but may ask for it by eval()
                namespace[name] = value
                replaced[name] = value, _Absent

    def _is_same(self, now: object, first: Brought) -> bool:
        """Whether a job brings what the initializer had brought; calls nobody's ``__eq__``."""
        before, digest = first
        if now is before or first is _UNKNOWN:
            return True
        if type(now) is not type(before):
            return False
        if type(now) in pickling.PLAIN:
            return now == before or (now != now and before != before)
        # What cannot be pickled here, though it came in a pickle, cannot be told apart either.
        return digest is None or self._digester.of(now) == digest

    def _take_apart_without_kept(self, function: FunctionType) -> Any:
        state = self._take_apart(function)
        mine = state[1]["__globals__"]
        for name, (kept, brought) in function.__globals__.get(_REPLACED, {}).items():
            if mine.get(name, _Absent) is not kept:
                continue
            if brought is _Absent:
                del mine[name]
            else:
                mine[name] = brought
        return state


def _names_in(code: CodeType) -> set[str]:
    """The names that a function's code has, those of functions inside it included."""
    names = {*code.co_names}
    for const in code.co_consts:
        if isinstance(const, type(code)):
            names |= _names_in(const)
    return names


class _Digester:
    """Makes digests of pickles, by which to see whether values are the same.

    Of functions it looks at code, defaults and attributes, not at what they refer to, so that it
    does not matter how far a function is filled in that refers to itself. Classes are the same if
    they are one object: cloudpickle finds again those that it has made already.
    """

    def __init__(self) -> None:
        self._classes: dict[int, type] = {}  # so that no other one gets the same number

    def of_changeable(self, value: object) -> bytes | None:
        """None also where it cannot change, or is no affair of its pickle."""
        if type(value) in pickling.PLAIN or type(value) is type(sys):
            return None
        return self.of(value)

    def of(self, value: object) -> bytes | None:
        """None where it cannot be pickled."""
        try:
            from _blake2 import blake2b
        except ImportError:
            from hashlib import blake2b

        found = blake2b(digest_size=16)
        try:
            _digesting_pickler()(found.update, self._classes).dump(value)
        except Exception:  # noqa: BLE001 - whatever a __reduce__ raises
            return None
        return bytes(found.digest())


class _Sink:
    """A file, as far as a pickler sees."""

    def __init__(self, write: Callable[[Any], object]) -> None:
        self.write = write


_pickler: list[Any] = []


def _digesting_pickler() -> Any:
    if _pickler:
        return _pickler[0]
    from cloudpickle import cloudpickle

    base: Any = pickling.pickler_type()
    function_type, module_type = type(_digesting_pickler), type(sys)

    class Pickler(base):  # type: ignore[misc]
        def __init__(self, write: Callable[[Any], object], classes: dict[int, type]) -> None:
            super().__init__(_Sink(write), {}, self._take_buffer)
            self._write = write
            self._classes = classes

        def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
            try:
                self._write(buffer.raw())
            except BufferError:  # not contiguous: it goes into the pickle
                return True
            return False

        def persistent_id(self, value: Any) -> int | None:
            # Which texts are one object is chance: unpickling interns some, if they come first.
            return hash(value) if type(value) is str or type(value) is bytes else None

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if issubclass(kind, type):
                self._classes[id(value)] = value
                return len, (id(value),)
            if kind is module_type:
                return len, (value.__name__,)
            if kind is not function_type or cloudpickle._should_pickle_by_reference(value):
                return NotImplemented if kind is function_type else super().reducer_override(value)
            parts = hash(value.__code__), value.__defaults__, value.__kwdefaults__, value.__dict__
            return len, (value.__qualname__,), parts

    _pickler.append(Pickler)
    return Pickler
