"""Attempts of the short way: many at one time, recorded many at a time.

    made      sender → delivery        in threads of its own
    recorded  one thread → books       many logs and what is owed in one write; then their messages are acked

Owns what happens between "this attempt is ours to make" and "it is on record". Never decides whether an attempt may be
made: `express` does, and says what becomes of its message.
"""

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from webhooks.app import get_services
from webhooks.delivery import PreparedAttempt, read_rate, summarize
from webhooks.errors import StoreUnavailable, trace
from webhooks.ledger import Claim, Delivery
from webhooks.models import COTEvent, COTWebhookLog
from webhooks.retry import Outcome
from webhooks.sender import Answer, OnAnswer, OutgoingRequest
from webhooks.tasks import queue_attempt, store_log, tell_lane

logger = logging.getLogger(__name__)

#: Items that share a step. Under load they gather while the step before is carried out.
_MAX_BATCH = 100

#: Put into a line to end its thread.
END = None


class Source(ABC):
    """The message that an attempt comes from."""

    #: Whether its deliveries were written down with the claim, in a write that a crash of MongoDB may forget.
    is_first: bool

    @abstractmethod
    def end(self, attempt: "Attempt") -> None:
        """Do what is due when an attempt is on record."""

    @abstractmethod
    def give_up(self, attempt: "Attempt") -> None:
        """Have the other way see to it: an attempt cannot be made, or its end cannot be put on record."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One that is ours to make."""

    source: Source
    delivery: Delivery
    claim: Claim
    #: What the delivery's body holds; None where it has not been read.
    event: COTEvent | None


class Attempts:
    """Makes attempts and records them; one per worker process."""

    def __init__(self) -> None:
        """Make one; `start` starts its thread."""
        self._ended: queue.SimpleQueue[tuple[Attempt, COTWebhookLog] | None] = queue.SimpleQueue()
        self._recorder = new_thread(self._record_all, "record")
        #: Requests that are not answered yet.
        self._under_way = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Start the thread."""
        self._recorder.start()

    def close(self) -> None:
        """End what was begun, and wait for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)
        self._ended.put(END)
        self._recorder.join()

    # ── Making ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def make(self, attempts: Iterable[Attempt]) -> None:
        """Have attempts made."""
        services, attempts = get_services(), list(attempts)
        requests: list[tuple[OutgoingRequest, OnAnswer]] = []
        try:
            webhooks = services.webhooks.get_many({one.delivery.webhook_id for one in attempts})
        except Exception as error:  # noqa: BLE001 - whatever it is
            for attempt in attempts:
                _leave(attempt, error)
            return
        for attempt in attempts:
            delivery = attempt.delivery
            try:
                webhook = webhooks[delivery.webhook_id]
                prepared = services.attempter.prepare(delivery, webhook, attempt.claim, attempt.event)
            except Exception as error:  # noqa: BLE001 - whatever it is, a thread must not end of it
                _leave(attempt, error)
                continue
            if isinstance(prepared.request, Answer):
                self._end(attempt, prepared, prepared.request)
            else:
                requests.append((prepared.request, partial(self._end_request, attempt, prepared)))
        with self._changed:
            self._under_way += len(requests)
        services.attempter.sender.submit_many(requests)

    def _end_request(self, attempt: Attempt, prepared: PreparedAttempt, answer: Answer) -> None:
        try:
            self._end(attempt, prepared, answer)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _end(self, attempt: Attempt, prepared: PreparedAttempt, answer: Answer) -> None:
        """Have an attempt recorded, and queue its retry if it failed."""
        with _after(attempt):
            log = get_services().attempter.conclude(prepared, answer)
            try:
                tell_lane(attempt.delivery.lane, prepared.webhook, log)
                _queue_retry(prepared, log)
            finally:
                self._ended.put((attempt, log))

    # ── Recording ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _record_all(self) -> None:
        while True:
            batch = take_batch(self._ended)
            is_last = batch[-1] is END
            ended = batch[:-1] if is_last else batch
            if ended:
                _record(ended)
            if is_last:
                return


@contextmanager
def _after(attempt: Attempt) -> Iterator[None]:
    """Survive a defect met after the request went out.

    The claim stays: when it has run out, the other way puts an interrupted attempt on record, and repeats it.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, a thread must not end of it
        note_long_way(error)
        attempt.source.give_up(attempt)


def _leave(attempt: Attempt, error: Exception) -> None:
    """Have the other way make an attempt, as if it had not been begun; that knows what to do about a defect."""
    note_long_way(error)
    get_services().ledger.give_up(attempt.claim)
    attempt.source.give_up(attempt)


def _queue_retry(prepared: PreparedAttempt, log: COTWebhookLog) -> None:
    delivery, retry, next_at = prepared.delivery, prepared.claim.retry + 1, log.details.next_at
    if next_at is None:
        return
    countdown = (next_at - log.createdAt).total_seconds()
    try:
        rate = read_rate(prepared.webhook)
        queue_attempt(delivery.delivery_id, delivery.label, retry, delivery.lane, countdown, rate)
    except Exception as error:  # noqa: BLE001 - the ledger will say that it is due, and the sweep queues it
        logger.warning("the retry of %s waits for the sweep: %s", delivery.delivery_id, type(error).__name__)


def _record(ended: list[tuple[Attempt, COTWebhookLog]]) -> None:
    books = get_services().books
    logs = [log for _, log in ended]
    #: What is owed further must outlive a crash of MongoDB, which a delivery written down with its claim need not.
    unsafe = [one for one, log in ended if one.source.is_first and (log.details.next_at or log.details.kept)]
    try:
        books.accept_many([one.delivery for one in unsafe])
        faults = books.record_many(logs)
    except Exception:  # noqa: BLE001 - one by one it is held, kept by the broker, or named
        for log in logs:
            store_log(log)
        for one in unsafe:
            # A crash of MongoDB may have forgotten the delivery: the other way writes it down again.
            one.source.give_up(one)
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
        attempt.source.end(attempt)


def note_long_way(error: Exception) -> None:
    """Say in the log why messages go the other way."""
    if isinstance(error, StoreUnavailable | OperationalError | RedisError):
        logger.warning("messages go the long way: %s", error)
    else:
        logger.error("messages go the long way: %s", trace(error))


def take_batch(line: "queue.SimpleQueue[Any]", timeout_s: float | None = None) -> list[Any]:
    """Wait for one item, and take those that are there by then, up to `END`; none when time is up."""
    batch: list[Any] = []
    try:
        batch.append(line.get(timeout=timeout_s))
        while len(batch) < _MAX_BATCH and batch[-1] is not END:
            batch.append(line.get_nowait())
    except queue.Empty:
        pass
    return batch


def new_thread(run: Callable[[], object], name: str) -> threading.Thread:
    """Make a thread of the short way; it ends with the process at the latest."""
    return threading.Thread(target=run, name=f"express-{name}", daemon=True)
