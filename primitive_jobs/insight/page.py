"""A timeline as a page for a browser, with all that it needs inside: see `page.html`.

The picture is drawn by the page's script, from the attempts in columns, so that it can be zoomed;
where no script may run, the page shows the one of `svg`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._common.markup import escape
from ..snapshots import Attempt
from .ends import KILLED, LOOKS
from .memory import levels_of
from .runs import Runs
from .svg import picture, why
from .words import clipped, moment, printable, share, size, span

_MOST_ROWS = 500  # of the table of what brought no result


def page(runs: Runs) -> str:
    """Return the page."""
    parts = {
        "TITLE": _escaped(f"Timeline of {runs.pool}"),
        "COLOURS": _colours(),
        "HEADING": _heading(runs),
        "TABLE": _table(runs),
        "PICTURE": picture(runs),
        # In a script nothing ends but by a tag, and no tag is left in what is escaped so.
        "DATA": json.dumps(_data(runs), separators=(",", ":")).replace("<", "\\u003c"),
    }
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    pieces = text.split("@@")  # text, name, text, name, ..., text
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)


def _escaped(text: str) -> str:
    return escape(printable(text))


def _colours() -> str:
    light = "".join(f"--{end}:{look.light};" for end, look in LOOKS.items())
    dark = "".join(f"--{end}:{look.dark};" for end, look in LOOKS.items())
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _heading(runs: Runs) -> str:
    """What is shown, what became of the time of workers, and what is not shown."""
    count, total = len(runs.attempts), runs.seconds
    length = span(runs.until - runs.since)
    shown = f"{count:,} attempts, {length} from {moment(runs.since)}"
    lines = [f"<p>{shown if count else 'no attempts yet'}"]
    if runs.left_out:
        lines[0] += f"; {runs.left_out:,} earlier ones are left out"
    lines[0] += "</p>"
    if total > 0:
        lines.append(f"<p>{span(total)} of worker time since the pool was made:</p><ul>")
        for end, (attempts, seconds) in runs.totals.items():
            words = f"{LOOKS[end].words} {attempts:,}: {span(seconds)}, {share(seconds, total)}"
            killed = " killed" if end in KILLED else ""
            lines.append(
                f'<li><i class="{end}{killed}" style="background-color:var(--{end})"></i>'
                f"{words}</li>"
            )
        lines.append("</ul>")
    return "".join(lines)


def _table(runs: Runs) -> str:
    """What brought no result, in the order of time; with the most that may be."""
    bad = [attempt for attempt in runs.attempts if attempt.end not in ("returned", "running")]
    if not bad:
        return ""
    more = len(bad) - _MOST_ROWS
    told = f", the last {_MOST_ROWS:,} of {len(bad):,}" if more > 0 else ""
    rows = "".join(_row(attempt, runs.since) for attempt in bad[-_MOST_ROWS:])
    heads = "".join(f"<th>{head}</th>" for head in ("began", "took", "job", "worker", "end"))
    return f"<h2>No result{told}</h2><table><tr>{heads}</tr>{rows}</table>"


def _row(attempt: Attempt, since: float) -> str:
    again = f" (attempt {attempt.attempt})" if attempt.attempt > 1 else ""
    worker = f"{attempt.pid}" + ("" if attempt.node is None else f" on {attempt.node}")
    cells = [
        span(attempt.began - since),
        span(attempt.seconds),
        attempt.name + again,
        worker,
        why(attempt),
    ]
    return f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in cells)}</tr>"


def _data(runs: Runs) -> dict[str, Any]:
    """The attempts in columns, by lane and in order; times in us since the first one began."""
    since = runs.since
    names: dict[str, int] = {}
    ends = {end: number for number, end in enumerate(LOOKS)}
    lanes = []
    for lane in runs.lanes:
        facts = [
            [
                names.setdefault(attempt.name, len(names)),
                ends[attempt.end],
                round((attempt.began - since) * 1e6),
                round(attempt.seconds * 1e6),
                *_more(attempt),
            ]
            for attempt in lane.attempts
        ]
        first, *others = lane.pids
        label = f"{first} +{len(others)}" if others else f"{first}"
        node = None if lane.node is None else printable(lane.node)
        pids = [attempt.pid for attempt in lane.attempts] if others else first
        lanes.append({"label": label, "node": node, "pids": pids, "attempts": facts})
    levels = levels_of(runs.attempts, runs.memory)
    return {
        "ends": [[end, look.words, end in KILLED] for end, look in LOOKS.items()],
        "names": [clipped(printable(name), 200) for name in names],
        "lanes": lanes,
        "memory": [[round((at - since) * 1e6), held] for at, held in levels],
        "length": max(1, round((runs.until - since) * 1e6)),
    }


def _more(attempt: Attempt) -> list[str]:
    """What its name and end do not say, as text."""
    told = [f"attempt {attempt.attempt}"] if attempt.attempt > 1 else []
    told += [size(attempt.memory)] if attempt.memory is not None else []
    told += [printable(attempt.reason)] if attempt.reason else []
    return ["; ".join(told)] if told else []


__all__ = ["page"]
