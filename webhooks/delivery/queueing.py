"""Queue attempts and events, and use the broker's lanes; RabbitMQ and plain Redis have none and admit everything."""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from webhooks.delivery.attempt import read_rate
from webhooks.delivery.services import Services
from webhooks.models import COTWebhook, COTWebhookLog
from webhooks.producer.app import app
from webhooks.producer.publishing import CELERY_HEADERS, OutgoingMessage, publish_many
from webhooks.rules.lanes import SEND_QUEUE
from webhooks.rules.retry import Verdict, is_own_fault, judge_endpoint
from webhooks.store.deliveries import Delivery, PendingDelivery
from webhooks.transport.channel import Channel
from webhooks.transport.headers import DUE_HEADER, LANE_HEADER
from webhooks.transport.lanes import FIRST_HEADER, RATE_HEADER, TAKEN_FROM_HEADER
from webhooks.transport.messages import Admission, Turn
from webhooks.transport.settlements import report

#: Header of a message whose event is in the outbox.
FROM_OUTBOX = "webhooks_outbox"

#: Request keys of Celery, kombu and this package. All others come from the producer or its tracing.
_NOT_INHERITED = CELERY_HEADERS | {
    "redelivered",
    LANE_HEADER,
    DUE_HEADER,
    RATE_HEADER,
    TAKEN_FROM_HEADER,
    FROM_OUTBOX,
}


def _task(name: str) -> Any:
    return app.tasks[name]


def lane_headers(lane: str | None, rate: Sequence[float] | None) -> dict[str, Any]:
    """Return the headers that tell the broker an attempt's lane and rate limit."""
    given = {LANE_HEADER: lane, RATE_HEADER: None if rate is None else list(rate)}
    return {name: value for name, value in given.items() if value is not None}


def child_headers(parent: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Add the headers that the event's producer set, so that a trace (``traceparent``) continues in its attempts.

    Args:
        parent: the request or the headers of the event's task.
        own: from `lane_headers`.
    """
    headers = {**{name: value for name, value in parent.items() if name not in _NOT_INHERITED}, **own}
    nested = parent.get("headers")
    if isinstance(nested, dict):
        # Some tracers use it. Where it is present, the task and its retries see no other headers.
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
        delivery_id: also used as task id, so that people find the task by what the receiver got.
        label: shown as arguments in Flower.
        retry: the attempt's number, from 0.
        lane: `Delivery.lane`; None when unknown.
        countdown: seconds to wait; None for none.
        rate: `read_rate` of its webhook; None for no limit or when unknown. Used if the broker has none for the lane.

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
        deliveries: what to attempt.
        first: ids of deliveries that go to the front of their lanes.
        parents: headers of the events' messages by event id; see `child_headers`.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; some may be queued.
    """
    messages = [
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
    publish_many(_task("webhooks.send"), messages)


def queue_released(pending: PendingDelivery, webhook: COTWebhook | None) -> None:
    """Queue a delivery that was released or lost its message.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; the sweep finds it.
    """
    queue_attempt(pending.delivery_id, pending.label, pending.retry, pending.lane, rate=read_rate(webhook))


def queue_next(services: Services, webhook: COTWebhook | None) -> bool:
    """Release and queue the head of an ordered webhook's line, if no other is released and its gate is open.

    Returns:
        Whether one was queued.

    Raises:
        StoreUnavailable: MongoDB is away.
        kombu.exceptions.OperationalError: the broker cannot be reached; the sweep queues it.
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
        InvalidEvent: the outbox document was changed by hand.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    _task("webhooks.deliver").apply_async((body,), task_id=event_id, headers={FROM_OUTBOX: True})


def ask_turns(attempts: Sequence[Admission], room: int, slots: int) -> Callable[[], list[Turn]]:
    """Ask the broker to admit first attempts without messages.

    Args:
        attempts: in order of preference.
        room: how many this worker can make now.
        slots: its total capacity.

    Returns:
        A function that waits for the answers.

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


def serialize_lane(parent: str, *, is_serial: bool) -> None:
    """Switch serial processing of a parent lane (a company's events of one type) on or off.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        if isinstance(channel, Channel):
            channel.serialize(parent, is_serial=is_serial)


def report_attempt(lane: str, log: COTWebhookLog) -> None:
    """Report an attempt's result to the broker, which sets the endpoint's concurrency window from it."""
    attempt = log.details
    verdict = judge_endpoint(None if attempt.error_kind else log.status, attempt.error_kind)
    is_good = None if verdict is Verdict.NEUTRAL else verdict is Verdict.GOOD
    ms = None if is_own_fault(attempt.error_kind) else attempt.total_ms
    report(SEND_QUEUE, lane, ms=ms, is_good=is_good)
