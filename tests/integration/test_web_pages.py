"""The pages of webhooks, deliveries and events in Flower, against a real MongoDB."""

import json
import re
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from tests.lab.flower import FlowerThread
from tests.lab.history import COMPANY, fill
from tests.lab.logs import NOON, make_attempt, make_log
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until
from webhooks.models import COTEvent, COTWebhook
from webhooks.store.gates import By, GateStore
from webhooks.store.logs import LogStore
from webhooks.store.traces import TraceStore

Documents = Database[dict[str, Any]]
HOSTILE = "</pre><script>alert(1)</script>\u202e\x1b[1m"


def add_webhook(database: Documents, **changes: Any) -> ObjectId:
    value = {**read_sample("webhook-task"), **changes}
    database["webhooks"].insert_one(COTWebhook.model_validate(value).to_bson())
    return ObjectId(value["_id"])


def test_every_page_of_a_long_history_is_well(database: Documents, flower: FlowerThread):
    fill(database, 600)
    todo, seen = ["/webhooks", "/webhooks?span=day", "/webhooks/logs"], set()
    while todo and len(seen) < 60:
        path = todo.pop(0)
        if path in seen:
            continue
        seen.add(path)
        answer = flower.get(path)
        assert answer.status in (200, 302), path
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"] or answer.status == 302
        assert not re.search(r"<[^>]+\s(style|on[a-z]+)=|<script>|<b>old", answer.text), path
        links = re.findall(r'href="(/webhooks/[^"]*)"', answer.text)
        fresh = [link.replace("&amp;", "&") for link in links if "/static/" not in link and "/body" not in link]
        kinds = {re.sub(r"[0-9a-f-]{20,}", "#", link) for link in seen}
        todo += [link for link in fresh if re.sub(r"[0-9a-f-]{20,}", "#", link) not in kinds][:20]
    assert {path.split("/")[2] for path in seen if path.count("/") > 2} >= {"deliveries", "events"}


def test_sick_webhooks_come_first_and_say_why(database: Documents, flower: FlowerThread):
    names = ["well", "failing", "paused", "invalid"]
    ids = {name: add_webhook(database, _id=str(ObjectId()), name=name, code=name) for name in names}
    GateStore(database).pause(ids["paused"], By.HEALTH, "20 of 20 attempts failed", 60)
    database["webhooks"].update_one({"_id": ids["invalid"]}, {"$set": {"url": "ftp://x"}})
    at = database.command("hello")["localTime"].replace(tzinfo=NOON.tzinfo) - timedelta(minutes=1)
    ok = make_attempt(error_kind=None, outcome="success")
    logs = [make_log(at=at, status=200, attempt=ok, webhook_id=str(ids[name])) for name in names for _ in range(3)]
    logs.append(make_log(at=at, attempt=make_attempt(), webhook_id=str(ids["failing"])))
    LogStore(database).ensure_indexes(30)
    LogStore(database).write(logs)

    def look() -> str:
        text = flower.get("/webhooks").text
        return "" if "are being counted" in text else text

    rows = wait_until(look, "all figures counted").partition("<tbody>")[2].split("<tr>")[1:]
    order = [next(name for name in names if f">{name}</a>" in row) for row in rows]
    assert order == ["invalid", "paused", "failing", "well"]
    assert "20 of 20 attempts failed" in rows[1]
    assert "75.0 %" in rows[2]
    assert "url:" in rows[0]


def test_delivery_shows_each_attempt_with_its_reason_and_the_exact_body(database: Documents, flower: FlowerThread):
    webhook_id = add_webhook(database)
    event = {**read_sample("event-task-create"), "data": {"_id": "t1", "name": HOSTILE}}
    first = make_log("connect ECONNREFUSED", retry=0, attempt=make_attempt(next_at="2026-05-05T12:00:30.000Z"))
    later = NOON + timedelta(seconds=30)
    answered = make_attempt(error_kind=None, started_at=later, lookup_ms=1.0, wait_ms=9.0)
    second = make_log(HOSTILE, at=later, status=500, retry=1, attempt=answered)
    stored = [{**log.to_bson(), "event": COTEvent.model_validate(event).to_bson()} for log in (first, second)]
    database["webhooklogs"].insert_many(stored)
    answer = flower.get("/webhooks/deliveries/msg_1")
    text = answer.text
    assert "nothing listens on that port" in text
    assert "30 s later: the delay between retries" in text
    assert "500 Internal Server Error" in text
    assert "was the last of its retries" in text
    assert "look-up" in text
    assert "curl --globoff -X POST" in text
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    body = flower.get("/webhooks/deliveries/msg_1/body")
    assert body.body == json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    assert body.headers["Content-Disposition"].startswith("attachment")
    assert str(webhook_id) in text


def test_delivery_without_logs_says_when_it_is_due(database: Documents, flower: FlowerThread):
    webhook_id, at = add_webhook(database), database.command("hello")["localTime"]
    database["deliveries"].insert_one(
        {
            "_id": "msg_2",
            "event_id": "e2",
            "webhook_id": webhook_id,
            "company": COMPANY,
            "label": "COTTask create → wo_update (https://x)",
            "body": "{}",
            "retry": 0,
            "due_at": at + timedelta(minutes=5),
            "created_at": at,
        }
    )
    text = flower.get("/webhooks/deliveries/msg_2").text
    assert "Attempt 1 is due at" in text
    assert "No attempt was made yet" in text
    assert "msg_2" in flower.get("/webhooks/events/e2").text


def test_event_that_matched_nobody_is_told_from_one_that_was_never_seen(database: Documents, flower: FlowerThread):
    group = "0123456789abcdef01234567"
    add_webhook(database, name="Narrow", code="narrow", context={"taskGroup": group})
    add_webhook(database, _id=str(ObjectId()), name="Other", code="other", trigger="logout-user", context={})
    event = COTEvent.model_validate(read_sample("event-task-create"))
    traces = TraceStore(database)
    traces.ensure_indexes(30)
    traces.write([("e3", event), ("e3", event)])
    text = flower.get("/webhooks/events/e3").text
    assert "no webhook asked for it" in text
    assert f"its context asks for taskGroup {group}, and the event has 6261612a8f1e99002e5c8cce." in text
    assert text.index("Narrow") < text.index("Other")
    assert "its trigger asks for Auth logout." in text
    never = flower.get("/webhooks/events/e4").text
    assert "No worker has accepted an event with this id" in never
    object_id = event.data["_id"] if event.data else ""
    assert "/webhooks/events/e3" in flower.get(f"/webhooks/logs?object={object_id}").text


def test_event_in_the_outbox_and_in_a_dead_letter_is_found(database: Documents, flower: FlowerThread):
    database["outbox"].insert_one({"_id": "e5", "accepted_at": NOON, "body": "{}"})
    assert "waits in the outbox" in flower.get("/webhooks/events/e5").text
    letter = {"message_id": "e6", "reason": "invalid_event", "text": "company: is missing", "created_at": NOON}
    database["deadletters"].insert_one(letter)
    text = flower.get("/webhooks/events/e6").text
    assert "company: is missing" in text
    assert f"webhooks dead resend {letter['_id']}" in text


def test_webhook_page_shows_settings_without_secrets(database: Documents, flower: FlowerThread):
    sealed = {"id": "s1", "scheme": "v1", "sealed": "SEALED-TEXT", "createdAt": "2026-05-05T12:00:00.000Z"}
    webhook_id = add_webhook(database, secrets=[sealed], headers=[{"name": "authorization", "sealed": "SEALED-TOO"}])
    text = flower.get(f"/webhooks/{webhook_id}").text
    assert "SEALED" not in text
    assert "s1" in text
    assert "authorization" in text


@pytest.mark.parametrize(
    ("task", "link"),
    [
        (SimpleNamespace(name="webhooks.deliver"), 'href="/webhooks/events/e1"'),
        (SimpleNamespace(name="webhooks.send"), 'href="/webhooks/deliveries/e1"'),
        (None, 'href="/webhooks/events/e1"'),
        (SimpleNamespace(name="other.task"), None),
    ],
    ids=["event", "attempt", "forgotten", "another service's"],
)
def test_flowers_task_page_leads_to_ours(task: Any, link: str | None, flower: FlowerThread):
    if task is not None:
        fields = {"uuid": "e1", "state": "SUCCESS", "args": "", "kwargs": "", "result": "", "_fields": ("name",)}
        flower.state.tasks["e1"] = SimpleNamespace(**fields, name=task.name)  # pyright: ignore[reportArgumentType]
    text = flower.get("/task/e1").text
    assert ("wh-task-links" in text) is (link is not None)
    assert link is None or link in text


@pytest.mark.parametrize(
    "path", ["/webhooks/nonsense", "/webhooks/0123456789abcdef01234567", "/webhooks/deliveries/msg_none"]
)
def test_what_is_not_there_is_said_in_words(path: str, flower: FlowerThread):
    answer = flower.get(path)
    assert answer.status == 404
    assert re.search(r"<h1>No such (webhook|delivery)</h1>", answer.text)
