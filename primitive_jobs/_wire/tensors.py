"""torch's tensors in a pickle: their memory stays out of it, as that of arrays does.

A tensor is pickled as its storage and how it is laid out in that. torch's own way for a storage is
a file in a file's format, and another one for each tensor that uses it. Here a storage of this
machine's memory is its bytes, once in a pickle: what shares memory before does so afterwards.

It is asked only once torch is imported, which nothing here does but for what is unpickled.
"""

# torch is there only where a job has it.
# pyright: reportMissingImports=false

from __future__ import annotations

import _pickle as pickle
import functools

from .._common.imported import imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Reducer = Callable[[Any], Any]


def reducers() -> dict[type, Reducer]:
    """How storages are reduced; none while torch is not imported."""
    torch = imported("torch")
    return {} if torch is None else _reducers(torch.UntypedStorage, torch.storage.TypedStorage)


@functools.lru_cache(maxsize=1)
def _reducers(untyped: type, typed: type) -> dict[type, Reducer]:
    return {untyped: _reduce_untyped, typed: _reduce_typed}


def _reduce_untyped(storage: Any) -> Any:
    if storage.device.type != "cpu":
        return storage.__reduce__()
    size = storage.nbytes()
    if not size:
        return type(storage), (0,)
    import ctypes

    area: Any = (ctypes.c_ubyte * size).from_address(storage.data_ptr())
    area.owner = storage  # lives for as long as the buffer is used
    return _untyped, (pickle.PickleBuffer(area),)


def _reduce_typed(storage: Any) -> Any:
    """It is made for each tensor anew, and has no memory of its own."""
    untyped = storage._untyped_storage
    if untyped.device.type != "cpu":
        return storage.__reduce__()
    return _typed, (untyped, storage.dtype)


def _untyped(buffer: Any) -> Any:
    import torch

    if memoryview(buffer).readonly:  # shared data: torch has no tensor that cannot be written to
        buffer = bytearray(buffer)
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def _typed(storage: Any, dtype: Any) -> Any:
    import torch

    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


__all__ = ["reducers"]
