"""The collection ``resendjobs``: jobs that resend all failed deliveries that a filter chooses.

Fields: ``_id`` (short, for people; marks the deliveries that the job sends), ``at``, ``by`` (who began it),
``action_id`` (its record in `actions`), ``filter`` (names and values as of `log_filter`, with whole ids and instants),
``rate`` (deliveries per second), ``total`` (how many there were), ``state``, ``resent``, ``left_out``, ``waits`` (what
it waits for; empty: for nothing), ``seen_at`` (when a worker last worked on it), ``ended_at``. Times are MongoDB's.
"""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bson import ObjectId
from pymongo import DESCENDING
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from webhooks.store.expiry import ensure_expiry
from webhooks.store.mongo import Document, instant, store_errors

#: Bytes of an id.
_ID_BYTES = 4
#: Days for which a job is kept after its end.
_KEPT_DAYS = 30
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class ResendJob:
    """A job as it stands."""

    job_id: str
    at: datetime
    by: str
    action_id: object
    filter: Mapping[str, str]
    rate: float
    total: int
    state: JobState
    resent: int
    left_out: int
    waits: str
    seen_at: datetime | None


class ResendJobStore:
    """Writes and reads jobs. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["resendjobs"]

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        ensure_expiry(self._collection, "ended_at", "ended_at_ttl", _KEPT_DAYS)

    def begin(
        self,
        *,
        by: str,
        action_id: ObjectId,
        filters: Mapping[str, str],
        rate: float,
        total: int,
        at: datetime,
    ) -> ResendJob:
        """Write a job down, for a worker to carry out."""
        fields = {"at": at, "by": by, "action_id": action_id, "filter": dict(filters), "rate": rate, "total": total}
        counts = {"state": JobState.RUNNING.value, "resent": 0, "left_out": 0, "waits": ""}
        while True:
            document: Document = {"_id": secrets.token_hex(_ID_BYTES), **fields, **counts}
            with suppress(DuplicateKeyError), store_errors():
                self._collection.insert_one(document)
                return _read(document)

    def get(self, job_id: str) -> ResendJob | None:
        """Return a job; None where there is none."""
        with store_errors():
            document = self._collection.find_one({"_id": job_id})
        return None if document is None else _read(document)

    def find(self, limit: int) -> list[ResendJob]:
        """Return jobs, the newest first."""
        with store_errors():
            found = list(self._collection.find().sort("at", DESCENDING).limit(limit))
        return [_read(document) for document in found]

    def find_of_webhook(self, webhook_id: ObjectId, limit: int) -> list[ResendJob]:
        """Return jobs of one webhook, the newest first."""
        with store_errors():
            found = list(self._collection.find({"filter.webhook": str(webhook_id)}).sort("at", DESCENDING).limit(limit))
        return [_read(document) for document in found]

    def find_running(self) -> list[ResendJob]:
        """Return the jobs that workers are to carry out."""
        with store_errors():
            return [_read(document) for document in self._collection.find({"state": JobState.RUNNING.value})]

    def note(self, job_id: str, *, resent: int, left_out: int, waits: str) -> bool:
        """Note how far a job has come; return whether it is to go on.

        Args:
            job_id: which.
            resent: how many were resent since the last note.
            left_out: how many were left out by now.
            waits: what it waits for.
        """
        change: Document = {
            "$inc": {"resent": resent},
            "$set": {"left_out": left_out, "waits": waits},
            "$currentDate": {"seen_at": True},
        }
        with store_errors():
            document = self._collection.find_one_and_update({"_id": job_id}, change, {"state": 1})
        return document is not None and document.get("state") == JobState.RUNNING

    def change(self, job_id: str, before: JobState, after: JobState) -> bool:
        """Change a job's state; return whether it was in the other."""
        change: Document = {"$set": {"state": after.value, "waits": ""}}
        if after is JobState.RUNNING:
            change["$unset"] = {"ended_at": ""}
        else:
            change["$currentDate"] = {"ended_at": True}
        with store_errors():
            return self._collection.update_one({"_id": job_id, "state": before.value}, change).matched_count == 1


def _read(document: Document) -> ResendJob:
    """Read a job; a field that was changed by hand has it do nothing."""
    given, state = document.get("filter"), document.get("state")
    numbers = {name: document.get(name) for name in ("rate", "total", "resent", "left_out")}
    rate, total, resent, left_out = (value if isinstance(value, int | float) else 0 for value in numbers.values())
    return ResendJob(
        job_id=str(document["_id"]),
        at=instant(document.get("at")) or _LONG_AGO,
        by=str(document.get("by", "")),
        action_id=document.get("action_id"),
        filter={str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {},
        rate=rate,
        total=int(total),
        state=JobState(state) if state in list(JobState) else JobState.STOPPED,
        resent=int(resent),
        left_out=int(left_out),
        waits=str(document.get("waits", "")),
        seen_at=instant(document.get("seen_at")),
    )
