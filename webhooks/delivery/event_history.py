"""What became of an event, also where it matched nobody or was never seen: for people."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bson import ObjectId

from webhooks.delivery.history import DeliveryState, read_deliveries
from webhooks.models import COTEvent
from webhooks.rules.matching import explain_mismatch
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.traces import EventTrace
from webhooks.store.webhooks import read_stored, why_unusable

#: Webhooks of the event's company that are looked at.
MOST_WEBHOOKS = 500
#: Dead letters that are shown.
_LETTERS = 10


class Fate(StrEnum):
    """What became of an event."""

    ACCEPTED = "accepted"
    MATCHED_NOBODY = "matched nobody"
    IN_OUTBOX = "in the outbox"
    DEAD_LETTER = "dead letter"
    NEVER_SEEN = "never seen"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A webhook that did not get the event."""

    webhook_id: object
    name: str
    reason: str
    #: Whether it is closer to a match than those of another trigger.
    is_close: bool


@dataclass(frozen=True, slots=True)
class EventHistory:
    """All that is known of an event."""

    event_id: str
    fate: Fate
    text: str
    company: object
    type: str
    event: str
    object_id: str
    #: When it happened, as its producer says; None where that is not known.
    created_at: datetime | None
    deliveries: Sequence[DeliveryState]
    #: As the webhooks are now, those that are closest to a match first.
    mismatches: Sequence[Mismatch]
    dead_letters: Sequence[Document]


def read_event_history(stores: Stores, event_id: str, log_ttl_days: int) -> EventHistory:
    """Return an event's history, whatever is known of it.

    Args:
        stores: where to look.
        event_id: any text.
        log_ttl_days: days for which logs and traces are kept; 0 for ever.
    """
    deliveries = read_deliveries(stores, event_id, stores.deliveries.now())
    letters = stores.dead_letters.find_of_message(event_id, _LETTERS)
    traces = [] if deliveries else stores.traces.find_event(event_id)
    if deliveries:
        return _read_accepted(stores, event_id, deliveries, letters)
    if traces:
        return _read_unwanted(stores, event_id, traces[0], letters)
    fate, text = _explain_absence(stores, event_id, letters, log_ttl_days)
    return EventHistory(event_id, fate, text, None, "", "", "", None, (), (), letters)


def _read_accepted(
    stores: Stores, event_id: str, deliveries: Sequence[DeliveryState], letters: Sequence[Document]
) -> EventHistory:
    body = next((body for one in deliveries if (body := read_event(stores, one)) is not None), None)
    last = next((one.last for one in deliveries if one.last is not None), None)
    company = deliveries[0].company
    got_it = {one.webhook_id for one in deliveries}
    count = "1 webhook" if len(got_it) == 1 else f"{len(got_it)} webhooks"
    return EventHistory(
        event_id=event_id,
        fate=Fate.ACCEPTED,
        text=f"It was accepted{_explain_acceptance(deliveries)}, and {count} asked for it.",
        company=company,
        type=body.type if body is not None else last.event_type if last is not None else "",
        event=body.event if body is not None else last.event_name if last is not None else "",
        object_id=last.object_id if last is not None else "",
        created_at=body.createdAt if body is not None else None,
        deliveries=deliveries,
        mismatches=[one for one in _find_mismatches(stores, body) if one.webhook_id not in got_it] if body else (),
        dead_letters=letters,
    )


def _explain_acceptance(deliveries: Sequence[DeliveryState]) -> str:
    known = [one.accepted_at for one in deliveries if one.accepted_at is not None and not one.is_resent]
    if known:
        return f" at {min(known):%Y-%m-%d %H:%M:%S} UTC"
    begun = [one.begun_at for one in deliveries if one.begun_at is not None]
    return f" by {min(begun):%Y-%m-%d %H:%M:%S} UTC, when its first attempt began" if begun else ""


def read_event(stores: Stores, delivery: DeliveryState) -> COTEvent | None:
    """Return the event of a delivery; None where nothing has the whole of it."""
    if delivery.last is not None and isinstance(delivery.last.log_id, ObjectId):
        logs = stores.logs.get_many([delivery.last.log_id])
        if logs and not logs[0].details.event_cut:
            return logs[0].event
    body = stores.pending.find_body(delivery.delivery_id)
    try:
        return None if body is None else COTEvent.model_validate(json.loads(body))
    except ValueError:
        return None


def _read_unwanted(stores: Stores, event_id: str, trace: EventTrace, letters: Sequence[Document]) -> EventHistory:
    event = COTEvent.model_construct(
        company=trace.company, type=trace.type, event=trace.event, data={**trace.narrowing}, createdAt=trace.created_at
    )
    return EventHistory(
        event_id=event_id,
        fate=Fate.MATCHED_NOBODY,
        text=f"It was accepted at {trace.accepted_at:%Y-%m-%d %H:%M:%S} UTC, and no webhook asked for it.",
        company=trace.company,
        type=trace.type,
        event=trace.event,
        object_id=trace.object_id,
        created_at=trace.created_at,
        deliveries=(),
        mismatches=_find_mismatches(stores, event),
        dead_letters=letters,
    )


def _explain_absence(stores: Stores, event_id: str, letters: Sequence[Document], log_ttl_days: int) -> tuple[Fate, str]:
    accepted_at = stores.outbox.find_accepted_at(event_id)
    if accepted_at is not None:
        at = f"{accepted_at:%Y-%m-%d %H:%M:%S} UTC"
        return Fate.IN_OUTBOX, f"A producer wrote it down at {at}. It waits in the outbox until a worker handles it."
    if letters:
        return Fate.DEAD_LETTER, "No worker could handle its message, so nothing of it was sent."
    kept = f"or that was more than {log_ttl_days} days ago" if log_ttl_days else "and nothing expires"
    return (
        Fate.NEVER_SEEN,
        f"No worker has accepted an event with this id, {kept}. It may still wait in the broker's queue, or its "
        "producer never sent it.",
    )


def _find_mismatches(stores: Stores, event: COTEvent) -> list[Mismatch]:
    """Say why webhooks of the event's company did not get it, as they are now."""
    found = []
    for document in stores.webhooks.search(event.company, None, None, MOST_WEBHOOKS):
        name = document.get("name") or document.get("code") or document["_id"]
        if unusable := why_unusable(document):
            found.append(Mismatch(document["_id"], str(name), f"it breaks the contract: {unusable}", is_close=True))
            continue
        webhook = read_stored(document)
        reason = explain_mismatch(event, webhook)
        if reason is None:
            reason = "it matches now: it was added or changed after the event was accepted"
        found.append(Mismatch(webhook.id, str(name), reason, is_close=not reason.startswith("its trigger")))
    return sorted(found, key=lambda one: not one.is_close)
