"""The Redis and the MongoDB of a run: of the benchmark's own, or given; and what is read from them.

Owns the clients, and that servers which somebody else runs are empty before and after. Called by `stage`.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import redis
from redis.exceptions import RedisError

from tests.bench.crew import environment, wait
from tests.bench.events import Target
from tests.bench.network import Place
from tests.bench.plan import Plan
from webhooks.errors import CannotStart
from webhooks.local import servers
from webhooks.local.processes import Program, Supervisor
from webhooks.local.servers import free_port
from webhooks.local.up import SERVER_GRACE_S
from webhooks.rules.encryption import Vault
from webhooks.store.mongo import open_database, server_version, store_errors

#: The collections that logs are counted in, of the product and of the plain worker; what the product still owes.
LOGS, PLAIN_LOGS, OWED = "webhooklogs", "plainlogs", ("deliveries", "events")

#: Seconds for one answer of a server, which may have a million messages to forget.
_ANSWER_S = 120.0


class Servers:
    """Both servers."""

    def __init__(self, plan: Plan, place: Place, folder: Path, supervisor: Supervisor, on_close: ExitStack) -> None:
        """Start those that are not given, and connect to both.

        Raises:
            CannotStart: one does not come up, or one that is given is not empty.
            ServerMissing: one is not installed.
        """
        self._plan = plan
        redis_port, mongo_port = free_port(), free_port()
        self.broker_url = plan.broker_url or _at(place, servers.valkey_url(redis_port))
        self.mongodb_url = plan.mongodb_url or _at(place, servers.mongodb_url(mongo_port))
        commands: dict[str, tuple[list[str], str]] = {}
        if plan.broker_url is None:
            commands["valkey"] = (servers.valkey_command(redis_port, folder / "valkey"), self.broker_url)
        if plan.mongodb_url is None:
            commands["mongod"] = (servers.mongod_command(mongo_port, folder / "mongod"), self.mongodb_url)
        for name, (command, url) in commands.items():
            (folder / name).mkdir()
            supervisor.start(_program(name, command, url, place, folder))
        self._redis = _open_redis(self.broker_url)
        on_close.callback(self._redis.close)
        self._database = open_database(self.mongodb_url, _ANSWER_S)
        on_close.callback(self._database.client.close)
        self._refuse_used()
        on_close.callback(self._wipe)
        #: The processes of the servers that are our own: ``valkey``, ``mongod``.
        self.pids = self._find_own()

    def versions(self) -> dict[str, str]:
        """Return what they are."""
        facts = self._facts("server")
        name = str(facts.get("server_name", "redis"))
        return {
            "broker": f"{name} {facts.get(f'{name}_version', facts.get('redis_version'))}",
            "mongod": server_version(self._database),
        }

    def reset(self) -> None:
        """Forget all data; no worker may run."""
        with _broker_errors():
            # Until its memory is free: it is measured what comes next takes, and Valkey would free it meanwhile.
            self._redis.execute_command("FLUSHDB", "SYNC")
        with store_errors():
            for name in self._database.list_collection_names():
                self._database.drop_collection(name)

    def add(self, targets: Collection[Target], vault: Vault) -> None:
        """Add webhooks, signed."""
        with store_errors():
            self._database["webhooks"].insert_many([target.to_bson(vault) for target in targets])

    def wait_for_rewrite(self) -> None:
        """Wait until Redis has done rewriting its file, which takes a core for a while."""

        def is_done() -> bool:
            facts = self._facts("persistence")
            return not facts.get("aof_rewrite_in_progress") and not facts.get("aof_rewrite_scheduled")

        wait(is_done, "the broker to rewrite its file", within_s=_ANSWER_S)

    # ── What is read from them ──────────────────────────────────────────────────────────────────────────────────────
    def redis_bytes(self) -> int:
        """Return the memory that Redis uses for its data."""
        return int(self._facts("memory")["used_memory"])

    def traffic_bytes(self) -> dict[str, int]:
        """Return the bytes that came to each and went from it since it runs: ``redis``, ``mongodb``."""
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

    def document_bytes(self, *collections: str) -> int:
        """Return the bytes of all documents of these collections, as they are before they are compressed."""
        return sum(int(self._sizes(name)["size"]) for name in collections)

    def index_bytes(self, collection: str) -> int:
        """Return the bytes on the disk of the indexes of a collection, of a server of our own."""
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

    # ── Servers that are given ──────────────────────────────────────────────────────────────────────────────────────
    def _refuse_used(self) -> None:
        """Make sure that what is wiped afterwards holds nothing.

        Raises:
            CannotStart: it does.
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
        """Leave nothing in servers that somebody else runs."""
        if self._plan.broker_url is not None:
            with _broker_errors():
                self._redis.flushdb()
        if self._plan.mongodb_url is not None:
            with store_errors():
                self._database.client.drop_database(self._database.name)

    def _find_own(self) -> dict[str, int]:
        found = {}
        if self._plan.broker_url is None:
            found["valkey"] = int(self._facts("server")["process_id"])
        if self._plan.mongodb_url is None:
            found["mongod"] = int(self._database.client.admin.command("serverStatus")["pid"])
        return found


def _program(name: str, command: list[str], url: str, place: Place, folder: Path) -> Program:
    return Program(
        name,
        [*place.prefix, *(place.address if part == servers.LOOPBACK else part for part in command)],
        environment(),
        ready=lambda: servers.answers(url),
        grace_s=SERVER_GRACE_S,
        log_path=folder / f"{name}.log",
    )


def _at(place: Place, url: str) -> str:
    return url.replace(servers.LOOPBACK, place.address)


def _open_redis(url: str) -> redis.Redis:
    try:
        return redis.Redis.from_url(url, socket_timeout=_ANSWER_S, socket_connect_timeout=5)
    except ValueError:
        raise CannotStart("the broker's URL is no redis://… that can be read") from None


@contextmanager
def _broker_errors() -> Iterator[None]:
    """Turn what the broker does not do into an error of one line."""
    try:
        yield
    except RedisError as error:
        raise CannotStart(f"the broker cannot be used: {error}") from None
