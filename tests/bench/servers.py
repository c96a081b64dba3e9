"""The Redis and the MongoDB of a run, our own or given, and what is read from them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import redis
from redis.exceptions import RedisError

from tests.bench.events import Target
from tests.bench.network import Place
from tests.bench.plan import Plan
from tests.bench.workers import wait
from tests.lab.servers import Server
from webhooks.errors import CannotStart
from webhooks.local import servers
from webhooks.rules.encryption import Vault
from webhooks.store.mongo import open_database, server_version, store_errors

#: Collections: logs of the product and of the plain worker, and what the product has pending.
LOGS, PLAIN_LOGS, PENDING = "webhooklogs", "plainlogs", ("deliveries", "events")

#: Seconds for one answer of a server, which may have a million messages to delete.
_ANSWER_S = 120.0


class Servers:
    def __init__(self, plan: Plan, place: Place, folder: Path, on_close: ExitStack) -> None:
        """Start those that are not given, and connect to both.

        Raises:
            CannotStart: one does not start, or a given one is not empty.
            ServerMissing: one is not installed.
        """
        self._plan = plan

        def start(name: str) -> str:
            make_command, make_url = {
                "valkey": (servers.valkey_command, servers.valkey_url),
                "mongod": (servers.mongod_command, servers.mongodb_url),
            }[name]
            server = Server(
                name,
                lambda port, data: [
                    *place.prefix,
                    *(place.address if part == servers.LOOPBACK else part for part in make_command(port, data)),
                ],
                lambda port: make_url(port).replace(servers.LOOPBACK, place.address),
                folder,
            )
            on_close.callback(server.discard)
            server.start()
            return server.url

        self.broker_url = plan.broker_url or start("valkey")
        self.mongodb_url = plan.mongodb_url or start("mongod")
        try:
            self._redis = redis.Redis.from_url(self.broker_url, socket_timeout=_ANSWER_S, socket_connect_timeout=5)
        except ValueError:
            raise CannotStart("the broker's URL is not a valid redis://…") from None
        on_close.callback(self._redis.close)
        self._database = open_database(self.mongodb_url, _ANSWER_S)
        on_close.callback(self._database.client.close)
        self._refuse_used()
        on_close.callback(self._wipe)
        #: The processes of our own servers: ``valkey``, ``mongod``.
        self.pids: dict[str, int] = {}
        if plan.broker_url is None:
            self.pids["valkey"] = int(self._facts("server")["process_id"])
        if plan.mongodb_url is None:
            self.pids["mongod"] = int(self._database.client.admin.command("serverStatus")["pid"])

    def versions(self) -> dict[str, str]:
        facts = self._facts("server")
        name = str(facts.get("server_name", "redis"))
        return {
            "broker": f"{name} {facts.get(f'{name}_version', facts.get('redis_version'))}",
            "mongod": server_version(self._database),
        }

    def reset(self) -> None:
        """Delete all data; no worker may run."""
        with _broker_errors():
            # Valkey would go on freeing memory while the next row measures it.
            self._redis.execute_command("FLUSHDB", "SYNC")
        with store_errors():
            for name in self._database.list_collection_names():
                self._database.drop_collection(name)

    def add(self, targets: Collection[Target], vault: Vault) -> None:
        with store_errors():
            self._database["webhooks"].insert_many([target.to_bson(vault) for target in targets])

    def wait_for_rewrite(self) -> None:
        """Wait until Redis has rewritten its file, which takes a core for a while."""

        def is_done() -> bool:
            facts = self._facts("persistence")
            return not facts.get("aof_rewrite_in_progress") and not facts.get("aof_rewrite_scheduled")

        wait(is_done, "the broker to rewrite its file", within_s=_ANSWER_S)

    def redis_bytes(self) -> int:
        return int(self._facts("memory")["used_memory"])

    def traffic_bytes(self) -> dict[str, int]:
        """Return the bytes to and from each since it started: ``redis``, ``mongodb``."""
        facts = self._facts("stats")
        with store_errors():
            network = self._database.command("serverStatus")["network"]
        return {
            "redis": int(facts["total_net_input_bytes"]) + int(facts["total_net_output_bytes"]),
            "mongodb": int(network["bytesIn"]) + int(network["bytesOut"]),
        }

    def logged(self, collection: str) -> int:
        """Count logs, cheaply."""
        with store_errors():
            return self._database[collection].estimated_document_count()

    def count(self, collection: str, query: Mapping[str, Any]) -> int:
        """Count documents, exactly."""
        with store_errors():
            return self._database[collection].count_documents(query)

    def document_bytes(self, collection: str) -> int:
        """Return the bytes of all documents of a collection, before compression."""
        return int(self._sizes(collection)["size"])

    def index_bytes(self, collection: str) -> int:
        """Return the bytes on the disk of a collection's indexes."""
        with store_errors():
            # A file has its size from the last checkpoint.
            self._database.client.admin.command("fsync")
        return int(self._sizes(collection)["totalIndexSize"])

    def _sizes(self, collection: str) -> Mapping[str, Any]:
        with store_errors():
            return self._database.command("collStats", collection)

    def _facts(self, section: str) -> dict[str, Any]:
        with _broker_errors():
            return cast("dict[str, Any]", self._redis.info(section))

    def _refuse_used(self) -> None:
        """Make sure that what is wiped afterwards is empty.

        Raises:
            CannotStart: it is not.
        """
        with _broker_errors():
            keys = cast("int", self._redis.dbsize())
        if keys:
            raise CannotStart(
                "the benchmark needs a Redis database of its own, which it wipes: this one holds keys; give the number "
                "of an empty one, such as redis://host:6379/15"
            )
        with store_errors():
            if self._database.list_collection_names():
                raise CannotStart(
                    f"the benchmark needs a MongoDB database of its own, which it wipes: {self._database.name} holds "
                    "collections; give the name of a new one"
                )

    def _wipe(self) -> None:
        if self._plan.broker_url is not None:
            with _broker_errors():
                self._redis.flushdb()
        if self._plan.mongodb_url is not None:
            with store_errors():
                self._database.client.drop_database(self._database.name)


@contextmanager
def _broker_errors() -> Iterator[None]:
    """Turn an error of the broker into one of one line."""
    try:
        yield
    except RedisError as error:
        raise CannotStart(f"the broker cannot be used: {error}") from None
