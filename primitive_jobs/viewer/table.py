"""Jobs as rows, and rows as columns of plain text; all of it is cut to a width, never wrapped."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .._common.markup import clock
from .processes import Load, Loads
from .watch import Program

SHORT_ID = 8  # characters of an id that are shown: enough to tell jobs apart
_GAP = 2  # columns between two
_LEAST_NAME = 12
_MOST_TEXT = 28  # columns of what may be long, beside the name


class Row(NamedTuple):
    """A job, as it is shown.

    Attributes:
        program: Process id of its program.
        job: What that has said of it.
        elapsed: Seconds in its status.
        load: What its worker takes, as far as that is on this machine.
    """

    program: int
    job: dict[str, Any]
    elapsed: float
    load: Load | None

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.job.get("id", ""))

    @property
    def name(self) -> str:
        """Its name."""
        return plain(self.job.get("name", ""))

    @property
    def runs(self) -> bool:
        """Whether it is RUNNING."""
        return self.job.get("status") == "RUNNING"

    @property
    def progress(self) -> dict[str, Any]:
        """What it has reported, if it has."""
        told = self.job.get("progress")
        return told if isinstance(told, dict) else {}


def rows_of(programs: Iterable[Program], loads: Loads) -> list[Row]:
    """Return all jobs that are known of, with what their workers take now."""
    loads.begin()
    now = time.monotonic()
    rows = []
    for program in programs:
        for pool in program.pools:
            for job in pool.rows:
                pid = job.get("pid")
                here = isinstance(pid, int) and job.get("node") is None
                load = loads.of(pid) if here and isinstance(pid, int) else None
                elapsed = float(job.get("seconds") or 0.0) + now - pool.at
                rows.append(Row(program.pid, job, elapsed, load))
    return rows


# --- which of them, and in which order ------------------------------------------------------------


def matches(row: Row, command: str, text: str) -> bool:
    """Whether a row has a text in its name, id, status, node, or in its program."""
    fields = (row.name, row.id, row.job.get("status"), row.job.get("node"), row.program, command)
    return any(text.lower() in str(field).lower() for field in fields if field is not None)


_Key = Callable[[Row], Any]
ORDERS: dict[str, _Key] = {
    "elapsed": lambda row: -row.elapsed,
    "cpu": lambda row: -((row.load and row.load.cpu) or 0.0),
    "memory": lambda row: -(row.load.memory if row.load else 0),
    "progress": lambda row: -_fraction(row),
    "name": lambda row: row.name.lower(),
}
"""What rows can be sorted by; jobs that run come first always."""


def ordered(rows: Iterable[Row], order: str) -> list[Row]:
    """Return rows in an order; those that wait stay as they will start, unless it is by name."""
    running = [row for row in rows if row.runs]
    waiting = [row for row in rows if not row.runs]
    running.sort(key=ORDERS[order])
    if order == "name":
        waiting.sort(key=ORDERS[order])
    return running + waiting


# --- as text --------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Return a text in one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def plain_line(text: object) -> str:
    """Return the same of one line, whose spaces stay."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def width_of(text: str) -> int:
    """How many columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(_width(c) for c in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return as much of a text as fits into so many columns, filled up with spaces."""
    taken = width_of(text)
    if taken <= width:
        return text + " " * (width - taken)
    kept, used = [], 0
    for character in text:
        used += _width(character)
        if used > width - 1:  # one is for the sign that there is more
            break
        kept.append(character)
    short = "".join(kept) + "…" if width > 0 else ""
    return short + " " * (width - width_of(short))


def duration(seconds: float) -> str:
    """Return seconds as "3.4 s", "2:05" or "1:02:05"."""
    return f"{max(0.0, seconds):.1f} s" if seconds < 60 else clock(seconds)


def size(amount: int) -> str:
    """Return bytes as "12 MB" or "1.2 GB"."""
    return f"{amount / 1e6:.0f} MB" if amount < 1e9 else f"{amount / 1e9:.1f} GB"


def _fraction(row: Row) -> float:
    fraction = row.progress.get("fraction")
    return float(fraction) if isinstance(fraction, (int, float)) else -1.0


def _progress(row: Row) -> str:
    fraction = _fraction(row)
    percent = f"{100 * fraction:.0f} %" if fraction >= 0 else ""
    waits = row.job.get("waiting_for")
    if waits not in (None, "a worker"):  # which STATUS says
        return plain(waits)
    return f"{percent} {plain(row.progress.get('message') or '')}".strip()


def _eta(row: Row) -> str:
    eta = row.progress.get("eta")
    return duration(float(eta)) if isinstance(eta, (int, float)) else ""


def _cpu(row: Row) -> str:
    return "" if row.load is None or row.load.cpu is None else f"{row.load.cpu:.0f}"


def _memory(row: Row) -> str:
    return "" if row.load is None else size(row.load.memory)


def _peak(row: Row) -> str:
    return "" if row.load is None or row.load.peak is None else size(row.load.peak)


def _worker(row: Row) -> str:
    pid, node = row.job.get("pid"), row.job.get("node")
    if pid is None:
        return ""
    return str(pid) if node is None else f"{pid} on {plain(node)}"


class _Column(NamedTuple):
    title: str
    text: Callable[[Row], str]
    worth: int  # in a narrow window those of the least worth are left out
    right: bool = False
    where_any: bool = False  # left out where no row has anything


_COLUMNS = (
    _Column("NAME", lambda row: row.name, 99),
    _Column("STATUS", lambda row: str(row.job.get("status", "")), 9),
    _Column("PROGRESS", _progress, 8, where_any=True),
    _Column("ETA", _eta, 7, right=True, where_any=True),
    _Column("ELAPSED", lambda row: duration(row.elapsed), 8, right=True),
    _Column("CPU %", _cpu, 6, right=True),
    _Column("MEMORY", _memory, 5, right=True),
    _Column("PEAK", _peak, 2, right=True),
    _Column("TRIES", lambda row: str(row.job.get("attempts", "")), 1, right=True),
    _Column("PROGRAM", lambda row: str(row.program), 4, right=True),
    _Column("WORKER", _worker, 3),
    _Column("ID", lambda row: row.id[:SHORT_ID], 10),
)


def columns(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Return rows as lines under a title; each takes exactly so many columns, or what it needs."""
    table = []
    for column in _COLUMNS:
        texts = [column.text(row) for row in rows]
        if not column.where_any or any(texts):
            most = max(map(width_of, (column.title, *texts)))
            if width is not None and column is not _COLUMNS[0]:
                most = min(most, _MOST_TEXT)
            table.append((column, texts, most))
    if width is not None:
        _shrink(table, width)
    lines = [_line([(column, column.title, most) for column, _, most in table])]
    lines += [
        _line([(column, texts[place], most) for column, texts, most in table])
        for place in range(len(rows))
    ]
    return lines if width is None else [cut(line, width) for line in lines]


def _shrink(table: list[tuple[_Column, list[str], int]], width: int) -> None:
    """Leave columns out until the name has some room, and give it what there is."""
    while True:
        rest = width - sum(most + _GAP for _, _, most in table[1:])
        if rest >= min(_LEAST_NAME, table[0][2]) or len(table) == 1:
            column, texts, most = table[0]
            table[0] = column, texts, max(1, min(rest, max(most, len(column.title))))
            return
        table.remove(min(table, key=lambda each: each[0].worth))


def _line(cells: Iterable[tuple[_Column, str, int]]) -> str:
    texts = []
    for column, text, width in cells:
        fits = cut(text, width)
        texts.append(fits if not column.right else fits.rstrip().rjust(width))
    return (" " * _GAP).join(texts)


def summary(program: Program) -> str:
    """Return a program as one line: its process id, what it has to do, and how it was started."""
    counts = program.counts()
    names = ("running", "queued", "done", "failed", "cancelled")
    told = [f"{counts[name]} {name}" for name in names if counts.get(name)]
    jobs = ", ".join(told) or ("" if program.trouble else "no jobs")
    state = "; ".join(filter(None, (program.trouble, jobs)))
    return f"{program.pid}  {state}  {plain(program.command)}"


__all__ = [
    "ORDERS",
    "SHORT_ID",
    "Row",
    "columns",
    "cut",
    "duration",
    "matches",
    "ordered",
    "plain",
    "plain_line",
    "rows_of",
    "size",
    "summary",
    "width_of",
]
