"""`python -m primitive_jobs demo --cluster`: the sweep on a Dask cluster that loses a node.

The cluster is on this machine: a scheduler in this process and two nodes, each a process. A job
that never ends is lost with its node, and is not repeated; one of the sweep is lost, too, and has a
retry. Each change of a job is told in a line, on a terminal as in a pipe.
"""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TextIO

import dask
from distributed import Client, LocalCluster

from primitive_jobs import FINAL_STATES, JobStatus, WorkerDiedError, wait
from primitive_jobs.cluster import ClusterPool
from primitive_jobs.demo import (
    Point,
    Row,
    Scale,
    error_line,
    job_seed,
    result_table,
    run_forever,
    simulate,
    tell_end,
)

TEMPERATURES = (1.2, 1.5, 1.8, 2.1, 2.3, 2.5, 3.0, 3.5)
MODERATE = Scale(side=31, warm_up=150, sweeps=1800, endless=1.0)
NODES, THREADS = 2, 2
REFRESH = 0.05  # s
FRESH = 0.25  # s that the job beside the endless one has run at most when its node is killed


class Nodes:
    """The nodes of the cluster, by names that a reader can follow."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # by address
        self.pids: dict[str, int] = {}  # of those that were there from the beginning

    def name(self, address: str) -> str:
        """The name of a node; one that was not there before gets the next number."""
        return self._names.setdefault(address, f"node {len(self._names) + 1}")

    def told(self, address: str) -> str:
        """The name, and at the first time where the node comes from, if it is a new one."""
        new = address not in self._names
        return self.name(address) + (", which Dask has started instead" if new else "")

    def take(self, pids: dict[str, int]) -> list[str]:
        """Take in which nodes there are at first; return a line for each."""
        self.pids = dict(pids)
        return [f"{self.name(a)} is {a}, process {pid}" for a, pid in sorted(pids.items())]


class Story:
    """What happens to the jobs, in words, a line for each change."""

    def __init__(self, rows: list[Row], nodes: Nodes, stream: TextIO) -> None:
        self._rows = rows
        self.nodes = nodes
        self._stream = stream
        self._began = time.time()
        self.places: dict[str, list[str]] = {}  # where each job has run, by its name

    def tell(self, text: str, at: float | None = None) -> None:
        """Print a line."""
        moment = (time.time() if at is None else at) - self._began
        print(f"[{moment:6.2f} s] {text}", file=self._stream, flush=True)

    def update(self) -> None:
        """Print what has changed since the last call, in the order in which it happened."""
        changes = []
        for row in self._rows:
            history = row.job.history()
            for (before, _), (after, at) in itertools.pairwise(history[row.reported - 1 :]):
                words = self._words(row, before, after)
                if words:
                    changes.append((at, f"{row.job.name} {words}"))
            row.reported = len(history)
        for at, text in sorted(changes, key=lambda change: change[0]):
            self.tell(text, at)

    def _words(self, row: Row, before: JobStatus, after: JobStatus) -> str:
        name = str(row.job.name)
        if after is JobStatus.RUNNING:
            places = self.places.setdefault(name, [])
            node = row.job.node  # None: it has ended meanwhile
            told = "a node" if node is None else self.nodes.told(node)
            places.append("a node" if node is None else self.nodes.name(node))
            again = f", attempt {len(places)}" if len(places) > 1 else ""
            return f"is RUNNING on {told}{again}"
        if after in FINAL_STATES:
            return f"is {after.name}: {_outcome(row)}".removesuffix(": ")
        if after is JobStatus.QUEUED:
            return "is QUEUED again, by its retry" if before is JobStatus.RUNNING else "is QUEUED"
        return ""  # INITIALIZING and VALIDATING pass in no time


def _outcome(row: Row) -> str:
    error = row.job.exception() if row.job.status() is JobStatus.ERROR else None
    if isinstance(error, WorkerDiedError) and "was lost" in str(error):
        return "WorkerDiedError, since its node was lost; it has no retry"
    return row.outcome()


@contextmanager
def local_cluster() -> Iterator[Any]:
    """A cluster on this machine, which leaves no file."""
    with (
        tempfile.TemporaryDirectory(prefix="primitive_jobs-", ignore_cleanup_errors=True) as folder,
        dask.config.set(temporary_directory=folder),
    ):
        # A Ctrl-C is for this process: the nodes inherit that it is blocked, those that are started
        # later, too, from the thread that LocalCluster makes.
        resource_tracker.ensure_running()  # whose start would unblock it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            cluster = LocalCluster(
                n_workers=NODES,
                threads_per_worker=THREADS,
                dashboard_address=":0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with cluster:
            yield cluster


def run_cluster_demo(seed: int, scale: Scale, stream: TextIO | None = None) -> int:
    """Run everything; 0 if every job ended as it should."""
    out = sys.stdout if stream is None else stream
    began = time.perf_counter()
    print(
        f"2-D Ising model, {scale.lattice}, {len(TEMPERATURES)} temperatures, on a Dask cluster of "
        f"{NODES} nodes\nwith {THREADS} threads each; all of it is on this machine.\n",
        file=out,
        flush=True,
    )
    rows: list[Row] = []
    nodes = Nodes()
    with local_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        print(*nodes.take(client.run(os.getpid)), sep="\n", end="\n\n", file=out, flush=True)
        story = Story(rows, nodes, out)
        try:
            with ClusterPool(cluster) as pool:
                endless = _submit_all(pool, seed, scale, rows)
                lost = _follow(rows, story, endless, scale.endless)
        finally:
            story.update()  # what a Ctrl-C cancels is still told
    print("", *_report(rows, story, lost), sep="\n", file=out)
    return tell_end(rows, began, out)


def _submit_all(pool: ClusterPool, seed: int, scale: Scale, rows: list[Row]) -> Row:
    """Submit every job, adding its row at once; return the row of the job without an end."""
    endless = Row(pool.options(name="never ends").submit(run_forever), JobStatus.ERROR)
    rows.append(endless)
    for index, temperature in enumerate(TEMPERATURES):
        view = pool.options(
            name=f"T={temperature:.2f}", metadata={"temperature": temperature}, retries=1
        )
        job = view.submit(simulate, temperature, scale, job_seed(seed, index))
        rows.append(Row(job, JobStatus.DONE))
    return endless


def _follow(rows: list[Row], story: Story, endless: Row, patience: float) -> str:
    """Tell of the jobs until all are final; kill the endless one's node; return its name."""
    pending = {row.job for row in rows}
    lost = ""
    while pending:
        story.update()
        if not lost and _is_time(rows, endless, patience):
            lost = _kill_node(rows, story, endless)
        _, pending = wait(pending, timeout=REFRESH, return_when=FIRST_COMPLETED)
    return lost


def _is_time(rows: list[Row], endless: Row, patience: float) -> bool:
    """Whether the endless job has run long enough, and one beside it has just begun."""
    node, ran = endless.job.node, endless.seconds()
    if node is None or ran is None or ran < patience:
        return False
    sweep = [row for row in rows if row is not endless and not row.job.in_final_state()]
    beside = [row for row in sweep if row.job.node == node]
    return not sweep or any((row.seconds() or 0.0) < FRESH for row in beside)


def _kill_node(rows: list[Row], story: Story, endless: Row) -> str:
    nodes = story.nodes
    address = str(endless.job.node)
    running = [str(row.job.name) for row in rows if row.job.node == address]
    pid, name = nodes.pids[address], nodes.name(address)
    os.kill(pid, signal.SIGKILL)
    story.tell(
        f"{name} is lost: its process {pid} was sent SIGKILL. It ran {' and '.join(running)}."
    )
    return name


def _report(rows: list[Row], story: Story, lost: str) -> Iterator[str]:
    """What the reader is left with: the physics, and what became of the jobs that were lost."""
    yield from result_table(
        [
            Point(row.job.metadata["temperature"], row.job.result())
            for row in rows
            if "temperature" in row.job.metadata and row.job.done()
        ]
    )
    yield ""
    for row in rows:
        name = str(row.job.name)
        places = story.places.get(name, [])
        if row.job.status() is JobStatus.ERROR:
            yield f"{name}: {error_line(row.job.exception())}"
        elif row.job.attempts > 1:
            yield f"{name}: its first attempt was lost with {lost}, the next ran on {places[-1]}"


__all__ = ["MODERATE", "run_cluster_demo"]
