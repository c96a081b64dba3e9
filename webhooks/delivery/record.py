"""The step from attempts that were made to records: the log, what it means for the webhook, what is owed next."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

from webhooks.delivery.attempt import summarize
from webhooks.delivery.outcomes import Attempted
from webhooks.delivery.queueing import queue_next
from webhooks.delivery.services import Services, get_services
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable, trace
from webhooks.models import COTWebhookLog
from webhooks.producer.app import app
from webhooks.rules.retry import Outcome

logger = logging.getLogger(__name__)


def record(services: Services, attempted: Sequence[Attempted], first: Iterable[Attempted] = ()) -> set[str]:
    """Write the logs of attempts, and bring the ledger up to date.

    Args:
        services: this process's own.
        attempted: what was made.
        first: those of them whose deliveries were written down together with their claims, in a write that a crash of
            MongoDB may forget.

    Returns:
        The ids of deliveries that MongoDB may have forgotten, so that their event is to be handled again.
    """
    logs = [one.log for one in attempted]
    # What is owed further must outlive a crash of MongoDB; what ends does not need to.
    unsafe = [one.attempt.delivery for one in first if one.log.details.next_at or one.log.details.kept]
    forgotten: set[str] = set()
    try:
        services.records.keep_unended(unsafe)
        faults = services.records.record(logs)
    except Exception:  # noqa: BLE001 - one by one it is held, kept by the broker, or named
        for log in logs:
            store_log(log)
        forgotten = {delivery.delivery_id for delivery in unsafe}
    else:
        for log, fault in zip(logs, faults, strict=True):
            if fault is not None:
                _name(log, fault)
    for one in attempted:
        _log_attempt(one)
        _let_next_out(services, one)
    return forgotten


def _log_attempt(one: Attempted) -> None:
    delivery, details = one.attempt.delivery, one.log.details
    is_given_up = details.outcome == Outcome.FAILED and details.next_at is None
    logger.log(
        logging.WARNING if is_given_up else logging.INFO,
        "attempt delivery=%s event=%s label=%r: %s",
        *(delivery.delivery_id, delivery.event_id, delivery.label, summarize(one.log)),
    )


def _let_next_out(services: Services, one: Attempted) -> None:
    """Queue the next delivery of an ordered webhook where one has ended."""
    webhook, details = one.attempt.webhook, one.log.details
    if webhook is None or not webhook.ordered or details.next_at is not None or details.kept:
        return
    try:
        queue_next(services, webhook)
    except Exception as error:  # noqa: BLE001 - the steward finds a line that stands still
        logger.warning("the line of webhook %s waits for the steward: %s", webhook.id, type(error).__name__)


def store_log(log: COTWebhookLog) -> None:
    """Store a log now, or have the broker keep it until MongoDB is back: no attempt is repeated for want of a log.

    Returns when one of the two has it. Never raises.
    """
    while True:
        try:
            (fault,) = get_services().records.record([log])
        except StoreUnavailable as error:
            logger.warning("log %s goes through the broker: %s", log.id, error)
        except Exception as error:  # noqa: BLE001 - whatever it is
            return _name(log, error)
        else:
            return None if fault is None else _name(log, fault)
        try:
            write_log = cast("Any", app.tasks["webhooks.write_log"])
            write_log.apply_async((log.to_json(),), argsrepr=f"log {log.id}")
        except Exception as error:  # noqa: BLE001 - whatever it is, a hook must not raise, and we try again
            logger.warning("log %s is held, neither MongoDB nor the broker takes it: %s", log.id, type(error).__name__)
        else:
            return None
        if stopping.wait(1):
            # The ack fails as well now, so the broker gives the message out again.
            logger.error("log %s is dropped at shutdown; its attempt will be repeated: %s", log.id, summarize(log))
            return None


def _name(log: COTWebhookLog, error: Exception) -> None:
    logger.error("log %s cannot be stored: %s: %s", log.id, summarize(log), trace(error))
