"""The real servers of the embedded default, run as `up` runs them."""

import socket
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis
from pymongo.database import Database

from tests.lab.servers import Server, Servers
from webhooks.errors import CannotStart
from webhooks.local import servers as local_servers


def test_valkey_keeps_its_data_over_a_restart_and_a_crash(servers: Servers) -> None:
    for end in (servers.valkey.stop, servers.valkey.kill):
        with redis.Redis.from_url(servers.valkey.url) as client:
            client.incr("runs")
        end()
        assert not local_servers.answers(servers.valkey.url)
        servers.valkey.start()
    with redis.Redis.from_url(servers.valkey.url) as client:
        assert client.get("runs") == b"2"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_mongod_keeps_its_data_over_a_restart_and_a_crash(servers: Servers) -> None:
    for end in (servers.mongod.stop, servers.mongod.kill):
        with pymongo.MongoClient[dict[str, Any]](servers.mongod.url, journal=True) as client:
            client.test.runs.insert_one({})
        end()
        assert not local_servers.answers(servers.mongod.url)
        servers.mongod.start()
    with pymongo.MongoClient[dict[str, Any]](servers.mongod.url) as client:
        assert client.test.runs.count_documents({}) == 2


def test_paused_servers_do_not_answer_until_they_go_on(servers: Servers) -> None:
    for server in (servers.valkey, servers.mongod):
        server.pause()
        assert not local_servers.answers(server.url)
        server.resume()
        local_servers.wait_until_answers(server.url, 10)


def test_paused_server_can_be_stopped(servers: Servers) -> None:
    servers.valkey.pause()
    servers.valkey.stop()
    assert not servers.valkey.is_running()


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (local_servers.valkey_command, local_servers.valkey_url),
        (local_servers.mongod_command, local_servers.mongodb_url),
    ],
    ids=["valkey", "mongod"],
)
def test_server_that_cannot_start_is_an_error_with_its_own_words(
    redis_url: str, mongodb_url: str, tmp_path: Path, command: Any, url: Any
) -> None:
    def with_bad_option(port: int, data_dir: Path) -> list[str]:
        return [*command(port, data_dir), "--no-such-option", "1"]

    server = Server("broken", with_bad_option, url, tmp_path)
    with pytest.raises(CannotStart, match="no-such-option"):
        server.start()
    assert not server.is_running()
    server.discard()


def test_fixtures_of_the_session_are_clean(redis_client: redis.Redis, database: Database[dict[str, Any]]) -> None:
    assert redis_client.dbsize() == 0
    assert database.list_collection_names() == []


def test_mongod_of_a_replica_set_can_be_initiated(mongodb_url: str, tmp_path: Path) -> None:
    def member(port: int, data_dir: Path) -> list[str]:
        return local_servers.mongod_command(port, data_dir, replica_set="rs0")

    server = Server("member", member, lambda port: f"mongodb://127.0.0.1:{port}/?directConnection=true", tmp_path)
    try:
        server.start()
        with pymongo.MongoClient[dict[str, Any]](server.url) as client:
            config = {"_id": "rs0", "members": [{"_id": 0, "host": f"127.0.0.1:{server.port}"}]}
            client.admin.command("replSetInitiate", config)
            assert client.admin.command("hello")["setName"] == "rs0"
    finally:
        server.discard()


def test_mongod_killed_leaves_no_socket_file(servers: Servers) -> None:
    # mongod would put it into the folder for temporary files, and a crash would leave it there.
    servers.mongod.kill()
    assert not Path(f"/tmp/mongodb-{servers.mongod.port}.sock").exists()


def test_is_free_of_a_port_that_is_listened_on() -> None:
    port = local_servers.free_port()
    assert local_servers.is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not local_servers.is_free(port)


@pytest.mark.parametrize("scheme", ["redis", "mongodb", "amqp"])
def test_wait_until_answers_in_vain_names_the_server_and_its_last_words(scheme: str) -> None:
    port = local_servers.free_port()
    with pytest.raises(CannotStart) as caught:
        local_servers.wait_until_answers(
            f"{scheme}://user:secret@127.0.0.1:{port}/x", 0, output=lambda: ["no", "memory"]
        )
    text = str(caught.value)
    assert "\n" not in text
    assert f"127.0.0.1:{port} does not answer" in text
    assert text.endswith(" / no / memory")
    assert "secret" not in text


def test_wait_until_answers_does_not_wait_for_a_server_that_has_ended() -> None:
    with pytest.raises(CannotStart, match="it has ended"):
        local_servers.wait_until_answers("redis://127.0.0.1:1/0", 3600, is_running=lambda: False)
