"""Turn events into deliveries: read, match, store, then attempt or queue.

The worker that received an event makes its first attempts itself where their lanes admit them, without a message for
each. The other deliveries get messages and wait in their lanes.
"""

import logging
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Any, Protocol

from bson import ObjectId

from webhooks.delivery.attempt import fan_out
from webhooks.delivery.meters import EventResult, meters
from webhooks.delivery.outcomes import DeliverOutcome, Done, Failed, ToAttempt
from webhooks.delivery.queueing import FROM_OUTBOX, ask_turns, queue_attempts, queue_next, serialize_lane
from webhooks.delivery.records import PostponedClaim
from webhooks.delivery.services import Services
from webhooks.errors import InvalidEvent, Requeue, StoreUnavailable
from webhooks.models import TRIGGERS, COTEvent, describe_event
from webhooks.producer.deliver import read_event
from webhooks.rules.lanes import SEND_QUEUE, parent_lane
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery
from webhooks.transport.lanes import SERIAL, TAKEN_FROM_HEADER, parent_lane_of
from webhooks.transport.messages import Admission, Turn
from webhooks.transport.settlements import finish

logger = logging.getLogger(__name__)

#: An event with more deliveries than this has all of them queued.
MAX_OWN_DELIVERIES = 20
#: Deliveries that one step reads and one write takes, and bytes of their events: what a step needs of memory and time
#: must not grow with the number of webhooks.
MAX_STEP_DELIVERIES = 1_000
MAX_STEP_BYTES = 16 * 1024 * 1024
#: How long a first attempt waits in the worker for its lane before it is queued. Attempts in flight take some tenths
#: of a second under load.
_WAIT_FOR_TURN_S = 1.0


@dataclass(slots=True, eq=False)
class Accepting:
    """An event between its message and the ledger."""

    event_id: str
    #: A dict, a COTEvent or JSON text; unchecked.
    value: object
    #: Headers of its message; {} where there is none.
    headers: Mapping[str, Any]
    #: Celery's node name.
    worker: str | None = None
    #: Whether the caller makes first attempts itself.
    makes_attempts: bool = False
    #: The parsed event; None until it is read.
    event: COTEvent | None = None
    #: Whether no webhook matches it.
    is_unwanted: bool = False
    #: Its pending deliveries. On redelivery, ended ones are removed once they are found.
    pending: list[Delivery] = field(default_factory=list)
    #: Deliveries that are neither started nor queued yet.
    unplaced: list[Delivery] = field(default_factory=list)
    #: Whether admission was requested from the broker.
    is_asked: bool = False
    #: When to queue deliveries that their lanes did not admit, by `time.monotonic`.
    queue_at: float = 0.0

    @property
    def company(self) -> str:
        """Whose it is, as its lane says before it is read."""
        return str(self.headers.get(TAKEN_FROM_HEADER)).partition("/")[0]

    @property
    def size_bytes(self) -> int:
        """Bytes that its deliveries take, once it is read: each that is attempted here is stored with the event."""
        return len(self.pending[0].body) * (len(self.pending) if self.makes_attempts else 1) if self.pending else 0

    @property
    def is_from_outbox(self) -> bool:
        """Whether the outbox holds the event until its deliveries are stored."""
        return bool(self.headers.get(FROM_OUTBOX))


@dataclass(frozen=True, slots=True)
class Accepted:
    """Result of one `accept` step for one event."""

    #: None: it or some of its deliveries wait for their turn; the step is to be repeated.
    outcome: DeliverOutcome | None
    #: Attempts for the caller to make now.
    attempts: Sequence[ToAttempt] = ()


class Room(Protocol):
    """The caller's capacity for attempts."""

    @property
    def limit(self) -> int:
        """The total capacity."""
        ...

    def take(self, most: int) -> int:
        """Reserve up to `most` free slots; return how many were reserved."""
        ...

    def give_back(self, count: int) -> None:
        """Release reserved slots."""
        ...


def accept(services: Services, events: Sequence[Accepting], room: Room | None = None) -> list[Accepted]:
    """Store the deliveries of events, then start or queue each.

    Args:
        services: the process's services.
        events: new events, and events that an earlier call left unfinished.
        room: capacity for first attempts; each returned attempt holds a slot. None: queue all of them.

    Raises:
        StoreUnavailable: MongoDB is away; the step can be repeated.
        kombu.exceptions.OperationalError: the broker is away; the step can be repeated.
    """
    ended: dict[int, DeliverOutcome] = {}
    deliveries = size_bytes = 0
    for event in _take_turns([event for event in events if event.event is None], services.progress.served):
        if deliveries >= MAX_STEP_DELIVERIES or size_bytes >= MAX_STEP_BYTES:
            break
        if (outcome := _read(services, event)) is not None:
            ended[id(event)] = outcome
        deliveries += len(event.pending)
        size_bytes += event.size_bytes
    going = [event for event in events if event.event is not None]
    # Before an attempt starts: a failure from then on would record interrupted attempts.
    if unwanted := [(one.event_id, one.event) for one in going if one.is_unwanted and one.event is not None]:
        services.traces.write(unwanted)
    begun = _place(services, going, room)
    for event in going:
        if not event.unplaced:
            ended[id(event)] = _finish(services, event, is_told=bool(begun.get(id(event))))
    return [Accepted(ended.get(id(event)), begun.get(id(event), ())) for event in events]


def _take_turns(events: Sequence[Accepting], served: dict[str, int]) -> Iterator[Accepting]:
    """Give out events such that companies take turns, by their deliveries: one event may be for thousands of webhooks.

    Args:
        events: in the order in which they came.
        served: company → deliveries of those that were given out. Companies that have no event here are forgotten.
    """
    lines: dict[str, deque[Accepting]] = {}
    for event in events:
        lines.setdefault(event.company, deque()).append(event)
    for company in served.keys() - lines.keys():
        del served[company]
    least = min(served.values(), default=0)
    turns = [(served.setdefault(company, least), company) for company in lines]
    heapify(turns)
    while turns:
        count, company = turns[0]
        event = lines[company].popleft()
        yield event
        served[company] = count + max(1, len(event.pending))
        if lines[company]:
            heapreplace(turns, (served[company], company))
        else:
            heappop(turns)


def _read(services: Services, one: Accepting) -> DeliverOutcome | None:
    """Read an event and make its deliveries; return the outcome where there is nothing to place."""
    try:
        event = read_event(one.value)
    except InvalidEvent as error:
        logger.warning("event %s is refused, nothing of it is sent: %s", one.event_id, error)
        meters.count_event(EventResult.REFUSED)
        return Failed(error)
    webhooks = services.webhooks.of_company(event.company)
    is_ordered = any(webhook.ordered and TRIGGERS[webhook.trigger].type == event.type for webhook in webhooks)
    lane = one.headers.get(TAKEN_FROM_HEADER)
    if isinstance(lane, str) and not _is_its_turn(one.event_id, event, lane, is_ordered=is_ordered):
        return Failed(Requeue("its turn has not come"))
    if is_ordered and isinstance(lane, str) and one.is_from_outbox and services.outbox.stand_behind_older(one.event_id):
        return Done("older ones come first; it is queued again behind them")
    traceparent = services.tracer and services.tracer.find_parent(one.headers)
    one.pending = one.unplaced = fan_out(event, one.event_id, services.webhooks, traceparent)
    one.is_unwanted = not one.pending
    # `add_claimed` writes without the journal. An ordered or outbox event needs its deliveries journaled first.
    if is_ordered or one.is_from_outbox or len(one.pending) > MAX_OWN_DELIVERIES:
        one.makes_attempts = False
    one.queue_at = time.monotonic() + _WAIT_FOR_TURN_S
    one.event = event
    return None


def _is_its_turn(event_id: str, event: COTEvent, lane: str, *, is_ordered: bool) -> bool:
    """Tell whether an event may be accepted now; switch its parent lane to serial or back where needed.

    Events for ordered webhooks must be accepted one at a time. The transport serializes per company and event type,
    because only this step knows the webhooks. An event that arrived before the switch goes back to its lane.
    """
    parent = parent_lane(event.company, event.type)
    if is_ordered == (lane == parent + SERIAL):
        return True
    serialize_lane(parent, is_serial=is_ordered)
    if not is_ordered:
        return True
    if parent_lane_of(lane) == parent:
        return False
    # Requeued, it would return from the same lane without end.
    logger.warning("event %s may be out of order: its message does not name its company and type", event_id)
    return True


def _place(services: Services, events: Sequence[Accepting], room: Room | None) -> dict[int, list[ToAttempt]]:
    """Start the attempts that may be made now, and queue the others; return the started ones by `id` of their event."""
    pairs = [(event, delivery) for event in events for delivery in event.unplaced]
    asked = [pair for pair in pairs if room is not None and pair[0].makes_attempts and not pair[1].is_ordered]
    places, limit = (0, 0) if room is None else (room.take(len(asked)), room.limit)
    # Beyond the free slots, each delivery is asked for once: is it worth waiting in this worker?
    asked = [pair for number, pair in enumerate(asked) if number < places or not pair[0].is_asked]
    claims = {
        delivery.delivery_id: Claim(delivery.delivery_id, 0, ObjectId(), event.worker) for event, delivery in asked
    }
    admitted: dict[str, Delivery] = {}
    try:
        # The broker works on the admissions while MongoDB reads the webhooks.
        admissions = [Admission(str(claims[d.delivery_id].log_id), d.lane, d.rate) for _, d in asked]
        wait = ask_turns(admissions, places, limit)
        try:
            webhooks = services.webhooks.get_many({delivery.webhook_id for _, delivery in asked})
        finally:
            turns = dict(zip((delivery.delivery_id for _, delivery in asked), wait(), strict=True))
            admitted = {d.delivery_id: d for _, d in asked if turns[d.delivery_id] is Turn.NOW}
        taken, waiting, rest = _sort_out(pairs, turns)
        found = services.records.accept_claimed([(delivery, claims[delivery.delivery_id]) for _, delivery in taken])
        begun = [(*pair, one.created_at) for pair, one in zip(taken, found, strict=True) if isinstance(one, Claimed)]
        # Deliveries that were stored before are queued and claimed like any other.
        rest += [pair for pair, one in zip(taken, found, strict=True) if isinstance(one, Blocked | PostponedClaim)]
        # A redelivered event is older than everything that entered its lanes since.
        again = {delivery.delivery_id for event, delivery in rest if event.headers.get("redelivered")}
        ended = {delivery.delivery_id for (_, delivery), one in zip(taken, found, strict=True) if one is None}
        ended |= _queue(services, rest, again)
    except BaseException:
        # Without this, the next claimant would record interrupted attempts.
        for delivery_id, delivery in admitted.items():
            services.deliveries.give_up(claims[delivery_id])
            leave_lane(delivery, claims[delivery_id])
        if room is not None:
            room.give_back(places)
        raise
    if room is not None:
        room.give_back(places - len(begun))
    for delivery_id in admitted.keys() - {delivery.delivery_id for _, delivery, _ in begun}:
        leave_lane(admitted[delivery_id], claims[delivery_id])
    for event in events:
        event.pending = [delivery for delivery in event.pending if delivery.delivery_id not in ended]
        event.unplaced = []
        event.is_asked = True
    for event, delivery in waiting:
        event.unplaced.append(delivery)
    attempts: dict[int, list[ToAttempt]] = {}
    for event, delivery, at in begun:
        webhook = webhooks[delivery.webhook_id]
        one = ToAttempt(delivery, claims[delivery.delivery_id], webhook, event.event, accepted_at=at)
        attempts.setdefault(id(event), []).append(one)
    return attempts


_Pairs = list[tuple[Accepting, Delivery]]


def _sort_out(pairs: _Pairs, turns: Mapping[str, Turn]) -> tuple[_Pairs, _Pairs, _Pairs]:
    """Split deliveries into those to attempt now, those to wait in this worker, and those to queue."""
    present = time.monotonic()
    now, waiting, rest = [], [], []
    for event, delivery in pairs:
        turn = turns.get(delivery.delivery_id, Turn.SOON if event.makes_attempts else Turn.LATER)
        if turn is Turn.NOW:
            now.append((event, delivery))
        elif turn is Turn.SOON and event.queue_at > present:
            waiting.append((event, delivery))
        else:
            rest.append((event, delivery))
    return now, waiting, rest


def _queue(services: Services, pairs: _Pairs, first: Collection[str]) -> set[str]:
    """Store deliveries and queue their first attempts; return the ids of those that had ended before.

    Args:
        services: the process's services.
        pairs: events with their deliveries.
        first: ids of deliveries that go to the front of their lanes.
    """
    ended: set[str] = set()
    parents = {event.event_id: event.headers for event, _ in pairs}
    for start in range(0, len(pairs), MAX_STEP_DELIVERIES):
        deliveries = [delivery for _, delivery in pairs[start : start + MAX_STEP_DELIVERIES]]
        standing = services.records.accept(deliveries)
        queue_attempts([delivery for delivery in standing if not delivery.is_held], first, parents)
        for webhook_id in {delivery.webhook_id for delivery in standing if delivery.is_ordered}:
            queue_next(services, services.webhooks.get(webhook_id))
        ended |= {delivery.delivery_id for delivery in deliveries} - {delivery.delivery_id for delivery in standing}
    return ended


def _finish(services: Services, one: Accepting, *, is_told: bool) -> Done:
    """Finish an event once all its deliveries are placed. Must not raise, as other events' attempts have begun."""
    if one.is_from_outbox:
        try:
            services.outbox.remove(one.event_id)
        except StoreUnavailable as error:
            logger.warning("event %s stays in the outbox until the relay queues it again: %s", one.event_id, error)
    meters.count_event(EventResult.UNMATCHED if one.is_unwanted else EventResult.MATCHED)
    if one.event is not None and not is_told:  # started attempts write log lines of their own
        logger.info("event %s (%s): %d deliveries", one.event_id, describe_event(one.event), len(one.pending))
    count = "1 delivery" if len(one.pending) == 1 else f"{len(one.pending)} deliveries"
    return Done(f"{count}: " + ", ".join(delivery.label.partition(" → ")[2] for delivery in one.pending[:10]))


def leave_lane(delivery: Delivery, claim: Claim) -> None:
    """Report to the broker that an attempt without a message has ended."""
    finish(SEND_QUEUE, delivery.lane, str(claim.log_id))
