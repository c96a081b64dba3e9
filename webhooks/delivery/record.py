"""Record attempts: the log, its effect on the webhook, and the delivery's next attempt."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from webhooks.delivery.attempt import summarize
from webhooks.delivery.meters import Fault, meters
from webhooks.delivery.outcomes import Attempted
from webhooks.delivery.queueing import queue_next
from webhooks.delivery.services import Services, get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable, trace
from webhooks.models import COTWebhookLog, format_instant, now
from webhooks.producer.app import app
from webhooks.rules.retry import Outcome

logger = logging.getLogger(__name__)

#: The attribute of an attempt's log record that holds `name_fields`.
ATTEMPT = "webhooks_attempt"


def record(services: Services, attempted: Sequence[Attempted], first: Iterable[Attempted] = ()) -> set[str]:
    """Write the logs of attempts and update the ledger.

    Args:
        services: the process's services.
        attempted: the attempts.
        first: first attempts whose deliveries `add_claimed` stored without the journal.

    Returns:
        Ids of deliveries that a crash of MongoDB may lose; their event has to be handled again.
    """
    logs = [one.log for one in attempted]
    # A delivery with further attempts must survive a crash of MongoDB; one that ends need not.
    unsafe = [one.attempt.delivery for one in first if one.log.details.next_at or one.log.details.kept]
    forgotten: set[str] = set()
    try:
        services.records.keep_unended(unsafe)
        faults = services.records.record(logs)
    except Exception:  # noqa: BLE001 - `store_log` handles each log alone
        for log in logs:
            store_log(log)
        forgotten = {delivery.delivery_id for delivery in unsafe}
    else:
        for log, fault in zip(logs, faults, strict=True):
            if fault is not None:
                _log_unstorable(log, fault)
    theirs = services.deliveries.estimate_now()
    ahead_s = None if theirs is None else (theirs - now()).total_seconds()
    meters.count_attempts([(one.log, one.attempt.accepted_at) for one in attempted], ahead_s)
    for one in attempted:
        if one.span is not None:
            one.span.end(one.log)
        _log_attempt(one)
        _release_next(services, one)
    return forgotten


def _log_attempt(one: Attempted) -> None:
    details = one.log.details
    level = logging.WARNING if details.outcome == Outcome.FAILED and details.next_at is None else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = name_fields(one.log)
    logger.log(
        level,
        "attempt delivery=%s event=%s webhook=%s company=%s label=%r: %s",
        *(fields["delivery"], fields["event"], fields["webhook"], fields["company"]),
        *(one.attempt.delivery.label, summarize(one.log)),
        extra={ATTEMPT: fields},
    )


def name_fields(log: COTWebhookLog) -> Mapping[str, str | int | float | None]:
    """Return an attempt's facts by the names that its line has as JSON. No payload, no response, no path of a URL."""
    details = log.details
    return {
        "delivery": details.delivery_id,
        "event": details.event_id,
        "webhook": str(log.subscription),
        "company": str(log.company),
        "retry": log.retry,
        "status": log.status,
        "outcome": details.outcome,
        "error_kind": details.error_kind,
        "total_ms": details.total_ms,
        "next_at": None if details.next_at is None else format_instant(details.next_at),
        "worker": details.worker,
        "trace_id": details.trace_id,
        "span_id": details.span_id,
    }


def _release_next(services: Services, one: Attempted) -> None:
    """Queue the next delivery of an ordered webhook after one has ended."""
    webhook, details = one.attempt.webhook, one.log.details
    if webhook is None or not webhook.ordered or details.next_at is not None or details.kept:
        return
    try:
        queue_next(services, webhook)
    except Exception as error:  # noqa: BLE001 - the health monitor resumes the line
        logger.warning("the line of webhook %s waits for the health monitor: %s", webhook.id, type(error).__name__)


def store_log(log: COTWebhookLog) -> None:
    """Store a log, or queue it until MongoDB is back. Blocks until one of the two succeeds; never raises."""
    while True:
        try:
            (fault,) = get_services().records.record([log])
        except StoreUnavailable as error:
            logger.warning("log %s goes through the broker: %s", log.id, error)
        except Exception as error:  # noqa: BLE001 - a result hook must not raise
            return _log_unstorable(log, error)
        else:
            return None if fault is None else _log_unstorable(log, fault)
        try:
            write_log = cast("Any", app.tasks["webhooks.write_log"])
            write_log.apply_async((log.to_json(),), argsrepr=f"log {log.id}")
        except Exception as error:  # noqa: BLE001 - likewise; tried again
            logger.warning("log %s is held, neither MongoDB nor the broker takes it: %s", log.id, type(error).__name__)
        else:
            meters.count_fault(Fault.LOG_LATE)
            return None
        if stopping.wait(1):
            # The ack fails too, so the broker redelivers the message.
            logger.error("log %s is dropped at shutdown; its attempt will be repeated: %s", log.id, summarize(log))
            return None


def _log_unstorable(log: COTWebhookLog, error: Exception) -> None:
    meters.count_fault(Fault.LOG_UNSTORABLE)
    logger.error("log %s cannot be stored: %s: %s", log.id, summarize(log), trace(error))
