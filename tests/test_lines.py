"""Jobs that are sent ahead, as they meet everything else: scheduler, `Recall` and trackers as they
are, over workers that are played.

Each worker has its queue, out of which it and the pool take, in whatever turns a seed says. Nothing
is real but what decides; `test_ahead` has the same with processes.
"""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers import SOAK

from primitive_jobs import JobStatus
from primitive_jobs._engine import events as ev
from primitive_jobs._engine import recall
from primitive_jobs._engine.fleet import Ahead, Fleet
from primitive_jobs._engine.gate import SentAhead
from primitive_jobs._engine.lines import MOST, PLAIN_SIZE, Lines
from primitive_jobs._engine.recall import Recall
from primitive_jobs._engine.registry import JobRegistry
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._engine.slots import BUSY, Slot
from primitive_jobs._engine.tracker import Outcome, StatusTracker, cancelled
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.messages import Kind, Message, duration
from primitive_jobs._wire.notes import NUMBER, PAGE_SIZE, PLACE, place_at
from primitive_jobs.insight.traces import LocalTraces
from primitive_jobs.options import Limits
from primitive_jobs.status import FINAL_STATES


class Worker:
    """A worker as its pool sees it: a queue, a page, and answers."""

    def __init__(self, slot: int, chance: random.Random) -> None:
        self.slot, self.pid = slot, 1000 + slot
        self.page = bytearray(PAGE_SIZE)
        self.traces = LocalTraces(memoryview(self.page))
        self.queue: collections.deque[tuple[int, int, int]] = collections.deque()
        self.answers: collections.deque[Message] = collections.deque()
        self.has: tuple[int, int] | None = None  # the job that it runs, and its attempt
        self.dead = False
        self.begun: list[int] = []  # jobs, in order
        self.since: dict[int, int] = {}  # by attempt, in ns
        self.chance = chance

    def step(self) -> None:
        """Answer, or take the next one."""
        if self.dead:
            return
        if self.has is not None:
            _, attempt = self.has
            kind = Kind.RETURNED if self.chance.random() < 0.9 else Kind.RAISED
            self.answers.append(Message(kind, attempt, extra=self.chance.choice((3, 3, 3, 900))))
            self.has = None
        elif self.queue:
            job, attempt, place = self.queue.popleft()
            self.has = job, attempt
            self.begun.append(job)
            self.since[attempt] = time.monotonic_ns()
            PLACE.pack_into(self.page, place_at(place), self.since[attempt], attempt)
            NUMBER.pack_into(self.page, 0, attempt)


class World(Ahead):
    """One pool over such workers; `fleet`, `jobs` and a dispatcher in one."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        most = self.chance.choice((None, None, 3, 40))
        self.most_jobs = most
        self.scheduler = Scheduler(self.chance.randint(1, 3), None, most, self.chance.randint(0, 1))
        self.now = 0.0
        self.unfinished: dict[int, Any] = {}
        self.trackers: dict[int, StatusTracker] = {}
        self.workers: dict[int, Worker] = {}
        self.starting: list[int] = []
        self.dying: dict[int, Worker] = {}
        self.inbox: collections.deque[ev.Event] = collections.deque()
        self.ahead_of: dict[int, int] = {}  # jobs that were sent ahead: the attempt
        self.ends: dict[int, ev.Fate] = {}
        self.tries: collections.Counter[int] = collections.Counter()  # a death may cost
        self.requeued: set[int] = set()
        self.since: dict[int, int] = {}
        self.seen: dict[int, JobStatus] = {}
        self.sent_ahead = self.taken_back = 0
        self.recall = Recall(
            self.scheduler,
            cast("JobRegistry", self),
            cast("Fleet", SimpleNamespace(ahead=self, workers=self.workers)),
            self.carry_out,
            self.tell,
            self.log,
        )
        self.lines: Lines = self.scheduler.lines

    # --- the fleet -------------------------------------------------------------------------------

    def tell(self, event: ev.Event) -> None:
        assert not isinstance(event, ev.Faulted), event
        self.inbox.append(event)

    def log(self, what: str, worker: Any, error: Exception) -> None:
        raise AssertionError(what) from error

    def page(self, slot: int) -> memoryview:
        return memoryview(self.workers[slot].page)

    def send(self, slot: int, attempt: int, content: Any, place: int) -> bool:
        if self.chance.random() < 0.002:
            return False
        self.workers[slot].queue.append((content, attempt, place))
        self.ahead_of[content] = attempt
        self.sent_ahead += 1
        return True

    def take_back(self, slot: int) -> list[int]:
        worker, back = self.workers[slot], []
        while True:
            while self.chance.random() < 0.3:  # meanwhile it goes on
                worker.step()
            if not worker.queue:
                break
            back.append(worker.queue.popleft()[1])
        self.taken_back += len(back)
        return back

    def hear(self, slot: int, count: int) -> int:
        return sum(self.receive(self.workers[slot]) for _ in range(count))

    # --- the dispatcher --------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        self.recall.before(event)
        assert type(event) in (ev.Unsent, ev.CancelAsked, ev.Started) or not self.lines.slots
        self.carry_out(self.scheduler.handle(event, self.now))

    def carry_out(self, actions: ev.Actions) -> None:
        told = [event for action in actions if (event := self.do(action)) is not None]
        for event in told:
            self.feed(event)

    def do(self, action: ev.Action) -> ev.Event | None:
        match action:
            case ev.Spawn(slot=slot):
                self.starting.append(slot)
            case ev.Unspawn(slot=slot):
                self.starting.remove(slot)
                self.inbox.append(ev.StartFailed(slot, Evidence()))
            case ev.Assign(slot=slot, job=job, attempt=attempt):
                tracker = self.trackers[job]
                if not tracker.take():
                    del self.unfinished[job]
                    return ev.Withdrawn(slot, attempt)
                assert not self.workers[slot].queue
                tracker.assigned(1000 + slot)
                self.ahead_of.pop(job, None)
                self.workers[slot].queue.append((job, attempt, 0))
            case ev.SendAhead():
                return self.recall.send(action)
            case ev.Settle(job=job, fate=fate):
                self.settle(job, fate)
            case ev.Requeue(job=job, began=began):
                self.trackers[job].requeued(began=began)
                self.tries[job] += began
                self.requeued.add(job)
            case ev.Kill(slot=slot):
                self.dying[slot] = self.workers[slot]
            case ev.Leave(slot=slot):
                self.workers[slot].dead = True
                self.inbox.append(ev.Died(slot))
            case _:
                pass
        return None

    def settle(self, job: int, fate: ev.Fate) -> None:
        assert job not in self.ends, "a job ends twice"
        self.ends[job] = fate
        status = JobStatus.CANCELLED if isinstance(fate, ev.Cancelled) else JobStatus.ERROR
        took: float | None = None
        if isinstance(fate, Message):
            status = JobStatus.DONE if fate.kind == Kind.RETURNED else JobStatus.ERROR
            took = duration(fate.extra)
        del self.unfinished[job]
        tracker = self.trackers[job]
        tracker.settle(Outcome(status, None), took)
        if took is not None and job in self.ahead_of:
            assert isinstance(fate, Message)
            begun, ended = tracker.steps()[-2:]
            since = self.since[fate.attempt] * 1e-9
            assert begun[::2] == (JobStatus.RUNNING, since), "by the worker's clock"
            assert ended[2] == pytest.approx(min(time.monotonic(), since + took), abs=0.1)
            assert abs(begun[1] - begun[2] - (time.time() - time.monotonic())) < 0.1

    def receive(self, worker: Worker) -> bool:
        if not worker.answers:
            return False
        message = worker.answers.popleft()
        if self.lines.slots and not self.scheduler.waiting:
            self.recall.before_idle(worker.slot)
        told = worker.slot, message.attempt, message, self.now
        attempt = -1 if worker.slot not in self.scheduler.slots else 0
        if attempt == 0:
            self.carry_out(self.scheduler.answered(*told))
            attempt = self.recall.attempt_of(worker.slot)
        noted = NUMBER.unpack_from(worker.page)[0]
        assert attempt <= 0 or noted <= attempt or worker.answers, "an answer is there for certain"
        return True

    # --- what may happen -------------------------------------------------------------------------

    def submit(self) -> None:
        number = len(self.trackers) + 1
        tracker = StatusTracker()
        tracker.submitted()
        tracker.serialized()
        self.trackers[number] = tracker
        draw = self.chance.random
        limits = Limits(
            priority=self.chance.choice((0, 0, 0, 0, 0, 0, 0, 1, -1)),
            timeout=5.0 if draw() < 0.05 else None,
            memory_limit=None,
            retries=1 if draw() < 0.1 else 0,
            grace=1.0 if draw() < 0.1 else 0.0,
        )
        payload = b"" if draw() < 0.95 else bytes(PLAIN_SIZE + 1)
        record: Any = SimpleNamespace(tracker=tracker, payload=payload, limits=limits)
        self.unfinished[number] = record
        plain = self.recall.before_job(record)
        actions = self.scheduler.submitted(number, limits, self.now, plain)
        record.payload = number
        self.carry_out(actions)

    def happen(self) -> None:
        """One thing."""
        chance, pick = self.chance.random(), self.chance.choice
        workers = list(self.workers.values())
        if chance < 0.25:
            for _ in range(self.chance.choice((1, 1, 5, 60))):
                self.submit()
        elif chance < 0.60 and workers:
            for _ in range(self.chance.choice((1, 2, 8))):
                pick(workers).step()
        elif chance < 0.80 and workers:
            worker = pick(workers)
            while self.receive(worker) and self.chance.random() < 0.9:
                pass
        elif chance < 0.86 and self.trackers:
            self.cancel(self.chance.randint(1, len(self.trackers)))
        elif chance < 0.90:
            self.now += self.chance.choice((0.0001, 0.002, 0.01, 6.0))
            self.recall.look()
            due = self.scheduler.next_deadline()
            if due is not None and due <= self.now:
                self.feed(self.recall.tick())
        elif chance < 0.91 and workers:
            worker = pick(workers)
            worker.dead = True
            self.feed(ev.Died(worker.slot))
        elif chance < 0.915:
            self.feed(ev.Resized(self.chance.randint(1, 3)))
        elif chance < 0.917:
            self.feed(ev.RestartAsked())
        elif chance < 0.919:
            self.feed(ev.CancelAllAsked(pick((None, 0.0))))
        elif self.starting:
            self.start(pick(self.starting))
        elif self.dying:
            self.be_gone(pick(list(self.dying)))
        if self.inbox and self.chance.random() < 0.7:
            self.feed(self.inbox.popleft())

    def start(self, slot: int) -> None:
        self.starting.remove(slot)
        if self.chance.random() < 0.05:
            self.feed(ev.StartFailed(slot, Evidence(error=OSError())))
            return
        self.workers[slot] = Worker(slot, self.chance)
        self.workers[slot].since = self.since
        self.feed(ev.Started(slot))
        if slot in self.scheduler.slots and slot not in self.dying:
            self.feed(ev.Ready(slot))

    def be_gone(self, slot: int) -> None:
        worker = self.dying.pop(slot)
        worker.dead = True
        while self.receive(worker):
            pass
        del self.workers[slot]
        noted = NUMBER.unpack_from(worker.page)[0]
        self.feed(ev.Gone(slot, Evidence(worker.pid, -9, noted)))

    def cancel(self, job: int) -> None:
        tracker = self.trackers[job]
        if tracker.outcome is None and not tracker.end_early(cancelled()):
            self.feed(ev.CancelAsked(job, self.chance.choice((0.0, 0.0, 1.0))))
        elif job in self.unfinished:
            self.inbox.append(ev.CancelAsked(job, 0.0))

    # --- what has to be true ---------------------------------------------------------------------

    def check(self) -> None:
        self.scheduler.check()
        running = collections.Counter[int]()
        roster, queue = self.scheduler._roster, self.scheduler.queue
        if self.lines.slots:
            assert not roster.idle or roster.running >= roster.max_workers, "one could have them"
            least = min(job.priority for slot in self.lines.slots.values() for job in slot.line)
            if queue.count and queue.first().priority > least:
                first = self.trackers[queue.first().number]
                # It was to be sent ahead with the others.
                assert first.outcome or self.inbox, "it was to come before"
        for slot in self.scheduler.slots.values():
            self.check_line(slot)
        for job, tracker in self.trackers.items():
            status = tracker.status
            before = self.seen.get(job, JobStatus.QUEUED)
            assert before not in FINAL_STATES or status is before
            if before is JobStatus.RUNNING and status is JobStatus.QUEUED:
                assert job in self.requeued, "it was RUNNING, and has not begun"
            self.seen[job] = status
            if status is JobStatus.RUNNING and not tracker.is_over():
                assert tracker.pid is not None
                running[tracker.pid] += 1
        assert max(running.values(), default=0) <= 1, "two jobs run in one worker"
        known = set(self.scheduler.jobs)
        assert known <= self.unfinished.keys()
        begun = collections.Counter(self.all_begun())
        for job, count in begun.items():
            assert count <= 1 + self.tries[job], "a job begins twice"

    def check_line(self, slot: Slot) -> None:
        if slot.state is not BUSY or slot.number not in self.workers:
            assert not slot.line or slot.state is not BUSY
            return
        assert len(slot.line) <= MOST
        has = self.workers[slot.number].has
        if has is not None and slot.job is not None and has == (slot.job.number, slot.attempt):
            assert self.trackers[has[0]].status is JobStatus.RUNNING
        if self.most_jobs is not None:
            ahead = 1 if slot.job is not None else 0
            assert slot.served + ahead + len(slot.line) <= self.most_jobs

    def all_begun(self) -> Iterator[int]:
        yield from self.gone_begun
        for worker in self.workers.values():
            yield from worker.begun

    gone_begun: list[int]

    def end(self) -> None:
        """Let everything come to its end, and look whether each job has one that fits."""
        self.feed(ev.ShutDown(cancel=False))
        for _ in range(100_000):
            if self.scheduler.closed:
                break
            for worker in list(self.workers.values()):
                worker.step()
                self.receive(worker)
            if self.starting:
                self.start(self.starting[0])
            if self.dying:
                self.be_gone(next(iter(self.dying)))
            while self.inbox:
                self.feed(self.inbox.popleft())
            self.now += 0.01
            self.recall.look()
            due = self.scheduler.next_deadline()
            if due is not None and due <= self.now:
                self.feed(self.recall.tick())
        assert self.scheduler.closed
        assert not self.scheduler.jobs
        begun = collections.Counter(self.all_begun())
        for job, tracker in self.trackers.items():
            assert tracker.outcome is not None, job
            fate = self.ends.get(job)
            if isinstance(fate, Message):
                assert begun[job] >= 1
                assert [status for status, _ in tracker.history()].count(JobStatus.RUNNING) >= 1
            if fate is None:
                assert tracker.outcome.status is JobStatus.CANCELLED
                assert not begun[job], "cancelled while it was queued"


def play(seed: int, steps: int) -> World:
    world = World(seed)
    world.gone_begun = []
    remove = world.be_gone

    def be_gone(slot: int) -> None:
        world.gone_begun += world.dying[slot].begun
        world.dying[slot].begun = []
        remove(slot)

    world.be_gone = be_gone  # type: ignore[method-assign]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recall, "time", SimpleNamespace(monotonic=lambda: world.now))
            for _ in range(steps):
                world.happen()
                world.check()
            world.end()
    except BaseException as error:
        raise AssertionError(f"seed {seed}") from error
    return world


SOME = 40  # of the worlds; the others are those of a soak


OTHERS = pytest.param(range(SOME, 150), marks=[pytest.mark.soak, pytest.mark.timeout(SOAK)])


@pytest.mark.parametrize("seeds", [range(SOME), OTHERS], ids=str)
def test_whatever_happens(seeds: range) -> None:
    worlds = [play(seed, 120) for seed in seeds]
    assert sum(world.sent_ahead for world in worlds) > 5000
    assert sum(world.taken_back for world in worlds) > 1000


@pytest.mark.soak
@pytest.mark.timeout(SOAK)
@pytest.mark.parametrize("part", range(10))
def test_whatever_happens_often(part: int) -> None:
    for seed in range(1000 * (part + 1), 1000 * (part + 2)):
        play(seed, 200)


def test_a_place_that_is_used_again() -> None:
    """Somebody who has looked up how a job was sent reads the page much later."""
    page = memoryview(bytearray(PAGE_SIZE))
    tracker = StatusTracker()
    tracker.submitted()
    tracker.serialized()
    worker: Any = SimpleNamespace(pid=1, traces=None)
    how = SentAhead(worker, page, 3, 7)
    assert tracker.send_ahead(how)
    assert tracker.status is JobStatus.QUEUED
    tracker.came_back()
    PLACE.pack_into(page, place_at(3), 1, 300)
    assert not how.runs_unnoted()
    assert tracker.status is JobStatus.QUEUED


def test_a_limit_counts_from_the_begin_also_where_that_was_before_a_suspension() -> None:
    scheduler = Scheduler(1, None)
    scheduler.handle(ev.Resized(1), 0.0)
    scheduler.submitted(1, Limits(timeout=10.0), 0.0, True)
    scheduler.handle(ev.Started(1), 0.0)
    scheduler.handle(ev.Ready(1), 0.0)
    slot = scheduler.slots[1]
    scheduler.lines.began(slot, 1.0)
    assert scheduler.next_deadline() == 11.0
    scheduler.handle(ev.Suspended(2.0, 5.0), 6.0)
    assert scheduler.next_deadline() == 14.0


def test_what_is_left_in_a_line_is_not_taken_for_the_job_that_runs() -> None:
    """A job has eaten what its worker was sent: the worker is about to be killed."""
    scheduler = Scheduler(1, None)
    scheduler.lines.most = MOST
    for number in (1, 2, 3, 4):
        scheduler.submitted(number, Limits(), 0.0, True)
    scheduler.handle(ev.Started(1), 0.0)
    scheduler.handle(ev.Ready(1), 0.0)
    (_, sent) = scheduler.answered(1, 1, Message(Kind.RETURNED, 1), 0.0)
    assert isinstance(sent, ev.SendAhead)
    slot = scheduler.slots.pop(1)
    scheduler.slots[1] = slot
    scheduler.lines.slots.clear()
    ahead, *_ = slot.line
    assert scheduler.handle(ev.CancelAsked(ahead.number, 0.0), 0.0) == []
    actions = scheduler.handle(ev.Faulted(1, OSError()), 0.0)
    assert ev.Kill(1) in actions
    assert slot.job is not None
    actions = scheduler.handle(ev.Gone(1, Evidence(1, -9, slot.attempt)), 0.0)
    assert ev.Settle(ahead.number, ev.Cancelled()) in actions
    assert any(isinstance(a, ev.Settle) and isinstance(a.fate, ev.Lost) for a in actions)


def test_whoever_gets_free_takes_from_the_lines_of_others() -> None:
    world = World(0)
    world.gone_begun = []
    world.scheduler = scheduler = Scheduler(2, None)
    world.recall = Recall(
        scheduler,
        cast("JobRegistry", world),
        cast("Fleet", SimpleNamespace(ahead=world, workers=world.workers)),
        world.carry_out,
        world.tell,
        world.log,
    )
    world.lines = scheduler.lines
    world.chance = random.Random(0)
    world.chance.random = lambda: 0.5  # type: ignore[method-assign]
    world.chance.choice = lambda seq: seq[0]  # type: ignore[method-assign]
    for _ in range(40):
        world.submit()
    while world.starting:
        world.start(world.starting[0])
    slow, fast = world.workers.values()
    slow.step()
    slow.step()
    assert world.receive(slow)
    assert scheduler.slots[slow.slot].line
    while scheduler.lines.slots:
        fast.step()
        if not world.receive(fast):
            assert fast.has, "it has none, and others have a line"
    slow.step()
    assert fast.queue or fast.has
    world.check()
