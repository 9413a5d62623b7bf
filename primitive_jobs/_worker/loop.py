"""The loop inside a worker process: receive a call, make it, answer; imports almost nothing.

The process leads a session of its own, so that Ctrl-C in a terminal never reaches it and its
whole group can be killed; it is the reaper of orphans below it, so that none escapes its kill; and
it gets SIGKILL from the kernel when its pool's process dies.
"""

from __future__ import annotations

import _imp
import _signal as signal  # type: ignore[import-not-found]
import atexit
import contextlib
import faulthandler
import mmap
import os
import resource
import struct
import sys
from functools import partial
from time import monotonic_ns
from types import MethodType

from .._common import naming
from .._wire import facts, failures, nesting, pickling
from .._wire.channel import ChannelClosed, PacketChannel, StreamChannel, attach
from .._wire.leftovers import (
    Leftovers,
    may_have_replaced_descriptors,
    stop_timers,
    unblock_signals,
    watch,
)
from .._wire.messages import Filed, Kind, Lent, Message, told_duration
from .._wire.notes import (
    INITIALIZING,
    LINK_LOST,
    NAME,
    NOTES,
    NUMBER,
    PAGE_SIZE,
    PLACE,
    STACK_SIGNAL,
    place_at,
)
from .._wire.parcel import HAVE_PACKETS, Content, map_file, pack
from .._wire.present import Again, leave, now
from . import orphans
from .imports import Imports, import_them
from .meter import Meter
from .stacks import answer_looks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Any

    from .._wire.kept_globals import Keeper

# `_signal` is what the module `signal` wraps so that it returns enums: that takes up to 2 us a
# call, of which there are several for each job, and some milliseconds to be imported.

_NOTE = struct.Struct("QQ")  # the first two of `NOTES`
_LONG = 1000  # us
_SIGTERM_EXIT = 128 + signal.SIGTERM
_MOST_DESCRIPTORS = 1024  # what a process may have as a rule; the kernel's table grows with it
_OURS = (signal.SIGTERM, signal.SIGINT)
_RUN = int(Kind.RUN)


def main(
    *,
    channel_fd: int,
    page_fd: int,
    parent_pid: int,
    cpu_share: int,
    depth: int,
    preload: tuple[str, ...],
    initializer: tuple[bytes, bool] | None,
    title_from: str | None,
    log_levels: tuple[int, dict[str, int]] | None,
    learned: tuple[str, ...],
) -> None:
    """Be a worker until told to leave, or until the pool is gone.

    Args:
        channel_fd: Its end of the link.
        page_fd: The file for its notes, shared with the pool.
        parent_pid: Of the pool's process.
        cpu_share: How many workers a pool nested in this one should have.
        depth: How deep it is nested in other workers, itself included.
        preload: Modules to import.
        initializer: What was kept aside of it, pickled, and whether it came by value; None where
            there is none.
        title_from: The file of setproctitle's extension; None: there is none.
        log_levels: What the program's `logging` lets pass; None: it does not want our records.
        learned: Modules that jobs of other workers have imported: so they are likely to be needed.
    """
    nesting.cpu_share, nesting.depth = cpu_share, depth
    _settle_in(parent_pid)
    page = map_file(page_fd, PAGE_SIZE, mmap.MAP_SHARED)
    # That of the pool's own process: Linux lets it survive fork and exec (getrusage(2)).
    NOTES.pack_into(page, 0, 0, 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    _record_stacks(page_fd)
    answer_looks(page, out_of_reach)
    watch()
    # Not too high: it is for a job that may have lowered the limit, too.
    pickling.reserve.append(out_of_reach(os.open(os.devnull, os.O_RDONLY), most=64))
    worker = _Worker(attach(channel_fd), page, page_fd)
    if title_from is not None:
        worker.show_job(title_from)
    if log_levels is not None:
        from . import log_socket  # which most pools do without

        log_socket.open_for(log_levels, out_of_reach)
    if worker.initialize(preload, initializer, learned):
        worker.serve()
    _leave()


def out_of_reach(fd: int, most: int = _MOST_DESCRIPTORS) -> int:
    """Move a descriptor to a number right below ``most``, or lower where the limit is, or others
    are there; have no program inherit it; return the number.

    What a job does to numbers that it takes for its own, which are low as a rule, harms nothing
    then.
    """
    with contextlib.suppress(OSError):  # a sandbox refuses it
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            most = min(soft, most)
    number = most - 1
    while number > fd and _is_open(number):
        number -= 1
    if number > fd:
        with contextlib.suppress(OSError):  # no number so high may be had
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
            return number
    os.set_inheritable(fd, False)
    return fd


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True


def _settle_in(parent_pid: int) -> None:
    with contextlib.suppress(OSError):  # it leads a group already
        os.setsid()
    if sys.platform == "linux":
        from .._wire import libc

        libc.settle_in(NAME)
        orphans.note_starts()
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(0)


def _record_stacks(page_fd: int) -> None:
    """Have the Python stack written where the pool can read it: at a fatal signal, or asked to."""
    os.lseek(page_fd, PAGE_SIZE, os.SEEK_SET)
    if STACK_SIGNAL is not None:  # answered in C: a job may be in a call that holds the GIL
        from .._wire import libc

        # The handler that comes after ours never returns: else the signal would make a call of the
        # job's, such as C's sleep(), come back early, and the job go on with a wrong result.
        libc.pause_at(STACK_SIGNAL)
    _write_stacks_to(page_fd)
    os.register_at_fork(after_in_child=faulthandler.disable)  # a child's crash is its own affair
    os.register_at_fork(after_in_child=leave)  # as is what it reports


def _write_stacks_to(page_fd: int) -> None:
    if sys.version_info >= (3, 14):  # of which each line would be one of the error's text
        faulthandler.enable(file=page_fd, all_threads=False, c_stack=False)
    else:
        faulthandler.enable(file=page_fd, all_threads=False)
    if STACK_SIGNAL is not None:
        faulthandler.register(STACK_SIGNAL, file=page_fd, all_threads=False, chain=True)


def _leave() -> None:
    """End as an interpreter does, without taking its modules apart, which nobody can notice."""
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        with contextlib.suppress(Exception):
            threading._shutdown()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    _flush()
    os._exit(0)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - a job may have closed, replaced or deleted it
        pass
    try:
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        pass


def _identity(fd: int) -> tuple[int, ...]:
    """What tells a channel from all that a job may put in its place; nothing where it is closed."""
    try:
        return os.fstat(fd)[1:3]  # inode and device
    except OSError:
        return ()


def _tell_raised(text: bytes, told: dict[int, bytes]) -> None:
    told[facts.RAISED] = text


class _Leave(BaseException):
    """SIGTERM came while no job was running."""


class _Worker:
    """The state of the loop."""

    def __init__(
        self, channel: PacketChannel | StreamChannel, page: memoryview, page_fd: int
    ) -> None:
        self._channel = channel
        self._packets = HAVE_PACKETS and isinstance(channel, PacketChannel)
        self._page = page
        self._page_fd = page_fd
        self._pid = os.getpid()
        self._note_state()
        self._in_job = False
        self._idle = False
        self._initialized = False
        self._told_to_leave = False
        self._unfit = False  # shared data could not be received
        self._last = 0  # the last attempt that was begun
        self._title: Callable[[str], None] | None = None
        self._again: Again | None = None  # what came for the next one
        now.page, now.lend = page, self._lend
        self._meter = Meter(page)
        self._imports = Imports()
        self._clock = monotonic_ns  # the true one, whatever a job puts into its place in modules
        self._link = _identity(channel.fd)
        self._on_signal: Callable[[int, FrameType | None], None] = MethodType(
            _Worker._handle_signal, self
        )
        self._take_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _note_state(self, *, initialized: bool = False) -> None:
        """Note what each job shall find, whatever the one before it has left."""
        self._recursion_limit = sys.getrecursionlimit()
        self._traced_by, self._profiled_by = sys.gettrace(), sys.getprofile()
        # An initializer may have had the stack of a crash go elsewhere.
        write_stacks = None if initialized else partial(_write_stacks_to, self._page_fd)
        self._leftovers = Leftovers(write_stacks)

    # --- signals -----------------------------------------------------------------------------

    def _take_signals(self) -> None:
        """Set our handlers again: a job may have changed them."""
        for number in _OURS:
            if signal.getsignal(number) is not self._on_signal:
                signal.signal(number, self._on_signal)

    def _undo(self) -> None:
        """Take back at once what a job may have left that would strike the loop."""
        self._in_job = False
        # Whatever it left to trace by would see the loop from here on, and the next job.
        if sys.gettrace() is not self._traced_by:
            sys.settrace(self._traced_by)
        if sys.getprofile() is not self._profiled_by:
            sys.setprofile(self._profiled_by)
        faulthandler.cancel_dump_traceback_later()
        stop_timers()
        unblock_signals()

    def _exit_if_forked(self) -> None:
        """End a child that foreign code forked and let return into this loop."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._pid:  # a process that the job forked: do as Python does
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._in_job:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(_SIGTERM_EXIT)
        elif number == signal.SIGTERM:
            self._told_to_leave = True
            if self._idle:
                raise _Leave

    # --- the loop ----------------------------------------------------------------------------

    def show_job(self, extension: str) -> None:
        """Have the process bear the name of the job that it is at, where ps and top look."""
        with contextlib.suppress(Exception):  # it is not needed
            # The name takes the place of the command line alone, not that of the environment, by
            # which others may know whose the process is.
            os.putenv("SPT_NOENV", "1")
            spec: Any = type(sys.__spec__)("setproctitle._setproctitle", None, origin=extension)
            module = _imp.create_dynamic(spec)
            _imp.exec_dynamic(module)
            module.setproctitle(NAME)
            os.unsetenv("SPT_NOENV")
            self._title = module.setproctitle

    def _show(self, job: str = "") -> None:
        assert self._title is not None, "it was asked for"
        with contextlib.suppress(Exception):  # a name that cannot be shown
            title = f"{NAME}: {job}" if job else NAME
            self._title(title.encode("utf-8", "replace").decode().replace("\0", "?"))

    def initialize(
        self,
        preload: tuple[str, ...],
        initializer: tuple[bytes, bool] | None,
        learned: tuple[str, ...],
    ) -> bool:
        """Import and run what comes before the first job; return whether nothing of it raised."""
        keeper: Keeper | None = None
        try:
            if preload or initializer is not None:
                _NOTE.pack_into(self._page, 0, 0, INITIALIZING)
                for name in preload:
                    __import__(name)
                if initializer is not None:
                    from .._wire.initializer import load  # which most pools do without

                    message = self._channel.receive()
                    assert message is not None
                    function, args, keeper = load(message, *initializer)
                    del message
                    function(*args)
                self._exit_if_forked()
                if keeper is not None:
                    keeper.keep()
                self._note_state(initialized=initializer is not None)
                self._undo()
                _NOTE.pack_into(self._page, 0, 0, 0)
                self._meter.begin()
            self._initialized = initializer is not None
            if learned:
                self._learn(learned)
            else:
                self._settle()
            self._channel.send(Kind.READY)
        except ChannelClosed:
            return False
        except BaseException as error:  # noqa: BLE001 - whatever foreign code raises
            self._exit_if_forked()
            self._undo()
            with contextlib.suppress(ChannelClosed):
                content = self._pack(failures.dump_exception(error, skip_frames=1))
                self._channel.send(Kind.INIT_FAILED, 0, content)
            return False
        return True

    def _learn(self, names: Iterable[str]) -> None:
        """Import what jobs of other workers have imported; each job here finds it as it is."""
        import_them(names)
        self._undo()
        self._note_state(initialized=self._initialized)
        self._meter.begin()
        self._settle()

    def _settle(self) -> None:
        """Take what is there now for what no job has brought."""
        self._imports.begin()
        self._take_signals()

    def serve(self) -> None:
        """Answer calls until told to leave."""
        meter = self._meter
        while not self._told_to_leave:
            try:
                self._idle = True
                watched = orphans.may_be() and orphans.watch()
                message = self._channel.receive()
                self._idle = False
                if watched:
                    orphans.unwatch()
            except (ChannelClosed, _Leave, OSError):  # OSError: a job closed the channel
                return
            if message is None:
                return
            if message.kind != _RUN:
                if message.kind == Kind.STOP:
                    return
                self._keep_or_forget(message)
                continue
            attempt = message.attempt
            if attempt <= self._last:
                continue  # its caller and the dispatcher have both sent it
            if message.lost or self._unfit:
                if not self._answer(Kind.REFUSED, attempt):
                    return
                continue
            self._last = now.attempt = attempt
            # In this order: who finds the attempt in its place finds when it began, too; and once
            # it is the last one, all before it have been answered.
            began = now.began = self._clock()
            now.again, self._again = self._again, None
            PLACE.pack_into(self._page, place_at(message.extra), began, attempt)
            _NOTE.pack_into(self._page, 0, attempt, 0)
            calls = [message]
            del message
            kind, content = self._run(calls)
            self._exit_if_forked()
            self._take_signals()
            _flush()
            took = self._clock() - began
            notes = self._end_job(took)
            now.attempt = now.call = 0
            now.again = now.tokens = None
            if not self._answer(kind, attempt, content, told_duration(took // 1000), notes):
                return
            del content
            meter.settle(attempt)
            if self._title is not None:
                self._show()
            self._leftovers.take_back()

    def _end_job(self, took: int) -> bytes:
        """Return what is to be known of the job, which took so many ns, as notes for the pool."""
        told: dict[int, bytes] = {}
        pickling.awaited.clear()  # of a call that could not be unpickled as far as that
        if self._meter.is_long(took):
            told[facts.USAGE] = self._meter.measure(took)
            if self._imports.are_new():  # which takes longer than any that is short
                told[facts.IMPORTED] = self._imports.news()
        elif not now.ending:
            return b""
        for end in now.ending:
            with contextlib.suppress(Exception):
                end(told)
        now.ending.clear()
        return facts.packed(told)

    def _is_cut_off(self, took: int) -> bool:
        """Whether a job that took so many us put something into the place of the channel.

        Nobody would hear of it. The look takes 1 us, so that short jobs which cannot have done it
        by Python's means are spared it.
        """
        may_be = took > _LONG or may_have_replaced_descriptors()
        return may_be and _identity(self._channel.fd) != self._link

    def _answer(
        self,
        kind: Kind,
        attempt: int,
        content: Content | None = None,
        took: int = 0,
        notes: bytes = b"",
    ) -> bool:
        try:
            if self._is_cut_off(took):
                raise ChannelClosed
            self._channel.send(kind, attempt, content, took, notes)
        except ChannelClosed:  # a job closed or replaced it; or the pool is gone
            NUMBER.pack_into(self._page, NUMBER.size, LINK_LOST)
            return False
        except OSError:
            return False
        return True

    def _keep_or_forget(self, message: Message) -> None:
        """Take in what comes ahead of calls, or let shared data go."""
        number = message.attempt
        if message.kind == Kind.FORGET:
            pickling.received.pop(number, None)
        elif message.lost:
            self._unfit = True
        elif message.kind == Kind.AGAIN:
            self._again = Again(message)
        elif message.kind == Kind.GIVEN:
            now.tokens = message.notes
        elif message.kind == Kind.LEARN:
            self._learn(bytes(message.body).decode().split("\n"))
            with contextlib.suppress(ChannelClosed):  # which is seen anyway
                self._channel.send(Kind.READY)
        elif message.kind == Kind.RESULT:
            pickling.awaited[number] = message
        else:
            kept: Any = message
            if type(message) is Lent:
                message.fd = out_of_reach(message.fd)
            elif type(message) is Filed:
                from .._wire.copies import Kept  # which most workers do without

                kept = Kept(message, out_of_reach)
            pickling.received[number] = kept

    def _lend(self, fd: int, what: int) -> None:
        """Send the pool a descriptor of the job's; on whatever thread has the job's turn."""
        self._channel.lend(now.attempt, fd, what)

    def _run(self, calls: list[Message]) -> tuple[Kind, Content]:
        """Make one call. Function, arguments and result are gone when this returns."""
        message = now.message = calls.pop()
        limit = self._recursion_limit
        try:
            self._in_job = True
            try:
                now.about, again = None, now.again
                if again is not None and again.about:
                    now.about = pickling.loads(again.about)
                call = pickling.loads(message.body, message.buffers)
                about, *seeded, function, args, kwargs = call
                now.about = about = now.about or about
                now.message = None
                del call
                if self._title is not None:
                    self._show(about[0])
            except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
                now.message = None
                self._undo()
                return Kind.RAISED, self._pack(failures.dump_unloadable(error))
            del message
            if seeded:
                from .._wire import seeding  # which unseeded pools do without

                seeding.reseed()
            result = function(*args, **kwargs)
            sys.setrecursionlimit(limit)  # here: with a low one no call might be possible
            self._undo()
        except BaseException as error:  # noqa: BLE001 - whatever the job raises
            sys.setrecursionlimit(limit)
            self._undo()
            # Before there is a call nothing raises a TypeError; pyright cannot know.
            if type(error) is TypeError and kwargs:  # pyright: ignore[reportPossiblyUnboundVariable]
                failures.add_option_hint(error, function, kwargs)  # pyright: ignore[reportPossiblyUnboundVariable]
            return self._raised(error)
        try:
            body, buffers = pickling.dumps(result)
            return Kind.RETURNED, self._pack(body, buffers)
        except BaseException as error:  # noqa: BLE001 - whatever pickling raises
            name = naming.call_name(function)
            return Kind.RAISED, self._pack(failures.dump_unpicklable_result(error, result, name))

    def _raised(self, error: BaseException) -> tuple[Kind, Content]:
        """Return what is answered where the job has raised; it may be one of its `retry_on`."""
        about = now.about
        if about is not None and len(about) > 2 and "retry_on" in about[2]:
            from .._wire import retrying  # which most jobs do without

            if retrying.counts(error):
                body, text = retrying.dump_raised(error)
                now.ending.append(partial(_tell_raised, text))
                return Kind.RETRIABLE, self._pack(body)
        return Kind.RAISED, self._pack(failures.dump_exception(error, skip_frames=1))

    def _pack(self, body: bytes, buffers: list[memoryview] | None = None) -> Content:
        return pack(body, buffers or (), to_file=self._packets)
