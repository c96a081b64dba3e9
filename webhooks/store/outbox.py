"""The collection ``outbox``: the relay's side of the transactional outbox.

A producer writes its event here, inside its own transaction if it has one. The relay queues ``webhooks.deliver``, which
removes the event once its deliveries are stored.

Fields: ``_id`` (the event's id), ``body``, ``accepted_at``, ``queue_at`` (when to queue it or to check its message;
absent in quarantine), ``queued`` (how often it was queued), ``queued_at`` (when last), ``order`` (a Timestamp, which
MongoDB gives out once, so it orders events within a millisecond) and ``line`` (company and type, within which order
matters). All times are MongoDB's.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pymongo import ASCENDING, UpdateOne
from pymongo.database import Database

from webhooks.models.wire import show
from webhooks.store.mongo import Document, instant, store_errors

logger = logging.getLogger(__name__)

#: How often an event is queued before newer ones stop waiting for it.
_MOST_WAITED_FOR = 10
#: Bytes of events that one read returns.
MAX_BYTES = 16 * 1024 * 1024
#: Events are queued in the order of their acceptance.
_ORDER = [("queue_at", ASCENDING), ("order", ASCENDING)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event to queue."""

    event_id: str
    body: str
    #: How often it was queued before.
    queued: int
    #: When its message was queued; None if there is no known message.
    queued_at: datetime | None = None


class Outbox:
    """The relay's side. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["outbox"]

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        with store_errors():
            self._collection.create_index(_ORDER, name="queue_order")
            self._collection.create_index([("line", ASCENDING), ("accepted_at", ASCENDING)], name="line")

    def find_due(self, at: datetime, limit: int) -> list[Accepted]:
        """Return events that are due for queueing or for a check of their messages, longest due first.

        Args:
            at: the instant.
            limit: maximum number; large events are fewer.
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
                queued = document.get("queued")
                queued = queued if isinstance(queued, int) and queued > 0 else 0
                queued_at = instant(document.get("queued_at"))
                events.append(Accepted(document["_id"], document["body"], queued, queued_at))
        return events

    def find_accepted_at(self, event_id: str) -> datetime | None:
        """Return when an event was written down that is still here; None for one that is not."""
        with store_errors():
            document = self._collection.find_one({"_id": event_id}, {"accepted_at": 1})
        at = None if document is None else document.get("accepted_at")
        return at if isinstance(at, datetime) else None

    def _quarantine(self, event_id: object, fault: str) -> None:
        """Take an invalid document, written by hand, out of the queue."""
        logger.error(
            "event %s in the outbox is quarantined until it is corrected and has a queue_at: %s", show(event_id), fault
        )
        with store_errors():
            self._collection.update_one({"_id": event_id}, {"$unset": {"queue_at": ""}})

    def note_queued(self, events: Sequence[Accepted], at: datetime, pause: timedelta) -> None:
        """Note that events were queued at an instant; their messages are checked after the pause."""
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
        """Set when to check again the messages of events that still wait."""
        with store_errors():
            if events:
                ids = [event.event_id for event in events]
                # An event that `stand_behind_older` has reset is to be queued, not checked.
                self._collection.update_many(
                    {"_id": {"$in": ids}, "queued_at": {"$exists": True}}, {"$set": {"queue_at": at}}
                )

    def stand_behind_older(self, event_id: str) -> bool:
        """Queue an ordered event again behind older ones of its line, if there are any.

        Older events are left when their messages were lost, as in a wiped Redis.

        Returns:
            Whether there are any; then drop this message of the event.
        """
        with store_errors():
            mine = self._collection.find_one({"_id": event_id}, {"accepted_at": 1, "order": 1, "line": 1})
            if mine is None or not all(field in mine for field in ("accepted_at", "order", "line")):
                return False
            at = mine["accepted_at"]
            is_before = [{"accepted_at": {"$lt": at}}, {"accepted_at": at, "order": {"$lt": mine["order"]}}]
            # Limited, so that an event that always fails does not stop the line.
            is_hoped_for: Document = {"queue_at": {"$exists": True}, "queued": {"$lt": _MOST_WAITED_FOR}}
            older: Document = {"line": mine["line"], "$or": is_before, **is_hoped_for}
            if self._collection.count_documents(older, limit=1) == 0:
                return False
            again: list[Document] = [{"$set": {"queue_at": "$accepted_at"}}, {"$unset": "queued_at"}]
            self._collection.update_many(older, again)
            self._collection.update_one({"_id": event_id}, again)
            return True

    def remove(self, event_id: str) -> None:
        """Remove an event whose deliveries are stored."""
        with store_errors():
            self._collection.delete_one({"_id": event_id})


def _why_unusable(document: Document) -> str | None:
    """Say why a document cannot be queued; None if it can. The body is not parsed here."""
    if not isinstance(document["_id"], str) or not document["_id"]:
        return "_id: must be text"
    if not isinstance(document.get("body"), str):
        return "body: must be the event's JSON text"
    return None
