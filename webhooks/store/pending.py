"""What the ledger's documents say: deliveries, claims on attempts and what became of them. No I/O.

Documents are read with care: one that was changed by hand must not spoil those that are read with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bson import ObjectId

from webhooks.rules.lanes import lane_of_webhook
from webhooks.store.mongo import Document
from webhooks.transport.holder import BEGIN_WITHIN_S, uptime

#: What a delivery needs to be attempted. Anybody may have written the document.
_FIELDS: Mapping[str, type] = {
    "retry": int,
    "event_id": str,
    "webhook_id": ObjectId,
    "company": ObjectId,
    "label": str,
}

#: Seconds added to what is left of a claim, so that it is over when it is asked for again.
_AFTER_S = 0.1
#: Seconds after which to look again for what is about to be written.
_WRITTEN_SOON_S = 0.1


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event owed to one webhook."""

    delivery_id: str
    event_id: str
    webhook_id: ObjectId
    company: ObjectId
    #: What people see of it in Flower and logs: which event goes to which webhook. Holds no payload.
    label: str
    #: The event's JSON text: what is sent, byte for byte.
    body: str = field(repr=False)
    #: Whether its webhook's events arrive in order. Not stored: the webhook has it.
    is_ordered: bool = False
    #: Its place in the line of an ordered webhook; None: it stands in none.
    place: int | None = None
    #: Whether it is written down as one that is kept.
    is_held: bool = False
    #: Attempts per second of its webhook, and those in a burst; None: no limit, or not known. Not stored likewise.
    rate: tuple[float, int] | None = None
    #: Why its webhook could not be used when the event was accepted, without values; None: it could.
    unusable: str | None = None

    @property
    def lane(self) -> str:
        """What the broker keeps apart from others: one webhook's attempts."""
        return lane_of_webhook(self.company, self.webhook_id)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a ``webhooks.send`` message asks for: to make one attempt."""

    delivery_id: str
    #: The attempt's number, from 0.
    retry: int
    #: The ``_id`` that the attempt's log will have. Asking again with it is the same claim.
    log_id: ObjectId
    #: Who makes the attempt: Celery's node name; None when it is not known.
    worker: str | None = None
    #: When it was about to be asked for, by `uptime`.
    asked_at: float = field(default_factory=uptime, compare=False)

    @property
    def begin_by(self) -> float:
        """When its request must have been begun, by `uptime`: later another may have the claim, or a pause hold."""
        return self.asked_at + BEGIN_WITHIN_S


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An attempt that was begun, and of whose end nothing is known here: its worker died, most likely."""

    #: The ``_id`` that its log has, if it was written after all.
    log_id: ObjectId
    retry: int
    worker: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery whose next attempt is ours to make."""

    delivery: Delivery
    #: Since when; None, if it was set aside.
    due_at: datetime | None
    #: Attempts since the last one that ended, oldest first.
    interrupted: tuple[Interrupted, ...]
    #: The claim's.
    log_id: ObjectId
    #: When it was written down; None, if somebody changed that.
    created_at: datetime | None = None
    #: Whether it was let out to try a paused endpoint.
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """Another worker has a claim on this delivery, or had one until a moment ago."""

    #: Seconds until it makes sense to ask again.
    again_s: float
    #: Token of the process that has the claim; None where it has no lease, so that the claim lasts as long as it says.
    holder: str | None = None
    #: The claim's; None where it cannot be read.
    log_id: ObjectId | None = None


@dataclass(frozen=True, slots=True)
class PendingDelivery:
    """A delivery that is to be queued: its message is lost, or it was kept and has none."""

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
    """Read what is needed to queue a delivery; None when somebody changed it."""
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
    """The delivery to a webhook that has been due for the longest time. Its ids may be anything."""

    webhook_id: object
    company: object
    due_at: datetime


def read_claimed(
    claim: Claim, document: Document | None, bodies: Mapping[str, str], present: datetime, claim_s: float
) -> Claimed | Blocked | Exception | None:
    """Read what came of asking for an attempt.

    Args:
        claim: what was asked for.
        document: the delivery's, as it is after that; None where there is none.
        bodies: by `shared_id`, of deliveries whose events are stored beside.
        present: MongoDB's time.
        claim_s: seconds that a claim lasts.

    Returns:
        As `DeliveryStore.claim` does for each claim.
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
        unusable=unusable if isinstance(unusable := document.get("unusable"), str) else None,
    )
    due_at, before, created_at = (document.get(name) for name in ("due_at", "interrupted", "created_at"))
    interrupted = [_read_interrupted(old) for old in before] if isinstance(before, list) else []
    return Claimed(
        delivery,
        due_at if isinstance(due_at, datetime) else None,
        tuple(old for old in interrupted if old is not None),
        claim.log_id,
        created_at if isinstance(created_at, datetime) else None,
        document.get("probe") is True,
    )


def _read_blocked(held: Document, asked: int, present: datetime, claim_s: float) -> Blocked:
    until, holder, log_id, retry = (held.get(field) for field in ("until", "holder", "log_id", "retry"))
    left_s = (until - present).total_seconds() if isinstance(until, datetime) else claim_s
    if isinstance(retry, int) and retry < asked:
        # The attempt before this one is over, and its end is being written down.
        left_s = min(left_s, _WRITTEN_SOON_S)
    return Blocked(
        min(max(left_s, 0.0) + _AFTER_S, claim_s),
        holder if isinstance(holder, str) else None,
        log_id if isinstance(log_id, ObjectId) else None,
    )


def shared_ids(documents: Iterable[Document]) -> set[str]:
    """Return where the events of deliveries are stored that do not have them themselves."""
    return {shared_id(one.get("event_id"), one.get("company")) for one in documents if "body" not in one}


def shared_id(event_id: object, company: object) -> str:
    """Return the ``_id`` of an event that is stored once for many deliveries."""
    return f"{event_id}/{company}"


def _read_interrupted(old: object) -> Interrupted | None:
    """Read an entry of the list; None for one that somebody put there by hand."""
    if not isinstance(old, dict):
        return None
    log_id, retry, worker, at = (old.get(field) for field in ("log_id", "retry", "worker", "at"))
    if not isinstance(log_id, ObjectId) or not isinstance(retry, int) or not isinstance(at, datetime):
        return None
    return Interrupted(log_id, retry, worker if isinstance(worker, str) else None, at)
