"""The scheduler's queue by itself: its order, and how much work it does for jobs that return."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primitive_jobs._engine.queue import Job, JobQueue


class Counted(int):
    """A job's number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) > int(other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    def __hash__(self) -> int:
        return hash(int(self))


def work_of_a_return(count: int, order: str) -> int:
    """Comparisons made while so many jobs leave the queue, return to it and leave it again."""
    queue = JobQueue()
    jobs = [Job(Counted(number)) for number in range(count)]
    for job in jobs:
        queue.push(job)
    away = [queue.pop() for _ in range(count)]
    if order == "reversed":
        away.reverse()
    elif order == "any":
        random.Random(7).shuffle(away)
    Counted.compared = 0
    queue.push(Job(Counted(count)))  # one that waits behind all that return
    for job in away:
        queue.push(job)
    assert [int(queue.pop().number) for _ in range(count + 1)] == list(range(count + 1))
    return Counted.compared


@pytest.mark.parametrize("order", ["same", "reversed", "any"])
def test_jobs_that_return_take_no_quadratic_work(order: str) -> None:
    few, many = work_of_a_return(500, order), work_of_a_return(4000, order)
    assert many < 8 * 2.5 * few, "eight times as many jobs, and a logarithm"
    assert many < 4000 * 120


STEP = st.one_of(
    st.tuples(st.just("new"), st.integers(-1, 1)),
    st.tuples(st.sampled_from(["pop", "first", "return", "remove"]), st.integers(0, 1 << 16)),
)


@given(st.lists(STEP, max_size=120))
@settings(max_examples=200, deadline=None)
def test_the_queue_is_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    queue = JobQueue()
    waiting: list[Job] = []
    away: list[Job] = []
    number = 0
    for what, choice in steps:
        waiting.sort(key=lambda job: (-job.priority, job.number))
        if what == "new":
            number += 1
            waiting.append(Job(number, choice))
            queue.push(waiting[-1])
        elif what == "return" and away:
            waiting.append(away.pop(choice % len(away)))
            queue.push(waiting[-1])
        elif what == "pop" and waiting:
            away.append(waiting.pop(0))
            assert queue.pop() is away[-1]
        elif what == "first" and waiting:
            assert queue.first() is waiting[0]
        elif what == "remove" and waiting:
            queue.remove(waiting.pop(choice % len(waiting)))
        assert queue.count == len(waiting)
        assert sorted(queue.numbers()) == sorted(job.number for job in waiting)
    waiting.sort(key=lambda job: (-job.priority, job.number))
    assert [queue.pop() for _ in range(queue.count)] == waiting


def test_what_was_removed_is_let_go_among_those_that_returned_too() -> None:
    queue = JobQueue()
    jobs = [Job(number) for number in range(1000)]
    for job in jobs:
        queue.push(job)
    for job in [queue.pop() for _ in range(999)]:
        queue.push(job)
    for job in jobs[:-1]:
        queue.remove(job)
    held = sum(map(len, queue._rows.values())) + sum(map(len, queue._returned.values()))
    assert held < 150
    assert queue.pop() is jobs[-1]
