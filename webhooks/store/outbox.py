"""The collection ``outbox``: events that a producer has accepted in MongoDB, before any broker knows of them.

Owns the durable way in. A producer that can reach MongoDB writes its event here, inside its own transaction if it has
one: not even a lost broker loses it, and no event is sent for a transaction that was rolled back. A relay in the
workers (`sweeper`) queues ``webhooks.deliver`` from it, and ``webhooks.deliver`` takes it out once the ledger has its
deliveries.

One document per event: ``_id`` (the event's id), ``body``, ``accepted_at``, ``queue_at`` (when it is to be queued, or
asked for again; absent where it was set aside), ``queued`` (how often it was), ``queued_at`` (when last), ``order`` (a
Timestamp, of which MongoDB gives out each one once, so it tells the order within a millisecond) and ``line`` (company
and type: among which order matters). All times are MongoDB's.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pymongo import ASCENDING, UpdateOne
from pymongo.database import Database

from webhooks.models.wire import show
from webhooks.store.mongo import Document, store_errors

logger = logging.getLogger(__name__)

#: How often an event is queued until newer ones no longer wait for it.
_MOST_WAITED_FOR = 10
#: Bytes of events that one look reads.
MAX_BYTES = 16 * 1024 * 1024
#: In which events are queued: that of their acceptance.
_ORDER = [("queue_at", ASCENDING), ("order", ASCENDING)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event to queue."""

    event_id: str
    body: str
    #: How often it was queued before.
    queued: int
    #: When its message was queued; None: it has none that is known.
    queued_at: datetime | None = None


class Outbox:
    """The relay's side. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["outbox"]

    def ensure_indexes(self) -> None:
        """Make the index, or find it made."""
        with store_errors():
            self._collection.create_index(_ORDER, name="queue_order")
            self._collection.create_index([("line", ASCENDING), ("accepted_at", ASCENDING)], name="line")

    def find_due(self, at: datetime, limit: int) -> list[Accepted]:
        """Return events that are to be queued, or asked for, by an instant, the longest due first.

        Args:
            at: the instant.
            limit: of how many; large ones are fewer.
        """
        found: list[Document] = []
        size = 0
        with store_errors(), self._collection.find({"queue_at": {"$lte": at}}).sort(_ORDER).limit(limit) as cursor:
            for document in cursor:
                found.append(document)
                size += len(str(document.get("body")))
                if size >= MAX_BYTES:
                    break
        events = []
        for document in found:
            fault = _why_unusable(document)
            if fault:
                self._quarantine(document["_id"], fault)
            else:
                queued, queued_at = document.get("queued"), document.get("queued_at")
                events.append(
                    Accepted(
                        document["_id"],
                        document["body"],
                        queued if isinstance(queued, int) and queued > 0 else 0,
                        queued_at if isinstance(queued_at, datetime) else None,
                    )
                )
        return events

    def _quarantine(self, event_id: object, fault: str) -> None:
        """Keep a document that somebody wrote by hand and that is no event, out of the way of all others."""
        logger.error(
            "event %s in the outbox is set aside until it is mended and has a queue_at: %s", show(event_id), fault
        )
        with store_errors():
            self._collection.update_one({"_id": event_id}, {"$unset": {"queue_at": ""}})

    def note_queued(self, events: Sequence[Accepted], at: datetime, pause: timedelta) -> None:
        """Note that events were queued, and when to ask what became of their messages.

        Args:
            events: as `find_due` returned them.
            at: now.
            pause: from now on.
        """
        updates = [
            UpdateOne(
                {"_id": event.event_id},
                {"$set": {"queue_at": at + pause, "queued": event.queued + 1, "queued_at": at}},
            )
            for event in events
        ]
        with store_errors():
            if updates:
                self._collection.bulk_write(updates, ordered=False)

    def ask_again(self, events: Sequence[Accepted], at: datetime) -> None:
        """Note when to ask once more for events whose messages are still waiting."""
        with store_errors():
            if events:
                ids = [event.event_id for event in events]
                # One that stands behind older ones by now is to be queued.
                self._collection.update_many(
                    {"_id": {"$in": ids}, "queued_at": {"$exists": True}}, {"$set": {"queue_at": at}}
                )

    def stand_behind_older(self, event_id: str) -> bool:
        """Have an event that must keep the order queued again behind older ones that are not through yet, if any are.

        Their messages were lost with a Redis that was wiped, and would come again later than this one's.

        Returns:
            Whether there are any: this message of the event is to be dropped.
        """
        with store_errors():
            mine = self._collection.find_one({"_id": event_id}, {"accepted_at": 1, "order": 1, "line": 1})
            if mine is None or not all(field in mine for field in ("accepted_at", "order", "line")):
                return False
            at = mine["accepted_at"]
            is_before = [{"accepted_at": {"$lt": at}}, {"accepted_at": at, "order": {"$lt": mine["order"]}}]
            # Not for ever: one that never gets through must not stop all others.
            is_hoped_for: Document = {"queue_at": {"$exists": True}, "queued": {"$lt": _MOST_WAITED_FOR}}
            older: Document = {"line": mine["line"], "$or": is_before, **is_hoped_for}
            if self._collection.count_documents(older, limit=1) == 0:
                return False
            again: list[Document] = [{"$set": {"queue_at": "$accepted_at"}}, {"$unset": "queued_at"}]
            self._collection.update_many(older, again)
            self._collection.update_one({"_id": event_id}, again)
            return True

    def remove(self, event_id: str) -> None:
        """Take an event out: the ledger has its deliveries."""
        with store_errors():
            self._collection.delete_one({"_id": event_id})


def _why_unusable(document: Document) -> str | None:
    """Say why a document cannot be queued; None when it can. Whether its body is an event is not asked here."""
    if not isinstance(document["_id"], str) or not document["_id"]:
        return "_id: must be text"
    if not isinstance(document.get("body"), str):
        return "body: must be the event's JSON text"
    return None
