"""`HandOff`: a caller sends its job to an idle worker without the dispatcher.

That saves two wake-ups of a round trip, those of the dispatcher. Before the dispatcher sleeps
it may make an *offer*: one idle worker, and the number that the next attempt will have. Its list
of claims decides, as the gate of a job does, who has it: the first job that is appended or, with
None, the dispatcher, which takes each offer back before it does anything else.

=============================  ====================================================================
what may happen                why nothing is lost, or done twice
=============================  ====================================================================
two callers claim it           the first claim has it; the other's job is in the inbox as usual
a caller claims what was       the dispatcher's None is the first claim then
taken back
the caller is interrupted,     its job is in the inbox since before the claim: the dispatcher finds
or stands still                the claim, and sends the job again; a worker takes no notice of an
                               attempt that it has had
its memory is limited          its caller has it watched before it sends it, as long as the first
                               claim is its own; who takes it over has it watched anew
it still sends when the        its offer is kept among the late senders until it is over, and the
worker is gone                 channel open till then: nobody else can get its descriptor's number
commands came before the job   only the first command in the inbox can claim, so that commands that
                               came before it are carried out before it (changed code, say)
the job is cancelled           its tracker's gate decides: taken by the offer, or ended
=============================  ====================================================================
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

from .._wire.channel import ChannelClosed, PacketChannel
from .._wire.messages import ENDS, Kind
from ..insight.traces import Traces
from ..options import DEFAULT_LIMITS, Limits
from .events import Died, Event, HandedOver
from .fleet import Direct, Fleet, Memory, Worker
from .gate import HandOver
from .inbox import Inbox
from .record import JobRecord
from .registry import JobRegistry
from .scheduler import Scheduler

_READ = select.POLLIN


class Offer(HandOver):
    """An idle worker that the next job may be given to by its caller.

    Attributes:
        claims: The first one has it: a job, or None for the dispatcher. Once that has taken the
            job over, it is None again.
        memory: What watches the worker, if the job may not hold more than a limit.
        sent: The job certainly went out.
        over: The caller that claimed it has finished with the channel.
    """

    __slots__ = ("attempt", "channel", "claims", "event", "memory", "over", "sent", "worker")

    def __init__(
        self, worker: Worker, channel: PacketChannel, attempt: int, memory: Memory
    ) -> None:
        # All here, without a call of the base's: one is made for every job.
        self.pid = worker.pid
        self.when = 0.0
        self.noted = False
        self.worker = worker
        self.channel = channel
        self.event = (channel.fd, _READ)  # what the poller says when the answer is there
        self.attempt = attempt
        self.memory = memory
        self.claims: list[JobRecord | None] = []
        self.sent = False
        self.over = False

    @property
    def traces(self) -> Traces:
        """Those of the worker."""
        return self.worker.traces

    def serves(self, limits: Limits) -> bool:
        """Whether a job with these limits needs nothing of the dispatcher.

        What earlier jobs left behind in the worker shall not count against its limit of memory.
        """
        timeout, limit, needs = limits.timeout, limits.memory_limit, limits.needs
        if timeout is not None or needs is not None:
            return False
        if limit is None:
            return True
        held = self.memory.held_by(self.worker)
        return held is not None and held <= limit


def give(offer: Offer, job: JobRecord, commands: Any) -> bool:
    """Give a job to the worker on offer; False if the dispatcher has to see to it.

    Called on its caller's thread, which first reads the offer, then puts the job into the inbox.
    """
    payload, limits = job.payload, job.limits
    if type(payload) is not bytes:
        return False
    if limits is not DEFAULT_LIMITS and not offer.serves(limits):
        return False
    try:
        if commands[0] is not job:
            return False  # others came first
    except IndexError:  # the dispatcher has it
        return False
    # It took no job out of the inbox since the offer was read, unless it took back the offer.
    claims = offer.claims
    claims.append(job)
    if claims[0] is not job:
        return False
    try:
        offer.at, offer.when = time.monotonic(), time.time()
        if not job.tracker.take(offer):
            return True  # cancelled meanwhile
        if limits.memory_limit is not None:
            offer.memory.watch_offered(offer, limits.memory_limit)
        offer.sent = offer.channel.try_to_send(Kind.RUN, offer.attempt, payload)
        return offer.sent
    finally:
        offer.over = True


class HandOff:
    """The offers of one pool; used on the dispatcher's thread, but for reading `offer`.

    Args:
        inbox: The pool's.
        scheduler: The pool's.
        jobs: The pool's.
        fleet: The pool's.
        feed: Tells the scheduler an event.
        failed: Called where taking over a job raises.

    Attributes:
        offer: What a caller may claim; set while the dispatcher sleeps.
        next: What is to be on offer when it sleeps again.
    """

    __slots__ = (
        "_direct",
        "_failed",
        "_feed",
        "_fleet",
        "_inbox",
        "_jobs",
        "_scheduler",
        "next",
        "offer",
    )

    def __init__(
        self,
        inbox: Inbox,
        scheduler: Scheduler,
        jobs: JobRegistry,
        fleet: Fleet,
        feed: Callable[[Event], None],
        failed: Callable[[JobRecord, Worker, Exception], None],
    ) -> None:
        self.offer: Offer | None = None
        self.next: Offer | None = None
        self._inbox = inbox
        self._scheduler = scheduler
        self._jobs = jobs
        self._fleet = fleet
        self._direct = None if fleet.confirms else fleet.direct
        self._feed = feed
        self._failed = failed

    def plan(self) -> None:
        """Decide what to offer next, from the scheduler's present state."""
        self.next = None
        place = None if self._direct is None else self._scheduler.offer()
        if place is not None and self._direct is not None:
            slot, attempt = place
            channel = self._direct.channel_to(slot)
            if channel is not None:
                worker = self._fleet.workers[slot]
                self.next = Offer(worker, channel, attempt, self._fleet.memory)

    def take_back(self, events: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
        """Take the present offer back, and take over the job that claimed it, if one did.

        Return the events that are still to be handled, and whether the plan still holds: then the
        job has ended already, and the next offer is made.
        """
        offer, self.offer = self.offer, None
        direct = self._direct
        assert offer is not None
        assert direct is not None
        offer.claims.append(None)
        job = offer.claims[0]
        if job is None:
            return events, False
        first = self._inbox.commands.popleft()
        assert first is job, "it claimed the offer as the first in the inbox"
        offer.claims = [None]  # whoever comes late; and it does not hold the job any more
        if not job.tracker.take():
            self._jobs.passed(job)
            return events, False  # cancelled meanwhile, and not sent
        try:
            if not offer.over:
                direct.sends_late(offer)
            if offer.sent and len(events) == 1 and events[0] == offer.event:
                return [], self._on_answer(direct, offer, job)
            self._begin(offer, job)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._failed(job, offer.worker, error)
        return events, False

    def call_off(self) -> JobRecord | None:
        """After a bug in the engine: withdraw the offer, and return the job that had claimed it."""
        offer, self.offer = self.offer, None
        if offer is None:
            return None
        offer.claims.append(None)
        return offer.claims[0]

    def _begin(self, offer: Offer, job: JobRecord) -> None:
        """Record that a job was handed over and runs."""
        job.seat = offer
        job.tracker.note(offer)
        self._jobs.register(job)
        slot, (priority, _, memory, retries, grace, delay, _) = offer.worker.slot, job.limits
        numbers = job.number, slot, offer.attempt, priority, memory, retries
        self._feed(HandedOver(*numbers, grace, delay))
        if not offer.sent and not self._fleet.run(slot, offer.attempt, job.payload, None):
            # It may be because the caller has sent it, and the job has ended its worker already:
            # what that has noted tells whether the job began.
            self._feed(Died(slot))

    def _on_answer(self, direct: Direct, offer: Offer, job: JobRecord) -> bool:
        """Receive the worker's first message after a hand-over: the job's outcome, most likely."""
        worker = offer.worker
        try:
            message = direct.first_message(worker)
        except (ChannelClosed, OSError):
            self._begin(offer, job)
            direct.lost(worker)
            return False
        if (
            message is not None
            and message.attempt == offer.attempt
            and message.kind in ENDS
            and self._scheduler.served(worker.slot, offer.attempt, time.monotonic())
        ):
            self._jobs.ran(job, offer, message)
            self.next = Offer(worker, offer.channel, offer.attempt + 1, offer.memory)
            return True
        self._begin(offer, job)
        if message is not None:
            direct.taken_in(worker, message)
        return False


__all__ = ["HandOff", "Offer", "give"]
