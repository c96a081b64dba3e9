"""The named tasks: they carry out in Celery's terms what `delivery` decides.

``webhooks.deliver`` turns an event into deliveries, ``webhooks.send`` makes one attempt, ``webhooks.write_log`` stores
a log that could not be stored when it was made.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from bson import ObjectId
from celery import Task
from celery.exceptions import Reject, TaskPredicate
from celery.utils import uuid
from kombu.exceptions import OperationalError
from pymongo.client_session import ClientSession
from pymongo.database import Database

from webhooks import outbox
from webhooks.app import Services, app, get_services, stopping
from webhooks.books import Held, PutOff
from webhooks.config import get_settings
from webhooks.delivery import describe_event, describe_interrupted, fan_out, read_rate, summarize
from webhooks.errors import AttemptFailed, InvalidEvent, StoreUnavailable, TaskDefect, WorkersLost, trace
from webhooks.lanes import SEND_QUEUE, lane_of_event, whole_lane
from webhooks.ledger import Blocked, Claim, Claimed, Delivery, Overdue
from webhooks.models import TRIGGERS, COTEvent, COTWebhook, COTWebhookLog, now, parse_event, parse_event_text
from webhooks.publishing import Draft, publish_many
from webhooks.retry import Outcome, Verdict, is_own_fault, judge_endpoint
from webhooks.transport import LANE_HEADER, RATE_HEADER, SERIAL, TAKEN_FROM_HEADER, Channel, hold_lane, report, whole_of

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Header of a message whose event is in the outbox, and to be taken out when the ledger has its deliveries.
FROM_OUTBOX = "webhooks_outbox"

#: Attempts of a delivery that may be interrupted in a row. Whatever else a dying worker had in its hands is interrupted
#: as well, so it is more than it takes to suspect one delivery, and each costs no more than a worker's restart.
_MAX_INTERRUPTED = 10


class DurableTask(Task):
    """A task whose message is never dropped: what a defect of ours stops is tried again, and ends as a dead letter."""

    #: In the worker: keeps as a dead letter what Celery would drop.
    Request = "webhooks.worker:DurableRequest"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, and have Celery retry it after the retry delay when an error comes out that is not meant to.

        Raises:
            TaskDefect: it has been retried as often as the settings allow, or cannot be.
            celery.exceptions.Retry: the message is queued again.
            celery.exceptions.Reject: the broker is away. `Task.retry` would drop the message, this gives it back.
        """
        try:
            return self.run(*args, **kwargs)
        except (AttemptFailed, InvalidEvent, TaskDefect, TaskPredicate):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            logger.error("%s %s met a defect: %s", self.name, self.request.id, trace(error))  # noqa: TRY400
            defect = TaskDefect(f"internal error: {type(error).__name__}")
        # Outside of the handler: Celery logs what an error came from, whose words may hold payload.
        settings = get_settings()
        try:
            retry = self.retry(
                exc=defect,
                throw=False,
                countdown=settings.retry_delay_s,
                max_retries=settings.max_retries,
                # Celery would describe the arguments by themselves, which are payload.
                argsrepr=self.request.get("argsrepr") or "…",
                kwargsrepr=self.request.get("kwargsrepr") or "",
            )
        except Reject as rejected:
            if isinstance(rejected.reason, OperationalError):
                raise Reject(rejected.reason, requeue=True) from None
            raise defect from None  # the same defect meets who publishes it: it would go round and round
        raise retry


class DeliverTask(DurableTask):
    """Checks an event where it is handed in, and publishes it as the JSON text that receivers will get."""

    #: In the worker: keeps payloads out of Flower and logs.
    Request = "webhooks.worker:DeliverRequest"
    #: A bad event is its producer's fault: a line in the log, no traceback.
    throws = (InvalidEvent,)

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Queue an event; takes Celery's usual options.

        Raises:
            InvalidEvent: names every field and reason; nothing was queued.
            kombu.exceptions.OperationalError: the broker cannot be reached.
        """
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) != 1:
            return super().apply_async(args, kwargs, **options)  # Celery says what is wrong with the arguments
        event = _read_event(given[0])
        options.setdefault("argsrepr", f"{describe_event(event)}, company {event.company}")
        options.setdefault("kwargsrepr", "")
        options["headers"] = {LANE_HEADER: lane_of_event(event.to_wire()), **(options.get("headers") or {})}
        return super().apply_async((event.to_json(),), {}, **options)

    def delay_many(self, events: Iterable[Mapping[str, Any] | COTEvent]) -> list[str]:
        """Queue events in few steps: for producers with many at a time.

        Args:
            events: each as for ``delay``. All are checked before the first one is queued.

        Returns:
            The events' ids, in the same order.

        Raises:
            InvalidEvent: names the event by its place, from 0, and every field and reason; nothing was queued.
            kombu.exceptions.OperationalError: the broker cannot be reached; a part of them may be queued, so that
                queueing all of them again repeats that part under new ids.
        """
        drafts = []
        for place, given in enumerate(events):
            try:
                event = _read_event(given)
            except InvalidEvent as error:
                raise InvalidEvent(f"event {place} of those given: {error}") from None
            described = f"{describe_event(event)}, company {event.company}"
            headers = {LANE_HEADER: lane_of_event(event.to_wire())}
            drafts.append(Draft(uuid(), (event.to_json(),), {}, described, headers=headers))
        publish_many(self, drafts)
        return [draft.task_id for draft in drafts]


class SendTask(DurableTask):
    """Writes the log of each attempt, from Celery's hooks: they run before the message is acked."""

    #: A failed attempt is no defect: a line in the log, no traceback.
    throws = (AttemptFailed,)

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Queue an attempt; also called by Celery for each retry, which keeps no description by itself."""
        options.setdefault("argsrepr", str((kwargs or {}).get("delivery_id")))
        options.setdefault("kwargsrepr", f"retry {options.get('retries', 0)}")
        return super().apply_async(args, kwargs, **options)

    def on_success(self, retval: object, task_id: str, args: object, kwargs: object) -> None:
        """Write the log of an attempt that succeeded."""
        self._record()

    def on_retry(self, exc: object, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        """Write the log of a failed attempt; its retry is published already."""
        self._record()

    def on_failure(self, exc: object, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        """Write the log of the last attempt, which failed; or keep the sweep from a delivery that is a dead letter."""
        self._record()
        if isinstance(exc, TaskDefect):
            try:
                get_services().ledger.set_aside(self.request.id)
            except Exception as error:  # noqa: BLE001 - the sweep queues it again then, and it ends here once more
                logger.warning("delivery %s cannot be set aside: %s", self.request.id, type(error).__name__)

    def _record(self) -> None:
        """Store the log of this request's attempt. Never raises: under threads Celery would keep the slot for ever."""
        log: COTWebhookLog | None = getattr(self.request, "attempt_log", None)
        if log is None:  # the message was no delivery, so that nothing was attempted
            return
        store_log(log)
        webhook: COTWebhook | None = getattr(self.request, "attempt_webhook", None)
        if webhook is None or not webhook.ordered or log.details.next_at is not None or log.details.kept:
            return
        try:
            queue_next(get_services(), webhook)
        except Exception as error:  # noqa: BLE001 - the steward finds a line that stands still
            logger.warning("the line of webhook %s waits for the steward: %s", webhook.id, type(error).__name__)


@app.task(base=DeliverTask, bind=True, name="webhooks.deliver")
def deliver(self: Task, event: dict[str, Any] | str | COTEvent) -> str:
    """Start a delivery of the event to each webhook that asked for it.

    Args:
        event: a dict or a COTEvent; JSON text between our own producer and worker.

    Returns:
        Who gets it, for Flower.

    Raises:
        InvalidEvent: names every field and reason; nothing was sent.
    """
    event_id = self.request.id or uuid()  # no id when called as a function
    try:
        parsed = _read_event(event)
    except InvalidEvent as error:
        # Its producer has gone on; this line and the failed task in Flower are all that tells of it.
        logger.warning("event %s is refused, nothing of it is sent: %s", event_id, error)
        raise
    services = get_services()
    is_in_order = _hold(lambda: _keep_order(self, services, parsed))
    is_from_outbox = bool((self.request.headers or {}).get(FROM_OUTBOX))
    if is_in_order and is_from_outbox and _hold(lambda: services.outbox.stand_behind_older(event_id)):
        return "older ones come first; it is queued again behind them"
    owed = _hold(lambda: services.books.accept(fan_out(parsed, event_id, services.webhooks)))
    _hold(lambda: queue_attempts([delivery for delivery in owed if not delivery.is_held]))
    for webhook_id in {delivery.webhook_id for delivery in owed if delivery.is_ordered}:
        _hold(lambda w=webhook_id: queue_next(services, services.webhooks.get(w)))
    if is_from_outbox:
        _hold(lambda: services.outbox.remove(event_id))
    logger.info("event %s (%s): %d deliveries", event_id, describe_event(parsed), len(owed))
    count = "1 delivery" if len(owed) == 1 else f"{len(owed)} deliveries"
    return f"{count}: " + ", ".join(d.label.partition(" → ")[2] for d in owed[:10])


def _keep_order(task: Task, services: Services, event: COTEvent) -> bool:
    """See to it that events for an ordered webhook go through here one at a time, in the order of acceptance.

    The transport does so for what it is told of: all events of a company of one type, as which of them a webhook wants
    is known only here. One that came beside others goes back to its place.

    Returns:
        Whether it is such an event, and its turn.

    Raises:
        Reject: this one goes back.
        StoreUnavailable: the webhooks cannot be read now.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    lane, whole = task.request.get(TAKEN_FROM_HEADER), whole_lane(event.company, event.type)
    if not isinstance(lane, str):  # this broker has no lanes
        return False
    is_serial = lane == whole + SERIAL
    webhooks = services.webhooks.of_company(event.company)
    is_ordered = any(webhook.ordered and TRIGGERS[webhook.trigger].type == event.type for webhook in webhooks)
    if is_ordered == is_serial:
        return is_ordered
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        if isinstance(channel, Channel):
            channel.serialize(whole, is_serial=is_ordered)
    if is_ordered and whole_of(lane) != whole:
        # It would come back from the same lane without end.
        logger.warning("event %s may be out of order: its message does not say whose it is", task.request.id)
    elif is_ordered:
        raise Reject("its turn has not come", requeue=True)
    return False


def accept(event: Mapping[str, Any] | COTEvent, database: Database[Any], session: ClientSession | None = None) -> str:
    """Write an event down in MongoDB for delivery, in the producer's own transaction if it has one.

    What ``deliver.delay`` is to the broker this is to the database: for producers that can reach it and must not lose
    an event even if the broker does. Workers pick it up within seconds.

    Args:
        event: a dict or a COTEvent.
        database: the one of WEBHOOKS_MONGODB_URL, by the producer's own client.
        session: with a transaction begun; None for none. The event is sent if that commits.

    Returns:
        The event's id.

    Raises:
        InvalidEvent: names every field and reason; nothing was written.
        pymongo.errors.PyMongoError: it could not be written.
    """
    return outbox.accept(event, database, max_bytes=get_settings().max_event_bytes, session=session)


def queue_accepted(event_id: str, body: str) -> None:
    """Queue an event of the outbox.

    Raises:
        InvalidEvent: somebody wrote it there by hand.
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    deliver.apply_async((body,), task_id=event_id, headers={FROM_OUTBOX: True})  # pyright: ignore[reportFunctionMemberAccess]


@app.task(base=SendTask, bind=True, name="webhooks.send")
def send(self: Task, *, delivery_id: str) -> str:
    """Make one attempt of a delivery; a failed one comes back through Celery's countdown.

    Args:
        delivery_id: what the receiver gets as ``webhook-id``; the ledger has the rest.

    Returns:
        What came back, for Flower.

    Raises:
        AttemptFailed: the last attempt failed.
        WorkersLost: no attempt was made; the delivery is set aside.
        celery.exceptions.Retry: the attempt failed and the next one is queued.
    """
    settings, services = get_settings(), get_services()
    claim = Claim(delivery_id, self.request.retries, ObjectId(), self.request.hostname)
    try:
        claimed, webhook = _hold(lambda: _claim(services, claim))
        made_before = _see_to_interrupted(services, claim, claimed, webhook) if isinstance(claimed, Claimed) else None
    except BaseException:
        services.ledger.give_up(claim)
        raise
    if claimed is None:
        return "nothing is owed any more"
    if isinstance(claimed, Held):
        return f"kept: {claimed.reason}"
    if isinstance(claimed, PutOff):
        put_off, lane, rate = claimed, claimed.delivery.lane, read_rate(webhook)
        hold_lane(SEND_QUEUE, lane, put_off.seconds)
        label = claimed.delivery.label
        _hold(lambda: queue_attempt(delivery_id, label, claim.retry, lane, put_off.seconds, rate))
        return f"its receiver asked us to wait; tried again in {claimed.seconds:.1f} s"
    if isinstance(claimed, Blocked):
        # Either a second message of the same attempt, or the worker that held it was killed. When its claim has run
        # out the ledger knows which.
        lane, rate = _headers_of(self)
        _hold(lambda: queue_attempt(delivery_id, delivery_id, claim.retry, lane, settings.claim_s, rate))
        return f"somebody else is at it; looked at again in {settings.claim_s:g} s"
    services.progress.taken_due_at = claimed.due_at or services.progress.taken_due_at
    if made_before is not None:
        store_log(made_before)
        return f"was made before: {summarize(made_before)}"
    log = services.attempter.attempt(claimed.delivery, webhook, claim, is_probe=claimed.is_probe)
    self.request.attempt_log, self.request.attempt_webhook = log, webhook
    tell_lane(claimed.delivery.lane, webhook, log)
    delivery, summary = claimed.delivery, summarize(log)
    is_success = log.details.outcome == Outcome.SUCCESS
    is_given_up = not is_success and log.details.next_at is None
    level = logging.WARNING if is_given_up else logging.INFO
    logger.log(
        level, "attempt delivery=%s event=%s label=%r: %s", delivery_id, delivery.event_id, delivery.label, summary
    )
    if is_success:
        return summary
    failure = AttemptFailed(summary)
    # A probe has no retry: it is kept again, as it was, and the steward lets one out when it is time.
    if is_given_up or log.details.probe or log.details.next_at is None:
        raise failure
    try:
        raise self.retry(
            exc=failure,
            countdown=(log.details.next_at - log.createdAt).total_seconds(),
            max_retries=settings.max_retries,
            throw=False,
            argsrepr=delivery.label,
        )
    except Reject:
        # The retry could not be published, and Celery drops its message (celery/app/task.py, `Task.retry`). Once the
        # ledger says that the retry is due, the sweep queues it. No hook runs on a Reject.
        store_log(log)
        raise


def tell_lane(lane: str, webhook: COTWebhook | None, log: COTWebhookLog) -> None:
    """Tell the broker how an attempt went: what the endpoint may have at one time follows from it."""
    attempt = log.details
    verdict = judge_endpoint(None if attempt.error_kind else log.status, attempt.error_kind)
    is_good = None if verdict is Verdict.NEUTRAL else verdict is Verdict.GOOD
    ms = None if is_own_fault(attempt.error_kind) else attempt.total_ms
    report(SEND_QUEUE, lane, ms=ms, is_good=is_good, rate=read_rate(webhook))


def _claim(services: Services, claim: Claim) -> tuple[Claimed | Blocked | Held | PutOff | None, COTWebhook | None]:
    """Claim the attempt and read its webhook; None when there is no usable one."""
    claimed = services.books.claim(claim)
    if not isinstance(claimed, Claimed | PutOff):
        return claimed, None
    webhook = services.webhooks.get(claimed.delivery.webhook_id)
    if isinstance(claimed, Claimed) and webhook is not None and webhook.ordered:
        return services.books.keep_unless_head(claimed) or claimed, webhook
    return claimed, webhook


def _see_to_interrupted(
    services: Services, claim: Claim, claimed: Claimed, webhook: COTWebhook | None
) -> COTWebhookLog | None:
    """Log the attempts of this delivery that others could not log.

    Returns:
        The log of the attempt that was claimed, if it was made and logged after all: its worker died between the log
        and the ledger.

    Raises:
        WorkersLost: there were too many in a row.
        Reject: MongoDB is away.
    """
    for interrupted in claimed.interrupted:
        log = _hold(lambda log_id=interrupted.log_id: services.logs.find_ended_attempt(log_id))
        if log is None:
            store_log(describe_interrupted(claimed.delivery, webhook, interrupted, now()))
        elif interrupted.retry == claim.retry:
            return log
    if len(claimed.interrupted) >= _MAX_INTERRUPTED:
        raise WorkersLost(f"{_MAX_INTERRUPTED} attempts in a row were interrupted: workers die of it")
    return None


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
        rate: `read_rate` of its webhook; None for no limit, or when it is not known.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    given = {LANE_HEADER: lane, RATE_HEADER: None if rate is None else list(rate)}
    headers = {name: value for name, value in given.items() if value is not None}
    options = {"argsrepr": label, "retries": retry, "countdown": countdown, "headers": headers}
    send.apply_async(kwargs={"delivery_id": delivery_id}, task_id=delivery_id, **options)  # pyright: ignore[reportFunctionMemberAccess]


def queue_attempts(deliveries: Sequence[Delivery]) -> None:
    """Queue the first attempts of many deliveries, as `queue_attempt` does.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; a part of them may be queued.
    """
    drafts = []
    for delivery in deliveries:
        headers: dict[str, Any] = {LANE_HEADER: delivery.lane}
        if delivery.rate is not None:
            headers[RATE_HEADER] = list(delivery.rate)
        arguments = {"delivery_id": delivery.delivery_id}
        drafts.append(Draft(delivery.delivery_id, (), arguments, delivery.label, "retry 0", headers))
    publish_many(send, drafts)  # pyright: ignore[reportArgumentType]


def queue_released(owed: Overdue, webhook: COTWebhook | None) -> None:
    """Queue a delivery that was let out.

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
    head = services.kept.release_next(webhook.id, services.ledger.now())
    if head is not None:
        queue_released(head, webhook)
    return head is not None


def _headers_of(task: Task) -> tuple[str | None, Sequence[float] | None]:
    """Return the lane and the rate of a task's message, for another one like it."""
    headers = task.request.headers or {}
    lane, rate = headers.get(LANE_HEADER), headers.get(RATE_HEADER)
    return lane if isinstance(lane, str) else None, rate if isinstance(rate, list) else None


@app.task(base=DurableTask, name="webhooks.write_log")
def write_log(text: str) -> None:
    """Store a log that could not be stored when its attempt ended.

    Args:
        text: the log's JSON. Its ``_id`` makes a second writing harmless.
    """
    log = COTWebhookLog.model_validate_json(text)
    _hold(lambda: get_services().books.record(log))


def store_log(log: COTWebhookLog) -> None:
    """Store a log now, or have the broker keep it until MongoDB is back: no attempt is repeated for want of a log.

    Returns when one of the two has it. Never raises.
    """
    while True:
        try:
            get_services().books.record(log)
        except StoreUnavailable as error:
            logger.warning("log %s goes through the broker: %s", log.id, error)
        except Exception as error:  # noqa: BLE001 - whatever it is
            logger.error("log %s cannot be stored: %s: %s", log.id, summarize(log), trace(error))  # noqa: TRY400
            return
        else:
            return
        try:
            write_log.apply_async((log.to_json(),), argsrepr=f"log {log.id}")  # pyright: ignore[reportFunctionMemberAccess]
        except Exception as error:  # noqa: BLE001 - whatever it is, a hook must not raise, and we try again
            logger.warning("log %s is held, neither MongoDB nor the broker takes it: %s", log.id, type(error).__name__)
        else:
            return
        if stopping.wait(1):
            # The ack fails as well now, so the broker gives the message out again.
            logger.error("log %s is dropped at shutdown; its attempt will be repeated: %s", log.id, summarize(log))
            return


def _read_event(value: object) -> COTEvent:
    max_bytes = get_settings().max_event_bytes
    return parse_event_text(value, max_bytes) if isinstance(value, str) else parse_event(value, max_bytes)


def _hold(operation: Callable[[], _T]) -> _T:
    """Carry out what needs MongoDB or the broker, and hold the message while that is away.

    Returns:
        What the operation returns.

    Raises:
        Reject: it was away for too long, or the worker is stopping: the message goes back to its queue.
    """
    give_up_at = time.monotonic() + get_settings().mongodb_timeout_s
    while True:
        try:
            return operation()
        except (StoreUnavailable, OperationalError) as error:
            logger.warning("holding a message: %s", error)
            if stopping.wait(1) or time.monotonic() > give_up_at:
                raise Reject(error, requeue=True) from error
