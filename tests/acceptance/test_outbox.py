"""Events that a producer accepts in MongoDB, in its own transaction: sent if that commits, and whatever Redis does."""

import asyncio
import json
import struct
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis
from bson import ObjectId

from tests.acceptance.conftest import Stack, body_of
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.servers import Server
from tests.lab.worker import wait_until
from webhooks import InvalidEvent, accept, accept_async
from webhooks.local import servers
from webhooks.models import now
from webhooks.store.outbox import MAX_BYTES, Outbox

EVENT = read_sample("event-task-create")
#: Until it is asked what became of an event's message: what a worker may hold one, by the default settings, and slack.
PAUSE = timedelta(seconds=75)
#: A `sitecustomize` that gives a process another wall clock.
STEPPED_CLOCK = Path(__file__).parents[1] / "faults" / "stepped_clock"


@pytest.fixture
def replica_stack(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Stack]:
    """A stack on a MongoDB that has transactions: a replica set of one."""

    def command(port: int, data_dir: Path) -> list[str]:
        return servers.mongod_command(port, data_dir, replica_set="rs0")

    # Directly, as a member that has no replica set yet answers nobody who asks for one.
    server = Server("mongod", command, lambda port: f"{servers.mongodb_url(port)}?directConnection=true", tmp_path)
    try:
        server.start()
        with pymongo.MongoClient[dict[str, Any]](server.url, tz_aware=True) as client:
            members = [{"_id": 0, "host": f"127.0.0.1:{server.port}"}]
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
            wait_until(lambda: client.admin.command("hello")["isWritablePrimary"], "primary")
        # A client made before has noted that there are no transactions.
        with pymongo.MongoClient[dict[str, Any]](server.url, tz_aware=True) as client:
            made = Stack(tmp_path, redis_url, server.url, client["webhooks"])
            yield made
            made.close()
    finally:
        server.discard()


def test_event_is_sent_if_its_transaction_commits_and_only_then(replica_stack: Stack):
    database = replica_stack.database
    database.create_collection("outbox")
    with Receiver() as receiver:
        replica_stack.add_webhook(receiver.url)
        with database.client.start_session() as session:
            session.start_transaction()
            accept({**EVENT, "x": "rolled back"}, database, session)
            database["orders"].insert_one({"_id": 1}, session=session)
            session.abort_transaction()
            with session.start_transaction():
                accept(EVENT, database, session)
                database["orders"].insert_one({"_id": 2}, session=session)
        worker = replica_stack.start_worker()
        assert receiver.wait_for(1, 20)[0].body == body_of(EVENT)
        replica_stack.logs(1)
        wait_until(lambda: database["outbox"].count_documents({}) == 0, "taken out")
        worker.stop()
    assert len(receiver.requests) == 1


def test_event_of_an_asynchronous_service_is_sent_if_its_transaction_commits(replica_stack: Stack):
    async def serve() -> list[str]:
        async with pymongo.AsyncMongoClient[dict[str, Any]](replica_stack.mongodb_url) as client:
            database = client["webhooks"]
            await database.create_collection("outbox")
            async with client.start_session() as session:
                await session.start_transaction()
                await accept_async({**EVENT, "x": "rolled back"}, database, session)
                await session.abort_transaction()
                async with await session.start_transaction():
                    inside = await accept_async(EVENT, database, session)
            return [inside, await accept_async({**EVENT, "x": "alone"}, database)]

    ids = asyncio.run(serve())
    with Receiver() as receiver:
        replica_stack.add_webhook(receiver.url)
        worker = replica_stack.start_worker()
        logs = replica_stack.logs(2)
        worker.stop()
    assert {log["attempt"]["event_id"] for log in logs} == set(ids)
    assert len(receiver.requests) == 2


def test_client_of_the_wrong_kind_is_refused_and_nothing_is_written(database: Any, mongodb_url: str):
    """An asynchronous one gave back a coroutine that nobody awaited, so that the event was lost with an id in hand."""

    async def serve() -> None:
        async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
            with pytest.raises(TypeError, match="await accept_async"):
                accept(EVENT, client[database.name])  # pyright: ignore[reportArgumentType]
            async with client.start_session() as session:
                with pytest.raises(TypeError, match="await accept_async"):
                    accept(EVENT, database, session)  # pyright: ignore[reportArgumentType]
            with pytest.raises(TypeError, match="synchronous one: accept"):
                await accept_async(EVENT, database)

    asyncio.run(serve())
    assert database["outbox"].count_documents({}) == 0


def test_bad_event_is_not_accepted_asynchronously(database: Any, mongodb_url: str):
    async def serve() -> None:
        async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
            with pytest.raises(InvalidEvent, match="type: is missing"):
                await accept_async({}, client[database.name])

    asyncio.run(serve())
    assert database["outbox"].count_documents({}) == 0


def test_event_is_delivered_within_the_call_where_tasks_are_eager(stack: Stack):
    code = f"""
import json
from webhooks import app, deliver
app.conf.task_always_eager = True
print(deliver.delay(json.loads({json.dumps(EVENT)!r})).state)
deliver.delay_many([json.loads({json.dumps(EVENT)!r})])
"""
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        assert "SUCCESS" in stack.run_producer(code)
        assert [request.body for request in receiver.requests] == [body_of(EVENT)] * 2
    stack.logs(2)


def test_accepted_event_survives_the_loss_of_redis(stack: Stack, redis_client: redis.Redis):
    quick: Any = {"WEBHOOKS_TOTAL_TIMEOUT_S": "1", "WEBHOOKS_CONNECT_TIMEOUT_S": "1", "WEBHOOKS_MONGODB_TIMEOUT_S": "1"}
    with Receiver() as receiver:
        stack.add_webhook(receiver.url)
        event_id = accept(EVENT, stack.database)
        # As if it had been queued by a worker that stopped then, and Redis was wiped.
        stack.database["outbox"].update_one({"_id": event_id}, {"$inc": {"queued": 1}})
        redis_client.flushall()
        stack.start_worker(**quick)
        log = stack.logs(1)[0]
        assert log["attempt"]["event_id"] == event_id
        stack.workers[0].stop()
    assert len(receiver.requests) == 1


RELAY = """
from webhooks import deliver
from webhooks.config import get_settings
from webhooks.delivery.services import get_services
from webhooks.jobs.sweep import relay
print(relay(get_services(), get_settings()))
"""


def relay_after_a_pause(stack: Stack, client: Any) -> int:
    """Relay as if the time until an event's message is asked for had passed; return how many events were queued."""
    for lane in client.scan_iter("webhooks.lane.*"):
        for message in client.zrange(lane, 0, -1):
            client.zincrby(lane, -PAUSE / timedelta(microseconds=1), message)
    for document in stack.database["outbox"].find():
        times = {name: document[name] - PAUSE for name in ("queue_at", "queued_at") if name in document}
        stack.database["outbox"].update_one({"_id": document["_id"]}, {"$set": times})
    return int(stack.run_producer(RELAY))


def test_accepted_event_whose_message_is_lost_many_times_is_never_left_for_longer(
    stack: Stack, redis_client: redis.Redis
):
    accept(EVENT, stack.database)
    for _ in range(3):
        assert relay_after_a_pause(stack, redis_client) == 1
        (document,) = stack.database["outbox"].find()
        assert document["queue_at"] - now() <= PAUSE
        redis_client.flushall()


@pytest.mark.parametrize("is_serial", [False, True], ids=["lane", "serial-lane"])
def test_accepted_event_whose_message_waits_in_its_lane_is_not_queued_once_more(
    stack: Stack, redis_client: redis.Redis, is_serial: bool
):
    if is_serial:
        lane = f"{EVENT['company']}/{EVENT['type']}"
        stack.run_producer(
            f"from webhooks.delivery.queueing import serialize_lane; serialize_lane({lane!r}, is_serial=True)"
        )
    accept(EVENT, stack.database)
    assert relay_after_a_pause(stack, redis_client) == 1
    assert relay_after_a_pause(stack, redis_client) == relay_after_a_pause(stack, redis_client) == 0
    redis_client.flushall()
    assert relay_after_a_pause(stack, redis_client) == 1


def test_accepted_event_that_is_queued_twice_is_sent_once(stack: Stack):
    with Receiver(default=reply(delay_s=0.5)) as receiver:
        stack.add_webhook(receiver.url)
        event_id = accept(EVENT, stack.database)
        stack.start_worker()
        receiver.wait_for(1)
        stack.send_task(EVENT, task_id=event_id)
        other = accept(EVENT, stack.database)
        stack.logs(1, 30, **{"attempt.event_id": other})
        stack.workers[0].stop()
    assert len(receiver.requests) == 2


@pytest.mark.parametrize("ahead_s", [20, -3600])
def test_producer_whose_clock_is_wrong_has_its_event_sent_soon_and_in_order(stack: Stack, ahead_s: float):
    """Its clock decided when its event was due and which came first: one ahead by 20 s made it wait as long."""
    clock = stack.folder / "clock"
    clock.write_bytes(struct.pack("d", ahead_s))
    code = f"""
import json, os, pymongo
from webhooks import accept
database = pymongo.MongoClient(os.environ["WEBHOOKS_MONGODB_URL"]).get_default_database()
accept({{**json.loads({json.dumps(EVENT)!r}), "n": "wrong"}}, database)
"""
    accept({**EVENT, "n": "first"}, stack.database)
    stepped = {"PYTHONPATH": str(STEPPED_CLOCK), "WEBHOOKS_TEST_CLOCK": str(clock)}
    stack.run_producer(code, **stepped)
    accept({**EVENT, "n": "last"}, stack.database)
    with Receiver() as receiver:
        stack.add_webhook(receiver.url, ordered=True)
        stack.start_worker()
        requests = receiver.wait_for(3, 15)
    assert [request.json()["n"] for request in requests] == ["first", "wrong", "last"]


def test_bad_event_is_not_accepted(database: Any):
    with pytest.raises(InvalidEvent, match="type: is missing"):
        accept({}, database)
    assert database["outbox"].count_documents({}) == 0


def test_events_accepted_within_one_millisecond_are_queued_in_their_order(stack: Stack):
    numbers = list(range(40))
    for number in numbers:
        accept({**EVENT, "data": {"_id": f"{number}"}}, stack.database)
    stack.database["outbox"].update_many({}, {"$set": {"queue_at": now()}})
    found = Outbox(stack.database).find_due(now(), 100)
    assert [json.loads(event.body)["data"]["_id"] for event in found] == [f"{number}" for number in numbers]


def test_large_events_are_queued_a_few_at_a_time(stack: Stack):
    """With `WEBHOOKS_MAX_EVENT_BYTES` at its most, one look at the outbox read 2 GB."""
    outbox = Outbox(stack.database)
    for number in range(4):
        stack.database["outbox"].insert_one(
            {"_id": f"{number}", "body": " " * (MAX_BYTES // 2 - 1), "queue_at": now(), "order": ObjectId()}
        )
    assert [event.event_id for event in outbox.find_due(now(), 100)] == ["0", "1", "2"]


def test_event_stands_behind_older_ones_whose_messages_were_lost(stack: Stack):
    outbox = Outbox(stack.database)
    ids = [accept(EVENT, stack.database) for _ in range(3)]
    other = accept({**EVENT, "type": "COTNote"}, stack.database)
    found = outbox.find_due(now(), 100)
    outbox.note_queued(found, now(), timedelta(seconds=100))
    assert outbox.find_due(now(), 100) == []
    assert not outbox.stand_behind_older(ids[0])
    assert not outbox.stand_behind_older(other)
    assert outbox.stand_behind_older(ids[2])
    assert [event.event_id for event in outbox.find_due(now(), 100)] == ids
    outbox.remove(ids[0])
    outbox.remove(ids[1])
    assert not outbox.stand_behind_older(ids[2])


def test_one_that_never_gets_through_does_not_stop_the_others_for_ever(stack: Stack):
    outbox = Outbox(stack.database)
    poison, good = accept(EVENT, stack.database), accept(EVENT, stack.database)
    rounds = 0
    while outbox.stand_behind_older(good):
        outbox.note_queued(outbox.find_due(now(), 100), now(), timedelta(seconds=100))
        rounds += 1
        assert rounds < 20, poison
