"""The worker's tasks: they translate outcomes of `delivery` into Celery's return values, exceptions and retries."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from bson import ObjectId
from celery import Task
from celery.exceptions import Reject
from celery.utils import uuid

from webhooks.delivery.accept import Accepting, accept
from webhooks.delivery.attempt import read_rate, summarize
from webhooks.delivery.claim import claim_all, give_back
from webhooks.delivery.holding import carry_out, hold
from webhooks.delivery.outcomes import Attempted, DeliverOutcome, Done, Failed, Postponed, SendOutcome, ToAttempt
from webhooks.delivery.queueing import lane_headers, queue_attempt, report_attempt
from webhooks.delivery.record import record, store_log
from webhooks.delivery.services import get_services
from webhooks.errors import AttemptFailed, TaskDefect, TooLate
from webhooks.models import COTEvent, COTWebhook, COTWebhookLog
from webhooks.producer.app import app
from webhooks.producer.durable import DurableTask
from webhooks.rules.retry import Outcome
from webhooks.store.deliveries import Claim, Delivery
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import RATE_HEADER
from webhooks.worker.current_batch import current_batch, gathering_producer

logger = logging.getLogger(__name__)


class SendTask(DurableTask):
    """Hands over the log of each attempt in Celery's hooks, which run before the message is acked."""

    Request = "webhooks.worker.request:SendRequest"

    #: Celery logs no traceback for these: a failed attempt is no defect.
    throws = (AttemptFailed,)

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Queue an attempt. Celery also calls this for each retry, without the description of the arguments."""
        options.setdefault("argsrepr", str((kwargs or {}).get("delivery_id")))
        options.setdefault("kwargsrepr", f"retry {options.get('retries', 0)}")
        producer = gathering_producer()
        if producer is not None:
            options["producer"] = producer
        return super().apply_async(args, kwargs, **options)

    def on_success(self, retval: object, task_id: str, args: object, kwargs: object) -> None:
        """Hand over the log of an attempt that succeeded."""
        self._hand_over()

    def on_retry(self, exc: object, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        """Hand over the log of a failed attempt that has a retry."""
        self._hand_over()

    def on_failure(self, exc: object, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        """Hand over the log of the last attempt, or quarantine a delivery that became a dead letter."""
        self._hand_over()
        if isinstance(exc, TaskDefect):
            try:
                get_services().deliveries.quarantine(self.request.id)
            except Exception as error:  # noqa: BLE001 - the sweep queues it again, and it ends here again
                logger.warning("delivery %s cannot be quarantined: %s", self.request.id, type(error).__name__)

    def _hand_over(self) -> None:
        """Record this request's attempt, or add it to the batch. Must not raise: Celery would ack and lose the log."""
        batch = current_batch()
        outcome = getattr(self.request, "outcome", None) if batch is None else batch.outcome
        if not isinstance(outcome, Attempted):
            return
        if batch is None:
            record(get_services(), [outcome])
        else:
            batch.attempted.append(outcome)


def run_deliver(task: Task, event: dict[str, Any] | str | COTEvent) -> str:
    """Run the body of ``webhooks.deliver``; producers have the task without it.

    Returns:
        The event's receivers, for Flower.

    Raises:
        InvalidEvent: names every field and reason; nothing was sent.
    """
    batch = current_batch()
    outcome = _deliver_alone(task, event) if batch is None else batch.outcome
    match outcome:
        case Done(text):
            return text
        case Failed(error):
            raise error
    raise TaskDefect(f"no outcome of an event: {outcome!r}")


def _deliver_alone(task: Task, event: object) -> DeliverOutcome:
    """Accept one event outside the pool; its first attempts become messages."""
    headers = {} if task.request.called_directly else vars(task.request)
    one = Accepting(task.request.id or uuid(), event, headers, task.request.hostname)
    (found,) = carry_out(lambda events: accept(get_services(), events), [one])
    return found if isinstance(found, Failed) else found.outcome or Failed(TaskDefect("an event without outcome"))


@app.task(base=SendTask, bind=True, name="webhooks.send")
def send(self: Task, *, delivery_id: str) -> str:
    """Make one attempt of a delivery; a failed one is retried with Celery's countdown.

    Args:
        delivery_id: sent to the receiver as ``webhook-id``.

    Returns:
        A summary of the response, for Flower.

    Raises:
        AttemptFailed: the last attempt failed.
        WorkersLost: no attempt was made; the delivery is quarantined.
        celery.exceptions.Retry: the attempt failed and the next one is queued.
    """
    batch = current_batch()
    outcome = _send_alone(self, delivery_id) if batch is None else batch.outcome
    match outcome:
        case Done(text):
            return text
        case Postponed():
            lane, rate = (outcome.lane, outcome.rate) if outcome.lane else _lane_of(self)
            queue_attempt(delivery_id, outcome.label or delivery_id, self.request.retries, lane, outcome.seconds, rate)
            return outcome.text
        case Failed(error):
            raise error
        case Attempted(attempt, log):
            return _return_or_raise(self, attempt.delivery, attempt.webhook, log)
    raise TaskDefect(f"no outcome of an attempt: {outcome!r}")


def _return_or_raise(task: Task, delivery: Delivery, webhook: COTWebhook | None, log: COTWebhookLog) -> str:
    """Return an attempt's summary, or raise its failure or retry."""
    details, summary = log.details, summarize(log)
    if details.outcome == Outcome.SUCCESS:
        return summary
    failure = AttemptFailed(summary)
    # A probe has no retry: it is held again, and the health monitor releases the next one.
    if details.probe or details.next_at is None:
        raise failure
    try:
        raise task.retry(
            exc=failure,
            countdown=(details.next_at - log.createdAt).total_seconds(),
            max_retries=log.retry + 1,  # the retry rule allows one more
            throw=False,
            argsrepr=delivery.label,
            # The rate limit may have changed or gone since the message was made.
            headers={
                **{name: value for name, value in (task.request.headers or {}).items() if name != RATE_HEADER},
                **lane_headers(delivery.lane, read_rate(webhook)),
            },
        )
    except Reject:
        # The retry could not be published, and Celery drops its message (celery/app/task.py, `Task.retry`). The sweep
        # queues it once it is due. No hook runs on a Reject, so the log is stored here.
        store_log(log)
        raise


def _send_alone(task: Task, delivery_id: str) -> SendOutcome:
    """Make one attempt outside the pool."""
    services = get_services()
    claim = Claim(delivery_id, task.request.retries, ObjectId(), task.request.hostname)
    (found,) = carry_out(lambda claims: claim_all(services, claims), [claim])
    if not isinstance(found, ToAttempt):
        return found
    try:
        log = services.attempt_runner.attempt(
            found.delivery, found.webhook, found.claim, is_probe=found.is_probe, event=found.event
        )
    except TooLate as error:
        return give_back(services, claim, error)
    report_attempt(found.delivery.lane, log)
    task.request.outcome = Attempted(found, log)
    return task.request.outcome


def _lane_of(task: Task) -> tuple[str | None, Sequence[float] | None]:
    """Return the lane and the rate limit of a task's message."""
    headers = task.request.headers or {}
    lane, rate = headers.get(LANE_HEADER), headers.get(RATE_HEADER)
    return lane if isinstance(lane, str) else None, rate if isinstance(rate, list) else None


@app.task(base=DurableTask, name="webhooks.write_log")
def write_log(text: str) -> None:
    """Store a log that could not be stored when its attempt ended.

    Args:
        text: the log's JSON. Its ``_id`` makes a repeated write harmless.

    Raises:
        Requeue: MongoDB is unavailable.
    """
    log = COTWebhookLog.model_validate_json(text)
    (fault,) = hold(lambda: get_services().records.record([log]))
    if fault is not None:
        raise fault
