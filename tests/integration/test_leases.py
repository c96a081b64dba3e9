"""Leases on real servers: what a dead process held is free at once when its lease has lapsed, and no other's is."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from tests.lab.logs import make_attempt, make_log
from tests.lab.stores import Documents, WorkerStores
from webhooks.models import COTWebhookLog, now
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery, DeliveryStore
from webhooks.store.leases import Leases, WorkerStore
from webhooks.transport.holder import CLAIM_LEASE_S, WITNESS_AFTER_S

#: Far from the tests' own pace: what is free before is so because of a lease.
CLAIM_S = 600.0
COMPANY = ObjectId()


# ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_worker_tells_its_settings_for_as_long_as_its_lease_holds(database: Documents):
    alive, dead, ended, older = (Leases(database, token) for token in ("alive", "dead", "ended", "older"))
    said = {"max_retries": 3, "allowed_networks": ["$$NOW"]}  # which is no expression here
    for lease, node in ((alive, "a@host"), (dead, "b@host"), (ended, "c@host")):
        lease.renew(node, said)
    older.renew()
    ended.release()
    database["leases"].update_one({"_id": "dead"}, [{"$set": {"until": {"$subtract": ["$$NOW", 1]}}}])
    assert WorkerStore(database).find_settings() == {"a@host": said}
    assert alive.find_left(["dead", "older"]).keys() == {"dead", "older"}


# ── Claims ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class Clock:
    """A process's own, set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Process(WorkerStores):
    """One worker's part in the ledger."""

    def __init__(self, database: Documents, token: str, clock: Clock | None = None):
        self.leases = Leases(database, token, clock or Clock())
        super().__init__(database, CLAIM_S, self.leases)

    def claim(self, retry: int = 0) -> Claimed | Blocked | None:
        (result,) = self.deliveries.claim([Claim("msg_1", retry, ObjectId(), "worker@host")])
        assert not isinstance(result, Exception)
        return result

    def claim_for_sure(self, retry: int = 0) -> Claimed:
        result = self.claim(retry)
        assert isinstance(result, Claimed)
        return result


@pytest.fixture
def ours(database: Documents) -> Process:
    """A process that has renewed its lease for long."""
    process = Process(database, "ours")
    process.leases.renew()
    age(database, "ours", since_s=60)
    return process


@pytest.fixture
def theirs(database: Documents) -> Process:
    """Another one."""
    process = Process(database, "theirs")
    process.leases.renew()
    return process


def age(database: Documents, token: str, *, renewed_s: float = 0, since_s: float | None = None) -> None:
    """Make a lease look as if it had been renewed so many seconds ago."""
    since = "$since" if since_s is None else {"$subtract": ["$$NOW", int(since_s * 1000)]}
    until = {"$add": ["$$NOW", int((CLAIM_LEASE_S - renewed_s) * 1000)]}
    database["leases"].update_one({"_id": token}, [{"$set": {"since": since, "until": until}}])


def delivery(delivery_id: str = "msg_1") -> Delivery:
    return Delivery(delivery_id, "e", ObjectId(), COMPANY, "label", '{"event":"e"}')


def make_result(log_id: ObjectId, *, retry: int = 0, is_success: bool = False, is_last: bool = False) -> COTWebhookLog:
    next_at = None if is_success or is_last else now() + timedelta(seconds=30)
    outcome = "success" if is_success else "failed"
    attempt = make_attempt(delivery_id="msg_1", event_id="e", next_at=next_at, outcome=outcome)
    return make_log("x", attempt=attempt, retry=retry, log_id=log_id, status=200 if is_success else 500)


def owed(database: Documents) -> list[tuple[int, Any]]:
    """Return of each delivery that is owed the number of its next attempt, and whose claim it has."""
    found = database["deliveries"].find().sort("_id", 1)
    return [(one["retry"], one.get("claim", {}).get("log_id")) for one in found]


def test_claim_of_a_process_whose_lease_lapsed_is_taken_over_at_once(
    ours: Process, theirs: Process, database: Documents
):
    ours.deliveries.add([delivery()], now())
    dead = theirs.claim_for_sure()
    blocked = ours.claim()
    assert isinstance(blocked, Blocked)
    assert 0 < blocked.again_s <= CLAIM_LEASE_S, "then it may be dead"
    age(database, "theirs", renewed_s=CLAIM_LEASE_S + 1)
    taken = ours.claim_for_sure()
    assert [(one.log_id, one.worker) for one in taken.interrupted] == [(dead.log_id, "worker@host")]
    assert owed(database) == [(0, taken.log_id)]


def test_claim_made_with_the_delivery_is_taken_over_as_well(ours: Process, theirs: Process, database: Documents):
    claim = Claim("msg_1", 0, ObjectId())
    assert theirs.deliveries.add_claimed([(delivery(), claim)], now()) == [True]
    age(database, "theirs", renewed_s=CLAIM_LEASE_S + 1)
    assert [one.log_id for one in ours.claim_for_sure().interrupted] == [claim.log_id]


def test_claims_of_one_batch_are_judged_each_by_its_own_holder(ours: Process, theirs: Process, database: Documents):
    third = Process(database, "third")
    third.leases.renew()
    ids = [f"msg_{number}" for number in range(4)]
    ours.deliveries.add([delivery(one) for one in ids], now())
    theirs.deliveries.claim([Claim(ids[0], 0, ObjectId()), Claim(ids[1], 0, ObjectId())])
    third.deliveries.claim([Claim(ids[2], 0, ObjectId())])
    age(database, "theirs", renewed_s=CLAIM_LEASE_S + 1)
    results = ours.deliveries.claim([Claim(one, 0, ObjectId()) for one in ids])
    assert [type(one) for one in results] == [Claimed, Claimed, Blocked, Claimed]


def test_live_process_keeps_its_claim_however_old_its_lease(ours: Process, theirs: Process, database: Documents):
    ours.deliveries.add([delivery()], now())
    age(database, "theirs", renewed_s=CLAIM_LEASE_S - 2, since_s=3_000)
    theirs.claim_for_sure()
    blocked = ours.claim()
    assert isinstance(blocked, Blocked)
    assert blocked.again_s <= 2


def test_process_that_has_just_started_does_not_judge_yet(theirs: Process, database: Documents):
    started = Process(database, "started")
    started.leases.renew()
    started.deliveries.add([delivery()], now())
    theirs.claim_for_sure()
    age(database, "theirs", renewed_s=CLAIM_LEASE_S + 1)
    blocked = started.claim()
    assert isinstance(blocked, Blocked)
    assert WITNESS_AFTER_S - 1 < blocked.again_s <= WITNESS_AFTER_S
    age(database, "started", since_s=WITNESS_AFTER_S)
    started.claim_for_sure()


@pytest.mark.parametrize(
    "make_holder",
    [
        pytest.param(lambda database: None, id="older-version-or-command"),
        pytest.param(lambda database: Leases(database, "unknown", Clock()), id="lease-never-renewed"),
    ],
)
def test_claim_without_a_lease_lasts_as_long_as_it_says(ours: Process, database: Documents, make_holder: Any):
    other = DeliveryStore(database, CLAIM_S, 10, leases=make_holder(database))
    other.add([delivery()], now())
    other.claim([Claim("msg_1", 0, ObjectId())])
    blocked = ours.claim()
    assert isinstance(blocked, Blocked)
    assert CLAIM_S - 5 < blocked.again_s <= CLAIM_S


def test_process_whose_lease_may_have_lapsed_claims_without_it(ours: Process, database: Documents):
    """It was paused: what it claims before its next renewal is not to be taken from it at once."""
    clock = Clock()
    paused = Process(database, "paused", clock)
    paused.leases.renew()
    clock.now = CLAIM_LEASE_S + 1
    age(database, "paused", renewed_s=CLAIM_LEASE_S + 1)
    ours.deliveries.add([delivery()], now())
    paused.claim_for_sure()
    assert isinstance(ours.claim(), Blocked)
    paused.leases.renew()
    assert paused.leases.holder() == "paused"


def test_command_without_a_lease_of_its_own_takes_nothing_over(theirs: Process, database: Documents):
    command = DeliveryStore(database, CLAIM_S, 10)
    command.add([delivery()], now())
    theirs.claim_for_sure()
    age(database, "theirs", renewed_s=CLAIM_LEASE_S + 1)
    (result,) = command.claim([Claim("msg_1", 0, ObjectId())])
    assert isinstance(result, Blocked)


def test_lease_that_is_released_has_lapsed_and_leaves_its_jobs(ours: Process, theirs: Process):
    ours.deliveries.add([delivery()], now())
    theirs.claim_for_sure()
    assert theirs.leases.take_job("sweep", 600)
    assert not ours.leases.take_job("sweep", 600)
    theirs.leases.release()
    assert theirs.leases.holder() is None
    ours.claim_for_sure()
    assert ours.leases.take_job("sweep", 600)


def test_renewals_without_a_gap_keep_since_and_one_after_a_gap_does_not(ours: Process, database: Documents):
    age(database, "ours", renewed_s=4, since_s=500)
    ours.leases.renew()
    watched = {"$project": {"s": {"$subtract": ["$until", "$since"]}}}
    [lease] = database["leases"].aggregate([watched])
    assert lease["s"] == pytest.approx((500 + CLAIM_LEASE_S) * 1000, abs=2_000)
    age(database, "ours", renewed_s=6, since_s=500)
    ours.leases.renew()
    [lease] = database["leases"].aggregate([watched])
    assert lease["s"] == CLAIM_LEASE_S * 1000


@pytest.mark.parametrize("ruined", [{"since": "x", "until": 5}, {"until": [1]}, {"since": None}])
def test_lease_that_was_changed_by_hand_is_made_again(ours: Process, database: Documents, ruined: dict[str, Any]):
    database["leases"].replace_one({"_id": "ours"}, ruined)
    ours.leases.renew()
    assert ours.leases.find_left(["nobody"]) == {}
    [lease] = database["leases"].find()
    assert (lease["until"] - lease["since"]).total_seconds() == CLAIM_LEASE_S


def test_leases_of_old_are_deleted_by_mongodb(ours: Process, database: Documents):
    ours.leases.ensure_indexes()
    [index] = [one for one in database["leases"].list_indexes() if "expireAfterSeconds" in one]
    assert index["expireAfterSeconds"] > CLAIM_S, "longer than the longest claim, so that it is known to have lapsed"


def test_job_is_done_by_one_process_until_its_lease_ends(ours: Process, theirs: Process, database: Documents):
    assert ours.leases.take_job("sweep", 600)
    assert not theirs.leases.take_job("sweep", 600)
    assert ours.leases.take_job("sweep", 600), "its owner makes it longer"
    assert theirs.leases.take_job("other", 600)
    database["leases"].update_one({"_id": "sweep"}, [{"$set": {"until": "$$NOW"}}])
    assert theirs.leases.take_job("sweep", 600)


# ── Results that come late ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def taken_over(ours: Process, theirs: Process, database: Documents) -> tuple[ObjectId, ObjectId]:
    """Give the claim of a process that was paused, and the one that took it over."""
    ours.deliveries.add([delivery()], now())
    late = theirs.claim_for_sure()
    age(database, "theirs", renewed_s=CLAIM_LEASE_S + 1)
    return late.log_id, ours.claim_for_sure().log_id


@pytest.mark.parametrize("is_last", [False, True])
def test_late_failure_changes_nothing_while_the_new_attempt_is_made(
    taken_over: tuple[ObjectId, ObjectId], ours: Process, theirs: Process, database: Documents, is_last: bool
):
    late, new = taken_over
    theirs.records.record([make_result(late, is_last=is_last)])
    assert owed(database) == [(0, new)]
    ours.records.record([make_result(new, is_success=True)])
    assert owed(database) == []
    assert database["webhooklogs"].count_documents({}) == 2, "both are on record"


def test_late_failure_changes_nothing_after_the_new_attempt(
    taken_over: tuple[ObjectId, ObjectId], ours: Process, theirs: Process, database: Documents
):
    late, new = taken_over
    ours.records.record([make_result(new)])
    before = database["deliveries"].find_one()
    assert before is not None
    assert before["retry"] == 1
    theirs.records.record([make_result(late)])
    assert database["deliveries"].find_one() == before


def test_late_failure_of_a_first_attempt_brings_back_nothing_that_has_ended(
    taken_over: tuple[ObjectId, ObjectId], ours: Process, theirs: Process, database: Documents
):
    late, new = taken_over
    ours.records.record([make_result(new, is_success=True)])
    theirs.records.keep_unended([delivery()])  # as for any first attempt: MongoDB may have forgotten it
    theirs.records.record([make_result(late)])
    assert owed(database) == []


def test_delivery_that_mongodb_forgot_is_written_down_again(ours: Process, database: Documents):
    ours.records.keep_unended([delivery()])
    ours.records.record([make_result(ObjectId())])
    assert owed(database) == [(1, None)]


def test_late_success_ends_the_delivery(
    taken_over: tuple[ObjectId, ObjectId], ours: Process, theirs: Process, database: Documents
):
    late, new = taken_over
    theirs.records.record([make_result(late, is_success=True)])
    assert owed(database) == []
    ours.records.record([make_result(new)])
    assert owed(database) == [], "its receiver has it"


def test_released_claim_leaves_the_word_to_the_attempt_before(
    taken_over: tuple[ObjectId, ObjectId], ours: Process, database: Documents
):
    """An attempt whose log was written, and whose worker died before the ledger knew, is found by the next claim."""
    late, new = taken_over
    ours.deliveries.release([Claim("msg_1", 0, new)])
    ours.records.record([make_result(late)])
    assert owed(database) == [(1, None)]
    assert ours.claim_for_sure(1).interrupted == ()
