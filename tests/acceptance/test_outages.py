"""With MongoDB or Redis down, or late: clear words, nothing dropped, and all goes on by itself."""

import time

import pytest

from tests.acceptance.conftest import Stack
from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import wait_until

EVENT = read_sample("event-task-create")

pytestmark = pytest.mark.timeout(180)


def test_event_that_comes_while_mongodb_is_down_is_delivered_when_it_is_back(fragile: Stack, servers: Servers):
    with Receiver() as receiver:
        fragile.add_webhook(receiver.url)
        worker = fragile.start_worker()
        servers.mongod.kill()
        fragile.send_task(EVENT)
        wait_until(lambda: "holding messages: MongoDB is not reachable" in worker.log(), "told in the log")
        assert receiver.requests == []
        servers.mongod.start()
        assert [log["retry"] for log in fragile.logs(1)] == [0]
    assert len(receiver.requests) == 1


def test_log_of_an_attempt_that_ends_while_mongodb_is_down_is_written_later(fragile: Stack, servers: Servers):
    with Receiver(default=reply(delay_s=1.5)) as receiver:
        fragile.add_webhook(receiver.url)
        worker = fragile.start_worker()
        fragile.send_task(EVENT)
        receiver.wait_for(1)
        servers.mongod.kill()
        wait_until(lambda: "goes through the broker: MongoDB is not reachable" in worker.log(), "told in the log")
        servers.mongod.start()
        assert [(log["retry"], log["status"]) for log in fragile.logs(1)] == [(0, 200)]
        worker.stop()
    assert len(receiver.requests) == 1
    assert fragile.database["webhooklogs"].count_documents({}) == 1


@pytest.mark.slow
def test_worker_that_stops_while_mongodb_is_down_gives_its_messages_back(fragile: Stack, servers: Servers):
    with Receiver() as receiver:
        fragile.add_webhook(receiver.url)
        worker = fragile.start_worker()
        servers.mongod.kill()
        fragile.send_task(EVENT)
        wait_until(lambda: "holding messages" in worker.log(), "held")
        worker.stop()
        servers.mongod.start()
        fragile.start_worker()
        assert len(fragile.logs(1)) == 1
    assert len(receiver.requests) == 1


def test_worker_that_starts_before_its_servers_waits_for_them(fragile: Stack, servers: Servers):
    with Receiver() as receiver:
        fragile.add_webhook(receiver.url)
        servers.mongod.stop()
        servers.valkey.stop()
        worker = fragile.start_worker(wait=False)
        wait_until(lambda: "Cannot connect to redis" in worker.log(), "told in the log")
        servers.valkey.start()
        fragile.send_task(EVENT)
        wait_until(lambda: "MongoDB is not reachable" in worker.log(), "told in the log")
        servers.mongod.start()
        assert len(fragile.logs(1)) == 1
        wait_until(lambda: len(fragile.database["webhooklogs"].index_information()) > 5, "indexed")


def test_event_accepted_before_redis_restarts_is_delivered(fragile: Stack, servers: Servers):
    with Receiver() as receiver:
        fragile.add_webhook(receiver.url)
        fragile.send_task(EVENT)
        time.sleep(1.2)  # Redis writes its file once a second
        servers.valkey.kill()
        worker = fragile.start_worker(wait=False)
        wait_until(lambda: "Cannot connect to redis" in worker.log(), "told in the log")
        servers.valkey.start()
        assert len(fragile.logs(1)) == 1
        servers.valkey.stop()
        wait_until(lambda: "Connection to broker lost" in worker.log(), "told in the log")
        servers.valkey.start()
        fragile.send_task(EVENT)
        assert len(fragile.logs(2)) == 2
        assert worker.is_running()
