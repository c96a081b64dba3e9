"""The short way: a worker makes an event's first attempts itself, and leaves to Celery whatever is not plain."""

import base64
import json
from typing import Any, cast

import redis

from tests.acceptance.conftest import RETRY_DELAY_S, Stack, body_of
from tests.receiver import Receiver, hang, reply
from tests.samples_data import read_sample
from tests.worker import Worker, wait_until

EVENT = read_sample("event-task-create")
#: What Celery's log says of messages that went its way.
DELIVER_TASK, SEND_TASK = "Task webhooks.deliver[", "Task webhooks.send["


def produce_many(stack: Stack, count: int) -> list[str]:
    """Hand events in at one time, from a service that has this package; return their ids."""
    code = f"""
import base64
import json
from typing import Any, cast
from webhooks import deliver
event = json.loads({body_of(EVENT).decode()!r})
print(json.dumps(deliver.delay_many({{**event, "data": {{**event["data"], "n": n}}}} for n in range({count}))))
"""
    return json.loads(stack.run_producer(code))


def wait_until_settled(stack: Stack, client: redis.Redis) -> None:
    wait_until(lambda: client.hlen("unacked") == 0, "all acked")
    assert stack.database["deliveries"].count_documents({}) == 0


def test_events_go_the_short_way_each_once_with_a_log_and_nothing_left(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        ids = produce_many(stack, 250)
        logs = stack.logs(250)
        wait_until_settled(stack, redis_client)
        got = [request.json()["data"]["n"] for request in receiver.requests]
    assert sorted(got) == list(range(250))
    assert sorted(log["attempt"]["event_id"] for log in logs) == sorted(ids)
    assert {(log["status"], log["attempt"]["outcome"]) for log in logs} == {(200, "success")}
    assert DELIVER_TASK not in worker.log()
    assert SEND_TASK not in worker.log()
    assert worker.log().count("attempt delivery=") == 250


def test_failed_first_attempt_comes_back_by_celerys_countdown(stack: Stack, redis_client: redis.Redis):
    with Receiver() as receiver:
        receiver.then(reply(500), reply(200))
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        (event_id,) = produce_many(stack, 1)
        first, second = sorted(stack.logs(2, RETRY_DELAY_S + 30), key=lambda log: log["retry"])
        wait_until_settled(stack, redis_client)
        ids = {request.headers["webhook-id"] for request in receiver.requests}
    assert (first["status"], first["retry"], second["status"], second["retry"]) == (500, 0, 200, 1)
    assert {first["attempt"]["event_id"], second["attempt"]["event_id"]} == {event_id}
    assert ids == {first["attempt"]["delivery_id"]} == {second["attempt"]["delivery_id"]}
    assert (second["createdAt"] - first["createdAt"]).total_seconds() >= RETRY_DELAY_S
    assert DELIVER_TASK not in worker.log()
    assert SEND_TASK not in worker.log()


def test_what_is_watched_goes_the_long_way(stack: Stack):
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        worker = Worker(stack.folder, stack.settings, "watched", "--task-events")
        stack.workers.append(worker)
        worker.start()
        produce_many(stack, 3)
        stack.logs(3)
        receiver.wait_for(3)
    assert worker.log().count(f"{SEND_TASK}") >= 3


def test_endpoint_that_hangs_holds_no_more_than_its_share_and_the_rest_waits_in_its_lane(
    stack: Stack, redis_client: redis.Redis
):
    with Receiver(default=hang()) as receiver:
        stack.add_webhook(receiver.url)
        stack.start_worker()
        produce_many(stack, 30)
        # Four are let go before anything is known of it; the messages of the others are queued, and the events acked.
        wait_until(lambda: stack.database["deliveries"].count_documents({}) == 30, "all in the ledger")
        wait_until(lambda: redis_client.hlen("unacked") <= 4, "no more than its share in hand")
        assert len(receiver.requests) <= 4
        assert stack.database["deliveries"].count_documents({"claim": {"$exists": True}}) <= 4


def test_worker_that_is_stopped_ends_what_it_began_and_gives_the_rest_back(stack: Stack, redis_client: redis.Redis):
    with Receiver(default=reply(200, delay_s=0.5)) as receiver:
        stack.add_webhook(receiver.url)
        worker = stack.start_worker()
        produce_many(stack, 200)
        receiver.wait_for(4)
        worker.stop()
        assert redis_client.hlen("unacked") == 0
        assert stack.database["webhooklogs"].count_documents({}) == len(receiver.requests)
        assert stack.database["deliveries"].count_documents({"claim": {"$exists": True}}) == 0
        stack.start_worker()
        stack.logs(200, 60)
        wait_until_settled(stack, redis_client)
        ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(ids) == len(set(ids)) == 200


def test_bad_event_among_many_is_named_by_its_place_and_none_is_queued(stack: Stack, redis_client: redis.Redis):
    code = f"""
import base64
import json
from typing import Any, cast
from webhooks import deliver
from webhooks.errors import InvalidEvent
event = json.loads({body_of(EVENT).decode()!r})
try:
    deliver.delay_many([event, {{**event, "company": "x"}}])
except InvalidEvent as error:
    print(error)
"""
    assert stack.run_producer(code).startswith("event 1 of those given: invalid event: company: ")
    assert redis_client.keys("*webhooks.lane*") == []


def test_message_of_many_is_the_message_of_one(stack: Stack, redis_client: redis.Redis):
    # What this package writes by itself must stay what Celery's `delay` writes.
    code = f"""
import base64
import json
from typing import Any, cast
from webhooks import deliver
event = json.loads({body_of(EVENT).decode()!r})
print(json.dumps([deliver.delay(event).id, *deliver.delay_many([event])]))
"""
    ids = json.loads(stack.run_producer(code))
    [lane] = redis_client.keys("webhooks.lane.webhooks.deliver/*")
    messages: list[Any] = [json.loads(text) for text in cast("list[bytes]", redis_client.zrange(lane, 0, -1))]
    for message, event_id in zip(messages, ids, strict=True):
        headers, properties = message["headers"], message["properties"]
        assert {headers.pop("id"), headers.pop("root_id"), properties.pop("correlation_id")} == {event_id}
        assert properties.pop("delivery_tag")
        # Celery names the producer's thread here, for results, of which there are none; and repeats what headers say.
        for name in ("reply_to", "argsrepr", "kwargsrepr"):
            properties.pop(name, None)
        message["body"] = json.loads(base64.b64decode(message["body"]))
        headers["origin"] = headers["origin"].partition("@")[2]
    assert messages[0] == messages[1]
