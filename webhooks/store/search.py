"""Pages of logs for people: newest first, without the events' payloads.

The next page starts at a key, so all pages cost the same. Filters without an index search a bounded number of logs, and
the page says how far back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from bson import ObjectId
from pydantic import ValidationError
from pymongo import DESCENDING
from pymongo.database import Database

from webhooks.models import NO_RESPONSE_STATUS, AttemptDetails
from webhooks.rules.retry import Outcome, judge
from webhooks.store.logs import LogQuery
from webhooks.store.mongo import LAST_CHARACTER, Document, instant, store_errors

#: Logs that one page looks at where a filter has no index.
SEARCHED_AT_MOST = 2_000
#: Characters of a response that a row has.
RESPONSE_CHARS = 300
#: Filters that no index serves.
_UNINDEXED = ("status", "event.type", "event.event")


def _fields(response_chars: int) -> Document:
    return {
        "company": 1,
        "createdAt": 1,
        "status": 1,
        "retry": 1,
        # A log that another system wrote may have anything here.
        "response": {
            "$cond": [
                {"$eq": [{"$type": "$response"}, "string"]},
                {"$substrCP": ["$response", 0, response_chars]},
                "",
            ]
        },
        "subscription": 1,
        "attempt": 1,
        "event.type": 1,
        "event.event": 1,
        "event.createdAt": 1,
        "event.data._id": 1,
    }


@dataclass(frozen=True, slots=True)
class LogRow:
    """One attempt, without payload. Another system may have written the log, so any text may be empty."""

    log_id: object
    company: object
    webhook_id: object
    created_at: datetime
    status: int
    retry: int
    #: Its first characters.
    response: str
    event_type: str
    event_name: str
    event_at: datetime | None
    object_id: str
    #: None only in a log that another system wrote.
    details: AttemptDetails | None

    @property
    def outcome(self) -> Outcome:
        """How the attempt ended."""
        return judge(self.status) if self.details is None else Outcome(self.details.outcome)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ends."""

    at: datetime
    #: How many of the logs with exactly this `createdAt` were shown.
    shown: int


@dataclass(frozen=True, slots=True)
class LogPage:
    """Logs, newest first."""

    rows: list[LogRow]
    #: Where the next page begins; None when this is the last.
    next: Cursor | None
    #: How far back was searched, where the search ended at its bound.
    searched_to: datetime | None = None


def is_bounded(query: LogQuery) -> bool:
    """Tell whether a search for these logs ends at a bound, because no index serves some filter."""
    return bool(_split(query)[1])


def _split(query: LogQuery) -> tuple[Document, Document]:
    """Return a query's filter in two parts, the second of which no index serves."""
    wanted = query.to_filter()
    unindexed = {field: wanted.pop(field) for field in _UNINDEXED if field in wanted}
    if isinstance(wanted.get("attempt.error_kind"), dict):  # whether there is one
        unindexed["attempt.error_kind"] = wanted.pop("attempt.error_kind")
    return wanted, unindexed


class LogSearch:
    """Reads pages of logs. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document], searched_at_most: int = SEARCHED_AT_MOST) -> None:
        self._collection = database["webhooklogs"]
        self._bound = searched_at_most

    def find_page(
        self, query: LogQuery, limit: int, after: Cursor | None = None, response_chars: int = RESPONSE_CHARS
    ) -> LogPage:
        """Return a page of logs.

        Args:
            query: which ones.
            limit: how many.
            after: where the page before ended; None for the newest.
            response_chars: how much of each response.
        """
        wanted, unindexed = _split(query)
        # A list of dates, which only another system writes, would break the order of the pages.
        span: Document = {**wanted.get("createdAt", {}), "$not": {"$type": "array"}}
        if after is not None:
            span["$lte"] = after.at
        wanted["createdAt"] = span
        stages: list[Document] = [{"$match": wanted}, {"$sort": {"createdAt": DESCENDING}}]
        if after is not None:
            stages.append({"$skip": after.shown})
        bound = [{"$limit": self._bound}, {"$match": unindexed}] if unindexed else []
        with store_errors():
            found = list(
                self._collection.aggregate(
                    [*stages, *bound, {"$limit": limit + 1}, {"$project": _fields(response_chars)}]
                )
            )
            rows = [row for row in map(read_row, found[:limit]) if row is not None]
            if len(found) > limit and rows:
                return LogPage(rows, end_of([row.created_at for row in rows], after))
            if not unindexed:
                return LogPage(rows, None)
            last = list(
                self._collection.aggregate(
                    [*stages, {"$skip": self._bound - 1}, {"$limit": 1}, {"$project": {"createdAt": 1}}]
                )
            )
        if not last:
            return LogPage(rows, None)
        # The next page may repeat logs of this instant, but misses none.
        return LogPage(rows, Cursor(last[0]["createdAt"], 0), last[0]["createdAt"])

    def find_ids(self, field: Literal["delivery_id", "event_id"], start: str, limit: int) -> set[str]:
        """Return ids of deliveries or events of which there are logs, and that begin with a text.

        Args:
            field: of which.
            start: the text.
            limit: logs that are looked at.
        """
        path = f"attempt.{field}"
        stages: list[Document] = [
            {"$match": {path: {"$gte": start, "$lt": start + LAST_CHARACTER}}},
            {"$limit": limit},
            {"$group": {"_id": f"${path}"}},
        ]
        with store_errors():
            return {str(group["_id"]) for group in self._collection.aggregate(stages)}


def end_of(instants: Sequence[datetime], after: Cursor | None) -> Cursor:
    """Return where a page ends.

    Args:
        instants: `createdAt` of its logs, in their order.
        after: where the page before ended.
    """
    at = instants[-1]
    shown = instants.count(at)
    if after is not None and after.at == at:
        shown += after.shown
    return Cursor(at, shown)


def read_row(document: Document) -> LogRow | None:
    """Read what a row shows of a stored log; None of one without a date."""
    at = document.get("createdAt")
    if not isinstance(at, datetime):
        return None
    event = _mapping(document.get("event"))
    status, retry, response = (document.get(field) for field in ("status", "retry", "response"))
    try:
        details = AttemptDetails.model_validate(document.get("attempt"))
    except ValidationError:
        details = None
    return LogRow(
        log_id=document.get("_id"),
        company=document.get("company"),
        webhook_id=document.get("subscription"),
        created_at=at,
        status=status if isinstance(status, int) else NO_RESPONSE_STATUS,
        retry=retry if isinstance(retry, int) else 0,
        response=response if isinstance(response, str) else "",
        event_type=_text(event.get("type")),
        event_name=_text(event.get("event")),
        event_at=instant(event.get("createdAt")),
        object_id=_text(_mapping(event.get("data")).get("_id")),
        details=details,
    )


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | ObjectId | int) else ""
