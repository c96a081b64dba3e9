"""The collections ``deliveries`` and ``events``: what is still owed.

Owns one document per delivery that has not ended, with its next attempt; it is written before the event's message is
acked and deleted when the delivery ends. An event that goes to several webhooks is stored once, beside. The ledger is
the truth: whatever it says is owed and overdue is queued again (`sweeper`), and a message of which it says that
nothing is owed is dropped, so that what is queued twice is sent once.

``deliveries``: ``_id`` (the delivery's id), ``event_id``, ``webhook_id``, ``company``, ``label``, ``body`` (absent
where the event is stored beside), ``retry`` (number of the next attempt), ``due_at`` (absent where it was set aside or
is kept), ``held`` (true: it is kept, has no message, and waits to be let out: see `kept`), ``place`` (in the line of an
ordered webhook), ``probe`` (true: it was let out to try a paused endpoint), ``created_at``, and while an attempt is
made its ``claim``: ``log_id``, ``retry``, ``worker``, ``at``, ``until``, ``holder`` (token of the process that makes
it; absent where that has no lease). A claim whose time or whose holder's lease (`leases`) ran out without an end on
record moves to the list ``interrupted``. ``events``: ``_id`` (the event's id and its company, as a producer may choose
the ids of its events), ``event_id``, ``body``, ``created_at``. `owed` reads the documents.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
from webhooks.store.mongo import Document, document_errors, insert_new, store_errors
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
    # The sweep's question: what is overdue?
    IndexModel([("due_at", ASCENDING)], name="due"),
    # The clean-up's question: is anything of this event still owed?
    IndexModel([("event_id", ASCENDING)], name="event"),
    # The operators' question: what waits for this webhook?
    IndexModel([("webhook_id", ASCENDING), ("due_at", ASCENDING)], name="webhook_due"),
]

#: Seconds between two looks at MongoDB's clock: in that time no two clocks go far apart.
_ASK_TIME_EVERY_S = 30.0

#: More than any setting makes of a claim: one that claims to last longer was changed by hand, or the server's clock has
#: gone back. It is over.
_LONGEST_CLAIM_S = 3_600

#: How far the clocks of two servers of a replica set may be apart, of which one takes over from the other.
_CLOCK_SLACK_MS = 5_000

#: Claims given up that are remembered while MongoDB is away. Those beyond are taken for interrupted attempts.
_MAX_GIVEN_UP = 100_000

#: Any webhook.
_ANY = object()


class DeliveryStore:
    """Keeps what is owed. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

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
            database: where.
            claim_s: seconds that a claim holds: longer than any attempt with the writing of its log, and shorter than
                the time after which a dead worker's message comes back.
            timeout_s: seconds within which MongoDB answers or is given up: what it does later is wanted by nobody.
            clock: seconds that never jump, and go on while the process is paused.
            leases: of this process, where it renews one; None: its claims last for `claim_s`, whatever becomes of it,
                and so do others' for it.
        """
        self._clock = clock
        self._leases = leases
        #: MongoDB's time, and ours when we asked for it; None before.
        self._asked: tuple[datetime, float] | None = None
        self._deliveries = database["deliveries"]
        self._events = database["events"]
        # For what a crash of MongoDB may forget, as that is found out or costs one attempt made twice: its journal need
        # not be waited for.
        self._quick = self._deliveries.with_options(write_concern=WriteConcern(w=1))
        self._claim_s = claim_s
        self._timeout = timedelta(seconds=timeout_s)
        #: Delivery and log id of claims that were given up before an attempt was made.
        self._given_up: deque[tuple[str, ObjectId]] = deque(maxlen=_MAX_GIVEN_UP)

    def ensure_indexes(self) -> None:
        """Make the indexes, or find them made."""
        with store_errors():
            self._deliveries.create_indexes(_INDEXES)
            self._events.create_index([("created_at", ASCENDING)], name="oldest")

    def now(self) -> datetime:
        """Return MongoDB's time, by which all of the ledger runs: clocks of workers may be wrong, or jump.

        Asked for now and then, and counted on from there.
        """
        asked = self._asked
        if asked is None or self._clock() - asked[1] > _ASK_TIME_EVERY_S:
            # A command does not take over how its database reads dates: with their zone.
            database = self._deliveries.database
            with store_errors():
                answer = database.command("hello", codec_options=database.codec_options)
            self._asked = asked = (answer["localTime"], self._clock())
        return asked[0] + timedelta(seconds=self._clock() - asked[1])

    def add(self, deliveries: Iterable[Delivery], at: datetime) -> set[str]:
        """Write down deliveries that are owed; one that is written down already is left as it is.

        An event that several of them share is stored once.

        Args:
            deliveries: of one event or of several.
            at: since when, by `now`.

        Returns:
            The ids of those that were not written down before.
        """
        by_event: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_event.setdefault(shared_id(delivery.event_id, delivery.company), []).append(delivery)
        shared = [same for same in by_event.values() if len(same) > 1]
        # The events first: a delivery must never be without its body. One that is there is made new again, so that
        # the clean-up does not take it away just now.
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
        """Delete deliveries that are owed no more."""
        with store_errors():
            self._deliveries.delete_many({"_id": {"$in": list(delivery_ids)}})

    def add_claimed(self, claims: Sequence[tuple[Delivery, Claim]], at: datetime) -> list[bool]:
        """Write down deliveries together with claims on their first attempts, which are about to be made.

        Such a write need not survive a crash of MongoDB: the event's message is there until the attempts have ended.

        Args:
            claims: each delivery with the claim on it.
            at: since when, by `now`.

        Returns:
            For each one whether the attempt is ours to make; it is not where the delivery is written down already.
        """
        until = at + timedelta(seconds=self._claim_s)
        documents = []
        for delivery, claim in claims:
            ours = {"log_id": claim.log_id, "retry": claim.retry, "worker": claim.worker, "at": at, "until": until}
            ours |= self._holder()
            documents.append(_write(delivery, at, has_body=True) | {"claim": ours})
        result = insert_new(self._quick, documents)
        return [place not in result.known and place not in result.faults for place in range(len(claims))]

    def claim(self, claims: Sequence[Claim]) -> list[Claimed | Blocked | Exception | None]:
        """Ask for attempts, many at a time.

        Whoever holds a claim is the only one to make an attempt of its delivery, for `claim_s` seconds on the
        server's clock, or until the lease of its process has lapsed. Workers' clocks do not matter.

        Returns:
            For each claim the delivery, if the attempt is ours to make; None, if it was made already or the delivery
            has ended; Blocked, if another worker is at it; a LookupError, if its event is not stored, or the delivery's
            document was changed by hand into none.
        """
        given_up = [self._given_up.popleft() for _ in range(len(self._given_up))]
        not_after = self.now() + self._timeout
        try:
            results = self._ask(claims, [self._take(claim, not_after) for claim in claims], given_up)
        except BaseException:
            self._given_up.extend(given_up)
            raise
        blocked = {place: one for place, one in enumerate(results) if isinstance(one, Blocked) and one.holder}
        if not blocked or self._leases is None:
            return results
        # Only here a lease is looked at: there is a second message of the same attempt, or its worker is dead.
        left_s = self._leases.find_left({one.holder for one in blocked.values() if one.holder})
        lapsed = []
        for place, one in blocked.items():
            left = left_s.get(one.holder or "", one.again_s)
            if left > 0:
                results[place] = replace(one, again_s=min(one.again_s, left))
            elif one.log_id is not None:
                lapsed.append((place, one.log_id))
        again = [claims[place] for place, _ in lapsed]
        takes = [self._take(claims[place], not_after, lapsed=log_id) for place, log_id in lapsed]
        for (place, _), result in zip(lapsed, self._ask(again, takes) if lapsed else [], strict=True):
            results[place] = result
        return results

    def _ask(
        self, claims: Sequence[Claim], takes: Sequence[UpdateOne], given_up: Sequence[tuple[str, ObjectId]] = ()
    ) -> list[Claimed | Blocked | Exception | None]:
        with store_errors():
            self._quick.bulk_write([*_release(given_up), *takes], ordered=False)
            found = {
                document["_id"]: document
                for document in self._deliveries.find({"_id": {"$in": [claim.delivery_id for claim in claims]}})
            }
            bodies = self._read_bodies(found.values())
        present = self.now()
        return [read_claimed(one, found.get(one.delivery_id), bodies, present, self._claim_s) for one in claims]

    def give_up(self, claim: Claim) -> None:
        """Note that no attempt was made on a claim, whether we have it or not: MongoDB did not say.

        Otherwise whoever comes next would take it for an attempt that was interrupted. MongoDB is told with the next
        claims.
        """
        self._given_up.append((claim.delivery_id, claim.log_id))

    def release(self, claims: Iterable[Claim]) -> None:
        """Undo claims on which no attempt was made, now: as `give_up`, where others are to claim them at once."""
        writes = _release((claim.delivery_id, claim.log_id) for claim in claims)
        if writes:
            with store_errors():
                self._quick.bulk_write(writes, ordered=False)

    def _holder(self) -> Document:
        """Return what a claim says of this process."""
        token = None if self._leases is None else self._leases.holder()
        return {} if token is None else {"holder": token}

    def _take(self, claim: Claim, not_after: datetime, lapsed: ObjectId | None = None) -> UpdateOne:
        """Return the write that makes a claim.

        Args:
            claim: which one.
            not_after: by the server's clock; later it does nothing.
            lapsed: log id of a claim that stands in the way, but whose holder's lease has lapsed; None for none.
        """
        # Claimed in the future: the server's clock has gone back. A process with a lease has its say by that.
        is_ahead = {"$gt": ["$claim.at", {"$add": ["$$NOW", _CLOCK_SLACK_MS]}]}
        is_unleased = {"$eq": [{"$type": "$claim.holder"}, "missing"]}
        is_free = {"$or": [is_over("$claim.until", _LONGEST_CLAIM_S), {"$and": [is_ahead, is_unleased]}]}
        if lapsed is not None:
            is_free = {"$or": [is_free, {"$eq": ["$claim.log_id", lapsed]}]}
        is_ours = {"$eq": ["$claim.log_id", claim.log_id]}
        # Whoever ends an attempt takes its claim away. One that is there still, and is not ours, has run out.
        is_left_over = {"$and": [{"$ne": [{"$type": "$claim"}, "missing"]}, {"$not": is_ours}]}
        moved = {"$concatArrays": [{"$cond": [{"$isArray": "$interrupted"}, "$interrupted", []]}, ["$claim"]]}
        ours = {
            "log_id": claim.log_id,
            "retry": claim.retry,
            "worker": {"$literal": claim.worker},
            "at": "$$NOW",
            "until": {"$add": ["$$NOW", int(self._claim_s * 1000)]},
            **self._holder(),
        }
        return UpdateOne(
            {
                "_id": claim.delivery_id,
                # The message of a retry may be faster than the write that says that it is due.
                "retry": {"$lte": claim.retry},
                # A server that was paused must not carry out what we have given up since.
                "$expr": {"$and": [{"$lte": ["$$NOW", not_after]}, {"$or": [is_free, is_ours]}]},
            },
            [
                {"$set": {"interrupted": {"$cond": [is_left_over, moved, {"$ifNull": ["$interrupted", "$$REMOVE"]}]}}},
                {"$set": {"claim": ours}},
            ],
        )

    def _read_bodies(self, documents: Iterable[Document]) -> dict[str, str]:
        shared = shared_ids(documents)
        if not shared:
            return {}
        found = self._events.find({"_id": {"$in": list(shared)}}, {"body": 1})
        return {event["_id"]: event["body"] for event in found if isinstance(event.get("body"), str)}

    def settle(self, logs: Iterable[COTWebhookLog]) -> None:
        """Bring the ledger up to date with attempts that were made: what is owed next, or nothing any more.

        An attempt that was interrupted changes nothing: the worker that found it is making it again. Nor does one that
        is not heeded any more.
        """
        ends: list[DeleteOne] = []
        changes: list[UpdateOne] = []
        for log in logs:
            attempt = log.details
            if attempt.error_kind is ErrorKind.INTERRUPTED:
                continue
            query = _heeded(log)
            done = {"claim": "", "interrupted": ""}
            keep = {"$set": {"held": True}, "$unset": {**done, "due_at": "", "probe": ""}}
            if attempt.kept:
                changes.append(UpdateOne(query, keep))
            elif attempt.next_at is None:
                ends.append(DeleteOne(query))
            elif attempt.probe:
                # It is kept as before. Only while it is let out: a log that was written late must not take back what
                # was let out since.
                changes.append(UpdateOne({**query, "probe": True}, keep))
            else:
                next_one = {"retry": log.retry + 1, "due_at": self.now() + (attempt.next_at - log.createdAt)}
                changes.append(UpdateOne(query, {"$set": next_one, "$unset": {**done, "held": "", "probe": ""}}))
        with store_errors():
            try:
                if changes:
                    self._deliveries.bulk_write(changes, ordered=False)
                if ends:
                    # What a crash of MongoDB forgets of these is found out: the log says that the attempt was made.
                    self._quick.bulk_write(ends, ordered=False)
            except BulkWriteError as error:
                document_errors(error)

    def is_heeded(self, log: COTWebhookLog) -> bool:
        """Tell whether an attempt may still say what comes of its delivery."""
        with store_errors():
            return self._deliveries.find_one(_heeded(log), {"_id": 1}) is not None

    def find_oldest_overdue(self, before: datetime, limit: int) -> list[Oldest]:
        """Return, of each webhook to which anything was due before an instant, since when the oldest was.

        Args:
            before: by `now`.
            limit: of how many webhooks; which ones is not said.
        """
        oldest = []
        with store_errors():
            # Bounded as if it were not, MongoDB goes from webhook to webhook in the index, whatever is owed to each.
            query = {"webhook_id": {"$gt": MinKey()}, "due_at": {"$lt": before}}
            webhook_ids = self._deliveries.distinct("webhook_id", query)
            for webhook_id in webhook_ids[:limit]:
                query = {"webhook_id": webhook_id, "due_at": {"$lt": before}}
                document = self._deliveries.find_one(query, {"company": 1, "due_at": 1}, sort=[("due_at", ASCENDING)])
                if document and isinstance(document["due_at"], datetime):
                    oldest.append(Oldest(webhook_id, document.get("company"), document["due_at"]))
        return oldest

    def find_overdue(self, before: datetime, limit: int, webhook_id: object = _ANY) -> list[PendingDelivery]:
        """Return deliveries that were due before an instant, the longest overdue first; to one webhook or to all."""
        query: Document = {"due_at": {"$lt": before}}
        if webhook_id is not _ANY:  # which may be None, in a document that somebody changed
            query["webhook_id"] = webhook_id
        with store_errors():
            documents = list(self._deliveries.find(query, PENDING_FIELDS).sort("due_at", 1).limit(limit))
        return self.read_sound(documents)

    def find(self, delivery_id: str) -> PendingDelivery | None:
        """Return what is owed of a delivery; None when nothing is."""
        with store_errors():
            document = self._deliveries.find_one({"_id": delivery_id}, PENDING_FIELDS)
        return None if document is None else read_pending(document)

    def read_sound(self, documents: Iterable[Document]) -> list[PendingDelivery]:
        """Read deliveries that are to be queued, and set aside those that somebody changed."""
        sound = []
        for document in documents:
            overdue = read_pending(document)
            if overdue is not None:
                sound.append(overdue)
            else:
                # It must not keep the others from being found, now or the next time.
                logger.error("delivery %s is set aside: somebody changed what it needs", show(document["_id"]))
                self.quarantine(document["_id"])
        return sound

    def postpone(self, delivery_ids: Sequence[str], due_at: datetime) -> None:
        """Note that the deliveries were queued again and are due from an instant on."""
        with store_errors():
            # One that a worker keeps by now is not due, and one that waits for its retry is due later.
            query = {"_id": {"$in": list(delivery_ids)}, "due_at": {"$lt": due_at}}
            self._deliveries.update_many(query, {"$set": {"due_at": due_at}})

    def quarantine(self, delivery_id: object) -> None:
        """Keep a delivery that a defect of ours stops, but never queue it by ourselves again.

        An operator who does so begins anew: no claim stands in the way, and what was interrupted is forgotten.
        """
        with store_errors():
            self._deliveries.update_one(
                {"_id": delivery_id},
                {"$unset": {"due_at": "", "claim": "", "interrupted": "", "held": "", "probe": ""}},
            )

    def forget_events(self, older_than: datetime, limit: int) -> int:
        """Delete shared events of which nothing is owed any more.

        Args:
            older_than: younger ones are left, as their deliveries may be about to be written.
            limit: how many to look at, the oldest first.

        Returns:
            How many were deleted.
        """
        with store_errors():
            query = {"created_at": {"$lt": older_than}}
            old = list(self._events.find(query, {"event_id": 1}).sort("created_at", 1).limit(limit))
            event_ids = [event.get("event_id") for event in old]
            owed = self._deliveries.distinct("event_id", {"event_id": {"$in": event_ids}})
            forgotten = [event["_id"] for event in old if event.get("event_id") not in owed]
            # Asked again: one may have been made new since, for deliveries that are about to be written.
            return self._events.delete_many({"_id": {"$in": forgotten}, **query}).deleted_count

    def count(self) -> int:
        """Return how many deliveries are owed, as the collection's own count has it."""
        with store_errors():
            return self._deliveries.estimated_document_count()


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
        "created_at": at,
    }


def _heeded(log: COTWebhookLog) -> Document:
    """Return what is true of a delivery for as long as an attempt may say what comes of it.

    The one rule for all that is written because of an attempt. A failed one has no say once its claim was taken over,
    as its process was paused, say: then it is for the new claim to say. One that succeeded has. Neither undoes what
    came after it, nor brings back a delivery that has ended.
    """
    query: Document = {"_id": log.details.delivery_id, "retry": {"$lte": log.retry}}
    if log.details.outcome != Outcome.SUCCESS:
        query["claim.log_id"] = {"$in": [log.id, None]}  # None: there is no claim
    return query


def _release(given_up: Iterable[tuple[str, ObjectId]]) -> list[UpdateOne]:
    """Return the writes that undo claims on which no attempt was made."""
    writes = []
    for delivery_id, log_id in given_up:
        writes += [
            UpdateOne({"_id": delivery_id, "claim.log_id": log_id}, {"$unset": {"claim": ""}}),
            UpdateOne(
                {"_id": delivery_id, "interrupted.log_id": log_id}, {"$pull": {"interrupted": {"log_id": log_id}}}
            ),
        ]
    return writes
