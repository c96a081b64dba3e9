"""Types of the ledger, and the parsing of its documents, which may be changed by hand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bson import ObjectId

from webhooks.rules.lanes import lane_of_webhook
from webhooks.store.mongo import Document, instant
from webhooks.transport.holder import BEGIN_WITHIN_S, uptime

#: Required fields of a delivery and their types.
_FIELDS: Mapping[str, type] = {
    "retry": int,
    "event_id": str,
    "webhook_id": ObjectId,
    "company": ObjectId,
    "label": str,
}

#: Seconds added to the rest of a claim, so that it has expired at the next try.
_AFTER_S = 0.1
#: Seconds until the next try while the previous attempt's end is being written.
_WRITTEN_SOON_S = 0.1


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one webhook."""

    delivery_id: str
    event_id: str
    webhook_id: ObjectId
    company: ObjectId
    #: Event and webhook, for Flower and logs. Holds no payload.
    label: str
    #: The event's JSON text, sent byte for byte.
    body: str = field(repr=False)
    #: Whether its webhook is ordered. Not stored.
    is_ordered: bool = False
    #: Position in the line of an ordered webhook.
    place: int | None = None
    #: Whether it is held.
    is_held: bool = False
    #: Its webhook's attempts per second and burst; None: no limit or unknown. Not stored.
    rate: tuple[float, int] | None = None
    #: Why its webhook was unusable when the event was accepted, without values; None: it was usable.
    unusable: str | None = None
    #: Trace contexts as W3C's header has them: of the event's producer, and of the first attempt's span if it failed.
    #: None: not traced.
    traceparent: str | None = None
    first_span: str | None = None
    #: The broker's lane of the webhook.
    lane: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lane", lane_of_webhook(self.company, self.webhook_id))


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on one attempt of a delivery."""

    delivery_id: str
    #: The attempt's number, from 0.
    retry: int
    #: The ``_id`` of the attempt's log; it identifies the claim.
    log_id: ObjectId
    #: Celery's node name; None when unknown.
    worker: str | None = None
    #: When the claim was made, by `uptime`.
    asked_at: float = field(default_factory=uptime, compare=False)

    @property
    def begin_by(self) -> float:
        """Latest start of the request, by `uptime`; later the claim may have expired."""
        return self.asked_at + BEGIN_WITHIN_S


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An attempt whose claim expired without an end; its worker probably died."""

    #: The ``_id`` of its log, if it was stored after all.
    log_id: ObjectId
    retry: int
    worker: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery whose next attempt is ours to make."""

    delivery: Delivery
    #: None if it is held or quarantined.
    due_at: datetime | None
    #: Interrupted attempts since the last one that ended, oldest first.
    interrupted: tuple[Interrupted, ...]
    #: The claim's.
    log_id: ObjectId
    #: None if the document was changed by hand.
    created_at: datetime | None = None
    #: Whether it was released to probe a paused endpoint.
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """Another worker has claimed this delivery."""

    #: Seconds until the next try.
    again_s: float
    #: Token of the claiming process; None if it has no lease, so that only time ends the claim.
    holder: str | None = None
    #: The claim's; None if it is invalid.
    log_id: ObjectId | None = None


@dataclass(frozen=True, slots=True)
class PendingDelivery:
    """A pending delivery, without its body."""

    delivery_id: str
    label: str
    retry: int
    company: ObjectId
    webhook_id: ObjectId

    @property
    def lane(self) -> str:
        """As `Delivery.lane`."""
        return lane_of_webhook(self.company, self.webhook_id)


#: What `read_pending` reads.
PENDING_FIELDS = {"label": 1, "retry": 1, "company": 1, "webhook_id": 1}


def read_pending(document: Document) -> PendingDelivery | None:
    """Read a pending delivery; None if its document is invalid."""
    delivery_id, label, retry, company, webhook_id = (
        document.get(field) for field in ("_id", "label", "retry", "company", "webhook_id")
    )
    if not isinstance(delivery_id, str) or not isinstance(label, str) or not isinstance(retry, int) or retry < 0:
        return None
    if not isinstance(company, ObjectId) or not isinstance(webhook_id, ObjectId):
        return None
    return PendingDelivery(delivery_id, label, retry, company, webhook_id)


@dataclass(frozen=True, slots=True)
class Oldest:
    """The longest due delivery of a webhook. Its ids are unchecked."""

    webhook_id: object
    company: object
    due_at: datetime


def read_claimed(
    claim: Claim, document: Document | None, bodies: Mapping[str, str], present: datetime, claim_s: float
) -> Claimed | Blocked | Exception | None:
    """Return the result of a claim, as `DeliveryStore.claim` does.

    Args:
        claim: the claim.
        document: the delivery's document after the claim; None if there is none.
        bodies: bodies of shared events by `shared_id`.
        present: MongoDB's time.
        claim_s: seconds that a claim lasts.
    """
    if document is None:
        return None
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(document.get(name), kind)]
    if wrong:
        return LookupError(f"delivery {claim.delivery_id} was changed by hand: {', '.join(wrong)}")
    if document["retry"] > claim.retry:
        return None
    held = document.get("claim")
    if not isinstance(held, dict) or held.get("log_id") != claim.log_id:
        return _read_blocked(held if isinstance(held, dict) else {}, claim.retry, present, claim_s)
    body = document["body"] if "body" in document else bodies.get(shared_id(document["event_id"], document["company"]))
    if not isinstance(body, str):
        return LookupError(f"event {document['event_id']} is not stored")
    delivery = Delivery(
        delivery_id=claim.delivery_id,
        event_id=document["event_id"],
        webhook_id=document["webhook_id"],
        company=document["company"],
        label=document["label"],
        body=body,
        place=place if isinstance(place := document.get("place"), int) else None,
        is_held=document.get("held") is True,
        unusable=_text(document, "unusable"),
        traceparent=_text(document, "traceparent"),
        first_span=_text(document, "first_span"),
    )
    before = document.get("interrupted")
    interrupted = [_read_interrupted(old) for old in before] if isinstance(before, list) else []
    return Claimed(
        delivery,
        instant(document.get("due_at")),
        tuple(old for old in interrupted if old is not None),
        claim.log_id,
        instant(document.get("created_at")),
        document.get("probe") is True,
    )


def _text(document: Document, field: str) -> str | None:
    return value if isinstance(value := document.get(field), str) else None


def _read_blocked(held: Document, asked: int, present: datetime, claim_s: float) -> Blocked:
    until, holder, log_id, retry = (held.get(field) for field in ("until", "holder", "log_id", "retry"))
    left_s = (until - present).total_seconds() if isinstance(until, datetime) else claim_s
    if isinstance(retry, int) and retry < asked:
        # The previous attempt has ended, and its end is being written.
        left_s = min(left_s, _WRITTEN_SOON_S)
    return Blocked(
        min(max(left_s, 0.0) + _AFTER_S, claim_s),
        holder if isinstance(holder, str) else None,
        log_id if isinstance(log_id, ObjectId) else None,
    )


def shared_ids(documents: Iterable[Document]) -> set[str]:
    """Return the ids of the shared events of deliveries without a body."""
    return {shared_id(one.get("event_id"), one.get("company")) for one in documents if "body" not in one}


def shared_id(event_id: object, company: object) -> str:
    """Return the ``_id`` of an event that is stored once for several deliveries."""
    return f"{event_id}/{company}"


def _read_interrupted(old: object) -> Interrupted | None:
    """Read an entry of ``interrupted``; None if it is invalid."""
    if not isinstance(old, dict):
        return None
    log_id, retry, worker, at = (old.get(field) for field in ("log_id", "retry", "worker", "at"))
    if not isinstance(log_id, ObjectId) or not isinstance(retry, int) or not isinstance(at, datetime):
        return None
    return Interrupted(log_id, retry, worker if isinstance(worker, str) else None, at)
