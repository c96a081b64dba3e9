"""Pages of logs, newest first: rows without the events' payloads for people, whole logs for the read API.

The next page starts at a key, so all pages cost the same. Filters without an index search a bounded number of logs, and
the page says how far back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from bson import ObjectId
from pydantic import ValidationError
from pymongo.database import Database

from webhooks.models import NO_RESPONSE_STATUS, AttemptDetails
from webhooks.rules.retry import SUCCESS_STATUSES, Outcome, judge
from webhooks.store.logs import LogQuery, by_outcome, find_order
from webhooks.store.mongo import LAST_CHARACTER, Document, instant, store_errors

#: Logs that one page looks at where a filter has no index.
SEARCHED_AT_MOST = 2_000
#: Characters of a response that a row has.
RESPONSE_CHARS = 300
#: Logs of other systems that one page looks at besides where the result is asked for, which they do not have.
_SPARE = 100
#: Filters that no index serves.
_UNINDEXED = ("status", "event.type", "event.event")
_SUCCESS = {"$gte": SUCCESS_STATUSES.start, "$lt": SUCCESS_STATUSES.stop}
_STATUSES = {Outcome.SUCCESS: _SUCCESS, Outcome.FAILED: {"$not": _SUCCESS}}
#: Whole logs that are read at a time: one may have hundreds of kilobytes.
_BATCH = 50
#: Another system may write dates that Python does not have, and values that are no dates.
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)


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
        rows: list[LogRow] = []

        def take(document: Document) -> bool:
            rows.append(read_row(document))
            return True

        end, is_at_bound = self._walk(query, limit, after, take, [{"$project": _fields(response_chars)}])
        return LogPage(rows, end, end.at if end and is_at_bound else None)

    def walk_whole(
        self, query: LogQuery, limit: int, after: Cursor | None, take: Callable[[Document], bool]
    ) -> Cursor | None:
        """Hand over a page of stored logs, one after another.

        Args:
            query: which ones.
            limit: how many.
            after: where the page before ended; None for the newest.
            take: gets each, and returns whether it takes one more.

        Returns:
            Where the next page begins; None if this is the last.
        """
        return self._walk(query, limit, after, take)[0]

    def _walk(
        self,
        query: LogQuery,
        limit: int,
        after: Cursor | None,
        take: Callable[[Document], bool],
        stages: list[Document] | None = None,
    ) -> tuple[Cursor | None, bool]:
        """Return where the next page begins, and whether that is where a search without an index ended."""
        wanted, unindexed = _split(query)
        bound = self._bound if unindexed else limit + 1 + _SPARE
        if query.outcome is not None:
            # A log that another system wrote has no outcome; its status tells.
            wanted["attempt.outcome"] = {"$in": [query.outcome.value, None]}
            unindexed["$or"] = [{"attempt.outcome": query.outcome.value}, {"status": _STATUSES[query.outcome]}]
        # A list of dates, which only another system writes, would break the order of the pages.
        span: Document = {"$gte": _FIRST, "$lte": _LAST, **wanted.get("createdAt", {}), "$not": {"$type": "array"}}
        if after is not None:
            span["$lte"] = after.at
        wanted = by_outcome(self._collection, {**wanted, "createdAt": span})
        ordered: list[Document] = [{"$match": wanted}, {"$sort": find_order(wanted)}]
        if after is not None:
            ordered.append({"$skip": after.shown})
        bounded = [{"$limit": bound}, {"$match": unindexed}] if unindexed else []
        pipeline = [*ordered, *bounded, {"$limit": limit + 1}, *(stages or [])]
        with store_errors(), self._collection.aggregate(pipeline, batchSize=limit + 1 if stages else _BATCH) as found:
            end, last, takes_more = after, None, True
            for number, document in enumerate(found):
                if number == limit or not takes_more:
                    return (self._find_end(ordered, after, last, bound) if unindexed else end), False
                takes_more, last = take(document), document
                end = advance(end, document["createdAt"])
            return (self._find_end(ordered, after, None, bound), True) if unindexed else (None, False)

    def _find_end(
        self, ordered: list[Document], after: Cursor | None, last: Document | None, bound: int
    ) -> Cursor | None:
        """Return where a search without an index ended: it passes logs that are on no page.

        Args:
            ordered: the stages before the search.
            after: where the page before ended.
            last: the last log of the page; None if the search ended at its bound, or went through all logs.
            bound: how many logs it looked at, at most.
        """
        wanted, end, passed = ordered[0]["$match"], after, 0
        if last is not None:
            wanted = {**wanted, "createdAt": {**wanted["createdAt"], "$gte": last["createdAt"]}}
        stages = [{"$match": wanted}, *ordered[1:], {"$limit": bound}, {"$project": {"createdAt": 1}}]
        for document in self._collection.aggregate(stages):
            end, passed = advance(end, document["createdAt"]), passed + 1
            if last is not None and document["_id"] == last["_id"]:
                return end
        return end if passed == bound else None

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


def advance(cursor: Cursor | None, at: datetime) -> Cursor:
    """Return a cursor that has passed one more log, with this `createdAt`."""
    return Cursor(at, cursor.shown + 1 if cursor is not None and cursor.at == at else 1)


def read_row(document: Document) -> LogRow:
    """Read what a row shows of a stored log, which must have a date."""
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
        created_at=document["createdAt"],
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
