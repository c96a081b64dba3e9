"""Deliveries that are kept: written in the ledger and nowhere else, until somebody lets them out.

Owns the ledger's fields ``held``, ``place`` and ``probe``. A kept delivery has no message and no ``due_at``; it costs
nobody anything, and a wiped Redis cannot lose it. Letting one out gives it a ``due_at`` before its message is queued,
so that the sweep finds it if we die in between. Used by `records`, `tasks` and the steward.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from bson import MinKey, ObjectId
from pymongo import ASCENDING, IndexModel, UpdateOne, WriteConcern
from pymongo.database import Database

from webhooks.store.deliveries import PENDING_FIELDS, Claimed, DeliveryStore, PendingDelivery
from webhooks.store.mongo import Document, store_errors

#: A line's order. Without a place: from before its webhook was ordered, so they come first, as no value is less.
_IN_LINE = [("place", ASCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)]

_INDEXES = [
    # The steward's and the line's question: which is the oldest that is kept for this webhook? Costs nothing where
    # nothing is kept.
    IndexModel(
        [("webhook_id", ASCENDING), ("held", ASCENDING), *_IN_LINE],
        name="webhook_held",
        partialFilterExpression={"held": True},
    ),
    # The steward's question: is a probe under way?
    IndexModel([("webhook_id", ASCENDING)], name="webhook_probe", partialFilterExpression={"probe": True}),
]

#: Before any time at which a delivery is due: asks for those that have such a time.
_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class HeldDeliveries:
    """Keeps deliveries and lets them out. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document], ledger: DeliveryStore) -> None:
        self._deliveries = database["deliveries"]
        # What a crash of MongoDB forgets of these is found by the sweep or by the next claim.
        self._quick = self._deliveries.with_options(write_concern=WriteConcern(w=1))
        self._ledger = ledger

    def ensure_indexes(self) -> None:
        """Make the indexes, or find them made."""
        with store_errors():
            self._deliveries.create_indexes(_INDEXES)

    # ── A worker's ──────────────────────────────────────────────────────────────────────────────────────────────────

    def keep(self, claimed: Iterable[Claimed]) -> None:
        """Keep deliveries that were claimed and may not be sent now; the attempt is still to be made.

        If we die before, the claim runs out and the message comes again.
        """
        undone = {"claim": "", "due_at": "", "probe": ""}
        self._undo(claimed, {"$set": {"held": True}, "$unset": undone})

    def postpone(self, claimed: Iterable[Claimed], until: datetime) -> None:
        """Undo claims on deliveries that are due later; their messages are to be queued after this."""
        self._undo(claimed, {"$set": {"due_at": until}, "$unset": {"claim": "", "held": ""}})

    def _undo(self, claimed: Iterable[Claimed], change: Document) -> None:
        writes = [UpdateOne({"_id": c.delivery.delivery_id, "claim.log_id": c.log_id}, change) for c in claimed]
        if writes:
            with store_errors():
                self._quick.bulk_write(writes, ordered=False)

    def is_head(self, claimed: Claimed) -> bool:
        """Say whether nothing that is owed to its webhook stands before a delivery.

        What was set aside stands in nobody's way.
        """
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
                self._deliveries.find_one({"$and": [{**others, **owed}, before]}, {"_id": 1})
                for owed in ({"held": True}, {"due_at": {"$gte": _EVER}})
            )

    def release_next(self, webhook_id: ObjectId, at: datetime) -> PendingDelivery | None:
        """Let out the head of an ordered webhook's line, if nothing of it is let out.

        Any number may try at the same time. The head is looked for first: whoever lets one out in between is seen by
        the second look, or has let out the same.

        Args:
            webhook_id: whose.
            at: since when it is due, by the ledger's clock.

        Returns:
            The delivery to queue; None when one is out, nothing is kept, or somebody was faster.
        """
        if self._is_any_out(webhook_id):  # mostly: spares the second look
            return None
        head = next(iter(self.find_held(webhook_id, 1)), None)
        if head is None or self._is_any_out(webhook_id) or not self.release([head], at):
            return None
        return head

    def _is_any_out(self, webhook_id: ObjectId) -> bool:
        with store_errors():
            query = {"webhook_id": webhook_id, "due_at": {"$gte": _EVER}}
            return self._deliveries.find_one(query, {"_id": 1}) is not None

    # ── The steward's and the operators' ────────────────────────────────────────────────────────────────────────────

    def find_held(self, webhook_id: ObjectId, limit: int) -> list[PendingDelivery]:
        """Return deliveries that are kept for a webhook, the first in line or the oldest first."""
        with store_errors():
            query = {"webhook_id": webhook_id, "held": True}
            documents = list(self._deliveries.find(query, PENDING_FIELDS).sort(_IN_LINE).limit(limit))
        return self._ledger.read_sound(documents)

    def release(self, deliveries: Sequence[PendingDelivery], at: datetime, *, as_probe: bool = False) -> bool:
        """Make kept deliveries due, before their messages are queued.

        Returns:
            Whether all of them were kept until now.
        """
        change: Document = {"$set": {"due_at": at}, "$unset": {"held": ""}}
        if as_probe:
            change["$set"]["probe"] = True
        else:
            change["$unset"]["probe"] = ""
        query = {"_id": {"$in": [one.delivery_id for one in deliveries]}, "held": True}
        with store_errors():
            return self._quick.update_many(query, change).matched_count == len(deliveries)

    def find_probe(self, webhook_id: ObjectId) -> tuple[PendingDelivery, datetime | None] | None:
        """Return the delivery that was let out as a probe, and until when somebody has a claim on it; None for none."""
        fields = {**PENDING_FIELDS, "claim.until": 1}
        with store_errors():
            query = {"webhook_id": webhook_id, "probe": True, "due_at": {"$gte": _EVER}}
            document = self._deliveries.find_one(query, fields)
        probe = next(iter(self._ledger.read_sound([] if document is None else [document])), None)
        if document is None or probe is None:
            return None
        claim: Any = document.get("claim")
        until = claim.get("until") if isinstance(claim, dict) else None
        return probe, until if isinstance(until, datetime) else None

    def find_outstanding(self, webhook_ids: Iterable[ObjectId]) -> set[ObjectId]:
        """Return those of some webhooks to which something is owed that is not kept."""
        query = {"webhook_id": {"$in": list(webhook_ids)}, "due_at": {"$gte": _EVER}}
        with store_errors():
            return {found for found in self._deliveries.distinct("webhook_id", query) if isinstance(found, ObjectId)}

    def find_webhooks(self) -> set[ObjectId]:
        """Return all webhooks for which something is kept."""
        with store_errors():
            # Bounded as if it were not, MongoDB goes from webhook to webhook in the index, whatever is kept for each.
            found = self._deliveries.distinct("webhook_id", {"webhook_id": {"$gt": MinKey()}, "held": True})
        return {webhook_id for webhook_id in found if isinstance(webhook_id, ObjectId)}

    def count_held(self, webhook_id: ObjectId, limit: int) -> int:
        """Return how many deliveries are kept for a webhook; counting ends at the limit."""
        with store_errors():
            return self._deliveries.count_documents({"webhook_id": webhook_id, "held": True}, limit=limit)

    def count_outstanding(self, webhook_id: ObjectId, limit: int) -> int:
        """Return how many deliveries are owed to a webhook and not kept; counting ends at the limit."""
        query = {"webhook_id": webhook_id, "due_at": {"$gte": _EVER}}
        with store_errors():
            return self._deliveries.count_documents(query, limit=limit)

    def find_first(self, webhook_id: ObjectId) -> tuple[PendingDelivery, datetime | None] | None:
        """Return the delivery that is first in line or the oldest of those owed to a webhook, kept or not.

        Returns:
            The delivery, and since when it is owed; None when nothing is. What was set aside does not count.
        """
        fields = {**PENDING_FIELDS, "place": 1, "created_at": 1}
        with store_errors():
            found = [
                self._deliveries.find_one({"webhook_id": webhook_id, **owed}, fields, sort=_IN_LINE)
                for owed in ({"held": True}, {"due_at": {"$gte": _EVER}})
            ]
        documents = sorted((one for one in found if one is not None), key=_line_key)
        for document in documents:
            for first in self._ledger.read_sound([document]):
                return first, at if isinstance(at := document.get("created_at"), datetime) else None
        return None

    def restart_head(self, webhook_id: ObjectId) -> PendingDelivery | None:
        """Have the first attempt of the first delivery that is kept for a webhook made anew; before it is let out.

        Returns:
            That delivery; None when nothing is kept.
        """
        head = next(iter(self.find_held(webhook_id, 1)), None)
        if head is not None:
            with store_errors():
                self._deliveries.update_one({"_id": head.delivery_id, "held": True}, {"$set": {"retry": 0}})
        return head


def _line_key(document: Document) -> tuple[float, datetime, str]:
    """Return what sorts deliveries as `_IN_LINE` does."""
    place, created_at = document.get("place"), document.get("created_at")
    return (
        place if isinstance(place, int) else float("-inf"),
        created_at if isinstance(created_at, datetime) else _EVER,
        str(document["_id"]),
    )
