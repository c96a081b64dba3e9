"""What waiting costs: a worker's memory, Redis, MongoDB, and the throughput of what does not wait.

``python -m tests.bench.waiting [--waiting 100000] [--events 3000]`` starts servers, a worker and a receiver that takes
100 ms, measures, lets so many deliveries wait for a retry an hour away, and measures again. Figures are for comparison
within one run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pymongo
import redis
from bson import ObjectId
from celery import Celery
from kombu.connection import Connection

from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import Worker
from webhooks import app
from webhooks.delivery.queueing import queue_attempt
from webhooks.delivery.services import get_services
from webhooks.models import now, parse_webhook
from webhooks.models.ids import make_delivery_id
from webhooks.store.deliveries import Delivery
from webhooks.store.webhooks import WebhookStore

_BATCH = 1000
_RETRY_IN_S = 3600
_EVENT = read_sample("event-task-create")


def fill(count: int) -> None:
    """Let so many deliveries wait for a retry, as failed attempts leave them. Run with a worker's environment."""
    app.loader.import_default_modules()  # the tasks, as a worker loads them
    body = json.dumps(_EVENT, ensure_ascii=False, separators=(",", ":"))
    services, webhook_id = get_services(), ObjectId()
    for start in range(0, count, _BATCH):
        made = [
            Delivery(make_delivery_id(str(number), webhook_id), str(number), webhook_id, ObjectId(), "waits", body)
            for number in range(start, min(start + _BATCH, count))
        ]
        services.deliveries.add(made, now())
        for delivery in made:
            queue_attempt(delivery.delivery_id, delivery.label, 1, delivery.lane, _RETRY_IN_S)
        print(f"\r{start + len(made):,} wait", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def memory_kb(pid: int) -> int:
    """Return the memory that a process holds, in KB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def rate_of(redis_url: str, database: Any, count: int) -> float:
    """Hand in so many events; return the deliveries per second from the first message to the last log."""
    logs = database["webhooklogs"]
    before = logs.count_documents({})
    producer = Celery("bench", broker=redis_url, set_as_current=False)
    with Connection(redis_url) as connection:
        begun = time.monotonic()
        for _ in range(count):
            producer.send_task("webhooks.deliver", [_EVENT], connection=connection)
        while logs.count_documents({}) < before + count:
            time.sleep(0.1)
        return count / (time.monotonic() - begun)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=3_000)
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.waiting, arguments.events)


def measure(folder: Path, waiting: int, events: int) -> None:
    """Run everything in a folder, and print."""
    servers = Servers(folder / "servers")
    settings = {
        "WEBHOOKS_BROKER_URL": servers.valkey.url,
        "WEBHOOKS_MONGODB_URL": servers.mongod.url,
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    worker = Worker(folder, settings)
    receiver = subprocess.Popen([sys.executable, "-m", "tests.faults.receiver"], stdout=subprocess.PIPE)
    try:
        servers.start()
        assert receiver.stdout is not None
        port, _ = json.loads(receiver.stdout.readline())
        with (
            pymongo.MongoClient[dict[str, Any]](servers.mongod.url) as mongo,
            redis.Redis.from_url(servers.valkey.url) as client,
        ):
            database = mongo["webhooks"]
            hook = {**read_sample("webhook-task"), "url": f"http://127.0.0.1:{port}/0"}
            WebhookStore(database).add(parse_webhook(hook))
            worker.start()
            rate_of(servers.valkey.url, database, events // 3)  # warm
            rate_before = rate_of(servers.valkey.url, database, events)
            before = _look(worker, client, database)
            argv = [sys.executable, "-m", "tests.bench.waiting", "--fill", str(waiting)]
            subprocess.run(argv, env={**os.environ, **settings}, check=True)
            time.sleep(5)
            after = _look(worker, client, database)
            rate_after = rate_of(servers.valkey.url, database, events)
            last = _look(worker, client, database)
    finally:
        receiver.kill()
        receiver.wait()
        worker.kill()
        servers.discard()
    per = waiting / 10_000
    print(f"{waiting:,} deliveries waiting for a retry, one worker, receiver that takes 100 ms")
    print(f"worker's memory per 10,000 waiting  {(after[0] - before[0]) / 1024 / per:8.2f} MB")
    print(f"worker's memory at the end          {last[0] / 1024:8.0f} MB, before {before[0] / 1024:.0f} MB")
    print(f"Redis per waiting delivery          {(after[1] - before[1]) / waiting:8.0f} B")
    print(f"MongoDB per waiting delivery        {(after[2] - before[2]) / waiting:8.0f} B of data and indexes")
    ratio = rate_after / rate_before
    print(f"deliveries/s that do not wait       {rate_after:8.0f}, before {rate_before:.0f}: {ratio:.2f}")


def _look(worker: Worker, client: Any, database: Any) -> tuple[int, int, int]:
    """Return the worker's memory in KB, and the bytes in Redis and of the ledger in MongoDB."""
    stats = database.command("collStats", "deliveries")
    return memory_kb(worker.pid), client.info("memory")["used_memory"], stats["size"] + stats["totalIndexSize"]


if __name__ == "__main__":
    main()
