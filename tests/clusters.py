"""Dask clusters for tests: a scheduler and nodes, each a process of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from helpers import gone, until

SCHEDULER = """
import asyncio, os, sys
import dask
settings = {"distributed.scheduler.worker-ttl": None, "temporary-directory": os.getcwd()}
dask.config.set(settings)
from distributed import Scheduler
from distributed.security import Security

async def main():
    options = eval(sys.argv[1])
    if "security" in options:
        options["security"] = Security(**options["security"])
    settings = {"host": "127.0.0.1", "port": 0, "dashboard": False, **options}
    async with Scheduler(**settings) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()

asyncio.run(main())
"""

NODE = """
import asyncio, os, signal, sys
import dask
dask.config.set({"distributed.worker.memory.terminate": False})
from distributed import Nanny, Worker
from distributed.security import Security

async def main():
    address, options = sys.argv[1], eval(sys.argv[2])
    kind = Nanny if options.pop("nanny", False) else Worker
    if "security" in options:
        options["security"] = Security(**options["security"])
    settings = {"host": "127.0.0.1", "nthreads": 1, "local_directory": os.getcwd(), **options}
    async with kind(address, dashboard=False, **settings) as node:
        # As the command `dask worker` does.
        stop = lambda: asyncio.ensure_future(node.close())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        print(getattr(node, "worker_address", None) or node.address, flush=True)
        await node.finished()

if __name__ == "__main__":
    asyncio.run(main())
"""


def path_of(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])


class Part:
    """A scheduler or a node.

    Attributes:
        address: Where it is reached.
        pid: Its process id.
    """

    def __init__(
        self, code: str, arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None
    ) -> None:
        script = folder / f"part-{code[:400].count('Nanny')}.py"  # a nanny starts it again
        script.write_text(code)
        self._err = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=self._err,
            text=True,
            cwd=folder,
            # Jobs refer to functions of the test modules.
            env={**os.environ, "PYTHONPATH": path_of(Path(__file__).parent), **(env or {})},
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.address = ""

    def begin(self) -> None:
        """Wait until it is there."""
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.said()

    def said(self) -> str:
        """What it has written to standard error."""
        self._err.seek(0)
        return self._err.read().decode(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def below(self) -> list[psutil.Process]:
        """All processes below it, the guards' and the workers' among them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def close(self) -> None:
        """End it, and what a nanny of it has started."""
        below = [process.pid for process in self.below()]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # they are below what this test has started
            until(lambda pid=pid: gone(pid), "its end")  # type: ignore[misc]
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._err.close()


class DaskCluster:
    """A scheduler and nodes.

    Args:
        folder: Where they work.
        nodes: How many there are at first, of one thread each.
        env: Environment variables of all of them, besides those of this process.
        options: Of the scheduler.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, env: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self.folder = folder
        self.env = env
        self.nodes: list[Part] = []
        self.scheduler = Part(SCHEDULER, [repr(options)], folder, env)
        try:
            self.scheduler.begin()
            security = {"security": options["security"]} if "security" in options else {}
            self.add(*[security] * nodes)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        return self.scheduler.address

    def add(self, *options: dict[str, Any]) -> list[Part]:
        """Add nodes, each with options of its own."""
        address = self.address
        made = [Part(NODE, [address, repr(each)], self.folder, self.env) for each in options]
        self.nodes += made
        for part in made:
            part.begin()
        return made

    def close(self) -> None:
        # Nodes first: a node whose scheduler goes may wait for it.
        for part in [*self.nodes, self.scheduler]:
            part.close()


@contextlib.contextmanager
def dask_cluster(folder: Path, nodes: int = 2, **options: Any) -> Iterator[DaskCluster]:
    cluster = DaskCluster(folder, nodes, **options)
    try:
        yield cluster
    finally:
        cluster.close()


def left_on(part: Part) -> list[list[str]]:
    """What runs below it, but for resource trackers, which live as long as it does."""
    found = []
    for process in part.below():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.cmdline())
    return [command for command in found if "resource_tracker" not in " ".join(command)]


__all__ = ["DaskCluster", "Part", "dask_cluster", "left_on", "make", "path_of"]


# --- for the option --pool ------------------------------------------------------------------------


class _Kind:
    """Makes pools on one cluster, which is there for as long as the tests run."""

    def __init__(self) -> None:
        self._address = ""

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Have the cluster."""
        with dask_cluster(folder, 0) as cluster:
            cluster.add(*[{"nthreads": 8}] * 2)
            self._address = cluster.address
            yield

    def __call__(self, max_workers: int | None = None, **options: Any) -> Any:
        from primitive_jobs.cluster import ClusterPool

        return ClusterPool(self._address, max_workers, **options)


make = _Kind()
"""``--pool clusters:make``"""
