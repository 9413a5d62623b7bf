"""A small process that outlives the pool's: it kills what jobs forked once that one is dead, and
sends the signals that the pool's process has lost the right to send (after a ``setuid``).

Run as a script of its own (``python -I -S guard.py PARENT_PID``); imports nothing of the package.
Standard input is a stream socket. It reads lines from it: ``+GROUP`` and ``-GROUP``, the process
groups of the workers, and ``!PID SIGNAL``, a wish, with which a socket for the answer may come:
that is an errno in decimals, 0 where the signal was sent. A negative PID is a group.

When the parent dies it sends SIGKILL to the groups it knows then. The death is seen through a
pidfd: the input's end may come late, while a fork of the parent has it open. Where the input ends,
and groups are left, but the parent lives, that has called exec(3): nobody will say what becomes of
these groups, so they are killed at once, before their numbers can be somebody else's.

It may have more rights than the parent has by then. So it takes in no group but that of a child of
the parent's, and signals nothing but these children, their groups, and what is below them.
"""

import _socket
import contextlib
import errno
import os
import select
import signal
import sys

_ROOM = 65536  # bytes that are read at a time
_DESCRIPTOR = 4  # bytes: an int of C
_MOST = 4  # descriptors that come at a time: one, in fact


class Guard:
    """What it knows, and does.

    Args:
        parent: The process that it is for.
        link: Where the lines come from.
    """

    def __init__(self, parent: int, link: _socket.socket) -> None:
        self.groups: set[int] = set()
        self.at_end = False  # of the input
        self._parent = parent
        self._link = link
        self._rest = b""

    def read(self) -> None:
        """Take in, and do, all that the parent has said."""
        size = _socket.CMSG_SPACE(_MOST * _DESCRIPTOR)
        flags = _socket.MSG_DONTWAIT | getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
        while not self.at_end:
            try:
                data, ancillary, _, _ = self._link.recvmsg(_ROOM, size, flags)
            except BlockingIOError:
                return
            except OSError:  # ECONNRESET: it was killed
                data, ancillary = b"", []
            fds = [
                int.from_bytes(content[place : place + _DESCRIPTOR], sys.byteorder)
                for _, _, content in ancillary
                for place in range(0, len(content), _DESCRIPTOR)
            ]
            self.at_end = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            code = errno.EINVAL
            for line in lines:
                with contextlib.suppress(ValueError, IndexError):
                    code = self._obey(line)
            # What comes with a descriptor ends with the line that it belongs to (unix(7)).
            for fd in fds:
                with contextlib.suppress(OSError):  # it was not waited for
                    os.write(fd, b"%d" % code)
                os.close(fd)

    def _obey(self, line: bytes) -> int:
        words = line[1:].split()
        number = int(words[0])
        if line[:1] == b"+":
            if _parent_of(number) in (self._parent, None):
                self.groups.add(number)
        elif line[:1] == b"-":
            self.groups.discard(number)
        else:
            return self._signal(number, int(words[1]))
        return 0

    def _signal(self, pid: int, number: int) -> int:
        place: int | None = abs(pid)
        while pid > 0 and place and place not in self.groups:
            place = _parent_of(place)
        if place not in self.groups:
            return errno.EPERM
        try:
            os.kill(pid, number)
        except OSError as error:
            return error.errno or errno.EPERM
        return 0

    def kill_groups(self) -> None:
        """End every process of the groups."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def kill_own_groups(self) -> None:
        """The same while the parent lives, where one of the numbers may be another's by now.

        A number is nobody else's while its group has a member, and a leader that is dead, but not
        reaped yet, is one. So only one whose leader is no child of the parent's is another's.
        """
        self.groups = {g for g in self.groups if _parent_of(g) in (self._parent, None)}
        self.kill_groups()


def main(parent: int) -> None:
    """Watch until the parent dies, or closes our input."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:  # noqa: PTH123
        name.write(NAME)
    guard = Guard(parent, _socket.socket(fileno=0))
    poller = select.poll()
    poller.register(0, select.POLLIN)
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # it is dead already
            poller.register(os.pidfd_open(parent), select.POLLIN)
    while os.getppid() == parent and not guard.at_end:
        poller.poll()
        guard.read()
    guard.read()  # what it said last
    if os.getppid() == parent:
        guard.kill_own_groups()
    else:
        guard.kill_groups()


NAME = "primitive_guard"  # as ps and top show it: 15 bytes at most


def _parent_of(pid: int) -> int | None:
    """Its parent; None if there is no such process, or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib: it is dear
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    main(int(sys.argv[1]))
    os._exit(0)  # its pool waits for it: nothing is left that an interpreter's end would do
