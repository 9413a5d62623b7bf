"""The command line: `python -m primitive_jobs demo`, `top`, `store` and others."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

INTERRUPTED = 130  # what a shell reports for a program ended by SIGINT


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be greater than 0, not {number}")
    return number


# argparse names the type in "invalid int value: 'x'".
_positive_int.__name__ = "int"


def _version() -> str:
    try:
        return importlib.metadata.version("primitive_jobs")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m primitive_jobs",
        description="Run Python callables as jobs in processes of their own.",
    )
    parser.add_argument("--version", action="version", version=f"primitive_jobs {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="a temperature sweep of the 2-D Ising model, with a cancel and a crash on the way",
        description="Sweep the 2-D Ising model over temperatures, one job each, while one job "
        "that never ends is cancelled and one dies of a segmentation fault; then compare the "
        "magnetization with the exact solution.",
    )
    demo.add_argument(
        "--workers", type=_positive_int, metavar="N", help="worker processes (default: one per CPU)"
    )
    demo.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the random numbers (default: 1)"
    )
    demo.add_argument(
        "--quick", action="store_true", help="a smaller lattice: about 3 s instead of 14 s"
    )
    demo.add_argument(
        "--cluster",
        action="store_true",
        help="on a Dask cluster of two nodes on this machine, one of which is killed on the way",
    )
    _add_viewer(commands)
    _add_store(commands)
    return parser


def _add_viewer(commands: Any) -> None:
    top = commands.add_parser(
        "top",
        help="the jobs of all programs of this user, as a live table",
        description="Show the jobs of all programs of this user on this machine: those that run, "
        "and the first 100 of each pool that wait. Keys: arrows mark a job, k cancels it after a "
        "question, s shows where it is, o what it has printed, / filters, e c m p n sort, q "
        "leaves. Where this is no terminal, it prints the table once.",
    )
    top.add_argument("--once", action="store_true", help="print the table once")
    top.add_argument("--json", action="store_true", help="print what is known once, as JSON")
    top.add_argument(
        "--filter", default="", metavar="TEXT", help="only jobs with this in name, id or program"
    )
    top.add_argument(
        "--interval",
        type=_positive_seconds,
        default=1.0,
        metavar="S",
        help="seconds between two looks (default: 1)",
    )
    cancel = commands.add_parser(
        "cancel",
        help="cancel a job of any program of this user",
        description="Cancel a job, queued or running, as its owner would: after its own grace. "
        "It returns when the job is final, and says what became of it.",
    )
    stack = commands.add_parser(
        "stack",
        help="where a running job of any program of this user is",
        description="Print the Python stack of a running job, which goes on and does not notice.",
    )
    stack.add_argument(
        "--force",
        action="store_true",
        help="ask also where the job is in a system call that a signal ends early, as sleeps and "
        "polls are: harmless for Python's own, but perhaps not for other code in C",
    )
    output = commands.add_parser(
        "output",
        help="what a job of any program of this user has printed",
        description="Print what a job has printed, as far as its option `output` has that kept.",
    )
    output.add_argument(
        "-f", "--follow", action="store_true", help="go on until the job is over, as `tail -f` does"
    )
    for command in (cancel, stack, output):
        text = "of the job, or how that begins"
        command.add_argument("id", type=_job_id, metavar="ID", help=text)


def _add_store(commands: Any) -> None:
    text = "look into the file of a SweepStore without running anything"
    store = commands.add_parser(
        "store", help=text, description="Look into the file of a SweepStore."
    )
    store.add_argument("file", metavar="FILE", help="of the store")
    actions = store.add_subparsers(dest="action", metavar="action", required=True)
    rows = actions.add_parser("list", help="its rows, a line each, in the order they were written")
    rows.add_argument("--json", action="store_true", help="print all that is known, as JSON")
    show = actions.add_parser("show", help="all that is known of a row")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.add_argument("key", metavar="KEY", help="of the row, or how that begins")
    export = actions.add_parser("export", help="write a table of the rows")
    export.add_argument("out", metavar="OUT", help="a file that ends in .csv or .json; - for CSV")
    forget = actions.add_parser("forget", help="delete rows; which, has to be said")
    forget.add_argument("--name", metavar="NAME", help="those of a function")
    forget.add_argument(
        "--key", metavar="KEY", action="append", default=[], help="that of a key; again is allowed"
    )
    for action in (rows, export):
        action.add_argument("--name", metavar="NAME", help="only those of a function")
        action.add_argument(
            "--status", choices=("DONE", "ERROR", "CANCELLED"), help="only those of a status"
        )


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 3600, not {text}")
    return seconds


_positive_seconds.__name__ = "float"


def _job_id(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _run_top(args: argparse.Namespace) -> int:
    from primitive_jobs.viewer.top import top

    return top(once=args.once, as_json=args.json, pause=args.interval, text=args.filter)


def _run_cancel(args: argparse.Namespace) -> int:
    from primitive_jobs.viewer.commands import cancel

    return cancel(args.id)


def _run_stack(args: argparse.Namespace) -> int:
    from primitive_jobs.viewer.commands import stack

    return stack(args.id, force=args.force)


def _run_output(args: argparse.Namespace) -> int:
    from primitive_jobs.viewer.commands import output

    return output(args.id, follow=args.follow)


def _run_store(args: argparse.Namespace) -> int:
    from primitive_jobs.store.command import run_store

    return run_store(args)


def _run_demo(args: argparse.Namespace) -> int:
    # Imported here, so that a Ctrl-C during the import is caught as well.
    from primitive_jobs.demo import FULL, QUICK, run_demo

    if args.cluster:
        from primitive_jobs.cluster.demo import MODERATE, run_cluster_demo

        return run_cluster_demo(args.seed, QUICK if args.quick else MODERATE)
    return run_demo(args.workers, args.seed, QUICK if args.quick else FULL)


_COMMANDS = {
    "demo": _run_demo,
    "top": _run_top,
    "cancel": _run_cancel,
    "stack": _run_stack,
    "output": _run_output,
    "store": _run_store,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    if args.command == "demo" and args.cluster:
        if args.workers is not None:
            parser.error("argument --workers: not allowed with --cluster, whose nodes have threads")
        if importlib.util.find_spec("distributed") is None:
            parser.error('--cluster needs Dask: python -m pip install "distributed>=2024.8"')
    try:
        status = _COMMANDS[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Everything has ended: an impatient second Ctrl-C has nothing left to do.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if args.command == "demo":
            print("Interrupted: every job was cancelled.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone. Without this the interpreter would complain on stderr
        # when it flushes what is left at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
