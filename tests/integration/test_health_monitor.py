"""The health monitor on a real MongoDB; what it queues is only noted."""

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId

from tests.lab.logs import make_attempt, make_log
from tests.lab.stores import Documents, WorkerStores
from webhooks.config import Settings
from webhooks.jobs import health_monitor as module
from webhooks.jobs.health_monitor import HealthMonitor, find_health_pause_s, notify
from webhooks.models import COTWebhook, now
from webhooks.store.deliveries import Claim, Delivery
from webhooks.store.gates import By, State
from webhooks.store.notices import NoticeStore

COMPANY = ObjectId("625bcbdcc9a8e3a86dbf041c")
SETTINGS = Settings(pause_after_s=100, pause_min_attempts=10, probe_interval_s=60)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class World(WorkerStores):
    """The stores, a monitor, and what it has queued."""

    def __init__(self, database: Documents) -> None:
        super().__init__(database, claim_s=10)
        self.notices = NoticeStore(database)
        self.operators: Any = None
        self.clock = Clock()
        self.monitor = HealthMonitor(self.clock)
        self.queued: list[str] = []
        self.written = 0
        for store in (self.deliveries, self.held, self.gates, self.webhooks):
            store.ensure_indexes()
        self.logs.ensure_indexes(30)

    def accept(self, webhook_id: ObjectId, count: int, *, is_ordered: bool = False) -> list[str]:
        names = []
        for _ in range(count):
            self.written += 1
            names.append(f"msg_{self.written}")
            event_id = f"e{self.written}"
            one = Delivery(names[-1], event_id, webhook_id, COMPANY, "label", '{"a":1}', is_ordered=is_ordered)
            self.records.accept([one])
        return names

    def end(self, webhook_id: ObjectId, delivery_id: str, *, status: int = 200, **attempt: Any) -> None:
        is_ok = status == 200
        details = make_attempt(
            delivery_id=delivery_id,
            event_id="e",
            next_at=None if is_ok else now() + timedelta(seconds=30),
            **{"outcome": "success" if is_ok else "failed", "error_kind": None, **attempt},
        )
        log = make_log("x", attempt=details, retry=0, at=now(), status=status, webhook_id=str(webhook_id))
        self.records.claim([Claim(delivery_id, 0, log.id)])
        self.records.record([log])

    def log(
        self, webhook_id: ObjectId, count: int, *, age_s: float, kind: str | None = None, status: int = 503
    ) -> None:
        """Write logs that ended from so long ago until now."""
        outcome = "success" if status == 200 else "failed"
        for number in range(count):
            details = make_attempt(delivery_id=f"x{number}", event_id="e", error_kind=kind, outcome=outcome)
            at = now() - timedelta(seconds=age_s * (1 - number / max(1, count - 1)))
            self.logs.write([make_log("x", attempt=details, at=at, status=status, webhook_id=str(webhook_id))])

    def look(self) -> int:
        return self.monitor.check_health(self.services, SETTINGS)

    def drain(self, seconds: float = 0.25) -> list[str]:
        return self._do(self.monitor.drain, seconds)

    def recover(self, seconds: float = 1) -> list[str]:
        return self._do(self.monitor.recover, seconds)

    def _do(self, job: Callable[[Any, Settings], int], seconds: float) -> list[str]:
        self.clock.seconds += seconds
        before = len(self.queued)
        job(self.services, SETTINGS)
        return self.queued[before:]


@pytest.fixture
def world(database: Documents, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(database)
    monkeypatch.setattr(module, "queue_released", lambda owed, _webhook: made.queued.append(owed.delivery_id))

    def queue_next(_: Any, webhook: COTWebhook | None) -> bool:
        head = None if webhook is None else made.held.release_next(webhook.id, now())
        if head is not None:
            made.queued.append(head.delivery_id)
        return head is not None

    monkeypatch.setattr(module, "queue_next", queue_next)
    return made


# ── Health ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_endpoint_that_has_failed_for_long_is_paused_with_the_reason_in_words(world: World):
    webhook_id = world.add_webhook()
    world.log(webhook_id, 19, age_s=104)
    world.log(webhook_id, 1, age_s=50, status=200)
    assert world.look() == 1
    gate = world.gates.get(webhook_id)
    assert (gate.state, gate.by) == (State.PAUSED, By.HEALTH)
    assert gate.reason == "19 of 20 attempts failed in 104 s, last: 503"
    assert gate.probe_at is not None
    assert world.look() == 0, "it is paused"


@pytest.mark.parametrize(
    ("count", "age_s", "kind"),
    [(9, 104, None), (20, 80, None), (20, 104, "resolver"), (20, 104, "internal"), (20, 104, "proxy")],
    ids=["too few", "too short", "our resolver", "our defect", "our proxy"],
)
def test_endpoint_is_not_paused_too_soon_or_for_our_faults(world: World, count: int, age_s: float, kind: str | None):
    webhook_id = world.add_webhook()
    world.log(webhook_id, count, age_s=age_s, kind=kind)
    assert world.look() == 0
    assert world.gates.get(webhook_id).is_open


def test_endpoint_that_did_well_a_minute_ago_is_not_paused(world: World):
    webhook_id = world.add_webhook()
    world.log(webhook_id, 1, age_s=104)
    for age_s in (90, 70, 60):
        world.log(webhook_id, 1, age_s=age_s, status=200)
    world.log(webhook_id, 100, age_s=20)
    assert world.look() == 0


def test_endpoint_whose_host_does_not_exist_is_paused(world: World):
    webhook_id = world.add_webhook()
    world.log(webhook_id, 20, age_s=104, kind="lookup", status=409)
    assert world.look() == 1
    assert world.gates.get(webhook_id).reason.endswith("last: lookup")


def test_none_is_paused_when_most_are_out_of_reach_but_who_answers_is(world: World, caplog: pytest.LogCaptureFixture):
    dark = [world.add_webhook() for _ in range(5)]
    answers, well = world.add_webhook(), world.add_webhook()
    for webhook_id in dark:
        world.log(webhook_id, 12, age_s=104, kind="connect_timeout", status=409)
    world.log(answers, 12, age_s=104)
    world.log(well, 1, age_s=0, status=200)
    assert world.look() == 1
    assert not world.gates.get(answers).is_open
    assert world.look() == 0
    assert caplog.text.count("our own network") == 1, "said once"
    for _ in range(5):
        world.log(world.add_webhook(), 1, age_s=0, status=200)
    assert world.look() == 5


def test_log_that_somebody_else_wrote_spoils_nothing(world: World):
    webhook_id = world.add_webhook()
    world.log(webhook_id, 20, age_s=104)
    logs: list[dict[str, Any]] = [
        {"createdAt": [now(), now()], "attempt": {"outcome": "failed"}},
        {"createdAt": now()},
        {"createdAt": now() + timedelta(hours=1), "attempt": {"outcome": "failed", "error_kind": "?"}, "status": "x"},
        {"createdAt": now(), "attempt": {"outcome": ["failed"]}, "status": None},
    ]
    world.database["webhooklogs"].insert_many({**log, "subscription": webhook_id} for log in logs)
    world.database["webhooklogs"].insert_one({"createdAt": now(), "attempt": {"outcome": "failed"}, "subscription": 3})
    assert world.look() == 1


def test_time_between_looks_follows_from_the_time_that_is_long():
    assert [find_health_pause_s(seconds) for seconds in (1, 50, 600, 86_400)] == [1, 5, 30, 30]


# ── Recovery ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_kept_is_let_out_faster_and_faster_and_then_the_gate_opens(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    names = world.accept(webhook_id, 40)
    assert world.drain() == []
    world.gates.resume(webhook_id)
    release: list[list[str]] = []
    for _ in range(40):
        second = [name for _ in range(4) for name in world.drain()]
        release.append(second)
        for name in second:
            world.end(webhook_id, name)
        if world.gates.get(webhook_id).is_open:
            break
    assert [len(second) for second in release][:4] == [1, 2, 4, 8] or [len(s) for s in release][:3] == [2, 2, 4]
    assert [name for second in release for name in second] == names, "the oldest first"
    assert world.gates.get(webhook_id).is_open


def test_no_more_is_let_out_while_nothing_comes_back(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    world.accept(webhook_id, 10)
    world.gates.resume(webhook_id)
    assert sum(len(world.drain()) for _ in range(40)) == 2


def test_rate_falls_when_something_fails_and_another_monitor_goes_on_with_it(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    world.accept(webhook_id, 30)
    world.gates.drain(webhook_id)
    first, second, third, fourth = (world.drain() + world.drain())[:4]
    for name in (first, second, third):
        world.end(webhook_id, name)
    world.end(webhook_id, fourth, status=500)
    world.drain(1)
    assert world.gates.get(webhook_id).rate == 2
    world.monitor = HealthMonitor(world.clock)
    assert len(world.drain()) <= 2


def test_endpoint_that_fails_on_is_paused_again(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    world.accept(webhook_id, 30)
    world.gates.drain(webhook_id)
    for name in (world.drain() + world.drain())[:5]:
        world.end(webhook_id, name, status=500)
    world.drain()
    gate = world.gates.get(webhook_id)
    assert (gate.state, gate.by) == (State.PAUSED, By.HEALTH)
    assert gate.reason == "5 of its last 5 attempts failed while it recovered"


def test_our_own_faults_do_not_count_while_it_recovers(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    world.accept(webhook_id, 30)
    world.gates.drain(webhook_id)
    for name in (world.drain() + world.drain())[:10]:
        world.end(webhook_id, name, status=409, error_kind="resolver")
    world.drain(1)
    assert world.gates.get(webhook_id).state is State.RECOVERING


def test_nothing_is_let_out_before_the_receiver_wants_it(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.HEALTH, "fails", probe_in_s=0)
    world.accept(webhook_id, 3)
    world.gates.hold(webhook_id, 100)
    assert world.recover() == []
    world.gates.drain(webhook_id)
    assert world.drain() == []


# ── Probes and what was left half done ──────────────────────────────────────────────────────────────────────────────


def test_one_probe_at_a_time_and_the_oldest(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.HEALTH, "fails", probe_in_s=0)
    assert world.recover() == [], "nothing to try it with"
    oldest, _ = world.accept(webhook_id, 2)
    assert world.recover() == [oldest]
    assert world.recover() == [], "the next one is a minute away"
    soon = {"$set": {"probe_at": now() - timedelta(seconds=1)}}
    world.database["gates"].update_one({"_id": webhook_id}, soon)
    world.records.claim([Claim(oldest, 0, ObjectId())])
    assert world.recover() == [], "somebody is at it"
    past = {"$set": {"claim.until": now() - timedelta(seconds=1)}}
    world.database["deliveries"].update_one({"_id": oldest}, past)
    assert world.recover() == [oldest], "its worker died"


def test_line_that_stands_still_is_moved_on(world: World):
    webhook_id = world.add_webhook(ordered=True)
    first, second = world.accept(webhook_id, 2, is_ordered=True)
    assert world.recover() == [first]
    assert world.recover() == []
    world.end(webhook_id, first)
    assert world.recover() == [second]


def test_line_that_recovers_is_opened_as_it_is_slow_enough(world: World):
    webhook_id = world.add_webhook(ordered=True)
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    first, _ = world.accept(webhook_id, 2, is_ordered=True)
    assert world.recover() == []
    world.gates.resume(webhook_id)
    assert world.drain() == []
    assert world.gates.get(webhook_id).is_open
    assert world.recover() == [first]


def test_what_is_kept_although_the_gate_is_open_is_let_out(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.OPERATOR, "maintenance")
    names = world.accept(webhook_id, 3)
    world.database["gates"].delete_many({})
    assert world.recover() == names, "also when somebody deleted the gate"
    assert world.gates.get(webhook_id).has_held, "somebody may be about to keep one"
    world.database["gates"].update_one({}, {"$set": {"held_at": now() - timedelta(minutes=5)}})
    assert world.recover() == []
    assert not world.gates.get(webhook_id).has_held


def test_webhook_that_was_deactivated_lets_out_what_was_kept_and_is_told_once(world: World):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.HEALTH, "fails", probe_in_s=60)
    names = world.accept(webhook_id, 2)
    world.webhooks.deactivate(webhook_id, "gone")
    assert world.recover() == names
    world.recover()
    assert [notice.type.value for notice in world.gates.get(webhook_id).notices] == ["paused", "deactivated"]


# ── Notices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_notices_are_logged_and_told_until_they_are_taken(world: World, caplog: pytest.LogCaptureFixture):
    webhook_id = world.add_webhook()
    world.gates.pause(webhook_id, By.HEALTH, "fails", probe_in_s=60)
    told: list[tuple[ObjectId, dict[str, Any]]] = []
    answers = ["status 500", None]

    def take(notice_id: ObjectId, body: dict[str, Any]) -> str | None:
        told.append((notice_id, body))
        return answers.pop(0)

    world.operators = SimpleNamespace(tell=take)
    assert notify(world.services, SETTINGS) == 0
    assert notify(world.services, SETTINGS) == 0, "not at once"
    assert len(told) == 1
    world.database["gates"].update_one({}, {"$set": {"notices.0.tell_at": now() - timedelta(seconds=1)}})
    assert notify(world.services, SETTINGS) == 1
    assert notify(world.services, SETTINGS) == 0
    assert told[0] == told[1]
    body = told[0][1]
    assert body["type"] == "webhook.paused"
    assert body["data"] == {
        "webhook": str(webhook_id),
        "code": f"code_{webhook_id}",
        "company": str(COMPANY),
        "reason": "fails",
        "origin": "https://receiver.example",
    }
    assert caplog.text.count("paused: fails") == 1, "logged once"


def test_notice_without_a_url_is_logged_alone(world: World, caplog: pytest.LogCaptureFixture):
    world.gates.stop(ObjectId(), "used up")
    assert notify(world.services, SETTINGS) == 1
    assert "stopped: used up" in caplog.text
