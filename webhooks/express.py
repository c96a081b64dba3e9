"""The short way: a worker makes an event's first attempts itself, many events at a time, without messages of their own.

    taken      worker     → takes          an event's message that needs nothing of Celery's besides its ack
    accepted   one thread → books          read, matched, written down as claimed, many events in one write
    attempted  one thread → delivery       over kept connections, many at a time, without waiting for one
               threads    → delivery       what needs a connection, or to be waited for; as `tasks.send` does it
    recorded   one thread → books          many logs and what is owed in one write; then the messages are acked

The other way, `tasks.deliver` and `tasks.send`, does all of it and is right for everything. This one does what most
events need: a good event, open gates, no order, and room in the endpoint's lane. Whatever else it meets it hands over
to the other way, as if it had not begun. What comes of an event is the same; a worker killed at any line leaves its
message unacked and a claim in the ledger, as there. Measured: the other way costs some eight times as much CPU time.

Celery is told of no task here, so while somebody listens to its events (Flower), all goes the other way.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from bson import ObjectId
from celery.worker import state
from kombu.exceptions import OperationalError
from kombu.message import Message
from redis.exceptions import RedisError

from webhooks.app import Services, app, get_services
from webhooks.config import get_settings
from webhooks.delivery import BegunAttempt, describe_event, fan_out, read_rate, summarize
from webhooks.errors import StoreUnavailable, trace
from webhooks.lanes import SEND_QUEUE
from webhooks.ledger import Claim, Delivery
from webhooks.models import TRIGGERS, COTEvent, COTWebhook, COTWebhookLog, parse_event, parse_event_text
from webhooks.retry import Outcome
from webhooks.sender import Answer, Exchange, Multiplexer
from webhooks.tasks import FROM_OUTBOX, queue_attempt, queue_attempts, store_log, tell_lane
from webhooks.transport import SERIAL, TAKEN_FROM_HEADER, Admission, Channel, Turn, finish

logger = logging.getLogger(__name__)

#: Items that share a step. Under load they gather while the step before is carried out.
_MAX_BATCH = 100
#: Deliveries of one event beyond which it goes the other way: they would keep the batch's other events waiting.
_MAX_DELIVERIES = 20
#: Seconds for which an attempt that is to be expected at any moment waits here, before it gets a message of its own;
#: and seconds between two looks.
_PUT_BY_S = 0.2
_LOOK_AGAIN_S = 0.003

#: Headers that ask Celery for more than to run the task; and one of ours, for an event out of the outbox.
_OF_CELERY = ("eta", "expires", "shadow", "group", FROM_OUTBOX)
_NO_LIMITS = [None, None]
#: Characters of a task's id, as in `worker`.
_MAX_ID = 255

#: Put into a line to end its thread.
_END = None


@dataclass(slots=True)
class _Taken:
    """An event's message, and what it waits for."""

    message: Message
    event: COTEvent
    #: When to queue attempts that could not be begun, by `time.monotonic`.
    queue_at: float
    #: Attempts that are to end, or to be queued, before it is acked.
    left: int
    attempts: "list[_Attempt]" = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Whether it goes the other way, which acks it.
    is_given_up: bool = False


@dataclass(slots=True, eq=False)
class _Attempt:
    taken: _Taken
    delivery: Delivery
    claim: Claim
    #: None where it has to be begun by a thread.
    begun: BegunAttempt | None = None

    @property
    def tag(self) -> str:
        """What it counts as in its lane."""
        return str(self.claim.log_id)


class Express:
    """Works off events the short way; one per worker process."""

    def __init__(self, hostname: str, hand_over: Callable[[Message], object], threads: int) -> None:
        """Make one; its threads start with the first event.

        Args:
            hostname: Celery's node name.
            hand_over: has a message go the other way; called from any thread.
            threads: attempts at one time, at most.
        """
        self._hostname = hostname
        self._hand_over = hand_over
        self._count = threads
        self._events: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._exchanges: Multiplexer[_Attempt] = Multiplexer(self._begin_exchange, self._end_exchange, threads)
        #: For the threads.
        self._attempts: queue.SimpleQueue[_Attempt | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[_Attempt, COTWebhookLog] | None] = queue.SimpleQueue()
        self._threads: list[list[threading.Thread]] = []
        self._is_closing = False
        #: How each step is told to end.
        self._ends = (
            lambda count: self._events.put(_END),
            lambda count: self._exchanges.close(),
            lambda count: [self._attempts.put(_END) for _ in range(count)],
            lambda count: self._ended.put(_END),
        )

    def takes(self, message: Message) -> bool:
        """Take an event's message, if it is one for the short way."""
        headers = message.headers
        if (
            not isinstance(headers, dict)
            or headers.get("task") != "webhooks.deliver"
            or self._is_closing
            or not isinstance(message.channel, Channel)
        ):
            return False
        lane, event_id = headers.get(TAKEN_FROM_HEADER), headers.get("id")
        if (
            any(headers.get(name) is not None for name in _OF_CELERY)
            or headers.get("retries", 0) != 0
            or headers.get("timelimit", _NO_LIMITS) != _NO_LIMITS
            or message.content_type != "application/json"
            or not isinstance(lane, str)
            or lane.endswith(SERIAL)
            or not isinstance(event_id, str)
            or not 0 < len(event_id) <= _MAX_ID
            or not event_id.isprintable()
            or event_id in state.revoked
        ):
            return False
        if not self._threads:
            self._start()
        self._events.put(message)
        return True

    def close(self) -> None:
        """End what was begun, and leave the rest: their messages go back with the connection."""
        self._is_closing = True
        for end, threads in zip(self._ends, self._threads, strict=False):
            end(len(threads))
            for thread in threads:
                thread.join()

    def _start(self) -> None:
        steps = (
            (self._accept_events, "accept", 1),
            (self._exchanges.run, "exchange", 1),
            (self._make_attempts, "attempt", self._count),
            (self._record_attempts, "record", 1),
        )
        for run, name, count in steps:
            self._threads.append(
                [threading.Thread(target=run, name=f"express-{name}", daemon=True) for _ in range(count)]
            )
            for thread in self._threads[-1]:
                thread.start()

    # ── Accepting ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _accept_events(self) -> None:
        put_by: list[_Attempt] = []
        while True:
            batch = _take_batch(self._events, _LOOK_AGAIN_S if put_by else None)
            if batch and batch[-1] is _END:
                return
            try:
                taken = self._read_all(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other way knows what to do about it
                _note_long_way(error)
                taken = []
                for message in batch:
                    self._hand_over(message)
            attempts = [*put_by, *(attempt for one in taken for attempt in one.attempts)]
            try:
                put_by = self._begin(attempts) if attempts else []
            except Exception as error:  # noqa: BLE001 - likewise
                _note_long_way(error)
                put_by = []
                for attempt in attempts:
                    self._give_up(attempt.taken)

    def _give_up(self, taken: _Taken) -> None:
        """Have an event go the other way; what of it was begun goes on."""
        if not taken.is_given_up and not taken.message.acknowledged:
            taken.is_given_up = True
            self._hand_over(taken.message)

    def _read_all(self, batch: list[Message]) -> list[_Taken]:
        """Read events, and hand those over that are not for this way."""
        services = get_services()
        read = [(message, self._read(services, message)) for message in batch]
        found = [taken for _, taken in read if taken is not None]
        plain = services.books.find_plain([attempt.delivery for taken in found for attempt in taken.attempts])
        good = [taken for taken in found if all(attempt.delivery.delivery_id in plain for attempt in taken.attempts)]
        kept = {id(taken.message) for taken in good}
        for message in batch:
            if id(message) not in kept:
                self._hand_over(message)
        for taken in good:
            if not taken.attempts:
                # Of others their attempts' lines tell.
                event_id, described = taken.message.headers["id"], describe_event(taken.event)
                logger.info("event %s (%s): 0 deliveries", event_id, described)
                _ack(taken)
        return good

    def _read(self, services: Services, message: Message) -> _Taken | None:
        """Read an event's message and find who gets it; None where this way is not for it."""
        try:
            args, kwargs, embed = cast("Any", message.decode())
            if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict | None):
                return None
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
        taken = _Taken(message, event, queue_at=time.monotonic() + _PUT_BY_S, left=len(deliveries))
        taken.attempts = [
            _Attempt(taken, delivery, Claim(delivery.delivery_id, 0, ObjectId(), self._hostname))
            for delivery in deliveries
        ]
        return taken

    def _begin(self, attempts: list[_Attempt]) -> list[_Attempt]:
        """Begin the attempts that may be made, and queue the others; return those that wait for a moment."""
        services = get_services()
        present = time.monotonic()
        turns = list(zip(attempts, _ask(attempts, len(attempts)), strict=True))
        let_go = [attempt for attempt, turn in turns if turn is Turn.NOW]
        put_by = [attempt for attempt, turn in turns if turn is Turn.SOON and attempt.taken.queue_at > present]
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
                finish(SEND_QUEUE, attempt.delivery.lane, attempt.tag)
            raise
        for attempt, is_ours in zip(let_go, ours, strict=True):
            if not is_ours:
                finish(SEND_QUEUE, attempt.delivery.lane, attempt.tag)
        for attempt in rest:
            _end_one(attempt.taken)
        self._exchanges.put(mine)
        return put_by

    # ── Attempting ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _begin_exchange(self, attempt: _Attempt) -> Exchange | None:
        services, delivery = get_services(), attempt.delivery
        webhook = services.webhooks.recall(delivery.webhook_id)
        attempt.begun = services.attempter.begin(delivery, webhook, attempt.claim, attempt.taken.event)
        if attempt.begun is not None:
            return attempt.begun.exchange
        self._attempts.put(attempt)
        return None

    def _end_exchange(self, attempt: _Attempt, answer: Answer | None) -> None:
        if answer is None:
            self._attempts.put(attempt)
        else:
            self._end(attempt, answer)

    def _make_attempts(self) -> None:
        while (attempt := self._attempts.get()) is not None:
            if attempt.begun is None:
                self._make(attempt)
            else:
                self._end(attempt, None)

    def _make(self, attempt: _Attempt) -> None:
        services, delivery = get_services(), attempt.delivery
        try:
            webhook = services.webhooks.get(delivery.webhook_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, a thread must not end of it
            # As if the attempt had not been begun: the other way makes it, and knows what to do about a defect.
            _note_long_way(error)
            services.ledger.give_up(attempt.claim)
            finish(SEND_QUEUE, delivery.lane, attempt.tag)
            self._give_up(attempt.taken)
            return
        with self._after(attempt):
            log = services.attempter.attempt(delivery, webhook, attempt.claim, event=attempt.taken.event)
            self._note_end(attempt, webhook, log)

    def _end(self, attempt: _Attempt, answer: Answer | None) -> None:
        begun = attempt.begun
        if begun is not None:
            with self._after(attempt):
                self._note_end(attempt, begun.webhook, get_services().attempter.end(begun, answer))

    def _note_end(self, attempt: _Attempt, webhook: COTWebhook | None, log: COTWebhookLog) -> None:
        """Have an attempt recorded, and queue its retry if it failed."""
        try:
            tell_lane(attempt.delivery.lane, webhook, log)
            if log.details.next_at is not None:
                self._queue_retry(attempt, webhook, log)
        finally:
            self._ended.put((attempt, log))

    @contextmanager
    def _after(self, attempt: _Attempt) -> Iterator[None]:
        """Survive a defect met after the request went out.

        The claim stays: when it has run out, the other way puts an interrupted attempt on record, and repeats it.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, a thread must not end of it
            _note_long_way(error)
            finish(SEND_QUEUE, attempt.delivery.lane, attempt.tag)
            self._give_up(attempt.taken)

    def _queue_retry(self, attempt: _Attempt, webhook: COTWebhook | None, log: COTWebhookLog) -> None:
        delivery, next_at = attempt.delivery, log.details.next_at
        if next_at is None:
            return
        countdown = (next_at - log.createdAt).total_seconds()
        try:
            queue_attempt(delivery.delivery_id, delivery.label, 1, delivery.lane, countdown, read_rate(webhook))
        except Exception as error:  # noqa: BLE001 - the ledger will say that it is due, and the sweep queues it
            logger.warning("the retry of %s waits for the sweep: %s", delivery.delivery_id, type(error).__name__)

    # ── Recording ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _record_attempts(self) -> None:
        while True:
            batch = _take_batch(self._ended)
            is_last = batch[-1] is _END
            self._record(batch[:-1] if is_last else batch)
            if is_last:
                return

    def _record(self, ended: "list[tuple[_Attempt, COTWebhookLog]]") -> None:
        if not ended:
            return
        books = get_services().books
        logs = [log for _, log in ended]
        try:
            # What is owed further must outlive a crash of MongoDB, which the claimed delivery need not.
            books.accept_many([one.delivery for one, log in ended if log.details.next_at or log.details.kept])
            faults = books.record_many(logs)
        except Exception:  # noqa: BLE001 - one by one it is held, kept by the broker, or named
            for one, log in ended:
                store_log(log)
                # A crash of MongoDB may have forgotten the claimed delivery: the other way writes it down again.
                if log.details.next_at or log.details.kept:
                    self._give_up(one.taken)
        else:
            for log, fault in zip(logs, faults, strict=True):
                if fault is not None:
                    logger.error("log %s cannot be stored: %s: %s", log.id, summarize(log), trace(fault))
        for attempt, log in ended:
            delivery, details = attempt.delivery, log.details
            is_given_up = details.outcome == Outcome.FAILED and details.next_at is None
            logger.log(
                logging.WARNING if is_given_up else logging.INFO,
                "attempt delivery=%s event=%s label=%r: %s",
                *(delivery.delivery_id, delivery.event_id, delivery.label, summarize(log)),
            )
            finish(SEND_QUEUE, delivery.lane, attempt.tag)
            _end_one(attempt.taken)


def _ask(attempts: list[_Attempt], in_hand: int) -> list[Turn]:
    """Ask which attempts may be made at once, as the lanes of their webhooks have it."""
    asked = [Admission(attempt.tag, attempt.delivery.lane, attempt.delivery.rate) for attempt in attempts]
    with app.producer_pool.acquire(block=True) as producer:
        channel = producer.channel
        if not isinstance(channel, Channel):
            return [Turn.LATER] * len(attempts)
        return channel.admit(SEND_QUEUE, asked, in_hand)


def _end_one(taken: _Taken) -> None:
    """Note that an attempt of an event has ended, or is queued; ack the event with the last one."""
    with taken.lock:
        taken.left -= 1
        is_last = not taken.left
    if is_last and not taken.is_given_up:
        _ack(taken)


def _ack(taken: _Taken) -> None:
    try:
        taken.message.ack()
    except Exception as error:  # noqa: BLE001 - the message comes back, and is found to have been handled
        logger.warning("event %s stays unacked: %s", taken.message.headers["id"], type(error).__name__)


def _note_long_way(error: Exception) -> None:
    if isinstance(error, StoreUnavailable | OperationalError | RedisError):
        logger.warning("events go the long way: %s", error)
    else:
        logger.error("events go the long way: %s", trace(error))


def _take_batch(line: "queue.SimpleQueue[Any]", timeout_s: float | None = None) -> list[Any]:
    """Wait for one item, and take those that are there by then, up to `_END`; none when time is up."""
    batch: list[Any] = []
    try:
        batch.append(line.get(timeout=timeout_s))
        while len(batch) < _MAX_BATCH and batch[-1] is not _END:
            batch.append(line.get_nowait())
    except queue.Empty:
        pass
    return batch
