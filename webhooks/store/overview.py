"""What MongoDB tells of the whole system: cheap counts, for monitoring and `webhooks check`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bson import MinKey
from pymongo.database import Database

from webhooks.store.deadletters import DeadLetterStore
from webhooks.store.gates import By, State
from webhooks.store.mongo import Document, instant, store_errors

#: Maximum of the counts that read an index.
COUNT_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the ledger, the webhooks and the dead letters."""

    #: Pending deliveries, and those of them that are held; the latter up to `COUNT_LIMIT`.
    pending: int
    held: int
    #: Age of the oldest pending delivery, in seconds; 0 if there is none.
    oldest_s: float
    #: Seconds for which the longest due delivery has been due; 0 if none is due. Held ones are not due.
    overdue_s: float
    #: Events that no worker has accepted yet.
    outbox: int
    #: State and who caused it ("" for open) → webhooks. Deactivated ones count as open.
    endpoints: Mapping[tuple[str, str], int]
    #: Up to `COUNT_LIMIT`.
    dead_letters: int


class OverviewStore:
    """Reads the overview. Raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database

    def read(self) -> Overview:
        """Read the overview in a few milliseconds: no collection is read as a whole."""
        deliveries = self._database["deliveries"]
        with store_errors():
            present = self._database.command("hello", codec_options=self._database.codec_options)["localTime"]
            # The bound on the webhook lets MongoDB use the index of held deliveries.
            held = deliveries.count_documents({"webhook_id": {"$gt": MinKey()}, "held": True}, limit=COUNT_LIMIT)
            # MongoDB's own order is that of insertion.
            oldest = deliveries.find_one({}, {"created_at": 1}, sort=[("$natural", 1)])
            due = deliveries.find_one({"due_at": {"$lt": present}}, {"due_at": 1}, sort=[("due_at", 1)])
            pending = deliveries.estimated_document_count()
            outbox = self._database["outbox"].estimated_document_count()
            webhooks = self._database["webhooks"].estimated_document_count()
            endpoints = self._count_shut_gates()
        return Overview(
            pending=pending,
            held=held,
            oldest_s=_age_s(present, oldest, "created_at"),
            overdue_s=_age_s(present, due, "due_at"),
            outbox=outbox,
            endpoints={(State.OPEN.value, ""): max(0, webhooks - sum(endpoints.values())), **endpoints},
            dead_letters=DeadLetterStore(self._database).count(COUNT_LIMIT),
        )

    def _count_shut_gates(self) -> dict[tuple[str, str], int]:
        states = [state.value for state in State if state is not State.OPEN]
        counts = {(state, by.value): 0 for state in states for by in By}
        shut = {"state": {"$in": states}}
        stages = [{"$match": shut}, {"$group": {"_id": {"state": "$state", "by": "$by"}, "count": {"$sum": 1}}}]
        for group in self._database["gates"].aggregate(stages):
            key = group["_id"].get("state"), group["_id"].get("by")
            if key in counts:  # others were written by hand
                counts[key] += group["count"]
        return counts


def _age_s(present: datetime, document: Document | None, field: str) -> float:
    at = None if document is None else instant(document.get(field))
    return 0.0 if at is None else max(0.0, (present - at).total_seconds())
