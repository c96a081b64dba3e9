"""What lets a webhook's deliveries through, on a real MongoDB."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from webhooks.models import now
from webhooks.rules.health import FULL_RATE, START_RATE
from webhooks.store.gates import By, Gate, GateStore, State
from webhooks.store.notices import NoticeStore, NoticeType

Documents = Database[dict[str, Any]]
WEBHOOK = ObjectId("62685990d918fb5557f9f992")
SOON = timedelta(seconds=5)


@pytest.fixture
def gates(database: Documents) -> GateStore:
    made = GateStore(database)
    made.ensure_indexes()
    return made


def state(gates: GateStore) -> tuple[State, By | None]:
    gate = gates.get(WEBHOOK)
    return gate.state, gate.by


def told_types(gates: GateStore) -> list[str]:
    return [notice.type.value for notice in gates.get(WEBHOOK).notices]


def test_webhook_without_a_gate_is_open(gates: GateStore):
    assert gates.get(WEBHOOK) == Gate(WEBHOOK)
    assert gates.get(WEBHOOK).is_open


def test_pause_by_health_then_recovery(gates: GateStore):
    assert gates.pause(WEBHOOK, By.HEALTH, "$reason", probe_in_s=60)
    gate = gates.get(WEBHOOK)
    assert (gate.state, gate.by, gate.reason) == (State.PAUSED, By.HEALTH, "$reason")
    assert gate.probe_at is not None
    assert timedelta(seconds=55) < gate.probe_at - now() < timedelta(seconds=65)
    assert gates.find_due(now(), 10) == []
    assert [due.webhook_id for due in gates.find_due(now() + timedelta(seconds=65), 10)] == [WEBHOOK]
    assert not gates.pause(WEBHOOK, By.HEALTH, "again", probe_in_s=60), "it is paused"
    assert gates.recover(WEBHOOK, "answered")
    assert not gates.recover(WEBHOOK, "answered")
    assert state(gates)[0] is State.RECOVERING
    assert [one.webhook_id for one in gates.find_recovering(10)] == [WEBHOOK]
    assert gates.open(WEBHOOK)
    assert not gates.open(WEBHOOK)
    assert state(gates) == (State.OPEN, None)
    assert told_types(gates) == ["paused", "recovered"]


def test_health_does_not_undo_what_an_operator_did(gates: GateStore):
    assert gates.pause(WEBHOOK, By.HEALTH, "fails", probe_in_s=0)
    (before,) = gates.find_due(now() + SOON, 10)
    assert gates.pause(WEBHOOK, By.OPERATOR, "maintenance"), "an operator's pause ends the probes"
    assert not gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
    assert gates.find_due(now() + SOON, 10) == []
    assert not gates.take_probe(before, 60)
    assert not gates.recover(WEBHOOK, "answered")
    assert not gates.open(WEBHOOK)
    assert not gates.open(WEBHOOK, from_state=State.PAUSED)
    assert not gates.stop(WEBHOOK, "used up")
    assert state(gates) == (State.PAUSED, By.OPERATOR)
    assert gates.get(WEBHOOK).probe_at is None


def test_resume_opens_or_lets_out_what_is_kept(gates: GateStore):
    assert not gates.resume(WEBHOOK)
    gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
    assert gates.resume(WEBHOOK)
    assert state(gates)[0] is State.OPEN
    gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
    gates.note_held([WEBHOOK])
    assert gates.resume(WEBHOOK)
    assert state(gates)[0] is State.RECOVERING
    assert gates.get(WEBHOOK).rate == START_RATE
    assert told_types(gates) == ["paused", "resumed"] * 2


def test_drain_needs_no_slow_growth(gates: GateStore):
    assert not gates.drain(WEBHOOK)
    gates.stop(WEBHOOK, "used up")
    assert gates.drain(WEBHOOK)
    assert gates.get(WEBHOOK).rate == FULL_RATE
    gates.set_rate(gates.get(WEBHOOK), 4)
    assert gates.get(WEBHOOK).rate == 4
    assert gates.drain(WEBHOOK), "also of one that recovers"
    assert gates.get(WEBHOOK).rate == FULL_RATE
    assert told_types(gates) == ["stopped", "resumed"]


def test_rate_of_an_earlier_recovery_is_not_written(gates: GateStore):
    gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
    gates.drain(WEBHOOK)
    earlier = gates.get(WEBHOOK)
    gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
    gates.drain(WEBHOOK)
    gates.set_rate(earlier, 4)
    assert gates.get(WEBHOOK).rate == FULL_RATE


def test_webhook_that_stopped_is_not_paused_by_health(gates: GateStore):
    assert gates.stop(WEBHOOK, "used up")
    assert not gates.stop(WEBHOOK, "used up")
    assert not gates.pause(WEBHOOK, By.HEALTH, "fails", probe_in_s=1)
    assert gates.pause(WEBHOOK, By.OPERATOR, "maintenance")


def test_probe_is_taken_by_one(gates: GateStore):
    gates.pause(WEBHOOK, By.HEALTH, "fails", probe_in_s=0)
    (due,) = gates.find_due(now() + SOON, 10)
    assert gates.take_probe(due, 60)
    assert not gates.take_probe(due, 60)
    assert gates.find_due(now() + timedelta(seconds=50), 10) == []


def test_hold_is_never_made_shorter(gates: GateStore):
    until = gates.hold(WEBHOOK, 100)
    assert gates.hold(WEBHOOK, 1) == until
    gate = gates.get(WEBHOOK)
    assert gate.is_open
    assert gate.is_held_back(now())
    assert not gate.is_held_back(now() + timedelta(seconds=110))


def test_places_go_on_from_one_to_the_next(gates: GateStore, database: Documents):
    first, second, third = (gates.take_places(WEBHOOK, count) for count in (1, 3, 2))
    assert first < second <= third - 3
    database["gates"].update_one({}, {"$set": {"last_place": third + 10**9}})  # its clock goes back
    assert gates.take_places(WEBHOOK, 1) == third + 10**9 + 1
    database["gates"].update_one({}, {"$set": {"last_place": "x"}})
    assert gates.take_places(WEBHOOK, 1) > third + 1


def test_note_of_what_is_kept_is_taken_back_only_when_it_is_old(gates: GateStore, database: Documents):
    gates.note_held([WEBHOOK])
    (gate,) = gates.find_held(10)
    assert not gates.note_none_held(gate, 60), "somebody may be about to keep one"
    database["gates"].update_one({}, {"$set": {"held_at": now() - timedelta(seconds=100)}})
    (old,) = gates.find_held(10)
    gates.note_held([WEBHOOK])
    assert not gates.note_none_held(old, 60), "somebody has kept one since"
    database["gates"].update_one({}, {"$set": {"held_at": now() - timedelta(seconds=100)}})
    (old,) = gates.find_held(10)
    assert gates.note_none_held(old, 60)
    assert gates.find_held(10) == []


def test_gates_for_which_something_is_kept_are_found_page_by_page(gates: GateStore):
    webhook_ids = sorted(ObjectId() for _ in range(5))
    gates.note_held(webhook_ids)
    first = gates.find_held(3)
    second = gates.find_held(3, first[-1].webhook_id)
    assert [gate.webhook_id for gate in (*first, *second)] == webhook_ids


def test_notices_are_told_once_and_tried_again_later(gates: GateStore, database: Documents):
    notices, other = NoticeStore(database), ObjectId()
    gates.pause(WEBHOOK, By.HEALTH, "fails", probe_in_s=1)
    gates.recover(WEBHOOK, "answered")
    gates.stop(other, "used up")
    first, second, third = notices.list_untold(now() + SOON, 10)
    assert [one.type for one in (first, second, third)] == ["paused", "recovered", "stopped"]
    notices.note_told(first)
    notices.note_told(third)
    assert notices.take(second, 100)
    assert not notices.take(second, 100), "somebody is at it"
    assert notices.list_untold(now() + SOON, 10) == []
    (again,) = notices.list_untold(now() + timedelta(seconds=110), 10)
    assert (again.notice_id, again.tries) == (second.notice_id, 1)
    notices.note_told(again)
    assert notices.list_untold(now() + timedelta(days=1), 10) == []


def test_deactivation_opens_and_is_told_once(gates: GateStore):
    notice_id = ObjectId()
    gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
    assert gates.deactivate(WEBHOOK, notice_id, "410")
    assert not gates.deactivate(WEBHOOK, notice_id, "410")
    assert gates.get(WEBHOOK).is_open
    assert told_types(gates) == ["paused", "deactivated"]


def test_only_the_last_notices_are_kept(gates: GateStore):
    for _ in range(15):
        gates.pause(WEBHOOK, By.OPERATOR, "maintenance")
        gates.resume(WEBHOOK)
    assert len(gates.get(WEBHOOK).notices) == 20


def test_gate_changed_by_hand_is_read_with_care(gates: GateStore, database: Documents):
    wrong: dict[str, Any] = {"rate": "x", "since": 1, "hold_until": "y", "reason": 3, "held_at": [], "last_place": None}
    notices = [3, {}, {"id": 1}, {"id": ObjectId(), "type": "x", "at": now()}]
    database["gates"].insert_one({"_id": WEBHOOK, "state": "closed", "by": ["x"], **wrong, "notices": notices})
    database["gates"].insert_one({"_id": "x", "state": "recovering", "has_held": True})
    database["gates"].insert_one({"_id": ObjectId(), "state": "recovering", "rate": -1})
    assert gates.get(WEBHOOK) == Gate(WEBHOOK)
    (other,) = gates.find_recovering(10)
    assert other.rate == START_RATE
    assert gates.find_held(10) == []
    assert gates.hold(WEBHOOK, 1) is not None
    assert gates.pause(WEBHOOK, By.HEALTH, "fails", probe_in_s=1)
    assert [notice.type for notice in NoticeStore(database).list_untold(now() + SOON, 10)] == [NoticeType.PAUSED]


@pytest.mark.parametrize(
    ("gate", "probe", "release", "nothing"),
    [
        (Gate(WEBHOOK), True, True, True),
        (Gate(WEBHOOK, State.PAUSED, By.HEALTH), True, False, False),
        (Gate(WEBHOOK, State.PAUSED, By.OPERATOR), False, False, False),
        (Gate(WEBHOOK, State.STOPPED, By.HEALTH), False, False, False),
        (Gate(WEBHOOK, State.RECOVERING, By.HEALTH), False, True, False),
    ],
    ids=lambda value: f"{value.state}-{value.by}" if isinstance(value, Gate) else None,
)
def test_what_a_gate_lets_through(gate: Gate, probe: bool, release: bool, nothing: bool):
    assert gate.lets_through(is_probe=True, is_released=False) is probe
    assert gate.lets_through(is_probe=False, is_released=True) is release
    assert gate.lets_through(is_probe=False, is_released=False) is nothing


def test_questions_to_the_gates_use_an_index(gates: GateStore, database: Documents):
    gates.pause(WEBHOOK, By.HEALTH, "fails", probe_in_s=0)
    shut = ["paused", "recovering", "stopped"]
    for query in (
        {"state": "paused", "by": "health", "probe_at": {"$lte": now()}},
        {"state": "recovering"},
        {"has_held": True, "state": {"$nin": shut}},
        {"has_untold": True},
    ):
        assert "IXSCAN" in str(database["gates"].find(query).explain()["queryPlanner"]["winningPlan"])
