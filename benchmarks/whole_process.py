"""What does a script cost that runs one job? Import, one job, exit: the whole process.

Each contender is a script as a user would write it, started afresh by a bare interpreter, and timed
from outside. The script notes when it got where, so that each millisecond has its place:
`interpreter` until its first line, `import`, `job` until the result is there (with the start of
the pool and of the worker), `exit` until the process is gone. For ours the job's own history
parts `job` further: until it is queued (what is imported on first use, the pool, serializing),
until a worker has it, until the result is there.

The floor is one bare loky `Process`, as each worker of ours is one, that sends one byte.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    FLOOR,
    OURS,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    absent,
)
from benchmarks.pools import FORK_POOL, SPAWN_POOL

SCRIPT = """\
import time

stamps = [time.monotonic()]
{imports}
stamps.append(time.monotonic())

if __name__ == "__main__":
{work}
    assert result == 42, result
    print(*stamps)
"""
"""`work` binds `result`, and adds a stamp as soon as it is there. With a guard, as some start
methods import the script again in the worker."""

STAGES = ("interpreter", "import", "job", "exit")
OUR_STAGES = ("queued", "started", "done")


def script(imports: str, work: str) -> str:
    """Return the source of a script."""
    body = textwrap.indent(textwrap.dedent(work).strip(), "    ")
    return SCRIPT.format(imports=imports, work=body)


OUR_SCRIPT = script(
    "from primitive_jobs import run",
    """
    job = run(abs, -42)
    result = job.result()
    stamps.append(time.monotonic())
    offset = time.monotonic() - time.time()
    walk = {status.name: moment + offset for status, moment in job.history()}
    stamps += [walk["QUEUED"], walk["RUNNING"]]
    """,
)

FLOOR_SCRIPT = script(
    "from loky.backend import get_context",
    """
    context = get_context("loky")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=there.send_bytes, args=(b"1",))
    process.start()
    result = 42 if here.recv_bytes() == b"1" else None
    stamps.append(time.monotonic())
    process.join()
    """,
)


def with_executor(imports: str, executor: str, call: str = "pool.submit(abs, -42).result()") -> str:
    return script(
        imports,
        f"""
        with {executor} as pool:
            result = {call}
            stamps.append(time.monotonic())
        """,
    )


def standard_pool(method: str) -> str:
    return with_executor(
        "import multiprocessing",
        f'multiprocessing.get_context("{method}").Pool(1)',
        "pool.apply(abs, (-42,))",
    )


def standard_executor(method: str) -> str:
    return with_executor(
        "import multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor",
        f'ProcessPoolExecutor(1, multiprocessing.get_context("{method}"))',
    )


LOKY_SCRIPT = script(
    "from loky import get_reusable_executor",
    """
    # Of one worker, as it starts all that it may have at once.
    result = get_reusable_executor(max_workers=1).submit(abs, -42).result()
    stamps.append(time.monotonic())
    """,
)

PEBBLE_SCRIPT = with_executor(
    "import pebble", "pebble.ProcessPool(max_workers=1)", "pool.schedule(abs, (-42,)).result()"
)
MPIRE_SCRIPT = with_executor(
    "import mpire", "mpire.WorkerPool(n_jobs=1)", "pool.apply(abs, (-42,))"
)
DEADPOOL_SCRIPT = with_executor("import deadpool", "deadpool.Deadpool(max_workers=1)")


def measure(source: str, counts: Counts) -> Figures:
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(source, encoding="utf-8")
        run_once(path)  # byte code and pages of files are there from now on
        for _ in range(counts["runs"]):
            for key, seconds in run_once(path).items():
                samples.setdefault(key, []).append(seconds * 1e3)
    return {key: statistics.median(found) for key, found in samples.items()}


def run_once(path: Path) -> dict[str, float]:
    """Return the seconds that a script took, in all and for each stage."""
    command = [sys.executable, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    ended = time.monotonic()
    first, imported, result, *ours = [float(stamp) for stamp in done.stdout.split()]
    moments = [started, first, imported, result, ended]
    figures = {"whole": ended - started} | _between(STAGES, moments)
    if ours:
        figures |= _between(OUR_STAGES, [imported, *ours, result])
    return figures


def _between(names: tuple[str, ...], moments: list[float]) -> dict[str, float]:
    pairs = itertools.pairwise(moments)
    return {name: end - start for name, (start, end) in zip(names, pairs, strict=True)}


def peer(name: str, source: str, *needs: str) -> Contender:
    return Contender(name, "peer", partial(measure, source), needs)


QUESTION = Question(
    name="whole_process",
    title="whole process: import, one job, exit",
    metrics=(
        Metric("whole", "in all", "ms"),
        Metric("interpreter", "interpreter's start", "ms", headline=False),
        Metric("import", "import", "ms", headline=False),
        Metric("job", "job, with the start of pool and worker", "ms", headline=False),
        Metric("queued", "of that, until it is queued", "ms", headline=False),
        Metric("started", "of that, until a worker has it", "ms", headline=False),
        Metric("done", "of that, until the result is there", "ms", headline=False),
        Metric("exit", "exit", "ms", headline=False),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, OUR_SCRIPT)),
        Contender("loky Process", "floor", partial(measure, FLOOR_SCRIPT), ("loky",)),
        peer(FORK_POOL, standard_pool("fork")),
        peer(SPAWN_POOL, standard_pool("spawn")),
        peer("concurrent.futures fork", standard_executor("fork")),
        peer("concurrent.futures spawn", standard_executor("spawn")),
        peer("loky", LOKY_SCRIPT, "loky"),
        peer("pebble", PEBBLE_SCRIPT, "pebble"),
        peer("mpire", MPIRE_SCRIPT, "mpire"),
        peer("deadpool", DEADPOOL_SCRIPT, "deadpool-executor"),
        absent("joblib", "its pool is loky's"),
    ),
    goals=(Goal("whole", FLOOR, at_most=1.2), Goal("whole", "loky", at_most=0.8)),
    full=Scale(rounds=5, limit=60, counts={"runs": 5}),
    quick=Scale(rounds=2, limit=40, counts={"runs": 2}),
    smoke=Scale(rounds=1, limit=30, counts={"runs": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))
