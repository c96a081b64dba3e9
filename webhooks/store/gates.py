"""The collection ``gates``: what lets a webhook's deliveries through.

A webhook without a document has an open gate. Workers read gates with each claim, without a cache. Each change applies
only to the states that it is meant for, so that concurrent changes do not undo each other, and writes its notice in the
same update.

Fields: ``_id`` (the webhook's id), ``state``, ``by``, ``reason``, ``since``, ``hold_until`` (from ``Retry-After``),
``probe_at`` (when to probe a paused endpoint), ``rate`` (deliveries per second released while it recovers),
``has_held`` and ``held_at`` (deliveries may be held, and when the last one was), ``last_place`` (last position given in
an ordered webhook's line), ``notices`` (the newest: ``id``, ``type``, ``at``, ``reason``, ``told``, ``tell_at``,
``tries``) and ``has_untold``. Missing or malformed fields fall back to the defaults of an open gate. All times are
MongoDB's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, IndexModel, ReturnDocument, UpdateOne, WriteConcern
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from webhooks.errors import StoreUnavailable
from webhooks.rules.health import FULL_RATE, START_RATE
from webhooks.store.mongo import Document, Query, instant, store_errors
from webhooks.store.notices import Notice, NoticeType, after, literal, read_notices, with_notice

#: Minimum seconds between updates of `held_at`, so that a busy line does not write its gate for each event.
_NOTE_HELD_EVERY_S = 5
#: Positions in a line per millisecond of the clock: more than are taken on average.
_PLACES_PER_MS = 1_000

_INDEXES = [
    # Gates to probe, and recovering gates.
    IndexModel([("state", ASCENDING), ("probe_at", ASCENDING)], name="state_probe"),
    # Gates with held deliveries, and gates with notices to send: few at any time.
    IndexModel([("has_held", ASCENDING), ("_id", ASCENDING)], name="held", partialFilterExpression={"has_held": True}),
    IndexModel([("has_untold", ASCENDING)], name="untold", partialFilterExpression={"has_untold": True}),
]


class State(StrEnum):
    """Where a webhook's gate stands."""

    #: Deliveries are sent.
    OPEN = "open"
    #: Deliveries are held. If health paused it, one delivery at a time is sent as a probe.
    PAUSED = "paused"
    #: Held deliveries are released at a growing rate, before new ones.
    RECOVERING = "recovering"
    #: The head of an ordered webhook's line has used up its retries; an operator has to decide.
    STOPPED = "stopped"


class By(StrEnum):
    """Who changed a gate's state."""

    HEALTH = "health"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Gate:
    """What lets one webhook's deliveries through."""

    webhook_id: ObjectId
    state: State = State.OPEN
    #: None while it is open.
    by: By | None = None
    reason: str = ""
    since: datetime | None = None
    #: The receiver asked for no request before.
    hold_until: datetime | None = None
    #: When to probe a paused endpoint.
    probe_at: datetime | None = None
    #: Whether deliveries may be held, and when the last one was noted.
    has_held: bool = False
    held_at: datetime | None = None
    #: Deliveries per second released while it recovers.
    rate: float = START_RATE
    last_place: int = 0
    #: Oldest first.
    notices: tuple[Notice, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether deliveries are sent."""
        return self.state is State.OPEN

    @property
    def is_probed(self) -> bool:
        """Whether deliveries are sent as probes, one at a time."""
        return self.state is State.PAUSED and self.by is By.HEALTH

    def lets_through(self, *, is_probe: bool, is_released: bool) -> bool:
        """Tell whether an attempt may be made.

        Args:
            is_probe: the delivery was released as a probe.
            is_released: the delivery is due, not held.
        """
        if self.state is State.RECOVERING:
            return is_released
        return self.is_open or (self.is_probed and is_probe)

    def is_held_back(self, present: datetime) -> bool:
        """Tell whether the receiver's ``Retry-After`` still holds; `present` is MongoDB's time."""
        return self.hold_until is not None and self.hold_until > present


class GateStore:
    """Reads and changes gates. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["gates"]
        # Not journaled: a crash of MongoDB may lose these writes.
        self._quick = self._collection.with_options(write_concern=WriteConcern(w=1))

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        with store_errors():
            self._collection.create_indexes(_INDEXES)

    def get(self, webhook_id: ObjectId) -> Gate:
        """Return a webhook's gate."""
        return self.get_many([webhook_id])[webhook_id]

    def get_many(self, webhook_ids: Iterable[ObjectId]) -> dict[ObjectId, Gate]:
        """Return the gates of webhooks."""
        wanted = set(webhook_ids)
        with store_errors():
            return self.read(wanted, self._collection.find(self.ask(wanted).filter))

    def ask(self, webhook_ids: Iterable[ObjectId]) -> Query:
        """Return the query for webhooks' gates, for `read`."""
        return Query(self._collection, {"_id": {"$in": list(webhook_ids)}})

    def read(self, webhook_ids: Iterable[ObjectId], found: Iterable[Document]) -> dict[ObjectId, Gate]:
        """Return the gates of webhooks from the documents that were found."""
        stored = {document["_id"]: document for document in found}
        return {one: _read(one, stored[one]) if one in stored else Gate(one) for one in webhook_ids}

    def find_due(self, present: datetime, limit: int) -> list[Gate]:
        """Return the gates whose probe is due, longest due first."""
        query = {"state": State.PAUSED, "by": By.HEALTH, "probe_at": {"$lte": present}}
        return self._find(query, limit, [("probe_at", ASCENDING)])

    def find_recovering(self, limit: int) -> list[Gate]:
        """Return the gates that release held deliveries."""
        return self._find({"state": State.RECOVERING}, limit)

    def find_held(self, limit: int, after: ObjectId | None = None) -> list[Gate]:
        """Return a page of open gates with held deliveries, by id; mostly those of ordered webhooks.

        Args:
            limit: size of the page.
            after: the last id of the previous page; None for the first page.
        """
        shut = [State.PAUSED, State.RECOVERING, State.STOPPED]
        query: Document = {"has_held": True, "state": {"$nin": shut}}
        if after is not None:
            query["_id"] = {"$gt": after}
        return self._find(query, limit, [("_id", ASCENDING)])

    def _find(self, query: Document, limit: int, sort: Sequence[tuple[str, int]] = ()) -> list[Gate]:
        with store_errors():
            cursor = self._collection.find(query).limit(limit)
            documents = list(cursor.sort(sort) if sort else cursor)
        # Documents written by hand may have other ids.
        return [_read(document["_id"], document) for document in documents if isinstance(document["_id"], ObjectId)]

    def pause(self, webhook_id: ObjectId, by: By, reason: str, probe_in_s: float | None = None) -> bool:
        """Hold a webhook's deliveries from now on; return whether that changed the gate.

        Health pauses open and recovering gates. An operator pauses any gate not paused by an operator yet.

        Args:
            webhook_id: the webhook.
            by: who pauses it.
            reason: for people.
            probe_in_s: seconds until the first probe; None for no probes.
        """
        is_paused = {"state": State.PAUSED, "by": By.OPERATOR}
        wanted: Document = _NOT_SHUT if by is By.HEALTH else {"$nor": [is_paused]}
        probe_at = "$$REMOVE" if probe_in_s is None else after(probe_in_s)
        change = {"state": State.PAUSED, "by": by, "reason": literal(reason), "probe_at": probe_at}
        return self._change(webhook_id, wanted, change, NoticeType.PAUSED, reason, upsert=True)

    def stop(self, webhook_id: ObjectId, reason: str) -> bool:
        """Hold an ordered webhook's deliveries until an operator decides; return whether that changed the gate."""
        change = {"state": State.STOPPED, "by": By.HEALTH, "reason": literal(reason), "probe_at": "$$REMOVE"}
        return self._change(webhook_id, _NOT_SHUT, change, NoticeType.STOPPED, reason, upsert=True)

    def recover(self, webhook_id: ObjectId, reason: str) -> bool:
        """Start recovery after a successful probe; return whether health had paused the gate."""
        wanted = {"state": State.PAUSED, "by": By.HEALTH}
        change = {"state": State.RECOVERING, "reason": literal(reason), "rate": START_RATE, "probe_at": "$$REMOVE"}
        return self._change(webhook_id, wanted, change, NoticeType.RECOVERED, reason)

    def resume(self, webhook_id: ObjectId, reason: str = "an operator resumed it") -> bool:
        """Start recovery for an operator, or open the gate if nothing is held.

        For a stopped webhook, call `HeldDeliveries.restart_head` first.

        Returns:
            Whether it was paused or stopped.
        """
        has_held = {"$eq": ["$has_held", True]}
        change = {
            "state": {"$cond": [has_held, State.RECOVERING, State.OPEN]},
            "by": By.OPERATOR,
            "reason": literal(reason),
            "rate": START_RATE,
            "probe_at": "$$REMOVE",
        }
        return self._change(webhook_id, _SHUT, change, NoticeType.RESUMED, reason)

    def drain(self, webhook_id: ObjectId, reason: str = "an operator drains it") -> bool:
        """Release held deliveries at full rate for an operator; return whether the gate was not open."""
        change = {
            "state": State.RECOVERING,
            "by": By.OPERATOR,
            "reason": literal(reason),
            "rate": FULL_RATE,
            "probe_at": "$$REMOVE",
        }
        is_resumed = self._change(webhook_id, _SHUT, change, NoticeType.RESUMED, reason)
        return is_resumed or self._change(webhook_id, {"state": State.RECOVERING}, change)

    def open(self, webhook_id: ObjectId, *, from_state: State = State.RECOVERING) -> bool:
        """Open a gate that is in a state, unless an operator paused it; return whether it was."""
        wanted: Document = {"state": from_state}
        if from_state is State.PAUSED:
            wanted["by"] = By.HEALTH
        return self._change(webhook_id, wanted, _OPENED)

    def deactivate(self, webhook_id: ObjectId, notice_id: ObjectId, reason: str) -> bool:
        """Open the gate of a deactivated webhook, so that its deliveries end.

        Args:
            webhook_id: the webhook.
            notice_id: of the notice; a repeated one changes nothing.
            reason: for people.

        Returns:
            Whether the notice is new.
        """
        wanted = {"notices.id": {"$ne": notice_id}}
        return self._change(
            webhook_id, wanted, _OPENED, NoticeType.DEACTIVATED, reason, upsert=True, notice_id=notice_id
        )

    def _change(
        self,
        webhook_id: ObjectId,
        wanted: Document,
        change: Mapping[str, Any],
        notice: NoticeType | None = None,
        reason: str = "",
        *,
        upsert: bool = False,
        notice_id: ObjectId | None = None,
    ) -> bool:
        """Change a gate that matches `wanted` and append the notice, in one update; return whether it matched."""
        fields = {**change, "since": "$$NOW"}
        if notice is not None:
            fields["notices"] = with_notice(notice, reason, notice_id or ObjectId())
            fields["has_untold"] = True
        with store_errors():
            try:
                done = self._collection.update_one({"_id": webhook_id, **wanted}, [{"$set": fields}], upsert=upsert)
            except DuplicateKeyError:  # it exists and does not match
                return False
        return done.matched_count == 1 or done.upserted_id is not None

    def hold(self, webhook_id: ObjectId, seconds: float) -> datetime | None:
        """Apply a receiver's ``Retry-After``; return until when it holds, None if the gate was changed meanwhile."""
        until = after(seconds)
        later = {"$cond": [{"$eq": [{"$type": "$hold_until"}, "date"]}, {"$max": ["$hold_until", until]}, until]}
        with store_errors():
            found = self._collection.find_one_and_update(
                {"_id": webhook_id},
                [{"$set": {"hold_until": later}}],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        return None if found is None else instant(found.get("hold_until"))

    def note_held(self, webhook_ids: Iterable[ObjectId]) -> None:
        """Note that deliveries are about to be held for webhooks; call this before they are."""
        is_stale = {
            "$or": [
                {"$ne": ["$has_held", True]},
                {"$lt": [{"$ifNull": ["$held_at", 0]}, {"$subtract": ["$$NOW", _NOTE_HELD_EVERY_S * 1000]}]},
            ]
        }
        pipeline = [{"$set": {"held_at": {"$cond": [is_stale, "$$NOW", "$held_at"]}, "has_held": True}}]
        # The journal is sequential: the later, journaled write of the held delivery covers this one.
        writes = [UpdateOne({"_id": webhook_id}, pipeline, upsert=True) for webhook_id in sorted(set(webhook_ids))]
        if writes:
            with store_errors():
                self._quick.bulk_write(writes, ordered=False)

    def note_none_held(self, gate: Gate, older_than_s: float) -> bool:
        """Note that no deliveries are held for a webhook.

        Args:
            gate: as read before no held delivery was found.
            older_than_s: minimum age of `held_at`: longer than the write of a held delivery may take.
        """
        is_old = {"$lt": ["$held_at", {"$subtract": ["$$NOW", int(older_than_s * 1000)]}]}
        unchanged = {"_id": gate.webhook_id, "held_at": gate.held_at, "$expr": is_old}
        with store_errors():
            return self._quick.update_one(unchanged, {"$set": {"has_held": False}}).matched_count == 1

    def take_places(self, webhook_id: ObjectId, count: int) -> int:
        """Reserve consecutive positions in an ordered webhook's line; return the first.

        Positions follow the server's clock, so that they grow even if the gate is lost, as with a restored backup. The
        write is not journaled: the later, journaled write of the delivery covers it.
        """
        noted = {"$cond": [{"$isNumber": "$last_place"}, {"$toLong": "$last_place"}, 0]}
        last = {"$max": [noted, {"$multiply": [{"$toLong": "$$NOW"}, _PLACES_PER_MS]}]}
        change = {"last_place": {"$add": [last, count]}, "has_held": True, "held_at": "$$NOW"}
        with store_errors():
            found = self._quick.find_one_and_update(
                {"_id": webhook_id}, [{"$set": change}], upsert=True, return_document=ReturnDocument.AFTER
            )
        if found is None:  # deleted by hand just now
            raise StoreUnavailable("a gate was deleted")
        return int(found["last_place"]) - count + 1

    def take_probe(self, gate: Gate, next_in_s: float) -> bool:
        """Claim the probe of a paused endpoint and schedule the next one.

        Returns:
            False if another process claimed it or the webhook is no longer paused.
        """
        query = {"_id": gate.webhook_id, "state": State.PAUSED, "by": By.HEALTH, "probe_at": gate.probe_at}
        with store_errors():
            return self._collection.update_one(query, [{"$set": {"probe_at": after(next_in_s)}}]).matched_count == 1

    def set_rate(self, gate: Gate, rate: float) -> None:
        """Store the release rate of a recovering webhook, for people and for the next health monitor."""
        query = {"_id": gate.webhook_id, "state": State.RECOVERING, "since": gate.since}
        with store_errors():
            self._quick.update_one(query, {"$set": {"rate": rate}})


_SHUT: Document = {"state": {"$in": [State.PAUSED, State.STOPPED]}}
_NOT_SHUT: Document = {"state": {"$nin": [State.PAUSED, State.STOPPED]}}
#: The change that opens a gate.
_OPENED: Mapping[str, Any] = {"state": State.OPEN, "by": "$$REMOVE", "reason": "", "probe_at": "$$REMOVE"}


def _read(webhook_id: ObjectId, document: Document) -> Gate:
    """Read a gate; malformed fields get their defaults."""
    state, by, reason, rate, place = (document.get(f) for f in ("state", "by", "reason", "rate", "last_place"))
    instants = {f: instant(document.get(f)) for f in ("since", "hold_until", "probe_at", "held_at")}
    has_rate = isinstance(rate, int | float) and START_RATE <= rate <= FULL_RATE
    return Gate(
        webhook_id=webhook_id,
        state=State(state) if state in list(State) else State.OPEN,
        by=By(by) if by in list(By) else None,
        reason=reason if isinstance(reason, str) else "",
        has_held=document.get("has_held") is True,
        rate=float(rate) if has_rate and rate is not None else START_RATE,
        last_place=place if isinstance(place, int) else 0,
        notices=read_notices(webhook_id, document.get("notices")),
        **instants,
    )
