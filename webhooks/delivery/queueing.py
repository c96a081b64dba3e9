"""What a worker asks of the broker: queue an attempt or an event, and what lanes have to know or tell.

A broker without lanes (RabbitMQ, plain Redis) has the same functions; there a lane lets everything through.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from celery import Task
from celery.app.task import Context

from webhooks.delivery.attempt import read_rate
from webhooks.delivery.services import Services
from webhooks.models import COTWebhook, COTWebhookLog
from webhooks.producer.app import app
from webhooks.producer.publishing import OutgoingMessage, publish_many
from webhooks.rules.lanes import SEND_QUEUE
from webhooks.rules.retry import Verdict, is_own_fault, judge_endpoint
from webhooks.store.deliveries import Delivery, PendingDelivery
from webhooks.transport.channel import Channel
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import FIRST_HEADER, RATE_HEADER, TAKEN_FROM_HEADER
from webhooks.transport.messages import Admission, Turn
from webhooks.transport.settlements import report

#: Header of a message whose event is in the outbox, and to be taken out when the ledger has its deliveries.
FROM_OUTBOX = "webhooks_outbox"


#: Keys of a request that are Celery's, kombu's or ours. All others are what the producer or its tracing put there.
_NOT_INHERITED = frozenset(
    {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression", "redelivered", "ignore_result"}
    | {LANE_HEADER, RATE_HEADER, TAKEN_FROM_HEADER, FROM_OUTBOX}
)


def _task(name: str) -> Task:
    return cast("Task", app.tasks[name])


def lane_headers(lane: str | None, rate: Sequence[float] | None) -> dict[str, Any]:
    """Return the headers by which the broker knows an attempt's lane and its limit."""
    given = {LANE_HEADER: lane, RATE_HEADER: None if rate is None else list(rate)}
    return {name: value for name, value in given.items() if value is not None}


def child_headers(parent: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of an attempt's message: its own, and those that the event's producer added.

    So a trace (``traceparent``, ``sentry-trace``) goes on in the attempt and in its retries.

    Args:
        parent: the request or the headers of the event's task.
        own: as `lane_headers` makes them.
    """
    headers = {**{name: value for name, value in parent.items() if name not in _NOT_INHERITED}, **own}
    nested = parent.get("headers")
    if isinstance(nested, dict):
        # Where some tracers keep theirs; if it is there, it is all that the task and its retries know of headers.
        headers["headers"] = {**{name: value for name, value in nested.items() if name not in _NOT_INHERITED}, **own}
    return headers


def queue_attempt(
    delivery_id: str,
    label: str,
    retry: int,
    lane: str | None,
    countdown: float | None = None,
    rate: Sequence[float] | None = None,
) -> None:
    """Queue an attempt of a delivery.

    Args:
        delivery_id: also the id of the message: Flower and `celery inspect` find it by what the receiver knows.
        label: what Flower shows as arguments.
        retry: the attempt's number, from 0.
        lane: `Delivery.lane`; None when it is not known.
        countdown: seconds to wait; None for none.
        rate: `read_rate` of its webhook; None for no limit, or when it is not known. For a lane of which the broker
            knows none.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    options = {"argsrepr": label, "retries": retry, "countdown": countdown, "headers": lane_headers(lane, rate)}
    _task("webhooks.send").apply_async(kwargs={"delivery_id": delivery_id}, task_id=delivery_id, **options)


def queue_attempts(
    deliveries: Sequence[Delivery],
    first: Collection[str] = (),
    parents: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Queue the first attempts of many deliveries, as `queue_attempt` does.

    Args:
        deliveries: all.
        first: the ids of those that come first in their lanes.
        parents: by the event's id, the headers of the message that brought it; see `child_headers`.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; a part of them may be queued.
    """
    drafts = [
        OutgoingMessage(
            delivery.delivery_id,
            (),
            {"delivery_id": delivery.delivery_id},
            delivery.label,
            "retry 0",
            child_headers(parents.get(delivery.event_id, {}), lane_headers(delivery.lane, delivery.rate))
            | ({FIRST_HEADER: True} if delivery.delivery_id in first else {}),
            delivery.event_id,
        )
        for delivery in deliveries
    ]
    publish_many(_task("webhooks.send"), drafts)


def queue_released(owed: PendingDelivery, webhook: COTWebhook | None) -> None:
    """Queue a delivery that was let out, or whose message is lost.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; the sweep finds it.
    """
    queue_attempt(owed.delivery_id, owed.label, owed.retry, owed.lane, rate=read_rate(webhook))


def queue_next(services: Services, webhook: COTWebhook | None) -> bool:
    """Let out and queue the head of an ordered webhook's line, if nothing of it is out and its gate is open.

    Returns:
        Whether one was queued.

    Raises:
        StoreUnavailable: MongoDB is away.
        kombu.exceptions.OperationalError: the broker cannot be reached; the sweep finds what was let out.
    """
    if webhook is None or not services.gates.get(webhook.id).is_open:
        return False
    head = services.held.release_next(webhook.id, services.deliveries.now())
    if head is not None:
        queue_released(head, webhook)
    return head is not None


def queue_accepted(event_id: str, body: str) -> None:
    """Queue an event of the outbox.

    Raises:
        InvalidEvent: somebody wrote it there by hand.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    _task("webhooks.deliver").apply_async((body,), task_id=event_id, headers={FROM_OUTBOX: True})


# ── Lanes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask_turns(attempts: Sequence[Admission], room: int, slots: int) -> Callable[[], list[Turn]]:
    """Ask which first attempts may be made at once, without messages of their own.

    Args:
        attempts: in the order in which they are wanted.
        room: how many of them this worker can make now.
        slots: how many attempts it can make at one time.

    Returns:
        What returns the answers. Until it is called the broker is at it, and something else can be done.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    if not attempts:
        return list
    with app.producer_pool.acquire(block=True) as producer:
        channel = producer.channel
        if not isinstance(channel, Channel):
            return lambda: [Turn.NOW if number < room else Turn.SOON for number in range(len(attempts))]
        return channel.admit(SEND_QUEUE, attempts, room, slots)


def serialize_lane(whole: str, *, is_serial: bool) -> None:
    """Have a company's events of one type go through one at a time from now on, or not any more.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        if isinstance(channel, Channel):
            channel.serialize(whole, is_serial=is_serial)


def report_attempt(lane: str, log: COTWebhookLog) -> None:
    """Tell the broker how an attempt went: what the endpoint may have at one time follows from it."""
    attempt = log.details
    verdict = judge_endpoint(None if attempt.error_kind else log.status, attempt.error_kind)
    is_good = None if verdict is Verdict.NEUTRAL else verdict is Verdict.GOOD
    ms = None if is_own_fault(attempt.error_kind) else attempt.total_ms
    report(SEND_QUEUE, lane, ms=ms, is_good=is_good)
