"""Pending deliveries for people: read only, tolerant of invalid documents."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bson import ObjectId
from pymongo.database import Database

from webhooks.store.mongo import LAST_CHARACTER, Document, instant, store_errors
from webhooks.store.pending import shared_id

#: Pending deliveries of one event that are read.
MOST_OF_EVENT = 1_000

_FIELDS: Document = {"body": 0, "interrupted": 0}


@dataclass(frozen=True, slots=True)
class PendingDetails:
    """A delivery that has not ended."""

    delivery_id: str
    event_id: str
    webhook_id: object
    company: object
    label: str
    #: Number of the next attempt.
    retry: int
    created_at: datetime | None
    #: When its next attempt is due; None while it is held or quarantined.
    due_at: datetime | None
    #: Whether it is held, and has no message.
    is_held: bool
    #: Whether it was released to try a paused endpoint.
    is_probe: bool
    #: Its position in the line of an ordered webhook.
    position: int | None
    #: Which worker attempts it, and until when that claim holds at most; None where none does.
    worker: str | None
    claimed_until: datetime | None


class PendingDetailsStore:
    """Reads pending deliveries. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._deliveries = database["deliveries"]
        self._events = database["events"]

    def find(self, delivery_id: str) -> PendingDetails | None:
        """Return a delivery; None when nothing of it is pending."""
        with store_errors():
            document = self._deliveries.find_one({"_id": delivery_id}, _FIELDS)
        return None if document is None else read_details(document)

    def find_of_event(self, event_id: str) -> list[PendingDetails]:
        """Return the deliveries of an event."""
        with store_errors():
            found = list(self._deliveries.find({"event_id": event_id}, _FIELDS).limit(MOST_OF_EVENT))
        return [read_details(document) for document in found]

    def find_ids(self, field: Literal["_id", "event_id"], start: str, limit: int) -> set[str]:
        """Return ids of pending deliveries, or of their events, that begin with a text; of up to `limit` deliveries."""
        query = {field: {"$gte": start, "$lt": start + LAST_CHARACTER}}
        with store_errors():
            return {str(one[field]) for one in self._deliveries.find(query, {field: 1}).limit(limit)}

    def find_body(self, delivery_id: str) -> str | None:
        """Return the JSON text that a pending delivery sends; None when there is none."""
        with store_errors():
            document = self._deliveries.find_one({"_id": delivery_id}, {"body": 1, "event_id": 1, "company": 1})
            if document is not None and "body" not in document:
                shared = shared_id(document.get("event_id"), document.get("company"))
                document = self._events.find_one({"_id": shared}, {"body": 1})
        body = None if document is None else document.get("body")
        return body if isinstance(body, str) else None

    def count_many(self, webhook_ids: Iterable[ObjectId], limit: int) -> dict[ObjectId, int]:
        """Return how many deliveries are pending for each webhook; counting ends at the limit."""
        with store_errors():
            return {one: self._deliveries.count_documents({"webhook_id": one}, limit=limit) for one in webhook_ids}

    def find_first(self, webhook_ids: Collection[ObjectId] | None, limit: int) -> list[PendingDetails]:
        """Return pending deliveries, those that are due first, then held and quarantined ones.

        Args:
            webhook_ids: of these webhooks; None: of all.
            limit: how many at most.
        """
        query: Document = {} if webhook_ids is None else {"webhook_id": {"$in": list(webhook_ids)}}
        with store_errors():
            found = list(
                self._deliveries.find({**query, "due_at": {"$type": "date"}}, _FIELDS).sort("due_at", 1).limit(limit)
            )
            if len(found) < limit:
                found += self._deliveries.find({**query, "due_at": None}, _FIELDS).limit(limit - len(found))
        return [read_details(document) for document in found]

    def count(self, webhook_ids: Collection[ObjectId] | None, limit: int) -> int:
        """Count pending deliveries up to a limit; those of all webhooks are estimated."""
        with store_errors():
            if webhook_ids is None:
                return min(limit, self._deliveries.estimated_document_count())
            return self._deliveries.count_documents({"webhook_id": {"$in": list(webhook_ids)}}, limit=limit)


def read_details(document: Document) -> PendingDetails:
    """Read a delivery's document; invalid fields become empty."""
    claim = document.get("claim")
    claim = claim if isinstance(claim, dict) else {}
    retry, position = document.get("retry"), document.get("place")
    return PendingDetails(
        delivery_id=str(document.get("_id")),
        event_id=_text(document.get("event_id")),
        webhook_id=document.get("webhook_id"),
        company=document.get("company"),
        label=_text(document.get("label")),
        retry=retry if isinstance(retry, int) else 0,
        created_at=instant(document.get("created_at")),
        due_at=instant(document.get("due_at")),
        is_held=document.get("held") is True,
        is_probe=document.get("probe") is True,
        position=position if isinstance(position, int) else None,
        worker=_text(claim.get("worker")) or None,
        claimed_until=instant(claim.get("until")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
