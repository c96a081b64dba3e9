"""The collection ``operatoractions``: who did what to which webhook, and when. Kept for ever: people act rarely.

Fields: ``_id``, ``at`` (MongoDB's time), ``by`` (the login; empty where Flower asks for none), ``action``,
``webhook_id``, ``delivery_id`` (where it concerns one), ``reason``, ``result`` (what came of it; absent while that is
not known).
"""

from dataclasses import dataclass
from datetime import datetime

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from webhooks.store.mongo import Document, store_errors


@dataclass(frozen=True, slots=True)
class OperatorAction:
    """Something that somebody did."""

    action_id: ObjectId
    at: datetime | None
    by: str
    action: str
    webhook_id: object
    delivery_id: str | None
    reason: str
    #: None: it was begun, and nobody knows what came of it.
    result: str | None


class ActionStore:
    """Writes and reads them. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["operatoractions"]

    def ensure_indexes(self) -> None:
        """Make the index, or find it made."""
        with store_errors():
            self._collection.create_index([("webhook_id", ASCENDING), ("at", DESCENDING)], name="webhook_newest")

    def begin(
        self,
        action_id: ObjectId,
        *,
        by: str,
        action: str,
        webhook_id: ObjectId | None,
        delivery_id: str | None,
        reason: str,
    ) -> bool:
        """Write down that somebody is about to do something, before it is done.

        Returns:
            False where an action with this id was begun before: a form was sent twice.
        """
        fields: Document = {"by": by, "action": action, "webhook_id": webhook_id, "reason": reason}
        if delivery_id is not None:
            fields["delivery_id"] = delivery_id
        literal = {name: {"$literal": value} for name, value in fields.items()}
        with store_errors():
            try:
                is_new = {"_id": action_id, "at": {"$exists": False}}
                self._collection.update_one(is_new, [{"$set": {"at": "$$NOW", **literal}}], upsert=True)
            except DuplicateKeyError:
                return False
        return True

    def end(self, action_id: ObjectId, result: str) -> None:
        """Write down what came of it."""
        with store_errors():
            self._collection.update_one({"_id": action_id}, {"$set": {"result": result}})

    def get(self, action_id: ObjectId) -> OperatorAction | None:
        """Return an action; None where there is none."""
        with store_errors():
            document = self._collection.find_one({"_id": action_id})
        return None if document is None else _read(document)

    def find_of_webhook(self, webhook_id: ObjectId, limit: int) -> list[OperatorAction]:
        """Return what was done to a webhook, the newest first."""
        with store_errors():
            found = list(self._collection.find({"webhook_id": webhook_id}).sort("at", DESCENDING).limit(limit))
        return [_read(document) for document in found]


def _read(document: Document) -> OperatorAction:
    by, action, reason, delivery_id, result = (
        value if isinstance(value := document.get(name), str) else None
        for name in ("by", "action", "reason", "delivery_id", "result")
    )
    at = document.get("at")
    return OperatorAction(
        action_id=document["_id"],
        at=at if isinstance(at, datetime) else None,
        by=by or "",
        action=action or "",
        webhook_id=document.get("webhook_id"),
        delivery_id=delivery_id,
        reason=reason or "",
        result=result,
    )
