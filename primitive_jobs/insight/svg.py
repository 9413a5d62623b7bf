"""A timeline as a picture: SVG that needs nothing else, for a light page and a dark one.

From top to bottom: what it is; what became of the time of workers; a lane for each worker; the
memory, where it is known; what was lost, and why. A reader's own colours decide between light and
dark (`prefers-color-scheme`); whoever does not know that draws it light.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from .._common.markup import escape
from ..snapshots import Attempt, AttemptEnd
from .ends import KILLED, LOOKS
from .lanes import Lane, Mark, marks_of
from .memory import Level, levels_of
from .runs import Runs
from .words import clipped, moment, printable, share, size, span, ticks

# All in pixels.
WIDTH, LEFT, RIGHT = 960, 112, 16
PLOT = WIDTH - LEFT - RIGHT
_LETTER = 6.2  # a letter's width, on the average
_READABLE = 11  # a lane of that height has text in it
_WIDE = 4  # what is wider may be told of one by one
_MANY = 5_000  # attempts: if there are more, that which is three times as wide
_MEMORY = 54  # height of the memory's track
_MOST_TICKS = 9
_MOST_LOSSES = 8  # that are told in words


def picture(runs: Runs) -> str:
    """Return the picture."""
    drawing = _Drawing(runs)
    drawing.title()
    drawing.time_of_workers()
    if runs.attempts:
        drawing.lanes()
        drawing.memory()
        drawing.losses()
    drawing.notes()
    return drawing.done()


class _Drawing:
    """A picture in the making, from top to bottom."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._since = runs.since
        self._length = max(runs.until - runs.since, 1e-6)
        self._y = 12.0
        self._parts: list[str] = []
        self._grounds: list[str] = []  # of the lanes, on which the axis is drawn
        self._told_from = 3 * _WIDE if len(runs.attempts) > _MANY else _WIDE
        self._hatched: list[str] = []  # of the lane at hand
        self._merged = False

    def done(self) -> str:
        """Return it."""
        height = self._y + 10
        label = escape(printable(repr(self._runs)[1:-1]))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="pjt" viewBox="0 0 {WIDTH} {height:g}" '
            f'width="{WIDTH}" height="{height:g}" role="img" aria-label="{label}">'
            f"<style>{style()}</style>"
            '<defs><pattern id="pjt-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect width="2" height="6" class="pjt-hatch"/></pattern>'
            f'</defs><rect width="{WIDTH}" height="{height:g}" class="pjt-page"/>'
            f"{''.join(self._parts)}</svg>\n"
        )

    def _text(self, x: float, text: str, kind: str = "", anchor: str = "") -> None:
        attributes = f' class="pjt-{kind}"' if kind else ""
        attributes += f' text-anchor="{anchor}"' if anchor else ""
        self._parts.append(
            f'<text x="{x:g}" y="{self._y:g}"{attributes}>{escape(printable(text))}</text>'
        )

    def _place(self, moment: float) -> float:
        """Where a moment is."""
        return LEFT + PLOT * (moment - self._since) / self._length

    # --- what it is ------------------------------------------------------------------------------

    def title(self) -> None:
        """What is shown, and from when."""
        runs = self._runs
        self._y += 12
        self._text(16, clipped(runs.pool, 100), "title")
        count, lanes = len(runs.attempts), len(runs.lanes)
        told = "no attempts yet"
        if count:
            told = (
                f"{count:,} attempt{'s' * (count != 1)} in {lanes:,} lane{'s' * (lanes != 1)}, "
                f"{span(self._length)} from {moment(runs.since)}"
            )
        self._y += 18
        self._text(16, told, "faint")
        self._y += 14

    def time_of_workers(self) -> None:
        """One bar for all the time of workers, and the legend of the colours."""
        runs, total = self._runs, self._runs.seconds
        if total <= 0:
            return
        self._y += 12
        self._text(16, f"{span(total)} of worker time since the pool was made")
        self._y += 7
        x = 16.0
        for end, (_, seconds) in runs.totals.items():
            width = (WIDTH - 32) * seconds / total
            self._parts.append(_rect(x, self._y, width, 10, f"pjt-{end}"))
            x += width
        self._y += 10
        x = 2 * WIDTH
        for end, (count, seconds) in runs.totals.items():
            words = f"{LOOKS[end].words} {count:,}: {span(seconds)}, {share(seconds, total)}"
            width = 16 + _LETTER * len(words) + 18
            if x + width > WIDTH:
                x, self._y = 16, self._y + 18
            self._parts.append(_rect(x, self._y - 9, 10, 10, f"pjt-{end}", hatched=end in KILLED))
            self._text(x + 15, words)
            x += width
        self._y += 8

    # --- lanes -----------------------------------------------------------------------------------

    def lanes(self) -> None:
        """A row for each lane, under the name of its node, and the axis of time."""
        lanes = self._runs.lanes
        height = next(size for most, size in _HEIGHTS if len(lanes) <= most)
        self._y += 10
        top, whole = self._y, self._parts
        rows = self._parts = []
        node: str | None = None
        for lane in lanes:
            if lane.node is not None and lane.node != node:
                self._y += 14
                self._text(16, clipped(lane.node, 120), "faint")
                self._y += 5
            node = lane.node
            self._lane(lane, height)
            self._y += height + (3 if height >= _READABLE else 1)
        self._parts = whole
        whole += self._grounds
        self._axis(top)
        whole += rows

    def _axis(self, top: float) -> None:
        bottom = self._y + 3
        self._y = bottom + 13
        lines = []
        for at, text in ticks(self._length, _MOST_TICKS):
            x = LEFT + PLOT * at / self._length
            lines.append(f"M{x:.1f} {top:g}V{bottom:g}")
            self._text(round(x, 1), text, "faint", "middle")
        self._parts.append(f'<path class="pjt-grid" d="{"".join(lines)}"/>')
        self._y += 4

    def _lane(self, lane: Lane, height: int) -> None:
        readable = height >= _READABLE
        if readable or len(self._runs.lanes) <= 128:
            y, self._y = self._y, self._y + height / 2 + min(4, height / 2 - 0.5)
            more = len(lane.pids) - 1
            label = f"{lane.pids[0]}{f' +{more}' if more else ''}"
            self._text(LEFT - 8, label, "pid" if readable else "small", "end")
            self._y = y
        self._grounds.append(_rect(LEFT, self._y, PLOT, height, "pjt-lane"))
        self._hatched = []
        marks = marks_of(lane.attempts, self._place)
        ends = list(marks)
        for number, end in enumerate(ends):
            above = sorted(mark.left for later in ends[number + 1 :] for mark in marks[later])
            self._marks(end, marks[end], height, above)
        if self._hatched:
            self._parts.append(f'<path fill="url(#pjt-hatch)" d="{"".join(self._hatched)}"/>')
        self._changes(lane, height)

    def _changes(self, lane: Lane, height: int) -> None:
        """Draw a line where one worker goes on in the lane of another, but for what is too near."""
        lines, last = [], 0.0
        for earlier, later in zip(lane.attempts, lane.attempts[1:], strict=False):
            x = self._place(later.began)
            if earlier.pid != later.pid and x - last >= _WIDE:
                lines.append(f"M{x:.1f} {self._y - 1:g}v{height + 2}")
                last = x
        if lines:
            self._parts.append(f'<path class="pjt-change" d="{"".join(lines)}"/>')

    def _marks(self, end: AttemptEnd, marks: list[Mark], height: int, above: list[float]) -> None:
        """Draw what ended in one way: what is narrow and ordinary as one path, the rest alone."""
        narrow: list[str] = []
        for left, right, attempts in marks:
            width = max(right - left, 1.0 if end == "returned" else 1.6)
            if width > _WIDE:
                width -= 0.6  # or it would not be told from the next one
            shape = f"M{left:.1f} {self._y:g}h{width:.1f}v{height}h-{width:.1f}z"
            many = len(attempts) > 1
            self._merged = self._merged or many
            if end in KILLED and width >= _WIDE:
                self._hatched.append(shape)
            if width < self._told_from and end == "returned" and not many:
                narrow.append(shape)
                continue
            kind = f"pjt-{end}{' pjt-many' if many else ''}"
            told = escape(printable(_told(attempts)))
            self._parts.append(f'<path class="{kind}" d="{shape}"><title>{told}</title></path>')
            if height >= _READABLE:
                free = bisect.bisect_left(above, left)  # what is drawn above it would hide its text
                reach = above[free] if free < len(above) else LEFT + PLOT
                self._inside(left, min(width, reach - left), height, attempts)
        if narrow:
            self._parts.append(f'<path class="pjt-{end}" d="{"".join(narrow)}"/>')

    def _inside(self, left: float, width: float, height: int, attempts: list[Attempt]) -> None:
        """Write into a mark what it is, if there is room."""
        room = int((width - 6) / _LETTER)
        if room >= 3:
            many = len(attempts) > 1
            text = f"{len(attempts):,} ×" if many else printable(attempts[0].name)  # noqa: RUF001
            if not many or len(text) <= room:
                x, y = left + 3, self._y + height / 2 + 4
                text = escape(clipped(text, room))
                self._parts.append(f'<text class="pjt-in" x="{x:.1f}" y="{y:g}">{text}</text>')

    # --- what stands below -----------------------------------------------------------------------

    def memory(self) -> None:
        """How much memory was held together, as far as that is known."""
        runs = self._runs
        levels = levels_of(runs.attempts, runs.memory)
        if not levels:
            return
        most = max(held for _, held in levels)
        known = sum(attempt.memory is not None for attempt in runs.attempts)
        self._y += 18
        words = f"memory of the {known:,} attempts of which it is known, together"
        self._text(LEFT, words, "faint")
        self._y += 6
        self._parts.append(_rect(LEFT, self._y, PLOT, _MEMORY, "pjt-lane"))
        bottom = self._y + _MEMORY
        points = [f"M{LEFT} {bottom:g}"]
        for x, held in columns(levels, self._since, self._length, PLOT):
            points.append(f"H{LEFT + x:g}V{bottom - (_MEMORY - 4) * held / most:.1f}")
        points.append(f"H{LEFT + PLOT}V{bottom:g}z")
        self._parts.append(f'<path class="pjt-held" d="{"".join(points)}"/>')
        self._y += 9
        self._text(LEFT - 8, size(most), "pid", "end")
        self._y = bottom + 2

    def losses(self) -> None:
        """What was killed or died, and why: what took longest."""
        lost = [attempt for attempt in self._runs.attempts if attempt.end in KILLED]
        if not lost:
            return
        lost.sort(key=lambda attempt: -attempt.seconds)
        self._y += 20
        shown = lost[:_MOST_LOSSES]
        told = "Killed or died" if len(shown) == len(lost) else "Killed or died, what took longest"
        self._text(16, f"{told}:")
        for attempt in shown:
            self._y += 16
            kind = f"pjt-{attempt.end}"
            self._parts.append(_rect(16, self._y - 9, 10, 10, kind, hatched=True))
            when = f"at {span(attempt.began - self._since)} for {span(attempt.seconds)}"
            self._text(31, when, "faint")
            again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
            text = f"{clipped(attempt.name, 40)} on {attempt.pid}{again}: {why(attempt)}"
            self._text(205, clipped(text, 120))
        if len(shown) < len(lost):
            self._y += 16
            self._text(31, f"and {len(lost) - len(shown):,} more", "faint")
        self._y += 4

    def notes(self) -> None:
        """How to read it, and what is not there."""
        runs, notes = self._runs, []
        if runs.left_out:
            kept = sum(attempt.end != "running" for attempt in runs.attempts)
            notes.append(
                f"{runs.left_out:,} earlier attempts are left out: a pool keeps the last "
                f"{kept:,}. Worker time counts all of them."
            )
        if any(len(lane.pids) > 1 for lane in runs.lanes):
            notes.append(
                "A lane is a worker, by process id. Where one begins after another's end, it goes "
                "on in the same lane, behind a line (+1: one more worker)."
            )
        if self._merged:
            notes.append(
                "Pale: attempts of less than a pixel, less than a pixel apart, that ended in the "
                "same way, drawn as one shape. Its text, or tooltip, is how many."
            )
        for note in notes:
            self._y += 17
            self._text(16, note, "faint")


# --- for the page, too ----------------------------------------------------------------------------


def why(attempt: Attempt) -> str:
    """Say how an attempt ended."""
    words, reason = LOOKS[attempt.end].words, attempt.reason
    if attempt.end in ("timeout", "memory"):
        return reason or words
    return f"{words}: {reason}" if reason else words


def columns(
    levels: Iterable[Level], since: float, length: float, count: int
) -> Iterator[tuple[int, int]]:
    """Return the highest level of each column of pixels that differs from the one before."""
    column, peak, last, told = 0, 0, 0, 0
    for at, held in levels:
        place = min(count - 1, max(0, int(count * (at - since) / length)))
        if place > column:
            if peak != told:
                yield column, peak
                told = peak
            if last != told and place > column + 1:
                yield column + 1, last
                told = last
            column, peak = place, last
        last = held
        peak = max(peak, held)
    if peak != told:
        yield column, peak
        told = peak
    if last != told and column + 1 < count:
        yield column + 1, last


def style() -> str:
    """The colours, for light and for dark."""
    light = "".join(f".pjt-{end}{{fill:{look.light}}}" for end, look in LOOKS.items())
    dark = "".join(f".pjt-{end}{{fill:{look.dark}}}" for end, look in LOOKS.items())
    return f"{_STYLE}{light}@media(prefers-color-scheme:dark){{{_DARK}{dark}}}"


# So high are the lanes, of pictures with at most so many.
_HEIGHTS = ((8, 22), (24, 16), (48, 12), (96, 8), (1 << 62, 5))
_STYLE = (
    ".pjt{font:12px system-ui,sans-serif;max-width:100%;height:auto}"
    ".pjt text{fill:#1f2328}.pjt .pjt-faint,.pjt .pjt-pid,.pjt .pjt-small{fill:#59636e}"
    ".pjt .pjt-title{font-size:15px;font-weight:600}.pjt .pjt-small{font-size:8px}"
    ".pjt .pjt-pid,.pjt .pjt-small{font-variant-numeric:tabular-nums}"
    ".pjt .pjt-in{fill:#fff;font-size:11px;pointer-events:none}"
    ".pjt-page{fill:#fff}.pjt-lane{fill:#f0f2f4}.pjt-many{opacity:.65}"
    ".pjt-held{fill:#8fa3b8}.pjt-hatch{fill:#fff;opacity:.28}"
    ".pjt-grid{stroke:#d5dae0;fill:none}.pjt-change{stroke:#1f2328;stroke-width:.8;fill:none}"
)
_DARK = (
    ".pjt text{fill:#e6edf3}.pjt .pjt-faint,.pjt .pjt-pid,.pjt .pjt-small{fill:#9aa5b1}"
    ".pjt .pjt-in{fill:#0d1117}.pjt-page{fill:#0d1117}.pjt-lane{fill:#1a212a}"
    ".pjt-held{fill:#5d7188}.pjt-hatch{fill:#0d1117;opacity:.35}"
    ".pjt-grid{stroke:#303943}.pjt-change{stroke:#e6edf3}"
)


def _rect(
    x: float, y: float, width: float, height: float, kind: str, *, hatched: bool = False
) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    over = f'<rect {place} fill="url(#pjt-hatch)"/>' if hatched else ""
    return f'<rect {place} class="{kind}"/>{over}'


def _told(attempts: list[Attempt]) -> str:
    """The tooltip of a mark."""
    first = attempts[0]
    if len(attempts) > 1:
        spent = sum(attempt.seconds for attempt in attempts)
        return f"{len(attempts):,} attempts, {span(spent)}: {LOOKS[first.end].words}"
    again = f", attempt {first.attempt}" if first.attempt > 1 else ""
    held = "" if first.memory is None else f", {size(first.memory)}"
    return f"{first.name}, {span(first.seconds)}{again}{held}: {why(first)}"


__all__ = ["columns", "picture", "style", "why"]
