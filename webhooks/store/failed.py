"""Deliveries that have ended with a failed attempt, to be resent; and whether their webhooks have room for that.

A delivery and those that it was resent as count as one, as they have one ``webhook-id``: their newest attempt decides.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bson import ObjectId
from bson.regex import Regex
from pymongo import ASCENDING
from pymongo.database import Database

from webhooks.errors import ErrorKind
from webhooks.models.ids import RESENT, wire_id
from webhooks.rules.retry import Outcome
from webhooks.store.logs import LogQuery
from webhooks.store.mongo import Document, instant, store_errors
from webhooks.store.search import Cursor, advance

#: Logs that one step reads.
BATCH = 200
#: Deliveries of a webhook that may wait for a retry while others are resent to it: more say that its endpoint fails.
_MOST_RETRYING = 10


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """A delivery whose last attempt failed."""

    delivery_id: str
    event_id: str
    webhook_id: ObjectId
    #: The log of its last attempt.
    log_id: ObjectId


class FailedStore:
    """Finds failed deliveries. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._logs = database["webhooklogs"]
        self._deliveries = database["deliveries"]

    def find_webhooks(self, query: LogQuery) -> list[ObjectId]:
        """Return the webhooks that have failed deliveries, or had some."""
        with store_errors():
            found = self._logs.distinct("subscription", _ends(query, None))
        return [webhook_id for webhook_id in found if isinstance(webhook_id, ObjectId)]

    def find_batch(self, query: LogQuery, after: Cursor | None) -> tuple[list[FailedDelivery], Cursor | None]:
        """Return the next failed deliveries, those that failed first first.

        Args:
            query: which attempts, of those that were the last of their deliveries.
            after: where the batch before ended; None: from the beginning.

        Returns:
            Deliveries, which may be none, and where the next batch begins; None when this is the last.
        """
        fields = {"createdAt": 1, "subscription": 1, "attempt.delivery_id": 1, "attempt.event_id": 1}
        with store_errors():
            cursor = self._logs.find(_ends(query, after), fields).sort("createdAt", ASCENDING)
            found = list(cursor.skip(after.shown if after is not None else 0).limit(BATCH))
        failed = self.keep_failed([one for one in map(_read, found) if one is not None])
        for one in found:
            after = advance(after, one["createdAt"])
        return failed, after if len(found) == BATCH else None

    def keep_failed(self, deliveries: Sequence[FailedDelivery]) -> list[FailedDelivery]:
        """Return those of the deliveries that nothing has become of since their failed attempts."""
        last = self._find_last([one.delivery_id for one in deliveries]) if deliveries else {}
        return [one for one in deliveries if last.get(wire_id(one.delivery_id)) == one.log_id]

    def count(self, query: LogQuery, most: int) -> tuple[Counter[ObjectId], bool]:
        """Count failed deliveries by webhook, and tell whether counting ended at `most` logs."""
        counts: Counter[ObjectId] = Counter()
        after: Cursor | None = None
        for _ in range(0, most, BATCH):
            found, after = self.find_batch(query, after)
            counts.update(one.webhook_id for one in found)
            if after is None:
                return counts, False
        return counts, True

    def _find_last(self, delivery_ids: Sequence[str]) -> dict[str, object]:
        """Return the id of the newest log of each delivery; deliveries that are pending are left out."""
        wire_ids = {wire_id(one) for one in delivery_ids}
        # Without flags, and Python's patterns have one, the index is used.
        ids = [*wire_ids, *(Regex(f"^{re.escape(one)}{RESENT}") for one in wire_ids)]
        newest: dict[str, tuple[datetime, ObjectId]] = {}
        with store_errors():
            logs = self._logs.find({"attempt.delivery_id": {"$in": ids}}, {"createdAt": 1, "attempt.delivery_id": 1})
            for log in logs:
                at, first = instant(log.get("createdAt")), wire_id(log["attempt"]["delivery_id"])
                if at is not None and (first not in newest or (at, log["_id"]) > newest[first]):
                    newest[first] = (at, log["_id"])
            pending = {wire_id(one["_id"]) for one in self._deliveries.find({"_id": {"$in": ids}}, {"_id": 1})}
        return {first: log_id for first, (_, log_id) in newest.items() if first not in pending}

    def has_room(self, webhook_id: ObjectId, present: datetime) -> bool:
        """Tell whether nothing of a webhook waits for its turn, and little for a retry."""
        of_webhook = {"webhook_id": webhook_id}
        waits: list[Document] = [{"due_at": {"$lte": present}, "claim": {"$exists": False}}, {"held": True}]
        with store_errors():
            if any(self._deliveries.find_one({**of_webhook, **one}, {"_id": 1}) for one in waits):
                return False
            retrying = {**of_webhook, "due_at": {"$gt": present}}
            return self._deliveries.count_documents(retrying, limit=_MOST_RETRYING) < _MOST_RETRYING


def _ends(query: LogQuery, after: Cursor | None) -> Document:
    """Return the filter of failed attempts that ended their deliveries."""
    wanted = query.to_filter()
    # A list of dates, which only another system writes, would break the order.
    span = {**wanted.get("createdAt", {}), "$not": {"$type": "array"}}
    if after is not None:
        span["$gte"] = after.at
    # What an operator gave up stays so, unless it is asked for.
    given_up = {} if query.kind is ErrorKind.SKIPPED else {"$nor": [{"attempt.error_kind": ErrorKind.SKIPPED.value}]}
    return {
        **wanted,
        **given_up,
        "createdAt": span,
        "attempt.outcome": Outcome.FAILED.value,
        "attempt.next_at": None,
        "attempt.kept": {"$ne": True},
    }


def _read(document: Document) -> FailedDelivery | None:
    """Read a log; None for one that another system wrote."""
    attempt, webhook_id = document.get("attempt"), document.get("subscription")
    if not isinstance(attempt, dict) or not isinstance(webhook_id, ObjectId):
        return None
    delivery_id, event_id = attempt.get("delivery_id"), attempt.get("event_id")
    if not isinstance(delivery_id, str) or not isinstance(event_id, str):
        return None
    return FailedDelivery(delivery_id, event_id, webhook_id, document["_id"])
