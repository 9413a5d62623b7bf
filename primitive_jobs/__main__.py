"""The command line: `python -m primitive_jobs demo`, and nothing more so far."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence

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
    return parser


def _run_demo(args: argparse.Namespace) -> int:
    # Imported here, so that a Ctrl-C during the import is caught as well.
    from primitive_jobs.demo import FULL, QUICK, run_demo

    if args.cluster:
        from primitive_jobs.cluster.demo import MODERATE, run_cluster_demo

        return run_cluster_demo(args.seed, QUICK if args.quick else MODERATE)
    return run_demo(args.workers, args.seed, QUICK if args.quick else FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    if args.cluster:
        if args.workers is not None:
            parser.error("argument --workers: not allowed with --cluster, whose nodes have threads")
        if importlib.util.find_spec("distributed") is None:
            parser.error('--cluster needs Dask: python -m pip install "distributed>=2024.8"')
    try:
        status = _run_demo(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Everything has ended: an impatient second Ctrl-C has nothing left to do.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
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
