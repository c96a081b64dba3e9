"""What operators do to webhooks and deliveries, from the command line and from Flower's pages."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from kombu.exceptions import OperationalError

from webhooks.delivery.attempt import label_delivery, read_rate
from webhooks.delivery.queueing import queue_attempts
from webhooks.delivery.records import DeliveryRecords
from webhooks.delivery.skip import Skipped, skip
from webhooks.errors import CannotAct, InvalidWebhook
from webhooks.models import TRIGGERS, COTEvent, COTWebhook, describe_event, now, parse_event, parse_webhook
from webhooks.models.ids import TEST_PREFIX, make_delivery_id, make_resent_id
from webhooks.models.wire import format_instant, to_wire
from webhooks.store.deliveries import Delivery
from webhooks.store.gates import State
from webhooks.store.logs import LogQuery
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import CACHE_S, read_stored, why_unusable

#: How often the oldest delivery is looked for again, when it was sent before it could be claimed.
_MAX_LOOKS = 5
#: Seconds after which all workers know of a change of a webhook.
_KNOWN_AFTER_S = CACHE_S + 1


@dataclass(slots=True)
class Record:
    """The record of an action while it is done."""

    #: What came of it, in sentences.
    result: str = ""


@contextmanager
def on_record(
    stores: Stores,
    action: str,
    webhook_id: ObjectId | None,
    *,
    by: str,
    delivery_id: str | None = None,
    reason: str = "",
    action_id: ObjectId | None = None,
) -> Iterator[Record | None]:
    """Record an operator's action before it is done, and its result afterwards.

    Args:
        stores: where to.
        action: its name.
        webhook_id: of the webhook that it is done to; None: of several.
        by: who does it.
        delivery_id: of the delivery that it is done to, if it is.
        reason: why, for people.
        action_id: identifies the action, so that it is done once; None: it is a new one.

    Yields:
        The record, whose result the caller sets; None if the action was begun before.
    """
    action_id = action_id or ObjectId()
    what = {"by": by, "action": action, "webhook_id": webhook_id, "delivery_id": delivery_id, "reason": reason}
    if not stores.actions.begin(action_id, **what):
        yield None
        return
    record = Record()
    try:
        yield record
    except (CannotAct, InvalidWebhook) as refusal:
        record.result = f"Not done. {refusal}"
        raise
    finally:
        if record.result:
            stores.actions.end(action_id, record.result)


def get_active(document: Document) -> COTWebhook:
    """Return a stored webhook.

    Raises:
        CannotAct: nothing can be sent to it.
    """
    webhook = read_usable(document)
    if webhook is None:
        raise CannotAct("The webhook's document breaks the contract. Correct it first.")
    if not webhook.isActive:
        raise CannotAct("The webhook is inactive. Activate it first.")
    return webhook


def let_through(stores: Stores, webhook_id: ObjectId, *, at_full_rate: bool = False) -> bool:
    """Release what is held for a webhook.

    Returns:
        Whether the gate was shut until now.
    """
    if stores.gates.get(webhook_id).state is State.STOPPED:
        stores.held.restart_head(webhook_id)
    return stores.gates.drain(webhook_id) if at_full_rate else stores.gates.resume(webhook_id)


def skip_first(stores: Stores, document: Document) -> Skipped:
    """Give up the oldest pending delivery of a webhook.

    Args:
        stores: where to look.
        document: the webhook's.
    """
    done = Skipped()
    for _ in range(_MAX_LOOKS):
        first = stores.held.find_first(document["_id"])
        if first is None:
            return done
        done = skip([first[0]], read_usable(document), stores.deliveries, stores.logs)
        if done.logs or done.busy or done.broken:
            break
    go_on_after_skip(stores, document["_id"], done)
    return done


def go_on_after_skip(stores: Stores, webhook_id: ObjectId, done: Skipped) -> None:
    """Have an ordered webhook go on that had stopped at what was skipped."""
    if done.logs and stores.gates.get(webhook_id).state is State.STOPPED:
        stores.gates.resume(webhook_id, "an operator skipped what stopped it")


def read_usable(document: Document) -> COTWebhook | None:
    """Return a stored webhook; None for one that breaks the contract."""
    return None if why_unusable(document) else read_stored(document)


def change_webhook(stores: Stores, document: Mapping[str, Any], changes: Mapping[str, Any]) -> COTWebhook:
    """Write what differs from what is stored, if anything does.

    Args:
        stores: where to.
        document: the webhook's wire form, as it is stored.
        changes: the new value of each field; None takes the field out.

    Returns:
        The webhook as it is now.

    Raises:
        InvalidWebhook: it would not be a usable one; nothing was written.
    """
    wanted = {field: value for field, value in changes.items() if value is not None}
    left = {field: value for field, value in document.items() if field not in changes or field in wanted}
    webhook = parse_webhook({**left, **wanted})
    changed = frozenset(field for field, value in changes.items() if document.get(field) != value)
    if changed:
        stores.webhooks.change(webhook, changed)
    return webhook


def deactivate(stores: Stores, stored: Document) -> COTWebhook:
    """Stop sending to a webhook.

    Raises:
        InvalidWebhook: it is not a usable one; nothing was written.
    """
    document = to_wire(stored)
    webhook = change_webhook(stores, document, {"isActive": False})
    if document.get("isActive") is not False:
        if not stores.gates.get(webhook.id).is_open:
            time.sleep(_KNOWN_AFTER_S)  # what is released while workers take it for active would be sent
        stores.gates.deactivate(webhook.id, ObjectId(), "an operator deactivated it")
    return webhook


def activate(stores: Stores, stored: Document) -> COTWebhook:
    """Send to a webhook again; one that is paused or has stopped goes on.

    Raises:
        InvalidWebhook: it is not a usable one; nothing was written.
    """
    webhook = change_webhook(stores, to_wire(stored), {"isActive": True, "deactivated": None})
    let_through(stores, webhook.id)
    return webhook


def send_test(stores: Stores, webhook: COTWebhook) -> Delivery:
    """Send an event to one webhook that it would get, with an object that says it is a test.

    Args:
        stores: where to write it down.
        webhook: an active one.
    """
    event, event_id = make_test_event(webhook), f"{TEST_PREFIX}{ObjectId()}"
    return _send(stores, webhook, event, event_id, make_delivery_id(event_id, webhook.id))


def make_test_event(webhook: COTWebhook) -> COTEvent:
    """Return an event that a webhook asks for."""
    trigger, at = TRIGGERS[webhook.trigger], now()
    event: dict[str, Any] = {"company": str(webhook.company), "type": trigger.type, "createdAt": format_instant(at)}
    if "logout" in trigger.events:
        user = {"userId": str(ObjectId()), "timestamp": int(at.timestamp() * 1000)}
        event |= {"event": "logout", "data": None, "extraData": user}
    else:
        context = {key: getattr(webhook.context, field) for field, key in trigger.narrowed_by.items()}
        data = {"_id": str(ObjectId()), "name": "Test event", "test": True}
        event |= {"event": "create", "data": {**data, **{k: v for k, v in context.items() if v}}, "extraData": None}
    return parse_event(event, max_bytes=1_000_000)


def resend_delivery(stores: Stores, document: Document, delivery_id: str) -> Delivery:
    """Send a delivery that has ended once more, as `resend` does.

    Args:
        stores: where to look.
        document: its webhook's.
        delivery_id: of the delivery.

    Raises:
        CannotAct: it has not ended, or cannot be sent again.
    """
    webhook = get_active(document)
    rows = stores.search.find_page(LogQuery(webhook_id=webhook.id, delivery_id=delivery_id), 1).rows
    logs = stores.logs.get_many([row.log_id for row in rows if isinstance(row.log_id, ObjectId)])
    if not logs:
        raise CannotAct("Nothing is known of the delivery any more, so it cannot be resent.")
    if stores.pending.find(delivery_id) is not None:
        raise CannotAct("The delivery has not ended yet: its next attempt comes by itself.")
    details = logs[0].details
    if details.event_cut:
        raise CannotAct("The log does not hold the whole event, so the delivery cannot be resent.")
    return resend(stores, webhook, logs[0].event, details.event_id, delivery_id)


def resend(stores: Stores, webhook: COTWebhook, event: COTEvent, event_id: str, delivery_id: str) -> Delivery:
    """Send a delivery that has ended once more, behind what waits for its webhook.

    The receiver gets the same ``webhook-id``; here it is a delivery of its own, with its own retries.

    Args:
        stores: where to write it down.
        webhook: an active one.
        event: what the delivery had sent.
        event_id: of the event.
        delivery_id: of the delivery, or of one that it was resent as.

    """
    known = {one.delivery_id for one in stores.pending.find_of_event(event_id)} | stores.logs.find_deliveries(event_id)
    number = 1
    while make_resent_id(delivery_id, number) in known:
        number += 1
    return _send(stores, webhook, event, event_id, make_resent_id(delivery_id, number))


def make_delivery(webhook: COTWebhook, event: COTEvent, event_id: str, delivery_id: str) -> Delivery:
    """Return the delivery of an event that an operator sends to a webhook."""
    return Delivery(
        delivery_id=delivery_id,
        event_id=event_id,
        webhook_id=webhook.id,
        company=event.company,
        label=label_delivery(describe_event(event), webhook),
        body=event.to_json(),
        is_ordered=webhook.ordered,
        rate=read_rate(webhook),
    )


def _send(stores: Stores, webhook: COTWebhook, event: COTEvent, event_id: str, delivery_id: str) -> Delivery:
    """Write a delivery down and queue it."""
    delivery = make_delivery(webhook, event, event_id, delivery_id)
    accept(DeliveryRecords(stores.deliveries, stores.held, stores.logs, stores.gates, stores.webhooks), [delivery])
    return delivery


def accept(records: DeliveryRecords, deliveries: Sequence[Delivery]) -> None:
    """Write deliveries down and queue them; those that are known already are left as they are."""
    pending = [one for one in records.accept(deliveries) if not one.is_held]
    with suppress(OperationalError):  # the sweep finds them
        queue_attempts(pending)
