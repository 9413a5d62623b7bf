"""Rows as tables: for CSV, JSON and pandas. Nothing is unpickled unless somebody asks for it."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from ..status import JobStatus
from .contents import strict
from .rows import StoredRow

if TYPE_CHECKING:
    from pandas import DataFrame

_USED = ("wall", "user", "system", "peak_memory", "exact")
_REST = ("status", "duration", "ended", "attempts", "error", "version", "seed", "key")


def plain_result(row: StoredRow) -> Any:
    """Return a result that JSON has, as JSON has it; None for any other."""
    return None if row.plain is None else json.loads(row.plain)


def facts_of(row: StoredRow) -> dict[str, Any]:
    """Return all that is known of a row, as JSON has it."""
    return {
        "key": row.key,
        "name": row.name,
        "version": row.version,
        "module": row.module,
        "code": row.code,
        "python": row.python,
        "arguments": strict(row.arguments),
        "status": row.status.name,
        "result": strict(plain_result(row)),
        "result_bytes": row.size,
        "started": row.started,
        "ended": row.ended,
        "duration": row.duration,
        "usage": None if row.usage is None else dict(zip(_USED, row.usage, strict=True)),
        "attempts": row.attempts,
        "seed": None if row.seed is None else [row.seed[0], list(row.seed[1])],
        "error_type": row.error_type,
        "error_text": row.error_text,
        "traceback": row.traceback,
        "output": row.output,
        "progress": strict(row.progress),
    }


def records(
    rows: Iterable[StoredRow], *, load: bool = False
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return rows as flat records: arguments, result, then the rest; and what the rest is called.

    A name that is taken already gets what it is before it: ``result.T``, ``row.status``.
    """
    found = [(row.arguments, _results(row, load=load), row) for row in rows]
    arguments = {name for given, _, _ in found for name in given}
    results = {
        name: f"result.{name}" if name in arguments else name
        for _, made, _ in found
        for name in made
    }
    taken = arguments | set(results.values())
    rest = {name: f"row.{name}" if name in taken else name for name in _REST}
    flat = []
    for given, made, row in found:
        record = {**given, **{results[name]: value for name, value in made.items()}}
        error = None
        if row.error_type is not None:
            error = f"{row.error_type}: {row.error_text}".partition("\n")[0]
        seed = None if row.seed is None else row.seed[0]
        status, attempts = row.status.name, row.attempts
        facts = (status, row.duration, row.ended, attempts, error, row.version, seed, row.key)
        record.update(zip(rest.values(), facts, strict=True))
        flat.append(record)
    return flat, rest


def _results(row: StoredRow, *, load: bool) -> dict[str, Any]:
    """What a row's result is in the columns."""
    result = plain_result(row)
    if load and row.plain is None and row.status is JobStatus.DONE:
        result = row.result
    if isinstance(result, dict) and result and all(isinstance(name, str) for name in result):
        return result
    return {"result": result}


def to_pandas(rows: Iterable[StoredRow], *, load: bool) -> DataFrame:
    """Return them as a table; see `SweepStore.to_pandas`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            f'to_pandas() needs pandas: python -m pip install "primitive_jobs[pandas]" ({error})'
        ) from error
    found, names = records(rows, load=load)
    if not found:
        return pd.DataFrame()
    frame = pd.DataFrame.from_records(found)
    frame[names["ended"]] = pd.to_datetime(frame[names["ended"]], unit="s", utc=True)
    return frame.set_index(names["key"])


def write_csv(rows: list[StoredRow], file: TextIO) -> int:
    """Write them as CSV, one column for each name; return how many rows."""
    found, rest = records(rows)
    for record in found:
        ended = time.gmtime(record[rest["ended"]])
        record[rest["ended"]] = time.strftime("%Y-%m-%dT%H:%M:%SZ", ended)
    names = list(dict.fromkeys(name for record in found for name in record))
    writer = csv.writer(file)
    writer.writerow(names)
    for record in found:
        writer.writerow([_cell(record.get(name)) for name in names])
    return len(found)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list, tuple, bool)) else value


def write_json(rows: Iterable[StoredRow], file: TextIO) -> int:
    """Write them as a JSON array, a row a line; return how many rows."""
    count = 0
    file.write("[")
    for row in rows:
        file.write((",\n" if count else "\n") + json.dumps(facts_of(row), allow_nan=False))
        count += 1
    file.write("\n]\n" if count else "]\n")
    return count


__all__ = ["facts_of", "plain_result", "records", "to_pandas", "write_csv", "write_json"]
