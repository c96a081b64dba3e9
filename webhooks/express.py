"""The short way: a worker makes attempts itself, many at a time, past Celery's pool and its tasks.

    webhooks.deliver   one thread → books     events: read, matched, written down as claimed, many in one write
    webhooks.send      one thread → books     retries, and what had to wait for its lane: claimed, many in one write
    both               → attempts             made, recorded, and then acked

The other way, `tasks.deliver` and `tasks.send`, does all of it and is right for everything. This one does what most
messages need: a good event, open gates, no order, and room in the endpoint's lane. Whatever else it meets it hands over
to the other way, as if it had not begun. What comes of a message is the same; a worker killed at any line leaves it
unacked and a claim in the ledger, as there. Measured: the other way costs some eight times as much CPU time.

An event's first attempts need no messages of their own here. What its lane does not let go at once gets one, and waits
in its lane as on the other way.

Celery is told of no task here, so while somebody listens to its events (Flower), all goes the other way.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from bson import ObjectId
from celery.worker import state
from kombu.message import Message

from webhooks.app import Services, app, get_services
from webhooks.attempts import END, Attempt, Attempts, Source, new_thread, note_long_way, take_batch
from webhooks.books import Held
from webhooks.config import get_settings
from webhooks.delivery import describe_event, fan_out
from webhooks.lanes import SEND_QUEUE
from webhooks.ledger import Claim, Claimed
from webhooks.models import TRIGGERS, COTEvent, COTWebhook, parse_event, parse_event_text
from webhooks.tasks import FROM_OUTBOX, queue_attempts
from webhooks.transport import SERIAL, TAKEN_FROM_HEADER, Admission, Channel, Turn, finish

logger = logging.getLogger(__name__)

#: Deliveries of one event beyond which it goes the other way: they would keep the batch's other events waiting.
_MAX_DELIVERIES = 20
#: Seconds for which an attempt that is to be expected at any moment waits here, before it gets a message of its own;
#: and seconds between two looks. Under load what is in hand takes some tenths of a second.
_PUT_BY_S = 1.0
_LOOK_AGAIN_S = 0.003

#: Headers that ask Celery for more than to run the task; and one of ours, for an event out of the outbox.
_OF_CELERY = ("expires", "shadow", "group", FROM_OUTBOX)
_NO_LIMITS = [None, None]
#: Characters of a task's id, and most retries, as in `worker`.
_MAX_ID = 255
_MAX_RETRIES = 1_000_000


class Express:
    """Works messages off the short way; one per worker process."""

    def __init__(self, hostname: str, hand_over: Callable[[Message], object]) -> None:
        """Make one; its threads start with the first message.

        Args:
            hostname: Celery's node name.
            hand_over: has a message go the other way; called from any thread.
        """
        self._hostname = hostname
        self._hand_over = hand_over
        self._events: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._sends: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._attempts = Attempts()
        self._threads = [new_thread(self._accept_all, "accept"), new_thread(self._claim_all, "claim")]
        self._is_open = False
        self._is_closing = False

    def takes(self, message: Message) -> bool:
        """Take a message, if it is one for the short way."""
        headers = message.headers
        if self._is_closing or not isinstance(message.channel, Channel) or not isinstance(headers, dict):
            return False
        task = headers.get("task")
        line = self._events if task == "webhooks.deliver" else self._sends if task == "webhooks.send" else None
        if line is None or not _is_plain(headers, message.content_type, with_retries=line is self._sends):
            return False
        if not self._is_open:
            self._is_open = True
            self._attempts.start()
            for thread in self._threads:
                thread.start()
        line.put(message)
        return True

    def close(self) -> None:
        """End what was begun, and leave the rest: their messages go back with the connection."""
        self._is_closing = True
        if self._is_open:
            self._events.put(END)
            self._sends.put(END)
            for thread in self._threads:
                thread.join()
            self._attempts.close()

    # ── Events ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _accept_all(self) -> None:
        put_by: list[Attempt] = []
        while True:
            batch = take_batch(self._events, _LOOK_AGAIN_S if put_by else None)
            if batch and batch[-1] is END:
                return
            events = self._read_all(batch)
            attempts = [*put_by, *(attempt for event in events for attempt in event.attempts)]
            try:
                put_by = self._begin(attempts, put_by) if attempts else []
            except Exception as error:  # noqa: BLE001 - whatever it is, the other way knows what to do about it
                note_long_way(error)
                put_by = []
                for attempt in attempts:
                    _event_of(attempt).hand_over()

    def _read_all(self, batch: list[Message]) -> "list[_Event]":
        """Read events, and hand those over that are not for this way."""
        events = []
        for message in batch:
            try:
                event = self._read(get_services(), message)
            except Exception as error:  # noqa: BLE001 - likewise
                note_long_way(error)
                event = None
            if event is None:
                self._hand_over(message)
            elif event.attempts:
                events.append(event)
            else:
                # Of others their attempts' lines tell.
                logger.info("event %s (%s): 0 deliveries", message.headers["id"], describe_event(event.event))
                _ack(message)
        return events

    def _read(self, services: Services, message: Message) -> "_Event | None":
        """Read an event's message and find who gets it; None where this way is not for it."""
        try:
            args, kwargs = _read_body(message)
            (value,) = [*args, *kwargs.values()]
            max_bytes = get_settings().max_event_bytes
            event = parse_event_text(value, max_bytes) if isinstance(value, str) else parse_event(value, max_bytes)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, the other way says so
            return None
        webhooks = services.webhooks.of_company(event.company)
        # Which of those in order get it does not matter: events of that type go one at a time.
        if any(webhook.ordered and TRIGGERS[webhook.trigger].type == event.type for webhook in webhooks):
            return None
        deliveries = fan_out(event, message.headers["id"], services.webhooks)
        if len(deliveries) > _MAX_DELIVERIES:
            return None
        taken = _Event(message, event, self._hand_over, time.monotonic() + _PUT_BY_S, len(deliveries))
        for delivery in deliveries:
            claim = Claim(delivery.delivery_id, 0, ObjectId(), self._hostname)
            taken.attempts.append(Attempt(taken, delivery, claim, event))
        return taken

    def _begin(self, attempts: list[Attempt], put_by: list[Attempt]) -> list[Attempt]:
        """Begin the attempts that may be made, queue those that have to wait, hand over the events that are not plain.

        Args:
            attempts: all.
            put_by: those of them that were found to be plain before.

        Returns:
            Those that wait for a moment.
        """
        services = get_services()
        present = time.monotonic()
        looked_at = set(map(id, put_by))
        # The broker and MongoDB are asked at one time: one after the other was a third of the time until the request.
        wait = _ask(attempts, len(attempts))
        try:
            plain = services.books.find_plain([one.delivery for one in attempts if id(one) not in looked_at])
        except BaseException:
            for attempt, turn in zip(attempts, wait(), strict=True):
                if turn is Turn.NOW:
                    _leave_lane(attempt)
            raise
        odd = {id(one.source) for one in attempts if id(one) not in looked_at and one.delivery.delivery_id not in plain}
        turns = []
        for attempt, turn in zip(attempts, wait(), strict=True):
            if id(attempt.source) not in odd:
                turns.append((attempt, turn))
                continue
            if turn is Turn.NOW:
                _leave_lane(attempt)
            _event_of(attempt).hand_over()
        attempts = [attempt for attempt, _ in turns]
        let_go = [attempt for attempt, turn in turns if turn is Turn.NOW]
        put_by = [one for one, turn in turns if turn is Turn.SOON and _event_of(one).queue_at > present]
        begun = {id(attempt) for attempt in put_by}
        try:
            ours = services.books.accept_claimed([(attempt.delivery, attempt.claim) for attempt in let_go])
            mine = [attempt for attempt, is_ours in zip(let_go, ours, strict=True) if is_ours]
            begun.update(map(id, mine))
            rest = [attempt for attempt in attempts if id(attempt) not in begun]
            if rest:
                services.books.accept_many([attempt.delivery for attempt in rest])
                queue_attempts([attempt.delivery for attempt in rest])
        except BaseException:
            # Nothing was begun: whoever comes next must not take these for interrupted attempts.
            for attempt in let_go:
                services.ledger.give_up(attempt.claim)
                _leave_lane(attempt)
            raise
        for attempt, is_ours in zip(let_go, ours, strict=True):
            if not is_ours:
                _leave_lane(attempt)
        for attempt in rest:
            _event_of(attempt).end_one()
        self._attempts.make(mine)
        return put_by

    # ── Attempts with messages of their own ─────────────────────────────────────────────────────────────────────────
    def _claim_all(self) -> None:
        while True:
            batch = take_batch(self._sends)
            if batch[-1] is END:
                return
            sends = []
            for message in batch:
                delivery_id = _read_delivery_id(message)
                if delivery_id is None:
                    self._hand_over(message)
                else:
                    claim = Claim(delivery_id, message.headers.get("retries", 0), ObjectId(), self._hostname)
                    sends.append(_Send(message, claim, self._hand_over))
            try:
                self._attempts.make(self._claim(sends))
            except Exception as error:  # noqa: BLE001 - likewise
                note_long_way(error)
                for send in sends:
                    send.leave()

    def _claim(self, sends: "list[_Send]") -> list[Attempt]:
        """Claim attempts; return those that are to be made here, and see to the others' messages."""
        services = get_services()
        attempts = []
        claimed = services.books.claim_many([send.claim for send in sends]) if sends else []
        found = [one.delivery.webhook_id for one in claimed if isinstance(one, Claimed)]
        webhooks = services.webhooks.get_many(set(found)) if found else {}
        for send, one in zip(sends, claimed, strict=True):
            if one is None or isinstance(one, Held):
                _ack(send.message)  # nothing is owed any more, or it waits to be let out
            elif isinstance(one, Claimed) and _is_plain_claim(one, webhooks[one.delivery.webhook_id]):
                services.progress.taken_due_at = one.due_at or services.progress.taken_due_at
                attempts.append(Attempt(send, one.delivery, send.claim, None))
            else:
                send.leave()
        return attempts


@dataclass(slots=True, eq=False)
class _Event(Source):
    """An event's message, and what it waits for."""

    message: Message
    event: COTEvent
    _hand_over: Callable[[Message], object]
    #: When to queue attempts that could not be begun, by `time.monotonic`.
    queue_at: float
    #: Attempts that are to end, or to be queued, before it is acked.
    left: int
    attempts: list[Attempt] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    #: Whether it goes the other way, which acks it.
    _is_given_up: bool = False

    is_first = True

    def end(self, attempt: Attempt) -> None:
        """Leave the lane, and ack the event with its last attempt."""
        _leave_lane(attempt)
        self.end_one()

    def give_up(self, attempt: Attempt) -> None:
        """Have the event go the other way; what of it was begun goes on."""
        _leave_lane(attempt)
        self.hand_over()

    def hand_over(self) -> None:
        """Have it go the other way, once."""
        with self._lock:
            if self._is_given_up or self.message.acknowledged:
                return
            self._is_given_up = True
        self._hand_over(self.message)

    def end_one(self) -> None:
        """Note that an attempt has ended, or is queued; ack the event with the last one."""
        with self._lock:
            self.left -= 1
            is_last = not self.left and not self._is_given_up
        if is_last:
            _ack(self.message)


@dataclass(slots=True, eq=False)
class _Send(Source):
    """An attempt's own message."""

    message: Message
    claim: Claim
    _hand_over: Callable[[Message], object]

    is_first = False

    def end(self, attempt: Attempt) -> None:
        """Ack it."""
        _ack(self.message)

    def give_up(self, attempt: Attempt) -> None:
        """Have it go the other way."""
        self._hand_over(self.message)

    def leave(self) -> None:
        """Have it go the other way, as if it had not come here."""
        get_services().ledger.give_up(self.claim)
        self._hand_over(self.message)


def _is_plain(headers: dict[str, Any], content_type: object, *, with_retries: bool) -> bool:
    """Tell whether a message asks for no more than to run its task."""
    lane, task_id, retries = headers.get(TAKEN_FROM_HEADER), headers.get("id"), headers.get("retries", 0)
    return (
        all(headers.get(name) is None for name in _OF_CELERY)
        and headers.get("eta") is None
        and headers.get("timelimit", _NO_LIMITS) == _NO_LIMITS
        and content_type == "application/json"
        and isinstance(lane, str)
        and not lane.endswith(SERIAL)
        and isinstance(task_id, str)
        and 0 < len(task_id) <= _MAX_ID
        and task_id.isprintable()
        and task_id not in state.revoked
        and isinstance(retries, int)
        and 0 <= retries <= (_MAX_RETRIES if with_retries else 0)
    )


def _is_plain_claim(claimed: Claimed, webhook: COTWebhook | None) -> bool:
    is_in_order = webhook is not None and webhook.ordered
    return not claimed.interrupted and not claimed.is_probe and not is_in_order


def _read_body(message: Message) -> tuple[list[Any], dict[str, Any]]:
    """Return a message's arguments.

    Raises:
        Exception: it cannot be decoded.
        TypeError: these are none.
    """
    args, kwargs, embed = cast("Any", message.decode())
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict | None):
        raise TypeError
    return args, kwargs


def _read_delivery_id(message: Message) -> str | None:
    """Return which delivery a message asks to attempt; None where it is not one of ours."""
    try:
        args, kwargs = _read_body(message)
        delivery_id = kwargs["delivery_id"]
        delivery_id.encode()
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the other way says so
        return None
    return delivery_id if not args and len(kwargs) == 1 and isinstance(delivery_id, str) else None


def _event_of(attempt: Attempt) -> _Event:
    return cast("_Event", attempt.source)


def _leave_lane(attempt: Attempt) -> None:
    """Tell of the end of an attempt without a message of its own."""
    finish(SEND_QUEUE, attempt.delivery.lane, str(attempt.claim.log_id))


def _ask(attempts: Sequence[Attempt], in_hand: int) -> Callable[[], list[Turn]]:
    """Ask which attempts may be made at once, as the lanes of their webhooks have it; return what waits for it."""
    asked = [Admission(str(one.claim.log_id), one.delivery.lane, one.delivery.rate) for one in attempts]
    with app.producer_pool.acquire(block=True) as producer:
        channel = producer.channel
        if not isinstance(channel, Channel):
            return lambda: [Turn.LATER] * len(asked)
        return channel.admit(SEND_QUEUE, asked, in_hand)


def _ack(message: Message) -> None:
    try:
        message.ack()
    except Exception as error:  # noqa: BLE001 - the message comes back, and is found to have been handled
        logger.warning("message %s stays unacked: %s", message.headers["id"], type(error).__name__)
