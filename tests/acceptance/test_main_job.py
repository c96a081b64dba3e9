"""The main job, from `deliver.delay` to the log, with a real worker and a real receiver, judged by the contract."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions

from tests.acceptance.conftest import RETRY_DELAY_S, Stack, body_of
from tests.lab.receiver import Receiver, hang, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until
from webhooks.local.servers import free_port
from webhooks.models import COTWebhookLog
from webhooks.version import __version__

EVENT = read_sample("event-task-create")
#: Four attempts and three waits, and time for a slow machine.
WHOLE_DELIVERY_S = 3 * RETRY_DELAY_S + 30


def produce(stack: Stack, expression: str = "deliver.delay(event)") -> str:
    """Hand the sample event in from a service that has this package; return the event's id."""
    code = f"""
import json
from webhooks import COTEvent, deliver
event = json.loads({body_of(EVENT).decode()!r})
print(({expression}).id)
"""
    return stack.run_producer(code).strip()


def check_log(log: dict[str, Any], *, retry: int, status: int, response: str, webhook_id: ObjectId) -> None:
    """Check a stored log key by key against the contract."""
    assert list(log)[:9] == list(read_sample("log-task-create-timeout"))
    assert list(log)[9:] == ["attempt"]
    assert isinstance(log["_id"], ObjectId)
    assert log["company"] == ObjectId(EVENT["company"])
    assert isinstance(log["createdAt"], datetime)
    assert timedelta(0) <= datetime.now(UTC) - log["createdAt"] < timedelta(seconds=WHOLE_DELIVERY_S)
    assert log["status"] == status
    assert log["retry"] == retry
    assert log["response"] == response
    assert list(log["event"]) == list(EVENT)
    assert log["event"]["company"] == ObjectId(EVENT["company"])
    assert log["event"]["createdAt"] == datetime(2022, 5, 5, 19, 54, 29, 924_000, tzinfo=UTC)
    assert log["event"]["data"] == EVENT["data"]
    assert log["subscription"] == webhook_id
    assert log["__v"] == 0
    wire = COTWebhookLog.model_validate(log).to_wire()
    assert wire["event"] == EVENT
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", wire["createdAt"])
    assert bson.decode(bson.encode(log), codec_options=CodecOptions(tz_aware=True)) == log


def check_pace(logs: list[dict[str, Any]]) -> None:
    """Check that each attempt began a retry delay after the one before had ended."""
    for before, after in pairwise(logs):
        wait = (after["attempt"]["started_at"] - before["createdAt"]).total_seconds()
        assert RETRY_DELAY_S - 0.1 <= wait < RETRY_DELAY_S + 5
        assert abs((before["attempt"]["next_at"] - before["createdAt"]).total_seconds() - RETRY_DELAY_S) < 0.01


@pytest.mark.timeout(180)
def test_sample_event_fails_four_times(stack: Stack):
    with Receiver(default=reply(503, b"not today")) as receiver:
        webhook_id = stack.add_webhook(f"{receiver.url}/hook?token=t")
        stack.start_worker()
        event_id = produce(stack)
        logs = stack.logs(4, WHOLE_DELIVERY_S)
    for retry, log in enumerate(logs):
        check_log(log, retry=retry, status=503, response="not today", webhook_id=webhook_id)
        assert log["attempt"]["outcome"] == "failed"
        assert log["attempt"]["error_kind"] is None
        assert log["attempt"]["event_id"] == event_id
        assert log["attempt"]["peer"] == f"127.0.0.1:{receiver.port}"
    check_pace(logs)
    assert logs[3]["attempt"]["next_at"] is None
    requests = receiver.requests
    assert [(r.method, r.path, r.body) for r in requests] == [("POST", "/hook?token=t", body_of(EVENT))] * 4
    assert {r.headers["webhook-id"] for r in requests} == {logs[0]["attempt"]["delivery_id"]}
    for request, log in zip(requests, logs, strict=True):
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["User-Agent"] == f"webhooks/{__version__}"
        assert abs(int(request.headers["webhook-timestamp"]) - log["attempt"]["started_at"].timestamp()) < 1
    stack.workers[0].stop()
    assert stack.database["webhooklogs"].count_documents({}) == 4


@pytest.mark.timeout(180)
def test_sample_event_to_nobody_is_logged_as_409_four_times(stack: Stack):
    port = free_port()
    webhook_id = stack.add_webhook(f"http://127.0.0.1:{port}")
    stack.start_worker()
    produce(stack)
    logs = stack.logs(4, WHOLE_DELIVERY_S)
    for retry, log in enumerate(logs):
        response = f"connect ECONNREFUSED 127.0.0.1:{port}"
        check_log(log, retry=retry, status=409, response=response, webhook_id=webhook_id)
        assert log["attempt"]["error_kind"] == "connect_refused"
    check_pace(logs)


@pytest.mark.timeout(180)
def test_delivery_that_fails_twice_succeeds_and_ends(stack: Stack):
    with Receiver() as receiver:
        receiver.then(reply(500, b"a"), reply(409, b"b"))
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker()
        produce(stack)
        logs = stack.logs(3, WHOLE_DELIVERY_S)
        for retry, (status, response) in enumerate([(500, "a"), (409, "b"), (200, "ok")]):
            check_log(logs[retry], retry=retry, status=status, response=response, webhook_id=webhook_id)
        assert logs[1]["attempt"]["error_kind"] is None  # the receiver's own 409
        assert logs[2]["attempt"]["outcome"] == "success"
        stack.workers[0].stop()
    assert len(receiver.requests) == 3


@pytest.mark.parametrize(
    "expression",
    [
        "deliver.delay(event)",
        "deliver.delay(event=event)",
        "deliver.delay(COTEvent.model_validate(event))",
        "deliver.apply_async([event], countdown=0.2, headers={'x': 'y'})",
        "deliver.apply_async((event,), queue='celery')",
        "deliver.s(event).apply_async()",
    ],
)
def test_event_arrives_byte_for_byte_however_it_is_handed_in(stack: Stack, expression: str):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        produce(stack, expression)
        assert receiver.wait_for(1, 20)[0].body == body_of(EVENT)


def test_event_of_a_bare_producer_arrives_byte_for_byte(stack: Stack):
    # The first looks like kombu's extension of JSON, which would turn it into a date or lose the message.
    odd = [
        {**EVENT, "x": {"__type__": "datetime", "__value__": "2022-05-05T19:54:29.924Z"}, "ñ": 1.0},
        {**EVENT, "x": {"__type__": "nonsense", "__value__": 1}, "y": [2**63 - 1, -0.0, 1e300, "\u2028"]},
    ]
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        for event in odd:
            stack.send_task(event)
        bodies = {request.body for request in receiver.wait_for(2, 20)}
    assert bodies == {body_of(event) for event in odd}


def test_event_goes_to_every_webhook_that_matches_and_to_no_other(stack: Stack):
    with Receiver() as receiver:
        for path, changes in {
            "/all": {"context": {}},
            "/group": {},
            "/other-group": {"context": {"taskGroup": "0" * 24}},
            "/other-trigger": {"trigger": "create-edit-delete-user"},
            "/inactive": {"isActive": False},
            "/other-company": {"company": "0" * 24},
        }.items():
            stack.add_webhook(f"{receiver.url}{path}", **changes)
        # Two documents that another service wrote wrongly: they get nothing and harm nobody.
        stack.database["webhooks"].insert_one({"company": ObjectId(EVENT["company"]), "isActive": True, "url": 7})
        stack.database["webhooks"].insert_one({"company": ObjectId(EVENT["company"]), "isActive": True})
        stack.start_worker()
        stack.send_task(EVENT)
        stack.logs(2)
        stack.workers[0].stop()
    assert sorted(request.path for request in receiver.requests) == ["/all", "/group"]
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(set(ids)) == 2


def test_event_that_nobody_wants_is_no_error(stack: Stack):
    worker = stack.start_worker()
    event_id = stack.send_task(read_sample("event-user-logout"))
    wait_until(lambda: f"event {event_id} (Auth logout): 0 deliveries" in worker.log(), "told in the log")
    assert "0 deliveries" in worker.log()
    assert stack.database["webhooklogs"].count_documents({}) == 0
    (trace,) = stack.database["eventtraces"].find()
    assert (trace["event_id"], trace["type"], trace["event"]) == (event_id, "Auth", "logout")


def test_bad_event_raises_in_the_producer_and_fails_the_task_with_the_same_words(stack: Stack):
    code = """
from webhooks import InvalidEvent, deliver
try:
    deliver.delay({"company": "x", "type": "COTTask"})
except InvalidEvent as error:
    print(error)
"""
    words = stack.run_producer(code).strip()
    assert "company: must be an ObjectId" in words
    assert "createdAt: is missing" in words
    worker = stack.start_worker()
    event_id = stack.send_task({"company": "x", "type": "COTTask"})
    wait_until(lambda: f"event {event_id} is refused, nothing of it is sent: {words}" in worker.log(), "refused")
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"n": 2**64}},
        {"data": {"n": 10**4000}},
        {"data": {"n": float("nan")}},
        {"data": {"a\x00": 1}},
        {"data": {"x": "y" * 300_000}},
    ],
    ids=["65-bits", "4000-digits", "nan", "nul", "large"],
)
def test_event_that_cannot_be_stored_fails_its_task_in_words(stack: Stack, change: dict[str, Any]):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        event_id = stack.send_task({**EVENT, **change})
        wait_until(lambda: f"event {event_id} is refused" in worker.log(), "refused")
        stack.workers[0].stop()
    assert receiver.requests == []


def test_change_of_a_webhook_takes_effect_within_5_s(stack: Stack):
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(f"{receiver.url}/old")
        stack.start_worker()
        stack.send_task(EVENT)
        receiver.wait_for(1)
        stack.database["webhooks"].update_one({"_id": webhook_id}, {"$set": {"url": f"{receiver.url}/new"}})
        wait_until(lambda: stack.send_task(EVENT) and receiver.requests[-1].path == "/new", "at the new URL", 5)


@pytest.mark.timeout(180)
def test_webhook_deactivated_between_attempts_ends_with_a_log_that_says_so(stack: Stack):
    with Receiver(default=reply(503)) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker(WEBHOOKS_RETRY_DELAY_S="3")
        stack.send_task(EVENT)
        stack.logs(1)
        stack.database["webhooks"].update_one({"_id": webhook_id}, {"$set": {"isActive": False}})
        last = stack.logs(1, retry=1)[0]
        stack.workers[0].stop()
    assert last["attempt"]["error_kind"] == "webhook_inactive"
    assert last["attempt"]["next_at"] is None
    assert "deactivated" in last["response"]
    assert len(receiver.requests) == 1


def test_worker_told_to_stop_finishes_its_attempt(stack: Stack):
    with Receiver(default=reply(200, delay_s=2)) as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        stack.send_task(EVENT)
        receiver.wait_for(1)
        worker.stop()
        assert len(stack.logs(1)) == 1
    assert len(receiver.requests) == 1


@pytest.mark.timeout(180)
def test_hanging_receiver_is_given_up_at_the_deadline(stack: Stack):
    with Receiver(default=hang()) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker(WEBHOOKS_TOTAL_TIMEOUT_S="1.5")
        stack.send_task(EVENT)
        log = stack.logs(1)[0]
        check_log(log, retry=0, status=409, response="timeout of 1500ms exceeded", webhook_id=webhook_id)
        assert 1500 <= log["attempt"]["total_ms"] < 2500


def test_worker_shows_neither_payload_nor_query(stack: Stack):
    with Receiver(default=reply(200, b"answer-of-the-receiver")) as receiver:
        stack.add_webhook(f"{receiver.url}/path-secret?token=query-secret")
        worker = stack.start_worker()
        produce(stack)
        stack.send_task(EVENT)
        stack.logs(2)
        worker.stop()
    for secret in ("Equipment sector", EVENT["data"]["_id"], "path-secret", "query-secret", "answer-of-the-receiver"):
        assert secret not in worker.log()
