"""A whole stack per test: real Redis, real MongoDB, real workers, judged from outside by the contract."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from celery import Celery
from kombu.connection import Connection
from pymongo.database import Database

from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import Worker, wait_until
from webhooks.models import COTWebhook

#: Seconds between attempts. Set the variable to 30 to see the contract's own pace.
RETRY_DELAY_S = float(os.environ.get("WEBHOOKS_TEST_RETRY_DELAY_S", "1"))

#: Short deadlines, so that what a dead worker held, or Redis lost, is found soon.
QUICK: Any = {
    "WEBHOOKS_TOTAL_TIMEOUT_S": "1",
    "WEBHOOKS_CONNECT_TIMEOUT_S": "1",
    "WEBHOOKS_MONGODB_TIMEOUT_S": "2",
    "WEBHOOKS_SWEEP_INTERVAL_S": "1",
}


@dataclass
class Stack:
    """What a test of the whole works with."""

    folder: Path
    redis_url: str
    mongodb_url: str
    database: Database[dict[str, Any]]
    workers: list[Worker] = field(default_factory=list)
    #: Settings besides the usual ones, of all parts.
    more: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """The environment of producer, worker and command."""
        return {
            "WEBHOOKS_BROKER_URL": self.redis_url,
            "WEBHOOKS_MONGODB_URL": self.mongodb_url,
            "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
            "WEBHOOKS_RETRY_DELAY_S": f"{RETRY_DELAY_S:g}",
            "WEBHOOKS_CONCURRENCY": "8",
            **self.more,
        }

    def start_worker(self, *, wait: bool = True, **settings: Any) -> Worker:
        """Start a worker with the stack's settings and these."""
        worker = Worker(self.folder, {**self.settings, **settings}, f"worker{len(self.workers)}")
        self.workers.append(worker)
        worker.start(wait=wait)
        return worker

    def add_webhook(self, url: str, **changes: Any) -> ObjectId:
        """Store a webhook for the sample's task event, as another service would."""
        value = {**read_sample("webhook-task"), "_id": str(ObjectId()), "url": url, **changes}
        value["code"] = changes.get("code", f"code_{value['_id']}")
        webhook = COTWebhook.model_validate(value)
        self.database["webhooks"].insert_one(webhook.to_bson())
        return webhook.id

    def send_task(self, event: Any, **options: Any) -> str:
        """Hand in an event as a service with nothing but Celery does."""
        bare = Celery("bare", broker=self.redis_url, set_as_current=False)
        with Connection(self.redis_url) as connection:
            return str(bare.send_task("webhooks.deliver", [event], connection=connection, **options).id)

    def run_producer(self, code: str, **env: str) -> str:
        """Run a service that has this package, with variables of its own; return what it printed."""
        return self._run([sys.executable, "-c", code], env)

    def run_command(self, *arguments: str) -> str:
        """Run the operators' command; return what it printed."""
        return self._run([sys.executable, "-m", "webhooks", *arguments])

    def _run(self, argv: list[str], more: Mapping[str, str] = MappingProxyType({})) -> str:
        env = {**os.environ, **self.settings, **more}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def logs(self, count: int, timeout_s: float = 30, **wanted: Any) -> list[dict[str, Any]]:
        """Wait for so many logs; return them, oldest first."""

        def look() -> list[dict[str, Any]]:
            found = list(self.database["webhooklogs"].find(wanted).sort([("createdAt", 1), ("_id", 1)]))
            return found if len(found) >= count else []

        return wait_until(look, f"{count} logs; workers say {self.worker_logs()}", timeout_s)

    def worker_logs(self) -> str:
        """Return the last that the workers wrote."""
        return "\n".join(worker.log()[-3000:] for worker in self.workers)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.kill()


@pytest.fixture
def stack(redis_url: str, mongodb_url: str, redis_client: Any, database: Any, tmp_path: Path) -> Iterator[Stack]:
    """A stack on the session's servers, emptied."""
    base, _, _ = mongodb_url.rpartition("/")
    made = Stack(tmp_path, redis_url, f"{base}/{database.name}", database)
    yield made
    made.close()


@pytest.fixture
def fragile(servers: Servers, tmp_path: Path) -> Iterator[Stack]:
    """A stack on servers of its own, for outages: `servers` has them."""
    with pymongo.MongoClient[dict[str, Any]](servers.mongod.url, tz_aware=True) as client:
        made = Stack(tmp_path, servers.valkey.url, servers.mongod.url, client["webhooks"])
        yield made
        made.close()


def body_of(event: Mapping[str, Any]) -> bytes:
    """Return the body that receivers must get for an event."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
