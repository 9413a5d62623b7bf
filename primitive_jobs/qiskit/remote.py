"""What a worker does with a part, and what comes back: results, and the warnings before them."""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import copyreg
import pickle
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from qiskit.primitives.containers import DataBin

from .._wire.pickling import dumps_whole
from ..job import PrimitiveJob
from ..status import JobStatus
from .parts import Place, Pub
from .seeds import Seed, seeds_each_pub_alike


def _make_data_bin(shape: tuple[int, ...], data: dict[str, Any]) -> Any:
    return DataBin(shape=shape, **data)


def _reduce_data_bin(data_bin: Any) -> tuple[Any, ...]:
    return _make_data_bin, (data_bin.shape, dict(data_bin.items()))


if "__setattr__" in vars(DataBin):  # Qiskit up to 2.0: pickled, but not unpickled
    copyreg.pickle(DataBin, _reduce_data_bin)


class _Warning(NamedTuple):
    """A warning on its way to the caller."""

    pickled: bytes
    """Message and category."""
    text: str
    filename: str
    lineno: int
    module: str | None


class PartResult(NamedTuple):
    """What a part comes to."""

    pub_results: list[Any]
    metadata: dict[str, Any]
    warnings: list[_Warning]


VALIDATION = "_validate_pubs"
"""The method of Qiskit's own primitives that looks at the pubs."""

_LUGGAGE = "_primitive_jobs_warnings"
"""The attribute of an exception that brings the warnings before it."""

_latest: list[tuple[bytes, Any]] = []
"""The primitive that the last part had, and its key: making one may take longer than a pub."""


def run_part(block: Any, key: bytes, primitive: Place, pubs: list[Pub]) -> PartResult:
    """In a worker: run some pubs, each as if it were alone."""
    view = memoryview(block)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # the caller's filters decide, but each comes once
        try:
            if not _latest or _latest[0][0] != key:
                _latest[:] = [(key, pickle.loads(view[slice(*primitive)]))]
            results = _run_pubs(_latest[0][1], view, pubs)
        except Exception as error:
            if caught:
                vars(error)[_LUGGAGE] = [_on_its_way(one) for one in caught]
            raise
    return PartResult(
        [one for result in results for one in result],
        results[0].metadata,
        [_on_its_way(one) for one in caught],
    )


def _run_pubs(original: Any, view: memoryview, pubs: Sequence[Pub]) -> list[Any]:
    """Return the result of each run: one for all, where no pub is seeded in a way of its own."""
    made = [
        pub.kind(pickle.loads(view[slice(*pub.circuit)]), **pub.rest, validate=False)
        for pub in pubs
    ]
    # Each run starts a thread: a tenth of what a small pub takes.
    if not pubs or (seeds_each_pub_alike(original) and not any(pub.seeds for pub in pubs)):
        return [_run(original, [], made)]
    return [_run(original, pub.seeds, [one]) for pub, one in zip(pubs, made, strict=True)]


def _run(original: Any, seeds: Sequence[Seed], pubs: list[Any]) -> Any:
    primitive = copy.copy(original)
    if hasattr(primitive, VALIDATION):
        setattr(primitive, VALIDATION, _validated)
    for seed in seeds:
        seed.setter(primitive, seed.value)
    return primitive.run(pubs).result()


def _validated(pubs: object) -> None:
    """The caller has done it, and given the warnings with the right places."""
    del pubs


def _on_its_way(warning: warnings.WarningMessage) -> _Warning:
    text = str(warning.message)
    try:
        pickled = dumps_whole((warning.message, warning.category))
    except Exception:  # noqa: BLE001 - it is somebody else's
        pickled = dumps_whole((text, UserWarning))
    modules = [
        name
        for name, module in list(sys.modules.items())
        if getattr(module, "__dict__", {}).get("__file__") == warning.filename
    ]
    module = modules[0] if modules else None
    return _Warning(pickled, text, warning.filename, warning.lineno, module)


def _warnings_of(part: PrimitiveJob[PartResult]) -> list[_Warning]:
    if part.done():
        return part.result().warnings
    error = part.exception() if part.status() is JobStatus.ERROR else None
    return getattr(error, _LUGGAGE, [])


def give_warnings(parts: Iterable[PrimitiveJob[PartResult]]) -> None:
    """Give the warnings of all parts again, each once, as if it had been here."""
    found = {one[1:]: one for part in parts for one in _warnings_of(part)}
    for one in found.values():
        try:
            message, category = pickle.loads(one.pickled)
        except Exception:  # noqa: BLE001 - it is somebody else's
            message, category = one.text, UserWarning
        # Without a name it is made from that of the file; None would keep the warning to itself.
        where: dict[str, Any] = {} if one.module is None else {"module": one.module}
        module = sys.modules.get(one.module or "")
        if module is not None:
            where["registry"] = vars(module).setdefault("__warningregistry__", {})
        warnings.warn_explicit(message, category, one.filename, one.lineno, **where)


__all__ = ["VALIDATION", "PartResult", "give_warnings", "run_part"]
