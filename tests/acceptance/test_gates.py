"""Webhooks that are paused, recover, stop, keep an order or are asked to wait: real servers and workers."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import pytest
import redis
from bson import ObjectId

from tests.acceptance.conftest import QUICK, Stack
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import wait_until
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.gates import By, GateStore, State
from webhooks.store.held import HeldDeliveries

EVENT = read_sample("event-task-create")
#: Two failed attempts within a second are "for long", and probes come soon.
SHORT: Any = {
    "WEBHOOKS_PAUSE_AFTER_S": "1",
    "WEBHOOKS_PAUSE_MIN_ATTEMPTS": "2",
    "WEBHOOKS_PROBE_INTERVAL_S": "1.5",
}

pytestmark = pytest.mark.timeout(240)


def state_of(stack: Stack, webhook_id: ObjectId) -> State:
    return GateStore(stack.database).get(webhook_id).state


def wait_for_state(stack: Stack, webhook_id: ObjectId, state: State) -> None:
    wait_until(lambda: state_of(stack, webhook_id) is state, f"{state}; {stack.worker_logs()}", 60)


def owed(stack: Stack, **wanted: Any) -> int:
    return stack.database["deliveries"].count_documents(wanted)


def types_of_notices(stack: Stack, webhook_id: ObjectId) -> list[str]:
    return [notice.type.value for notice in GateStore(stack.database).get(webhook_id).notices]


def numbers(receiver: Receiver) -> list[int]:
    return [request.json()["number"] for request in receiver.requests]


def test_paused_webhook_gets_nothing_until_it_is_resumed_and_then_all(stack: Stack):
    with Receiver() as receiver, Receiver() as other:
        webhook_id = stack.add_webhook(receiver.url)
        stack.add_webhook(other.url)
        gates = GateStore(stack.database)
        stack.start_worker()
        gates.pause(webhook_id, By.OPERATOR, "maintenance")
        for number in range(20):
            stack.send_task({**EVENT, "number": number})
        other.wait_for(20)
        wait_until(lambda: owed(stack, held=True) == 20, "kept")
        assert receiver.requests == []
        gates.resume(webhook_id)
        receiver.wait_for(20, 60)
        wait_for_state(stack, webhook_id, State.OPEN)
        wait_until(lambda: owed(stack) == 0, "settled")
        stack.send_task({**EVENT, "number": 20})
        receiver.wait_for(21)
        other.wait_for(21)
        logs = stack.logs(42)
    assert sorted(numbers(receiver)) == list(range(21))
    assert {(log["status"], log["retry"]) for log in logs} == {(200, 0)}
    assert "paused: maintenance" in stack.workers[0].log()


def test_pause_also_keeps_what_waits_for_its_retry_and_counts_nothing(stack: Stack):
    with Receiver().then(reply(503)) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker(WEBHOOKS_RETRY_DELAY_S="2")
        stack.send_task(EVENT)
        stack.logs(1)
        gates = GateStore(stack.database)
        gates.pause(webhook_id, By.OPERATOR, "maintenance")
        wait_until(lambda: owed(stack, held=True, retry=1) == 1, "kept")
        assert stack.database["webhooklogs"].count_documents({}) == 1
        gates.resume(webhook_id)
        logs = stack.logs(2)
    assert [(log["status"], log["retry"]) for log in logs] == [(503, 0), (200, 1)]


@pytest.mark.slow
def test_endpoint_that_fails_for_long_is_paused_probed_and_recovers(stack: Stack):
    with Receiver(default=reply(503)) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker(**SHORT, WEBHOOKS_RETRY_DELAY_S="0.5", WEBHOOKS_MAX_RETRIES="20")
        for number in range(3):
            stack.send_task({**EVENT, "number": number})
        wait_for_state(stack, webhook_id, State.PAUSED)
        for number in range(3, 30):
            stack.send_task({**EVENT, "number": number})
        probes = stack.logs(2, 30, **{"attempt.probe": True})
        wait_until(lambda: owed(stack, held=True) >= 29, "kept")
        assert len({(log["attempt"]["delivery_id"], log["retry"]) for log in probes}) == 1, "the oldest, no retry used"
        gap_s = (probes[1]["attempt"]["started_at"] - probes[0]["attempt"]["started_at"]).total_seconds()
        assert gap_s > 1.4
        receiver.default = reply()
        wait_for_state(stack, webhook_id, State.OPEN)
        wait_until(lambda: owed(stack) == 0, "settled")
    ok = stack.logs(30, 30, status=200)
    assert sorted(log["event"]["number"] for log in ok) == list(range(30))
    assert types_of_notices(stack, webhook_id) == ["paused", "recovered"]
    reason = GateStore(stack.database).get(webhook_id).notices[0].reason
    assert "attempts failed" in reason
    assert "last: 503" in reason


@pytest.mark.slow
def test_probe_whose_worker_died_does_not_end_the_probing(stack: Stack):
    with Receiver(default=reply(delay_s=0.9)) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        gates = GateStore(stack.database)
        killed = stack.start_worker(**QUICK, **SHORT)
        gates.pause(webhook_id, By.HEALTH, "fails", probe_in_s=0.1)
        stack.send_task(EVENT)
        receiver.wait_for(1)
        killed.kill()
        assert state_of(stack, webhook_id) is State.PAUSED
        stack.start_worker(**QUICK, **SHORT)
        wait_for_state(stack, webhook_id, State.OPEN)
        wait_until(lambda: owed(stack) == 0, "settled")
    assert types_of_notices(stack, webhook_id) == ["paused", "recovered"]


@pytest.mark.slow
def test_endpoint_that_fails_on_while_it_recovers_is_paused_again(stack: Stack):
    with Receiver(default=reply(500)) as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        gates = GateStore(stack.database)
        gates.pause(webhook_id, By.OPERATOR, "maintenance")
        stack.start_worker(WEBHOOKS_PROBE_INTERVAL_S="100", WEBHOOKS_RETRY_DELAY_S="5")
        for number in range(40):
            stack.send_task({**EVENT, "number": number})
        wait_until(lambda: owed(stack, held=True) == 40, "kept")
        gates.resume(webhook_id)
        wait_for_state(stack, webhook_id, State.PAUSED)
        assert len(receiver.requests) < 15
        wait_until(lambda: owed(stack, held=True) == 40, "all are kept again")


@pytest.mark.slow
def test_what_was_kept_is_not_flung_at_the_receiver(stack: Stack):
    count = 1_000
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        gates = GateStore(stack.database)
        gates.pause(webhook_id, By.OPERATOR, "maintenance")
        stack.start_worker()
        for number in range(count):
            stack.send_task({**EVENT, "number": number})
        wait_until(lambda: owed(stack, held=True) == count, "kept", 60)
        gates.resume(webhook_id)
        receiver.wait_for(count, 60)
        wait_for_state(stack, webhook_id, State.OPEN)
    times = sorted(request.received_at for request in receiver.requests)
    in_first_3_s = sum(at < times[0] + 3 for at in times)
    assert in_first_3_s < 40, "it grows from one a second"


def test_receiver_that_asks_to_wait_gets_nothing_until_then(stack: Stack):
    with Receiver().then(reply(429, headers=[("Retry-After", "3")])) as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        stack.send_task({**EVENT, "number": 0})
        stack.logs(1)
        for number in range(1, 4):
            stack.send_task({**EVENT, "number": number})
        logs = stack.logs(5)
        requests = receiver.requests
    assert [(log["status"], log["retry"]) for log in logs[:1]] == [(429, 0)]
    assert sorted((log["status"], log["retry"]) for log in logs[1:]) == [(200, 0), (200, 0), (200, 0), (200, 1)]
    assert all(request.received_at - requests[0].received_at >= 3 for request in requests[1:])
    assert logs[0]["attempt"]["retry_after_s"] == 3


def test_410_retires_the_webhook_with_the_reason_on_it(stack: Stack):
    with Receiver().then(reply(410)) as receiver, Receiver() as operators:
        webhook_id = stack.add_webhook(receiver.url)
        stack.start_worker(WEBHOOKS_OPERATORS_URL=operators.url)
        stack.send_task(EVENT)
        (log,) = stack.logs(1)
        assert (log["status"], log["attempt"]["next_at"]) == (410, None)
        stored = stack.database["webhooks"].find_one({"_id": webhook_id}) or {}
        assert stored["isActive"] is False
        assert "410" in stored["deactivated"]["reason"]
        wait_until(lambda: types_of_notices(stack, webhook_id) == ["deactivated"], "told")
        wait_until(lambda: "deactivated: its receiver answered 410" in stack.worker_logs(), "logged")
        assert owed(stack) == 0
        (told,) = operators.wait_for(1)
        notice = told.json()
        assert (notice["type"], notice["data"]["webhook"]) == ("webhook.deactivated", str(webhook_id))
        assert notice["data"]["reason"] == "its receiver answered 410 Gone"


def test_ordered_webhook_gets_its_events_one_at_a_time_through_failures_and_a_kill(stack: Stack):
    count = 25
    with Receiver() as receiver:
        stack.add_webhook(receiver.url, ordered=True)
        receiver.then(reply(), reply(), reply(503), reply(), reply(500), reply(500))
        worker = stack.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="0.3")
        for number in range(count):
            stack.send_task({**EVENT, "number": number}, task_id=f"event{number:03}")
            wait_until(lambda n=number: owed(stack, event_id=f"event{n:03}") or len(receiver.requests) > n, "taken")
        receiver.wait_for(8)
        worker.kill()
        stack.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="0.3")
        stack.logs(count, 120, status=200)
        wait_until(lambda: owed(stack) == 0, "settled")
    ok = [log["event"]["number"] for log in stack.logs(count, status=200)]
    assert list(dict.fromkeys(ok)) == list(range(count))
    # What was under way when the worker was killed may have come twice, and nothing came before its turn.
    came = numbers(receiver)
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(came)), came


@pytest.mark.slow
def test_ordered_webhook_keeps_its_order_through_a_redis_that_is_wiped(fragile: Stack, servers: Servers):
    with Receiver().then(reply(503)) as receiver:
        fragile.add_webhook(receiver.url, ordered=True)
        worker = fragile.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="4")
        for number in range(5):
            fragile.send_task({**EVENT, "number": number}, task_id=f"event{number:03}")
            wait_until(lambda n=number: owed(fragile, event_id=f"event{n:03}"), "written down")
        fragile.logs(1)
        worker.stop()
        with redis.Redis.from_url(servers.valkey.url) as client:
            client.flushall()
        fragile.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="4")
        receiver.wait_for(6, 120)
    assert numbers(receiver) == [0, 0, 1, 2, 3, 4]


def test_ordered_webhook_goes_on_when_the_retries_of_its_head_are_used_up(stack: Stack):
    with Receiver().then(*[reply(500)] * 2) as receiver:
        stack.add_webhook(receiver.url, ordered=True)
        stack.start_worker(WEBHOOKS_RETRY_DELAY_S="0.3", WEBHOOKS_MAX_RETRIES="1")
        for number in range(3):
            stack.send_task({**EVENT, "number": number}, task_id=f"event{number:03}")
            wait_until(lambda n=number: owed(stack, event_id=f"event{n:03}") or len(receiver.requests) > n, "taken")
        receiver.wait_for(4)
    assert numbers(receiver) == [0, 0, 1, 2]


def test_ordered_webhook_stops_when_it_is_to_and_an_operator_resumes_it(stack: Stack):
    with Receiver().then(*[reply(500)] * 2) as receiver:
        webhook_id = stack.add_webhook(receiver.url, ordered=True, on_exhausted="stop")
        stack.start_worker(WEBHOOKS_RETRY_DELAY_S="0.3", WEBHOOKS_MAX_RETRIES="1")
        for number in range(3):
            stack.send_task({**EVENT, "number": number}, task_id=f"event{number:03}")
            wait_until(lambda n=number: owed(stack, event_id=f"event{n:03}") == 1, "written down")
        wait_for_state(stack, webhook_id, State.STOPPED)
        wait_until(lambda: owed(stack, held=True) == 3, "all are kept")
        last = stack.logs(2)[-1]
        assert (last["retry"], last["attempt"]["kept"], last["attempt"]["next_at"]) == (1, True, None)
        time.sleep(2)
        assert len(receiver.requests) == 2
        kept = HeldDeliveries(stack.database, DeliveryStore(stack.database, 1, 1))
        assert kept.restart_head(webhook_id) is not None
        GateStore(stack.database).resume(webhook_id)
        receiver.wait_for(5)
        wait_until(lambda: owed(stack) == 0, "settled")
    assert numbers(receiver) == [0, 0, 0, 1, 2]
    assert [log["retry"] for log in stack.logs(5)] == [0, 1, 0, 0, 0]
    assert types_of_notices(stack, webhook_id) == ["stopped", "resumed"]


def test_ordered_webhook_gets_events_in_order_whichever_way_each_was_handed_in(stack: Stack):
    """As the README shows: with this package, and with nothing but Celery."""
    code = f"""
import json, webhooks
from celery import Celery
bare = Celery("bare", broker={stack.redis_url!r}, set_as_current=False)
for number in range(60):
    event = {{**json.loads({json.dumps(EVENT)!r}), "number": number}}
    if number % 2:
        bare.send_task("webhooks.deliver", [event])
    else:
        webhooks.deliver.delay(event)
"""
    with Receiver() as receiver:
        stack.add_webhook(receiver.url, ordered=True)
        stack.start_worker()
        stack.run_producer(code)
        receiver.wait_for(60, 60)
    assert numbers(receiver) == list(range(60))


def test_pause_holds_when_its_command_returns_though_a_worker_was_suspended(stack: Stack):
    """Attempts for which it had asked before went out afterwards, also without that: up to 0.2 s later under load.

    In flight are requests whose connections the suspended worker was opening, and one that it was about to write.
    """
    code = f"""
import json, webhooks
event = json.loads({json.dumps(EVENT)!r})
while True:
    webhooks.deliver.delay_many([event] * 20)
"""
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(receiver.url)
        workers = [stack.start_worker(WEBHOOKS_CONCURRENCY="64") for _ in range(2)]
        producer = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **stack.settings})
        try:
            receiver.wait_for(300, 60)
            os.kill(workers[0].pid, signal.SIGSTOP)
            stack.run_command("pause", str(webhook_id))
            paused_at = time.monotonic()
            os.kill(workers[0].pid, signal.SIGCONT)
            before = owed(stack)
            wait_until(lambda: owed(stack) > before + 50, "both go on")
            time.sleep(1)
        finally:
            producer.kill()
            producer.wait()
        used = {request.connection for request in receiver.requests if request.received_at <= paused_at}
        late = [request.connection for request in receiver.requests if request.received_at > paused_at]
        assert len(used.intersection(late)) <= 1, late
        assert len(late) == len(set(late)), "one at most over each connection"
        wait_until(lambda: owed(stack, claim={"$exists": True}) == 0, "all claims are given up", 60)


def test_messages_of_attempts_name_their_lane_and_rate_also_when_they_are_retries(stack: Stack):
    with Receiver(default=reply(503)) as receiver:
        webhook_id = stack.add_webhook(receiver.url, rate_limit=50, rate_burst=5)
        worker = stack.start_worker(WEBHOOKS_RETRY_DELAY_S="600")
        stack.send_task(EVENT)
        stack.logs(1)
        worker.stop()
    with redis.Redis.from_url(stack.redis_url) as client:
        text = str([_read_key(client, key) for key in client.keys("*")]).replace("\\", "")
    assert f'"webhooks_lane":"{EVENT["company"]}/{webhook_id}"' in text
    assert '"webhooks_rate":[50' in text


def _read_key(client: Any, key: Any) -> Any:
    """Return all that a key of Redis holds, whatever its type."""
    kind = client.type(key)
    read = {b"hash": client.hgetall, b"string": client.get}
    ranges = {b"list": client.lrange, b"zset": client.zrange}
    return ranges[kind](key, 0, -1) if kind in ranges else read.get(kind, lambda _: None)(key)
