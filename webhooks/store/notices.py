"""The notices of the collection ``gates``: what operators are told of a webhook, written with what it tells of."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bson import ObjectId
from pymongo.database import Database

from webhooks.store.mongo import Document, store_errors

#: Notices that a gate keeps.
_MAX_NOTICES = 20


class NoticeType(StrEnum):
    """What operators are told of."""

    PAUSED = "paused"
    RECOVERED = "recovered"
    RESUMED = "resumed"
    STOPPED = "stopped"
    DEACTIVATED = "deactivated"


@dataclass(frozen=True, slots=True)
class Notice:
    """One event of our own."""

    notice_id: ObjectId
    webhook_id: ObjectId
    type: NoticeType
    at: datetime
    reason: str
    is_told: bool
    #: How often telling it has failed.
    tries: int = 0
    #: When to tell it, or to try again.
    tell_at: datetime | None = None


class NoticeStore:
    """Reads and changes notices. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["gates"]

    def list_untold(self, present: datetime, limit: int) -> list[Notice]:
        """Return notices that are to be told by now, or told again, oldest first."""
        # Those that are not due must not stand before the others.
        is_due: Document = {"$or": [{"tell_at": {"$lte": present}}, {"tell_at": None}]}
        query = {"has_untold": True, "notices": {"$elemMatch": {"told": False, **is_due}}}
        with store_errors():
            found = list(self._collection.find(query, {"notices": 1}).limit(limit))
        # A document that somebody put there by hand is no webhook's.
        ours = (one for one in found if isinstance(one["_id"], ObjectId))
        notices = (notice for one in ours for notice in read_notices(one["_id"], one["notices"]) if not notice.is_told)
        due = [notice for notice in notices if notice.tell_at is None or notice.tell_at <= present]
        return sorted(due, key=lambda notice: notice.at)[:limit]

    def note_told(self, notice: Notice) -> None:
        """Note that operators were told."""
        self._change_notice(notice, {"told": True})

    def take(self, notice: Notice, again_in_s: float) -> bool:
        """Take it on to tell operators: it is told again some time from now, unless `note_told` comes before.

        Returns:
            Whether it is ours to do: False when somebody was faster.
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
    """Return the expression that is a gate's notices with a new one."""
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
    """Read a gate's notices; what somebody put there by hand is left out."""
    read = [_read_notice(webhook_id, one) for one in value] if isinstance(value, list) else []
    return tuple(notice for notice in read if notice is not None)


def _read_notice(webhook_id: ObjectId, value: object) -> Notice | None:
    """Read a notice; None for what somebody put there by hand."""
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
    """Return the expression that is so many seconds from now, by MongoDB's clock."""
    return {"$add": ["$$NOW", int(seconds * 1000)]}


def literal(text: str) -> Document:
    """Return the expression that is a text: by itself one that begins with ``$`` names a field."""
    return {"$literal": text}


def instant(value: object) -> datetime | None:
    """Return an instant; None for anything else that somebody put in its place."""
    return value if isinstance(value, datetime) else None
