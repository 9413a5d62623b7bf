"""``python -m primitive_jobs store FILE ...``: looks into a store without running anything."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from ..errors import StoreError
from .database import Database
from .rows import StoredRow
from .tables import facts_of, write_csv, write_json

_DRAWN = 200  # rows that rich draws at the most; it takes its time
_HEADS = ("key", "function", "arguments", "status", "result", "took", "ended")
_WIDTHS = (8, 16, 36, 9, 28, 10, 19)
_WIDEST = 500  # characters of a result that `show` prints


def run_store(args: argparse.Namespace) -> int:
    """Do what the command says; return the exit status."""
    try:
        action: Callable[[argparse.Namespace], int] = _ACTIONS[args.action]
        return action(args)
    except BrokenPipeError:
        raise
    except (StoreError, LookupError, OSError) as error:
        print(error.args[0] if isinstance(error, LookupError) else error, file=sys.stderr)
        return 1


def _open(args: argparse.Namespace) -> Database:
    return Database(str(Path(args.file).resolve()), make=False)


def _list(args: argparse.Namespace) -> int:
    database = _open(args)
    if args.json:
        write_json(database.rows(args.name, args.status), sys.stdout)
        return 0
    lines = (_line(*facts) for facts in database.lines(args.name, args.status))
    first = list(itertools.islice(lines, _DRAWN + 1))
    if len(first) <= _DRAWN and sys.stdout.isatty() and find_spec("rich") is not None:
        _draw(first)
    else:
        _print(itertools.chain(first, lines))
    return 0


def _line(
    key: str,
    name: str,
    arguments: str,
    status: str,
    plain: str | None,
    error_type: str | None,
    error_text: str | None,
    duration: float | None,
    ended: float,
) -> tuple[str, ...]:
    if error_type is not None:
        result = f"{error_type}: {error_text}".partition("\n")[0]
    else:
        result = "" if status != "DONE" else (plain or "(pickled)")
    took = "" if duration is None else f"{duration:.3g} s"
    shown = arguments[1:-1].replace('"', "").replace(": ", "=")
    return key[:8], name, shown, status, result, took, _second(int(ended))


@functools.lru_cache(4096)
def _second(when: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _print(lines: Iterable[tuple[str, ...]]) -> None:
    """Print a line for each: 100,000 of them in less than a second."""
    form = "  ".join(f"%-{width}s" for width in _WIDTHS[:-1]) + "  %s\n"
    _, of_name, of_arguments, _, of_result, _, _ = _WIDTHS

    def fitted() -> Iterator[str]:
        for key, name, arguments, status, result, took, end in lines:
            yield form % (
                key,
                name if len(name) <= of_name else name[: of_name - 3] + "...",
                arguments
                if len(arguments) <= of_arguments
                else arguments[: of_arguments - 3] + "...",
                status,
                result if len(result) <= of_result else result[: of_result - 3] + "...",
                took,
                end,
            )

    sys.stdout.write(form % _HEADS)
    texts = fitted()
    while some := list(itertools.islice(texts, 1000)):
        sys.stdout.write("".join(some))


def _draw(lines: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"DONE": "green", "ERROR": "red", "CANCELLED": "yellow"}
    table = Table(box=None, pad_edge=False)
    for head in _HEADS:
        table.add_column(head, overflow="ellipsis", no_wrap=head != "arguments")
    for cells in lines:
        table.add_row(*(Text(cell, colours.get(cell, "")) for cell in cells))
    Console().print(table)


def _find(database: Database, begin: str) -> StoredRow:
    found = list(itertools.islice(database.rows(key=begin), 2))
    if not found:
        raise LookupError(f"{database.path} has no row of which the key begins with {begin!r}")
    if len(found) > 1:
        raise LookupError(f"more than one key begins with {begin!r}: give more of it")
    return found[0]


def _show(args: argparse.Namespace) -> int:
    facts = facts_of(_find(_open(args), args.key))
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name in ("started", "ended"):
        if facts[name] is not None:
            facts[name] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts[name]))
    long = [(name, facts.pop(name)) for name in ("traceback", "output")]
    for name, value in facts.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            print(f"{name + ':':<14}{text if len(text) <= _WIDEST else text[:_WIDEST] + '...'}")
    for name, value in long:
        if value:
            print(f"\n{name}:\n{value.rstrip()}")
    return 0


def _export(args: argparse.Namespace) -> int:
    database = _open(args)
    rows = database.rows(args.name, args.status)
    if args.out == "-":
        write_csv(list(rows), sys.stdout)
        return 0
    out = Path(args.out)
    if out.suffix not in (".csv", ".json"):
        print(f"{out} is to end in .csv or .json", file=sys.stderr)
        return 2
    with out.open("w", encoding="utf-8", newline="") as file:
        count = write_csv(list(rows), file) if out.suffix == ".csv" else write_json(rows, file)
    print(f"{count} rows written to {out}")
    return 0


def _forget(args: argparse.Namespace) -> int:
    if (args.name is None) == (not args.key):
        print("say which: --name NAME, or --key KEY", file=sys.stderr)
        return 2
    database = _open(args)
    keys = [_find(database, begin).key for begin in args.key]
    from .store import SweepStore  # with pools and all: looking does without

    with contextlib.closing(SweepStore(args.file)) as store:
        count = store.forget(keys=keys) if keys else store.forget(args.name)
    print("1 row deleted" if count == 1 else f"{count} rows deleted")
    return 0


_ACTIONS = {"list": _list, "show": _show, "export": _export, "forget": _forget}

__all__ = ["run_store"]
