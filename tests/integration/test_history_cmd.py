"""What became of deliveries and events, on the command line: the same as on the pages."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from click.testing import CliRunner, Result
from pymongo.database import Database

from tests.lab.logs import COMPANY, WEBHOOK_ID, make_attempt, make_log
from webhooks.cli import cli
from webhooks.models import COTWebhook, now, parse_event
from webhooks.store.deliveries import Delivery, DeliveryStore
from webhooks.store.gates import By, GateStore
from webhooks.store.logs import LogStore
from webhooks.store.search import LogSearch
from webhooks.store.stores import Stores
from webhooks.store.traces import TraceStore

Documents = Database[dict[str, Any]]
Run = Callable[..., Result]

DELIVERY = "msg_0cea2d5116f952fe568a2b89190da185"
EVENT_ID = "9c488d62-0022-4a4a-9d99-b6c009af59d8"


@pytest.fixture
def run(redis_url: str, database: Documents, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, on a webhook that is there."""
    host, port = database.client.address or ("", 0)
    monkeypatch.setenv("WEBHOOKS_BROKER_URL", redis_url)
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", f"mongodb://{host}:{port}/{database.name}")
    value = {
        "_id": WEBHOOK_ID,
        "company": COMPANY,
        "isActive": True,
        "trigger": "create-edit-delete-task",
        "url": "https://a.example/hook",
        "code": "wo_update",
    }
    database["webhooks"].insert_one(COTWebhook.model_validate(value).to_bson())
    return lambda *args: CliRunner().invoke(cli, args)


def fail(database: Documents, retry: int = 0, *, age_s: float = 60, is_last: bool = True, **attempt: Any) -> None:
    at = now() - timedelta(seconds=age_s)
    details = make_attempt(
        delivery_id=DELIVERY,
        event_id=EVENT_ID,
        error_kind=None,
        started_at=at,
        next_at=None if is_last else at + timedelta(seconds=30),
        wait_ms=9.5,
        read_ms=1500,
        **attempt,
    )
    LogStore(database).write([make_log("busy\nmore", attempt=details, at=at, status=503, retry=retry)])


def owe(database: Documents, delivery_id: str = DELIVERY, *, held: bool = False, due_in_s: float = 0) -> None:
    body = make_log().event.to_json()
    one = Delivery(
        delivery_id, EVENT_ID, ObjectId(WEBHOOK_ID), ObjectId(COMPANY), "COTTask create → wo_update", body, is_held=held
    )
    ledger = DeliveryStore(database, 25, 10)
    ledger.add([one], ledger.now() + timedelta(seconds=due_in_s))


# ── Logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        (["--status", "404"], ["1"]),
        (["--status", "4xx"], ["1", "3"]),
        (["--status", "none"], ["2"]),
        (["--kind", "tls"], ["2"]),
        (["--type", "COTTask"], ["0", "1", "2", "3"]),
        (["--type", "COTTask edit"], []),
        (["--object", "o1"], []),
        (["--status", "4xx", "-n", "1"], ["3"]),
    ],
    ids=" ".join,
)
def test_filters_are_those_of_the_page(run: Run, database: Documents, args: list[str], numbers: list[str]):
    for number, (status, kind) in enumerate([(200, None), (404, None), (409, "tls"), (409, None)]):
        outcome = "success" if status == 200 else "failed"
        attempt = make_attempt(delivery_id=f"msg_{number}", outcome=outcome, error_kind=kind)
        at = now() - timedelta(minutes=9 - number)
        LogStore(database).write([make_log(str(number), attempt=attempt, at=at, status=status)])
    result = run("logs", *args)
    assert result.exit_code == 0, result.stderr
    assert [line.split()[-1] for line in result.stdout.splitlines()[1:]] == numbers


def test_webhook_that_is_not_one_is_an_error(run: Run, database: Documents):
    result = run("logs", "--webhook", "nothing")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "webhooks: --webhook nothing: there is no webhook with this code or id\n"
    database["webhooks"].insert_one(
        {**(database["webhooks"].find_one() or {}), "_id": ObjectId(), "company": ObjectId()}
    )
    assert "several companies have a webhook with this code" in run("logs", "--webhook", "wo_update").stderr
    assert run("logs", "--webhook", "wo_update", "--company", COMPANY).stderr == "webhooks: no logs found\n"


def test_search_without_an_index_ends_at_its_bound_and_says_so(
    run: Run, database: Documents, monkeypatch: pytest.MonkeyPatch
):
    for number in range(30):
        attempt = make_attempt(delivery_id=f"msg_{number}", error_kind=None)
        at = now() - timedelta(minutes=number)
        LogStore(database).write([make_log("x", attempt=attempt, at=at, status=503 if number else 500)])
    monkeypatch.setattr(Stores, "search", LogSearch(database, searched_at_most=2))
    result = run("logs", "--status", "500")
    assert len(result.stdout.splitlines()) == 2
    assert "no index serves these filters, so only logs since " in result.stderr
    _, _, later = result.stderr.partition("--until ")
    assert run("logs", "--status", "5xx", "--until", later.split()[0], "-n", "1").stdout.count("msg_") == 1


def test_first_characters_of_an_id_are_enough(run: Run, database: Documents):
    fail(database)
    assert DELIVERY in run("logs", "--delivery", DELIVERY[:12]).stdout
    assert DELIVERY in run("logs", "--event", EVENT_ID[:8]).stdout
    assert run("show", DELIVERY[:12]).exit_code == 0
    owe(database, f"{DELIVERY}~1")
    assert f"{DELIVERY}~1" in run("show", f"{DELIVERY[:12]}~1").stdout
    owe(database, DELIVERY[:14] + "f" * 22)
    result = run("show", DELIVERY[:12])
    assert result.exit_code == 1
    assert "is the beginning of several ids" in result.stderr
    assert run("logs", "--delivery", "msg_").stdout == ""


# ── Deliveries ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_delivery_is_shown_on_a_time_line(run: Run, database: Documents):
    fail(database, age_s=90, is_last=False)
    fail(database, 1, age_s=60)
    out = run("show", DELIVERY).stdout
    assert out.startswith("failed")
    for text in (
        "attempt 2 was the last of its retries",
        "wo_update create-edit-delete-task, https://a.example/hook",
        "wait 10 ms, read 1.50 s",
        "The receiver answered 503 Service Unavailable: the receiver had an error.",
        "… 30 s later: the delay between retries",
        "busy …",
    ):
        assert text in out
    shown = json.loads(run("show", DELIVERY, "--json").stdout)
    assert (shown["delivery_id"], shown["event_id"], shown["stage"]) == (DELIVERY, EVENT_ID, "failed")
    assert [one["retry"] for one in shown["attempts"]] == [0, 1]
    assert json.loads(shown["body"])["type"] == "COTTask"


def test_failed_delivery_says_as_what_it_was_resent(run: Run, database: Documents):
    fail(database)
    owe(database, f"{DELIVERY}~1")
    assert f"It was resent as {DELIVERY}~1." in run("show", DELIVERY).stdout
    assert "It was resent" not in run("show", f"{DELIVERY}~1").stdout.partition("Other deliveries")[0]


def test_delivery_that_is_pending_says_when_and_why_then(run: Run, database: Documents):
    fail(database, age_s=10, is_last=False)
    owe(database, due_in_s=20)
    database["deliveries"].update_one({"_id": DELIVERY}, {"$set": {"retry": 1}})
    out = run("show", DELIVERY).stdout
    assert out.startswith("waiting")
    assert "the delay between retries, counted from the end of attempt 1" in out


def test_unknown_delivery_is_an_error(run: Run):
    result = run("show", "msg_nothing")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing is known of the delivery msg_nothing" in result.stderr


def test_webhook_whose_code_begins_like_a_delivery_is_shown(run: Run, database: Documents):
    database["webhooks"].update_one({}, {"$set": {"code": "msg_task"}})
    assert WEBHOOK_ID in run("show", "msg_task").stdout


# ── Events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_accepted_event_says_when_who_got_it_and_why_others_did_not(run: Run, database: Documents):
    database["webhooks"].insert_one(
        {**(database["webhooks"].find_one() or {}), "_id": ObjectId(), "code": "notes", "trigger": "logout-user"}
    )
    fail(database)
    result = run("event", EVENT_ID[:8])
    assert result.exit_code == 0
    assert "when its first attempt began, and 1 webhook asked for it" in result.stdout
    assert DELIVERY in result.stdout
    assert "notes" in result.stdout.partition("did not get it")[2]
    owe(database, "msg_other")
    assert "It was accepted at 2" in run("event", EVENT_ID).stdout
    shown = json.loads(run("event", EVENT_ID, "--json").stdout)
    assert (shown["fate"], len(shown["deliveries"]), len(shown["mismatches"])) == ("accepted", 2, 1)


def test_event_that_matched_nobody_is_told_from_one_that_was_never_seen(run: Run, database: Documents):
    wire = {**make_log().event.to_wire(), "type": "COTNote"}
    TraceStore(database).write([("lonely-event", parse_event(wire, max_bytes=10_000))])
    result = run("event", "lonely-event")
    assert result.exit_code == 0
    assert result.stdout.startswith("matched nobody")
    assert "wo_update" in result.stdout
    never = run("event", "no-such-event")
    assert never.exit_code == 1
    assert never.stdout.startswith("never seen")


# ── Pending ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pending_says_when_it_is_due_why_it_waits_and_how_many_more(run: Run, database: Documents):
    assert run("pending").stdout == "nothing is pending\n"
    owe(database, "msg_held", held=True)
    owe(database, "msg_later", due_in_s=25)
    owe(database, "msg_due", due_in_s=-5)
    GateStore(database).pause(ObjectId(WEBHOOK_ID), By.OPERATOR, "they move")
    result = run("pending")
    lines = [line for line in result.stdout.splitlines()[1:] if not line.startswith(" ")]
    assert [line.partition("msg_")[2].split()[0] for line in lines] == ["due", "later", "held"]
    assert "an operator paused the webhook: they move" in result.stdout
    assert result.stderr == ""
    few = run("pending", "-n", "1", "--webhook", "wo_update")
    assert few.stdout.count("msg_") == 1
    assert "3 are pending, 1 of them are shown" in few.stderr
    assert run("pending", "--company", str(ObjectId())).stdout == "nothing is pending\n"
    assert len(run("pending", "--company", COMPANY, "--json").stdout.splitlines()) == 3


# ── On record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_done_to_a_webhook_is_on_record(run: Run, database: Documents, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("webhooks.cli.gate_cmd.BEGIN_WITHIN_S", 0.01)
    monkeypatch.setenv("SUDO_USER", "ann")
    owe(database)
    for command in ("pause", "resume", "drain", "skip", "activate"):
        assert run(command, "wo_update", *(["--reason", "they move"] if command == "pause" else [])).exit_code == 0
    records = list(database["operatoractions"].find().sort("_id", 1))
    assert [one["action"] for one in records] == ["pause", "resume", "drain", "skip", "activate"]
    assert records[0]["reason"] == "they move"
    assert all(one["by"].startswith("ann as ") and one["result"] for one in records)
    assert DELIVERY in records[3]["result"]
