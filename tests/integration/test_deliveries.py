"""The ledger and the group commit, on a real MongoDB."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from tests.lab.logs import make_attempt, make_log
from webhooks.delivery.records import DeliveryRecords
from webhooks.models import now
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery, DeliveryStore
from webhooks.store.gates import GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.logs import LogStore
from webhooks.store.webhooks import WebhookStore

Documents = Database[dict[str, Any]]
CLAIM_S = 1.0
TIMEOUT_S = 10.0
COMPANY = ObjectId()


@pytest.fixture
def ledger(database: Documents) -> DeliveryStore:
    made = DeliveryStore(database, CLAIM_S, TIMEOUT_S)
    made.ensure_indexes()
    return made


def make_records(database: Documents, ledger: DeliveryStore) -> DeliveryRecords:
    gates, webhooks = GateStore(database), WebhookStore(database)
    return DeliveryRecords(ledger, HeldDeliveries(database, ledger), LogStore(database), gates, webhooks)


def delivery(number: int, event_id: str = "e") -> Delivery:
    return Delivery(f"msg_{number}", event_id, ObjectId(), COMPANY, f"label {number}", f'{{"event":"{event_id}"}}')


def claim_one(
    ledger: DeliveryStore, number: int = 1, retry: int = 0, log_id: ObjectId | None = None
) -> Claimed | Blocked | None:
    (result,) = ledger.claim([Claim(f"msg_{number}", retry, log_id or ObjectId(), "worker@host")])
    assert not isinstance(result, Exception)
    return result


def failed(number: int, retry: int, *, is_last: bool = False, log_id: ObjectId | None = None) -> Any:
    attempt = make_attempt(
        delivery_id=f"msg_{number}", event_id="e", next_at=None if is_last else now() + timedelta(seconds=30)
    )
    return make_log("x", attempt=attempt, retry=retry, log_id=log_id or ObjectId())


def succeeded(number: int, retry: int) -> Any:
    attempt = make_attempt(delivery_id=f"msg_{number}", event_id="e", outcome="success", error_kind=None)
    return make_log(attempt=attempt, status=200, retry=retry, log_id=ObjectId())


def test_event_of_one_webhook_is_stored_with_its_delivery(ledger: DeliveryStore, database: Documents):
    one = delivery(1)
    ledger.add([one], now())
    assert database["events"].count_documents({}) == 0
    claimed = claim_one(ledger)
    assert isinstance(claimed, Claimed)
    assert claimed.delivery == one


def test_reason_of_an_unusable_webhook_is_stored_with_its_delivery(ledger: DeliveryStore):
    one = replace(delivery(1), unusable="url: it holds credentials")
    ledger.add([one], now())
    claimed = claim_one(ledger)
    assert isinstance(claimed, Claimed)
    assert claimed.delivery == one


def test_event_of_many_webhooks_is_stored_once(ledger: DeliveryStore, database: Documents):
    many = [delivery(number) for number in range(1000)]
    ledger.add(many, now())
    assert database["events"].count_documents({}) == 1
    assert database["deliveries"].count_documents({"body": {"$exists": True}}) == 0
    claimed = ledger.claim([Claim(one.delivery_id, 0, ObjectId()) for one in many])
    assert [c.delivery for c in claimed if isinstance(c, Claimed)] == many


def test_delivery_added_twice_is_one_and_keeps_its_state(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(1)], now())
    ledger.settle([failed(1, 0)])
    ledger.add([delivery(1), delivery(2)], now())
    assert [d["retry"] for d in database["deliveries"].find().sort("_id", 1)] == [1, 0]


def test_attempt_is_made_by_one_claim_at_a_time(ledger: DeliveryStore):
    ledger.add([delivery(1)], now())
    a = ObjectId()
    first, second = ledger.claim([Claim("msg_1", 0, a), Claim("msg_1", 0, ObjectId())])
    assert isinstance(first, Claimed)
    assert isinstance(second, Blocked)
    assert isinstance(claim_one(ledger, log_id=a), Claimed), "asked again, it is still the same claim"
    time.sleep(CLAIM_S + 0.1)
    assert isinstance(claim_one(ledger), Claimed), "the claim of a dead worker runs out"
    assert isinstance(claim_one(ledger, log_id=a), Blocked)


def test_attempt_whose_claim_ran_out_is_known_as_interrupted_until_one_ends(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(1)], now())
    log_ids = [ObjectId() for _ in range(3)]
    claimed = None
    for begun, log_id in enumerate(log_ids):
        claimed = claim_one(ledger, log_id=log_id)
        assert isinstance(claimed, Claimed)
        assert [old.log_id for old in claimed.interrupted] == log_ids[:begun]
        assert claim_one(ledger, log_id=log_id) == claimed, "asked again, it is still the same claim"
        time.sleep(CLAIM_S + 0.1)
    assert isinstance(claimed, Claimed)
    old = claimed.interrupted[0]
    assert (old.retry, old.worker) == (0, "worker@host")
    assert abs(old.started_at - now()) < timedelta(seconds=10 * CLAIM_S)
    ledger.settle([failed(1, 0, log_id=claimed.log_id)])
    claimed = claim_one(ledger, retry=1)
    assert isinstance(claimed, Claimed)
    assert claimed.interrupted == ()
    ledger.settle([failed(1, 1, is_last=True, log_id=claimed.log_id)])
    assert database["deliveries"].count_documents({}) == 0


def test_claim_that_was_given_up_is_no_interrupted_attempt(ledger: DeliveryStore):
    ledger.add([delivery(1), delivery(2)], now())
    for number in (1, 2):
        given_up = Claim(f"msg_{number}", 0, ObjectId())
        ledger.claim([given_up])
        if number == 2:
            time.sleep(CLAIM_S + 0.1)
            assert isinstance(claim_one(ledger, 2), Claimed)  # somebody was faster, and took it for interrupted
        ledger.give_up(given_up)
    free = claim_one(ledger, 1)
    assert isinstance(free, Claimed), "at once"
    assert free.interrupted == ()
    time.sleep(CLAIM_S + 0.1)
    later = claim_one(ledger, 2)
    assert isinstance(later, Claimed)
    assert len(later.interrupted) == 1, "the one that somebody made"


def test_claim_that_mongodb_carries_out_too_late_is_none(database: Documents):
    ledger = DeliveryStore(database, CLAIM_S, timeout_s=-1)
    ledger.add([delivery(1)], now())
    assert isinstance(claim_one(ledger), Blocked)
    assert database["deliveries"].count_documents({"claim": {"$exists": True}}) == 0


def test_delivery_that_was_set_aside_begins_anew(ledger: DeliveryStore):
    ledger.add([delivery(1)], now())
    assert isinstance(claim_one(ledger), Claimed)
    ledger.quarantine("msg_1")
    claimed = claim_one(ledger)
    assert isinstance(claimed, Claimed)
    assert claimed.interrupted == ()


def test_log_of_an_interrupted_attempt_settles_nothing_and_gives_way_to_the_real_one(
    ledger: DeliveryStore, database: Documents
):
    records = make_records(database, ledger)
    records.accept([delivery(1)])
    real = failed(1, 0)
    attempt = make_attempt(delivery_id="msg_1", event_id="e", error_kind="interrupted", next_at=now())
    guess = make_log("interrupted", attempt=attempt, retry=0, log_id=real.id)
    records.record([guess])
    assert [d["retry"] for d in database["deliveries"].find()] == [0]
    records.record([real])
    records.record([guess])
    assert [log["response"] for log in database["webhooklogs"].find()] == ["x"]
    assert [d["retry"] for d in database["deliveries"].find()] == [1]


def test_claim_of_an_attempt_that_was_made_gets_nothing(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(1)], now())
    a, b = ObjectId(), ObjectId()
    assert isinstance(claim_one(ledger, log_id=a), Claimed)
    ledger.settle([failed(1, 0, log_id=a)])
    assert claim_one(ledger, retry=0) is None
    assert isinstance(claim_one(ledger, retry=1, log_id=b), Claimed)
    ledger.settle([failed(1, 1, is_last=True, log_id=b)])
    assert claim_one(ledger, retry=2) is None
    assert database["deliveries"].count_documents({}) == 0


def test_claim_of_a_retry_may_be_faster_than_the_write_that_it_is_due(ledger: DeliveryStore):
    ledger.add([delivery(1)], now())
    assert isinstance(claim_one(ledger, retry=1), Claimed)


def test_log_that_is_written_late_does_not_undo_what_came_after(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(1)], now())
    ledger.settle([failed(1, 1)])
    ledger.settle([failed(1, 0)])
    assert [d["retry"] for d in database["deliveries"].find()] == [2]


def test_successes_of_one_batch_end_no_delivery_that_has_a_later_retry(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(number) for number in range(5)], now())
    ledger.settle([failed(3, 0), failed(4, 0)])
    retries = [0, 0, 1, 0, 1]  # of msg_4 the retry succeeded; of msg_3 a late log tells of the first attempt
    ledger.settle([succeeded(number, retry) for number, retry in enumerate(retries)])
    assert [(left["_id"], left["retry"]) for left in database["deliveries"].find()] == [("msg_3", 1)]


def test_claim_of_a_delivery_without_its_event_is_an_error_of_its_own(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(1), delivery(2), delivery(3, "other")], now())
    database["events"].delete_many({})
    results = ledger.claim([Claim(f"msg_{number}", 0, ObjectId()) for number in (1, 2, 3)])
    assert [type(result) for result in results] == [LookupError, LookupError, Claimed]


def test_overdue_are_found_oldest_first_and_postponed(ledger: DeliveryStore):
    at = now()
    for number, age_s in [(1, 10), (2, 30), (3, 20), (4, 0)]:
        ledger.add([delivery(number, f"e{number}")], at - timedelta(seconds=age_s))
    before = at - timedelta(seconds=5)
    second, third = ledger.find_overdue(before, 2)
    assert (second.delivery_id, second.label, second.retry) == ("msg_2", "label 2", 0)
    assert second.lane == f"{COMPANY}/{second.webhook_id}"
    assert third.delivery_id == "msg_3"
    ledger.postpone(["msg_2", "msg_3"], at)
    assert [one.delivery_id for one in ledger.find_overdue(before, 2)] == ["msg_1"]
    ledger.quarantine("msg_1")
    assert ledger.find_overdue(before, 2) == []
    claimed = claim_one(ledger, 1)
    assert isinstance(claimed, Claimed), "an operator may still send it"


def test_shared_event_is_forgotten_when_nothing_of_it_is_owed(ledger: DeliveryStore, database: Documents):
    old = now() - timedelta(hours=1)
    ledger.add([delivery(1, "ended"), delivery(2, "ended")], old)
    ledger.add([delivery(3, "owed"), delivery(4, "owed")], old)
    database["events"].update_many({}, {"$set": {"created_at": old}})
    ledger.add([delivery(5, "young"), delivery(6, "young")], now())
    ledger.settle([failed(number, 0, is_last=True) for number in (1, 2, 3, 5, 6)])
    assert ledger.forget_events(now() - timedelta(minutes=10), 100) == 1
    assert sorted(event["_id"] for event in database["events"].find()) == [f"owed/{COMPANY}", f"young/{COMPANY}"]


def test_time_of_the_server_can_be_compared(ledger: DeliveryStore):
    assert abs(ledger.now() - now()) < timedelta(seconds=5)


def test_retry_is_due_by_the_servers_clock_whatever_the_workers_says(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(1)], ledger.now())
    hour_ahead = now() + timedelta(hours=1)
    attempt = make_attempt(delivery_id="msg_1", event_id="e", next_at=hour_ahead + timedelta(seconds=30))
    ledger.settle([make_log("x", at=hour_ahead, attempt=attempt, retry=0)])
    (owed,) = database["deliveries"].find()
    assert 29 < (owed["due_at"] - ledger.now()).total_seconds() < 31


def test_records_write_log_and_ledger(ledger: DeliveryStore, database: Documents):
    records = make_records(database, ledger)
    assert len(records.accept([delivery(1), delivery(2)])) == 2
    (claimed,) = records.claim([Claim("msg_1", 0, ObjectId())])
    assert isinstance(claimed, Claimed)
    assert records.record([failed(1, 0, log_id=claimed.log_id)]) == [None]
    assert database["webhooklogs"].count_documents({}) == 1
    assert [d["retry"] for d in database["deliveries"].find().sort("_id", 1)] == [1, 0]


def test_event_handled_again_brings_back_nothing_that_has_ended(ledger: DeliveryStore, database: Documents):
    records = make_records(database, ledger)
    both = [delivery(1), delivery(2)]
    records.accept(both)
    records.record([failed(1, 3, is_last=True), failed(2, 0)])
    assert records.accept(both) == [both[1]]
    assert [(d["_id"], d["retry"]) for d in database["deliveries"].find()] == [("msg_2", 1)]


def test_log_that_mongodb_cannot_hold_is_its_callers_error_and_the_ledger_goes_on(
    ledger: DeliveryStore, database: Documents
):
    database.create_collection("webhooklogs", validator={"status": {"$ne": 599}})
    records = make_records(database, ledger)
    records.accept([delivery(1)])
    attempt = make_attempt(delivery_id="msg_1", event_id="e", next_at=None)
    (fault,) = records.record([make_log("x", attempt=attempt, status=599)])
    assert "error 121" in str(fault)
    assert database["deliveries"].count_documents({}) == 0


def test_questions_to_the_ledger_use_an_index(ledger: DeliveryStore, database: Documents):
    ledger.add([delivery(number, f"e{number}") for number in range(50)], now())
    deliveries = database["deliveries"]
    for query, sort in [
        ({"due_at": {"$lt": now()}}, [("due_at", 1)]),
        ({"event_id": {"$in": ["e1"]}}, None),
        ({"webhook_id": ObjectId()}, [("due_at", 1)]),
    ]:
        cursor = deliveries.find(query)
        plan = str((cursor.sort(sort) if sort else cursor).explain()["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in plan
        assert "'SORT'" not in plan


def test_trace_of_an_event_and_its_first_attempt_are_stored_with_its_delivery(ledger: DeliveryStore):
    one = replace(delivery(1), traceparent="00-aa-bb-01")
    ledger.add([one], now())
    for retry, span_id in enumerate(["cc", "dd"]):
        log_id = ObjectId()
        assert isinstance(claim_one(ledger, retry=retry, log_id=log_id), Claimed)
        attempt = make_attempt(delivery_id="msg_1", next_at=now(), trace_id="aa", span_id=span_id)
        ledger.settle([make_log("x", attempt=attempt, retry=retry, log_id=log_id)])
    claimed = claim_one(ledger, retry=2)
    assert isinstance(claimed, Claimed)
    assert claimed.delivery == replace(one, first_span="00-aa-cc-01")
