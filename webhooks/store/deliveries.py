"""The collections ``deliveries`` and ``events``: the ledger of pending deliveries.

A delivery is stored before its event's message is acked, and deleted when it ends. The ledger decides, not the broker:
the sweep queues overdue deliveries again, and a message without a pending delivery is dropped.

``deliveries``: ``_id`` (the delivery's id), ``event_id``, ``webhook_id``, ``company``, ``label``, ``body`` (absent if
the event is stored once for several deliveries), ``retry`` (number of the next attempt), ``due_at`` (absent while held
or quarantined), ``held`` (true: see `held`), ``place`` (position in an ordered webhook's line), ``probe`` (true:
released to probe a paused endpoint), ``traceparent``, ``first_span``, ``created_at``, and during an attempt its
``claim``: ``log_id``, ``retry``, ``worker``, ``at``, ``until``, ``holder`` (token of the process; absent without a
lease). A claim that expired, or whose holder's lease lapsed, moves to the list ``interrupted``.

``events``: ``_id`` (event id and company, as producers may choose event ids), ``event_id``, ``body``, ``created_at``.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from bson import MinKey, ObjectId
from pymongo import ASCENDING, DeleteOne, IndexModel, UpdateOne, WriteConcern
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from webhooks.errors import ErrorKind
from webhooks.models import COTWebhookLog
from webhooks.models.wire import show
from webhooks.rules.retry import Outcome
from webhooks.store.leases import Leases, is_over
from webhooks.store.mongo import Document, document_errors, insert_new, repeat_once, store_errors
from webhooks.store.pending import (
    PENDING_FIELDS,
    Blocked,
    Claim,
    Claimed,
    Delivery,
    Interrupted,
    Oldest,
    PendingDelivery,
    read_claimed,
    read_pending,
    shared_id,
    shared_ids,
)
from webhooks.transport.holder import uptime

__all__ = [
    "PENDING_FIELDS",
    "Blocked",
    "Claim",
    "Claimed",
    "Delivery",
    "DeliveryStore",
    "Interrupted",
    "Oldest",
    "PendingDelivery",
    "read_pending",
]

logger = logging.getLogger(__name__)

_INDEXES = [
    # The sweep: overdue deliveries.
    IndexModel([("due_at", ASCENDING)], name="due"),
    # The clean-up: pending deliveries of an event.
    IndexModel([("event_id", ASCENDING)], name="event"),
    # Operators: pending deliveries of a webhook.
    IndexModel([("webhook_id", ASCENDING), ("due_at", ASCENDING)], name="webhook_due"),
]

#: Seconds between readings of MongoDB's clock; clocks drift little in that time.
_ASK_TIME_EVERY_S = 30.0

#: Longer than any setting allows. A claim that lasts longer was changed by hand, or the server's clock went back: it
#: has expired.
_LONGEST_CLAIM_S = 3_600

#: Tolerated difference between the clocks of replica set members.
_CLOCK_SLACK_MS = 5_000

#: Given-up claims that are remembered while MongoDB is away. Older ones become interrupted attempts.
_MAX_GIVEN_UP = 100_000

#: Any webhook.
_ANY = object()


class DeliveryStore:
    """Stores pending deliveries. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(
        self,
        database: Database[Document],
        claim_s: float,
        timeout_s: float,
        clock: Callable[[], float] = uptime,
        leases: Leases | None = None,
    ) -> None:
        """Use a database.

        Args:
            database: from `mongo.open_database`.
            claim_s: seconds that a claim lasts: longer than an attempt and its log's write, shorter than the time
                after which the broker redelivers a dead worker's message.
            timeout_s: seconds after which an operation of MongoDB is given up.
            clock: monotonic seconds that go on while the process is paused.
            leases: of this process; None: claims last for `claim_s`, even if their process dies.
        """
        self._clock = clock
        self._leases = leases
        #: MongoDB's time, and `clock` at that moment.
        self._asked: tuple[datetime, float] | None = None
        self._deliveries = database["deliveries"]
        self._events = database["events"]
        # Not journaled: a crash of MongoDB may lose these writes, which is detected or costs one repeated attempt.
        self._quick = self._deliveries.with_options(write_concern=WriteConcern(w=1))
        self._claim_s = claim_s
        self._timeout = timedelta(seconds=timeout_s)
        #: Delivery and log ids of claims that were given up before their attempts.
        self._given_up: deque[tuple[str, ObjectId]] = deque(maxlen=_MAX_GIVEN_UP)

    def ensure_indexes(self) -> None:
        """Create missing indexes."""
        with store_errors():
            self._deliveries.create_indexes(_INDEXES)
            self._events.create_index([("created_at", ASCENDING)], name="oldest")

    def now(self) -> datetime:
        """Return MongoDB's time, which the whole ledger uses; extrapolated from the last reading."""
        asked = self._asked
        if asked is None or self._clock() - asked[1] > _ASK_TIME_EVERY_S:
            # A command does not inherit the database's codec options.
            database = self._deliveries.database
            with store_errors():
                answer = database.command("hello", codec_options=database.codec_options)
            self._asked = asked = (answer["localTime"], self._clock())
        return asked[0] + timedelta(seconds=self._clock() - asked[1])

    def estimate_now(self) -> datetime | None:
        """Return MongoDB's time without asking, however old the last reading is; None if there is none."""
        asked = self._asked
        return None if asked is None else asked[0] + timedelta(seconds=self._clock() - asked[1])

    def add(self, deliveries: Iterable[Delivery], at: datetime) -> set[str]:
        """Store deliveries that are not stored yet, due at an instant; return the ids of the new ones.

        An event with several deliveries is stored once.
        """
        by_event: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_event.setdefault(shared_id(delivery.event_id, delivery.company), []).append(delivery)
        shared = [same for same in by_event.values() if len(same) > 1]
        # The events first: a delivery must never be without its body. The new date protects a stored one from clean-up.
        if shared:
            writes = [
                UpdateOne(
                    {"_id": shared_id(one.event_id, one.company)},
                    {"$set": {"event_id": one.event_id, "body": one.body}, "$currentDate": {"created_at": True}},
                    upsert=True,
                )
                for one in (same[0] for same in shared)
            ]
            with store_errors():
                self._events.bulk_write(writes, ordered=False)
        documents = [_write(delivery, at, has_body=len(same) == 1) for same in by_event.values() for delivery in same]
        known = insert_new(self._deliveries, documents).known
        return {document["_id"] for place, document in enumerate(documents) if place not in known}

    def forget(self, delivery_ids: Iterable[str]) -> None:
        """Delete deliveries that have ended."""
        with store_errors():
            self._deliveries.delete_many({"_id": {"$in": list(delivery_ids)}})

    def add_claimed(self, claims: Sequence[tuple[Delivery, Claim]], at: datetime) -> list[bool]:
        """Store new deliveries together with claims on their first attempts.

        The write is not journaled: the event's message is not acked before the attempts end.

        Returns:
            For each delivery whether it was new, so that the attempt is ours.
        """
        self.release_given_up()  # those of an earlier try of this step block its deliveries, which are queued next
        same = {"at": at, "until": at + timedelta(seconds=self._claim_s), **self._holder()}
        documents = []
        for delivery, claim in claims:
            document = _write(delivery, at, has_body=True)
            document["claim"] = {"log_id": claim.log_id, "retry": claim.retry, "worker": claim.worker, **same}
            documents.append(document)
        result = insert_new(self._quick, documents)
        return [place not in result.known and place not in result.faults for place in range(len(claims))]

    def claim(self, claims: Sequence[Claim]) -> list[Claimed | Blocked | Exception | None]:
        """Claim attempts.

        A claim is exclusive for `claim_s` seconds by the server's clock, or until its process's lease lapses.

        Returns:
            For each claim: Claimed if the attempt is ours; None if it was made already or the delivery has ended;
            Blocked if another worker has claimed it; a LookupError if its event is missing or its document invalid.
        """
        self.release_given_up()
        not_after = self.now() + self._timeout
        results = self._ask(claims, not_after, [None] * len(claims))
        blocked = {place: one for place, one in enumerate(results) if isinstance(one, Blocked) and one.holder}
        if not blocked or self._leases is None:
            return results
        # Leases are read only here: the message is a duplicate, or the claiming worker died.
        left_s = self._leases.find_left({one.holder for one in blocked.values() if one.holder})
        lapsed: dict[int, ObjectId] = {}
        for place, one in blocked.items():
            left = left_s.get(one.holder or "", one.again_s)
            if left > 0:
                results[place] = replace(one, again_s=min(one.again_s, left))
            elif one.log_id is not None:
                lapsed[place] = one.log_id
        if lapsed:
            again = self._ask([claims[place] for place in lapsed], not_after, [*lapsed.values()])
            for place, result in zip(lapsed, again, strict=True):
                results[place] = result
        return results

    def _ask(
        self, claims: Sequence[Claim], not_after: datetime, lapsed: Sequence[ObjectId | None]
    ) -> list[Claimed | Blocked | Exception | None]:
        """Make claims, and return as `claim` does.

        Args:
            claims: the claims.
            not_after: the write has no effect after this instant of the server's clock.
            lapsed: for each, the log id of a blocking claim whose holder's lease has lapsed; None: none is known.
        """
        # Many claims in one query cost MongoDB a third of what a query for each does.
        alike: dict[tuple[int, str | None], list[tuple[Claim, ObjectId | None]]] = {}
        for claim, old in zip(claims, lapsed, strict=True):
            alike.setdefault((claim.retry, claim.worker), []).append((claim, old))
        with store_errors():
            for (retry, worker), group in alike.items():
                query, change = self._take(retry, worker, group, not_after)
                repeat_once(lambda query=query, change=change: self._quick.update_many(query, change))
            found = {
                document["_id"]: document
                for document in self._deliveries.find({"_id": {"$in": [claim.delivery_id for claim in claims]}})
            }
            bodies = self._read_bodies(found.values())
        present = self.now()
        return [read_claimed(one, found.get(one.delivery_id), bodies, present, self._claim_s) for one in claims]

    def give_up(self, claim: Claim) -> None:
        """Note that a claim, if it was stored at all, led to no attempt. The next call that claims undoes it.

        Without this, the next claimant would record an interrupted attempt.
        """
        self._given_up.append((claim.delivery_id, claim.log_id))

    def release_given_up(self) -> None:
        """Undo the claims that were given up. Call it regularly: this process may claim nothing for a long time."""
        given_up: list[tuple[str, ObjectId]] = []
        with suppress(IndexError):  # other threads take from it too
            while True:
                given_up.append(self._given_up.popleft())
        try:
            self._undo(given_up)
        except BaseException:
            self._given_up.extend(given_up)
            raise

    def release(self, claims: Iterable[Claim]) -> None:
        """Undo claims without an attempt at once, so that others can claim."""
        self._undo((claim.delivery_id, claim.log_id) for claim in claims)

    def _undo(self, given_up: Iterable[tuple[str, ObjectId]]) -> None:
        writes = []
        for delivery_id, log_id in given_up:
            writes += [
                UpdateOne({"_id": delivery_id, "claim.log_id": log_id}, {"$unset": {"claim": ""}}),
                UpdateOne(
                    {"_id": delivery_id, "interrupted.log_id": log_id}, {"$pull": {"interrupted": {"log_id": log_id}}}
                ),
            ]
        if writes:
            with store_errors():
                self._quick.bulk_write(writes, ordered=False)

    def _holder(self) -> Document:
        """Return the claim's field that names this process."""
        token = None if self._leases is None else self._leases.holder()
        return {} if token is None else {"holder": token}

    def _take(
        self, retry: int, worker: str | None, claims: Sequence[tuple[Claim, ObjectId | None]], not_after: datetime
    ) -> tuple[Document, list[Document]]:
        """Return the write that makes claims of one retry and worker, as `_ask` has them."""
        delivery_ids = [claim.delivery_id for claim, _ in claims]
        # Of two claims on one delivery, the first.
        place = {"$indexOfArray": [{"$literal": delivery_ids}, "$_id"]}
        log_id = {"$arrayElemAt": [{"$literal": [claim.log_id for claim, _ in claims]}, place]}
        lapsed = {"$arrayElemAt": [{"$literal": [log_id for _, log_id in claims]}, place]}
        # Claimed in the future: the server's clock went back. With a lease, the lease decides.
        is_ahead = {"$gt": ["$claim.at", {"$add": ["$$NOW", _CLOCK_SLACK_MS]}]}
        is_unleased = {"$eq": [{"$type": "$claim.holder"}, "missing"]}
        is_free = {"$or": [is_over("$claim.until", _LONGEST_CLAIM_S), {"$and": [is_ahead, is_unleased]}]}
        if any(log_id is not None for _, log_id in claims):
            is_free = {"$or": [is_free, {"$eq": ["$claim.log_id", lapsed]}]}
        is_ours = {"$eq": ["$claim.log_id", log_id]}
        # The end of an attempt removes its claim, so a free claim that is not ours was interrupted.
        is_left_over = {"$and": [{"$ne": [{"$type": "$claim"}, "missing"]}, {"$not": is_ours}]}
        moved = {"$concatArrays": [{"$cond": [{"$isArray": "$interrupted"}, "$interrupted", []]}, ["$claim"]]}
        ours = {
            "log_id": log_id,
            "retry": retry,
            "worker": {"$literal": worker},
            "at": "$$NOW",
            "until": {"$add": ["$$NOW", int(self._claim_s * 1000)]},
            **self._holder(),
        }
        query = {
            # A retry's message may arrive before the write that makes it due.
            **_until(retry, {"$in": delivery_ids}),
            # A paused server must not carry out the write after our time-out.
            "$expr": {"$and": [{"$lte": ["$$NOW", not_after]}, {"$or": [is_free, is_ours]}]},
        }
        return query, [
            {"$set": {"interrupted": {"$cond": [is_left_over, moved, {"$ifNull": ["$interrupted", "$$REMOVE"]}]}}},
            {"$set": {"claim": ours}},
        ]

    def _read_bodies(self, documents: Iterable[Document]) -> dict[str, str]:
        shared = shared_ids(documents)
        if not shared:
            return {}
        found = self._events.find({"_id": {"$in": list(shared)}}, {"body": 1})
        return {event["_id"]: event["body"] for event in found if isinstance(event.get("body"), str)}

    def settle(self, logs: Iterable[COTWebhookLog]) -> None:
        """Update deliveries after attempts: set the next attempt, hold, or delete.

        Interrupted attempts change nothing, as they are repeated; nor do attempts that are not heeded (`_heeded`).
        """
        succeeded: dict[int, list[str]] = {}
        ends: list[DeleteOne] = []
        changes: list[UpdateOne] = []
        for log in logs:
            attempt = log.details
            if attempt.error_kind is ErrorKind.INTERRUPTED:
                continue
            if attempt.outcome == Outcome.SUCCESS:
                succeeded.setdefault(log.retry, []).append(attempt.delivery_id)
                continue
            query = _heeded(log)
            done = {"claim": "", "interrupted": ""}
            keep = {"$set": {"held": True}, "$unset": {**done, "due_at": "", "probe": ""}}
            if attempt.kept:
                changes.append(UpdateOne(query, keep))
            elif attempt.next_at is None:
                ends.append(DeleteOne(query))
            elif attempt.probe:
                # Held as before, if still released as a probe: a late log must not undo a later release.
                changes.append(UpdateOne({**query, "probe": True}, keep))
            else:
                next_one: Document = {"retry": log.retry + 1, "due_at": self.now() + (attempt.next_at - log.createdAt)}
                if not log.retry and attempt.trace_id is not None:
                    next_one["first_span"] = f"00-{attempt.trace_id}-{attempt.span_id}-01"
                changes.append(UpdateOne(query, {"$set": next_one, "$unset": {**done, "held": "", "probe": ""}}))
        with store_errors():
            try:
                if changes:
                    self._deliveries.bulk_write(changes, ordered=False)
                # A lost deletion is detected: the log says that the attempt was made.
                if ends:
                    self._quick.bulk_write(ends, ordered=False)
                # One query for many costs MongoDB half of what a query for each does.
                for retry, delivery_ids in succeeded.items():
                    query = _until(retry, {"$in": delivery_ids})
                    repeat_once(lambda query=query: self._quick.delete_many(query))
            except BulkWriteError as error:
                document_errors(error)

    def is_heeded(self, log: COTWebhookLog) -> bool:
        """Tell whether an attempt may still change its delivery."""
        with store_errors():
            return self._deliveries.find_one(_heeded(log), {"_id": 1}) is not None

    def find_oldest_overdue(self, before: datetime, limit: int) -> list[Oldest]:
        """Return the oldest delivery due before an instant for each of up to `limit` webhooks, in no order."""
        oldest = []
        with store_errors():
            # The bound makes MongoDB skip from webhook to webhook in the index.
            query = {"webhook_id": {"$gt": MinKey()}, "due_at": {"$lt": before}}
            webhook_ids = self._deliveries.distinct("webhook_id", query)
            for webhook_id in webhook_ids[:limit]:
                query = {"webhook_id": webhook_id, "due_at": {"$lt": before}}
                document = self._deliveries.find_one(query, {"company": 1, "due_at": 1}, sort=[("due_at", ASCENDING)])
                if document and isinstance(document["due_at"], datetime):
                    oldest.append(Oldest(webhook_id, document.get("company"), document["due_at"]))
        return oldest

    def find_overdue(self, before: datetime, limit: int, webhook_id: object = _ANY) -> list[PendingDelivery]:
        """Return deliveries that were due before an instant, longest overdue first, of one webhook or all."""
        query: Document = {"due_at": {"$lt": before}}
        if webhook_id is not _ANY:  # it may be None in a document that was changed by hand
            query["webhook_id"] = webhook_id
        with store_errors():
            documents = list(self._deliveries.find(query, PENDING_FIELDS).sort("due_at", 1).limit(limit))
        return self.read_sound(documents)

    def find(self, delivery_id: str) -> PendingDelivery | None:
        """Return a pending delivery; None if it has ended."""
        with store_errors():
            document = self._deliveries.find_one({"_id": delivery_id}, PENDING_FIELDS)
        return None if document is None else read_pending(document)

    def read_sound(self, documents: Iterable[Document]) -> list[PendingDelivery]:
        """Read deliveries to queue; quarantine invalid ones, so that they do not block the others."""
        sound = []
        for document in documents:
            pending = read_pending(document)
            if pending is not None:
                sound.append(pending)
            else:
                logger.error("delivery %s is quarantined: its document was changed by hand", show(document["_id"]))
                self.quarantine(document["_id"])
        return sound

    def postpone(self, delivery_ids: Sequence[str], due_at: datetime) -> None:
        """Set a later due time for deliveries that were queued again."""
        with store_errors():
            # Deliveries that are held or wait for a retry meanwhile stay unchanged.
            query = {"_id": {"$in": list(delivery_ids)}, "due_at": {"$lt": due_at}}
            self._deliveries.update_many(query, {"$set": {"due_at": due_at}})

    def quarantine(self, delivery_id: object) -> None:
        """Keep a delivery, but do not queue it by ourselves again.

        Claim and interrupted attempts are removed, so that an operator can queue it afresh.
        """
        with store_errors():
            self._deliveries.update_one(
                {"_id": delivery_id},
                {"$unset": {"due_at": "", "claim": "", "interrupted": "", "held": "", "probe": ""}},
            )

    def forget_events(self, older_than: datetime, limit: int) -> int:
        """Delete shared events without pending deliveries; return how many.

        Args:
            older_than: deliveries of younger events may not be stored yet.
            limit: how many events to check, oldest first.
        """
        with store_errors():
            query = {"created_at": {"$lt": older_than}}
            old = list(self._events.find(query, {"event_id": 1}).sort("created_at", 1).limit(limit))
            event_ids = [event.get("event_id") for event in old]
            pending = self._deliveries.distinct("event_id", {"event_id": {"$in": event_ids}})
            ended = [event["_id"] for event in old if event.get("event_id") not in pending]
            # The date is checked again: `add` may have renewed an event meanwhile.
            return self._events.delete_many({"_id": {"$in": ended}, **query}).deleted_count


def _write(delivery: Delivery, at: datetime, *, has_body: bool) -> Document:
    return {
        "_id": delivery.delivery_id,
        "event_id": delivery.event_id,
        "webhook_id": delivery.webhook_id,
        "company": delivery.company,
        "label": delivery.label,
        **({"body": delivery.body} if has_body else {}),
        "retry": 0,
        **({"held": True} if delivery.is_held else {"due_at": at}),
        **({} if delivery.place is None else {"place": delivery.place}),
        **({} if delivery.unusable is None else {"unusable": delivery.unusable}),
        **({} if delivery.traceparent is None else {"traceparent": delivery.traceparent}),
        "created_at": at,
    }


def _heeded(log: COTWebhookLog) -> Document:
    """Return the query that matches a delivery while an attempt may change it.

    A success may always. A failure may not once another process took over the claim: then the new claim decides.
    Neither undoes a later retry.
    """
    query = _until(log.retry, log.details.delivery_id)
    if log.details.outcome != Outcome.SUCCESS:
        query["claim.log_id"] = {"$in": [log.id, None]}  # None matches a missing claim
    return query


def _until(retry: int, delivery_id: object) -> Document:
    """Return the query that matches deliveries until a later attempt is due."""
    return {"_id": delivery_id, "retry": {"$lte": retry}}
