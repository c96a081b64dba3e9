"""What comes late or twice, on a real MongoDB: a delivery that ended stays ended, and what is owed is not lost."""

import queue
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest
from bson import ObjectId
from pymongo.monitoring import CommandListener

from tests.lab.logs import make_attempt, make_log
from tests.lab.receiver import Receiver
from tests.lab.reply_dropper import MongoWire, Once, ReplyDropper, name_mongodb_write
from tests.lab.samples_data import read_sample
from tests.lab.senders import new_sender
from tests.lab.stores import Documents, WorkerStores
from webhooks.delivery import accept as accept_module
from webhooks.delivery import record as record_module
from webhooks.delivery.accept import Accepting, accept
from webhooks.delivery.attempt import AttemptRunner
from webhooks.delivery.claim import claim_all
from webhooks.delivery.outcomes import Attempted, Done, Failed, ToAttempt
from webhooks.delivery.record import record
from webhooks.delivery.services import Progress
from webhooks.errors import Requeue, StoreUnavailable
from webhooks.models import COTEvent, COTWebhook, COTWebhookLog, now
from webhooks.rules.encryption import Vault
from webhooks.rules.retry import RetryPolicy
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery, DeliveryStore, PendingDelivery
from webhooks.store.gates import By
from webhooks.store.held import HeldDeliveries
from webhooks.store.leases import Leases
from webhooks.store.logs import LogQuery
from webhooks.transport.holder import CLAIM_LEASE_S, uptime
from webhooks.transport.messages import Turn
from webhooks.worker import pool, renewal

CLAIM_S = 600.0
EVENT = read_sample("event-task-create")


class Process(WorkerStores):
    """The stores of one worker, with a lease that it has renewed for long."""

    def __init__(self, database: Documents, token: str) -> None:
        self.leases = Leases(database, token)
        self.leases.renew()
        lease = {"since": {"$subtract": ["$$NOW", 60_000]}}
        database["leases"].update_one({"_id": token}, [{"$set": lease}])
        self.token = token
        super().__init__(database, CLAIM_S, self.leases)
        self.progress, self.tracer = Progress(), None
        self.attempt_runner: Any = None

    def accept(self, event: Accepting) -> list[ToAttempt] | None:
        """Take the step that accepts one event; None: it waits for its turn."""
        (accepted,) = accept(self.services, [event], Room())
        return None if accepted.outcome is None else list(accepted.attempts)

    def claim(self, delivery_id: str, retry: int = 0) -> Any:
        (found,) = claim_all(self.services, [Claim(delivery_id, retry, ObjectId(), self.token)])
        return found

    def lapse(self) -> None:
        """Make its lease look as if it had not been renewed, as when it is paused."""
        self.database["leases"].update_one({"_id": self.token}, [{"$set": {"until": {"$subtract": ["$$NOW", 1]}}}])


class Room:
    """For as many as are asked for."""

    limit = 1000

    def take(self, most: int) -> int:
        return most

    def give_back(self, count: int) -> None:
        pass


class Lanes:
    """What the broker says of a lane."""

    turn = Turn.NOW


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> Lanes:
    made = Lanes()
    monkeypatch.setattr(accept_module, "ask_turns", lambda asked, *_: lambda: [made.turn] * len(asked))
    monkeypatch.setattr(accept_module, "queue_attempts", lambda *_: None)
    monkeypatch.setattr(accept_module, "leave_lane", lambda *_: None)
    return made


@pytest.fixture
def ours(database: Documents, lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> Process:
    webhook = {**read_sample("webhook-task"), "url": "https://receiver.example/"}
    database["webhooks"].insert_one(COTWebhook.model_validate(webhook).to_bson())
    made = Process(database, "ours")
    monkeypatch.setattr(record_module, "get_services", lambda: made)
    return made


@pytest.fixture
def theirs(database: Documents) -> Process:
    return Process(database, "theirs")


def message(event_id: str = "e1") -> Accepting:
    return Accepting(event_id, EVENT, {}, makes_attempts=True)


def result(attempt: ToAttempt, **details: Any) -> COTWebhookLog:
    """Return an attempt's log; of one that succeeded, but for what is given."""
    status = 200 if details.get("outcome", "success") == "success" else 503
    made = make_attempt(
        delivery_id=attempt.delivery.delivery_id,
        event_id=attempt.delivery.event_id,
        **{"outcome": "success", "error_kind": None, "next_at": None, **details},
    )
    claim = attempt.claim
    return make_log("x", at=now(), attempt=made, retry=claim.retry, log_id=claim.log_id, status=status)


def deliver(process: Process) -> ToAttempt:
    """Have a process handle the event, with success."""
    (attempt,) = process.accept(message()) or []
    process.records.record([result(attempt)])
    return attempt


def assert_over(database: Documents, logs: int = 1) -> None:
    assert list(database["deliveries"].find()) == []
    assert database["webhooklogs"].count_documents({}) == logs


def test_twin_that_waited_for_its_turn_is_not_sent(ours: Process, theirs: Process, lanes: Lanes, database: Documents):
    """An event is queued twice; one message waits for its lane while the other is handled to its end."""
    twin = message()
    lanes.turn = Turn.SOON
    assert theirs.accept(twin) is None
    lanes.turn = Turn.NOW
    deliver(ours)
    assert theirs.accept(twin) == []
    assert_over(database)


@pytest.mark.parametrize("is_claimed", [True, False])
def test_insert_that_arrives_late_is_not_sent(ours: Process, theirs: Process, database: Documents, is_claimed: bool):
    """The way to MongoDB stalls with the first insert under way, and lets it through after another worker's success."""
    attempt = deliver(ours)
    late = Claim(attempt.delivery.delivery_id, 0, ObjectId(), "theirs")
    if is_claimed:
        theirs.deliveries.add_claimed([(attempt.delivery, late)], theirs.deliveries.now())
    else:
        theirs.deliveries.add([attempt.delivery], theirs.deliveries.now())
    theirs.lapse()
    assert ours.claim(late.delivery_id) == Done("nothing is pending"), "the sweep's message"
    assert_over(database)


def test_late_failure_makes_no_third_request(
    ours: Process, theirs: Process, database: Documents, monkeypatch: pytest.MonkeyPatch
):
    """A worker is paused with a first attempt in flight; another one takes it over, and has success."""
    (late,) = theirs.accept(message()) or []
    theirs.lapse()
    taken_over = ours.claim(late.delivery.delivery_id)
    assert isinstance(taken_over, ToAttempt)
    record(ours.services, [Attempted(taken_over, result(taken_over))])
    retries = []
    add = theirs.deliveries.add

    def add_and_pause(*arguments: Any) -> set[str]:
        """As `DeliveryStore.add`; then the retry's message is handled before the late process goes on."""
        added = add(*arguments)
        retries.append(ours.claim(late.delivery.delivery_id, 1))
        return added

    monkeypatch.setattr(theirs.deliveries, "add", add_and_pause)
    attempted = Attempted(late, result(late, outcome="failed", next_at=now() + timedelta(seconds=30)))
    record(theirs.services, [attempted], [attempted])
    assert [type(retry) for retry in retries] == [Done]
    assert ours.claim(late.delivery.delivery_id, 1) == Done("nothing is pending")
    assert_over(database, logs=2)


def test_late_last_failure_stops_no_webhook(ours: Process, theirs: Process):
    """The webhook is to stop when retries are used up; another worker had taken the attempt over."""
    (late,) = theirs.accept(message()) or []
    theirs.lapse()
    assert isinstance(ours.claim(late.delivery.delivery_id), ToAttempt)
    theirs.records.record([result(late, outcome="failed", kept=True)])
    assert ours.gates.get(late.delivery.webhook_id).is_open
    assert isinstance(ours.deliveries.find(late.delivery.delivery_id), PendingDelivery)


def test_delivery_that_waits_for_an_operator_has_not_ended(ours: Process):
    """Its last attempt's log says that there is no next one; then an operator has it made anew."""
    (attempt,) = ours.accept(message()) or []
    ours.records.record([result(attempt, outcome="failed", kept=True)])
    head = ours.held.restart_head(attempt.delivery.webhook_id)
    assert head is not None
    ours.gates.resume(attempt.delivery.webhook_id)
    assert ours.held.release([head], ours.deliveries.now())
    assert isinstance(ours.claim(head.delivery_id), ToAttempt)


def test_pause_holds_for_what_waited_for_its_turn(ours: Process, lanes: Lanes, database: Documents):
    event = message()
    lanes.turn = Turn.SOON
    assert ours.accept(event) is None
    (delivery,) = event.pending
    ours.gates.pause(delivery.webhook_id, By.OPERATOR, "test")
    lanes.turn = Turn.NOW
    assert ours.accept(event) == []
    assert [one["held"] for one in database["deliveries"].find()] == [True]


def ordered(number: int, webhook_id: ObjectId, company: ObjectId) -> Delivery:
    return Delivery(f"msg_{number}", f"e{number}", webhook_id, company, "label", "{}", is_ordered=True)


def test_line_goes_on_behind_what_waits_when_the_gates_are_lost(ours: Process, database: Documents):
    """MongoDB is restored from a backup without the collection ``gates``."""
    webhook_id, company = ObjectId(), ObjectId()
    for number in range(10):
        if number == 5:
            database["gates"].drop()
        ours.records.accept([ordered(number, webhook_id, company)])
    line = [one.delivery_id for one in ours.held.find_held(webhook_id, 100)]
    assert line == [f"msg_{number}" for number in range(10)]


def test_release_whose_reply_is_lost_is_known_to_have_been_made(ours: Process, database: Documents, mongodb_url: str):
    """Otherwise the next delivery of a line was released without a message, and waited for the sweep."""
    webhook_id, company = ObjectId(), ObjectId()
    ours.records.accept([ordered(number, webhook_id, company) for number in range(2)])
    dropping = Once("update deliveries")
    with (
        ReplyDropper(urlsplit(mongodb_url).port or 0, MongoWire(), name_mongodb_write, dropping) as front,
        pymongo.MongoClient[dict[str, Any]]("127.0.0.1", front.port, tz_aware=True) as client,
    ):
        held = HeldDeliveries(client[database.name], ours.deliveries)
        head = held.release_next(webhook_id, ours.deliveries.now())
    assert head is not None
    assert head.delivery_id == "msg_0"
    assert dropping.name == ""


def test_end_whose_reply_is_lost_is_written_again(ours: Process, database: Documents, mongodb_url: str):
    """Otherwise each log of the batch was written again by itself."""
    ours.deliveries.add([Delivery("msg_1", "e", ObjectId(), ObjectId(), "label", "{}")], now())
    success = make_log(attempt=make_attempt(outcome="success", error_kind=None), status=200, retry=0)
    dropping = Once("delete deliveries")
    with (
        ReplyDropper(urlsplit(mongodb_url).port or 0, MongoWire(), name_mongodb_write, dropping) as front,
        pymongo.MongoClient[dict[str, Any]]("127.0.0.1", front.port, tz_aware=True) as client,
    ):
        DeliveryStore(client[database.name], CLAIM_S, 10).settle([success])
    assert database["deliveries"].count_documents({}) == 0
    assert dropping.name == ""


def test_claim_that_is_too_old_makes_no_request_and_is_given_up(
    ours: Process, database: Documents, monkeypatch: pytest.MonkeyPatch
):
    """A worker is paused between its claim and the request, for longer than its claim is sure to hold."""
    (attempt,) = ours.accept(message()) or []
    old = replace(attempt, claim=replace(attempt.claim, asked_at=uptime() - 60))
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with Receiver() as receiver:
        webhook = old.webhook and old.webhook.model_copy(update={"url": receiver.url})
        sender = new_sender()
        ours.attempt_runner = AttemptRunner(sender=sender, policy=RetryPolicy(30, 3), vault=Vault([]))
        monkeypatch.setattr(pool, "get_services", lambda: ours)
        sending = pool.BatchPool.__new__(pool.BatchPool)
        sending._ended = ended
        job: Any = SimpleNamespace(outcome=None)
        sending._attempt([pool._Send(job, attempt=replace(old, webhook=webhook))])
        outcome = ended.get(timeout=10).job.outcome
        sender.close()
    assert receiver.requests == []
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Requeue)
    again = ours.deliveries.claim([Claim(attempt.delivery.delivery_id, 0, ObjectId())])[0]
    assert isinstance(again, Claimed)
    assert again.interrupted == ()


def test_delivery_whose_claim_was_given_up_with_a_lost_reply_is_free_when_it_is_queued(
    ours: Process, theirs: Process, monkeypatch: pytest.MonkeyPatch
):
    """The claim stood until this worker claimed something else; then another one logged an interrupted attempt."""
    written = ours.records.accept_claimed

    def lose_reply(claims: Any) -> Any:
        written(claims)
        raise StoreUnavailable("MongoDB is not reachable")

    event = message()
    with monkeypatch.context() as patched:
        patched.setattr(ours.records, "accept_claimed", lose_reply)
        with pytest.raises(StoreUnavailable):
            ours.accept(event)
    (delivery,) = event.pending
    assert ours.accept(event) == [], "it is queued"
    assert isinstance(theirs.claim(delivery.delivery_id), ToAttempt)


def test_claim_that_was_given_up_is_undone_with_the_next_renewal_of_the_lease(
    ours: Process, theirs: Process, monkeypatch: pytest.MonkeyPatch
):
    """A worker without work does not claim: what it gave up was blocked until its time was over, then interrupted."""
    (attempt,) = ours.accept(message()) or []
    ours.deliveries.give_up(attempt.claim)
    monkeypatch.setattr(renewal, "get_services", lambda: ours)
    renewal._renew_in_mongodb("ours")
    assert isinstance(theirs.claim(attempt.delivery.delivery_id), ToAttempt)


class OnDelete(CommandListener):
    """Does something when a collection is about to be deleted from."""

    def __init__(self, collection: str, do: Callable[[], object]) -> None:
        self._collection = collection
        self._do = do

    def started(self, event: Any) -> None:
        if event.command_name == "delete" and event.command["delete"] == self._collection:
            self._do()

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def test_shared_event_that_is_used_again_is_not_swept_away(ours: Process, database: Documents, mongodb_url: str):
    """The sweep finds it, and then a fan-out uses it before the sweep deletes it."""
    company = ObjectId()
    two = [Delivery(f"msg_{number}", "e", ObjectId(), company, "label", '{"e":1}') for number in range(2)]
    ours.deliveries.add(two, now())
    database["deliveries"].delete_many({})
    database["events"].update_many({}, {"$set": {"created_at": now() - timedelta(minutes=11)}})
    listener = OnDelete("events", lambda: ours.deliveries.add(two, ours.deliveries.now()))
    with pymongo.MongoClient[dict[str, Any]](mongodb_url, tz_aware=True, event_listeners=[listener]) as client:
        sweeping = DeliveryStore(client[database.name], CLAIM_S, 10)
        sweeping.forget_events(sweeping.now() - timedelta(minutes=10), 100)
    found = ours.deliveries.claim([Claim(one.delivery_id, 0, ObjectId()) for one in two])
    assert [type(one) for one in found] == [Claimed, Claimed]


@pytest.mark.parametrize("has_lease", [True, False])
def test_retry_that_comes_before_the_end_of_the_attempt_is_written_looks_again_soon(
    ours: Process, database: Documents, has_lease: bool
):
    """``WEBHOOKS_RETRY_DELAY_S=0``: it comes at once, and must not wait for the claim of the attempt before to end."""
    if not has_lease:
        ours.deliveries = DeliveryStore(database, CLAIM_S, 10)
    delivery = Delivery("msg_1", "e", ObjectId(), ObjectId(), "label", "{}")
    ours.deliveries.add([delivery], now())
    first, second = (ours.deliveries.claim([Claim("msg_1", retry, ObjectId())])[0] for retry in (0, 1))
    assert isinstance(first, Claimed)
    assert isinstance(second, Blocked)
    assert second.again_s < 1


def test_sweep_does_not_bring_a_retry_forward(ours: Process):
    """A delivery that it found overdue fails just now, and waits for its retry when the sweep's note arrives."""
    delivery = Delivery("msg_1", "e", ObjectId(), ObjectId(), "label", "{}")
    ours.deliveries.add([delivery], now() - timedelta(hours=1))
    seen_at = ours.deliveries.now()
    claim = Claim("msg_1", 0, ObjectId())
    assert isinstance(ours.deliveries.claim([claim])[0], Claimed)
    next_at = now() + timedelta(hours=1)
    ours.deliveries.settle([result(ToAttempt(delivery, claim, None), outcome="failed", next_at=next_at)])
    ours.deliveries.postpone(["msg_1"], seen_at)
    assert ours.deliveries.find_overdue(seen_at + timedelta(minutes=30), 10) == []


# ── MongoDB's clock goes back ───────────────────────────────────────────────────────────────────────────────────────
def go_back(database: Documents, minutes: int = 30) -> None:
    """Make all that was written look as if MongoDB's clock had gone back since."""
    ahead = {name: {"$add": [f"${name}", minutes * 60_000]} for name in ("claim.at", "claim.until")}
    database["deliveries"].update_many({}, [{"$set": ahead}])
    for field in ("since", "until"):
        changed = {field: {"$add": [f"${field}", minutes * 60_000]}}
        database["leases"].update_many({field: {"$exists": True}}, [{"$set": changed}])


@pytest.mark.parametrize("has_lease", [True, False])
def test_claim_of_a_dead_worker_is_free_although_the_clock_went_back(
    ours: Process, theirs: Process, database: Documents, has_lease: bool
):
    (attempt,) = theirs.accept(message()) or []
    if not has_lease:
        database["deliveries"].update_one({}, {"$unset": {"claim.holder": ""}})
    go_back(database)
    if has_lease:  # it is a minute later, in which the dead one has not renewed its lease
        ours.leases.renew()
        database["leases"].update_one({"_id": "ours"}, [{"$set": {"since": {"$subtract": ["$$NOW", 60_000]}}}])
    assert isinstance(ours.claim(attempt.delivery.delivery_id), ToAttempt)


def test_claim_of_a_live_worker_holds_although_the_clock_went_back(ours: Process, theirs: Process, database: Documents):
    (attempt,) = theirs.accept(message()) or []
    go_back(database)
    claim = Claim(attempt.delivery.delivery_id, 0, ObjectId())
    assert isinstance(ours.deliveries.claim([claim])[0], Blocked), "ours has not renewed since"
    ours.leases.renew()
    assert isinstance(ours.deliveries.claim([claim])[0], Blocked), "theirs is about to"
    theirs.leases.renew()
    database["leases"].update_one({"_id": "ours"}, [{"$set": {"since": {"$subtract": ["$$NOW", 60_000]}}}])
    found = ours.deliveries.claim([claim])[0]
    assert isinstance(found, Blocked)
    assert 0 < found.again_s <= CLAIM_LEASE_S


def test_job_of_a_dead_worker_is_free_although_the_clock_went_back(ours: Process, theirs: Process, database: Documents):
    assert theirs.leases.take_job("sweep", 22)
    assert not ours.leases.take_job("sweep", 22)
    go_back(database)
    assert ours.leases.take_job("sweep", 22)
    assert not theirs.leases.take_job("sweep", 22)


def test_retry_after_holds_although_the_workers_clock_is_behind(ours: Process):
    (attempt,) = ours.accept(message()) or []
    log = result(attempt, outcome="failed", retry_after_s=60, next_at=now() + timedelta(seconds=60))
    behind = {"createdAt": log.createdAt - timedelta(hours=1)}
    ours.records.record([log.model_copy(update=behind)])
    assert ours.gates.get(attempt.delivery.webhook_id).is_held_back(ours.deliveries.now())


# ── What MongoDB cannot hold ────────────────────────────────────────────────────────────────────────────────────────
def test_success_that_cannot_be_logged_whole_is_logged_cut_and_not_repeated(ours: Process, database: Documents):
    """An event of 4 MB of JSON is 25 MB in a log; its delivery was written down before such events were refused."""
    (attempt,) = ours.accept(message()) or []
    log = result(attempt)
    event = COTEvent.model_validate({**EVENT, "event": "edit", "data": {"a": [0] * 2_000_000}, "diff": {}})
    assert ours.records.record([log.model_copy(update={"event": event})]) == [None]
    assert_over(database)
    (stored,) = ours.logs.read(LogQuery(), 10)
    assert (stored.status, stored.event.event, stored.event.data) == (200, "edit", None)
    assert stored.details.event_cut
    theirs = Process(database, "theirs")
    assert theirs.accept(message()) == [], "its message comes again"
