"""A small process that outlives the pool's: it kills what jobs forked once that one is dead, and
sends the signals that the pool's process has lost the right to send (after a ``setuid``).

Run as a script of its own (``guard.py PARENT_PID``, with the options -I, -S and -B), in a session
of its own or, for the sake of Ctrl-Z, in the parent's group; imports nothing of the package.
Standard input is a stream socket. It reads lines from it: ``+GROUP`` and ``-GROUP``, the process
groups of the workers; ``=GROUP NANOSECONDS``, until when such a group has a lease; and
``!PID SIGNAL``, a wish, with which a socket for the answer may come: that is an errno in decimals,
0 where the signal was sent. A negative PID is a group.

When the parent dies it sends SIGKILL to the groups it knows then. The death is seen through a
pidfd: the input's end may come late, while a fork of the parent has it open; and it may come early,
since a process that dies closes its files first. Where the input ends, and groups are left, but the
parent lives, that has called exec(3): nobody will say what becomes of these groups, so they are
killed at once, before their numbers can be somebody else's.

A group whose lease ends is killed with all that is below it, whatever the parent does: it may be
stopped, or hang. The moment is one of `lease_clock`. A later line moves it, as long as it has not
come. The group stays known until ``-GROUP``, which removes its lease, too; without a lease there is
no such moment.

It may have more rights than the parent has by then. So it takes in no group but that of a child of
the parent's, and signals nothing but these children, their groups, and what is below them.

It leads a session of its own, so that what is sent to the parent's group, as SIGKILL, does not
reach it. If it was in that group first, a fork of it, the listener, stays there and tells of each
SIGTSTP (Ctrl-Z). Once the parent has stopped, the guard stops the workers, and
continues them when the parent goes on. The parent itself handles no signal: a handler would have to
wait for its main thread, which may be waiting for a child that the same Ctrl-Z has stopped.
"""

import _socket
import errno
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:  # without the enums: each program waits for this one's start, before its first worker's
    import _signal as signal

_ROOM = 65536  # bytes that are read at a time
_DESCRIPTOR = 4  # bytes: an int of C
_MOST = 4  # descriptors that come at a time: one, in fact
_STOPS_WITHIN = 4.0  # s after SIGTSTP, if the parent stops at all: it may tidy up first
_STOPS_SOON = 1.0  # s after SIGTSTP, as a rule
_STOP_PAUSE = 0.01  # s between two looks meanwhile
_LATE_STOP_PAUSE = 0.25  # s between two later ones
_ARRIVAL = 0.5  # s that a worker may take that was just being started when the parent stopped
_END_PAUSE = 0.05  # s between two looks whether a stopped parent goes on
_PASSES = 5  # over all processes, for those that were forked during the one before
_LEASE_LOOK = 0.5  # s at most between two looks at leases: poll(2) does not count a machine's sleep
_PURSUIT = 1.0  # s in which those are followed that fork faster than they can be stopped
_PF_EXITING = 0x4  # in the flags of proc_pid_stat(5): <linux/sched.h>


class _Suppress:
    """`contextlib.suppress`, whose module takes as long to be imported as all the rest here."""

    def __init__(self, *errors: type[BaseException]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._errors)


class Guard:
    """What it knows, and does.

    Args:
        parent: The process that it is for.
        link: Where the lines come from.
    """

    def __init__(self, parent: int, link: _socket.socket) -> None:
        self.groups: set[int] = set()
        self.leases: dict[int, int] = {}  # by group, until when: ns of the clock for leases
        self.at_end = False  # of the input
        self.parent = parent
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
                with _Suppress(ValueError, IndexError):
                    code = self._obey(line)
            # What comes with a descriptor ends with the line that it belongs to (unix(7)).
            for fd in fds:
                with _Suppress(OSError):  # it was not waited for
                    os.write(fd, b"%d" % code)
                os.close(fd)

    def suspended(self) -> None:
        """Tell the parent that its workers are stopped."""
        self._tell("<")

    def continued(self) -> None:
        """Tell the parent that its workers go on."""
        self._tell(">")

    def _tell(self, word: str) -> None:
        with _Suppress(OSError):  # it has not listened for very long
            line = f"{word}{time.monotonic()!r}\n"
            self._link.send(line.encode(), _socket.MSG_DONTWAIT | _QUIET)

    def _obey(self, line: bytes) -> int:
        words = line[1:].split()
        number = int(words[0])
        if line[:1] == b"+":
            if _parent_of(number) in (self.parent, None):
                self.groups.add(number)
        elif line[:1] == b"-":
            self.groups.discard(number)
            self.leases.pop(number, None)
        elif line[:1] == b"=":
            self.end_leases()  # what has ended does not come back
            if number in self.groups:
                self.leases[number] = int(words[1])
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

    def patience(self) -> float | None:
        """Return in how many milliseconds `end_leases` is due; None: there is no lease."""
        if not self.leases:
            return None
        left = min(self.leases.values()) - time.clock_gettime_ns(_LEASE_CLOCK)
        return max(0.0, min(left / 1e6, _LEASE_LOOK * 1000))

    def end_leases(self) -> None:
        """Kill the groups whose leases have ended, and all that is below them.

        One whose leader is no child of the parent's is left out: its number is another's by now, or
        the parent is dying, and `kill_groups` follows.
        """
        now = time.clock_gettime_ns(_LEASE_CLOCK)
        over = [group for group, end in self.leases.items() if end <= now]
        for group in over:
            del self.leases[group]
        kill_trees({group for group in over if _parent_of(group) in (self.parent, None)})

    def kill_groups(self) -> None:
        """End every process of the groups, at the end of the parent or of the input.

        While the parent lives one of the numbers may be another's by now: a number is nobody else's
        while its group has a member, and a leader that is dead, but not reaped yet, is one. So only
        one whose leader is no child of the parent's is another's. But if the parent is dying,
        its children are taken from it one by one, and it reaps none of them.
        """
        parent = process_of(self.parent)  # first: what has died by now is nobody's parent
        if os.getppid() == self.parent and parent is not None and not parent.exits:
            self.groups = {g for g in self.groups if _parent_of(g) in (self.parent, None)}
        _send_groups(self.groups, signal.SIGKILL)


# --- the clock for leases -------------------------------------------------------------------------


def _find_lease_clock() -> int:
    number: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    try:
        time.clock_gettime(number)
    except OSError:
        return time.CLOCK_MONOTONIC
    return number


# It counts the time in which this machine sleeps, as CLOCK_MONOTONIC does not: that time passes for
# whoever waits on another machine until the lease must have ended.
_LEASE_CLOCK = _find_lease_clock()


def lease_clock() -> float:
    """Return the time of the clock for leases, in seconds since the machine was started.

    That is CLOCK_BOOTTIME, and CLOCK_MONOTONIC where Python or the system does not have it.
    """
    return time.clock_gettime(_LEASE_CLOCK)


# --- processes ------------------------------------------------------------------------------------

NAME = "primitive_guard"  # as ps and top show it: 15 bytes at most
LISTENER_NAME = "primitive_tstp"
WORKER_NAME = "primitive_jobs"  # see `_wire.notes`


def _call_self(name: str) -> None:
    with _Suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(name)


class Process:
    """What the system says of a process."""

    __slots__ = ("began", "exits", "group", "name", "parent", "pid", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        head, _, tail = stat.rpartition(b")")  # its name may hold anything
        words = tail.split()
        self.pid = pid
        self.name = head.partition(b"(")[2].decode(errors="replace")
        self.state = words[0].decode()
        self.parent, self.group = int(words[1]), int(words[2])
        self.exits = bool(int(words[6]) & _PF_EXITING)  # it is dying, or dead
        self.began = int(words[19])  # with the pid it is nobody else's

    @property
    def runs(self) -> bool:
        """Whether it is neither dead nor stopped, be it by a debugger."""
        return self.state not in "TtZXx"


def process_of(pid: int, thread: str = "") -> Process | None:
    """Return what is known of a process; None if there is none, or the system does not tell."""
    try:
        with open(f"/proc/{pid}/{thread}stat", "rb") as file:  # noqa: PTH123 - no pathlib: it is dear
            return Process(pid, file.read())
    except (OSError, ValueError, IndexError):
        return None


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal.

    One thread tells, since all stop together; but one that waits for a child that is stopped
    between vfork(2) and execve(2) is said to sleep.
    """
    with _Suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            found = process_of(pid, f"task/{thread}/")
            if found is not None and found.state == "T":
                return True
    return False


def below(parent: int | None, groups: set[int]) -> list[Process]:
    """Return the workers of a program and all that is below them.

    Args:
        parent: The program; None: only what is in, or below, these groups.
        groups: Those of its workers that are known; others go by their name.
    """
    with _Suppress(OSError):
        looked = [process_of(int(name)) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
        rest = [process for process in looked if process is not None]
        found = [
            process
            for process in rest
            if process.group in groups
            or (process.parent == parent and process.name.startswith(WORKER_NAME))
        ]
        for process in found:  # it grows
            found += [p for p in rest if p.parent == process.pid and p not in found]
        return found
    return []


def _parent_of(pid: int) -> int | None:
    process = process_of(pid)
    return None if process is None else process.parent


def kill_trees(groups: set[int]) -> None:
    """Send SIGKILL to groups and to all that is below them, whatever its group or session is.

    All of them are stopped first: what is stopped forks nothing, and as long as nothing has died
    nothing that is below has another parent than before.
    """
    if not groups:
        return
    _send_groups(groups, signal.SIGSTOP)
    found: list[Process] = []
    known: set[tuple[int, int]] = set()
    end = time.monotonic() + _PURSUIT
    while time.monotonic() < end:
        new = [p for p in below(None, groups) if (p.pid, p.began) not in known]
        for process in new:
            known.add((process.pid, process.began))
            _send(process, signal.SIGSTOP)
        found += new
        if not new:
            break
    for process in found:  # each by itself, too: killpg(2) succeeds if it has killed one
        _send(process, signal.SIGKILL)
    _send_groups(groups, signal.SIGKILL)


class Suspension:
    """What is stopped as long as the parent is.

    The guard of a pool that a job has is not stopped. It is told, by signals, so that the limits of
    that pool's jobs can leave the time out, too.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._signalled: float | None = None  # when SIGTSTP came; the parent may stop yet
        self._stopped: list[Process] | None = None  # by us; None: the parent is not stopped
        self._told: list[Process] = []  # guards
        self._complete_at = 0.0

    def patience(self) -> float | None:
        """Return in how many milliseconds the next `step` is due; None: when a signal comes."""
        if self._stopped is not None:
            return _END_PAUSE * 1000
        if self._signalled is None:
            return None
        late = time.monotonic() > self._signalled + _STOPS_SOON
        return (_LATE_STOP_PAUSE if late else _STOP_PAUSE) * 1000

    def step(self, *, signalled: bool) -> None:
        """Stop the workers, or continue them, if the parent has stopped, or goes on."""
        now = time.monotonic()
        if signalled:
            self._signalled = now
        if self._stopped is None and self._signalled is None:
            return
        parent_is_stopped = is_stopped(self._guard.parent)
        if self._stopped is not None and not parent_is_stopped:
            self._go_on(self._stopped)
        elif self._stopped is not None:
            if now < self._complete_at:
                self._stop_more(self._stopped)
        elif parent_is_stopped:
            # Told first: whoever finds a worker stopped finds why, see `guardian.Guard.stops`.
            self._guard.suspended()
            self._signalled, self._stopped, self._told = None, [], []
            self._complete_at = now + _ARRIVAL
            self._stop_more(self._stopped)
        elif self._signalled is not None and now > self._signalled + _STOPS_WITHIN:
            self._signalled = None

    def _stop_more(self, stopped: list[Process]) -> None:
        for _ in range(_PASSES):
            known = {process.pid for process in (*stopped, *self._told)}
            found = below(self._guard.parent, self._guard.groups)
            new = [p for p in found if p.runs and p.pid not in known]
            for process in new:
                is_guard = process.name == NAME
                (self._told if is_guard else stopped).append(process)
                _send(process, signal.SIGUSR1 if is_guard else signal.SIGSTOP)
            if not new:
                return

    def _go_on(self, stopped: list[Process]) -> None:
        """Continue what was stopped here; what others have stopped before stays so."""
        self._guard.continued()
        self._stopped = None
        for process in self._told:  # before those who look at what they are told
            _send(process, signal.SIGUSR2)
        for process in stopped:
            _send(process, signal.SIGCONT)


def _send(process: Process, number: int) -> None:
    now = process_of(process.pid)
    if now is not None and now.began == process.began:
        with _Suppress(OSError):
            os.kill(process.pid, number)


def _send_groups(groups: set[int], number: int) -> None:
    for group in groups:
        with _Suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def main(parent: int) -> None:
    """Watch until the parent dies, or closes our input."""
    listener = Listener()
    with _Suppress(OSError):  # it leads one already
        os.setsid()
    guard = Guard(parent, _socket.socket(fileno=0))
    # From the guard of a program that this one's is a worker of.
    signal.signal(signal.SIGUSR1, lambda *_: guard.suspended())
    signal.signal(signal.SIGUSR2, lambda *_: guard.continued())
    # Any thread of the parent may have started it; most of those of a pool block all signals.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    _call_self(NAME)
    suspension = Suspension(guard)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    if listener.fd is not None:
        poller.register(listener.fd, select.POLLIN)
        # First: when the parent has died, nobody can tell whose children the groups' leaders were.
        guard.read()
        suspension.step(signalled=True)  # one may have come before there was a listener
    if hasattr(os, "pidfd_open"):
        with _Suppress(OSError):  # it is dead already
            poller.register(os.pidfd_open(parent), select.POLLIN)
    while os.getppid() == parent and not guard.at_end:
        due = [when for when in (suspension.patience(), guard.patience()) if when is not None]
        ready = [fd for fd, _ in poller.poll(min(due, default=None))]
        guard.read()
        guard.end_leases()
        signals = b""
        if listener.fd is not None and listener.fd in ready:
            signals = os.read(listener.fd, _ROOM)
            if not signals:  # somebody killed it
                poller.unregister(listener.fd)
                listener.end()
        suspension.step(signalled=bool(signals))
    guard.read()  # what it said last
    guard.kill_groups()
    suspension.step(signalled=False)  # what left those groups is not killed, nor stopped
    listener.end()


class Listener:
    """A process that stays in the parent's group, and writes a byte at each SIGTSTP.

    Attributes:
        fd: Where the bytes come from; None where no terminal could send the signal, or no process
            is to be had.
    """

    def __init__(self) -> None:
        self.fd: int | None = None
        self._pid = 0
        if os.getsid(0) == os.getpid():
            return  # it was started away from the parent's group, as there is no terminal
        ours, theirs = _socket.socketpair()
        try:
            self._pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            return
        if self._pid == 0:
            try:
                ours.close()
                os.close(0)  # or the parent would not see the guard's end
                _listen(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self.fd = ours.detach()

    def end(self) -> None:
        """End it, if it is there, and leave no zombie to the parent."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
            with _Suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)


def _listen(link: _socket.socket) -> None:
    """Be the listener until the guard is gone."""
    _call_self(LISTENER_NAME)
    link.setblocking(False)
    signal.set_wakeup_fd(link.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTSTP, lambda *_: None)
    # Of what else is sent to the group nothing concerns it.
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGTSTP})
    poller = select.poll()
    poller.register(link, 0)  # its end comes without being asked for
    poller.poll()


_QUIET: int = getattr(_socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE


if __name__ == "__main__":
    # What a terminal sends to the group that it is in till now.
    ignored = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    main(int(sys.argv[1]))
    os._exit(0)  # its pool waits for it: nothing is left that an interpreter's end would do
