"""The command line of one benchmark, and of all."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report as reporting
from benchmarks.harness import Question, Report, byte_code, load, run_rounds, version_of

QUESTIONS = (
    "round_trip",
    "limits",
    "throughput",
    "sent_ahead",
    "insight",
    "salvage",
    "viewers",
    "store",
    "map_objects",
    "drop_in_pool",
    "large_array",
    "shared_array",
    "joblib_array",
    "dependencies",
    "cancel",
    "after_cancel",
    "generations",
    "whole_process",
    "speed_up",
    "many_queued",
    "idle",
    "start_many",
    "import_time",
    "ising_sweep",
    "option_price",
    "sampling_batch",
    "qiskit_pubs",
    "cluster",
)
"""In the order in which they are asked."""


def positive(text: str) -> int:
    """Return a count from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def parse_arguments(arguments: Sequence[str] | None, question: str | None) -> argparse.Namespace:
    """Return what the user wants; ``question`` is the one file that was started, if any."""
    about = "all questions" if question is None else load(f"benchmarks.{question}").title
    parser = argparse.ArgumentParser(
        description=f"Benchmarks of primitive_jobs: {about}.",
        epilog="A goal that is missed is reported; only what failed to run makes the exit code 1.",
    )
    parser.add_argument("--rounds", type=positive, help="each contender runs once in each")
    parser.add_argument("--quick", action="store_true", help="rough figures, soon")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw them; needs matplotlib")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    if question is None:
        parser.add_argument(
            "--only", nargs="+", choices=QUESTIONS, metavar="NAME", help=", ".join(QUESTIONS)
        )
    parsed = parser.parse_args(arguments)
    if parsed.plot is not None and version_of("matplotlib") is None:
        parser.error("--plot needs matplotlib, which the extra `bench` installs")
    parsed.names = [question] if question else parsed.only or list(QUESTIONS)
    return parsed


def ask(question: Question, arguments: argparse.Namespace) -> Report:
    """Ask one question, and print what came out."""
    scale = question.scale("smoke" if arguments.smoke else "quick" if arguments.quick else "full")
    names = None
    if arguments.smoke:  # peers need not be installed where the tests run
        names = [one.name for one in question.contenders if one.role in ("ours", "floor")]
    report = run_rounds(question, scale, names, arguments.rounds)
    print("", *reporting.as_text(report), sep="\n", flush=True)
    return report


def main(arguments: Sequence[str] | None = None, *, question: str | None = None) -> int:
    """Run one benchmark, or all; return the exit code."""
    parsed = parse_arguments(arguments, question)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contenders are ended, too
    print(reporting.header(), flush=True)
    reports: list[Report] = []
    try:
        with byte_code():
            for name in parsed.names:
                reports.append(ask(load(f"benchmarks.{name}"), parsed))
                if parsed.json is not None:  # each time: an interrupt costs one question at most
                    parsed.json.write_text(json.dumps(reporting.as_json(reports), indent=2) + "\n")
    except KeyboardInterrupt:
        return 130
    if len(reports) > 1:
        print("", *reporting.as_markdown(reports), sep="\n")
    if parsed.plot is not None:
        reporting.plot(reports, parsed.plot)
    return 1 if any(report.failed for report in reports) else 0
