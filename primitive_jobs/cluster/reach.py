"""Connections to the cluster's scheduler and to nodes, and whether a node can be dead."""

# Dask need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from typing import Any

from distributed.comm import get_address_host_port, parse_address
from distributed.comm.registry import get_backend

_PROBE = 1.0  # s to open a connection that tells nothing but whether somebody listens


async def connect(
    address: str, seconds: float, *, deserialize: bool = True, **arguments: Any
) -> Any:
    """Return a connection of Dask's.

    `distributed.comm.connect` waits for the other end's first word without a limit, and leaves the
    socket open where it is cancelled: a process that is frozen says nothing.

    Args:
        address: With the scheme: "tcp://host:port".
        seconds: To connect, and again for the first word.
        deserialize: Whether what comes is unpacked; default True.
        **arguments: As `distributed.Security.get_connection_args` returns them.

    Raises:
        OSError: There is nobody, or no answer in time.
    """
    scheme, location = parse_address(address)
    connector = get_backend(scheme).get_connector()
    silence = OSError(f"{address} did not answer within {seconds:g} s")
    opening = connector.connect(location, deserialize=deserialize, **arguments)
    opened = asyncio.ensure_future(opening)

    def drop(task: Any) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().abort()

    try:
        # Shielded: where Dask's connector is cancelled it leaves its socket open.
        comm = await asyncio.wait_for(asyncio.shield(opened), seconds)
    except asyncio.TimeoutError:
        opened.add_done_callback(drop)
        raise silence from None
    except BaseException:
        opened.add_done_callback(drop)
        raise
    try:
        await asyncio.wait_for(shake_hands(comm), seconds)
    except asyncio.TimeoutError:
        comm.abort()
        raise silence from None
    except BaseException:
        comm.abort()
        raise
    return comm


async def shake_hands(comm: Any) -> None:
    """Exchange with the other end what both can do, as Dask does."""
    comm.local_info = comm.handshake_info()
    await comm.write(comm.local_info)
    comm.remote_info = await comm.read()
    comm.remote_info["address"] = comm.peer_address
    comm.local_info["address"] = comm.local_address
    comm.handshake_options = comm.handshake_configuration(comm.local_info, comm.remote_info)


async def listens(address: str) -> bool | None:
    """Whether somebody listens where a node did; None: nobody says.

    Where nobody listens its machine has said so: the process is dead.
    """
    host, port = get_address_host_port(address)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _PROBE)
    except ConnectionRefusedError:
        return False
    except (OSError, asyncio.TimeoutError):
        return None
    writer.close()
    return True


__all__ = ["connect", "listens", "shake_hands"]
