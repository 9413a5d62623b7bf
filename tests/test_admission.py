"""When a job may start that needs more than any worker: the scheduler's part, without a process."""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest
from scheduler_events import Answered, Submitted, Told, tell

from primitive_jobs._engine.admission import PATIENCE
from primitive_jobs._engine.events import (
    Action,
    Assign,
    CancelAsked,
    Died,
    Gone,
    InitFailed,
    Kill,
    Leave,
    LookAtMemory,
    MemorySeen,
    NotInitialized,
    Overcommit,
    Ready,
    Resized,
    Settle,
    ShutDown,
    Spawn,
    Started,
    StartFailed,
    Tick,
)
from primitive_jobs._engine.reservations import FRESH, LEAST_RESERVE, MOST_RESERVE
from primitive_jobs._engine.scheduler import MAX_STARTS, Scheduler
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs.insight.waits import waits_for
from primitive_jobs.options import CPUS, MEMORY, Needs

RETURNED = Message(Kind.RETURNED)
GB = 10**9


class Pool:
    """A scheduler whose workers start at once, and a clock."""

    def __init__(self, workers: int, **ways: Any) -> None:
        self.scheduler = Scheduler(workers, ways.pop("idle_timeout", None), None, 0, **ways)
        self.now = 0.0
        self.jobs = 0
        self.running: dict[int, tuple[int, int]] = {}  # job: slot, attempt
        self.order: list[int] = []
        self.actions: list[Action] = []
        self.widths: dict[int, int] = {}

    def tell(self, *events: Told) -> list[Action]:
        self.actions = []
        todo = list(events)
        while todo:
            event = todo.pop(0)
            self.now += 1e-6 * isinstance(event, Gone)
            for action in tell(self.scheduler, event, self.now):
                self.actions.append(action)
                if isinstance(action, Spawn):
                    self.widths[action.slot] = action.cpus
                    todo += [Started(action.slot), Ready(action.slot)]
                elif isinstance(action, Assign):
                    self.running[action.job] = action.slot, action.attempt
                    self.order.append(action.job)
                elif isinstance(action, Leave):
                    todo += [Died(action.slot)]
                elif isinstance(action, Kill):
                    todo += [Gone(action.slot, Evidence(1, 0))]
            self.scheduler.check()
        return self.actions

    def submit(self, needs: Needs | None = None, priority: int = 0) -> int:
        self.jobs += 1
        self.tell(Submitted(self.jobs, priority, needs=needs))
        return self.jobs

    def end(self, job: int) -> None:
        slot, attempt = self.running.pop(job)
        self.tell(Answered(slot, attempt, RETURNED))

    def tokens(self, job: int) -> dict[str, tuple[int, ...]]:
        return self.scheduler.tokens_of(self.running[job][0])

    def see(self, available: int, used: int = 0) -> None:
        self.tell(MemorySeen(available, dict.fromkeys(self.running.values(), used)))

    def lacks(self, needs: Needs) -> tuple[Any, ...]:
        return self.scheduler.admission.lacking.get(needs.row, ((), None))[0]


def gpu(count: int = 1) -> Needs:
    return Needs(1, 0, [("gpu", count)])


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_are_given_once_and_come_back() -> None:
    pool = Pool(4, tokens={"gpu": 2})
    first, second, third = (pool.submit(gpu()) for _ in range(3))
    assert {*pool.running} == {first, second}
    assert pool.tokens(first) == {"gpu": (0,)}
    assert pool.tokens(second) == {"gpu": (1,)}
    assert pool.lacks(gpu()) == ("gpu",)
    plain = pool.submit()
    assert plain in pool.running, "it needs none"
    pool.end(first)
    assert pool.tokens(third) == {"gpu": (0,)}


def test_a_token_prefers_the_worker_that_had_it_last() -> None:
    pool = Pool(3, tokens={"gpu": 2})
    jobs = [pool.submit(gpu()), pool.submit(gpu()), pool.submit()]
    had = {pool.tokens(job)["gpu"][0]: pool.running[job][0] for job in jobs[:2]}
    for job in reversed(jobs):
        pool.end(job)
    for _ in range(3):
        pair = [pool.submit(gpu()), pool.submit(gpu())]
        assert {pool.tokens(job)["gpu"][0]: pool.running[job][0] for job in pair} == had
        for job in pair:
            pool.end(job)


@pytest.mark.parametrize("end", ["cancelled", "died", "answered late"])
def test_what_a_killed_job_had_is_kept_until_nothing_is_left_of_its_worker(end: str) -> None:
    scheduler = Scheduler(2, None, None, 0, memory=100, tokens={"gpu": 1})
    needs = Needs(1, 70, [("gpu", 1)])
    for event in (Submitted(1, needs=needs), Submitted(2, needs=needs), Started(1), Ready(1)):
        tell(scheduler, event, 0.0)
    for other in (Submitted(3), Started(2), Ready(2), Answered(2, 2, RETURNED)):
        tell(scheduler, other, 0.0)
    assert scheduler.tokens_of(1) == {"gpu": (0,)}
    tell(scheduler, Died(1) if end == "died" else CancelAsked(1), 1.0)
    if end == "answered late":
        assert any(isinstance(a, Settle) for a in tell(scheduler, Answered(1, 1, RETURNED), 1.0))
    assert not any(isinstance(a, Assign) for a in tell(scheduler, Tick(), 2.0))
    assert scheduler.tokens_of(1) == {"gpu": (0,)}
    assert Assign(2, 2, 3) in tell(scheduler, Gone(1, Evidence(1, -9)), 3.0)
    assert scheduler.tokens_of(2) == {"gpu": (0,)}
    scheduler.check()


# --- CPUs -----------------------------------------------------------------------------------------


def test_a_wide_job_has_a_worker_of_its_own_width() -> None:
    pool = Pool(4)
    plain = [pool.submit(), pool.submit()]
    wide = pool.submit(Needs(2))
    assert pool.widths[pool.running[wide][0]] == 2
    assert pool.scheduler._roster.taken == 4
    late = pool.submit()
    assert late not in pool.running
    pool.end(wide)
    assert pool.running[late][0] != pool.running.get(wide, (None,))[0]
    assert pool.widths[pool.running[late][0]] == 1
    again = pool.submit(Needs(2))
    assert again not in pool.running, "three CPUs are taken"
    pool.end(plain[0])
    assert pool.widths[pool.running[again][0]] == 2
    assert sorted(pool.widths.values()) == [1, 1, 1, 2], "the idle one was used again"


def test_idle_wide_workers_leave_for_another_width_and_by_their_time() -> None:
    pool = Pool(4, idle_timeout=10.0)
    pool.end(pool.submit(Needs(2)))
    pool.end(pool.submit(Needs(3)))
    assert [slot.width for slot in pool.scheduler.slots.values()] == [3]
    pool.now += 10.0
    assert pool.scheduler.next_deadline() == pool.now
    pool.tell(Tick())
    assert not pool.scheduler.slots


def test_after_a_resize_a_job_takes_what_there_is() -> None:
    pool = Pool(4)
    first = pool.submit(Needs(4))
    second = pool.submit(Needs(4))
    pool.tell(Resized(2))
    pool.end(first)
    assert pool.widths[pool.running[second][0]] == 2
    pool.tell(Resized(1))
    third = pool.submit(Needs(3))
    pool.end(second)
    assert pool.widths[pool.running[third][0]] == 1


def test_cpus_are_not_given_to_later_ones_while_a_wide_worker_starts() -> None:
    scheduler = Scheduler(2, None, None, 0)
    for event in (Submitted(1), Submitted(2), Started(1), Ready(1), Started(2), Ready(2)):
        tell(scheduler, event, 0.0)
    tell(scheduler, Submitted(3, needs=Needs(2)), 0.0)
    tell(scheduler, Submitted(4), 0.0)
    assert Assign(1, 4, 3) in tell(scheduler, Answered(1, 1, RETURNED), 1.0), "it passes"
    tell(scheduler, Answered(2, 2, RETURNED), 1.0)
    actions = tell(scheduler, Answered(1, 3, RETURNED), 1.0)
    assert Spawn(3, 2) in actions
    assert tell(scheduler, Submitted(5), 1.0) == [], "the CPUs are the wide one's"
    tell(scheduler, Started(3), 1.0)
    assert Assign(3, 3, 4) in tell(scheduler, Ready(3), 1.0)
    scheduler.check()


def test_a_wide_worker_that_does_not_get_ready_fails_those_that_wait_for_it_alone() -> None:
    scheduler = Scheduler(2, None, None, 0, tokens={"gpu": 1})
    for event in (
        Submitted(1, needs=gpu()),
        Started(1),
        Ready(1),
        Submitted(2, needs=gpu()),
        Submitted(3, needs=Needs(2)),
    ):
        tell(scheduler, event, 0.0)
    tell(scheduler, Answered(1, 1, RETURNED), 0.0)
    scheduler.check()
    assert [job.number for job in scheduler.admission.jobs()] == [3], "the other runs"
    tell(scheduler, Answered(1, 2, RETURNED), 0.0)
    slot = max(scheduler.slots)
    assert scheduler.slots[slot].width == 2
    tell(scheduler, Submitted(4, needs=Needs(2, 0, [("gpu", 1)])), 0.0)
    tell(scheduler, Started(slot), 0.0)
    message = Message(Kind.INIT_FAILED)
    actions = tell(scheduler, InitFailed(slot, message), 0.0)
    assert Settle(3, NotInitialized(message, None)) in actions, "an idle narrow one is of no use"
    assert 4 in scheduler.jobs, "its turn comes: with another worker"
    assert Spawn(slot + 1, 2) in actions
    assert Assign(1, 5, 3) in tell(scheduler, Submitted(5, 1), 0.0) or 5 in scheduler.jobs
    scheduler.check()


def test_while_no_wide_worker_may_start_others_have_the_cpus() -> None:
    """One of the width works, so the next start is put off, and nobody waits for that."""
    scheduler = Scheduler(4, None, None, 0)
    for event in (Submitted(1, needs=Needs(2)), Started(1), Ready(1)):
        tell(scheduler, event, 0.0)
    tell(scheduler, Submitted(2), 0.0)
    tell(scheduler, Started(2), 0.0)
    tell(scheduler, Ready(2), 0.0)
    tell(scheduler, Answered(2, 2, RETURNED), 0.0)
    assert Spawn(3, 2) in tell(scheduler, Submitted(3, needs=Needs(2)), 0.0)
    tell(scheduler, Started(3), 0.0)
    tell(scheduler, InitFailed(3, Message(Kind.INIT_FAILED)), 0.0)
    assert 3 in scheduler.jobs
    actions = tell(scheduler, Submitted(4), 0.1)
    assert Assign(2, 4, 3) in actions
    due = scheduler.next_deadline()
    assert due is not None
    assert due > 0.1
    scheduler.check()


def test_a_wide_worker_that_cannot_be_started_is_tried_so_often() -> None:
    scheduler = Scheduler(2, None, None, 0)
    actions = tell(scheduler, Submitted(1, needs=Needs(2)), 0.0)
    for _ in range(MAX_STARTS):
        (slot,) = scheduler.slots
        assert Spawn(slot, 2) in actions
        actions = tell(scheduler, StartFailed(slot, Evidence(error=OSError())), 0.0)
    assert [type(action) for action in actions] == [Settle]


# --- memory ---------------------------------------------------------------------------------------


def test_a_budget_is_never_passed_and_nothing_is_looked_at() -> None:
    pool = Pool(4, memory=10 * GB)
    first = pool.submit(Needs(1, 6 * GB))
    second = pool.submit(Needs(1, 6 * GB))
    small = pool.submit(Needs(1, 3 * GB))
    assert {*pool.running} == {first, small}
    assert pool.lacks(Needs(1, 6 * GB)) == (MEMORY,)
    words = waits_for(
        None, (), Needs(1, 6 * GB), *pool.scheduler.admission.lacking[Needs(1, 6 * GB).row]
    )
    assert words == "6.0 GB of memory (4.0 GB free)"
    assert pool.scheduler.next_deadline() is None
    pool.end(first)
    assert second in pool.running


def test_the_machine_is_looked_at_while_a_job_waits_for_it_ten_times_a_second() -> None:
    pool = Pool(4)
    pool.submit()
    assert LookAtMemory() not in pool.actions
    job = pool.submit(Needs(1, 2 * GB))
    assert LookAtMemory() in pool.actions
    assert job not in pool.running
    later = pool.submit()
    assert LookAtMemory() not in pool.actions, "it is being looked"
    assert later in pool.running
    pool.see(GB)
    assert job not in pool.running
    assert pool.scheduler.next_deadline() == FRESH
    pool.now = FRESH
    pool.tell(Tick())
    assert LookAtMemory() in pool.actions
    pool.see(3 * GB)
    assert job in pool.running
    assert pool.scheduler.next_deadline() is None, "nobody waits for it"


def test_short_jobs_do_not_wait_for_a_look_each() -> None:
    pool = Pool(2)
    jobs = [pool.submit(Needs(1, GB)) for _ in range(20)]
    pool.see(3 * GB)
    looks = 0
    for job in jobs:
        pool.end(job)
        looks += LookAtMemory() in pool.actions
    assert looks == 0, "all within the time of one"


def test_what_is_reserved_and_not_used_yet_counts() -> None:
    pool = Pool(4)
    first, second = pool.submit(Needs(1, 4 * GB)), pool.submit(Needs(1, 4 * GB))
    pool.see(5 * GB)
    assert {*pool.running} == {first}
    pool.now += FRESH
    pool.tell(Tick())
    pool.see(5 * GB, used=0)
    assert second not in pool.running, "5 GB are there, of which it may still want 4"
    pool.now += FRESH
    pool.tell(Tick())
    pool.see(5 * GB, used=4 * GB)
    assert second in pool.running


@pytest.mark.parametrize(
    ("available", "reserve"),
    [(GB, LEAST_RESERVE), (4 * GB, 4 * GB // 20), (100 * GB, MOST_RESERVE)],
)
def test_a_part_is_left_to_others(available: int, reserve: int) -> None:
    for over in (0, 1):
        pool = Pool(2)
        pool.submit()  # it runs: so no other starts whatever there is
        job = pool.submit(Needs(1, available - reserve + over))
        pool.see(available)
        assert (job in pool.running) == (not over)


def test_idle_workers_leave_first_and_then_one_job_starts_anyway() -> None:
    pool = Pool(4)
    plain = [pool.submit() for _ in range(3)]
    for job in plain:
        pool.end(job)
    wide = pool.submit(Needs(2))
    pool.end(wide)
    assert len(pool.scheduler.slots) == 4
    jobs = [pool.submit(Needs(1, 5 * GB)) for _ in range(2)]
    pool.see(GB)
    assert [action for action in pool.actions if isinstance(action, Leave)]
    assert len(pool.scheduler.slots) == 1
    assert not pool.running, "what they held may be enough"
    pool.now += FRESH
    pool.tell(Tick())
    pool.see(GB)
    assert {*pool.running} == {jobs[0]}, "it would wait for ever"
    missing = 5 * GB - (GB - LEAST_RESERVE)
    assert Overcommit(jobs[0], missing) in pool.actions
    for _ in range(3):
        pool.now += FRESH
        pool.tell(Tick())
        pool.see(GB)
    assert {*pool.running} == {jobs[0]}, "one at a time"
    pool.end(jobs[0])
    pool.now += FRESH
    pool.tell(Tick())
    pool.see(GB)
    assert {*pool.running} == {jobs[1]}


def test_no_spare_is_started_while_memory_is_short() -> None:
    scheduler = Scheduler(1, None, None, 1)
    for event in (Submitted(1), Started(1), Ready(1), Submitted(2, needs=Needs(1, GB))):
        tell(scheduler, event, 0.0)
    tell(scheduler, Answered(1, 1, RETURNED), 0.0)
    tell(scheduler, MemorySeen(0, {}), 0.0)
    actions = tell(scheduler, Submitted(3, 1), 0.0)
    assert Assign(1, 3, 2) in actions or scheduler.running
    assert not any(isinstance(action, Spawn) for action in actions)


# --- in which order -------------------------------------------------------------------------------


def test_a_smaller_job_passes_for_30_seconds_then_the_first_keeps_what_it_lacks() -> None:
    pool = Pool(2, tokens={"gpu": 1})
    running = [pool.submit(), pool.submit(gpu())]
    wide = pool.submit(Needs(2))
    pool.end(running[0])
    passing = pool.submit()
    assert passing in pool.running
    pool.now += PATIENCE
    pool.end(passing)
    late = pool.submit()
    assert late not in pool.running, "the wide one keeps the CPUs"
    higher = pool.submit(priority=1)
    assert higher in pool.running, "it comes before that"
    pool.end(higher)
    pool.end(running[1])
    assert {*pool.running} == {wide}
    pool.end(wide)
    assert {*pool.running} == {late}


def test_only_what_the_first_lacks_is_kept() -> None:
    pool = Pool(4, tokens={"gpu": 2})
    first = pool.submit(gpu())
    both = pool.submit(gpu(2))
    pool.now += PATIENCE
    assert pool.submit() in pool.running
    other = pool.submit(gpu())
    assert other not in pool.running, "one is free, and kept"
    assert pool.lacks(gpu()) == ("gpu",)
    pool.end(first)
    assert both in pool.running
    pool.end(both)
    assert other in pool.running


def test_as_simulated_cpu_jobs_pass_two_long_gpu_jobs() -> None:
    """16 CPUs, one GPU, two GPU jobs of 10 h, and 160 CPU jobs of half an hour behind them."""
    pool = Pool(16, tokens={"gpu": 1})
    begun: dict[int, float] = {}
    length = {pool.submit(gpu()): 36_000.0, pool.submit(gpu()): 36_000.0}
    length.update((pool.submit(), 1800.0) for _ in range(160))
    ends: list[tuple[float, int]] = []
    while True:
        for job in [job for job in pool.order if job not in begun]:
            begun[job] = pool.now
            heapq.heappush(ends, (pool.now + length[job], job))
        if not ends:
            break
        pool.now, job = heapq.heappop(ends)
        pool.end(job)
    assert len(begun) == 162
    assert max(begun[job] for job in range(3, 163)) <= 5.5 * 3600


def test_ten_thousand_different_needs_make_few_rows() -> None:
    rows = {Needs(1, 10_000_000 + 1_000_000 * number).row for number in range(10_000)}
    assert len(rows) < 100
    for number in range(10_000):
        needs = Needs(1, 10_000_000 + 1_000_000 * number)
        assert needs.memory <= needs.row.memory <= needs.memory * 9 / 8


def test_what_it_lacks_in_turn_it_gets_in_the_end() -> None:
    """Of two tokens one is free whenever the other is not, while others keep coming for each."""
    pool = Pool(3, tokens={"a": 1, "b": 1})
    a, b = Needs(1, 0, [("a", 1)]), Needs(1, 0, [("b", 1)])
    ends = [(10.0, pool.submit(a)), (15.0, pool.submit(b))]
    both = pool.submit(Needs(1, 0, [("a", 1), ("b", 1)]))
    came = 0
    while both not in pool.running:
        pool.submit(a)
        pool.submit(b)
        came += 1
        assert came < 20, "it starves"
        ends.sort()
        pool.now, job = ends.pop(0)
        before = {*pool.running}
        pool.end(job)
        ends += [(pool.now + 10.0, new) for new in {*pool.running} - before]
    assert pool.now <= PATIENCE + 2 * 10.0


@pytest.mark.parametrize("idle", [0, 1])
def test_short_memory_does_not_start_workers_over_and_over(idle: int) -> None:
    """Of a wide job that does not fit, and of many narrow ones of which one does."""
    for needs in ([Needs(2, 5 * GB)], [Needs(1, GB // 2)] * 9):
        pool = Pool(8)
        for job in [pool.submit() for _ in range(idle)]:
            pool.end(job)
        jobs = [pool.submit(each) for each in needs]
        starts = 0
        for _ in range(60):
            pool.see(GB * 7 // 10, used=GB // 2)
            starts += sum(isinstance(action, Spawn) for action in pool.actions)
            for job in [*pool.running]:
                pool.end(job)
                starts += sum(isinstance(action, Spawn) for action in pool.actions)
            pool.now += FRESH
            pool.tell(Tick())
            starts += sum(isinstance(action, Spawn) for action in pool.actions)
        assert not any(job in pool.scheduler.jobs for job in jobs), "each has had its turn"
        assert starts <= 2


def test_a_job_in_a_full_pool_is_looked_at_when_it_comes() -> None:
    pool = Pool(2)
    running = [pool.submit(), pool.submit()]
    wide = pool.submit(Needs(2))
    assert pool.lacks(Needs(2)) == (CPUS,)
    pool.now = PATIENCE + 1
    pool.end(running[0])
    assert pool.submit() not in pool.running, "it has waited for so long already"
    pool.end(running[1])
    assert wide in pool.running


def test_others_are_served_as_ever_while_jobs_wait_for_tokens_alone() -> None:
    pool = Pool(2, tokens={"gpu": 1})
    first = pool.submit(gpu())
    pool.submit(gpu())
    plain = pool.submit()
    pool.end(plain)
    assert pool.scheduler.offer() is not None
    assert not pool.scheduler.needs_wake() or pool.scheduler._roster.idle
    plain = pool.submit()
    waiting = pool.submit(Needs(2))
    assert pool.scheduler.offer() is None
    pool.end(plain)
    assert pool.scheduler.offer() is None, "it might have that CPU"
    pool.tell(CancelAsked(waiting))
    assert pool.scheduler.offer() is not None
    pool.end(first)
    assert len(pool.running) == 1


def test_what_could_not_be_killed_keeps_its_tokens() -> None:
    pool = Pool(2, tokens={"gpu": 2})
    job, other = pool.submit(gpu()), pool.submit(gpu())
    slot, _ = pool.running.pop(job)
    tell(pool.scheduler, CancelAsked(job), 1.0)
    tell(pool.scheduler, Gone(slot, Evidence(1, None, left="it hangs")), 2.0)
    pool.scheduler.check()
    pool.end(other)
    late = [pool.submit(gpu()), pool.submit(gpu())]
    assert {*pool.running} == {late[0]}
    assert pool.tokens(late[0]) == {"gpu": (1,)}


def test_a_worker_that_has_become_too_wide_leaves() -> None:
    scheduler = Scheduler(4, None, None, 0)
    tell(scheduler, Submitted(1, needs=Needs(4)), 0.0)
    tell(scheduler, Resized(2), 0.0)
    tell(scheduler, Started(1), 0.0)
    assert Leave(1) in tell(scheduler, Ready(1), 0.0)
    assert [slot.width for slot in scheduler.slots.values()] == [4, 2]
    scheduler.check()


@pytest.mark.parametrize("seed", range(6))
def test_no_job_starves(seed: int) -> None:
    """Each waits at most 30 s and, for each earlier one of its priority, the longest runs."""
    random_ = random.Random(seed)
    cpus, memory, tokens = 4, 100, {"gpu": 2, "x": 1}
    pool = Pool(cpus, memory=memory, tokens=tokens)
    longest, lengths = 50.0, {}
    came: dict[int, float] = {}
    began: dict[int, float] = {}
    ends: list[tuple[float, int]] = []
    arrivals = sorted(random_.uniform(0, 1500) for _ in range(200))
    earlier: dict[int, int] = {}
    while arrivals or ends:
        if arrivals and (not ends or arrivals[0] <= ends[0][0]):
            pool.now = arrivals.pop(0)
            wanted = [(name, random_.randint(0, count)) for name, count in tokens.items()]
            needs = Needs(
                random_.choice([1, 1, 1, 2, 4]),
                random_.choice([0, 0, 30, 100]),
                [(name, count) for name, count in wanted if count],
            )
            unstarted = len(came) - len(began)
            job = pool.submit(needs if needs != Needs() else None)
            came[job], earlier[job] = pool.now, unstarted
            lengths[job] = random_.uniform(1, longest)
        else:
            pool.now, job = heapq.heappop(ends)
            pool.end(job)
        for job in [job for job in pool.order if job not in began]:
            began[job] = pool.now
            heapq.heappush(ends, (pool.now + lengths[job], job))
    assert len(began) == 200
    dimensions = 4
    for job, when in began.items():
        bound = (earlier[job] + 1) * (PATIENCE + dimensions * longest)
        assert when - came[job] <= bound


def test_a_shut_down_waits_for_what_waits() -> None:
    pool = Pool(1, tokens={"gpu": 1})
    first, second = pool.submit(gpu()), pool.submit(gpu())
    pool.tell(ShutDown())
    assert not pool.scheduler.closed
    pool.end(first)
    pool.end(second)
    assert pool.scheduler.closed


def test_a_cancel_takes_one_out_and_others_move_up() -> None:
    pool = Pool(1, tokens={"gpu": 1})
    jobs = [pool.submit(gpu()) for _ in range(4)]
    pool.tell(CancelAsked(jobs[1]))
    pool.tell(CancelAsked(jobs[3]))
    pool.end(jobs[0])
    assert {*pool.running} == {jobs[2]}
    assert pool.scheduler.admission.count == 0


def test_words() -> None:
    needs = Needs(4, 4 * GB, [("gpu", 2), ("x", 1)])
    assert waits_for(None, (), needs) == "a worker"
    assert waits_for(None, (), needs, (CPUS,)) == "4 CPUs"
    assert waits_for(None, (), needs, ("x",)) == "x"
    words = "4 CPUs and 4.0 GB of memory (200 MB free) and 2 gpu"
    assert waits_for(None, (), needs, (CPUS, MEMORY, "gpu"), 200_000_000) == words
    assert waits_for(None, (), Needs(1, GB), (CPUS,)) == "a worker"
