"""`ClusterPool`: a pool whose workers are on the machines of a Dask cluster."""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from distributed import Client, Security

from .._common.hints import hinted, of_pool_keyword
from .._common.signatures import Seed
from .._engine.lifetime import check_not_exiting
from .._engine.scheduler import Scheduler
from .._procs.surroundings import check_surroundings
from .._wire import nesting
from .._wire.initializer import Initializer
from ..engine_pool import EnginePool, check_count_or_none, check_numbers, check_pool_options
from ..options import (
    check_bool,
    check_callable,
    check_count,
    check_env,
    check_initargs,
    check_preload,
    check_resources,
    check_seconds,
)
from .connection import Policy, Target
from .fleet import ClusterFleet
from .line import Data, Frame

IDLE_TIMEOUT = 10.0  # s
NODE_TIMEOUT = 30.0  # s
_LEAST_TIMEOUT = 1.0  # s: shorter ones would be passed by a busy machine


class ClusterPool(EnginePool):
    """A pool like `JobPool`, whose worker processes are on the machines of a Dask cluster.

    Jobs wait here, in this process, QUEUED, and run in processes that stand beside the cluster's
    Dask workers (*nodes*). A worker takes one of the threads of its node, as Dask counts them, for
    as long as it is there: what others compute on the cluster waits for it, and it for them. A job
    is never a Dask task, so Dask never repeats one. `job.node` says where a job runs.

    What is weaker than on one machine: a job that is sent to a node in the moment in which that is
    lost ends by `WorkerDiedError`, as nobody knows if it had begun; what jobs print goes to the
    node; modules that jobs import must be there; sockets, connections and multiprocessing's locks
    cannot be sent; Ctrl-Z does not stop jobs. If this program, or the network, is silent for
    ``node_timeout`` seconds, each node kills the pool's jobs there; so jobs of a node that is cut
    off end by `WorkerDiedError` after that time, and never run twice at the same time.

    The cluster's scheduler need not have this package; each node needs it, in the same version.
    The constructor does not wait for the cluster. If the scheduler cannot be reached, or is lost,
    all jobs end by `ClusterError`, and later submits raise it.

    Args:
        client_or_address: A `distributed.Client`, a cluster object (`LocalCluster`, one of
            dask-jobqueue), or the address of a scheduler ("tcp://host:8786"). The pool makes a
            connection of its own; of a client it uses address and ``security`` only.
        max_workers: Most worker processes at a time; default None: as many as the cluster has
            threads, at each moment. An adaptive cluster needs a number: it grows with what waits.
        place_resources: Dask resources that each worker takes of its node, as ``{"GPU": 1}``;
            default None: none.
        direct: Whether nodes are connected to directly (True) or through the scheduler (False);
            default None: directly, and through the scheduler where that fails.
        node_timeout: Seconds of silence after which a node is lost, at least 1; default 30.
        idle_timeout: Seconds after which an idle worker leaves; default 10; None: never.
        spare_workers: Idle worker processes beyond `max_workers` that stand ready to take the
            place of one that is killed; default 0, as each holds a thread of its node.
        initializer: Called in each worker before its first job. If it raises, and no other worker
            works or is still coming, the jobs that wait fail with `InitializerError`.
        initargs: Its arguments, pickled with it once, now; without what multiprocessing shares.
        env: Environment variables of the workers, besides those of their node.
        preload: Names of modules that each worker imports before its first job.
        threads_per_worker: For BLAS, OpenMP and the like, as environment variables of the workers;
            default: the node's CPUs by its Dask threads, where its environment does not say
            otherwise (a nanny of Dask sets some of them to 1).
        max_jobs_per_worker: Jobs after which a worker process is replaced by a fresh one; default
            None: never.
        output: As for a `JobPool`. While a job runs its node tells twice a second what is new, 64
            KB of it at most, and "tee" shows that; all that is kept is there at the end of the job.
            A path is one on the node. By default what jobs print goes to where the Dask worker's
            output goes.
        memory_limit: The `memory_limit` of jobs that have none of their own; default None. Dask's
            own limits do not see the workers.
        resources: How many there are in all of what jobs ask for by the same option, as that of a
            `JobPool`; what a node has of its own is said by ``place_resources``. Default None.
        seed: Makes what is random in jobs reproducible, as that of a `JobPool`: the same jobs get
            the same seeds, wherever they run; default None: nothing is seeded.
        on_exit: What the interpreter's end does with unfinished jobs: "wait" (default) for them,
            or "cancel" them, each after its ``grace``.
        visible: Whether ``python -m primitive_jobs top`` of the same user shows the pool, as that
            of a `JobPool`; default True.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        PoolClosedError: The interpreter is going down.
        RuntimeError: As `JobPool`.
    """

    @hinted("ClusterPool", of_pool_keyword, positional="all but max_workers is given by name")
    def __init__(
        self,
        client_or_address: Any,
        max_workers: int | None = None,
        *,
        place_resources: Mapping[str, float] | None = None,
        direct: bool | None = None,
        node_timeout: float = NODE_TIMEOUT,
        idle_timeout: float | None = IDLE_TIMEOUT,
        spare_workers: int = 0,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        env: Mapping[str, str] | None = None,
        preload: Iterable[str] = (),
        threads_per_worker: int | None = None,
        max_jobs_per_worker: int | None = None,
        memory_limit: float | str | None = None,
        resources: Mapping[str, int] | None = None,
        output: str | os.PathLike[str] = "inherit",
        seed: Seed | None = None,
        on_exit: Literal["wait", "cancel"] = "wait",
        visible: bool = True,
    ) -> None:
        check_not_exiting()
        check_surroundings()
        target = _target(client_or_address)
        count = 1 if max_workers is None else check_count("max_workers", max_workers)
        policy = _policy(place_resources, direct, node_timeout)
        config = _config(policy, initializer, initargs, env, threads_per_worker, preload)
        numbers = check_numbers(idle_timeout, max_jobs_per_worker, spare_workers)
        tokens = check_resources("resources", resources)
        where = target, uuid.uuid4().hex, policy, config
        self._fleet = ClusterFleet(*where, follow_threads=max_workers is None)
        self._max_workers = count
        self._options = check_pool_options(memory_limit, output)
        self._shown = {  # in a notebook
            "scheduler": target.address,
            **numbers._asdict(),
            "node_timeout": policy.node_timeout,
            "memory_limit": self._options.memory_limit,
            "resources": tokens or None,
            "output": self._options.output,
            "preload": tuple(config[0]["preload"]),
            "on_exit": on_exit,
        }
        self._scheduler = Scheduler(count, *numbers, confirms=True, slow_starts=True, tokens=tokens)
        self._start(self._scheduler, self._fleet, on_exit=on_exit, seed=seed, visible=visible)

    def _worker_count(self) -> int:
        return self._scheduler.max_workers  # which may follow the cluster

    def resize(self, max_workers: int) -> None:
        """Change the number of workers, which does not follow the cluster from then on.

        Raises:
            TypeError, ValueError: It is no int above 0.
            PoolClosedError: The pool was shut down.
        """
        check_count("max_workers", max_workers)
        self._engine.check_open()
        self._fleet.follow_threads = False  # first: what the cluster tells meanwhile counts no more
        super().resize(max_workers)


def _target(given: Any) -> Target:
    """Return where a cluster is, of whatever knows it."""
    security = getattr(given, "security", None) or Security()
    # A cluster object has this; it may be none yet, or any more.
    address = given if isinstance(given, str) else getattr(given, "scheduler_address", None)
    if address is None and isinstance(given, Client):
        scheduler: Any = getattr(given, "scheduler", None)
        if scheduler is None:
            raise ValueError("the client is not connected: await it first")
        address = scheduler.address
    if not isinstance(address, str):
        raise TypeError(
            "client_or_address must be a distributed.Client, a cluster object or the address of a "
            f"scheduler, not {type(given).__name__}"
        )
    if not address or address.startswith("<"):  # "<Not Connected>"
        raise ValueError("the cluster is not running: it has no address of a scheduler")
    return Target(address, security)


def _policy(
    resources: Mapping[str, float] | None, direct: bool | None, node_timeout: float
) -> Policy:
    if direct is not None:
        check_bool("direct", direct)
    seconds = check_seconds("node_timeout", node_timeout, positive=True)
    if seconds is None or seconds < _LEAST_TIMEOUT:
        raise ValueError(f"node_timeout must be at least {_LEAST_TIMEOUT:g} s, not {node_timeout}")
    if resources is not None and not isinstance(resources, Mapping):
        raise TypeError(f"place_resources must be a mapping, not {type(resources).__name__}")
    return Policy(_resources(resources or {}), direct, seconds)


def _resources(given: Mapping[str, float]) -> dict[str, float]:
    """Return them; with others Dask would wait for ever, without a word."""
    for name, value in given.items():
        if not isinstance(name, str):
            raise TypeError(f"place_resources must have names that are str, not {name!r}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"place_resources[{name!r}] must be a number, not {value!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"place_resources[{name!r}] must be above 0, not {value!r}")
    return dict(given)


def _config(
    policy: Policy,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    env: Mapping[str, str] | None,
    threads_per_worker: int | None,
    preload: Iterable[str],
) -> tuple[Frame, Data]:
    """Return what all workers have in common, as the first frame to each node."""
    if initializer is not None:
        check_callable("initializer", initializer)
    arguments = check_initargs(initargs)
    data: Data = b""
    buffers, facts = 0, None
    if initializer is not None:
        data, buffers, facts = Initializer(initializer, arguments).to_other_machine()
    frame = {
        "frame": "config",
        "lease": policy.node_timeout,
        "threads": check_count_or_none("threads_per_worker", threads_per_worker),
        "env": dict(check_env(env)),
        "preload": list(check_preload(preload)),
        "depth": nesting.depth,
        "initializer": facts,
        "buffers": buffers,
    }
    return frame, data


__all__ = ["ClusterPool"]
