"""`Watch`: the pools of all programs of this user, and what each has last said."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass, field
from typing import Any

from .link import Answer, Link, LinkLost, Stranger
from .processes import Loads, command_of, state_of
from .sockets import find

_SILENT = 2.0  # s without an answer, after which a program is said not to answer


@dataclass
class Pool:
    """One pool that can be seen.

    Attributes:
        link: To it; None: it cannot be connected to.
        head: What it has last said of itself.
        rows: Its jobs, as it has last said.
        at: When that was, on the monotonic clock.
        trouble: Why nothing newer is known; "": nothing is wrong.
    """

    pid: int
    link: Link | None
    head: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    at: float = 0.0
    trouble: str = ""


@dataclass
class Program:
    """One process with pools.

    Attributes:
        pid: Its process id.
        command: How it was started.
        trouble: Why it says nothing; "": nothing is wrong.
        pools: Its pools.
    """

    pid: int
    command: str
    trouble: str
    pools: list[Pool]

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each kind, in all its pools."""
        total: dict[str, int] = {}
        for pool in self.pools:
            for name, count in pool.head.get("counts", {}).items():
                total[name] = total.get(name, 0) + count
        return total


class Watch:
    """Who is connected to all pools that can be found."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}  # by the names of their sockets
        self._strangers: set[str] = set()  # names that somebody else listens at
        self._commands: dict[int, str] = {}
        self.loads = Loads()

    def ask(self) -> None:
        """Look for new pools, and ask all that have answered; raises OSError without /proc."""
        there = {found.name: found for found in find()}
        for name in self._pools.keys() - there.keys():
            self._drop(name)
        self._strangers &= there.keys()
        for name in there.keys() - self._strangers:
            found = there[name]
            pool = self._pools.setdefault(name, Pool(found.pid, None))
            try:
                if pool.link is None:
                    pool.link = Link(found)
                if pool.link.asked_at is None:
                    pool.link.ask("snapshot")
            except Stranger:
                self._strangers.add(name)
                self._drop(name)
            except LinkLost as error:
                self._lost(pool, str(error))

    def hear(self, seconds: float, *others: Any) -> list[Any]:
        """Take in what is answered, and return those of the others that are readable.

        It returns when something is, or after so many seconds.
        """
        poller = select.poll()
        waiting: dict[int, Any] = {each.fileno(): each for each in others}
        waiting.update((link.fileno(), pool) for pool, link in self._asked())
        for fd in waiting:
            poller.register(fd, select.POLLIN)
        ready = [waiting[fd] for fd, _ in poller.poll(max(0.0, seconds) * 1000)]
        for pool in ready:
            if isinstance(pool, Pool):
                self._receive(pool)
        return [each for each in ready if not isinstance(each, Pool)]

    def hear_all(self, seconds: float) -> None:
        """Wait until all have answered, at most so many seconds."""
        end = time.monotonic() + seconds
        while self._asked() and (left := end - time.monotonic()) > 0:
            self.hear(left)

    def _asked(self) -> list[tuple[Pool, Link]]:
        links = [(pool, pool.link) for pool in self._pools.values() if pool.link is not None]
        return [each for each in links if each[1].asked_at is not None]

    def _receive(self, pool: Pool) -> None:
        assert pool.link is not None, "it was asked"
        try:
            answer = pool.link.receive()
        except LinkLost as error:
            self._lost(pool, str(error))
            return
        if answer is not None:
            self._take_in(pool, answer)

    def _take_in(self, pool: Pool, answer: Answer) -> None:
        pool.trouble = str(answer.head.get("error", ""))
        if not pool.trouble:
            pool.head, pool.rows, pool.at = answer.head, answer.rows, time.monotonic()

    def _lost(self, pool: Pool, why: str) -> None:
        if pool.link is not None:
            pool.link.close()
        pool.link, pool.trouble = None, pool.trouble or why

    def _drop(self, name: str) -> None:
        pool = self._pools.pop(name)
        self._commands.pop(pool.pid, None)  # the number may be another program's soon
        if pool.link is not None:
            pool.link.close()

    def programs(self) -> list[Program]:
        """Return the programs, each with its pools, by their process ids."""
        found: dict[int, Program] = {}
        for pool in self._pools.values():
            program = found.get(pool.pid)
            if program is None:
                program = found[pool.pid] = Program(pool.pid, self._command(pool.pid), "", [])
            program.pools.append(pool)
            program.trouble = program.trouble or _trouble(pool)
        return [found[pid] for pid in sorted(found)]

    def _command(self, pid: int) -> str:
        if not self._commands.get(pid):
            self._commands[pid] = command_of(pid)
        return self._commands[pid]

    def close(self) -> None:
        """End all connections."""
        for name in list(self._pools):
            self._drop(name)


def _trouble(pool: Pool) -> str:
    state = state_of(pool.pid)
    if state:
        return state
    asked = None if pool.link is None else pool.link.asked_at
    if asked is not None and time.monotonic() - asked > _SILENT:
        return f"no answer for {time.monotonic() - asked:.0f} s"
    return pool.trouble


def unlisted(programs: list[Program]) -> int:
    """How many queued jobs there are beside those that programs have told of one by one."""
    pools = [pool for program in programs for pool in program.pools]
    queued: int = sum(pool.head.get("counts", {}).get("queued", 0) for pool in pools)
    listed: int = sum(job.get("status") == "QUEUED" for pool in pools for job in pool.rows)
    return max(0, queued - listed)


__all__ = ["Pool", "Program", "Watch", "unlisted"]
