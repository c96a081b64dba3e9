"""Jobs that resend what failed, on a real MongoDB; what they queue is only noted."""

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from click.testing import CliRunner, Result

from tests.lab.logs import COMPANY, WEBHOOK_ID, make_attempt, make_log
from tests.lab.stores import Documents, WorkerStores
from webhooks.cli import cli, resend_cmd
from webhooks.config import Settings
from webhooks.delivery import operate
from webhooks.jobs.resend import Resender
from webhooks.models import now
from webhooks.rules.retry import Outcome
from webhooks.store.actions import ActionStore
from webhooks.store.deliveries import Delivery
from webhooks.store.failed import FailedStore
from webhooks.store.gates import By
from webhooks.store.logs import LogQuery
from webhooks.store.resend_jobs import JobState, ResendJob, ResendJobStore

WEBHOOK = ObjectId(WEBHOOK_ID)
FAILED = LogQuery(outcome=Outcome.FAILED)


class World(WorkerStores):
    """The stores of a worker, and what was queued."""

    def __init__(self, database: Documents) -> None:
        super().__init__(database, claim_s=25)
        self.failed, self.resend_jobs = FailedStore(database), ResendJobStore(database)
        self.actions = ActionStore(database)
        self.queued: list[str] = []
        self.seconds = 0.0
        self.resender = Resender(lambda: self.seconds)

    def log(
        self, delivery_id: str, *, ok: bool = False, age_s: float = 60, webhook_id: ObjectId = WEBHOOK, **fields: Any
    ) -> None:
        attempt = make_attempt(
            delivery_id=delivery_id,
            event_id=f"e_{delivery_id.partition('~')[0]}",
            **{"outcome": "success" if ok else "failed", "error_kind": None, **fields},
        )
        at = now() - timedelta(seconds=age_s)
        log = make_log("x", attempt=attempt, at=at, status=200 if ok else 503, webhook_id=str(webhook_id))
        self.logs.write([log])

    def owe(self, delivery_id: str, *, webhook_id: ObjectId = WEBHOOK, held: bool = False, due_in_s: float = 0) -> None:
        one = Delivery(delivery_id, "e", webhook_id, ObjectId(COMPANY), "…", "{}", is_held=held)
        self.deliveries.add([one], self.deliveries.now() + timedelta(seconds=due_in_s))

    def take(self) -> list[str]:
        """Return what was queued since the last call, as if it had been taken and is being attempted."""
        taken, self.queued = self.queued, []
        self.database["deliveries"].delete_many({"_id": {"$in": taken}})
        return taken

    def begin(self, rate: float = 10, **filters: str) -> ResendJob:
        self.actions.begin(action_id := ObjectId(), by="me", action="r", webhook_id=None, delivery_id=None, reason="")
        filters = {"result": "failed", "since": "2026-01-01", **filters}
        return self.resend_jobs.begin(
            by="me", action_id=action_id, filters=filters, rate=rate, total=9, at=self.deliveries.now()
        )

    def run(self, job: ResendJob, *, most: int = 50, is_taken: bool = True) -> list[str]:
        """Carry a job out, a step each tenth of a second, and return what it sent."""
        sent = []
        for _ in range(most):
            self.seconds += 0.1
            _, goes_on = self.resender.step(self.services, job)
            sent += self.take() if is_taken else []
            if not goes_on:
                break
        return sent

    def get(self, job: ResendJob) -> ResendJob:
        found = self.resend_jobs.get(job.job_id)
        assert found is not None
        return found


@pytest.fixture
def world(database: Documents, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(database)
    monkeypatch.setattr(operate, "queue_attempts", lambda found: world.queued.extend(one.delivery_id for one in found))
    return world


def test_failed_for_good_is_what_ended_so_and_has_not_been_resent_since(world: World):
    world.log("msg_failed")
    world.log("msg_retried", next_at=now())
    world.log("msg_late")
    world.log("msg_late", ok=True, age_s=30)
    world.log("msg_pending")
    world.owe("msg_pending~1")
    world.log("msg_resent")
    world.log("msg_resent~1", ok=True, age_s=30)
    world.log("msg_twice")
    world.log("msg_twice~1", age_s=30)
    world.log("msg_kept", kept=True)
    world.log("msg_skipped", error_kind="skipped")
    world.log("msg_undone", ok=True, age_s=90)
    world.log("msg_undone~1", age_s=30)
    found, after = world.failed.find_batch(FAILED, None)
    assert {one.delivery_id for one in found} == {"msg_failed", "msg_twice~1", "msg_undone~1"}
    assert after is None
    assert world.failed.count(FAILED, 1_000) == ({WEBHOOK: 3}, False)


def test_batches_miss_none_and_repeat_none(world: World, monkeypatch: pytest.MonkeyPatch):
    world.logs.ensure_indexes(0)  # their order is the one of logs of one instant
    monkeypatch.setattr("webhooks.store.failed.BATCH", 2)
    at = datetime.fromisoformat("2026-05-05T12:00:00Z")
    for number in range(7):
        attempt = make_attempt(delivery_id=f"msg_{number}", event_id="e", error_kind=None)
        world.logs.write([make_log("x", attempt=attempt, at=at, status=500)])
    found, after = world.failed.find_batch(FAILED, None)
    while after is not None:
        more, after = world.failed.find_batch(FAILED, after)
        found += more
    assert sorted(one.delivery_id for one in found) == [f"msg_{number}" for number in range(7)]
    assert world.failed.count(FAILED, 4) == ({WEBHOOK: 4}, True)


def test_looking_for_what_became_of_a_delivery_reads_an_index(world: World):
    for number in range(200):
        world.log(f"msg_{number:03}")
    world.logs.ensure_indexes(0)
    found, _ = world.failed.find_batch(FAILED, None)
    world.database.command("profile", 2)
    assert world.failed.keep_failed(found[:1]) == found[:1]
    world.database.command("profile", 0)
    (read,) = world.database["system.profile"].find({"command.find": "webhooklogs"})
    assert (read["keysExamined"], read["docsExamined"]) <= (3, 1)


def test_job_resends_each_once_in_their_order_and_says_so(world: World):
    world.add_webhook(WEBHOOK)
    for number in range(5):
        world.log(f"msg_{number}", age_s=60 - number)
    job = world.begin()
    assert world.run(job) == [f"msg_{number}~{job.job_id}" for number in range(5)]
    done = world.get(job)
    assert (done.state, done.resent, done.left_out) == (JobState.DONE, 5, 0)
    record = world.actions.get(job.action_id)  # pyright: ignore[reportArgumentType]
    assert record is not None
    assert record.result == "5 of 9 deliveries were resent, 0 were left out."


def test_job_that_begins_anew_resends_none_twice(world: World):
    world.add_webhook(WEBHOOK)
    for number in range(4):
        world.log(f"msg_{number}", age_s=60 - number)
    job = world.begin()
    first = world.run(job, most=1) + world.run(job, most=1)
    for one in first:  # they fail once more, and the job's worker dies
        world.log(one, age_s=-1)
    world.resender = Resender(lambda: world.seconds)
    second = world.run(job)
    assert not {*first} & {*second}
    assert len(first + second) == 4


def test_job_marks_what_it_sends_so_that_the_ledger_takes_it_once(world: World, monkeypatch: pytest.MonkeyPatch):
    world.add_webhook(WEBHOOK)
    world.log("msg_1")
    job = world.begin()
    monkeypatch.setattr(world.failed, "keep_failed", list)  # two workers that find it at one time
    monkeypatch.setattr(world.failed, "has_room", lambda *_: True)
    for _ in range(2):
        world.run(job, is_taken=False)
        world.resender = Resender(lambda: world.seconds)
        world.resend_jobs.change(job.job_id, JobState.DONE, JobState.RUNNING)
    (pending,) = world.database["deliveries"].find()
    assert pending["_id"] == f"msg_1~{job.job_id}"


@pytest.mark.parametrize("why", ["live", "held", "paused", "retrying"])
def test_webhook_without_room_waits_and_others_go_on(world: World, why: str):
    world.add_webhook(WEBHOOK)
    other = world.add_webhook()
    world.log("msg_1")
    world.log("msg_2", webhook_id=other)
    match why:
        case "live":
            world.owe("msg_live")
        case "held":
            world.owe("msg_live", held=True)
        case "paused":
            world.gates.pause(WEBHOOK, By.OPERATOR, "they move")
        case _:
            for number in range(10):
                world.owe(f"msg_live{number}", due_in_s=30)
    job = world.begin()
    assert world.run(job, most=20) == [f"msg_2~{job.job_id}"]
    assert world.get(job).waits.startswith(f"code_{WEBHOOK}: ")
    world.database["deliveries"].delete_many({})
    world.gates.resume(WEBHOOK)
    assert world.run(job) == [f"msg_1~{job.job_id}"]


@pytest.mark.parametrize(("rate", "most"), [(10, 1), (1_000, 4)])
def test_few_wait_in_the_lane_of_their_webhook(world: World, rate: float, most: int):
    world.add_webhook(WEBHOOK)
    for number in range(9):
        world.log(f"msg_{number}", age_s=60 - number)
    world.run(world.begin(rate=rate), most=10, is_taken=False)
    assert len(world.queued) == most


def test_rate_holds(world: World):
    for _ in range(20):
        world.log(f"msg_{ObjectId()}", webhook_id=world.add_webhook())
    assert len(world.run(world.begin(rate=5), most=20)) in (9, 10)


def test_what_cannot_be_resent_is_left_out(world: World):
    world.add_webhook(WEBHOOK, isActive=False)
    world.log("msg_inactive")
    other = world.add_webhook()
    world.log("msg_cut", webhook_id=other, event_cut=True)
    world.log("msg_gone", webhook_id=ObjectId())
    job = world.begin()
    assert world.run(job) == []
    done = world.get(job)
    assert (done.state, done.resent, done.left_out) == (JobState.DONE, 0, 3)


def test_stopped_job_stops_at_once_and_goes_on_later(world: World):
    world.add_webhook(WEBHOOK)
    for number in range(6):
        world.log(f"msg_{number}", age_s=60 - number)
    job = world.begin()
    first = world.run(job, most=1)
    assert world.resend_jobs.change(job.job_id, JobState.RUNNING, JobState.STOPPED)
    first += world.run(job)
    assert world.resender.resend(world.services, Settings()) == 0
    assert len(first) < 6
    for one in first:
        world.log(one, ok=True, age_s=-1)
    assert world.resend_jobs.change(job.job_id, JobState.STOPPED, JobState.RUNNING)
    second = world.run(job)
    assert (len(first + second), len({*first, *second})) == (6, 6)
    assert world.get(job).resent == 6


@pytest.mark.parametrize(
    "change", [{"filter": 1}, {"filter": {"since": "soon"}}, {"at": "x"}, {"filter.since": None}, {"rate": "x"}]
)
def test_job_that_was_changed_by_hand_resends_nothing(world: World, change: dict[str, Any]):
    world.add_webhook(WEBHOOK)
    world.log("msg_1")
    world.begin()
    world.database["resendjobs"].update_one({}, {"$set": change})
    (job,) = world.resend_jobs.find_running()
    assert world.run(job) == []


def test_filters_choose(world: World):
    world.add_webhook(WEBHOOK)
    world.log("msg_old", age_s=7_200)
    world.log("msg_new")
    world.log("msg_tls", error_kind="tls")
    assert world.run(world.begin(since=f"{now() - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", kind="tls")) != []
    assert world.run(world.begin(since="1h", status="503"))[0].startswith("msg_new~")
    assert world.run(world.begin(until="1h"))[0].startswith("msg_old~")


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(
    redis_url: str, redis_client: object, database: Documents, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in this process."""
    host, port = database.client.address or ("", 0)
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", f"mongodb://{host}:{port}/{database.name}")
    monkeypatch.setattr(resend_cmd, "_POLL_S", 0.01)
    monkeypatch.setattr(operate, "_KNOWN_AFTER_S", 0.01)
    return lambda *args: CliRunner().invoke(cli, args)


def test_command_counts_begins_watches_and_stops(world: World, run: Callable[..., Result]):
    world.add_webhook(WEBHOOK)
    for number in range(3):
        world.log(f"msg_{number}", age_s=60 - number)
    asked = run("resend", "--failed", "--since", "1h")
    assert asked.exit_code == 2
    assert "3 deliveries of 1 webhook failed for good" in asked.stderr
    assert "give --yes" in asked.stderr
    assert world.resend_jobs.find_running() == []
    begun = run("resend", "--failed", "--since", "1h", "--webhook", str(WEBHOOK), "--yes", "--json")
    assert begun.exit_code == 0, begun.stderr
    job = json.loads(begun.stdout)
    assert job["total"] == 3
    assert job["filter"]["webhook"] == str(WEBHOOK)
    (record,) = world.database["operatoractions"].find()
    assert (record["action"], record["webhook_id"]) == ("resend-failed", WEBHOOK)
    assert "@" in record["by"]
    assert "stopped. 0 of 3 deliveries resent" in run("resend", "--stop", job["job_id"]).stdout
    assert run("resend", "--stop", job["job_id"]).exit_code == 1
    assert "Stopped by" in (world.database["operatoractions"].find_one() or {})["result"]
    assert run("resend", "--continue", job["job_id"], "--detach").exit_code == 0
    assert run("resend", "--continue", job["job_id"]).exit_code == 1
    assert "Continued by" in (world.database["operatoractions"].find_one() or {})["result"]
    (running,) = world.resend_jobs.find_running()
    assert len(world.run(running)) == 3
    watched = run("resend", "--watch", job["job_id"])
    assert "done. 3 of 3 deliveries resent." in watched.stdout
    assert job["job_id"] in run("resend", "--list").stdout


def test_command_of_nothing_to_resend(world: World, run: Callable[..., Result]):
    assert run("resend", "--failed", "--since", "1h").stdout == "nothing to resend\n"
    assert "needs --since" in run("resend", "--failed").stderr
    assert run("resend").exit_code == 2
    assert run("resend", "msg_1", "--failed").exit_code == 2
    assert "there is no job x" in run("resend", "--stop", "x").stderr
    assert "nothing is known" in run("resend", "msg_1").stderr


def test_ctrl_c_stops_the_job_and_says_how_to_go_on(
    world: World, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    world.add_webhook(WEBHOOK)
    world.log("msg_1")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resend_cmd, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    result = run("resend", "--failed", "--since", "1h", "--yes")
    assert result.exit_code == 130
    (job,) = world.resend_jobs.find(10)
    assert job.state is JobState.STOPPED
    assert f"webhooks resend --continue {job.job_id}" in result.stdout


def test_one_delivery_is_resent_on_record(world: World, run: Callable[..., Result]):
    world.add_webhook(WEBHOOK)
    world.log("msg_1")
    result = run("resend", "msg_1", "--wait", "0")
    assert (result.exit_code, result.stdout) == (0, "sent as msg_1~1\n")
    (record,) = world.database["operatoractions"].find()
    assert (record["action"], record["delivery_id"]) == ("resend", "msg_1")
    again = run("resend", "msg_1~1")
    assert again.exit_code == 1
    assert "webhook" in again.stderr or "known" in again.stderr


def test_test_event_is_sent_and_its_outcome_shown(world: World, run: Callable[..., Result]):
    world.add_webhook(WEBHOOK)
    sent = run("test", str(WEBHOOK), "--wait", "0")
    assert sent.exit_code == 0, sent.stderr
    (pending,) = world.database["deliveries"].find()
    assert sent.stdout == f"sent as {pending['_id']}\n"
    world.gates.pause(WEBHOOK, By.OPERATOR, "they move")
    waited = run("test", str(WEBHOOK))
    assert waited.exit_code == 1
    assert "an operator paused the webhook: they move" in waited.stdout
    run("deactivate", str(WEBHOOK))
    refused = run("test", str(WEBHOOK))
    assert (refused.exit_code, refused.stderr) == (1, "webhooks: The webhook is inactive. Activate it first.\n")
    results = [one.get("result") for one in world.database["operatoractions"].find()]
    assert results[-1] == "Not done. The webhook is inactive. Activate it first."
