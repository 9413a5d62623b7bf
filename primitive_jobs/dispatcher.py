"""`Dispatcher`: the threads of one pool. Facts in, through inbox, sockets, pidfds and the clock;
the scheduler's actions out.

============  =====================================================================================
thread        owns
============  =====================================================================================
dispatcher    scheduler, the trackers of jobs taken in, the pool's ends of all channels
spawner       the starting of processes; it never ends while a worker lives, since the kernel sends
              a worker SIGKILL when the thread that started it ends
reaper        the killing and reaping of processes
callbacks     nothing: it runs users' callbacks
memory        which workers are watched; it wakes up only while a running job has a memory limit
============  =====================================================================================

There is no lock. Every thread says what it has to say by appending to the inbox, a deque, and
waking the dispatcher; both can be done in a signal handler and in a finalizer. The dispatcher
sets `_asleep` before it looks into the inbox for the last time, and a sender looks at `_asleep`
after it appended: so no message is left lying while the dispatcher sleeps.
"""

from __future__ import annotations

import collections
import contextlib
import io
import logging
import math
import os
import queue
import select
import signal
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .channel import ChannelClosed, Parcel
from .errors import (
    InitializerError,
    JobError,
    JobMemoryError,
    JobTimeoutError,
    PoolClosedError,
    SerializationError,
    WorkerDiedError,
)
from .job import PrimitiveJob
from .memory import resident, tree_memory
from .messages import (
    Action,
    Answered,
    Ask,
    Assign,
    CancelAllAsked,
    CancelAsked,
    CancelJob,
    Cancelled,
    Close,
    Died,
    Enlist,
    Event,
    Evidence,
    Fate,
    Finished,
    Forget,
    Gone,
    InitFailed,
    Kill,
    Kind,
    Leave,
    Lost,
    Message,
    NotInitialized,
    NotTaken,
    OutOfMemory,
    OverMemory,
    Ready,
    Requeue,
    Resized,
    RestartAsked,
    Settle,
    ShutDown,
    Spawn,
    Started,
    StartFailed,
    Submitted,
    Terminate,
    Tick,
    TimedOut,
    TurnedAway,
    Unspawn,
    Unwatch,
    Watch,
)
from .process import WorkerConfig, WorkerProcess, the_guard
from .scheduler import Scheduler
from .serialize import one_line
from .shared import Source
from .status import JobStatus
from .tracker import Outcome, cancelled

logger = logging.getLogger("primitive_jobs")

MEMORY_PAUSE = 0.1  # s between two looks at the memory of running jobs that have a limit
_READ = select.POLLIN
_WRITE = select.POLLOUT


class _Entry:
    """A job that was taken in, and its serialized call: kept until the job is final, since a
    worker may die before it has begun.
    """

    __slots__ = ("job", "parcel", "shared")

    def __init__(self, job: PrimitiveJob[Any], parcel: Parcel, shared: Sequence[Source]) -> None:
        self.job = job
        self.parcel = parcel
        self.shared = shared


class _Order:
    """A process to be started; `wanted` is cleared by the dispatcher when it is called off."""

    __slots__ = ("slot", "wanted")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.wanted = True


class _HasProcess:
    """The spawner's report."""

    __slots__ = ("process",)

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process


class _Watched:
    """A worker whose job has a memory limit."""

    __slots__ = ("_attempt", "_limit", "_pid", "slot")

    def __init__(self, watch: Watch, pid: int) -> None:
        self.slot = watch.slot
        self._attempt = watch.attempt
        self._limit = watch.limit
        self._pid = pid

    def look(self, tell: Callable[[Any], None]) -> None:
        """Measure, and tell if it is too much."""
        try:
            held = tree_memory(self._pid, self._limit)
        except Exception:
            logger.exception("the memory of worker %d cannot be measured", self._pid)
            return
        if held > self._limit:
            tell(OverMemory(self.slot, self._attempt, held))


class Dispatcher:
    """One pool's machinery; runs from its making until `shut_down` has had its full effect.

    Args:
        max_workers: Most processes with a job at a time.
        idle_timeout: Seconds after which an idle worker leaves; None: never.
        config: How workers are started.
        max_jobs_per_worker: Jobs after which a worker is replaced; None: never.
        spare_workers: Idle workers beyond `max_workers` that stand ready while all those are busy.
        cancel_at_exit: Whether the interpreter's end cancels what is unfinished.
        made: Where it puts itself before it starts anything, for whoever is to end it.
    """

    def __init__(
        self,
        max_workers: int,
        idle_timeout: float | None,
        config: WorkerConfig,
        *,
        max_jobs_per_worker: int | None = None,
        spare_workers: int = 0,
        cancel_at_exit: bool = False,
        made: list[Dispatcher] | None = None,
    ) -> None:
        _register_exit_hook()  # first: it may refuse
        self.accepting = True
        self.cancel_at_exit = cancel_at_exit
        self._config = config
        self._scheduler = Scheduler(max_workers, idle_timeout, max_jobs_per_worker, spare_workers)
        self._jobs: dict[int, _Entry] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._orders: dict[int, _Order] = {}
        self._job_count = 0
        self._files = 0  # parcels that hold a descriptor
        self._file_limit = _file_limit()
        self._inbox: collections.deque[Any] = collections.deque()
        self._asleep = False
        self._ended = False
        self._abandoned = False
        self._callbacks_ended = False
        self._end_waiters: list[Callable[[], object]] = []
        self._to_spawn: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._to_reap: queue.SimpleQueue[WorkerProcess | None] = queue.SimpleQueue()
        self._callbacks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._to_watch: queue.SimpleQueue[_Watched | Unwatch | None] = queue.SimpleQueue()
        self._bell = _Bell()
        try:
            self._poller = _Poller()
        except BaseException:
            self._bell.close()
            raise
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._watch(self._bell.fileno(), self._bell.hush)
        self._threads = [
            threading.Thread(target=target, name=f"primitive_jobs-{name}", daemon=True)
            for name, target in (
                ("dispatcher", self._dispatch),
                ("spawner", self._spawn),
                ("reaper", self._reap),
                ("memory", self._watch_memory),
                ("callbacks", self._call_back),
            )
        ]
        if made is not None:
            made.append(self)
        self._start_threads()

    def _start_threads(self) -> None:
        try:
            the_guard.open(self)
            _dispatchers.add(self)
            # The dispatcher comes last: it ends the others.
            for thread in reversed(self._threads):
                thread.start()
        except BaseException as error:
            self.accepting = False
            if self._threads[0].ident is not None:
                self._tell(ShutDown(cancel=True))
            else:
                self._end()
            if isinstance(error, RuntimeError):
                raise PoolClosedError(
                    "no pool can be started: the interpreter is going down, or no thread is left"
                ) from error
            raise

    # --- for callers, on any thread ----------------------------------------------------------

    def enlist(
        self,
        job: PrimitiveJob[Any],
        body: bytes,
        buffers: list[memoryview],
        shared: tuple[Source, ...] = (),
    ) -> None:
        """Queue a serialized job; raises `PoolClosedError` if the pool takes none."""
        self.check_open()
        to_file = self._config.packets and self._files < self._file_limit
        try:
            parcel = Parcel(body, buffers, to_file=to_file)
        except (OSError, MemoryError) as error:
            failure = SerializationError(
                f"no memory for the {len(body) + sum(b.nbytes for b in buffers)} bytes of the "
                f"call of {job.name}(): {error}"
            )
            failure.__cause__ = error
            job._tracker.end_early(Outcome(JobStatus.ERROR, failure))
            return
        self._tell(Enlist(job, parcel, shared))

    def check_open(self) -> None:
        """Raise `PoolClosedError` unless jobs are accepted."""
        if not self.accepting:
            raise PoolClosedError("the pool was shut down: it takes no job any more")
        check_not_exiting()

    def ask_cancel(self, job: PrimitiveJob[Any], grace: float) -> None:
        """Have a job stopped; returns at once."""
        self._tell(CancelJob(job, grace))

    def ask_cancel_all(self, grace: float) -> None:
        """Have every unfinished job stopped; returns at once."""
        self._tell(CancelAllAsked(grace))

    def forget(self, number: int) -> None:
        """Have the workers let shared data go; returns at once."""
        self._tell(Forget(number))

    def call_back(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the thread for callbacks."""
        self._callbacks.put(callback)
        if self._callbacks_ended:
            self._run_late_callbacks()

    def check_may_wait(self) -> None:
        """Raise `JobError` where the waiting would be for ever."""
        if self._abandoned:
            raise JobError(_OF_THE_PARENT)
        self._check_thread()

    def _check_thread(self) -> None:
        if threading.current_thread() in self._threads[:4]:
            # Foreign code gets here only through a finalizer that the collector runs.
            raise JobError("a pool's own thread cannot wait for a job of the pool")

    def unfinished(self) -> list[PrimitiveJob[Any]]:
        """The jobs that were submitted and are not final."""
        self._check_thread()
        lock = threading.Lock()
        lock.acquire()
        question = Ask(done=lock.release)
        self._tell(question)
        lock.acquire()
        return list(question.answer)

    def resize(self, max_workers: int) -> None:
        """Have another number of workers from now on."""
        self.check_open()
        self._tell(Resized(max_workers))

    def restart_workers(self) -> None:
        """Have every worker replaced, a busy one after its job."""
        self.check_open()
        self._tell(RestartAsked())

    def shut_down(self, *, cancel: bool = False) -> None:
        """Take no job any more, end when all are final; returns at once."""
        self.accepting = False
        self._tell(ShutDown(cancel))

    def join(self) -> None:
        """Wait until everything is gone: jobs, processes, threads, descriptors."""
        self._check_thread()
        lock = threading.Lock()
        lock.acquire()
        self._end_waiters.append(lock.release)
        if not self._ended:
            lock.acquire()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a callback may shut its pool down
                thread.join()

    def _tell(self, command: Any) -> None:
        self._inbox.append(command)
        if self._asleep:
            self._wake()
        elif self._ended:
            self._refuse()

    def _wake(self) -> None:
        self._bell.ring()
        if self._ended:
            self._refuse()

    # --- the dispatcher's thread -------------------------------------------------------------

    def _dispatch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._scheduler.closed:
                self._turn()
        except BaseException:
            logger.critical("the pool's dispatcher failed: all its jobs end", exc_info=True)
            self._fail()
        finally:
            self._end()

    def _turn(self) -> None:
        while self._inbox:
            self._take(self._inbox.popleft())
            if self._scheduler.closed:
                return
        deadline = self._scheduler.next_deadline()
        self._asleep = True
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        events = self._poller.poll(0 if self._inbox else timeout)
        self._asleep = False
        for fd, mask in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        if deadline is not None and time.monotonic() >= deadline:
            self._feed(Tick())

    def _take(self, command: Any) -> None:
        match command:
            case Enlist(job=job, parcel=parcel, shared=shared):
                self._take_in(job, parcel, shared)
            case CancelJob(job=job, grace=grace):
                self._feed(CancelAsked(job.number, grace))
            case Ask(answer=answer, done=done):
                answer += [entry.job for entry in self._jobs.values()]
                done()
            case _HasProcess(process=process):
                self._has_process(process)
            case Gone(slot=slot):
                self._on_gone(slot, command)
            case Forget(number=number):
                self._on_forget(number)
            case _:
                if isinstance(command, StartFailed):
                    self._orders.pop(command.slot, None)
                self._feed(command)

    def _take_in(self, job: PrimitiveJob[Any], parcel: Parcel, shared: Sequence[Source]) -> None:
        if not job._tracker.take_in():
            parcel.close()
            return
        self._job_count += 1
        job.number = self._job_count
        self._jobs[job.number] = _Entry(job, parcel, shared)
        self._files += parcel.fd >= 0
        options = job._options
        limit = options.memory_limit
        assert not isinstance(limit, str), "made a number when the options were made"
        self._feed(Submitted(job.number, options.priority, options.timeout, limit, options.retries))

    def _feed(self, event: Event) -> None:
        """Tell the scheduler, and do what it says; that may be an event again."""
        events = [event]
        for item in events:
            for action in self._scheduler.handle(item, time.monotonic()):
                follow_up = self._do(action)
                if follow_up is not None:
                    events.append(follow_up)

    def _do(self, action: Action) -> Event | None:
        match action:
            case Assign():
                return self._assign(action)
            case Settle(job=number, fate=fate):
                self._settle(number, fate)
            case Watch(slot=slot):
                self._to_watch.put(_Watched(action, self._workers[slot].pid))
            case Unwatch():
                self._to_watch.put(action)
            case Requeue(job=number, began=began):
                self._jobs[number].job._tracker.requeued(began=began)
            case Spawn(slot=slot):
                self._orders[slot] = order = _Order(slot)
                self._to_spawn.put(order)
            case Unspawn(slot=slot):
                if slot in self._orders:
                    self._orders[slot].wanted = False
            case Leave(slot=slot):
                self._send(self._workers[slot], Kind.STOP)  # where it fails, its death is coming
            case Terminate(slot=slot):
                self._workers[slot].terminate()
            case Kill(slot=slot):
                self._to_reap.put(self._workers[slot])
            case Close():
                pass  # seen by _dispatch
        return None

    def _assign(self, action: Assign) -> Event | None:
        entry, process = self._jobs[action.job], self._workers[action.slot]
        if action.room is not None and resident(process.pid) > action.room:
            return NotTaken(action.slot, action.attempt, unfit=True)
        # Before the sending: whatever the job does, somebody who sees it sees RUNNING too.
        entry.job._tracker.assigned(process.pid)
        shared_there = not entry.shared or self._share(process, entry.shared)
        if shared_there and self._send(process, Kind.RUN, action.attempt, entry.parcel):
            return None
        return NotTaken(action.slot, action.attempt)

    def _share(self, process: WorkerProcess, shared: Sequence[Source]) -> bool:
        """Send a worker what it has not yet of the data that a call refers to."""
        for source in shared:
            if source.number in process.shared:
                continue
            source.used_by(self)
            if not self._share(process, source.shared):
                return False
            parcel = source.parcel_for(packets=self._config.packets)
            if not self._send(process, Kind.SHARE, source.number, parcel):
                return False
            process.shared.add(source.number)
        return True

    def _on_forget(self, number: int) -> None:
        for process in self._workers.values():
            if number in process.shared:
                process.shared.discard(number)
                self._send(process, Kind.FORGET, number)  # where it fails, its death is coming

    def _send(
        self, process: WorkerProcess, kind: Kind, attempt: int = 0, parcel: Parcel | None = None
    ) -> bool:
        try:
            process.channel.send(kind, attempt, parcel)
        except (ChannelClosed, OSError, MemoryError):
            return False
        if process.channel.wants_write:
            self._poller.modify(process.channel.fileno(), _READ | _WRITE)
        return True

    def _settle(self, number: int, fate: Fate) -> None:
        entry = self._jobs.pop(number)
        self._files -= entry.parcel.fd >= 0
        entry.parcel.close()
        entry.job._tracker.settle(_outcome_of(entry.job, fate))

    # --- workers, on the dispatcher's thread -------------------------------------------------

    def _watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, _READ)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def _has_process(self, process: WorkerProcess) -> None:
        slot = process.slot
        self._orders.pop(slot, None)
        self._workers[slot] = process
        logger.debug("worker %d started in slot %d", process.pid, slot)
        self._watch(process.channel.fileno(), lambda mask: self._on_socket(process, mask))
        self._watch(process.death, lambda _: self._on_death(process))
        self._feed(Started(slot))

    def _on_socket(self, process: WorkerProcess, mask: int) -> None:
        try:
            if mask & _WRITE and process.channel.wants_write:
                process.channel.flush()
                if not process.channel.wants_write:
                    self._poller.modify(process.channel.fileno(), _READ)
            if mask & ~_WRITE:
                message = _receive(process)
                if message is not None:
                    self._on_message(process.slot, message)
        except (ChannelClosed, OSError):
            # It died, or its job closed the channel: it is of no use any more either way.
            process.link_lost = True
            self._unwatch(process.channel.fileno())
            self._feed(Died(process.slot))

    def _on_message(self, slot: int, message: Message) -> None:
        match message.kind:
            case Kind.RETURNED | Kind.RAISED:
                self._feed(Answered(slot, message.attempt, message))
            case Kind.READY:
                self._feed(Ready(slot))
            case Kind.REFUSED:
                self._feed(NotTaken(slot, message.attempt))
            case Kind.INIT_FAILED:
                self._feed(InitFailed(slot, message))
            case _:
                logger.warning("worker in slot %d sent an unknown message; it is replaced", slot)
                self._feed(Died(slot))

    def _on_death(self, process: WorkerProcess) -> None:
        self._unwatch(process.death)
        self._drain(process)
        self._feed(Died(process.slot))

    def _drain(self, process: WorkerProcess) -> None:
        """Take in everything that it sent before."""
        with contextlib.suppress(ChannelClosed):
            while (message := _receive(process)) is not None:
                self._on_message(process.slot, message)

    def _on_gone(self, slot: int, event: Gone) -> None:
        process = self._workers[slot]
        self._unwatch(process.death)
        self._drain(process)
        self._unwatch(process.channel.fileno())
        del self._workers[slot]
        process.close()
        logger.debug("worker %s of slot %d is gone", event.evidence.pid, slot)
        self._feed(event)

    # --- the end, on the dispatcher's thread -------------------------------------------------

    def _fail(self) -> None:
        """After a bug in here: no job and no process is left behind all the same."""
        for process in self._workers.values():
            self._to_reap.put(process)
        for number in list(self._jobs):
            with contextlib.suppress(Exception):  # the others shall have their end all the same
                self._settle(number, Lost(Evidence(error=JobError("the pool's dispatcher failed"))))

    def _end(self) -> None:
        self.accepting = False
        self._to_spawn.put(None)
        self._to_reap.put(None)
        self._callbacks.put(None)
        self._to_watch.put(None)
        for thread in self._threads[1:4]:
            if thread.ident is not None:
                thread.join()
        for process in self._workers.values():
            process.close()
        self._bell.close()
        self._poller.close()
        the_guard.release(self)
        _dispatchers.discard(self)
        self._ended = True
        self._refuse()
        while self._end_waiters:
            self._end_waiters.pop()()

    def _refuse(self) -> None:
        """Answer what came too late; whoever pops a command answers it, on any thread."""
        while True:
            try:
                command = self._inbox.popleft()
            except IndexError:
                return
            match command:
                case Enlist(job=job, parcel=parcel):
                    parcel.close()
                    job._tracker.end_early(_outcome_of(job, TurnedAway()))
                case Ask(done=done):
                    done()
                case _HasProcess(process=process):  # only after a bug in here: see _fail
                    process.end()
                    process.close()
                case _:
                    pass

    def abandon(self) -> None:
        """In a fork of the process: nothing of this is ours; its jobs cannot end here."""
        self.accepting = False
        self._abandoned = True
        error = JobError(_OF_THE_PARENT)
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, Enlist):
                command.job._tracker.abandon(error)
                command.parcel.close()
            elif isinstance(command, _HasProcess):
                command.process.close()
        for entry in list(self._jobs.values()):
            entry.job._tracker.abandon(error)
            entry.parcel.close()
        for process in list(self._workers.values()):
            process.close()
        self._bell.close()
        self._poller.close()
        self._asleep = False
        self._ended = True
        self._threads = []

    # --- the other threads -------------------------------------------------------------------

    def _spawn(self) -> None:
        while (order := self._to_spawn.get()) is not None:
            if not order.wanted:
                self._tell(StartFailed(order.slot, Evidence()))
                continue
            try:
                with _start_lock:
                    process = WorkerProcess(order.slot, self._config)
            except BaseException as error:  # noqa: BLE001 - it is the jobs' that wait for it
                logger.info("a worker could not be started: %r", error)
                self._tell(StartFailed(order.slot, Evidence(error=error)))
            else:
                self._tell(_HasProcess(process))
                del process

    def _reap(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (process := self._to_reap.get()) is not None:
            try:
                evidence = process.end()
            except BaseException as error:
                logger.exception("worker %d could not be ended properly", process.pid)
                evidence = Evidence(process.pid, error=error)
            self._tell(Gone(process.slot, evidence))
            del process

    def _watch_memory(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        watched: dict[int, _Watched] = {}
        look = math.inf  # when the next one is due
        while True:
            pause = max(0.0, look - time.monotonic()) if watched else None
            try:
                order = self._to_watch.get(timeout=pause)
            except queue.Empty:
                for item in watched.values():
                    item.look(self._tell)
                look = time.monotonic() + MEMORY_PAUSE
                continue
            if order is None:
                return
            if not watched:
                look = time.monotonic() + MEMORY_PAUSE
            if isinstance(order, Unwatch):
                watched.pop(order.slot, None)
            else:
                watched[order.slot] = order

    def _call_back(self) -> None:
        while (callback := self._callbacks.get()) is not None:
            callback()  # raises nothing: see PrimitiveJob.add_done_callback
            del callback
        self._callbacks_ended = True
        self._run_late_callbacks()

    def _run_late_callbacks(self) -> None:
        """Whoever takes a callback out of the queue runs it, on any thread."""
        with contextlib.suppress(queue.Empty):
            while True:
                callback = self._callbacks.get_nowait()
                if callback is not None:
                    callback()


class _Bell:
    """Wakes the dispatcher; any thread, signal handler or finalizer may ring it.

    File objects rather than numbers: once closed they raise, where a number might be somebody
    else's by then. An eventfd takes a third of a socket pair's time, and cannot fail for want of
    a buffer.
    """

    _RING = struct.pack("=Q", 1)

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._out = self._in = io.FileIO(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), "r+")
        else:
            out, into = os.pipe()
            os.set_blocking(out, False)
            os.set_blocking(into, False)
            self._out, self._in = io.FileIO(out, "r"), io.FileIO(into, "w")

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._out.fileno()

    def ring(self) -> None:
        """Wake it; harmless if it is awake or has ended."""
        with contextlib.suppress(OSError, ValueError):  # full: it is awake; closed: it has ended
            self._in.write(self._RING)

    def hush(self, mask: int) -> None:
        """Be ready for the next ring."""
        del mask
        with contextlib.suppress(OSError):
            self._out.read(4096)

    def close(self) -> None:
        """Give the descriptors back."""
        self._out.close()
        self._in.close()


class _Poller:
    """epoll where there is one, else poll; timeouts in s."""

    def __init__(self) -> None:
        self._in_milliseconds = not hasattr(select, "epoll")
        self._poll: Any = select.poll() if self._in_milliseconds else select.epoll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait; return (descriptor, mask) pairs."""
        if timeout is None:
            return self._poll.poll()  # type: ignore[no-any-return]
        timeout = min(timeout, 86400.0)
        # Rounded up, or the last millisecond would be spent waiting for nothing many times.
        milliseconds = math.ceil(timeout * 1000)
        wait = milliseconds if self._in_milliseconds else milliseconds / 1000
        return self._poll.poll(wait)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give its descriptor back."""
        if not self._in_milliseconds:
            self._poll.close()


def _receive(process: WorkerProcess) -> Message | None:
    """The next message; `ChannelClosed` also where nonsense came, which a job may send."""
    try:
        return process.channel.receive()
    except ChannelClosed:
        raise
    except Exception as error:
        if not isinstance(error, OSError):
            logger.warning("worker %d sent what is no message: %s", process.pid, one_line(error))
        raise ChannelClosed from error


def _file_limit() -> int:
    """How many queued calls may hold a descriptor: a quarter of what the process may have."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if soft == resource.RLIM_INFINITY else soft // 4


# --- from fates to outcomes -----------------------------------------------------------------------


def _outcome_of(job: PrimitiveJob[Any], fate: Fate) -> Outcome:
    match fate:
        case Finished(message=message):
            if message.lost:
                failure = f"the outcome of job {job.name} was not received: {message.lost}"
                return Outcome(JobStatus.ERROR, SerializationError(failure))
            done = message.kind == Kind.RETURNED
            return Outcome(JobStatus.DONE if done else JobStatus.ERROR, message)
        case Cancelled():
            return cancelled()
        case TimedOut(limit=limit):
            error: BaseException = JobTimeoutError(
                f"job {job.name} ({job.job_id()}) ran longer than its timeout of {limit:g} s "
                "and was killed"
            )
        case OutOfMemory(limit=bytes_allowed, peak=peak):
            error = JobMemoryError(
                f"job {job.name} ({job.job_id()}) passed its memory_limit of "
                f"{_megabytes(bytes_allowed)}: its processes held {_megabytes(peak)} and were "
                "killed",
                limit=bytes_allowed,
                peak=peak,
            )
        case Lost(evidence=evidence):
            error = _died(job, evidence)
        case NotInitialized(message=message, evidence=evidence):
            if message is not None:
                return Outcome(JobStatus.ERROR, message)
            assert evidence is not None
            error = _died_initializing(job, evidence)
        case TurnedAway():
            error = PoolClosedError(f"job {job.name}: the pool was shut down meanwhile")
    return Outcome(JobStatus.ERROR, error)


def _died(job: PrimitiveJob[Any], evidence: Evidence) -> WorkerDiedError:
    label = f"job {job.name} ({job.job_id()})"
    if evidence.pid is None:
        error = evidence.error
        if isinstance(error, InitializerError):
            failure: WorkerDiedError = InitializerError(f"{label}: {error}")
        elif error is None:
            failure = WorkerDiedError(f"{label}: it could not be sent to any worker")
        else:
            failure = WorkerDiedError(
                f"{label}: no worker process could be started for it: {one_line(error)}"
            )
        failure.__cause__ = error
        return failure
    ran = job._tracker.seconds_in_status()
    failure = WorkerDiedError(
        f"{label}: its worker process {evidence.pid} died after {ran:.3g} s: {_how(evidence)}",
        pid=evidence.pid,
        exitcode=evidence.exitcode,
        stack=evidence.stack,
        ran=ran,
        peak_memory=evidence.peak_memory,
    )
    failure.__cause__ = evidence.error
    return failure


def _how(evidence: Evidence) -> str:
    peak = (
        ""
        if evidence.peak_memory is None
        else f"; its peak memory was {_megabytes(evidence.peak_memory)}"
    )
    stack = f"\n{evidence.stack}" if evidence.stack else ""
    return _why(evidence) + peak + stack


def _why(evidence: Evidence) -> str:
    code = evidence.exitcode
    if evidence.cut_off:
        return "the job closed or broke its link to the pool, and was killed"
    if code is None:
        return "its exit code is unknown (something else in this program reaped it)"
    if code >= 0:
        return f"it exited with code {code} in the middle of the job"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    if evidence.out_of_memory:
        return (
            f"killed by signal {name}, it seems by the kernel's OOM killer: "
            f"{evidence.out_of_memory}"
        )
    return f"killed by signal {name}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _died_initializing(job: PrimitiveJob[Any], evidence: Evidence) -> InitializerError:
    return InitializerError(
        f"job {job.name}: worker {evidence.pid} died in the pool's preload or initializer: "
        f"{_how(evidence)}",
        pid=evidence.pid,
        exitcode=evidence.exitcode,
        stack=evidence.stack,
        peak_memory=evidence.peak_memory,
    )


# --- the process's own end ------------------------------------------------------------------------

_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_hook_for: list[int] = []  # the pid that has its exit hook
_exiting = False


def check_not_exiting() -> None:
    """Raise `PoolClosedError` when the interpreter is going down."""
    if _exiting or sys.is_finalizing():
        raise PoolClosedError("the interpreter is going down: no job can be submitted")


def _register_exit_hook() -> None:
    if _hook_for[:1] == [os.getpid()]:
        return
    try:
        # Runs before threads are joined and before multiprocessing's own atexit function.
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise PoolClosedError("the interpreter is going down: no pool can be started") from error
    _hook_for[:] = [os.getpid()]


def _at_exit() -> None:
    """Wait for every job, as concurrent.futures does; a Ctrl-C ends them at once."""
    global _exiting
    _exiting = True
    interrupted = _ended_by_interrupt()
    pools = list(_dispatchers)
    try:
        for pool in pools:
            pool.shut_down(cancel=interrupted or pool.cancel_at_exit)
        for pool in pools:
            pool.join()
    except KeyboardInterrupt:
        for pool in pools:
            pool.shut_down(cancel=True)
        for pool in pools:
            pool.join()
        raise


def _ended_by_interrupt() -> bool:
    # In a REPL an interrupt that was shown long ago says nothing about the end of the session.
    interactive = hasattr(sys, "ps1") or sys.flags.interactive
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not interactive


_OF_THE_PARENT = "the job belongs to the parent of this forked process"
_start_lock = threading.RLock()
"""Held while a process is started: a fork waits for it, or it would find the locks of the resource
trackers and of imports held by a thread that it does not have."""


def _before_fork() -> None:
    _start_lock.acquire()


def _after_fork_in_parent() -> None:
    _start_lock.release()


def _after_fork_in_child() -> None:
    global _start_lock
    _start_lock = threading.RLock()
    for dispatcher in list(_dispatchers):
        with contextlib.suppress(Exception):
            dispatcher.abandon()
    _dispatchers.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
