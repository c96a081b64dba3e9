"""Held deliveries: stored in the ledger without a message and without ``due_at``, until they are released.

A release sets ``due_at`` before the message is queued, so that the sweep finds the delivery if the process dies.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from bson import MinKey, ObjectId
from pymongo import ASCENDING, IndexModel, UpdateOne, WriteConcern
from pymongo.database import Database

from webhooks.store.deliveries import PENDING_FIELDS, Claimed, DeliveryStore, PendingDelivery
from webhooks.store.mongo import Document, instant, repeat_once, store_errors

#: The order of a line. Deliveries from before their webhook was ordered have no place and sort first.
_IN_LINE = [("place", ASCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)]

_INDEXES = [
    # The head of a webhook's held deliveries.
    IndexModel(
        [("webhook_id", ASCENDING), ("held", ASCENDING), *_IN_LINE],
        name="webhook_held",
        partialFilterExpression={"held": True},
    ),
    # A probe under way.
    IndexModel([("webhook_id", ASCENDING)], name="webhook_probe", partialFilterExpression={"probe": True}),
]

#: Earlier than any `due_at`: matches deliveries that have one.
_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class HeldDeliveries:
    """Holds and releases deliveries. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document], ledger: DeliveryStore) -> None:
        self._deliveries = database["deliveries"]
        # Not journaled: after a crash of MongoDB, the sweep or the next claim repairs lost writes.
        self._quick = self._deliveries.with_options(write_concern=WriteConcern(w=1))
        self._ledger = ledger

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        with store_errors():
            self._deliveries.create_indexes(_INDEXES)

    def hold(self, claimed: Iterable[Claimed]) -> None:
        """Hold claimed deliveries and undo their claims."""
        undone = {"claim": "", "due_at": "", "probe": ""}
        self._undo(claimed, {"$set": {"held": True}, "$unset": undone})

    def postpone(self, claimed: Iterable[Claimed], until: datetime) -> None:
        """Make claimed deliveries due later and undo their claims; queue their messages after this."""
        self._undo(claimed, {"$set": {"due_at": until}, "$unset": {"claim": "", "held": ""}})

    def _undo(self, claimed: Iterable[Claimed], change: Document) -> None:
        writes = [UpdateOne({"_id": c.delivery.delivery_id, "claim.log_id": c.log_id}, change) for c in claimed]
        if writes:
            with store_errors():
                self._quick.bulk_write(writes, ordered=False)

    def is_head(self, claimed: Claimed) -> bool:
        """Tell whether a delivery is the first in its webhook's line; quarantined ones do not count."""
        delivery = claimed.delivery
        created_at = claimed.created_at or _EVER
        older: list[Document] = [
            {"created_at": {"$lt": created_at}},
            {"created_at": created_at, "_id": {"$lt": delivery.delivery_id}},
        ]
        no_place: Document = {"place": None}
        if delivery.place is None:
            before: Document = {**no_place, "$or": older}
        else:
            same = {"place": delivery.place, "$or": older}
            before = {"$or": [no_place, {"place": {"$lt": delivery.place}}, same]}
        others = {"webhook_id": delivery.webhook_id, "_id": {"$ne": delivery.delivery_id}}
        with store_errors():
            return not any(
                self._deliveries.find_one({"$and": [{**others, **state}, before]}, {"_id": 1})
                for state in ({"held": True}, {"due_at": {"$gte": _EVER}})
            )

    def release_next(self, webhook_id: ObjectId, at: datetime) -> PendingDelivery | None:
        """Release the head of an ordered webhook's line, due at an instant, if no other is released.

        Safe to call concurrently: the head is read before the second check, so a concurrent release is either seen by
        that check or has released the same head.

        Returns:
            The delivery to queue; None if one is released, none is held, or another process was faster.
        """
        if self._is_any_released(webhook_id):  # the common case, without reading the head
            return None
        head = next(iter(self.find_held(webhook_id, 1)), None)
        if head is None or self._is_any_released(webhook_id) or not self.release([head], at):
            return None
        return head

    def _is_any_released(self, webhook_id: ObjectId) -> bool:
        with store_errors():
            query = {"webhook_id": webhook_id, "due_at": {"$gte": _EVER}}
            return self._deliveries.find_one(query, {"_id": 1}) is not None

    def find_held(self, webhook_id: ObjectId, limit: int) -> list[PendingDelivery]:
        """Return held deliveries of a webhook, in the order of their line or age."""
        with store_errors():
            query = {"webhook_id": webhook_id, "held": True}
            documents = list(self._deliveries.find(query, PENDING_FIELDS).sort(_IN_LINE).limit(limit))
        return self._ledger.read_sound(documents)

    def release(self, deliveries: Sequence[PendingDelivery], at: datetime, *, as_probe: bool = False) -> bool:
        """Make held deliveries due; queue their messages after this. Return whether all were held."""
        change: Document = {"$set": {"due_at": at}, "$unset": {"held": ""}}
        if as_probe:
            change["$set"]["probe"] = True
        else:
            change["$unset"]["probe"] = ""
        # The due time tells what was released just now, if its reply is lost.
        query = {"_id": {"$in": [one.delivery_id for one in deliveries]}, "$or": [{"held": True}, {"due_at": at}]}
        with store_errors():
            return repeat_once(lambda: self._quick.update_many(query, change)).matched_count == len(deliveries)

    def find_probe(self, webhook_id: ObjectId) -> tuple[PendingDelivery, datetime | None] | None:
        """Return the delivery that was released as a probe, and the end of the claim on it; None if there is none."""
        fields = {**PENDING_FIELDS, "claim.until": 1}
        with store_errors():
            query = {"webhook_id": webhook_id, "probe": True, "due_at": {"$gte": _EVER}}
            document = self._deliveries.find_one(query, fields)
        probe = next(iter(self._ledger.read_sound([] if document is None else [document])), None)
        if document is None or probe is None:
            return None
        claim: Any = document.get("claim")
        return probe, instant(claim.get("until")) if isinstance(claim, dict) else None

    def find_outstanding(self, webhook_ids: Iterable[ObjectId]) -> set[ObjectId]:
        """Return those webhooks that have pending deliveries which are not held."""
        query = {"webhook_id": {"$in": list(webhook_ids)}, "due_at": {"$gte": _EVER}}
        with store_errors():
            return {found for found in self._deliveries.distinct("webhook_id", query) if isinstance(found, ObjectId)}

    def find_webhooks(self) -> set[ObjectId]:
        """Return all webhooks with held deliveries."""
        with store_errors():
            # The bound makes MongoDB skip from webhook to webhook in the index.
            found = self._deliveries.distinct("webhook_id", {"webhook_id": {"$gt": MinKey()}, "held": True})
        return {webhook_id for webhook_id in found if isinstance(webhook_id, ObjectId)}

    def count_held(self, webhook_id: ObjectId, limit: int) -> int:
        """Count held deliveries of a webhook up to the limit."""
        with store_errors():
            return self._deliveries.count_documents({"webhook_id": webhook_id, "held": True}, limit=limit)

    def count_outstanding(self, webhook_id: ObjectId, limit: int) -> int:
        """Count pending deliveries of a webhook that are not held, up to the limit."""
        query = {"webhook_id": webhook_id, "due_at": {"$gte": _EVER}}
        with store_errors():
            return self._deliveries.count_documents(query, limit=limit)

    def find_first(self, webhook_id: ObjectId) -> tuple[PendingDelivery, datetime | None] | None:
        """Return the first pending delivery of a webhook, held or not, and when it was stored.

        Quarantined deliveries do not count. None if there is none.
        """
        fields = {**PENDING_FIELDS, "place": 1, "created_at": 1}
        with store_errors():
            found = [
                self._deliveries.find_one({"webhook_id": webhook_id, **state}, fields, sort=_IN_LINE)
                for state in ({"held": True}, {"due_at": {"$gte": _EVER}})
            ]
        documents = sorted((one for one in found if one is not None), key=_line_key)
        for document in documents:
            for first in self._ledger.read_sound([document]):
                return first, instant(document.get("created_at"))
        return None

    def restart_head(self, webhook_id: ObjectId) -> PendingDelivery | None:
        """Reset the retries of a webhook's first held delivery, before its release; None if none is held."""
        head = next(iter(self.find_held(webhook_id, 1)), None)
        if head is not None:
            with store_errors():
                self._deliveries.update_one({"_id": head.delivery_id, "held": True}, {"$set": {"retry": 0}})
        return head


def _line_key(document: Document) -> tuple[float, datetime, str]:
    """Return the sort key that matches `_IN_LINE`."""
    place = document.get("place")
    position = place if isinstance(place, int) else float("-inf")
    return position, instant(document.get("created_at")) or _EVER, str(document["_id"])
