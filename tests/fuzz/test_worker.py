"""A real worker among ruined documents and messages of any shape: what is healthy arrives, and nothing is lost or told.

The shapes follow from a seed, so that each run meets the same: WEBHOOKS_TEST_SEED chooses another.
"""

import json
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from bson import Binary, DatetimeMS, Int64, MaxKey, MinKey, ObjectId, Regex

from tests.acceptance.conftest import Stack, body_of
from tests.acceptance.test_deadletters import QUEUE, letters, make_message, push
from tests.fuzz.hostile import UNSAFE, nested
from tests.fuzz.test_stored import LEDGER_FIELDS, LETTER, LOG, RUINED_DELIVERIES, WEBHOOK
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until

EVENT = read_sample("event-task-create")
SECRET = "p4yl0ad"

pytestmark = pytest.mark.timeout(180)

ODD: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63 - 1, 1.5, float("nan"), "", "x", SECRET, "\x1b[2J", [], {}, [1], {"$ne": 1}),
    *(
        ObjectId(),
        Binary(b"\xff", 4),
        Regex("("),
        MinKey(),
        MaxKey(),
        Int64(5),
        DatetimeMS(10**15),
        DatetimeMS(-(10**17)),
    ),
    *(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC), nested(90), {"a.b": {"$c": 1}}),
]


def make_ruined(dice: random.Random, sample: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Make documents of which a field each is gone or something else."""
    documents = []
    for _ in range(count):
        document = {**sample, "_id": ObjectId()}
        field = dice.choice(sorted(sample))
        if dice.random() < 0.3 or field == "_id":
            document.pop(field if field != "_id" else "company", None)
        else:
            document[field] = dice.choice(ODD)
        documents.append(document)
    return documents


def test_healthy_events_arrive_among_ruined_documents_of_each_kind(stack: Stack) -> None:
    dice = random.Random(os.environ.get("WEBHOOKS_TEST_SEED", "1"))
    database = stack.database
    outbox = {"body": json.dumps(EVENT), "accepted_at": datetime.now(UTC), "queue_at": datetime.now(UTC), "queued": 0}
    del outbox["body"]  # whatever else is right with it, nothing of it may be sent
    for name, sample in (("webhooks", {**WEBHOOK, "url": "http://127.0.0.1:9/"}), ("webhooklogs", LOG)):
        database[name].insert_many(make_ruined(dice, sample, 60))
    database["deadletters"].insert_many(make_ruined(dice, LETTER, 60))
    database["outbox"].insert_many(make_ruined(dice, outbox, 60))
    database["events"].insert_many([{"_id": f"e{n}", "created_at": odd, "body": odd} for n, odd in enumerate(ODD)])
    database["leases"].insert_many([{"_id": "sweep", "until": "x"}, {"_id": "relay", "owner": 5, "until": [1]}])
    owed = [{**RUINED_DELIVERIES[name], "_id": f"msg_{name}"} for name in RUINED_DELIVERIES]
    owed += [{**LEDGER_FIELDS, "_id": f"msg_odd_{n}", "due_at": odd} for n, odd in enumerate(ODD)]
    database["deliveries"].insert_many(owed)
    with Receiver() as receiver:
        stack.add_webhook(f"{receiver.url}/a?token={SECRET}")
        stack.add_webhook(f"{receiver.url}/b", company="625bcbdcc9a8e3a86dbf041d")
        worker = stack.start_worker(WEBHOOKS_SWEEP_INTERVAL_S="0.5", WEBHOOKS_MAX_RETRIES="0")
        for number in range(5):
            stack.send_task({**EVENT, "number": number})
        stack.run_producer(
            "import os, json, pymongo, webhooks;"
            "database = pymongo.MongoClient(os.environ['WEBHOOKS_MONGODB_URL']).get_default_database();"
            f"webhooks.accept({ {**EVENT, 'number': 5}!r}, database)"
        )
        receiver.wait_for(6, 30)
        wanted: dict[str, Any] = {"attempt.outcome": "success", "response": "ok"}
        logs = stack.logs(6, **wanted)
        time.sleep(1.5)  # for a few sweeps more
        assert worker.is_running()
    bodies = sorted(request.body for request in receiver.requests)
    assert bodies == sorted(body_of({**EVENT, "number": number}) for number in range(6))
    assert {request.path for request in receiver.requests} == {f"/a?token={SECRET}"}
    assert sorted(log["event"]["number"] for log in logs) == list(range(6))
    assert SECRET not in worker.log()
    assert not UNSAFE.search(worker.log().replace("\t", ""))
    for arguments in (["logs", "-n", "100"], ["list", "--all"], ["dead", "list", "-n", "100"], ["logs", "--json"]):
        assert not UNSAFE.search(stack.run_command(*arguments))


# ── Messages ────────────────────────────────────────────────────────────────────────────────────────────────────────

FORGED = "\x1b[2J\r\n2026 CRITICAL forged"
HEADERS = (
    "id task retries eta expires timelimit shadow argsrepr kwargsrepr root_id parent_id group group_index origin lang "
    "ignore_result stamps stamped_headers redelivered compression webhooks_outbox periodic_task_name".split()
)
HEADER_VALUES: list[Any] = [
    *(True, 0, -1, 1.5, 10**30, -(10**30), "", "x", FORGED, [], {}, [1], {"a": 1}),
    *(nested(50), nested(50, key=None), "\ud800", "é" * 300, "2026-01-01T00:00:00", [None, "x"], [1, 2, 3], "null"),
]
ARGUMENTS: list[Any] = [
    *([], {}, [1], [None], [SECRET], [[]], [{}], [EVENT, EVENT], [nested(500)], [nested(500, key=None)], 5, None, "x"),
    *([{"company": SECRET}], ["{"], ["[" * 100_000], ["\ud800"], [{**EVENT, "data": {"\x1b[2J": float("nan")}}]),
    *([{**EVENT, "data": nested(200)}], [{**EVENT, "data": {"a": 10**30}}], [{**EVENT, "": "\x00", "createdAt": "x"}]),
]
KEYWORDS: list[Any] = [
    *({}, {}, {}, [], None, 5, {"event": 5}, {"delivery_id": "x"}, {"delivery_id": {"$ne": None}}, {"delivery_id": []}),
    *({"delivery_id": "\ud800"}, {"delivery_id": None}, {"delivery_id": 10**30}, {"text": "{}"}, {"self": 1}, {"": 1}),
]
RAW = [
    *(b"", b"\xff", b"nonsense", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"[[{}],{},null", b"null", b'"x"'),
    *(b'[[{"a":1,"a":1}],{},null]', b'[["x"],{},null]\x00', b"[[NaN],{},null]", b'{"__type__":"x","__value__":1}'),
]


def make_poison(dice: random.Random, *, with_odd_envelope: bool) -> dict[str, Any]:
    """Make a message that is no event, in one of many ways."""
    task = dice.choice(["webhooks.deliver", "webhooks.send", "webhooks.write_log", None])
    changes = {dice.choice(HEADERS): dice.choice(HEADER_VALUES) for _ in range(dice.randrange(3))}
    if "eta" in changes or "expires" in changes:  # one that can be read is waited for, or has the message dropped
        changes = dict.fromkeys(changes, "x")
    if dice.random() < 0.2:  # what Celery itself fills with payload
        changes[dice.choice(["argsrepr", "kwargsrepr"])] = SECRET
    if dice.random() < 0.3:
        message = make_message(raw=dice.choice(RAW), **{"task": task, **changes})
    else:
        body = [dice.choice(ARGUMENTS), dice.choice(KEYWORDS), dice.choice([None, {}, {"callbacks": None}, [5], "x"])]
        message = make_message(body, **{"task": task, **changes})
    if with_odd_envelope and dice.random() < 0.2:
        part = dice.choice(["content-type", "content-encoding", "headers", "body"])
        message[part] = dice.choice(HEADER_VALUES)
    return message


PAYLOADS = [
    *(
        b"",
        b"\xff\x00",
        b"nonsense",
        b"null",
        b"[]",
        b"5",
        b"{}",
        b'{"headers":{}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ),
    json.dumps(make_message(x="DEEP")).replace('"DEEP"', "[" * 970 + "]" * 970).encode(),
    json.dumps({**make_message(), "properties": 5}).encode(),
    json.dumps(
        {**make_message(), "headers": {"task": "x", "id": "y", "z": {"__type__": "x", "__value__": 1}}}
    ).encode(),
    json.dumps(make_message(x=nested(400))).encode(),
]


#: What chance may not hit upon: each way into a query, and each way into the log.
CERTAIN: list[dict[str, Any]] = [
    *(make_message([[], keywords, None], task="webhooks.send") for keywords in KEYWORDS if isinstance(keywords, dict)),
    *(make_message([[text], {}, None], task="webhooks.write_log") for text in ({"$ne": None}, None, 5, "{}", "\ud800")),
    *(
        make_message(**dict[str, Any]({header: FORGED}))
        for header in ("id", "task", "shadow", "argsrepr", "root_id", "origin", "eta")
    ),
    make_message([[], {"delivery_id": "msg_of_somebody_else"}, None], task="webhooks.send", retries=10**30),
]


@pytest.mark.parametrize("is_atomic", ["true", "false"], ids=["our_transport", "plain_transport"])
def test_healthy_events_arrive_among_messages_of_any_shape(
    stack: Stack, redis_client: redis.Redis, is_atomic: str
) -> None:
    dice = random.Random(os.environ.get("WEBHOOKS_TEST_SEED", "1"))
    stack.database["deliveries"].insert_one({**LEDGER_FIELDS, "_id": "msg_of_somebody_else", "due_at": MaxKey()})
    with Receiver() as receiver:
        stack.add_webhook(f"{receiver.url}/a?token={SECRET}")
        worker = stack.start_worker(
            WEBHOOKS_ATOMIC_TRANSPORT=is_atomic, WEBHOOKS_RETRY_DELAY_S="0.1", WEBHOOKS_MAX_RETRIES="1"
        )
        for message in CERTAIN:
            push(redis_client, message)
        count = 200 if is_atomic == "true" else 60  # kombu's own transport takes one at a time
        for number in range(count):
            # kombu's own transport ends at what is no message
            push(redis_client, make_poison(dice, with_odd_envelope=is_atomic == "true"))
            if number % 20 == 0:
                stack.send_task({**EVENT, "number": number})
        if is_atomic == "true":
            for payload in PAYLOADS:
                redis_client.lpush(QUEUE, payload)
        stack.send_task({**EVENT, "number": "last"})
        wait_until(lambda: b'"number":"last"' in b"".join(r.body for r in receiver.requests), worker.log(), 60)
        kept = letters(stack, count // 4, 60)
        worker.stop()
    sent = [json.loads(request.body).get("number") for request in receiver.requests]
    assert sorted(str(number) for number in sent if number is not None) == sorted(
        ["last", *map(str, range(0, count, 20))]
    )
    owed = stack.database["deliveries"].find_one({"_id": "msg_of_somebody_else"})
    assert owed is not None
    assert "claim" not in owed, "a message has claimed a delivery that it does not name"
    assert worker.log().count(f"{worker.name} ready") == 1
    assert worker.log().count("Connected to redis") == 1, worker.log()[-3000:]
    assert SECRET not in worker.log()
    assert not [line for line in worker.log().splitlines() if line.startswith("2026 CRITICAL")]
    assert not UNSAFE.search(worker.log().replace("\t", ""))
    assert all(not UNSAFE.search(letter["text"]) for letter in kept)


# ── Words of errors ─────────────────────────────────────────────────────────────────────────────────────────────────

#: Makes our own code fail on an event, with words that hold some of it, as those of foreign errors do.
DEFECT = """
import webhooks.delivery.accept, webhooks.delivery.attempt, webhooks.store.logs, webhooks.sender.client

def fail(*arguments, **named):
    try:
        {"a": 1}[PAYLOAD]
    except KeyError as error:
        raise ValueError("invalid literal: " + PAYLOAD) from error

PAYLOAD = "p4yl0ad"
"""
DEFECT_IN = {
    "deliver": "webhooks.delivery.accept.fan_out = fail",
    "attempt": "webhooks.delivery.attempt.read_event = fail",
    "post": "webhooks.sender.client.prepare = fail",
    "record": "webhooks.store.logs.LogStore.write = fail",
}


@pytest.mark.parametrize("place", DEFECT_IN)
def test_words_of_a_defect_are_in_no_log(stack: Stack, place: str) -> None:
    folder: Path = stack.folder
    (folder / "broken.py").write_text(DEFECT + DEFECT_IN[place])
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    settings = {**stack.settings, "PYTHONPATH": path, "WEBHOOKS_RETRY_DELAY_S": "0.1", "WEBHOOKS_MAX_RETRIES": "1"}
    settings |= {"WEBHOOKS_TOTAL_TIMEOUT_S": "0.5", "WEBHOOKS_MONGODB_TIMEOUT_S": "2"}
    worker = Worker(folder, settings, "broken", "-I", "broken", "-E")
    stack.workers.append(worker)
    with Receiver(default=reply(503)) as receiver:
        stack.add_webhook(f"{receiver.url}/a?token={SECRET}")
        worker.start()
        stack.send_task({**EVENT, "data": {**EVENT["data"], "x": SECRET}})
        if place in ("post", "record"):
            wait_until(lambda: worker.log().count("WARNING/") + worker.log().count("ERROR/") >= 2, worker.log(), 20)
        else:
            letters(stack, 1)
        worker.stop()
    assert "ValueError" in worker.log(), worker.log()
    assert "in fail" in worker.log(), "the place of a defect must be told"
    assert SECRET not in worker.log()
