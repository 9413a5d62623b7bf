"""Makes functions anew that have travelled by value, as cloudpickle would.

The import of cloudpickle takes longer than all else that a new worker does until it is at its first
job. So what it needs to get a function out of a pickle is here, and cloudpickle is imported only
where more comes: a class by value, or an answer that is not plain.

Where cloudpickle is there already, its own function fills in: `kept_globals` puts another one in
its place.
"""

from __future__ import annotations

import sys
from types import CellType, CodeType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


def make_code(parts: tuple[Any, ...], filename: str) -> CodeType:
    return CodeType(*parts).replace(co_filename=filename)


def make_function(
    code: CodeType, namespace: dict[str, Any], closure: tuple[CellType, ...] | None
) -> FunctionType:
    namespace["__builtins__"] = __builtins__  # else it would get those of this moment's frame
    return FunctionType(code, namespace, None, None, closure)


def make_empty_cell() -> CellType:
    return CellType()


def make_cell(value: object) -> CellType:
    return CellType(value)


def import_module(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


def fill_function(function: FunctionType, state: tuple[dict[str, Any], Any]) -> None:
    """Fill in a function, which may refer to itself."""
    cloudpickle: Any = sys.modules.get("cloudpickle.cloudpickle")
    # Not there yet: another thread has just begun to import it.
    fill = getattr(cloudpickle, "_function_setstate", None)
    if fill is not None:
        fill(function, state)
        return
    attributes, slots = state
    function.__dict__.update(attributes)
    namespace, cells = slots.pop("__globals__"), slots.pop("__closure__")
    slots.pop("_cloudpickle_submodules")  # they are imported now, which is all that they are for
    function.__globals__.update(namespace)
    function.__globals__["__builtins__"] = __builtins__
    for ours, cell in zip(function.__closure__ or (), cells or ()):  # noqa: B905 - as many
        try:
            ours.cell_contents = cell.cell_contents
        except ValueError:  # it is empty
            continue
    for name, value in slots.items():
        setattr(function, name, value)
