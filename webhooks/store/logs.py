"""The collection ``webhooklogs``: one document per attempt.

Owns writing logs, the indexes that answer what people ask, and reading them back.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from bson import ObjectId
from pydantic import ValidationError
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.database import Database
from pymongo.errors import WriteError

from webhooks.errors import ErrorKind
from webhooks.models import NO_RESPONSE_STATUS, COTWebhookLog
from webhooks.models.wire import show
from webhooks.rules.retry import Outcome
from webhooks.store.expiry import ensure_expiry
from webhooks.store.mongo import Document, Query, insert_new, store_errors

logger = logging.getLogger(__name__)

#: Name of the index that lets logs expire, and that also answers "the newest logs of all".
_EXPIRY = "createdAt_ttl"

#: One index per question; each ends in `createdAt`, so that the newest come first without a sort.
_INDEXES = [
    IndexModel([("subscription", ASCENDING), ("createdAt", DESCENDING)], name="webhook_newest"),
    IndexModel(
        [("subscription", ASCENDING), ("attempt.outcome", ASCENDING), ("createdAt", DESCENDING)],
        name="webhook_outcome_newest",
    ),
    IndexModel([("company", ASCENDING), ("createdAt", DESCENDING)], name="company_newest"),
    IndexModel(
        [("company", ASCENDING), ("attempt.outcome", ASCENDING), ("createdAt", DESCENDING)],
        name="company_outcome_newest",
    ),
    IndexModel([("attempt.outcome", ASCENDING), ("createdAt", DESCENDING)], name="outcome_newest"),
    IndexModel([("attempt.event_id", ASCENDING), ("createdAt", DESCENDING)], name="event_newest"),
    IndexModel([("attempt.delivery_id", ASCENDING), ("createdAt", DESCENDING)], name="delivery_newest"),
    # "What became of task T?" Events without an object, such as logouts, cost nothing here.
    IndexModel(
        [("event.data._id", ASCENDING), ("createdAt", DESCENDING)],
        name="object_newest",
        partialFilterExpression={"event.data._id": {"$exists": True}},
    ),
    # Only attempts without a response are in it, so that a success costs nothing.
    IndexModel(
        [("attempt.error_kind", ASCENDING), ("createdAt", DESCENDING)],
        name="kind_newest",
        partialFilterExpression={"attempt.error_kind": {"$type": "string"}},
    ),
]

#: Logs that break the contract, and are passed over, before a reading gives up finding as many as were asked for.
_SPARE = 1_000


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which logs to read; None asks for all."""

    webhook_id: ObjectId | None = None
    company: ObjectId | None = None
    outcome: Outcome | None = None
    event_id: str | None = None
    delivery_id: str | None = None
    #: `_id` of the event's object: ``event.data._id``.
    object_id: str | None = None
    #: Why no response came.
    kind: ErrorKind | None = None
    #: Statuses of responses, both ends included.
    statuses: tuple[int, int] | None = None
    #: Whether a response came.
    has_response: bool | None = None
    #: The event's type, and its name.
    event_type: str | None = None
    event_name: str | None = None
    #: `createdAt` from this instant on, and before that one; both aware.
    since: datetime | None = None
    until: datetime | None = None

    def to_filter(self) -> Document:
        """Return the MongoDB filter."""
        wanted: dict[str, Any] = {
            "subscription": self.webhook_id,
            "company": self.company,
            "attempt.outcome": None if self.outcome is None else self.outcome.value,
            "attempt.event_id": self.event_id,
            "attempt.delivery_id": self.delivery_id,
            "event.data._id": None if self.object_id is None else {"$in": _spell_id(self.object_id)},
            "attempt.error_kind": self._kind_filter(),
            "status": None if self.statuses is None else {"$gte": self.statuses[0], "$lte": self.statuses[1]},
            "event.type": self.event_type,
            "event.event": self.event_name,
        }
        span = {"$gte": self.since, "$lt": self.until}
        wanted["createdAt"] = {operator: at for operator, at in span.items() if at is not None} or None
        return {field: value for field, value in wanted.items() if value is not None}

    def _kind_filter(self) -> object:
        if self.kind is not None:
            return self.kind.value
        # A status asks for responses: the contract logs 409 where none came.
        has_response = True if self.statuses is not None and self.has_response is None else self.has_response
        if has_response is None:
            return None
        return {"$not": {"$type": "string"}} if has_response else {"$type": "string"}


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """Attempts of one webhook that ended alike in one slice of time."""

    #: 0 is the newest.
    slice: int
    outcome: str
    error_kind: ErrorKind | None
    count: int
    #: When the oldest of them ended, and the newest one's status.
    oldest_at: datetime
    status: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended."""

    delivery_id: str
    retry: int
    outcome: str
    error_kind: ErrorKind | None
    is_probe: bool


class LogStore:
    """Writes and reads logs. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["webhooklogs"]

    def ensure_indexes(self, ttl_days: int) -> None:
        """Make the indexes, or find them made.

        Args:
            ttl_days: days until a log expires; 0 keeps logs for ever. A changed value holds for old logs, too.
        """
        with store_errors():
            self._collection.create_indexes(_INDEXES)
        ensure_expiry(self._collection, "createdAt", _EXPIRY, ttl_days)

    def write(self, logs: Sequence[COTWebhookLog]) -> Mapping[int, WriteError]:
        """Store logs in one write, acknowledged; one that is stored already is left as it is.

        One that cannot be stored whole is stored cut: an attempt that no log tells of would be made again.

        Returns:
            The place in `logs` of each one that cannot be stored at all, and why.
        """
        documents = [log.to_bson() for log in logs]
        result = insert_new(self._collection, documents)
        refused = list(result.faults)
        still_refused = insert_new(self._collection, [_cut(documents[place]) for place in refused]).faults
        # The log of an attempt that was thought to be interrupted was only slow: it went through the broker, say.
        for document in (documents[place] for place in result.known):
            guess = {"_id": document["_id"], "attempt.error_kind": ErrorKind.INTERRUPTED.value}
            if document["attempt"]["error_kind"] != ErrorKind.INTERRUPTED:
                with store_errors():
                    self._collection.replace_one(guess, document)
        return {place: still_refused[number] for number, place in enumerate(refused) if number in still_refused}

    def find_ended(self, delivery_ids: Iterable[str]) -> set[str]:
        """Return the ids of those deliveries that have ended."""
        asked = self.ask_ended(delivery_ids)
        with store_errors():
            return self.read_ended(asked.collection.find(asked.filter, asked.fields))

    def ask_ended(self, delivery_ids: Iterable[str]) -> Query:
        """Return the question which of some deliveries have ended; one that waits for an operator has not."""
        wanted: Document = {
            "attempt.delivery_id": {"$in": list(delivery_ids)},
            "attempt.next_at": None,
            "attempt.kept": {"$ne": True},
        }
        return Query(self._collection, wanted, {"attempt.delivery_id": 1})

    def read_ended(self, found: Iterable[Document]) -> set[str]:
        """Return the ids of those deliveries."""
        # A log that somebody else wrote may have anything there, and tells nothing.
        attempts = [document.get("attempt") for document in found]
        ids = (attempt.get("delivery_id") for attempt in attempts if isinstance(attempt, dict))
        return {delivery_id for delivery_id in ids if isinstance(delivery_id, str)}

    def find_ended_attempt(self, log_id: ObjectId) -> COTWebhookLog | None:
        """Return an attempt's own log; None if there is none, or only one that says that it was interrupted."""
        query = {"_id": log_id, "attempt.error_kind": {"$ne": ErrorKind.INTERRUPTED.value}}
        with store_errors():
            document = self._collection.find_one(query)
        return None if document is None else next(iter(_parse([document])), None)

    def read(self, query: LogQuery, limit: int) -> list[COTWebhookLog]:
        """Return the newest logs, newest first.

        Args:
            query: which ones.
            limit: how many at most.
        """
        with store_errors():
            cursor = self._collection.find(query.to_filter()).sort("createdAt", DESCENDING).limit(limit + _SPARE)
            with cursor.batch_size(min(limit, _SPARE)):
                # Not past the limit: the rest need not be read.
                return list(islice(_parse(cursor), limit))

    def read_ids(self, query: LogQuery) -> dict[ObjectId, datetime]:
        """Return id and `createdAt` of every log that the query asks for."""
        with store_errors():
            documents = self._collection.find(query.to_filter(), {"createdAt": 1})
            # Of logs that somebody else wrote also those with a list of dates, or one beyond the calendar.
            return {
                document["_id"]: document["createdAt"]
                for document in documents
                if isinstance(document["_id"], ObjectId) and isinstance(document.get("createdAt"), datetime)
            }

    def get_many(self, log_ids: Sequence[ObjectId]) -> list[COTWebhookLog]:
        """Return the logs with these ids, oldest first."""
        with store_errors():
            documents = list(self._collection.find({"_id": {"$in": log_ids}}).sort("createdAt", ASCENDING))
        return list(_parse(documents))

    def find_webhooks(self, outcome: Outcome, since: datetime, limit: int) -> dict[ObjectId, set[ErrorKind | None]]:
        """Return the webhooks that had attempts with this outcome since an instant, and the kinds of error of those.

        Args:
            outcome: of the attempts.
            since: when they ended at the earliest.
            limit: how many logs to look at, the newest first.
        """
        pipeline: list[Document] = [
            {"$match": {"attempt.outcome": outcome.value, "createdAt": {"$gte": since}}},
            {"$sort": {"createdAt": DESCENDING}},
            {"$limit": limit},
            {"$group": {"_id": "$subscription", "kinds": {"$addToSet": {"$ifNull": ["$attempt.error_kind", None]}}}},
        ]
        with store_errors():
            found = list(self._collection.aggregate(pipeline))
        return {
            group["_id"]: {_read_kind(kind) for kind in group["kinds"]}
            for group in found
            if isinstance(group["_id"], ObjectId)
        }

    def count_attempts(
        self, webhook_id: ObjectId, until: datetime, slice_s: float, slices: int, limit: int
    ) -> list[AttemptCount]:
        """Count a webhook's attempts, the newest slice first.

        Args:
            webhook_id: whose.
            until: now; logs of a worker whose clock is ahead count as of now.
            slice_s: seconds of a slice.
            slices: how many.
            limit: attempts to count, the newest first.
        """
        since = until - timedelta(seconds=slice_s * slices)
        age_ms = {"$max": [0, {"$subtract": [until, "$createdAt"]}]}
        pipeline: list[Document] = [
            # A list of dates, which only somebody else writes, would fail it all.
            {"$match": {"subscription": webhook_id, "createdAt": {"$gte": since, "$not": {"$type": "array"}}}},
            {"$sort": {"createdAt": DESCENDING}},
            {"$limit": limit},
            {
                "$group": {
                    "_id": {
                        "slice": {"$floor": {"$divide": [age_ms, slice_s * 1000]}},
                        "outcome": "$attempt.outcome",
                        "kind": "$attempt.error_kind",
                    },
                    "count": {"$sum": 1},
                    "oldest_at": {"$min": "$createdAt"},
                    "status": {"$first": "$status"},
                }
            },
        ]
        with store_errors():
            found = list(self._collection.aggregate(pipeline))
        counts = [
            AttemptCount(
                int(group["_id"]["slice"]),
                group["_id"]["outcome"],
                _read_kind(group["_id"].get("kind")),
                group["count"],
                group["oldest_at"],
                group["status"] if isinstance(group["status"], int) else NO_RESPONSE_STATUS,
            )
            for group in found
            if group["_id"].get("outcome") in list(Outcome)
        ]
        return sorted(counts, key=lambda one: one.slice)

    def find_ends(self, delivery_ids: Sequence[str]) -> list[Ended]:
        """Return how the attempts of some deliveries ended, whenever that was."""
        fields = {
            "retry": 1,
            "attempt.delivery_id": 1,
            "attempt.outcome": 1,
            "attempt.error_kind": 1,
            "attempt.probe": 1,
        }
        with store_errors():
            documents = list(self._collection.find({"attempt.delivery_id": {"$in": list(delivery_ids)}}, fields))
        ends = []
        for document in documents:
            attempt, retry = document.get("attempt"), document.get("retry")
            if not isinstance(attempt, dict) or not isinstance(retry, int):
                continue
            delivery_id, outcome = attempt.get("delivery_id"), attempt.get("outcome")
            if isinstance(delivery_id, str) and isinstance(outcome, str):
                kind = _read_kind(attempt.get("error_kind"))
                ends.append(Ended(delivery_id, retry, outcome, kind, attempt.get("probe") is True))
        return ends

    def find_deliveries(self, event_id: str) -> set[str]:
        """Return the ids of an event's deliveries of which there are logs."""
        with store_errors():
            found = self._collection.distinct("attempt.delivery_id", {"attempt.event_id": event_id})
        return {delivery_id for delivery_id in found if isinstance(delivery_id, str)}

    def count(self, query: LogQuery, limit: int) -> int:
        """Return how many logs the query asks for; counting ends at the limit."""
        with store_errors():
            return self._collection.count_documents(query.to_filter(), limit=limit)


def _spell_id(object_id: str) -> list[object]:
    """Return an object's id as producers send it, and as another writer may have stored it."""
    return [object_id, ObjectId(object_id)] if ObjectId.is_valid(object_id) else [object_id]


def _cut(document: Document) -> Document:
    """Return a log without what may be too large, or too deep, in its event."""
    event = {name: value for name, value in document["event"].items() if name != "diff"}
    cut = {**event, "data": None, "extraData": None}
    return {**document, "event": cut, "attempt": {**document["attempt"], "event_cut": True}}


def _read_kind(value: object) -> ErrorKind | None:
    return ErrorKind(value) if value in list(ErrorKind) else None


def _parse(documents: Iterable[Document]) -> Iterator[COTWebhookLog]:
    for document in documents:
        try:
            yield COTWebhookLog.model_validate(document)
        except ValidationError as error:
            logger.warning("log %s breaks the contract in %d ways", show(document.get("_id")), error.error_count())
