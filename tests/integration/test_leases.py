"""Leases on real servers: what a dead process held is free at once when its lease has lapsed, and no other's is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import redis
from bson import ObjectId
from pymongo.database import Database

from tests.integration.test_lanes import DELIVER, OPTIONS, SEND, put, settle, state, worker
from tests.integration.test_transport import Party, held
from tests.lab.logs import make_attempt, make_log
from tests.lab.worker import wait_until
from webhooks.delivery.records import DeliveryRecords
from webhooks.models import COTWebhookLog, now
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery, DeliveryStore
from webhooks.store.gates import GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.leases import Leases, WorkerStore
from webhooks.store.logs import LogStore
from webhooks.store.webhooks import WebhookStore
from webhooks.transport import holder
from webhooks.transport.holder import CLAIM_LEASE_S, LEASE_S, WITNESS_AFTER_S
from webhooks.transport.messages import Admission, Turn
from webhooks.transport.scripts import TAKE
from webhooks.transport.settlements import finish

Documents = Database[dict[str, Any]]
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


class Process:
    """One worker's part in the ledger."""

    def __init__(self, database: Documents, token: str, clock: Clock | None = None):
        self.leases = Leases(database, token, clock or Clock())
        self.deliveries = DeliveryStore(database, CLAIM_S, 10, leases=self.leases)
        kept, gates = HeldDeliveries(database, self.deliveries), GateStore(database)
        self.logs = LogStore(database)
        self.records = DeliveryRecords(self.deliveries, kept, self.logs, gates, WebhookStore(database))

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


# ── Messages and places in lanes ────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def process(monkeypatch: pytest.MonkeyPatch, token: str) -> Iterator[None]:
    """Be another process for a while."""
    with monkeypatch.context() as patch:
        patch.setattr(holder, "_token", token)
        yield


def become_witness(client: redis.Redis, party: Party) -> None:
    """Make it look as if this process had renewed its lease for long."""
    party.channel.renew_lease()
    client.hset("webhooks.leases.since", holder.process_token(), 0)


def lapse(client: redis.Redis, token: str, ago_s: float = 1) -> None:
    client.zadd("webhooks.leases", {token: client.time()[0] - ago_s})  # pyright: ignore[reportIndexIssue]


DEAD = "d" * 16


@pytest.fixture
def url(redis_url: str, redis_client: redis.Redis) -> str:
    """Give the URL of an empty Redis."""
    return redis_url


@pytest.fixture
def dead(url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Party:
    """Give a process that died with four messages of a lane in hand, which is as many as the lane may have."""
    put(url, SEND, "c/w", *range(10))
    with process(monkeypatch, DEAD):
        made = Party(url, SEND, prefetch=64, **OPTIONS)
        made.channel.renew_lease()
        made.drain(4)
        made.die()
    return made


def test_what_a_dead_process_held_comes_back_when_its_lease_has_lapsed(
    dead: Party, url: str, redis_client: redis.Redis
):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        party.poll(1.5)
        assert party.got == [], "its lease is good still"
        lapse(redis_client, DEAD)
        assert party.drain(4, timeout_s=5) == [0, 1, 2, 3], "in their old places"
        assert [message.delivery_info["redelivered"] for message in party.got] == [True] * 4
        settle(party, 4)
        party.drain(4)
        wait_until(lambda: party.poll() or not redis_client.zscore("webhooks.leases", DEAD), "forgotten", 5)
        assert redis_client.hkeys("webhooks.leases.since") == [holder.process_token().encode()]


def test_process_that_has_just_started_takes_nothing_from_others(dead: Party, url: str, redis_client: redis.Redis):
    lapse(redis_client, DEAD)
    with worker(url, SEND) as party:
        party.channel.renew_lease()
        party.poll(1.5)
        assert party.got == []
        redis_client.hset("webhooks.leases.since", holder.process_token(), redis_client.time()[0] - WITNESS_AFTER_S)  # pyright: ignore[reportIndexIssue]
        party.drain(4, timeout_s=5)


def test_process_that_renews_after_a_gap_takes_nothing_from_others(dead: Party, url: str, redis_client: redis.Redis):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        lapse(redis_client, DEAD)
        redis_client.zadd("webhooks.leases", {holder.process_token(): redis_client.time()[0] + 4})  # pyright: ignore[reportIndexIssue]
        party.poll(1.5)
        assert party.got == []
        party.channel.renew_lease()
        party.poll(1.5)
        assert party.got == []


def test_message_held_without_a_lease_waits_for_the_visibility_timeout(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    put(url, SEND, "c/w", 1, 2)
    with process(monkeypatch, DEAD):
        old = Party(url, SEND, prefetch=64, **OPTIONS)
        old.drain(2)
        old.die()
    with worker(url, SEND, visibility_timeout=4) as party:
        become_witness(redis_client, party)
        party.poll(2)
        assert party.got == []
        party.drain(2)


def test_places_of_attempts_without_messages_are_free_when_the_lease_has_lapsed(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    asked = [Admission(str(ObjectId()), "c/w", None) for _ in range(4)]
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        party.poll()
        with process(monkeypatch, DEAD):
            party.channel.renew_lease()
            assert party.channel.admit(SEND, asked, 4, 100)() == [Turn.NOW] * 4
        put(url, SEND, "c/w", "new")
        party.poll(1.5)
        assert (party.got, state(url, "c/w").in_flight) == ([], 4)
        assert redis_client.zcard(f"webhooks.slow.webhooks.send/{DEAD}") == 4
        lapse(redis_client, DEAD)
        assert party.drain(1, timeout_s=5) == ["new"]
        assert state(url, "c/w").in_flight == 1
        assert redis_client.zcard(f"webhooks.slow.webhooks.send/{DEAD}") == 0
        assert redis_client.zcard(f"webhooks.slow.webhooks.send/{holder.process_token()}") == 1
        assert redis_client.hlen("webhooks.taken") == 1


def test_end_of_an_attempt_without_a_message_leaves_nothing(url: str, redis_client: redis.Redis):
    asked = Admission(str(ObjectId()), "c/w", None)
    with worker(url, SEND) as party:
        party.poll()
        assert party.channel.admit(SEND, [asked], 4, 100)() == [Turn.NOW]
        finish(SEND, "c/w", asked.tag)
        party.channel.flush()
        assert state(url, "c/w").in_flight == 0
        assert redis_client.keys("webhooks.taken") == redis_client.keys("webhooks.slow.*") == []


def test_lost_reply_to_an_admission_leaves_no_place_taken(url: str, monkeypatch: pytest.MonkeyPatch):
    with worker(url, SEND) as party:
        party.poll()
        begin = party.channel.begin

        def lose_reply(*arguments: Any) -> Callable[[], Any]:
            wait = begin(*arguments)

            def read() -> Any:
                wait()
                raise redis.ConnectionError("lost")

            return read

        monkeypatch.setattr(party.channel, "begin", lose_reply)
        wait = party.channel.admit(SEND, [Admission(str(ObjectId()), "c/w", None)], 1, 100)
        with pytest.raises(redis.ConnectionError):
            wait()
        party.channel.flush()
        assert state(url, "c/w").in_flight == 0


def test_admission_that_is_carried_out_after_its_end_leaves_no_place_taken(url: str):
    """The connection dies with the admission on its way; the end of the attempt comes first, over another one."""
    asked = Admission(str(ObjectId()), "c/w", None)
    with worker(url, SEND) as party:
        party.poll()
        finish(SEND, "c/w", asked.tag)
        party.channel.flush()
        party.channel.admit(SEND, [asked], 4, 100)()
        assert state(url, "c/w").in_flight == 0


def test_take_that_is_carried_out_after_it_was_given_up_takes_nothing(url: str):
    """Likewise, with a take: its messages would be held by a worker that does not know of them."""
    put(url, SEND, "c/w", 1)
    with worker(url, SEND) as party:
        take = party.channel._new_take([SEND], 1)
        party.channel._note_lost(take)
        party.channel._give_back_lost_takes()
        assert len(party.channel.run(TAKE, *party.channel._take_arguments(take))) == 3
        assert party.drain(1, timeout_s=5) == [1]


def test_take_after_a_pause_renews_a_lease_that_has_lapsed(url: str, redis_client: redis.Redis):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        lapse(redis_client, holder.process_token())
        put(url, SEND, "c/w", 1)
        party.drain(1)
        left_s = float(redis_client.zscore("webhooks.leases", holder.process_token()) or 0) - redis_client.time()[0]  # pyright: ignore
        assert left_s > LEASE_S - 2
        since = float(redis_client.hget("webhooks.leases.since", holder.process_token()) or 0)  # pyright: ignore
        assert since > 0, "and watches anew"


def test_take_of_a_process_without_a_lease_makes_none(url: str, redis_client: redis.Redis):
    put(url, SEND, "c/w", 1)
    with worker(url, SEND) as party:
        party.drain(1)
        assert redis_client.exists("webhooks.leases") == 0


def test_ended_lease_has_lapsed(dead: Party, url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        with process(monkeypatch, DEAD):
            party.channel.end_lease()
        party.drain(4, timeout_s=5)


def test_lease_comes_back_by_itself_after_a_flush(dead: Party, url: str, redis_client: redis.Redis):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        redis_client.flushdb()
        party.channel.renew_lease()
        assert redis_client.zcard("webhooks.leases") == 1
        put(url, SEND, "c/w", "new")
        assert party.drain(1) == ["new"]
        assert held(redis_client) == 1


def test_many_messages_of_many_dead_processes_all_come_back(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    count = 1_200  # more than one step gives back
    put(url, DELIVER, "c/x", *range(count))
    tokens = [f"{number:016x}" for number in range(3)]
    for token in tokens:
        with process(monkeypatch, token):
            made = Party(url, DELIVER, prefetch=400, **OPTIONS)
            made.channel.renew_lease()
            made.drain(400)
            made.die()
    assert held(redis_client) == count
    with worker(url, DELIVER, threads=count) as party:
        become_witness(redis_client, party)
        for token in tokens:
            lapse(redis_client, token)
        assert party.drain(count, timeout_s=20) == list(range(count))
        wait_until(lambda: party.poll() or redis_client.zcard("webhooks.leases") == 1, "forgotten", 5)
