"""The collection ``leases``: which worker processes live, and which of them does a job that one at a time does.

A process's own: ``_id`` (its token), ``since`` (from when on its renewals came without a gap), ``until``. A job's:
``_id`` (its name), ``owner`` (a process's token), ``until``. All times are MongoDB's. A process without a lease here is
none of which anything is known; `holder` says what follows from that, and why its times are as they are.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from pymongo import ASCENDING, ReturnDocument, WriteConcern
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from webhooks.store.mongo import Document, store_errors
from webhooks.transport.holder import CLAIM_LEASE_S, MAX_GAP_S, RENEW_AGAIN_S, WITNESS_AFTER_S, uptime

#: Seconds after its end for which a lease is kept: longer than any claim that was made under it lasts.
_KEPT_S = 3_600


class Leases:
    """One process's leases. Methods that ask MongoDB raise StoreUnavailable when it cannot serve us now."""

    def __init__(self, database: Database[Document], token: str, clock: Callable[[], float] = uptime) -> None:
        """Use a database.

        Args:
            database: where.
            token: the process's.
            clock: seconds that never jump, and go on while the process is paused.
        """
        # What a crash of MongoDB forgets of these is said again soon.
        self._leases = database["leases"].with_options(write_concern=WriteConcern(w=1))
        self._token = token
        self._clock = clock
        self._held_until = float("-inf")

    def ensure_indexes(self) -> None:
        """Make the index that has MongoDB delete leases of old."""
        with store_errors():
            self._leases.create_index([("until", ASCENDING)], name="over", expireAfterSeconds=_KEPT_S)

    # ── The process's own ───────────────────────────────────────────────────────────────────────────────────────────
    def renew(self) -> None:
        """Say that this process lives, for `CLAIM_LEASE_S` from now."""
        asked_at = self._clock()
        is_without_gap = {
            "$and": [
                {"$eq": [{"$type": "$since"}, "date"]},
                {"$gt": ["$until", _from_now(CLAIM_LEASE_S - MAX_GAP_S)]},
                {"$lte": ["$until", _from_now(CLAIM_LEASE_S)]},
            ]
        }
        said = {"since": {"$cond": [is_without_gap, "$since", "$$NOW"]}, "until": _from_now(CLAIM_LEASE_S)}
        with store_errors():
            self._leases.update_one({"_id": self._token}, [{"$set": said}], upsert=True)
        self._held_until = asked_at + CLAIM_LEASE_S

    def release(self) -> None:
        """Say that this process holds nothing any more, and leave its jobs to others."""
        self._held_until = float("-inf")
        with store_errors():
            self._leases.update_many(
                {"$or": [{"_id": self._token}, {"owner": self._token}]}, [{"$set": {"until": "$$NOW"}}]
            )

    def holder(self) -> str | None:
        """Return the token to claim things under; None while the process's lease may have lapsed.

        What a process claims that was paused, before it has renewed its lease, is not to be taken from it at once.
        """
        return self._token if self._clock() < self._held_until else None

    def find_left(self, tokens: Iterable[str]) -> dict[str, float]:
        """Return how many seconds processes still hold what they hold, 0 if nothing any more.

        Only for those that have, or had, a lease.
        """
        with store_errors():
            found = self._leases.aggregate(
                [
                    {"$match": {"_id": {"$in": [self._token, *tokens]}}},
                    {"$project": {"since": 1, "until": 1, "present": "$$NOW"}},
                ]
            )
            documents = {document["_id"]: document for document in found}
        return judge_leases(documents, self._token)

    # ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def take_job(self, name: str, seconds: float) -> bool:
        """Try to be the one process that does a job for some time, by the server's clock.

        Returns:
            Whether the job's lease is this process's now.
        """
        # One that lasts longer than any would that is taken now is of before the server's clock went back.
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
            except DuplicateKeyError:  # two were the first at the same time; the other one was faster
                return False
            return bool(lease) and lease.get("owner") == self._token


def judge_leases(documents: Mapping[str, Document], witness: str) -> dict[str, float]:
    """Say of processes how long they still hold what they hold.

    Args:
        documents: by token, each with ``since``, ``until`` and ``present``, the server's time; of the witness as well.
        witness: token of the process that asks. It says that another's lease lapsed only if its own did not, and has
            not for some time: otherwise the server was away, and both are about to renew theirs.

    Returns:
        By token, for how many seconds nothing can be said against it; 0: it holds nothing. Leases that were changed by
        hand into none are left out.
    """
    left = {}
    own = documents.get(witness, {})
    for token, document in documents.items():
        until, present = document.get("until"), document["present"]
        if token == witness or not isinstance(until, datetime):
            continue
        left_s = (until - present).total_seconds()
        # One that is longer than any, by more than what the witness would take for no gap, was renewed before the
        # server's clock went back, and not since.
        is_good = 0 < left_s <= CLAIM_LEASE_S + MAX_GAP_S
        left[token] = left_s if is_good else _seconds_to_witness(own, present)
    return left


def _seconds_to_witness(own: Document, present: datetime) -> float:
    """Return after how many seconds a process may say that another's lease lapsed; 0: now."""
    since, until = own.get("since"), own.get("until")
    if not isinstance(since, datetime) or not isinstance(until, datetime):
        return WITNESS_AFTER_S
    if not CLAIM_LEASE_S - MAX_GAP_S <= (until - present).total_seconds() <= CLAIM_LEASE_S:
        return WITNESS_AFTER_S  # it renews just now, after a gap
    watched_s = (present - since).total_seconds()
    return 0.0 if watched_s >= WITNESS_AFTER_S else max(RENEW_AGAIN_S, WITNESS_AFTER_S - watched_s)


def is_over(until: str, longest_s: float) -> Document:
    """Return the expression that says whether an instant is not ahead, or too far ahead to be one of ours."""
    return {"$or": [{"$lte": [{"$ifNull": [until, "$$NOW"]}, "$$NOW"]}, {"$gt": [until, _from_now(longest_s)]}]}


def _from_now(seconds: float) -> Document:
    return {"$add": ["$$NOW", int(seconds * 1000)]}
