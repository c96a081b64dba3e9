"""Operators see and steer a webhook's pending deliveries: the commands on a real MongoDB, without a worker."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from click.testing import CliRunner, Result
from pymongo.database import Database

from tests.lab.logs import COMPANY, make_attempt, make_log
from webhooks.cli import cli
from webhooks.delivery import operate
from webhooks.models import COTWebhookLog, now
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery, DeliveryStore
from webhooks.store.gates import By, GateStore, State
from webhooks.store.logs import LogStore

Documents = Database[dict[str, Any]]
Run = Callable[..., Result]

WEBHOOK = ObjectId("62685990d918fb5557f9f992")
NAME = f"wo_update ({WEBHOOK}) of company {COMPANY}"
BODY = make_log().event.to_json()
#: As long as a claim holds.
CLAIM_S = 25


@pytest.fixture
def run(redis_url: str, database: Documents, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, on a webhook that is there."""
    host, port = database.client.address or ("", 0)
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", f"mongodb://{host}:{port}/{database.name}")
    monkeypatch.setattr(operate, "_KNOWN_AFTER_S", 0.01)
    database["webhooks"].insert_one(
        {
            "_id": WEBHOOK,
            "company": ObjectId(COMPANY),
            "isActive": True,
            "trigger": "create-edit-delete-task",
            "url": "https://a.example/hook",
            "code": "wo_update",
        }
    )
    return lambda *args: CliRunner().invoke(cli, args)


@pytest.fixture
def gates(database: Documents) -> GateStore:
    return GateStore(database)


@pytest.fixture
def ledger(database: Documents) -> DeliveryStore:
    return DeliveryStore(database, CLAIM_S, 10)


def owe(
    ledger: DeliveryStore, *names: str, held: bool = False, first_place: int | None = None, age_s: float = 0
) -> None:
    """Write down deliveries, each a second younger than the one before it."""
    for number, name in enumerate(names):
        place = None if first_place is None else first_place + number
        delivery = Delivery(
            f"msg_{name}", f"event_{name}", WEBHOOK, ObjectId(COMPANY), "…", BODY, place=place, is_held=held
        )
        ledger.add([delivery], ledger.now() - timedelta(seconds=age_s - number))


def owed(database: Documents) -> set[str]:
    return {document["_id"].removeprefix("msg_") for document in database["deliveries"].find()}


def logs(database: Documents) -> list[COTWebhookLog]:
    return [COTWebhookLog.model_validate(document) for document in database["webhooklogs"].find().sort("_id", 1)]


# ── Pause, resume, drain ────────────────────────────────────────────────────────────────────────────────────────────


def test_pause_and_resume_say_what_is_so_in_one_line(run: Run, gates: GateStore, ledger: DeliveryStore) -> None:
    owe(ledger, "a", "b", held=True)
    gates.note_held([WEBHOOK])
    result = run("pause", "wo_update", "--reason", " too\nslow\x1b[2J ")
    assert (result.exit_code, result.stdout) == (0, f"{NAME} is paused; 2 held\n")
    gate = gates.get(WEBHOOK)
    assert (gate.state, gate.by, gate.reason) == (State.PAUSED, By.OPERATOR, "too slow\x1b[2J")
    assert run("pause", "wo_update").stdout == f"{NAME} is paused by an operator already; 2 held\n"
    assert gates.get(WEBHOOK).reason == "too slow\x1b[2J"
    assert run("resume", "wo_update").stdout == f"{NAME} gets its held deliveries, slowly at first; 2 held\n"
    assert gates.get(WEBHOOK).state is State.RECOVERING
    assert run("resume", "wo_update").stdout == f"{NAME} is not paused; 2 held\n"
    assert (
        run("drain", "wo_update").stdout
        == f"{NAME} gets its held deliveries, as fast as its endpoint accepts them; 2 held\n"
    )
    assert [notice.type.value for notice in gates.get(WEBHOOK).notices] == ["paused", "resumed"]


@pytest.mark.parametrize("command", ["resume", "drain"])
def test_what_is_open_stays_so(run: Run, gates: GateStore, command: str) -> None:
    assert run(command, str(WEBHOOK)).stdout == f"{NAME} is not paused; 0 held\n"
    assert gates.get(WEBHOOK).is_open


def test_resume_where_nothing_was_kept_is_active_at_once(run: Run, gates: GateStore) -> None:
    run("pause", "wo_update")
    assert run("resume", "wo_update").stdout == f"{NAME} is active; 0 held\n"
    assert gates.get(WEBHOOK).is_open


def test_operator_pauses_what_health_paused_already(run: Run, gates: GateStore) -> None:
    gates.pause(WEBHOOK, By.HEALTH, "it failed", 60)
    assert run("pause", "wo_update", "--reason", "by hand").exit_code == 0
    gate = gates.get(WEBHOOK)
    assert (gate.by, gate.reason, gate.probe_at) == (By.OPERATOR, "by hand", None)


def test_commands_as_json(run: Run) -> None:
    paused = json.loads(run("pause", "wo_update", "--reason", "slow", "--json").stdout)
    assert paused.pop("since").endswith("Z")
    assert paused == {
        "_id": str(WEBHOOK),
        "state": "paused",
        "by": "operator",
        "reason": "slow",
        "kept": 0,
        "changed": True,
    }
    assert json.loads(run("pause", "wo_update", "--json").stdout)["changed"] is False
    assert json.loads(run("resume", "wo_update", "--json").stdout)["state"] == "open"


@pytest.mark.parametrize("command", ["resume", "drain"])
def test_stopped_webhook_begins_its_head_anew(
    run: Run, gates: GateStore, ledger: DeliveryStore, database: Documents, command: str
) -> None:
    owe(ledger, "a", "b", held=True, first_place=1)
    gates.note_held([WEBHOOK])
    database["deliveries"].update_many({}, {"$set": {"retry": 3}})
    gates.stop(WEBHOOK, "used up")
    assert run(command, "wo_update").exit_code == 0
    assert {one["_id"]: one["retry"] for one in database["deliveries"].find()} == {"msg_a": 0, "msg_b": 3}
    assert gates.get(WEBHOOK).state is State.RECOVERING


def test_resume_tells_of_a_receiver_that_asked_us_to_wait(run: Run, gates: GateStore) -> None:
    gates.hold(WEBHOOK, 600)
    run("pause", "wo_update")
    assert "; its receiver asked to wait until 20" in run("resume", "wo_update").stdout


@pytest.mark.parametrize("command", ["pause", "resume", "drain", "skip"])
def test_webhook_that_is_not_there_or_has_no_object_id_is_one_line(run: Run, database: Documents, command: str) -> None:
    database["webhooks"].insert_many([{"_id": "text", "code": "by_hand"}, {"_id": {"a": 1}, "code": "odd"}])
    for reference, said in (
        ("nobody", "no webhook nobody"),
        ("by_hand", "is not an ObjectId"),
        ("odd", "is not an ObjectId"),
    ):
        result = run(command, reference)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert said in result.stderr
    assert database["gates"].count_documents({}) == 0
    assert run("list").exit_code == 0
    assert run("list", "--json").exit_code == 0
    assert run("show", "odd").exit_code == 0


# ── Skip ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_skip_gives_up_the_oldest_and_its_log_says_so(run: Run, ledger: DeliveryStore, database: Documents) -> None:
    owe(ledger, "old", "new", age_s=60)
    result = run("skip", "wo_update")
    assert (result.exit_code, result.stdout) == (0, f"skipped msg_old of {NAME}\n")
    assert owed(database) == {"new"}
    [log] = logs(database)
    assert (log.status, log.response, log.retry, log.subscription) == (409, "skipped by an operator", 0, WEBHOOK)
    attempt = log.details
    assert (attempt.delivery_id, attempt.error_kind, attempt.next_at) == ("msg_old", "skipped", None)
    assert (attempt.webhook, attempt.origin, attempt.worker) == ("wo_update", "https://a.example", None)
    assert log.event.to_json() == BODY


@pytest.mark.parametrize("is_head_out", [False, True], ids=["kept", "out"])
def test_skip_of_an_ordered_webhook_gives_up_the_head(
    run: Run, ledger: DeliveryStore, database: Documents, is_head_out: bool
) -> None:
    # Written down in an order that is not the line's.
    owe(ledger, "second", held=True, first_place=2, age_s=60)
    owe(ledger, "first", held=not is_head_out, first_place=1)
    owe(ledger, "third", held=True, first_place=3, age_s=90)
    assert run("skip", "wo_update").exit_code == 0
    assert owed(database) == {"second", "third"}


def test_skip_lets_a_stopped_webhook_go_on(
    run: Run, gates: GateStore, ledger: DeliveryStore, database: Documents
) -> None:
    owe(ledger, "a", "b", held=True, first_place=1)
    gates.note_held([WEBHOOK])
    gates.stop(WEBHOOK, "used up")
    assert run("skip", "wo_update").exit_code == 0
    assert owed(database) == {"b"}
    assert gates.get(WEBHOOK).state is State.RECOVERING
    assert [notice.type.value for notice in gates.get(WEBHOOK).notices] == ["stopped", "resumed"]


def test_skip_leaves_a_paused_webhook_paused(run: Run, gates: GateStore, ledger: DeliveryStore) -> None:
    owe(ledger, "a", held=True)
    run("pause", "wo_update")
    assert run("skip", "wo_update").exit_code == 0
    assert gates.get(WEBHOOK).state is State.PAUSED


def test_skip_of_what_a_worker_attempts_changes_nothing(
    run: Run, gates: GateStore, ledger: DeliveryStore, database: Documents
) -> None:
    owe(ledger, "a", held=True)
    gates.stop(WEBHOOK, "used up")
    [claimed] = ledger.claim([Claim("msg_a", 0, ObjectId(), "w@h")])
    assert isinstance(claimed, Claimed)
    before = list(database["deliveries"].find())
    result = run("skip", "wo_update")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "1 delivery not skipped, because of an attempt in flight: try again" in result.stderr
    assert (list(database["deliveries"].find()), logs(database)) == (before, [])
    assert gates.get(WEBHOOK).state is State.STOPPED


def test_worker_finds_nothing_owed_after_a_skip(run: Run, ledger: DeliveryStore) -> None:
    owe(ledger, "a")
    run("skip", "wo_update")
    assert ledger.claim([Claim("msg_a", 0, ObjectId(), "w@h")]) == [None]


def test_skip_logs_an_attempt_of_a_worker_that_died(run: Run, ledger: DeliveryStore, database: Documents) -> None:
    owe(ledger, "a")
    died, lost = ObjectId(), {"worker": "w@h", "at": now() - timedelta(minutes=2)}
    claim = {"log_id": died, "retry": 0, "until": now() - timedelta(minutes=1), **lost}
    database["deliveries"].update_one({}, {"$set": {"claim": claim}})
    assert run("skip", "wo_update").exit_code == 0
    assert owed(database) == set()
    found = {log.details.error_kind: log for log in logs(database)}
    assert set(found) == {"interrupted", "skipped"}
    interrupted = found["interrupted"]  # pyright: ignore[reportArgumentType]
    assert (interrupted.id, interrupted.details.worker, interrupted.details.total_ms) == (died, "w@h", None)
    assert interrupted.details.next_at is not None


def test_skip_takes_an_attempt_that_is_on_record_for_what_it_was(
    run: Run, ledger: DeliveryStore, database: Documents
) -> None:
    owe(ledger, "a", "b", age_s=60)
    log_id, long_ago = ObjectId(), now() - timedelta(minutes=1)
    claim = {"log_id": log_id, "retry": 0, "worker": "w@h", "at": long_ago, "until": long_ago}
    database["deliveries"].update_one({"_id": "msg_a"}, {"$set": {"claim": claim}})
    attempt = make_attempt(delivery_id="msg_a", outcome="success", error_kind=None)
    LogStore(database).write([make_log(attempt=attempt, status=200, retry=0, log_id=log_id)])
    result = run("skip", "wo_update")
    assert result.stdout == f"skipped msg_b of {NAME}\n"
    assert owed(database) == set()
    assert [log.details.delivery_id for log in logs(database) if log.details.error_kind] == ["msg_b"]


@pytest.mark.parametrize(
    "change", [{"$unset": {"body": ""}}, {"$set": {"body": "{}"}}, {"$set": {"event_id": 5}}], ids=["no", "bad", "id"]
)
def test_skip_of_what_cannot_be_put_on_record_keeps_it(
    run: Run, ledger: DeliveryStore, database: Documents, change: dict[str, Any]
) -> None:
    owe(ledger, "a", held=True)
    database["deliveries"].update_one({}, change)
    before = list(database["deliveries"].find())
    for args in ([], ["--all"]):
        result = run("skip", "wo_update", *args)
        assert result.exit_code == 1
        assert "delivery msg_a cannot be skipped: " in result.stderr
        assert list(database["deliveries"].find()) == before
    assert logs(database) == []


def test_skip_all_gives_up_what_is_kept_and_nothing_else(
    run: Run, gates: GateStore, ledger: DeliveryStore, database: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhooks.cli.gate_cmd._AT_ONCE", 2)
    owe(ledger, *"abcde", held=True, age_s=60)
    owe(ledger, "out")
    [claimed] = ledger.claim([Claim("msg_b", 0, ObjectId(), "w@h")])
    assert not isinstance(claimed, Blocked)
    result = run("skip", "wo_update", "--all")
    assert result.exit_code == 1
    assert result.stdout == f"skipped 4 deliveries, held for {NAME}\n"
    assert "1 delivery not skipped" in result.stderr
    assert owed(database) == {"b", "out"}
    assert len(logs(database)) == 4
    assert gates.get(WEBHOOK).is_open


def test_skip_of_nothing_says_so(run: Run) -> None:
    assert run("skip", "wo_update").stdout == f"no pending deliveries of {NAME}\n"
    result = run("skip", "wo_update", "--all")
    assert (result.exit_code, result.stdout) == (0, f"no held deliveries of {NAME}\n")
    assert run("skip", "wo_update", "--json").stdout == ""


def test_skip_as_json_is_one_line_per_delivery(run: Run, ledger: DeliveryStore, database: Documents) -> None:
    owe(ledger, "a", "b", held=True, age_s=60)
    found = [json.loads(line) for line in run("skip", "wo_update", "--all", "--json").stdout.splitlines()]
    assert [(one["delivery_id"], one["retry"]) for one in found] == [("msg_a", 0), ("msg_b", 0)]
    assert [one["log"] for one in found] == [str(log.id) for log in logs(database)]


# ── What operators see ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["active", "paused", "recovering", "stopped", "inactive"])
def test_list_shows_the_state(run: Run, gates: GateStore, database: Documents, state: str) -> None:
    match state:
        case "paused":
            gates.pause(WEBHOOK, By.HEALTH, "it failed", 60)
        case "recovering":
            gates.pause(WEBHOOK, By.HEALTH, "it failed", 60)
            gates.recover(WEBHOOK, "answered")
        case "stopped":
            gates.stop(WEBHOOK, "used up")
        case "inactive":
            database["webhooks"].update_one({}, {"$set": {"isActive": False}})
    [_, line] = run("list", "--all").stdout.splitlines()
    assert line.split()[2] == state
    assert json.loads(run("list", "--all", "--json").stdout)["state"] == state
    assert f"state         {state}" in run("show", "wo_update").stdout


def test_show_says_how_deliveries_stand(run: Run, gates: GateStore, ledger: DeliveryStore) -> None:
    owe(ledger, "a", "b", held=True, age_s=3700)
    owe(ledger, "c")
    gates.pause(WEBHOOK, By.HEALTH, "20 of 20 attempts failed\x1b[2J", 60)
    gates.hold(WEBHOOK, 600)
    out = run("show", "wo_update").stdout
    assert "state         paused for " in out
    assert "by its endpoint's failures: 20 of 20 attempts failed\\x1b[2J" in out
    assert "pending       2 held, 1 to send" in out
    assert "oldest        msg_a: pending for 1 h 1 min, since 20" in out
    assert "held back     for 10 min, until 20" in out or "held back     for 9 min 59 s, until 20" in out
    assert "Last changes:\n20" in out
    assert "  paused  20 of 20 attempts failed\\x1b[2J\n" in out
    standing = json.loads(run("show", "wo_update", "--json").stdout)["standing"]
    assert (standing["state"], standing["by"], standing["kept"], standing["outstanding"]) == ("paused", "health", 2, 1)
    assert standing["oldest"] == "msg_a"
    assert [notice["type"] for notice in standing["notices"]] == ["paused"]


def test_show_of_a_webhook_that_is_open_is_short(run: Run) -> None:
    out = run("show", "wo_update").stdout
    assert "state         active\n" in out
    assert "pending       0 held, 0 to send\n" in out
    assert not any(word in out for word in ("oldest", "held back", "Last changes"))


@pytest.mark.parametrize(
    "gate",
    [
        {"state": 5, "by": [], "reason": {}, "since": "x", "hold_until": 1, "notices": "x"},
        {"state": "paused", "by": "health", "rate": "x", "notices": [5, {"id": 1}, None]},
        {"state": "recovering", "rate": float("nan"), "since": None},
    ],
    ids=["types", "notices", "nan"],
)
def test_gate_that_somebody_changed_is_shown(run: Run, database: Documents, gate: dict[str, Any]) -> None:
    database["gates"].insert_one({"_id": WEBHOOK, **gate})
    for args in (["list"], ["list", "--json"], ["show", "wo_update"], ["show", "wo_update", "--json"]):
        result = run(*args)
        assert result.exit_code == 0, result.stderr


# ── Activate and deactivate ─────────────────────────────────────────────────────────────────────────────────────────


def test_activate_forgets_why_and_opens(run: Run, gates: GateStore, ledger: DeliveryStore, database: Documents) -> None:
    database["webhooks"].update_one({}, {"$set": {"isActive": False, "deactivated": {"reason": "410", "told": True}}})
    before = database["webhooks"].find_one() or {}
    owe(ledger, "a", held=True)
    gates.note_held([WEBHOOK])
    gates.pause(WEBHOOK, By.OPERATOR, "by hand")
    assert run("activate", "wo_update").stdout == f"{NAME} is active\n"
    expected = {field: value for field, value in before.items() if field != "deactivated"}
    assert database["webhooks"].find_one() == {**expected, "isActive": True}
    assert gates.get(WEBHOOK).state is State.RECOVERING


def test_deactivate_opens_so_that_what_is_kept_ends_and_is_told_once(run: Run, gates: GateStore) -> None:
    gates.pause(WEBHOOK, By.OPERATOR, "by hand")
    for _ in range(2):
        assert run("deactivate", "wo_update").stdout == f"{NAME} is inactive\n"
    gate = gates.get(WEBHOOK)
    assert gate.is_open
    assert [notice.type.value for notice in gate.notices] == ["paused", "deactivated"]
