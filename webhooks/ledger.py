"""The collections ``deliveries`` and ``events``: what is still owed.

Owns one document per delivery that has not ended, with its next attempt; it is written before the event's message is
acked and deleted when the delivery ends. An event that goes to several webhooks is stored once, beside. The ledger is
the truth: whatever it says is owed and overdue is queued again (`sweeper`), and a message of which it says that
nothing is owed is dropped, so that what is queued twice is sent once.

``deliveries``: ``_id`` (the delivery's id), ``event_id``, ``webhook_id``, ``company``, ``label``, ``body`` (absent
where the event is stored beside), ``retry`` (number of the next attempt), ``due_at`` (absent where it was set aside or
is kept), ``held`` (true: it is kept, has no message, and waits to be let out: see `kept`), ``place`` (in the line of an
ordered webhook), ``probe`` (true: it was let out to try a paused endpoint), ``created_at``, and while an attempt is
made its ``claim``: ``log_id``, ``retry``, ``worker``, ``at``, ``until``. A claim that ran out without an end on record
moves to the list ``interrupted``. ``events``: ``_id`` (the event's id and
its company, as a producer may choose the ids of its events), ``event_id``, ``body``, ``created_at``. Documents are read
with care: one that somebody changed by hand must not spoil those that are read beside it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bson import MinKey, ObjectId
from pymongo import ASCENDING, DeleteOne, IndexModel, ReturnDocument, UpdateOne, WriteConcern
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError

from webhooks.errors import ErrorKind
from webhooks.lanes import lane_of_webhook
from webhooks.models import COTWebhookLog
from webhooks.models.wire import show
from webhooks.mongo import Document, document_errors, insert_new, store_errors

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


#: More than any setting makes of a claim and of a lease: what claims to hold longer was changed by hand, or the
#: server's clock has gone back. It is over.
_LONGEST_CLAIM_S = 3_600
_LONGEST_LEASE_S = 10_000

#: Claims given up that are remembered while MongoDB is away. Those beyond are taken for interrupted attempts.
_MAX_GIVEN_UP = 100_000

#: Any webhook.
_ANY = object()

#: What a delivery needs to be attempted. Anybody may have written the document.
_FIELDS: Mapping[str, type] = {
    "retry": int,
    "event_id": str,
    "webhook_id": ObjectId,
    "company": ObjectId,
    "label": str,
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event owed to one webhook."""

    delivery_id: str
    event_id: str
    webhook_id: ObjectId
    company: ObjectId
    #: What people see of it in Flower and logs: which event goes to which webhook. Holds no payload.
    label: str
    #: The event's JSON text: what is sent, byte for byte.
    body: str = field(repr=False)
    #: Whether its webhook's events arrive in order. Not stored: the webhook has it.
    is_ordered: bool = False
    #: Its place in the line of an ordered webhook; None: it stands in none.
    place: int | None = None
    #: Whether it is written down as one that is kept.
    is_held: bool = False
    #: Attempts per second of its webhook, and those in a burst; None: no limit, or not known. Not stored likewise.
    rate: tuple[float, int] | None = None
    #: Why its webhook could not be used when the event was accepted, without values; None: it could.
    unusable: str | None = None

    @property
    def lane(self) -> str:
        """What the broker keeps apart from others: one webhook's attempts."""
        return lane_of_webhook(self.company, self.webhook_id)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a ``webhooks.send`` message asks for: to make one attempt."""

    delivery_id: str
    #: The attempt's number, from 0.
    retry: int
    #: The ``_id`` that the attempt's log will have. Asking again with it is the same claim.
    log_id: ObjectId
    #: Who makes the attempt: Celery's node name; None when it is not known.
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An attempt that was begun, and of whose end nothing is known here: its worker died, most likely."""

    #: The ``_id`` that its log has, if it was written after all.
    log_id: ObjectId
    retry: int
    worker: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery whose next attempt is ours to make."""

    delivery: Delivery
    #: Since when; None, if it was set aside.
    due_at: datetime | None
    #: Attempts since the last one that ended, oldest first.
    interrupted: tuple[Interrupted, ...]
    #: The claim's.
    log_id: ObjectId
    #: When it was written down; None, if somebody changed that.
    created_at: datetime | None = None
    #: Whether it was let out to try a paused endpoint.
    is_probe: bool = False


class Blocked:
    """Somebody else is making an attempt of this delivery, or was until a moment ago."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A delivery that is to be queued: its message is lost, or it was kept and has none."""

    delivery_id: str
    label: str
    retry: int
    company: ObjectId
    webhook_id: ObjectId

    @property
    def lane(self) -> str:
        """As `Delivery.lane`."""
        return lane_of_webhook(self.company, self.webhook_id)


#: What `read_overdue` reads.
OVERDUE_FIELDS = {"label": 1, "retry": 1, "company": 1, "webhook_id": 1}


def read_overdue(document: Document) -> Overdue | None:
    """Read what is needed to queue a delivery; None when somebody changed it."""
    delivery_id, label, retry, company, webhook_id = (
        document.get(field) for field in ("_id", "label", "retry", "company", "webhook_id")
    )
    if not isinstance(delivery_id, str) or not isinstance(label, str) or not isinstance(retry, int) or retry < 0:
        return None
    if not isinstance(company, ObjectId) or not isinstance(webhook_id, ObjectId):
        return None
    return Overdue(delivery_id, label, retry, company, webhook_id)


@dataclass(frozen=True, slots=True)
class Oldest:
    """The delivery to a webhook that has been due for the longest time. Its ids may be anything."""

    webhook_id: object
    company: object
    due_at: datetime


class Ledger:
    """Keeps what is owed. Every method raises StoreUnavailable when MongoDB cannot serve us now."""

    def __init__(
        self,
        database: Database[Document],
        claim_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use a database.

        Args:
            database: where.
            claim_s: seconds that a claim holds: longer than any attempt with the writing of its log, and shorter than
                the time after which a dead worker's message comes back.
            timeout_s: seconds within which MongoDB answers or is given up: what it does later is wanted by nobody.
            clock: seconds that never jump.
        """
        self._clock = clock
        #: MongoDB's time, and ours when we asked for it; None before.
        self._asked: tuple[datetime, float] | None = None
        self._deliveries = database["deliveries"]
        self._events = database["events"]
        self._leases = database["leases"]
        # For what a crash of MongoDB may forget, as that is found out or costs one attempt made twice: its journal need
        # not be waited for.
        self._quick = self._deliveries.with_options(write_concern=WriteConcern(w=1))
        self._claim_ms = int(claim_s * 1000)
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

    def add(self, deliveries: Iterable[Delivery], at: datetime) -> None:
        """Write down deliveries that are owed; one that is written down already is left as it is.

        An event that several of them share is stored once.

        Args:
            deliveries: of one event or of several.
            at: since when, by `now`.
        """
        by_event: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_event.setdefault(_shared_id(delivery.event_id, delivery.company), []).append(delivery)
        shared = [same for same in by_event.values() if len(same) > 1]
        # The events first: a delivery must never be without its body. One that is there is made new again, so that
        # the clean-up does not take it away just now.
        if shared:
            fresh = [
                {"$set": {"event_id": same[0].event_id, "body": same[0].body, "created_at": at}} for same in shared
            ]
            keys = [{"_id": _shared_id(same[0].event_id, same[0].company)} for same in shared]
            with store_errors():
                self._events.bulk_write(
                    [UpdateOne(key, change, upsert=True) for key, change in zip(keys, fresh, strict=True)],
                    ordered=False,
                )
        documents = [_write(delivery, at, has_body=len(same) == 1) for same in by_event.values() for delivery in same]
        insert_new(self._deliveries, documents)

    def add_claimed(self, claims: Sequence[tuple[Delivery, Claim]], at: datetime) -> list[bool]:
        """Write down deliveries together with claims on their first attempts, which are about to be made.

        Such a write need not survive a crash of MongoDB: the event's message is there until the attempts have ended.

        Args:
            claims: each delivery with the claim on it.
            at: since when, by `now`.

        Returns:
            For each one whether the attempt is ours to make; it is not where the delivery is written down already.
        """
        until = at + timedelta(milliseconds=self._claim_ms)
        documents = []
        for delivery, claim in claims:
            ours = {"log_id": claim.log_id, "retry": claim.retry, "worker": claim.worker, "at": at, "until": until}
            documents.append(_write(delivery, at, has_body=True) | {"claim": ours})
        result = insert_new(self._quick, documents)
        return [place not in result.known and place not in result.faults for place in range(len(claims))]

    def claim(self, claims: Sequence[Claim]) -> list[Claimed | Blocked | Exception | None]:
        """Ask for attempts, many at a time.

        Whoever holds a claim is the only one to make an attempt of its delivery, for `claim_s` seconds on the
        server's clock, so that workers' clocks do not matter.

        Returns:
            For each claim the delivery, if the attempt is ours to make; None, if it was made already or the delivery
            has ended; Blocked, if somebody else is at it; a LookupError, if its event is not stored, or somebody
            changed the delivery's document into none.
        """
        given_up = [self._given_up.popleft() for _ in range(len(self._given_up))]
        try:
            not_after = self.now() + self._timeout
            with store_errors():
                takes = [self._take(claim, not_after) for claim in claims]
                self._quick.bulk_write([*_release(given_up), *takes], ordered=False)
        except BaseException:
            self._given_up.extend(given_up)
            raise
        with store_errors():
            found = {
                document["_id"]: document
                for document in self._deliveries.find({"_id": {"$in": [claim.delivery_id for claim in claims]}})
            }
            bodies = self._read_bodies(found.values())
        return [self._judge(claim, found.get(claim.delivery_id), bodies) for claim in claims]

    def give_up(self, claim: Claim) -> None:
        """Note that no attempt was made on a claim, whether we have it or not: MongoDB did not say.

        Otherwise whoever comes next would take it for an attempt that was interrupted. MongoDB is told with the next
        claims.
        """
        self._given_up.append((claim.delivery_id, claim.log_id))

    def _take(self, claim: Claim, not_after: datetime) -> UpdateOne:
        is_free = _is_over("$claim.until", _LONGEST_CLAIM_S)
        is_ours = {"$eq": ["$claim.log_id", claim.log_id]}
        # Whoever ends an attempt takes its claim away. One that is there still, and is not ours, has run out.
        is_left_over = {"$and": [{"$ne": [{"$type": "$claim"}, "missing"]}, {"$not": is_ours}]}
        moved = {"$concatArrays": [{"$cond": [{"$isArray": "$interrupted"}, "$interrupted", []]}, ["$claim"]]}
        ours = {
            "log_id": claim.log_id,
            "retry": claim.retry,
            "worker": {"$literal": claim.worker},
            "at": "$$NOW",
            "until": {"$add": ["$$NOW", self._claim_ms]},
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
        shared = {
            _shared_id(document.get("event_id"), document.get("company"))
            for document in documents
            if "body" not in document
        }
        if not shared:
            return {}
        found = self._events.find({"_id": {"$in": list(shared)}}, {"body": 1})
        return {event["_id"]: event["body"] for event in found if isinstance(event.get("body"), str)}

    def _judge(
        self, claim: Claim, document: Document | None, bodies: dict[str, str]
    ) -> Claimed | Blocked | Exception | None:
        if document is None:
            return None
        wrong = [field for field, kind in _FIELDS.items() if not isinstance(document.get(field), kind)]
        if wrong:
            return LookupError(f"delivery {claim.delivery_id} was changed by hand: {', '.join(wrong)}")
        if document["retry"] > claim.retry:
            return None
        held = document.get("claim")
        if not isinstance(held, dict) or held.get("log_id") != claim.log_id:
            return Blocked()
        shared_id = _shared_id(document["event_id"], document["company"])
        body = document["body"] if "body" in document else bodies.get(shared_id)
        if not isinstance(body, str):
            return LookupError(f"event {document['event_id']} is not stored")
        delivery = Delivery(
            delivery_id=claim.delivery_id,
            event_id=document["event_id"],
            webhook_id=document["webhook_id"],
            company=document["company"],
            label=document["label"],
            body=body,
            place=place if isinstance(place := document.get("place"), int) else None,
            is_held=document.get("held") is True,
            unusable=unusable if isinstance(unusable := document.get("unusable"), str) else None,
        )
        due_at, before, created_at = (document.get(field) for field in ("due_at", "interrupted", "created_at"))
        interrupted = [_read_interrupted(old) for old in before] if isinstance(before, list) else []
        return Claimed(
            delivery,
            due_at if isinstance(due_at, datetime) else None,
            tuple(old for old in interrupted if old is not None),
            claim.log_id,
            created_at if isinstance(created_at, datetime) else None,
            document.get("probe") is True,
        )

    def settle(self, logs: Iterable[COTWebhookLog]) -> None:
        """Bring the ledger up to date with attempts that were made: what is owed next, or nothing any more.

        An attempt that was interrupted changes nothing: whoever found it is making it again.
        """
        ends: list[DeleteOne] = []
        changes: list[UpdateOne] = []
        for log in logs:
            attempt = log.details
            if attempt.error_kind is ErrorKind.INTERRUPTED:
                continue
            # Never back: a log that was written late must not undo what came after it.
            query = {"_id": attempt.delivery_id, "retry": {"$lte": log.retry}}
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

    def take_lease(self, name: str, owner: str, seconds: float) -> bool:
        """Try to be the one worker that does something for some time, by the server's clock.

        Returns:
            Whether the lease is the owner's now.
        """
        is_free = {"$or": [_is_over("$until", _LONGEST_LEASE_S), {"$eq": ["$owner", owner]}]}
        until = {"$add": ["$$NOW", int(seconds * 1000)]}
        taken = {
            "owner": {"$cond": [is_free, owner, "$owner"]},
            "until": {"$cond": [is_free, until, "$until"]},
        }
        with store_errors():
            try:
                lease = self._leases.find_one_and_update(
                    {"_id": name}, [{"$set": taken}], upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:  # two were the first at the same time; the other one was faster
                return False
            return bool(lease) and lease.get("owner") == owner

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

    def find_overdue(self, before: datetime, limit: int, webhook_id: object = _ANY) -> list[Overdue]:
        """Return deliveries that were due before an instant, the longest overdue first; to one webhook or to all."""
        query: Document = {"due_at": {"$lt": before}}
        if webhook_id is not _ANY:  # which may be None, in a document that somebody changed
            query["webhook_id"] = webhook_id
        with store_errors():
            documents = list(self._deliveries.find(query, OVERDUE_FIELDS).sort("due_at", 1).limit(limit))
        return self.read_sound(documents)

    def find(self, delivery_id: str) -> Overdue | None:
        """Return what is owed of a delivery; None when nothing is."""
        with store_errors():
            document = self._deliveries.find_one({"_id": delivery_id}, OVERDUE_FIELDS)
        return None if document is None else read_overdue(document)

    def read_sound(self, documents: Iterable[Document]) -> list[Overdue]:
        """Read deliveries that are to be queued, and set aside those that somebody changed."""
        sound = []
        for document in documents:
            overdue = read_overdue(document)
            if overdue is not None:
                sound.append(overdue)
            else:
                # It must not keep the others from being found, now or the next time.
                logger.error("delivery %s is set aside: somebody changed what it needs", show(document["_id"]))
                self.set_aside(document["_id"])
        return sound

    def postpone(self, delivery_ids: Sequence[str], due_at: datetime) -> None:
        """Note that the deliveries were queued again and are due from an instant on."""
        with store_errors():
            # One that a worker keeps by now is not due.
            query = {"_id": {"$in": list(delivery_ids)}, "due_at": {"$exists": True}}
            self._deliveries.update_many(query, {"$set": {"due_at": due_at}})

    def set_aside(self, delivery_id: object) -> None:
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
            return self._events.delete_many({"_id": {"$in": forgotten}}).deleted_count

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


def _is_over(until: str, longest_s: float) -> Document:
    """Return the expression that says whether an instant is not ahead, or too far ahead to be one of ours."""
    limit = {"$add": ["$$NOW", int(longest_s * 1000)]}
    return {"$or": [{"$lte": [{"$ifNull": [until, "$$NOW"]}, "$$NOW"]}, {"$gt": [until, limit]}]}


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


def _read_interrupted(old: object) -> Interrupted | None:
    """Read an entry of the list; None for one that somebody put there by hand."""
    if not isinstance(old, dict):
        return None
    log_id, retry, worker, at = (old.get(field) for field in ("log_id", "retry", "worker", "at"))
    if not isinstance(log_id, ObjectId) or not isinstance(retry, int) or not isinstance(at, datetime):
        return None
    return Interrupted(log_id, retry, worker if isinstance(worker, str) else None, at)


def _shared_id(event_id: object, company: object) -> str:
    return f"{event_id}/{company}"
