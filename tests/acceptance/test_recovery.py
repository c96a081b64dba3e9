"""Workers that die, or are only paused, with requests open: deadlines as by default, real servers, real signals."""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from tests.acceptance.conftest import RETRY_DELAY_S, Stack
from tests.lab.receiver import Behaviour, Receiver, Recorded, Wire, response
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until
from webhooks.transport.lanes import FIRST_WINDOW

pytestmark = pytest.mark.timeout(240)

EVENT = read_sample("event-task-create")
WEBHOOKS, EVENTS = 4, 5
#: As many as the lanes of endpoints that are not known yet let begin.
OPEN = WEBHOOKS * min(EVENTS, FIRST_WINDOW)
#: What is promised.
RECOVERED_WITHIN_S = 20.0
MANY: Any = {"WEBHOOKS_CONCURRENCY": "64"}


@contextmanager
def holding_receiver() -> Iterator[tuple[Receiver, threading.Event]]:
    """Give a receiver that answers nothing until an event is set, and then refuses every other one that it held."""
    released = threading.Event()
    held = itertools.count()

    def act(wire: Wire, _: Recorded) -> bool:
        status = 200 if released.is_set() or next(held) % 2 else 503
        while not released.wait(0.05):
            if not wire.is_open:
                return False
        wire.send(response(status, b"ok"))
        return True

    with Receiver(default=Behaviour(act)) as receiver:
        try:
            yield receiver, released
        finally:
            released.set()


def open_requests(stack: Stack, receiver: Receiver) -> tuple[Worker, Worker]:
    """Have one worker make attempts that nobody answers, beside one that has nothing to do."""
    for number in range(WEBHOOKS):
        stack.add_webhook(f"{receiver.url}/{number}")
    busy = stack.start_worker(**MANY)
    for number in range(EVENTS):
        stack.send_task({**EVENT, "data": {**EVENT["data"], "number": number}})
    receiver.wait_for(OPEN)
    wait_until(lambda: stack.database["deliveries"].count_documents({}) == WEBHOOKS * EVENTS, "all written down")
    return busy, stack.start_worker(**MANY)


def times_by_delivery(receiver: Receiver) -> Counter[str]:
    return Counter(request.headers["webhook-id"] for request in receiver.requests)


def wait_until_settled(stack: Stack, timeout_s: float) -> None:
    wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "nothing owed", timeout_s)


def test_attempts_of_a_killed_worker_are_made_again_in_time_and_new_events_do_not_wait(stack: Stack):
    with holding_receiver() as (receiver, released):
        killed, _ = open_requests(stack, receiver)
        killed_at = time.monotonic()
        killed.kill()
        released.set()
        stack.send_task({**EVENT, "data": {**EVENT["data"], "number": EVENTS}})
        receiver.wait_for(OPEN + WEBHOOKS * (EVENTS + 1), RECOVERED_WITHIN_S)
        took_s = time.monotonic() - killed_at
        wait_until_settled(stack, 10)
        logs = stack.logs(WEBHOOKS * (EVENTS + 1), status=200)
        times = times_by_delivery(receiver)
    assert took_s < RECOVERED_WITHIN_S
    assert len(logs) == len(times) == WEBHOOKS * (EVENTS + 1)
    assert Counter(times.values()) == {2: OPEN, 1: len(times) - OPEN}, "what was in flight, and nothing else"
    wanted: Any = {"attempt.error_kind": "interrupted"}
    interrupted = stack.logs(OPEN, **wanted)
    assert {log["attempt"]["worker"] for log in interrupted} == {killed.name}


def test_worker_that_was_paused_repeats_no_more_than_what_was_in_flight(stack: Stack):
    with holding_receiver() as (receiver, released):
        paused, other = open_requests(stack, receiver)
        os.kill(paused.pid, signal.SIGSTOP)
        released.set()
        receiver.wait_for(OPEN + WEBHOOKS * EVENTS, RECOVERED_WITHIN_S)
        wait_until_settled(stack, 10)
        ended = stack.logs(WEBHOOKS * EVENTS, status=200)
        assert {log["attempt"]["worker"] for log in ended} == {other.name}
        os.kill(paused.pid, signal.SIGCONT)
        # Its late results, good and bad, take the place of what was guessed of them, and change nothing else.
        late: Any = {"attempt.worker": paused.name, "attempt.error_kind": {"$ne": "interrupted"}}
        logs = stack.logs(OPEN, **late)
        time.sleep(RETRY_DELAY_S + 3)
        times = times_by_delivery(receiver)
    assert Counter(times.values()) == {2: OPEN, 1: WEBHOOKS * EVENTS - OPEN}
    assert stack.database["deliveries"].count_documents({}) == 0
    assert stack.database["webhooklogs"].count_documents({}) == sum(times.values())
    assert {(log["status"], log["retry"]) for log in logs} == {(200, 0), (503, 0)}
    stack.send_task(EVENT)  # both work on
    stack.logs(WEBHOOKS * (EVENTS + 1), status=200)


def test_worker_that_stops_ends_its_leases(stack: Stack, redis_client: redis.Redis):
    worker = stack.start_worker()
    wait_until(lambda: redis_client.zcard("webhooks.leases") == 1, "a lease in Redis")
    wait_until(lambda: stack.database["leases"].count_documents({"since": {"$ne": None}}) == 1, "one in MongoDB")
    worker.stop()
    present: Any = redis_client.time()
    assert redis_client.zcount("webhooks.leases", present[0] + 1, "+inf") == 0
    query = {"$expr": {"$gt": ["$until", "$$NOW"]}}
    assert list(stack.database["leases"].find(query)) == [], "nor any job's"


@pytest.mark.parametrize("server", ["valkey", "mongod"])
@pytest.mark.slow
def test_lease_comes_back_by_itself_when_a_server_was_away(fragile: Stack, servers: Any, server: str):
    fragile.start_worker()
    client: Any = redis.Redis.from_url(fragile.redis_url)

    def count() -> int:
        if server == "valkey":
            return client.zcount("webhooks.leases", client.time()[0], "+inf")
        query = {"since": {"$ne": None}, "$expr": {"$gt": ["$until", "$$NOW"]}}
        return fragile.database["leases"].count_documents(query)

    wait_until(lambda: count() == 1, "a lease")
    one = getattr(servers, server)
    one.kill()
    time.sleep(12)
    one.start()
    if server == "valkey":
        client.flushall()
    wait_until(lambda: count() == 1, "a lease again", 20)
    client.close()
