"""Poison: messages that no worker can handle end as dead letters, once, while healthy events go on."""

import base64
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.conftest import Stack, body_of
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import Worker, wait_until

EVENT = read_sample("event-task-create")
QUEUE = "webhooks.deliver"

pytestmark = pytest.mark.timeout(180)


def make_message(body: object = None, *, raw: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """Make a message as kombu keeps it in Redis.

    Args:
        body: what its JSON body holds; a healthy one by default.
        raw: the bytes of the body instead.
        changes: of headers (``task``, ``id`` …; None takes one away) or of ``content_type``.
    """
    task_id = str(uuid.uuid4())
    if body is None:
        body = [[EVENT], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    content_type = changes.pop("content_type", "application/json")
    headers = {"task": "webhooks.deliver", "id": task_id, "retries": 0, "argsrepr": "", "kwargsrepr": "", **changes}
    return {
        "body": base64.b64encode(json.dumps(body).encode() if raw is None else raw).decode(),
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {name: value for name, value in headers.items() if value is not None},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


#: What makes a message poison → the reason that its letter gives.
POISON = {
    "garbage": (make_message(raw=b"\xff\x00not JSON secret-payload"), "unreadable"),
    "pickle": (make_message(raw=b"\x80\x04N.", content_type="application/x-python-serialize"), "unreadable"),
    "content_type": (make_message(content_type="application/x-nonsense"), "unreadable"),
    "no_task": (make_message({"hello": "secret-payload"}, task=None), "unreadable"),
    "bad_compression": (make_message(compression="application/x-gzip"), "unreadable"),
    "unknown_task": (make_message(task="webhooks.from_the_future"), "unknown_task"),
    "no_id": (make_message(id=None), "invalid_task"),
    "id_is_a_list": (make_message(id=["x"]), "invalid_task"),
    "task_is_a_list": (make_message(task=["x"]), "invalid_task"),
    "shadow_is_a_list": (make_message(shadow=["x"]), "invalid_task"),
    "retries_are_text": (make_message(retries="x"), "invalid_task"),
    "time_limit_is_a_number": (make_message(timelimit=5), "invalid_task"),
    "eta_is_text": (make_message(eta="soon"), "invalid_task"),
    "eta_at_the_end_of_time": (make_message(eta="9999-12-31T23:59:59+00:00"), "invalid_task"),
    "body_is_no_triple": (make_message([[EVENT]]), "invalid_task"),
    "args_are_a_number": (make_message([5, {}, None]), "invalid_task"),
    "kwargs_are_a_number": (make_message([[], 5, None]), "invalid_task"),
    "callbacks_are_a_list": (make_message([[EVENT], {}, [5]]), "invalid_task"),
    "missing_args": (make_message([[], {}, None]), "invalid_task"),
    "too_many_args": (make_message([[EVENT, 2], {}, None]), "invalid_task"),
    "wrong_args_of_send": (make_message([["secret-payload"], {"x": 1}, None], task="webhooks.send"), "invalid_task"),
    "wrong_args_of_write_log": (make_message([[], {}, None], task="webhooks.write_log"), "invalid_task"),
    "invalid_event": (make_message([[{"company": "secret-payload"}], {}, None]), "invalid_event"),
}


def push(client: redis.Redis, message: dict[str, Any]) -> None:
    client.lpush(QUEUE, json.dumps(message))


def letters(stack: Stack, count: int, timeout_s: float = 30) -> list[dict[str, Any]]:
    """Wait for so many dead letters, and for all messages to be acked; return them."""
    collection = stack.database["deadletters"]
    with redis.Redis.from_url(stack.redis_url) as client:
        wait_until(
            lambda: (
                collection.count_documents({}) >= count
                and not client.exists(QUEUE, "webhooks.send", "celery", "unacked")
            ),
            f"{count} letters and nothing queued or unacked; workers say {stack.worker_logs()}",
            timeout_s,
        )
    return list(collection.find())


@pytest.mark.parametrize("is_atomic", ["true", "false"], ids=["our_transport", "plain_transport"])
def test_every_kind_of_poison_ends_once_as_a_dead_letter_and_healthy_events_go_on(
    stack: Stack, redis_client: redis.Redis, is_atomic: str
):
    poison = dict(POISON)
    if is_atomic == "true":
        del poison["eta_at_the_end_of_time"]  # our transport parks it until then
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker(WEBHOOKS_ATOMIC_TRANSPORT=is_atomic)
        for message, _ in poison.values():
            push(redis_client, message)
            stack.send_task(EVENT)
        receiver.wait_for(len(poison))
        found = letters(stack, len(poison))
        time.sleep(1)
        assert stack.database["deadletters"].count_documents({}) == len(poison)
        worker.stop()
    assert sorted(letter["reason"] for letter in found) == sorted(reason for _, reason in poison.values())
    assert len(receiver.requests) == len(poison)
    assert "secret-payload" not in worker.log()
    assert worker.log().count("Connected to redis") == 1


def test_mended_event_is_sent_again_byte_for_byte(stack: Stack):
    event = {**EVENT, "data": {**EVENT["data"], "long": "ñ" * 600}}
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        strict = stack.start_worker(WEBHOOKS_MAX_EVENT_BYTES="1024")
        event_id = stack.send_task(event)
        (letter,) = letters(stack, 1)
        assert (letter["reason"], letter["message_id"], letter["queue"]) == ("invalid_event", event_id, "celery")
        assert "its JSON has" in letter["text"]
        assert f"{letter['_id']}  invalid_event" in stack.run_command("dead", "list")
        strict.stop()
        stack.start_worker()
        assert stack.run_command("dead", "resend", str(letter["_id"])) == "sent again: 1\n"
        assert receiver.wait_for(1)[0].body == body_of(event)
        assert stack.logs(1)[0]["attempt"]["event_id"] == event_id
    assert stack.database["deadletters"].count_documents({}) == 0


#: What a worker imports to have a defect for as long as the file beside it is there.
DEFECTS = """
import pathlib
import webhooks.delivery.accept, webhooks.delivery.records
switch = pathlib.Path(__file__).with_name("is_broken")

def broken(function, act):
    def call(*args):
        if switch.exists():
            act()
        return function(*args)
    return call

def fail():
    raise KeyError("a defect")
"""
DEFECT_IN = {
    "deliver": "webhooks.delivery.accept.fan_out = broken(webhooks.delivery.accept.fan_out, fail)",
    # No attempt begins with the event, so that each gets a message of its own.
    "send": "from webhooks.delivery.records import DeliveryRecords\n"
    "from webhooks.worker.pool import _Slots\n"
    "DeliveryRecords.claim = broken(DeliveryRecords.claim, fail)\n"
    "_Slots.take = lambda *_: 0",
}


def start_broken_worker(stack: Stack, defect: str, *arguments: str) -> tuple[Worker, Path]:
    """Start a worker with a defect; return the file that makes it so, too."""
    (stack.folder / "broken.py").write_text(DEFECTS + DEFECT_IN[defect])
    switch = stack.folder / "is_broken"
    switch.touch()
    settings = {
        **stack.settings,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(stack.folder), os.environ.get("PYTHONPATH")])),
        "WEBHOOKS_RETRY_DELAY_S": "0.2",
        "WEBHOOKS_MAX_RETRIES": "2",
    }
    worker = Worker(stack.folder, settings, "broken", "-I", "broken", *arguments)
    stack.workers.append(worker)
    worker.start()
    return worker, switch


@pytest.mark.parametrize("task", ["deliver", "send"])
def test_defect_is_tried_again_then_kept_and_delivered_once_mended(stack: Stack, task: str):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker, switch = start_broken_worker(stack, task)
        event_id = stack.send_task(EVENT)
        (letter,) = letters(stack, 1)
        assert (letter["reason"], letter["task"]) == ("defect", f"webhooks.{task}")
        assert letter["text"] == "internal error: KeyError"
        assert worker.log().count("met a defect") == 3
        assert receiver.requests == []
        # What is still owed is set aside: the sweep must not send it round again.
        assert all("due_at" not in owed for owed in stack.database["deliveries"].find())
        assert stack.database["deliveries"].count_documents({}) == (1 if task == "send" else 0)
        switch.unlink()
        stack.run_command("dead", "resend", "--all")
        assert receiver.wait_for(1)[0].body == body_of(EVENT)
        assert stack.logs(1)[0]["attempt"]["event_id"] == event_id
        assert letters(stack, 0) == []


def test_defect_in_writing_a_log_is_kept(stack: Stack, redis_client: redis.Redis):
    stack.start_worker(WEBHOOKS_RETRY_DELAY_S="0.2", WEBHOOKS_MAX_RETRIES="1")
    push(redis_client, make_message([["{}"], {}, None], task="webhooks.write_log"))
    (letter,) = letters(stack, 1)
    assert (letter["reason"], letter["text"]) == ("defect", "internal error: ValidationError")


@pytest.mark.slow
def test_poison_that_comes_while_mongodb_is_down_is_kept_when_it_is_back(fragile: Stack, servers: Servers):
    with redis.Redis.from_url(fragile.redis_url) as client:
        worker = fragile.start_worker()
        servers.mongod.kill()
        push(client, POISON["garbage"][0])
        push(client, POISON["invalid_event"][0])
        wait_until(lambda: "holding a dead letter: MongoDB is not reachable" in worker.log(), "told in the log")
        servers.mongod.start()
        found = letters(fragile, 2)
        assert sorted(letter["reason"] for letter in found) == ["invalid_event", "unreadable"]

        servers.mongod.kill()
        push(client, POISON["unknown_task"][0])
        wait_until(lambda: worker.log().count("holding a dead letter") >= 2, "told in the log")
        worker.stop()
        assert client.llen(QUEUE) + client.zcard(f"webhooks.lane.{QUEUE}/-") == 1
        servers.mongod.start()
        fragile.start_worker()
        found = letters(fragile, 3)
    assert sorted(letter["reason"] for letter in found) == ["invalid_event", "unknown_task", "unreadable"]
