"""Notices to operators, stored in the collection ``gates`` with the changes that they report."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bson import ObjectId
from pymongo.database import Database

from webhooks.store.mongo import Document, instant, store_errors

#: Notices that a gate holds; older ones are dropped.
_MAX_NOTICES = 20


class NoticeType(StrEnum):
    """The kinds of notices."""

    PAUSED = "paused"
    RECOVERED = "recovered"
    RESUMED = "resumed"
    STOPPED = "stopped"
    DEACTIVATED = "deactivated"


@dataclass(frozen=True, slots=True)
class Notice:
    """A change of a webhook's gate, to report to operators."""

    notice_id: ObjectId
    webhook_id: ObjectId
    type: NoticeType
    at: datetime
    reason: str
    #: Whether operators were notified.
    is_told: bool
    #: Failed notifications.
    tries: int = 0
    #: When to notify, or to try again.
    tell_at: datetime | None = None


class NoticeStore:
    """Reads and changes notices. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["gates"]

    def list_untold(self, present: datetime, limit: int) -> list[Notice]:
        """Return notices that are due for a first or further try, oldest first."""
        # In the query, so that notices that are not due do not use up the limit.
        is_due: Document = {"$or": [{"tell_at": {"$lte": present}}, {"tell_at": None}]}
        query = {"has_untold": True, "notices": {"$elemMatch": {"told": False, **is_due}}}
        with store_errors():
            found = list(self._collection.find(query, {"notices": 1}).limit(limit))
        # Documents written by hand may have other ids.
        ours = (one for one in found if isinstance(one["_id"], ObjectId))
        notices = (notice for one in ours for notice in read_notices(one["_id"], one["notices"]) if not notice.is_told)
        due = [notice for notice in notices if notice.tell_at is None or notice.tell_at <= present]
        return sorted(due, key=lambda notice: notice.at)[:limit]

    def note_told(self, notice: Notice) -> None:
        """Mark a notice as delivered to operators."""
        self._change_notice(notice, {"told": True})

    def take(self, notice: Notice, again_in_s: float) -> bool:
        """Claim a notice; it is due again after `again_in_s` unless `note_told` comes first.

        Returns:
            False if another process claimed it.
        """
        return self._change_notice(notice, {"tries": notice.tries + 1, "tell_at": after(again_in_s)})

    def _change_notice(self, notice: Notice, change: Document) -> bool:
        is_it = {"$eq": ["$$one.id", notice.notice_id]}
        changed = {
            "$map": {
                "input": {"$cond": [{"$isArray": "$notices"}, "$notices", []]},
                "as": "one",
                "in": {"$cond": [is_it, {"$mergeObjects": ["$$one", change]}, "$$one"]},
            }
        }
        untold = {"$in": [False, {"$ifNull": ["$notices.told", []]}]}
        wanted: Document = {"id": notice.notice_id}
        if "tries" in change:
            wanted["tries"] = notice.tries
        query = {"_id": notice.webhook_id, "notices": {"$elemMatch": wanted}}
        with store_errors():
            done = self._collection.update_one(
                query, [{"$set": {"notices": changed}}, {"$set": {"has_untold": untold}}]
            )
        return done.matched_count == 1


def with_notice(notice: NoticeType, reason: str, notice_id: ObjectId) -> Document:
    """Return the expression that appends a notice to a gate's notices."""
    entry = {
        "id": notice_id,
        "type": notice.value,
        "at": "$$NOW",
        "reason": literal(reason),
        "told": False,
        "tell_at": "$$NOW",
        "tries": 0,
    }
    before = {"$cond": [{"$isArray": "$notices"}, "$notices", []]}
    return {"$slice": [{"$concatArrays": [before, [entry]]}, -_MAX_NOTICES]}


def read_notices(webhook_id: ObjectId, value: object) -> tuple[Notice, ...]:
    """Read a gate's notices; invalid ones are left out."""
    read = [_read_notice(webhook_id, one) for one in value] if isinstance(value, list) else []
    return tuple(notice for notice in read if notice is not None)


def _read_notice(webhook_id: ObjectId, value: object) -> Notice | None:
    """Read a notice; None if it is invalid."""
    if not isinstance(value, dict):
        return None
    notice_id, kind, at, reason, tries = (value.get(field) for field in ("id", "type", "at", "reason", "tries"))
    if not isinstance(notice_id, ObjectId) or kind not in list(NoticeType) or not isinstance(at, datetime):
        return None
    return Notice(
        notice_id=notice_id,
        webhook_id=webhook_id,
        type=NoticeType(kind),
        at=at,
        reason=reason if isinstance(reason, str) else "",
        is_told=value.get("told") is not False,
        tries=tries if isinstance(tries, int) and tries > 0 else 0,
        tell_at=instant(value.get("tell_at")),
    )


def after(seconds: float) -> Document:
    """Return the expression for an instant some seconds from now, by MongoDB's clock."""
    return {"$add": ["$$NOW", int(seconds * 1000)]}


def literal(text: str) -> Document:
    """Return the expression for a text, which MongoDB would read as a field's name if it begins with ``$``."""
    return {"$literal": text}
