"""Pools on the machines of a Dask cluster: `ClusterPool`.

May use `_engine`, `_local`, `_procs` and `_wire`, and `distributed`, which the extra ``dask``
installs; nothing else of the package imports it. Three processes are at work:

===============  ===================================================================================
the pool's
pool             `ClusterPool`: what users hold
fleet            `ClusterFleet`: the engine's interface to workers on nodes
connection       `Connection`: the thread that speaks with the scheduler and the nodes
reach            connections to scheduler and nodes
places           `Places`: the Dask tasks that hold places; nodes that are avoided
demo             the demonstration: `python -m primitive_jobs demo --cluster`
everywhere
line             `Line`: frames over a connection, where short ones overtake long ones
frames           their names, and what travels in them
traces           what is seen of jobs there, while they run and after their end
the scheduler's
sent             `PoolPlugin`; `place`, for Dask's workers: sent by value, import nothing of this
a node's
node             `Agent`: a plugin of the Dask worker; holds places, accepts pools
session          `Session`: the workers of one pool there; a `LocalFleet`, and its lease
===============  ===================================================================================
"""

from .pool import ClusterPool

__all__ = ["ClusterPool"]
