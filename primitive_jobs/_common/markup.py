"""What jobs, pools and progress look like in a notebook: small tables and a bar, as HTML.

They take the colour of the text around them, in a light theme or a dark one. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as escape_markup

_FAINT = "opacity:.65"
_CELL = "border:none;background:none;text-align:left;vertical-align:top"
_LINE = "1px solid color-mix(in srgb,currentColor 25%,transparent)"


def table(kind: str, title: str, state: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a title line and rows of a label and a text each."""
    body = "".join(
        f'<tr style="background:none"><td style="{_CELL};padding:.1em 1.5em .1em 0;{_FAINT}">'
        f"{escape(label)}</td>"
        f'<td style="{_CELL};padding:.1em 0">{escape(text)}</td></tr>'
        for label, text in rows
    )
    return (
        f'<div style="display:inline-block;border-left:3px solid currentColor;padding:.1em .8em">'
        f'<div><span style="{_FAINT}">{escape(kind)}</span> <b>{escape(title)}</b> '
        f'<span style="border:{_LINE};border-radius:.3em;padding:0 .4em">{escape(state)}</span>'
        f"</div>"
        f'<table style="border:none;border-collapse:collapse;margin:.3em 0 0">{body}</table></div>'
    )


def bar(label: str, shares: Sequence[float], text: str) -> str:
    """Return a bar of consecutive parts, each paler than the one before, and what it stands for."""
    parts = "".join(
        f'<div style="width:{100 * share:.2f}%;background:currentColor;'
        f'opacity:{0.75 / (1 + 2 * place):.2f}"></div>'
        for place, share in enumerate(shares)
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:.2em .8em">'
        f"<b>{escape(label)}</b>"
        f'<div style="display:flex;width:16em;height:.7em;overflow:hidden;border:{_LINE};'
        f'border-radius:.35em">{parts}</div>'
        f'<span style="font-variant-numeric:tabular-nums">{escape(text)}</span></div>'
    )


def escape(text: str) -> str:
    """Return any text as HTML that can be encoded: names of files may hold lone surrogates."""
    return escape_markup(text.encode("utf-8", "backslashreplace").decode())


def seconds(amount: float) -> str:
    """Return a time span as text: "0.012 s", "3.4 s", "2:05", "1:02:05"."""
    if amount < 10:
        return f"{max(0.0, amount):.3f} s"
    if amount < 60:
        return f"{amount:.1f} s"
    return clock(amount)


def clock(amount: float) -> str:
    """Return a time span as minutes and seconds, hours where there are any."""
    minutes, whole = divmod(round(max(0.0, amount)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
