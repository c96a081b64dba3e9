"""The collection ``eventtraces``: one document per event that no webhook asked for.

Of all other events their deliveries and logs tell. Without a trace, an event that matched nobody could not be told from
one that was never seen.

Fields: ``_id`` (the event's id and its company, as a producer may choose the ids of its events), ``event_id``,
``company``, ``type``, ``event``, ``object_id`` (absent where the event has no object), ``narrowing`` (the ids in the
event's data by which a context narrows), ``created_at`` (the event's), ``accepted_at``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel, WriteConcern
from pymongo.database import Database

from webhooks.models import TRIGGERS, COTEvent, now
from webhooks.store.expiry import ensure_expiry
from webhooks.store.mongo import LAST_CHARACTER, Document, insert_new, store_errors
from webhooks.store.pending import shared_id

_INDEXES = [
    IndexModel([("event_id", ASCENDING)], name="event"),
    IndexModel(
        [("object_id", ASCENDING), ("accepted_at", DESCENDING)],
        name="object_newest",
        partialFilterExpression={"object_id": {"$exists": True}},
    ),
]
#: Keys of an event's data by which some context narrows.
_NARROWING = frozenset(key for trigger in TRIGGERS.values() for key in trigger.narrowed_by.values())
#: Characters of an id that are kept: whatever a producer puts there.
_MAX_ID = 200


@dataclass(frozen=True, slots=True)
class EventTrace:
    """An event that no webhook asked for."""

    event_id: str
    company: ObjectId
    type: str
    event: str
    object_id: str
    narrowing: Mapping[str, str]
    created_at: datetime | None
    accepted_at: datetime


class TraceStore:
    """Writes and reads traces. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["eventtraces"]
        # A crash of MongoDB may forget one: nothing pending is lost with it.
        self._quick = self._collection.with_options(write_concern=WriteConcern(w=1))

    def ensure_indexes(self, ttl_days: int) -> None:
        """Make the indexes, or find them made.

        Args:
            ttl_days: days until a trace expires: those of the logs.
        """
        with store_errors():
            self._collection.create_indexes(_INDEXES)
        ensure_expiry(self._collection, "accepted_at", "accepted_at_ttl", ttl_days)

    def write(self, events: Iterable[tuple[str, COTEvent]]) -> None:
        """Store traces of events, given with their ids; one that is stored already is left as it is."""
        at = now()
        insert_new(self._quick, [_make(event_id, event, at) for event_id, event in events])

    def find_event(self, event_id: str) -> list[EventTrace]:
        """Return the traces of an event: one for each company that has one with this id."""
        return self._find({"event_id": event_id}, 10)

    def find_ids(self, start: str, limit: int) -> set[str]:
        """Return ids of events that begin with a text; of up to `limit` traces."""
        query = {"event_id": {"$gte": start, "$lt": start + LAST_CHARACTER}}
        with store_errors():
            return {str(one["event_id"]) for one in self._collection.find(query, {"event_id": 1}).limit(limit)}

    def find_object(self, object_id: str, limit: int) -> list[EventTrace]:
        """Return the traces of events about an object, the newest first."""
        return self._find({"object_id": object_id}, limit)

    def _find(self, query: Document, limit: int) -> list[EventTrace]:
        with store_errors():
            found = list(self._collection.find(query).sort("accepted_at", DESCENDING).limit(limit))
        return [trace for trace in map(_read, found) if trace is not None]


def _make(event_id: str, event: COTEvent, at: datetime) -> Document:
    data = event.data or {}
    object_id = data.get("_id")
    return {
        "_id": shared_id(event_id, event.company),
        "event_id": event_id,
        "company": event.company,
        "type": event.type,
        "event": event.event,
        **({"object_id": str(object_id)[:_MAX_ID]} if object_id is not None else {}),
        "narrowing": {key: str(data[key])[:_MAX_ID] for key in _NARROWING & data.keys()},
        "created_at": event.createdAt,
        "accepted_at": at,
    }


def _read(document: Document) -> EventTrace | None:
    """Read a trace; None for what somebody put there by hand."""
    company, accepted_at, narrowing = (document.get(name) for name in ("company", "accepted_at", "narrowing"))
    if not isinstance(company, ObjectId) or not isinstance(accepted_at, datetime):
        return None
    created_at = document.get("created_at")
    return EventTrace(
        event_id=str(document.get("event_id", "")),
        company=company,
        type=str(document.get("type", "")),
        event=str(document.get("event", "")),
        object_id=str(document.get("object_id", "")),
        narrowing={str(k): str(v) for k, v in narrowing.items()} if isinstance(narrowing, dict) else {},
        created_at=created_at if isinstance(created_at, datetime) else None,
        accepted_at=accepted_at,
    )
