"""MongoDB by URLs of other kinds: a name server that is away is waited for, and decisions are read from the primary."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from tests.acceptance.conftest import Stack
from tests.lab.dns_server import NameServer, NoSuchResolver
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from tests.lab.servers import Server, Servers
from tests.lab.worker import wait_until
from webhooks.local import servers as local_servers

EVENT = read_sample("event-task-create")
NAME = "db.cluster.test"
OWN_NAMES = Path(__file__).parent / "own_names"

pytestmark = pytest.mark.timeout(180)


def free_udp_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.slow
def test_name_server_that_is_away_at_the_start_is_waited_for(fragile: Stack, servers: Servers):
    port = free_udp_port()
    fragile.mongodb_url = f"mongodb+srv://{NAME}/webhooks?tls=false"
    with Receiver() as receiver:
        fragile.add_webhook(receiver.url)
        worker = fragile.start_worker(
            WEBHOOKS_MONGODB_TIMEOUT_S="2",
            WEBHOOKS_TEST_DNS_PORT=str(port),
            PYTHONPATH=os.pathsep.join([str(OWN_NAMES), os.environ.get("PYTHONPATH", "")]),
        )
        fragile.send_task(EVENT)
        wait_until(lambda: "indexes: the name server does not say where MongoDB is" in worker.log(), "indexes wait")
        wait_until(lambda: "holding messages: the name server does not say" in worker.log(), "messages wait")
        time.sleep(5)  # longer than a task that met a defect would take to become a dead letter
        assert fragile.database["deadletters"].count_documents({}) == 0
        try:
            names = NameServer(port=port)
            names.answer(f"_mongodb._tcp.{NAME}", [f"node.cluster.test:{urlsplit(servers.mongod.url).port}"])
            with names:
                assert [log["retry"] for log in fragile.logs(1)] == [0]
                wait_until(lambda: len(fragile.database["webhooklogs"].index_information()) > 5, "indexed")
        except NoSuchResolver as error:
            pytest.skip(str(error))
    assert len(receiver.requests) == 1
    assert fragile.database["deadletters"].count_documents({}) == 0
    assert "defect" not in worker.log()


@pytest.fixture
def replica_set(tmp_path: Path) -> Iterator[str]:
    """The URL of a primary and of a secondary that gets nothing from it any more, and is in no majority."""
    command = partial(local_servers.mongod_command, replica_set="rs")
    nodes = [Server(f"mongod{number}", command, _direct_url, tmp_path) for number in (1, 2)]
    try:
        for node in nodes:
            node.start()
        members: list[dict[str, Any]] = [
            {"_id": 0, "host": f"127.0.0.1:{nodes[0].port}", "priority": 2},
            {"_id": 1, "host": f"127.0.0.1:{nodes[1].port}", "priority": 0, "votes": 0},
        ]
        hosts = ",".join(member["host"] for member in members)
        with MongoClient[Any](nodes[0].url) as client:
            client.admin.command("replSetInitiate", {"_id": "rs", "members": members})
        with MongoClient[Any](f"mongodb://{hosts}/?replicaSet=rs", serverSelectionTimeoutMS=30_000) as client:
            client.admin.command("ping")
            wait_until(lambda: client.secondaries, "a secondary")
        wait_until(lambda: _lock(nodes[1]), "the secondary locked")
        yield f"mongodb://{hosts}/webhooks?replicaSet=rs"
    finally:
        for node in nodes:
            node.discard()


def _lock(node: Server) -> bool:
    """Have a node write nothing any more; it refuses until its first copy is on its disk."""
    with MongoClient[Any](node.url) as client, suppress(OperationFailure):
        client.admin.command("fsync", lock=True)
        return True
    return False


def _direct_url(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/?directConnection=true"


@pytest.mark.slow
def test_decisions_are_read_from_the_primary_whatever_the_url_prefers(
    replica_set: str, redis_url: str, redis_client: object, tmp_path: Path
):
    url = f"{replica_set}&readPreference=secondaryPreferred"
    with MongoClient[dict[str, Any]](replica_set, tz_aware=True) as client, Receiver() as receiver:
        stack = Stack(tmp_path, redis_url, url, client["webhooks"])
        try:
            stack.add_webhook(receiver.url)
            worker = stack.start_worker()
            for _ in range(20):
                stack.send_task(EVENT)
            logs = stack.logs(20)
            wait_until(lambda: client["webhooks"]["deliveries"].count_documents({}) == 0, "nothing owed")
        finally:
            stack.close()
    assert {(log["status"], log["retry"]) for log in logs} == {(200, 0)}
    assert len(receiver.requests) == 20
    assert "the option readPreference has no effect" in worker.log()
