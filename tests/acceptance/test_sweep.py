"""What Redis loses is sent all the same, once: the sweep, on real servers and with a real worker."""

import time

import pytest
import redis
from bson import ObjectId

from tests.acceptance.conftest import QUICK, Stack
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import wait_until
from webhooks.models import now

EVENT = read_sample("event-task-create")

pytestmark = pytest.mark.timeout(240)


@pytest.mark.slow
def test_retries_that_wait_in_a_redis_that_is_wiped_are_made(fragile: Stack, servers: Servers):
    with Receiver(default=reply(503)) as receiver:
        fragile.add_webhook(receiver.url)
        worker = fragile.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="3")
        fragile.send_task(EVENT)
        fragile.logs(1)
        worker.stop()
        with redis.Redis.from_url(servers.valkey.url) as client:
            client.flushall()
        fragile.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="3")
        logs = fragile.logs(4, 150)
        time.sleep(3)
    assert [log["retry"] for log in logs] == [0, 1, 2, 3]
    assert len(receiver.requests) == 4
    wait_until(lambda: fragile.database["deliveries"].count_documents({}) == 0, "settled")


def test_attempt_whose_worker_is_killed_is_made_again_and_both_are_logged(stack: Stack):
    with Receiver(default=reply(delay_s=0.8)) as receiver:
        stack.add_webhook(receiver.url)
        killed = stack.start_worker(**QUICK)
        stack.send_task(EVENT)
        receiver.wait_for(1)
        killed.kill()
        other = stack.start_worker(**QUICK)
        logs = stack.logs(2, 60)
        requests = receiver.requests
    assert [request.headers["webhook-id"] for request in requests] == [logs[0]["attempt"]["delivery_id"]] * 2
    assert [(log["status"], log["retry"]) for log in logs] == [(409, 0), (200, 0)]
    interrupted, repeat = (log["attempt"] for log in logs)
    assert (interrupted["error_kind"], interrupted["worker"]) == ("interrupted", killed.name)
    assert (repeat["error_kind"], repeat["worker"]) == (None, other.name)
    assert interrupted["started_at"] < interrupted["next_at"] <= repeat["started_at"]
    wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "settled")


def wait_for_retry(stack: Stack) -> None:
    """Wait until a failed attempt is in the ledger as well, which is written after its log."""
    wait_until(lambda: stack.database["deliveries"].find_one({"retry": 1}), "owed a second attempt")


def test_attempt_whose_worker_died_between_log_and_ledger_is_not_made_again(stack: Stack):
    with Receiver().then(reply(503)) as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="3")
        stack.send_task(EVENT)
        (log,) = stack.logs(1)
        wait_for_retry(stack)
        claim = {"log_id": ObjectId(), "retry": 1, "worker": "dead@host", "at": now(), "until": now()}
        details = {**log["attempt"], "outcome": "success", "next_at": None}
        stack.database["webhooklogs"].insert_one(
            {**log, "_id": claim["log_id"], "status": 200, "retry": 1, "attempt": details}
        )
        stack.database["deliveries"].update_one({}, {"$set": {"claim": claim}})
        wait_until(lambda: stack.database["deliveries"].count_documents({}) == 0, "settled")
        assert len(receiver.requests) == 1
    assert stack.database["webhooklogs"].count_documents({}) == 2


def test_delivery_that_kills_workers_ends_as_a_dead_letter_and_can_be_sent_again(stack: Stack):
    with Receiver().then(reply(503)) as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="3")
        event_id = stack.send_task(EVENT)
        wait_for_retry(stack)
        # As if ten workers had died, one after another, of the attempt that comes next.
        claims = [
            {"log_id": ObjectId(), "retry": 1, "worker": "dead@host", "at": now(), "until": now()} for _ in range(10)
        ]
        stack.database["deliveries"].update_one({}, {"$set": {"interrupted": claims[:9], "claim": claims[9]}})
        letter = wait_until(lambda: stack.database["deadletters"].find_one({}), "a dead letter") or {}
        assert (letter["reason"], letter["task"]) == ("worker_lost", "webhooks.send")
        assert "10 attempts in a row" in letter["text"]
        assert len(stack.logs(10, 30, **{"attempt.error_kind": "interrupted"})) == 10
        wait_until(lambda: stack.database["deliveries"].find_one({"due_at": {"$exists": False}}), "set aside")
        assert len(receiver.requests) == 1
        stack.run_command("dead", "resend", "--all")
        log = stack.logs(1, status=200)[0]
    assert (log["retry"], log["attempt"]["event_id"]) == (1, event_id)


def test_attempt_that_is_queued_twice_is_made_once(fragile: Stack, servers: Servers):
    with Receiver(default=reply(delay_s=1)) as receiver:
        fragile.add_webhook(receiver.url)
        fragile.start_worker()
        event_id = fragile.send_task(EVENT)
        receiver.wait_for(1)
        # The same event's message once more, as from an old state of Redis, while its attempt is made and after it.
        fragile.send_task(EVENT, task_id=event_id)
        fragile.logs(1)
        fragile.send_task(EVENT, task_id=event_id)
        other_id = fragile.send_task(EVENT)
        fragile.logs(1, 30, **{"attempt.event_id": other_id})
        fragile.workers[0].stop()
    assert len(receiver.requests) == 2
    assert fragile.database["webhooklogs"].count_documents({}) == 2


@pytest.mark.slow
def test_redis_put_back_to_an_old_state_sends_all_that_is_owed_and_nothing_twice(fragile: Stack, servers: Servers):
    events = [{**EVENT, "number": number} for number in range(4)]
    with Receiver() as receiver:
        # The first two fail once, so that their retries are owed when Redis loses them.
        receiver.then(reply(503), reply(503))
        fragile.add_webhook(receiver.url)
        fragile.send_task(events[0])
        fragile.send_task(events[1])
        servers.valkey.stop()
        servers.valkey.keep_copy()
        servers.valkey.start()
        worker = fragile.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="5")
        fragile.logs(2, retry=0)
        fragile.send_task(events[2])
        fragile.send_task(events[3])
        fragile.logs(4, retry=0)
        worker.stop()
        servers.valkey.stop()
        servers.valkey.put_back_copy()
        servers.valkey.start()
        fragile.start_worker(**QUICK, WEBHOOKS_RETRY_DELAY_S="5")
        logs = fragile.logs(6, 120)
        wait_until(lambda: fragile.database["deliveries"].count_documents({}) == 0, "settled")
        fragile.workers[-1].stop()
    assert sorted(log["event"]["number"] for log in logs if log["status"] == 200) == [0, 1, 2, 3]
    assert len(receiver.requests) == 6


@pytest.mark.slow
def test_backlog_that_is_long_overdue_is_not_queued_again(fragile: Stack, servers: Servers):
    # 36 s of work for two threads, with deadlines after which a message can only be lost or in the queue: 19 s.
    count = 240
    with Receiver(default=reply(delay_s=0.3)) as receiver:
        fragile.add_webhook(receiver.url)
        for _ in range(count):
            fragile.send_task(EVENT)
        worker = fragile.start_worker(**{**QUICK, "WEBHOOKS_MONGODB_TIMEOUT_S": "3"}, WEBHOOKS_CONCURRENCY="2")
        logs = fragile.logs(count, 180)
        worker.stop()
    assert (logs[-1]["createdAt"] - logs[0]["createdAt"]).total_seconds() > 30, "too quick to tell anything"
    logs = fragile.logs(count)
    assert "queued" not in worker.log(), worker.log()[-2000:]
    # On a busy machine an attempt may run into its second of time, and has its retry.
    assert len({(log["attempt"]["delivery_id"], log["retry"]) for log in logs}) == len(logs) == len(receiver.requests)
