"""Messages as clients in other languages write them into Redis: what Celery's own worker takes is delivered, once."""

import base64
import json
import uuid
from typing import Any

import pytest
import redis
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.messaging import Producer

from tests.acceptance.conftest import Stack, body_of
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until

EVENT = read_sample("event-task-create")
QUEUES = ("celery", "webhooks.deliver", "webhooks.send")
SEP = "\x06\x16"

pytestmark = pytest.mark.timeout(180)


def encode(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def make_body(**changes: Any) -> dict[str, Any]:
    """Make the body of task protocol 1, which says all that protocol 2 says in headers."""
    return {"id": str(uuid.uuid4()), "task": "webhooks.deliver", "args": [EVENT], "kwargs": {}, **changes}


def make_message(*without: str, body: Any = None, properties: Any = None, **changes: Any) -> dict[str, Any]:
    """Make a message of task protocol 2.

    Args:
        without: parts of it, or of its properties, that are left out.
        body: in place of the usual one.
        properties: changes to the usual ones.
        changes: to its parts; ``headers`` to the usual ones.
    """
    task_id = str(uuid.uuid4())
    made: dict[str, Any] = {
        "body": encode([[EVENT], {}, {}]) if body is None else body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "webhooks.deliver", "id": task_id, **changes.pop("headers", {})},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": task_id,
            "delivery_info": {"exchange": "celery", "routing_key": "celery", "priority": 0},
            "delivery_mode": 2,
            "delivery_tag": str(uuid.uuid4()),
            "reply_to": str(uuid.uuid4()),
            **(properties or {}),
        },
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    for name in without:
        made.pop(name, None)
        if "properties" in made:
            made["properties"].pop(name, None)
    return made


def make_old(**changes: Any) -> dict[str, Any]:
    """Make a message of task protocol 1 without headers, as gocelery does."""
    return make_message("headers", body=encode(make_body(**changes)))


PLAIN_BODY = json.dumps([[EVENT], {}, {}])

TAKEN = {
    "protocol_1_without_headers": make_old(retries=0, expires=None, eta=None),
    "protocol_1_with_headers_null": {**make_old(), "headers": None},
    "protocol_1_with_headers_empty": {**make_old(), "headers": {}},
    "protocol_1_with_keyword_arguments": make_old(args=[], kwargs={"event": EVENT}),
    "protocol_1_with_the_task_in_headers": make_message(body=encode(make_body())),
    "no_delivery_info": make_message("delivery_info"),
    "delivery_info_null": make_message(properties={"delivery_info": None}),
    "no_delivery_tag": make_message("delivery_tag"),
    "no_properties": make_message("properties", body=PLAIN_BODY),
    "properties_null": make_message(body=PLAIN_BODY) | {"properties": None},
    "no_body_encoding": make_message("body_encoding", body=PLAIN_BODY),
    "body_encoding_null": make_message(body=PLAIN_BODY, properties={"body_encoding": None}),
    "body_encoding_utf_8": make_message(body=PLAIN_BODY, properties={"body_encoding": "utf-8"}),
    "no_content_encoding": make_message("content-encoding"),
    "content_encoding_binary": make_message(content_encoding="binary"),
    "content_encoding_in_capitals": make_message(content_encoding="UTF-8"),
    "reply_to_null": make_message(properties={"reply_to": None}),
    "reply_to_odd": make_message(properties={"reply_to": {"queue": ["x"]}, "correlation_id": 7}),
    "priority_odd": make_message(properties={"priority": "high"}),
    "retries_null": make_message(headers={"retries": None, "timelimit": None, "eta": None, "expires": None}),
    "only_what_is_needed": {"body": json.dumps(make_body()), "content-type": "application/json"},
}

#: What a queue holds → what the dead letter says of it.
REFUSED = {
    b"nonsense": "cannot be decoded: Expecting value: line 1 column 1",
    b"[1]": "cannot be decoded: it is not an object",
    b'{"body": "x", "headers": [1]}': "cannot be decoded: its headers are not an object",
    b'{"body": "x", "properties": "x"}': "cannot be decoded: its properties are not an object",
    b'{"body": "x", "properties": {"body_encoding": "rot13"}}': "cannot be decoded: its body_encoding is not known",
    b"{}": "is not a task's message",
    json.dumps(make_message("content-type")).encode(): "",
    json.dumps(make_old(task="no.such.task")).encode(): "no task is named",
    json.dumps(make_old(kwargs=None)).encode(): "must be a mapping",
}


def assert_nothing_is_left(client: redis.Redis, stack: Stack) -> None:
    wait_until(lambda: client.hlen("unacked") == 0, "all acked")
    assert [client.llen(queue) for queue in QUEUES] == [0, 0, 0]
    assert list(stack.database["deadletters"].find()) == []


@pytest.mark.parametrize("is_watched", [False, True], ids=["unwatched", "with_task_events"])
def test_what_celerys_own_worker_takes_is_delivered_once(stack: Stack, redis_client: redis.Redis, is_watched: bool):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = Worker(stack.folder, stack.settings, "worker", *(["-E"] if is_watched else []))
        stack.workers.append(worker)
        worker.start()
        for number, message in enumerate(TAKEN.values()):
            # The lists of other priorities hold messages as well.
            redis_client.lpush(f"celery{SEP}{3 * (number % 4)}" if number % 4 else "celery", json.dumps(message))
        stack.logs(len(TAKEN))
        assert_nothing_is_left(redis_client, stack)
        assert len(receiver.requests) == len(TAKEN)
        assert {request.body for request in receiver.requests} == {body_of(EVENT)}


def test_message_published_to_exchange_celery_with_key_celery_is_copied_into_no_other_queue(
    stack: Stack, redis_client: redis.Redis
):
    # As an earlier version left the table.
    for key in ("_kombu.binding.celery", "_kombu.binding_permanent.celery"):
        redis_client.sadd(key, *(SEP.join(["celery", "", queue]) for queue in QUEUES))
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        wait_until(lambda: redis_client.scard("_kombu.binding.celery") == 1, "only one queue is bound")
        with Connection(stack.redis_url) as connection:
            exchange = Exchange("celery")
            producer = Producer(connection, exchange)
            queue = Queue("celery", exchange, routing_key="celery")
            for _ in range(20):
                headers = {"task": "webhooks.deliver", "id": str(uuid.uuid4())}
                body = [[EVENT], {}, {}]
                producer.publish(body, routing_key="celery", declare=[queue], serializer="json", headers=headers)
        stack.logs(20)
        assert_nothing_is_left(redis_client, stack)
        assert len(receiver.requests) == 20


def test_what_cannot_be_read_is_a_dead_letter(stack: Stack, redis_client: redis.Redis):
    stack.start_worker()
    for raw in REFUSED:
        redis_client.lpush("celery", raw)

    def find() -> list[dict[str, Any]]:
        found = list(stack.database["deadletters"].find())
        return found if len(found) == len(REFUSED) else []

    letters = wait_until(find, f"{len(REFUSED)} letters; workers say {stack.worker_logs()}")
    wait_until(lambda: redis_client.hlen("unacked") == 0, "every message acked")
    texts = [letter["text"] for letter in letters]
    for said in REFUSED.values():
        assert any(said in text for text in texts), (said, texts)
    listed = stack.run_command("dead", "list")
    assert listed.count(" celery ") == len(REFUSED)
    assert "no.such.task" in listed, "the task's name stands in the body"
    letter = next(letter for letter in letters if letter["body"] == "nonsense")
    with pytest.raises(AssertionError, match="its producer must send it anew"):
        stack.run_command("dead", "resend", str(letter["_id"]))
