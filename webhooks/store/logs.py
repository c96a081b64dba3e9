"""The collection ``webhooklogs``: one document per attempt."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from bson import ObjectId
from pydantic import ValidationError
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure, WriteError

from webhooks.errors import ErrorKind
from webhooks.models import NO_RESPONSE_STATUS, COTWebhookLog
from webhooks.models.wire import show
from webhooks.rules.retry import Outcome, judge
from webhooks.store.expiry import ensure_expiry
from webhooks.store.mongo import Document, Query, insert_new, store_errors

logger = logging.getLogger(__name__)

#: Name of the index that expires logs; it also sorts all logs by age.
_EXPIRY = "createdAt_ttl"

#: Any text but the empty one. A partial index by `$type` is not used for a query by value.
_ANY_TEXT = {"$gt": ""}

#: Fields that logs are mostly asked for by.
_SCOPES = {"subscription": "webhook", "company": "company"}
#: Their indexes, which `by_outcome` makes serve all outcomes. The id gives logs of one millisecond an order.
_BY_OUTCOME = [
    IndexModel(
        [(field, ASCENDING), ("attempt.outcome", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)],
        name=f"{name}_outcome_age",
    )
    for field, name in _SCOPES.items()
]
#: One index per filter; each ends in `createdAt`, so that the newest come first without a sort. Each costs a seventh of
#: a log's write.
_INDEXES = [
    *_BY_OUTCOME,
    IndexModel([("attempt.outcome", ASCENDING), ("createdAt", DESCENDING)], name="outcome_newest"),
    IndexModel([("attempt.event_id", ASCENDING), ("createdAt", DESCENDING)], name="event_newest"),
    IndexModel([("attempt.delivery_id", ASCENDING), ("createdAt", DESCENDING)], name="delivery_newest"),
    # Events about an object; those without one, such as logouts, cost nothing here.
    IndexModel(
        [("event.data._id", ASCENDING), ("createdAt", DESCENDING)],
        name="object_newest",
        partialFilterExpression={"event.data._id": {"$exists": True}},
    ),
    # Only attempts without a response, so that successes cost nothing.
    IndexModel(
        [("attempt.error_kind", ASCENDING), ("createdAt", DESCENDING)],
        name="kind_newest",
        partialFilterExpression={"attempt.error_kind": _ANY_TEXT},
    ),
]

#: Indexes of earlier versions, and the errors of dropping one that does not exist.
_OLD_INDEXES = [f"{name}_{rest}" for name in _SCOPES.values() for rest in ("newest", "outcome_newest")]
_IS_DROPPED = {26, 27}

#: What `attempt.outcome` is, but in a log that another system wrote in a way of its own.
_OUTCOMES = [*Outcome, None]
#: Filters with indexes of their own that leave few logs.
_SELECTIVE = ("attempt.event_id", "attempt.delivery_id", "event.data._id")

#: How many invalid logs a read skips before it returns fewer than its limit.
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
    kind: ErrorKind | None = None
    #: First and last status of responses.
    statuses: tuple[int, int] | None = None
    has_response: bool | None = None
    event_type: str | None = None
    event_name: str | None = None
    #: `createdAt` at or after `since` and before `until`; both aware.
    since: datetime | None = None
    until: datetime | None = None

    def to_filter(self) -> Document:
        """Return the MongoDB filter."""
        wanted: dict[str, Any] = {
            "subscription": self.webhook_id,
            "company": self.company,
            "attempt.outcome": self._outcome_filter(),
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

    def _outcome_filter(self) -> object:
        if self.outcome is not None:
            return self.outcome.value
        # What follows from other filters, so that an index is used. A log that another system wrote has no outcome.
        if self.has_response is False:
            return Outcome.FAILED.value
        if self.statuses is None:
            return None
        outcomes = {judge(status) for status in range(self.statuses[0], self.statuses[1] + 1)}
        return {"$in": [outcomes.pop().value, None]} if len(outcomes) == 1 else None

    def _kind_filter(self) -> object:
        if self.kind is not None:
            return self.kind.value
        # The contract logs 409 where no response came; a filter by status means real responses.
        has_response = True if self.statuses is not None and self.has_response is None else self.has_response
        if has_response is None:
            return None
        return {"$not": _ANY_TEXT} if has_response else _ANY_TEXT


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """Number of a webhook's attempts with the same result in one time slice."""

    #: 0 is the newest.
    slice: int
    outcome: str
    error_kind: ErrorKind | None
    count: int
    #: End of the oldest attempt, and status of the newest.
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
    """Writes and reads logs. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["webhooklogs"]

    def ensure_indexes(self, ttl_days: int) -> None:
        """Create or update the indexes.

        Args:
            ttl_days: days until a log expires, also for old logs; 0 keeps logs for ever.
        """
        with store_errors():
            self._collection.create_indexes(_INDEXES)
        ensure_expiry(self._collection, "createdAt", _EXPIRY, ttl_days)
        # A worker of an earlier version makes them again when it starts.
        for name in _OLD_INDEXES:
            with store_errors():
                try:
                    self._collection.drop_index(name)
                except OperationFailure as error:
                    if error.code not in _IS_DROPPED:
                        logger.warning("the index %s, which nothing uses, was not dropped: error %s", name, error.code)

    def write(self, logs: Sequence[COTWebhookLog]) -> Mapping[int, WriteError]:
        """Store logs that are not stored yet.

        A log that is too large is stored without most of its event, because an attempt without a log is repeated.

        Returns:
            By index, why a log cannot be stored at all.
        """
        documents = [log.to_bson() for log in logs]
        result = insert_new(self._collection, documents)
        refused = list(result.faults)
        still_refused = insert_new(self._collection, [_cut(documents[place]) for place in refused]).faults
        # Attempts that were logged as interrupted, whose own logs only came late, as through the broker.
        for document in (documents[place] for place in result.known):
            guess = {"_id": document["_id"], "attempt.error_kind": ErrorKind.INTERRUPTED.value}
            if document["attempt"]["error_kind"] != ErrorKind.INTERRUPTED:
                with store_errors():
                    self._collection.replace_one(guess, document)
        return {place: still_refused[number] for number, place in enumerate(refused) if number in still_refused}

    def find_ended(self, delivery_ids: Iterable[str]) -> set[str]:
        """Return the ids of deliveries that have ended."""
        asked = self.ask_ended(delivery_ids)
        with store_errors():
            return self.read_ended(asked.collection.find(asked.filter, asked.fields))

    def ask_ended(self, delivery_ids: Iterable[str]) -> Query:
        """Return the query for ended deliveries, for `read_ended`; one that waits for an operator has not ended."""
        wanted: Document = {
            "attempt.delivery_id": {"$in": list(delivery_ids)},
            "attempt.next_at": None,
            "attempt.kept": {"$ne": True},
        }
        return Query(self._collection, wanted, {"attempt.delivery_id": 1})

    def read_ended(self, found: Iterable[Document]) -> set[str]:
        """Return the delivery ids of documents; invalid ones are ignored."""
        attempts = [document.get("attempt") for document in found]
        ids = (attempt.get("delivery_id") for attempt in attempts if isinstance(attempt, dict))
        return {delivery_id for delivery_id in ids if isinstance(delivery_id, str)}

    def find_ended_attempt(self, log_id: ObjectId) -> COTWebhookLog | None:
        """Return an attempt's log; None if there is none, or only one of an interrupted attempt."""
        query = {"_id": log_id, "attempt.error_kind": {"$ne": ErrorKind.INTERRUPTED.value}}
        with store_errors():
            document = self._collection.find_one(query)
        return None if document is None else next(iter(_parse([document])), None)

    def read(self, query: LogQuery, limit: int) -> list[COTWebhookLog]:
        """Return the newest valid logs, newest first."""
        with store_errors():
            wanted = by_outcome(self._collection, query.to_filter())
            cursor = self._collection.find(wanted).sort("createdAt", DESCENDING).limit(limit + _SPARE)
            with cursor.batch_size(min(limit, _SPARE)):
                return list(islice(_parse(cursor), limit))

    def read_ids(self, query: LogQuery) -> dict[ObjectId, datetime]:
        """Return id and `createdAt` of all logs that match; those without a valid date are left out."""
        with store_errors():
            wanted = by_outcome(self._collection, query.to_filter())
            documents = self._collection.find(wanted, {"createdAt": 1})
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
        """Return the webhooks of the newest `limit` attempts with an outcome, and the error kinds of these."""
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
        """Count a webhook's newest `limit` attempts by time slice, newest slice first.

        Args:
            webhook_id: the webhook.
            until: now; logs from a clock that is ahead count as of now.
            slice_s: seconds of a slice.
            slices: number of slices.
            limit: maximum number of attempts.
        """
        since = until - timedelta(seconds=slice_s * slices)
        age_ms = {"$max": [0, {"$subtract": [until, "$createdAt"]}]}
        # Another writer's list of dates would fail the whole pipeline.
        span = {"$gte": since, "$not": {"$type": "array"}}
        pipeline: list[Document] = [
            {"$match": {"subscription": webhook_id, "attempt.outcome": {"$in": list(Outcome)}, "createdAt": span}},
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
        """Return how the attempts of deliveries ended."""
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
        """Count matching logs up to the limit."""
        with store_errors():
            return self._collection.count_documents(by_outcome(self._collection, query.to_filter()), limit=limit)


def by_outcome(collection: Collection[Document], wanted: Document) -> Document:
    """Return a filter of the same logs with which an index gives those of a webhook or a company newest first.

    Args:
        collection: of logs.
        wanted: the filter.
    """
    if "attempt.outcome" in wanted or not _is_scoped(wanted):
        return wanted
    scope = {field: wanted[field] for field in _SCOPES if field in wanted}
    with store_errors():
        others = collection.find_one({**scope, "attempt.outcome": {"$nin": _OUTCOMES}}, {"_id": 1})
    # MongoDB merges what the index has of each of these outcomes.
    return wanted if others is not None else {**wanted, "attempt.outcome": {"$in": _OUTCOMES}}


def find_order(wanted: Document) -> dict[str, int]:
    """Return the order, newest first, in which an index has the logs of a filter, the same each time."""
    # Merged logs of one instant have no order but this one. Those with an error kind all failed: nothing is merged.
    is_merged = "attempt.outcome" in wanted and "attempt.error_kind" not in wanted and _is_scoped(wanted)
    return {"createdAt": DESCENDING, **({"_id": DESCENDING} if is_merged else {})}


def _is_scoped(wanted: Document) -> bool:
    return any(field in wanted for field in _SCOPES) and not any(field in wanted for field in _SELECTIVE)


def _spell_id(object_id: str) -> list[object]:
    """Return an object's id as text, as producers send it, and as ObjectId, as other writers may store it."""
    return [object_id, ObjectId(object_id)] if ObjectId.is_valid(object_id) else [object_id]


def _cut(document: Document) -> Document:
    """Return a log without the parts of its event that may be too large or too deep."""
    event = {name: value for name, value in document["event"].items() if name != "diff"}
    cut = {**event, "data": None, "extraData": None}
    return {**document, "event": cut, "attempt": {**document["attempt"], "event_cut": True}}


def _read_kind(value: object) -> ErrorKind | None:
    return ErrorKind(value) if value in list(ErrorKind) else None


def parse_log(document: Document) -> COTWebhookLog | None:
    """Parse a stored log; None, with a warning, if it breaks the contract."""
    try:
        return COTWebhookLog.model_validate(document)
    except ValidationError as error:
        logger.warning("log %s breaks the contract in %d ways", show(document.get("_id")), error.error_count())
        return None


def _parse(documents: Iterable[Document]) -> Iterator[COTWebhookLog]:
    return (log for log in map(parse_log, documents) if log is not None)
