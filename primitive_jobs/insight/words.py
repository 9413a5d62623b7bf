"""Times, sizes and names as text that fits into a picture."""

from __future__ import annotations

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)  # s, and from there on hours
_MINUTE, _HOUR, _DAY = 60, 3600, 86400  # s


def span(seconds: float) -> str:
    """Return a time span as text: "812 us", "12.3 ms", "3.42 s", "2 min 05 s", "1 h 20 min"."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} us" if seconds > 0 else "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    return f"{whole // _HOUR:,} h {whole % _HOUR // _MINUTE:02} min"


def size(count: float) -> str:
    """Return a number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def share(part: float, whole: float) -> str:
    """Return a part in percent: of what is there, never "0 %", and of what is not all "100 %"."""
    percent = 100 * part / whole if whole > 0 else 0.0
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.1f} %"


def moment(when: float) -> str:
    """Return seconds since the epoch as a date and a time of day, of this place."""
    from datetime import datetime  # which a pool that draws nothing does without

    return datetime.fromtimestamp(when).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Return a text on one line, without characters that files or XML could not hold."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text


def clipped(text: str, most: int) -> str:
    """Return a text of at most so many characters, of which the last one may stand for the rest."""
    return text if len(text) <= most else f"{text[: max(0, most - 1)]}…"


def ticks(seconds: float, most: int) -> list[tuple[float, str]]:
    """Return at most so many round moments of a span from 0 on, each with its text."""
    step = _step(seconds / most)
    count = int(seconds / step + 1e-9) + 1
    return [(n * step, _tick(n * step, step)) for n in range(count)]


def _step(least: float) -> float:
    """The shortest round step that is not below ``least``."""
    if least <= 0:
        return 1.0
    if least > _STEPS[-1]:
        unit: float = _HOUR if least <= 12 * _HOUR else _DAY
        for factor in (1, 2, 3, 6, 12):
            if factor * unit >= least:
                return factor * unit
        return _decimal(least / _DAY) * _DAY
    for step in _STEPS:
        if least > 0.5 and step >= least:
            return step
    return _decimal(least)


def _decimal(least: float) -> float:
    power = 1e-9
    while 10 * power < least:
        power *= 10
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _tick(at: float, step: float) -> str:
    if step < 1e-3:
        return f"{at * 1e6:.6g} us" if at < 1e-3 else f"{at * 1e3:.6g} ms"
    if step < 1:
        return f"{at * 1e3:.4g} ms" if at < 1 else f"{at:.6g} s"
    if at < _MINUTE:
        return f"{at:.0f} s"
    minutes, rest = divmod(round(at), _MINUTE)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}" if rest else f"{hours}:{minutes:02} h"
    return f"{minutes}:{rest:02} min"


__all__ = ["clipped", "moment", "printable", "share", "size", "span", "ticks"]
