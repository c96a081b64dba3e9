"""The collection ``leases``: which worker processes are alive, and which one runs each exclusive job.

A process's lease: ``_id`` (its token), ``since`` (start of renewals without a gap), ``until``, ``node`` (Celery's name
of its worker), ``settings`` (which commands compare with their own). A job's lease: ``_id`` (its name), ``owner`` (a
process's token), ``until``. All times are MongoDB's. `holder` explains the constants.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, ReturnDocument, WriteConcern
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from webhooks.store.mongo import Document, store_errors
from webhooks.transport.holder import CLAIM_LEASE_S, MAX_GAP_S, RENEW_AGAIN_S, WITNESS_AFTER_S, uptime

#: Seconds after which an expired lease is deleted: longer than any claim under it.
_KEPT_S = 3_600


class Leases:
    """One process's leases. Methods that use MongoDB raise StoreUnavailable when it is away."""

    def __init__(self, database: Database[Document], token: str, clock: Callable[[], float] = uptime) -> None:
        """Use a database.

        Args:
            database: from `mongo.open_database`.
            token: of this process.
            clock: monotonic seconds that go on while the process is paused.
        """
        # Not journaled: the next renewal repairs a lost write.
        self._leases = database["leases"].with_options(write_concern=WriteConcern(w=1))
        self._token = token
        self._clock = clock
        self._held_until = float("-inf")

    def ensure_indexes(self) -> None:
        """Create the index by which MongoDB deletes expired leases."""
        with store_errors():
            self._leases.create_index([("until", ASCENDING)], name="over", expireAfterSeconds=_KEPT_S)

    def renew(self, node: str | None = None, settings: Mapping[str, Any] | None = None) -> None:
        """Extend this process's lease to `CLAIM_LEASE_S` from now.

        Args:
            node: Celery's name of the worker.
            settings: for commands to compare with their own, without secrets.
        """
        asked_at = self._clock()
        is_without_gap = {
            "$and": [
                {"$eq": [{"$type": "$since"}, "date"]},
                {"$gt": ["$until", _from_now(CLAIM_LEASE_S - MAX_GAP_S)]},
                {"$lte": ["$until", _from_now(CLAIM_LEASE_S)]},
            ]
        }
        said = {"since": {"$cond": [is_without_gap, "$since", "$$NOW"]}, "until": _from_now(CLAIM_LEASE_S)}
        if node is not None:
            said |= {"node": {"$literal": node}, "settings": {"$literal": dict(settings or {})}}
        with store_errors():
            self._leases.update_one({"_id": self._token}, [{"$set": said}], upsert=True)
        self._held_until = asked_at + CLAIM_LEASE_S

    def release(self) -> None:
        """End this process's lease and its jobs."""
        self._held_until = float("-inf")
        with store_errors():
            self._leases.update_many(
                {"$or": [{"_id": self._token}, {"owner": self._token}]}, [{"$set": {"until": "$$NOW"}}]
            )

    def holder(self) -> str | None:
        """Return the token for claims; None while this process's lease may have lapsed, so that its claims use time."""
        return self._token if self._clock() < self._held_until else None

    def find_left(self, tokens: Iterable[str]) -> dict[str, float]:
        """Return for how many seconds other processes' leases still hold; unknown processes are left out."""
        with store_errors():
            found = self._leases.aggregate(
                [
                    {"$match": {"_id": {"$in": [self._token, *tokens]}}},
                    {"$project": {"since": 1, "until": 1, "present": "$$NOW"}},
                ]
            )
            documents = {document["_id"]: document for document in found}
        return judge_leases(documents, self._token)

    def take_job(self, name: str, seconds: float) -> bool:
        """Try to take or extend the lease of an exclusive job; return whether this process has it."""
        # A lease that lasts longer than a new one dates from before the server's clock went back.
        is_free = {"$or": [is_over("$until", seconds), {"$eq": ["$owner", self._token]}]}
        taken = {
            "owner": {"$cond": [is_free, self._token, "$owner"]},
            "until": {"$cond": [is_free, _from_now(seconds), "$until"]},
        }
        with store_errors():
            try:
                lease = self._leases.find_one_and_update(
                    {"_id": name}, [{"$set": taken}], upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:  # another process created it at the same time
                return False
            return bool(lease) and lease.get("owner") == self._token


class WorkerStore:
    """Which workers are alive, as their leases say. Methods raise StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._leases = database["leases"]

    def find_settings(self) -> dict[str, object]:
        """Return what each worker says of its settings, by Celery's node name.

        A worker that died is among them until its lease has lapsed.
        """
        holds = {"node": {"$type": "string"}, "$expr": {"$gt": ["$until", "$$NOW"]}}
        with store_errors():
            found = self._leases.find(holds, {"node": 1, "settings": 1}).sort("until", ASCENDING)
            return {document["node"]: document.get("settings") for document in found}


def judge_leases(documents: Mapping[str, Document], witness: str) -> dict[str, float]:
    """Judge how long processes' leases still hold.

    Args:
        documents: by token, with ``since``, ``until`` and ``present`` (the server's time); includes the witness.
        witness: token of the asking process. Only a process with an unbroken lease may judge another's as lapsed:
            otherwise the server was away, and both are about to renew.

    Returns:
        Seconds by token; 0: the lease has lapsed. Invalid documents are left out.
    """
    left = {}
    own = documents.get(witness, {})
    for token, document in documents.items():
        until, present = document.get("until"), document["present"]
        if token == witness or not isinstance(until, datetime):
            continue
        left_s = (until - present).total_seconds()
        # A longer lease was renewed before the server's clock went back, and not since.
        is_good = 0 < left_s <= CLAIM_LEASE_S + MAX_GAP_S
        left[token] = left_s if is_good else _seconds_to_witness(own, present)
    return left


def _seconds_to_witness(own: Document, present: datetime) -> float:
    """Return after how many seconds a process may judge another's lease as lapsed."""
    since, until = own.get("since"), own.get("until")
    if not isinstance(since, datetime) or not isinstance(until, datetime):
        return WITNESS_AFTER_S
    if not CLAIM_LEASE_S - MAX_GAP_S <= (until - present).total_seconds() <= CLAIM_LEASE_S:
        return WITNESS_AFTER_S  # its own renewals have a gap
    watched_s = (present - since).total_seconds()
    return 0.0 if watched_s >= WITNESS_AFTER_S else max(RENEW_AGAIN_S, WITNESS_AFTER_S - watched_s)


def is_over(until: str, longest_s: float) -> Document:
    """Return the expression that tells whether an instant has passed, or is too far ahead to be valid."""
    return {"$or": [{"$lte": [{"$ifNull": [until, "$$NOW"]}, "$$NOW"]}, {"$gt": [until, _from_now(longest_s)]}]}


def _from_now(seconds: float) -> Document:
    return {"$add": ["$$NOW", int(seconds * 1000)]}
