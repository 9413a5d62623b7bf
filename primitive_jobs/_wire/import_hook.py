"""`AfterImport`: has something done to a module right after whoever imports it has done so."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class AfterImport:
    """A finder that has functions called with modules, by name, once these are imported."""

    def __init__(self, functions: dict[str, Callable[[ModuleType], object]]) -> None:
        self._functions = functions

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Have the other finders find it, and its loader call the function."""
        if name not in self._functions:
            return None
        # Like importlib, passing over those of the old kind.
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (f.find_spec(name, path, target) for f in others)), None)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                # By its own name: a loader may serve several.
                function = self._functions.pop(module.__name__, None)
                if function is not None:
                    function(module)

            loader.exec_module = execute_and_call
        return spec


__all__ = ["AfterImport"]
