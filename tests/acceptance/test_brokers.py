"""Brokers without lanes: RabbitMQ, and Celery's own Redis transport. The worker does the same there."""

import os
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu.connection import Connection

from tests.acceptance.conftest import RETRY_DELAY_S, Stack, body_of
from tests.lab.rabbitmq import find_rabbitmq, run_rabbitmq
from tests.lab.receiver import Receiver, hang, reply
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker, wait_until

EVENT = read_sample("event-task-create")


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ of this session's own."""
    server = find_rabbitmq()
    if server is None:
        if os.environ.get("CI"):
            pytest.fail("rabbitmq-server is not installed; CI needs it")
        pytest.skip("rabbitmq-server is not installed (Debian: apt install rabbitmq-server)")
    with run_rabbitmq(server, tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture(params=["rabbitmq", "plain"])
def plain_stack(request: pytest.FixtureRequest, stack: Stack) -> Stack:
    """A stack on a broker without lanes."""
    if request.param == "plain":
        stack.more["WEBHOOKS_ATOMIC_TRANSPORT"] = "false"
    else:
        stack.redis_url = request.getfixturevalue("rabbitmq_url")
        with Connection(stack.redis_url) as connection:
            for queue in ("celery", "webhooks.deliver", "webhooks.send"):
                connection.default_channel.queue_delete(queue)
    return stack


def hand_in(stack: Stack, count: int) -> None:
    stack.more.setdefault("WEBHOOKS_PUBLISH_TIMEOUT_S", "30")
    stack.run_producer(
        f"import json\nfrom webhooks import deliver\nevent = json.loads({body_of(EVENT)!r})\n"
        f"deliver.delay_many({{**event, 'extraData': n}} for n in range({count}))"
    )


def test_delivery_that_fails_comes_back_and_succeeds(plain_stack: Stack):
    with Receiver() as receiver:
        receiver.then(reply(503), reply(200))
        plain_stack.add_webhook(receiver.url)
        plain_stack.start_worker()
        hand_in(plain_stack, 1)
        first, second = plain_stack.logs(2, RETRY_DELAY_S + 30)
    assert [(log["status"], log["retry"]) for log in (first, second)] == [(503, 0), (200, 1)]
    wait_until(lambda: plain_stack.database["deliveries"].count_documents({}) == 0, "nothing owed")


def test_many_events_are_attempted_many_at_a_time_each_once(plain_stack: Stack):
    with Receiver() as receiver:
        plain_stack.add_webhook(receiver.url)
        plain_stack.start_worker()
        hand_in(plain_stack, 200)
        logs = plain_stack.logs(200)
        wait_until(lambda: plain_stack.database["deliveries"].count_documents({}) == 0, "nothing owed")
        got = [request.json()["extraData"] for request in receiver.requests]
    assert sorted(got) == list(range(200))
    assert {log["attempt"]["outcome"] for log in logs} == {"success"}


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_worker_that_is_killed_loses_nothing(plain_stack: Stack):
    settings: dict[str, Any] = {"WEBHOOKS_TOTAL_TIMEOUT_S": "5", "WEBHOOKS_MONGODB_TIMEOUT_S": "2"}
    settings["WEBHOOKS_SWEEP_INTERVAL_S"] = "1"
    with Receiver() as receiver:
        receiver.then(hang())
        plain_stack.add_webhook(receiver.url)
        worker = plain_stack.start_worker(**settings)
        hand_in(plain_stack, 1)
        receiver.wait_for(1)
        worker.kill()
        plain_stack.start_worker(**settings)
        logs = plain_stack.logs(2, 90)
    assert [log["attempt"]["error_kind"] for log in logs] == ["interrupted", None]


@pytest.mark.slow
def test_worker_takes_no_more_than_it_is_told(plain_stack: Stack):
    with Receiver(default=reply(200, delay_s=0.2)) as receiver:
        for _ in range(4):
            plain_stack.add_webhook(receiver.url)
        worker = Worker(plain_stack.folder, plain_stack.settings, f"worker{uuid4().hex[:4]}", "-c", "2")
        plain_stack.workers.append(worker)
        worker.start()
        hand_in(plain_stack, 5)
        plain_stack.logs(20, 60)
    starts = sorted(request.received_at for request in receiver.requests)
    # Two at a time that take 0.2 s each: never three within half of that.
    assert all(later - earlier > 0.1 for earlier, later in zip(starts, starts[2:], strict=False))
