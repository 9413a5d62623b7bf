"""Networks for tests: a hub and machines around it, each a network namespace with links to cut."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_FOLDER = Path("/run/netns")
_PREFIX = "primitive-jobs"
_NEWNET = 0x40000000  # CLONE_NEWNET: <linux/sched.h>
HUB = "10.77.0.1"
"""Where the hub is reached from everywhere."""


class NoNetwork(Exception):
    """This machine does not let us make one."""


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetwork(f"{command}: {done.stderr.strip()}")


class Network:
    """A hub, and as many machines, each with a link of its own to it.

    Machine 1 is reached at 10.77.1.2, and so on.
    """

    def __init__(self, machines: int) -> None:
        self._names = [f"{_PREFIX}-{os.getpid()}-{n}" for n in range(machines + 1)]

    def open(self) -> None:
        """Make it; raises NoNetwork."""
        hub = self._names[0]
        for name in self._names:
            _run(f"ip netns add {name}")
            _run(f"ip -n {name} link set lo up")
        _run(f"ip -n {hub} addr add {HUB}/32 dev lo")
        for n, name in enumerate(self._names[1:], 1):
            _run(f"ip link add to{n} netns {hub} type veth peer name out netns {name}")
            _run(f"ip -n {hub} addr add 10.77.{n}.1/24 dev to{n}")
            _run(f"ip -n {name} addr add 10.77.{n}.2/24 dev out")
            _run(f"ip -n {hub} link set to{n} up")
            _run(f"ip -n {name} link set out up")
            _run(f"ip -n {name} route add default via 10.77.{n}.1")

    def close(self) -> None:
        for name in self._names:
            with contextlib.suppress(NoNetwork):
                _run(f"ip netns del {name}")

    def cut(self, machine: int, how: str) -> None:
        """Cut a machine off: its link is ``down``, or packets ``to`` or ``from`` it are lost."""
        lossy = "root tbf rate 8kbit burst 20 limit 20"  # no packet is as small as that
        match how:
            case "down":
                _run(f"ip -n {self._names[0]} link set to{machine} down")
            case "to":
                _run(f"tc -n {self._names[0]} qdisc replace dev to{machine} {lossy}")
            case "from":
                _run(f"tc -n {self._names[machine]} qdisc replace dev out {lossy}")

    def mend(self, machine: int, how: str) -> None:
        """Undo `cut`."""
        match how:
            case "down":
                _run(f"ip -n {self._names[0]} link set to{machine} up")
            case "to":
                _run(f"tc -n {self._names[0]} qdisc del dev to{machine} root")
            case "from":
                _run(f"tc -n {self._names[machine]} qdisc del dev out root")

    def at(self, machine: int, call: Callable[[], T], seconds: float = 80.0) -> T:
        """Call something on a machine, 0 for the hub; what it starts is there, threads, too."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                fd = os.open(_FOLDER / self._names[machine], os.O_RDONLY)
                try:
                    if libc.setns(fd, _NEWNET):
                        raise NoNetwork(os.strerror(ctypes.get_errno()))
                finally:
                    os.close(fd)
                results.append(call())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(seconds)
        assert not thread.is_alive(), "it takes too long"
        if errors:
            raise errors[0]
        return results[0]


@contextlib.contextmanager
def network(machines: int) -> Iterator[Network]:
    """Have a network; raises NoNetwork where this is not root, or the system refuses."""
    if os.geteuid():
        raise NoNetwork("only root makes network namespaces")
    _sweep()
    made = Network(machines)
    try:
        try:
            made.open()
        except FileNotFoundError as error:
            raise NoNetwork(f"there is no command {error.filename}") from error
        yield made
    finally:
        made.close()


def _sweep() -> None:
    """Remove what a test run has left that was killed."""
    for path in _FOLDER.glob(f"{_PREFIX}-*"):
        pid = path.name.removeprefix(f"{_PREFIX}-").partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(NoNetwork, FileNotFoundError):
                _run(f"ip netns del {path.name}")


__all__ = ["HUB", "Network", "NoNetwork", "network"]
