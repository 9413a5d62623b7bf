"""What people write with another library, what they write here instead, and what is different.

The pages of "Coming from" are made of these rows, and a test runs each of them: the code on both
sides, and each statement about the peer with the peer and with this library.

In the code ``simulate`` and ``add`` are the reader's functions, ``slow`` and ``endless`` take long,
``crash`` ends its process, ``grid`` and ``pairs`` are their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_PYTHONS = "3.10 to 3.13"


class Row(NamedTuple):
    """One thing that people do."""

    write: str
    """The code for the peer."""
    instead: str
    """The code for this library."""
    different: tuple[str, ...] = ()
    """Statements that are true of the peer and not of this library."""


class Peer(NamedTuple):
    """One library, the version that was tried, and its rows."""

    name: str
    version: str
    """One version, or two of them: "from to to"."""
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    """Its cells in the table of all peers; none: it has no line there."""
    of_python: bool = False
    """Whether the version is that of CPython."""

    @property
    def title(self) -> str:
        """Name and version as the pages have it."""
        return (
            f"`{self.name}`, CPython {self.version}"
            if self.of_python
            else (f"{self.name} {self.version}")
        )


COLUMNS = (
    "stops a running call",
    "a crash costs",
    "lambdas",
    "functions defined after the workers' start",
)
OURS = ("yes, with every process below it", "its own job", "yes", "yes")

LAMBDAS = "lambdas cannot be pickled"
GOES_ON = "False for a running call, which goes on"
ALL_FAIL = "a dead worker fails everything pending"
NOTHING_MORE = "the executor takes nothing more"
TAKES_ALL = "the whole input is taken before the first result"

_FUTURES = Peer(
    "concurrent.futures",
    _PYTHONS,
    (
        Row(
            """\
with ProcessPoolExecutor(2) as executor:
    result = executor.submit(simulate, 3).result()""",
            """\
with JobExecutor(2) as executor:
    result = executor.submit(simulate, 3).result()""",
            (LAMBDAS, "a function defined after the workers' start breaks the executor"),
        ),
        Row(
            "executor.map(simulate, grid, chunksize=2)",
            "pool.map(simulate, grid)",
            (TAKES_ALL,),
        ),
        Row("future.cancel()", "future.cancel()", (GOES_ON,)),
        Row(
            "executor.submit(endless).result(timeout=0.1)",
            "pool.options(timeout=0.1).submit(endless).result()",
            ("only the waiting ends, the call goes on",),
        ),
        Row(
            "executor.submit(crash).result()",
            "executor.submit(crash).result()",
            (ALL_FAIL, NOTHING_MORE),
        ),
        Row(
            """\
with ProcessPoolExecutor(2, initializer=prepare, initargs=(7,)) as executor:
    result = executor.submit(prepared).result()""",
            """\
with JobExecutor(2, initializer=prepare, initargs=(7,)) as executor:
    result = executor.submit(prepared).result()""",
            ("an initializer that raises breaks the executor",),
        ),
        Row(
            "executor.shutdown(cancel_futures=True)",
            "pool.shutdown(cancel=True)",
            ("running calls are waited for",),
        ),
    ),
    ("no", "everything pending", "no", "no: the executor breaks"),
    of_python=True,
)

_LOKY = Peer(
    "loky",
    "3.7.0",
    (
        Row(
            "get_reusable_executor(max_workers=2).submit(simulate, 3).result()",
            "run(simulate, 3).result()",
            (ALL_FAIL,),
        ),
        Row(
            """\
with ProcessPoolExecutor(2, timeout=9) as executor:
    result = executor.submit(simulate, 3).result()""",
            """\
with JobPool(2, idle_timeout=9) as pool:
    result = pool.submit(simulate, 3).result()""",
        ),
        Row("future.cancel()", "job.cancel()", (GOES_ON,)),
        Row("executor.shutdown(kill_workers=True)", "pool.cancel_all()", (NOTHING_MORE,)),
    ),
    ("no", "everything pending", "yes", "yes"),
)

_PEBBLE = Peer(
    "pebble",
    "5.2.3",
    (
        Row(
            "pool.schedule(add, args=(2, 3), timeout=9).result()",
            "pool.options(timeout=9).submit(add, 2, 3).result()",
            (LAMBDAS, "a function defined after the workers' start breaks the pool"),
        ),
        Row(
            "future.cancel()",
            "job.cancel()",
            ("it returns before the process is gone", "what the call has started goes on"),
        ),
        Row(
            "list(pool.map(simulate, grid, chunksize=2).result())",
            "list(pool.map(simulate, grid))",
            (TAKES_ALL, "results go on after an exception"),
        ),
        Row(
            "concurrent.process(add)(2, 3).result()",
            "run(add, 2, 3).result()",
            ("each call has a new process",),
        ),
        Row(
            "pool.schedule(crash).exception().exitcode",
            "pool.submit(crash).exception().exitcode",
        ),
        Row(
            """\
with ProcessPool(2, max_tasks=1) as pool:
    result = pool.schedule(simulate, (3,)).result()""",
            """\
with JobPool(2, max_jobs_per_worker=1) as pool:
    result = pool.submit(simulate, 3).result()""",
        ),
    ),
    ("yes, not what it started", "its own call", "no", "no: the pool breaks"),
)

_MULTIPROCESSING = Peer(
    "multiprocessing.Pool",
    _PYTHONS,
    (
        Row(
            """\
from multiprocessing import Pool

with Pool(2) as pool:
    result = pool.map(simulate, grid)""",
            """\
from primitive_jobs.multiprocessing import Pool

with Pool(2) as pool:
    result = pool.map(simulate, grid)""",
        ),
        Row(
            "pool.apply_async(add, (2, 3)).get()",
            "pool.submit(add, 2, 3).result()",
            (LAMBDAS, "there is no cancel", "`get()` waits in vain after the worker's death"),
        ),
        Row("pool.map(simulate, grid)", "list(pool.map(simulate, grid))"),
        Row(
            "list(pool.imap(simulate, grid))",
            "list(pool.map(simulate, grid))",
            ("the whole input is taken, whether results are or not",),
        ),
        Row(
            "sorted(pool.imap_unordered(simulate, grid))",
            "sorted(pool.map(simulate, grid, ordered=False))",
        ),
        Row("pool.starmap(add, pairs)", "list(pool.map(add, *zip(*pairs)))"),
        Row(
            """\
with Pool(2, prepare, (7,)) as pool:
    result = pool.apply(prepared)""",
            """\
with JobPool(2, initializer=prepare, initargs=(7,)) as pool:
    result = pool.submit(prepared).result()""",
            (
                "an initializer that raises is tried again and again",
                "workers are forks, which see what the program has set",
            ),
        ),
        Row(
            """\
with Pool(2, maxtasksperchild=1) as pool:
    result = pool.apply(add, (2, 3))""",
            """\
with JobPool(2, max_jobs_per_worker=1) as pool:
    result = pool.submit(add, 2, 3).result()""",
            ("the block's end kills what is unfinished",),
        ),
        Row(
            "pool.terminate()",
            "pool.shutdown(cancel=True)",
            ("`get()` waits in vain for what was unfinished",),
        ),
    ),
    ("no", "its own: `get()` waits in vain", "no", "no: `get()` waits in vain"),
    of_python=True,
)

_JOBLIB = Peer(
    "joblib",
    "1.6.0",
    (
        Row(
            "Parallel(n_jobs=2)(delayed(simulate)(x) for x in grid)",
            "list(pool.map(simulate, grid))",
            ("a dead worker costs the results of all calls",),
        ),
        Row(
            """\
sorted(
    Parallel(n_jobs=2, return_as="generator_unordered")(delayed(simulate)(x) for x in grid)
)""",
            "sorted(pool.map(simulate, grid, ordered=False))",
        ),
        Row(
            "Parallel(n_jobs=2, timeout=0.2)(delayed(slow)(x) for x in grid)",
            "list(pool.options(timeout=0.2).map(slow, grid))",
            ("a late call costs the results of all calls",),
        ),
    ),
)

_QISKIT = Peer(
    "Qiskit",
    "2.6.2",
    (
        Row(
            """\
from qiskit.primitives import PrimitiveJob

job = PrimitiveJob(simulate, 3)
job._submit()
result = job.result()""",
            """\
from primitive_jobs import PrimitiveJob

job = PrimitiveJob(simulate, 3)
job._submit()
result = job.result()""",
            ("a job is a thread of your program", "a crash ends the program"),
        ),
        Row("job.cancel()", "job.cancel()", (GOES_ON,)),
        Row(
            "PrimitiveJob(simulate, 3).status()",
            "PrimitiveJob(simulate, 3).status()",
            ("a `JobError` before `_submit()`",),
        ),
        Row(
            """\
job = PrimitiveJob(simulate, 3)
job._submit()
result = pickle.loads(pickle.dumps(job)).result()""",
            """\
job = PrimitiveJob(simulate, 3).submit()
result = pickle.loads(pickle.dumps(job)).result()""",
            ("a job that failed cannot be pickled", "a result of None is lost"),
        ),
    ),
)

_DASK = Peer(
    "Dask",
    "2026.8.0",
    (
        Row(
            "client.submit(simulate, 3).result()",
            "run(simulate, 3).result()",
            ("a call whose worker died is started again",),
        ),
        Row("client.gather(client.map(simulate, grid))", "list(pool.map(simulate, grid))"),
        Row(
            "future.cancel()",
            "job.cancel()",
            ("the future is cancelled, and a running call goes on",),
        ),
    ),
)

_RAY = Peer(
    "Ray",
    "2.60.0",
    (
        Row(
            """\
import ray

result = ray.get(ray.remote(simulate).remote(3))""",
            """\
from primitive_jobs import run

result = run(simulate, 3).result()""",
            ("a call whose worker died is started again",),
        ),
        Row(
            "ray.get([ray.remote(simulate).remote(x) for x in grid])",
            "list(pool.map(simulate, grid))",
        ),
        Row(
            "ray.get(ray.remote(endless).remote(), timeout=0.1)",
            "pool.options(timeout=0.1).submit(endless).result()",
            ("only the waiting ends, the call goes on",),
        ),
        Row(
            "ray.cancel(ref)",
            "job.cancel()",
            (
                "a call that catches the KeyboardInterrupt goes on",
                "what the call has started goes on",
            ),
        ),
        Row(
            """\
data = ray.put(3)
result = ray.get(ray.remote(simulate).remote(data))""",
            """\
data = share(3)
result = pool.submit(simulate, data).result()""",
        ),
    ),
)

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (_FUTURES, _LOKY, _PEBBLE, _MULTIPROCESSING, _JOBLIB, _QISKIT, _DASK, _RAY)
}


def comparison() -> str:
    """Return the table of all peers that have a line in it, as Markdown."""
    lines = [("", *COLUMNS), ("---",) * (1 + len(COLUMNS)), ("`primitive_jobs`", *OURS)]
    lines += [(peer.title, *peer.columns) for peer in PEERS.values() if peer.columns]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def page(peer: Peer) -> str:
    """Return the rows of a peer as Markdown."""
    blocks = [f"Tried with {peer.title}."]
    for row in peer.rows:
        blocks += [_block(peer.name, row.write), _block("primitive_jobs", row.instead)]
        if row.different:
            blocks.append(f"Only with {peer.name}: {'; '.join(row.different)}.")
        blocks.append("---")
    return "\n\n".join(blocks[:-1])


def _block(caption: str, code: str) -> str:
    return f"```{{code-block}} python\n:caption: {caption}\n\n{code}\n```"


__all__ = ["COLUMNS", "OURS", "PEERS", "Peer", "Row", "comparison", "page"]
