"""The command `top`: the jobs of all programs of this user, once or as a live table."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

from .processes import Loads
from .table import columns, cut, matches, ordered, rows_of, summary
from .watch import Program, Watch, unlisted

_PATIENCE = 2.0  # s that programs have to answer, where they are asked once
_SAMPLE = 0.2  # s over which CPU time is measured then


def top(*, once: bool, as_json: bool, pause: float, text: str) -> int:
    """Show what there is; return the exit status.

    Args:
        once: Print it once.
        as_json: Print it once, as JSON.
        pause: Seconds between two looks.
        text: What the rows that are shown contain.
    """
    if as_json or once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _once(text, as_json=as_json)
    try:
        from .live import show
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "rich":
            raise
        print(
            "the live table is drawn by rich: python -m pip install rich; without it, --once "
            "prints the table and --json the data",
            file=sys.stderr,
        )
        return 1
    return show(pause, text)


def _once(text: str, *, as_json: bool) -> int:
    watch = Watch()
    try:
        try:
            watch.ask()
        except OSError as error:
            print(f"what runs on this machine cannot be seen: {error}", file=sys.stderr)
            return 1
        watch.hear_all(_PATIENCE)
        programs = watch.programs()
        rows_of(programs, watch.loads)
        if any(pool.rows for program in programs for pool in program.pools):
            time.sleep(_SAMPLE)
        if as_json:
            print(json.dumps(_data(programs, watch.loads, text), indent=1))
        else:
            print("\n".join(_lines(programs, watch.loads, text)))
        return 0
    finally:
        watch.close()


def _lines(programs: list[Program], loads: Loads, text: str) -> list[str]:
    """As plain columns: cut to the window of a terminal, whole for another program."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if not programs:
        return ["no program of yours has a pool that can be seen"]
    commands = {program.pid: program.command for program in programs}
    rows = [row for row in rows_of(programs, loads) if matches(row, commands[row.program], text)]
    lines = [summary(program) for program in programs]
    if width is not None:
        lines = [cut(line, width).rstrip() for line in lines]
    if rows:
        lines += ["", *(line.rstrip() for line in columns(ordered(rows, "elapsed"), width))]
    more = unlisted(programs)
    return [*lines, f"and {more} more that are queued"] if more else lines


def _data(programs: list[Program], loads: Loads, text: str) -> dict[str, Any]:
    commands = {program.pid: program.command for program in programs}
    told: dict[int, list[dict[str, Any]]] = {pid: [] for pid in commands}
    for row in rows_of(programs, loads):
        if matches(row, commands[row.program], text):
            load = None if row.load is None else dict(zip(_LOAD, row.load, strict=True))
            told[row.program].append({**row.job, "seconds": row.elapsed, "load": load})
    return {
        "programs": [
            {
                "pid": program.pid,
                "command": program.command,
                "trouble": program.trouble or None,
                "pools": [pool.head for pool in program.pools if pool.head],
                "jobs": told[program.pid],
            }
            for program in programs
        ]
    }


_LOAD = ("cpu_percent", "memory", "peak_memory")

__all__ = ["top"]
