"""Counts of attempts per webhook and slice of time, as lists of webhooks show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bson import ObjectId
from pymongo.database import Database

from webhooks.rules.figures import BUCKETS_PER_DOUBLING, Counts
from webhooks.rules.retry import SUCCESS_STATUSES, Outcome
from webhooks.store.mongo import Document, store_errors


@dataclass(frozen=True, slots=True)
class StatisticsStore:
    """Counts attempts. Raises StoreUnavailable when MongoDB cannot serve us now."""

    database: Database[Document]

    def count(self, since: datetime, until: datetime) -> Mapping[ObjectId, Counts]:
        """Count the attempts that ended in a span of time, by webhook."""
        outcome, status, total_ms = "$attempt.outcome", "$status", "$attempt.total_ms"
        is_bad = {"$or": [{"$lt": [status, SUCCESS_STATUSES.start]}, {"$gte": [status, SUCCESS_STATUSES.stop]}]}
        # A log that another system wrote has no outcome, but a status.
        has_failed = {"$cond": [{"$in": [outcome, list(Outcome)]}, {"$eq": [outcome, Outcome.FAILED]}, is_bad]}
        log = {"$log": [{"$max": [1, total_ms]}, 2]}
        bucket = {"$cond": [{"$isNumber": total_ms}, {"$floor": {"$multiply": [BUCKETS_PER_DOUBLING, log]}}, None]}
        stages: list[Document] = [
            {"$match": {"createdAt": {"$gte": since, "$lt": until}}},
            {
                "$group": {
                    "_id": {"webhook": "$subscription", "bucket": bucket, "failed": has_failed},
                    "count": {"$sum": 1},
                    "last": {"$max": "$createdAt"},
                }
            },
        ]
        with store_errors():
            found = list(self.database["webhooklogs"].aggregate(stages))
        counts: dict[ObjectId, Counts] = {}
        for group in found:
            key, number, last = group["_id"], group["count"], group["last"]
            if not isinstance(key.get("webhook"), ObjectId):
                continue
            one = counts.setdefault(key["webhook"], Counts())
            one.attempts += number
            if key["failed"]:
                one.failed += number
                if isinstance(last, datetime):
                    one.last_failed_at = last if one.last_failed_at is None else max(last, one.last_failed_at)
            if key["bucket"] is not None:
                one.buckets[int(key["bucket"])] = one.buckets.get(int(key["bucket"]), 0) + number
        return counts
