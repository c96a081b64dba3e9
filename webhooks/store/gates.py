"""The collection ``gates``: what lets a webhook's deliveries through, and what operators are told of it.

Owns one document per webhook that is not simply open, or was not at some time; `notices` reads and changes its notices.
Workers read it with each claim, so that a change holds at once on all of them; the health monitor, the workers and the
operators' commands change it. Each change applies only to the states that it is meant for, so that none undoes
another's, and writes its notice with it, so that neither is without the other. Every time is MongoDB's.

Fields: ``_id`` (the webhook's id), ``state``, ``by``, ``reason``, ``since``, ``hold_until`` (nothing is sent before:
the receiver asked for it), ``probe_at`` (when to try a paused one), ``rate`` (deliveries per second let out while it
recovers), ``has_held`` with ``held_at`` (deliveries may be kept for it, and when the last one was), ``last_place`` (the
last place given in an ordered webhook's line), ``notices`` (the last ones: ``id``, ``type``, ``at``, ``reason``,
``told``, ``tell_at``, ``tries``) with ``has_untold``. A missing field, or one that somebody made into something else,
means what an open webhook has.
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
from webhooks.store.mongo import Document, Query, store_errors
from webhooks.store.notices import Notice, NoticeType, after, instant, literal, read_notices, with_notice

#: Seconds for which what was noted as kept is not noted again: a busy line would write its gate for each event.
_NOTE_HELD_EVERY_S = 5
#: Places in a line for each millisecond that passes: more than are taken in one, on the average.
_PLACES_PER_MS = 1_000

_INDEXES = [
    # The steward's questions: which are paused and to be tried, which recover?
    IndexModel([("state", ASCENDING), ("probe_at", ASCENDING)], name="state_probe"),
    # For which is something kept? Which have something to tell? Few at any time.
    IndexModel([("has_held", ASCENDING), ("_id", ASCENDING)], name="held", partialFilterExpression={"has_held": True}),
    IndexModel([("has_untold", ASCENDING)], name="untold", partialFilterExpression={"has_untold": True}),
]


class State(StrEnum):
    """Where a webhook's gate stands."""

    #: What is owed is sent.
    OPEN = "open"
    #: What is owed is kept. If health paused it, one delivery at a time is sent as a probe.
    PAUSED = "paused"
    #: What was kept is let out at a growing rate; what is new stands behind it.
    RECOVERING = "recovering"
    #: The retries of an ordered webhook's head are used up, and an operator has to decide.
    STOPPED = "stopped"


class By(StrEnum):
    """Who brought a gate into its state."""

    HEALTH = "health"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Gate:
    """What lets one webhook's deliveries through."""

    webhook_id: ObjectId
    state: State = State.OPEN
    #: None while it is open.
    by: By | None = None
    #: In words, for people.
    reason: str = ""
    since: datetime | None = None
    #: Nothing is sent before.
    hold_until: datetime | None = None
    #: When to try a paused endpoint.
    probe_at: datetime | None = None
    #: Whether deliveries may be kept for it, and when the last one was noted.
    has_held: bool = False
    held_at: datetime | None = None
    #: Deliveries per second let out while it recovers.
    rate: float = START_RATE
    last_place: int = 0
    #: Oldest first.
    notices: tuple[Notice, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether what is owed is sent as it comes."""
        return self.state is State.OPEN

    @property
    def is_probed(self) -> bool:
        """Whether deliveries are sent as probes, one at a time."""
        return self.state is State.PAUSED and self.by is By.HEALTH

    def lets_through(self, *, is_probe: bool, is_released: bool) -> bool:
        """Say whether an attempt may be made.

        Args:
            is_probe: of a delivery that was let out as a probe.
            is_released: of a delivery that is due, so that nobody keeps it.
        """
        if self.state is State.RECOVERING:
            return is_released
        return self.is_open or (self.is_probed and is_probe)

    def is_held_back(self, present: datetime) -> bool:
        """Whether the receiver asked for nothing to be sent now.

        Args:
            present: now, by MongoDB's clock.
        """
        return self.hold_until is not None and self.hold_until > present


class GateStore:
    """Reads and changes gates. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(self, database: Database[Document]) -> None:
        self._collection = database["gates"]
        # For what a crash of MongoDB may forget: see there.
        self._quick = self._collection.with_options(write_concern=WriteConcern(w=1))

    def ensure_indexes(self) -> None:
        """Make the indexes, or find them made."""
        with store_errors():
            self._collection.create_indexes(_INDEXES)

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, webhook_id: ObjectId) -> Gate:
        """Return a webhook's gate; never from a cache."""
        return self.get_many([webhook_id])[webhook_id]

    def get_many(self, webhook_ids: Iterable[ObjectId]) -> dict[ObjectId, Gate]:
        """Return the gate of each of these webhooks; never from a cache."""
        wanted = set(webhook_ids)
        with store_errors():
            return self.read(wanted, self._collection.find(self.ask(wanted).filter))

    def ask(self, webhook_ids: Iterable[ObjectId]) -> Query:
        """Return the question for webhooks' gates."""
        return Query(self._collection, {"_id": {"$in": list(webhook_ids)}})

    def read(self, webhook_ids: Iterable[ObjectId], found: Iterable[Document]) -> dict[ObjectId, Gate]:
        """Return the gate of each of these webhooks; one that has none stored is open."""
        stored = {document["_id"]: document for document in found}
        return {webhook_id: _read(webhook_id, stored.get(webhook_id, {})) for webhook_id in webhook_ids}

    def find_due(self, present: datetime, limit: int) -> list[Gate]:
        """Return the gates that health paused and whose endpoint is to be tried, the longest due first."""
        query = {"state": State.PAUSED, "by": By.HEALTH, "probe_at": {"$lte": present}}
        return self._find(query, limit, [("probe_at", ASCENDING)])

    def find_recovering(self, limit: int) -> list[Gate]:
        """Return the gates that let out what was kept."""
        return self._find({"state": State.RECOVERING}, limit)

    def find_held(self, limit: int, after: ObjectId | None = None) -> list[Gate]:
        """Return the open gates for which deliveries may be kept, by id: those of ordered webhooks, mostly.

        Args:
            limit: how many.
            after: the last one of the page before; None for the first page.
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
        # One that somebody put there by hand is no webhook's.
        return [_read(document["_id"], document) for document in documents if isinstance(document["_id"], ObjectId)]

    # ── Changes of state ────────────────────────────────────────────────────────────────────────────────────────────

    def pause(self, webhook_id: ObjectId, by: By, reason: str, probe_in_s: float | None = None) -> bool:
        """Keep what is owed to a webhook from now on.

        Health pauses what is open or recovers; an operator pauses whatever it is, but for what an operator has paused.

        Args:
            webhook_id: which.
            by: who wants it.
            reason: in words.
            probe_in_s: seconds until its endpoint is tried; None for never.

        Returns:
            Whether it was paused by this.
        """
        is_paused = {"state": State.PAUSED, "by": By.OPERATOR}
        wanted: Document = (
            {"state": {"$nin": [State.PAUSED, State.STOPPED]}} if by is By.HEALTH else {"$nor": [is_paused]}
        )
        probe_at = "$$REMOVE" if probe_in_s is None else after(probe_in_s)
        change = {"state": State.PAUSED, "by": by, "reason": literal(reason), "probe_at": probe_at}
        return self._change(webhook_id, wanted, change, NoticeType.PAUSED, reason, upsert=True)

    def stop(self, webhook_id: ObjectId, reason: str) -> bool:
        """Keep what is owed to an ordered webhook until an operator decides.

        Returns:
            Whether it was stopped by this.
        """
        wanted = {"state": {"$nin": [State.PAUSED, State.STOPPED]}}
        change = {"state": State.STOPPED, "by": By.HEALTH, "reason": literal(reason), "probe_at": "$$REMOVE"}
        return self._change(webhook_id, wanted, change, NoticeType.STOPPED, reason, upsert=True)

    def recover(self, webhook_id: ObjectId, reason: str) -> bool:
        """Let out what was kept, slowly at first: a probe of a webhook that health had paused was answered.

        Returns:
            Whether it was paused by health until now.
        """
        wanted = {"state": State.PAUSED, "by": By.HEALTH}
        change = {"state": State.RECOVERING, "reason": literal(reason), "rate": START_RATE, "probe_at": "$$REMOVE"}
        return self._change(webhook_id, wanted, change, NoticeType.RECOVERED, reason)

    def resume(self, webhook_id: ObjectId, reason: str = "an operator resumed it") -> bool:
        """Let out what was kept, slowly at first, as an operator wants it; where nothing is, simply open.

        Who resumes a stopped webhook has `DeliveryStore.restart_head` make its head's first attempt anew, before this.

        Returns:
            Whether it was paused or stopped until now.
        """
        kept = {"$eq": ["$has_held", True]}
        change = {
            "state": {"$cond": [kept, State.RECOVERING, State.OPEN]},
            "by": By.OPERATOR,
            "reason": literal(reason),
            "rate": START_RATE,
            "probe_at": "$$REMOVE",
        }
        wanted = {"state": {"$in": [State.PAUSED, State.STOPPED]}}
        return self._change(webhook_id, wanted, change, NoticeType.RESUMED, reason)

    def drain(self, webhook_id: ObjectId, reason: str = "an operator drains it") -> bool:
        """Let out what was kept as fast as the endpoint takes it, as an operator wants it.

        Returns:
            Whether it was paused, stopped or recovering until now.
        """
        change = {
            "state": State.RECOVERING,
            "by": By.OPERATOR,
            "reason": literal(reason),
            "rate": FULL_RATE,
            "probe_at": "$$REMOVE",
        }
        shut = {"state": {"$in": [State.PAUSED, State.STOPPED]}}
        if self._change(webhook_id, shut, change, NoticeType.RESUMED, reason):
            return True
        return self._change(webhook_id, {"state": State.RECOVERING}, change)

    def open(self, webhook_id: ObjectId, *, from_state: State = State.RECOVERING) -> bool:
        """Let everything through: nothing is kept any more, or there is nobody left to keep it for.

        Returns:
            Whether it was in that state until now; a webhook that an operator paused stays so.
        """
        wanted: Document = {"state": from_state}
        if from_state is State.PAUSED:
            wanted["by"] = By.HEALTH
        return self._change(webhook_id, wanted, _OPENED)

    def deactivate(self, webhook_id: ObjectId, notice_id: ObjectId, reason: str) -> bool:
        """Let everything through, so that it ends: the webhook was deactivated.

        Args:
            webhook_id: which.
            notice_id: of the notice; the same again is none.
            reason: in words.

        Returns:
            Whether it is news.
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
        """Change a gate that is as wanted, and write the notice of it, in one update."""
        fields = {**change, "since": "$$NOW"}
        if notice is not None:
            fields["notices"] = with_notice(notice, reason, notice_id or ObjectId())
            fields["has_untold"] = True
        with store_errors():
            try:
                done = self._collection.update_one({"_id": webhook_id, **wanted}, [{"$set": fields}], upsert=upsert)
            except DuplicateKeyError:  # there is one, and it is not as wanted
                return False
        return done.matched_count == 1 or done.upserted_id is not None

    # ── What does not change the state ──────────────────────────────────────────────────────────────────────────────

    def hold(self, webhook_id: ObjectId, seconds: float) -> datetime | None:
        """Send nothing to a webhook for some time, as its receiver asked for.

        Returns:
            Until when; None, if somebody changed the document so that it cannot be told.
        """
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
        """Note that deliveries are about to be kept for webhooks; before they are.

        If we die in between, the steward looks and finds none.
        """
        not_just_now = {
            "$or": [
                {"$ne": ["$has_held", True]},
                {"$lt": [{"$ifNull": ["$held_at", 0]}, {"$subtract": ["$$NOW", _NOTE_HELD_EVERY_S * 1000]}]},
            ]
        }
        pipeline = [
            {
                "$set": {
                    "held_at": {"$cond": [not_just_now, "$$NOW", "$held_at"]},
                    "has_held": True,
                }
            }
        ]
        # In the journal of the server before what is kept, which is acknowledged by then.
        writes = [UpdateOne({"_id": webhook_id}, pipeline, upsert=True) for webhook_id in sorted(set(webhook_ids))]
        if writes:
            with store_errors():
                self._quick.bulk_write(writes, ordered=False)

    def note_none_held(self, gate: Gate, older_than_s: float) -> bool:
        """Note that nothing is kept for a webhook any more.

        Args:
            gate: as it was read before it was found that nothing is kept.
            older_than_s: seconds for which nobody must have noted that something is; longer than a write may take that
                keeps it.
        """
        is_old = {"$lt": ["$held_at", {"$subtract": ["$$NOW", int(older_than_s * 1000)]}]}
        unchanged = {"_id": gate.webhook_id, "held_at": gate.held_at, "$expr": is_old}
        with store_errors():
            return self._quick.update_one(unchanged, {"$set": {"has_held": False}}).matched_count == 1

    def take_places(self, webhook_id: ObjectId, count: int) -> int:
        """Take places in an ordered webhook's line, and note that deliveries are about to be kept for it.

        They grow with the server's clock, so that they stand behind all that were taken before also where the gate was
        lost, as in a restored backup that lacks it.

        Not waited for until it is in the journal: whatever takes such a place is written after it, and is acknowledged
        only when both are.

        Returns:
            The first of them; the others follow it.
        """
        noted = {"$cond": [{"$isNumber": "$last_place"}, {"$toLong": "$last_place"}, 0]}
        last = {"$max": [noted, {"$multiply": [{"$toLong": "$$NOW"}, _PLACES_PER_MS]}]}
        change = {"last_place": {"$add": [last, count]}, "has_held": True, "held_at": "$$NOW"}
        with store_errors():
            found = self._quick.find_one_and_update(
                {"_id": webhook_id}, [{"$set": change}], upsert=True, return_document=ReturnDocument.AFTER
            )
        if found is None:  # deleted by hand, just now
            raise StoreUnavailable("a gate is gone")
        return int(found["last_place"]) - count + 1

    def take_probe(self, gate: Gate, next_in_s: float) -> bool:
        """Take it on to try a paused endpoint: the next try is some time from now, whatever becomes of this one.

        Returns:
            Whether it is ours to do: False when somebody was faster, or the webhook is not paused any more.
        """
        query = {"_id": gate.webhook_id, "state": State.PAUSED, "by": By.HEALTH, "probe_at": gate.probe_at}
        with store_errors():
            return self._collection.update_one(query, [{"$set": {"probe_at": after(next_in_s)}}]).matched_count == 1

    def set_rate(self, gate: Gate, rate: float) -> None:
        """Note how fast a recovering webhook's deliveries are let out now, for people and for the next steward."""
        query = {"_id": gate.webhook_id, "state": State.RECOVERING, "since": gate.since}
        with store_errors():
            self._quick.update_one(query, {"$set": {"rate": rate}})


#: What an open gate has.
_OPENED: Mapping[str, Any] = {"state": State.OPEN, "by": "$$REMOVE", "reason": "", "probe_at": "$$REMOVE"}


def _read(webhook_id: ObjectId, document: Document) -> Gate:
    """Read a gate with care: anybody may have changed it."""
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
