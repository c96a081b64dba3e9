"""Poison: messages that no worker can handle end as dead letters, once, while healthy events go on."""

import base64
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.conftest import Stack
from tests.receiver import Receiver
from tests.samples_data import read_sample
from tests.servers import Servers
from tests.worker import wait_until

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
    found = stack.database["deadletters"].find
    with redis.Redis.from_url(stack.redis_url) as client:
        wait_until(
            lambda: len(list(found())) >= count and not client.exists(QUEUE, "webhooks.send", "celery", "unacked"),
            f"{count} letters and nothing queued or unacked; workers say {stack.worker_logs()}",
            timeout_s,
        )
    return list(found().sort("created_at", 1))


def test_every_kind_of_poison_ends_once_as_a_dead_letter_and_healthy_events_go_on(
    stack: Stack, redis_client: redis.Redis
):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        for message, _ in POISON.values():
            push(redis_client, message)
            stack.send_task(EVENT)
        receiver.wait_for(len(POISON))
        found = letters(stack, len(POISON))
        time.sleep(1)
        assert stack.database["deadletters"].count_documents({}) == len(POISON)
        worker.stop()
    tags = {letter["_id"]: letter for letter in found}
    assert len(tags) == len(POISON)
    assert sorted(letter["reason"] for letter in found) == sorted(reason for _, reason in POISON.values())
    assert "secret-payload" not in worker.log()
    assert len(receiver.requests) == len(POISON)
