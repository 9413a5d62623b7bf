"""Figures for people (text, Markdown, a plot) and for programs (JSON)."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    EVERY_PEER,
    FLOOR,
    OURS,
    SEED,
    Goal,
    Metric,
    Question,
    Report,
    Verdict,
    judge,
    version_of,
)

DISTRIBUTIONS = (
    "cloudpickle",
    "deadpool-executor",
    "diskcache",
    "distributed",
    "joblib",
    "loky",
    "mpire",
    "numpy",
    "pebble",
    "psutil",
    "qiskit",
    "qiskit-aer",
    "ray",
)


def machine() -> dict[str, str | int | None]:
    """Return what a reader needs to place the figures, and nothing that tells whose they are."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "primitive_jobs": version_of("primitive_jobs"),
        **{name: version_of(name) for name in DISTRIBUTIONS},
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "load_before": f"{os.getloadavg()[0]:.1f}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def header() -> str:
    """Return one line that tells the machine and all versions."""
    return ", ".join(f"{fact}: {value or 'not installed'}" for fact, value in machine().items())


def number(value: float | None) -> str:
    """Return three digits of a figure, which is more than a shared machine gives."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def phrase(goal: Goal, metric: Metric) -> str:
    """Return a goal in words."""
    if goal.at_most == goal.at_least:
        bound, side = f"{goal.at_most:g}", ""
    elif goal.at_most is not None:
        bound, side = f"<= {goal.at_most:g}", "below"
    else:
        bound, side = f">= {goal.at_least:g}", "above"
    if not goal.against:
        return f"{bound} {metric.unit}".strip()
    if goal.against == EVERY_PEER:
        whom = f"every {'other ' if goal.but else ''}peer"
        return f"{side} {whom}" if bound.endswith(" 1") else f"{bound} x {whom}"
    return f"{bound} x {'the floor' if goal.against == FLOOR else goal.against}"


def outcome(verdict: Verdict, metric: Metric) -> str:
    """Return a goal and what became of it, in words."""
    text = phrase(verdict.goal, metric)
    if verdict.reached is None:
        return f"{text}: not measured"
    word = "reached" if verdict.reached else "NOT reached"
    whom = f" ({verdict.against})" if verdict.goal.against == EVERY_PEER else ""
    return f"{text}: {word}, {number(verdict.value)}{whom}"


# --- one question ------------------------------------------------------------------------------


def as_text(report: Report) -> Iterator[str]:
    """Yield the lines that tell all about one question."""
    question = report.question
    counts = ", ".join(f"{name} {count:,}" for name, count in report.scale.counts.items())
    yield f"{question.title} [{counts}]"
    for metric in question.metrics:
        yield ""
        yield from _metric_table(report, metric)
    yield ""
    for contender in question.contenders:
        if contender.note and contender.name in report.samples:
            yield f"{contender.name}: {contender.note}"
    for name, reason in report.left_out.items():
        yield f"{name}: left out, {reason}"
    for name, count in report.left_behind.items():
        yield f"{name}: left {count} process(es) behind"
    for goal in question.goals:
        metric = question.metric(goal.metric)
        yield f"goal: {metric.title} {outcome(judge(goal, report), metric)}"


def _metric_table(report: Report, metric: Metric) -> Iterator[str]:
    unit = f"{metric.title}, {metric.unit}".rstrip(", ")
    yield f"{unit} ({metric.better} is better)"
    yield f"  {'':<30}{'median':>10}   {'min to max':<20}{'ours / it':>9}   min to max"
    found = [
        (median, one)
        for one in report.question.contenders
        if (median := report.median(one.name, metric.key)) is not None
    ]
    found.sort(key=lambda pair: pair[0], reverse=metric.better == "higher")
    for median, one in found:
        figures = report.figures(one.name, metric.key)
        label = f"{one.name} ({one.role})" if one.role in ("floor", "aside") else one.name
        line = f"  {label:<30}{number(median):>10}   {_spread(figures):<20}"
        ratios = report.ratios(metric.key, one.name)
        if one.name != OURS and ratios:
            line += f"{number(statistics.median(ratios)):>9}   {_spread(ratios)}"
        yield line.rstrip()


def _spread(figures: Sequence[float]) -> str:
    return f"{number(min(figures))} to {number(max(figures))}"


# --- all questions -----------------------------------------------------------------------------


def as_markdown(reports: Iterable[Report]) -> Iterator[str]:
    """Yield a table, one row for each figure with a headline's rank."""
    yield "| question | ours | floor | best peer | ours / floor | ours / best peer | goals |"
    yield "|---|---|---|---|---|---|---|"
    for report in reports:
        for metric in report.question.metrics:
            if metric.headline:
                yield _row(report, metric)


def _row(report: Report, metric: Metric) -> str:
    question, floor, peer = report.question, report.floor(), report.best_peer(metric.key)
    floor_median = floor and report.median(floor, metric.key)
    peer_median = peer and report.median(peer, metric.key)
    goals = [
        outcome(judge(goal, report), metric) for goal in question.goals if goal.metric == metric.key
    ]
    ours = report.median(OURS, metric.key)
    cells = [
        f"{question.title}: {metric.title}" if len(question.metrics) > 1 else question.title,
        "failed" if OURS in report.failed else f"{number(ours)} {metric.unit}".strip(),
        number(floor_median or None),
        f"{number(peer_median or None)} ({peer})" if peer else "-",
        number(report.ratio(metric.key, floor) if floor else None),
        number(report.ratio(metric.key, peer) if peer else None),
        "; ".join(goals) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def as_json(reports: Iterable[Report]) -> dict[str, Any]:
    """Return everything, each sample included."""
    return {
        "machine": machine(),
        "seed": SEED,
        "questions": {report.question.name: _question_json(report) for report in reports},
    }


def _question_json(report: Report) -> dict[str, Any]:
    question = report.question
    return {
        "title": question.title,
        "counts": dict(report.scale.counts),
        "metrics": {
            metric.key: {"title": metric.title, "unit": metric.unit, "better": metric.better}
            for metric in question.metrics
        },
        "contenders": {one.name: _contender_json(report, one.name) for one in question.contenders},
        "goals": [_goal_json(question, judge(goal, report)) for goal in question.goals],
    }


def _contender_json(report: Report, name: str) -> dict[str, Any]:
    contender = report.question.contender(name)
    metrics: dict[str, Any] = {}
    for metric in report.question.metrics:
        ratios = report.ratios(metric.key, name)
        metrics[metric.key] = {
            "median": report.median(name, metric.key),
            "ours_divided_by_it": statistics.median(ratios) if ratios else None,
            "ours_divided_by_it_min": min(ratios, default=None),
            "ours_divided_by_it_max": max(ratios, default=None),
        }
    return {
        "role": contender.role,
        "note": contender.note,
        "left_out": report.left_out.get(name),
        "left_behind": report.left_behind.get(name, 0),
        "metrics": metrics,
        "rounds": report.samples.get(name, {}),
    }


def _goal_json(question: Question, verdict: Verdict) -> dict[str, Any]:
    metric = question.metric(verdict.goal.metric)
    return {
        "metric": metric.key,
        "goal": phrase(verdict.goal, metric),
        "value": verdict.value,
        "compared_with": verdict.against or None,
        "reached": verdict.reached,
    }


# --- the plot ----------------------------------------------------------------------------------

_COLOURS = {"ours": "#1f6f4a", "floor": "#b9b9b9", "peer": "#6f8fbf", "aside": "#d3dcea"}


def plot(reports: Iterable[Report], path: Path) -> None:
    """Draw a bar for each contender's median, one panel a figure, best on top; needs matplotlib."""
    from matplotlib.figure import Figure

    panels = [(report, metric) for report in reports for metric in _drawn(report)]
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(7 * columns, 2.9 * rows), layout="constrained")
    for place, (report, metric) in enumerate(panels, 1):
        _panel(figure.add_subplot(rows, columns, place), report, metric)
    figure.savefig(path)


def _drawn(report: Report) -> Iterator[Metric]:
    for metric in report.question.metrics:
        if metric.headline and report.median(OURS, metric.key) is not None:
            yield metric


def _panel(axes: Any, report: Report, metric: Metric) -> None:
    found = [
        (median, one)
        for one in report.question.contenders
        if (median := report.median(one.name, metric.key)) is not None
    ]
    found.sort(key=lambda pair: pair[0], reverse=metric.better == "lower")
    names = [f"{one.name} (floor)" if one.role == "floor" else one.name for _, one in found]
    medians = [median for median, _ in found]
    bars = axes.barh(names, medians, color=[_COLOURS[one.role] for _, one in found])
    axes.bar_label(bars, labels=[number(median) for median in medians], fontsize=7, padding=2)
    if 0 < min(medians) < max(medians) / 20:  # else the shortest bars could not be seen
        axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.tick_params(labelsize=7)
    title = report.question.title
    axes.set_title(f"{title}: {metric.title}" if title != metric.title else title, fontsize=8)
    axes.set_xlabel(f"{metric.unit or 'count'} ({metric.better} is better)", fontsize=7)
