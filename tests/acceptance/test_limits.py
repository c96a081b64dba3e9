"""Rate limits that are edited under load, and those of deliveries that Redis lost: real servers and workers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from tests.acceptance.conftest import QUICK, Stack
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import wait_until

EVENT = read_sample("event-task-create")
#: Seconds within which a change of a webhook takes effect on all workers.
CHANGED_WITHIN_S = 5.0
#: Requests that may come besides in some seconds: on their way one may be late, and the next one not.
SLACK = 2

pytestmark = pytest.mark.timeout(240)


def most_within(receiver: Receiver, seconds: float, since: float = 0.0) -> int:
    """Return how many requests came within so many seconds, at most, of those after an instant."""
    times = [request.received_at for request in receiver.requests if request.received_at >= since]
    return max((sum(begin <= at < begin + seconds for at in times) for begin in times), default=0)


def send_many(stack: Stack, number: int) -> None:
    """Hand in events as a service that has this package does."""
    stack.run_producer(
        f"import json, webhooks; webhooks.deliver.delay_many([json.loads({json.dumps(EVENT)!r})] * {number})"
    )


@contextmanager
def steady_load(stack: Stack) -> Iterator[None]:
    """Hand in some ten events per second all the time."""
    code = f"""
import json, time, webhooks
event = json.loads({json.dumps(EVENT)!r})
while True:
    webhooks.deliver.delay(event)
    time.sleep(0.01)
"""
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **stack.settings})
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_rate_limit_that_is_edited_under_load_holds_all_the_time(stack: Stack):
    """Workers learn of it one after the other: with each that told the old one or the new, the bucket was full anew."""
    with Receiver() as receiver:
        webhook_id = stack.add_webhook(receiver.url, rate_limit=1)
        stack.start_worker()
        stack.start_worker()
        with steady_load(stack):
            receiver.wait_for(2, 60)
            stack.run_command("edit", str(webhook_id), "--rate-limit", "2")
            edited_at = time.monotonic()
            time.sleep(8)
        came = sum(request.received_at > edited_at + CHANGED_WITHIN_S for request in receiver.requests)
    assert most_within(receiver, 3) <= 2 * 3 + SLACK
    assert came >= 3, "the new limit is made use of"


def test_rate_limit_that_is_lowered_holds_for_retries_as_well(stack: Stack):
    """Each retry told the limit that its message was made with, and each report that of now."""
    with Receiver(default=reply(503)) as receiver:
        webhook_id = stack.add_webhook(receiver.url, rate_limit=5)
        stack.start_worker()
        watch = [sys.executable, "-m", "celery", "-A", "webhooks", "control", "enable_events"]
        subprocess.run(watch, env=stack.workers[0].env, check=True, capture_output=True, timeout=60)
        send_many(stack, 60)
        receiver.wait_for(4, 60)
        stack.run_command("edit", str(webhook_id), "--rate-limit", "1")
        since = time.monotonic() + CHANGED_WITHIN_S
        time.sleep(CHANGED_WITHIN_S + 8)
    assert 5 <= sum(request.received_at >= since for request in receiver.requests) <= 8 + SLACK


def test_rate_limit_holds_for_what_is_queued_again_after_redis_was_wiped(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url, rate_limit=1)
        worker = stack.start_worker(**QUICK)
        send_many(stack, 12)
        receiver.wait_for(2, 60)
        worker.stop()
        redis_client.flushall()
        wiped_at = time.monotonic()
        stack.start_worker(**QUICK)
        wait_until(lambda: stack.worker_logs().count("queued") and len(receiver.requests) >= 6, "sent again", 60)
        time.sleep(1)
    assert most_within(receiver, 1, wiped_at) <= 1 + SLACK
