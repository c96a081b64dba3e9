"""A backlog is no loss: what is long overdue, but waits in Redis, is not queued again.

``python -m tests.bench.backlog [--deliveries 1000000] [--seconds 45] [--json]`` starts servers, puts so many deliveries
into the ledger and their messages into Redis, all due for five hours, lets a slow worker deliver for so many seconds
while the sweep looks each second, stops it in mid-work, and counts. Exits with 1 when a number does not add up.
"""

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pymongo
import redis

from tests.lab.receiver import Receiver, reply
from tests.lab.samples_data import read_sample
from tests.lab.servers import Servers
from tests.lab.worker import Worker, wait_until
from webhooks import app
from webhooks.delivery.queueing import queue_attempt
from webhooks.delivery.services import get_services
from webhooks.models import now, parse_webhook
from webhooks.rules.lanes import lane_of_webhook
from webhooks.store.deliveries import Delivery
from webhooks.store.webhooks import WebhookStore

_BATCH = 5_000
_OVERDUE = timedelta(hours=5)
_QUEUE = "webhooks.send"
#: Slow: so many threads, and seconds that the receiver takes for each delivery.
_THREADS = 4
_ANSWER_AFTER_S = 0.2
#: Short deadlines, so that little is excused as being in a worker's hands; and a quick sweep.
_QUICK = {
    "WEBHOOKS_TOTAL_TIMEOUT_S": "1",
    "WEBHOOKS_CONNECT_TIMEOUT_S": "1",
    "WEBHOOKS_MONGODB_TIMEOUT_S": "3",
    "WEBHOOKS_SWEEP_INTERVAL_S": "1",
}
_EVENT = read_sample("event-task-create")
_WEBHOOK = read_sample("webhook-task")
_LANE = lane_of_webhook(_WEBHOOK["company"], _WEBHOOK["_id"])
#: Where the transport has its messages, each by the time at which it was queued.
_LINE = f"webhooks.lane.{_QUEUE}/{_LANE}"


@dataclass(frozen=True)
class Counted:
    """What there is when the worker has been stopped in mid-work."""

    deliveries: int
    #: Looks of the sweep, as far as its lease tells.
    looks: int
    #: Looks that a server that is away, or a defect, kept from their work.
    failed_looks: int
    queued_again: int
    logged: int
    #: Taken by the worker, and not logged.
    in_hand: int
    still_queued: int
    #: In the ledger, and not logged.
    owed: int
    #: Requests that came with a ``webhook-id`` that had come before.
    repeated: int

    @property
    def sum(self) -> int:
        """What there is of deliveries, wherever."""
        return self.logged + self.in_hand + self.still_queued

    def faults(self, seconds: float) -> list[str]:
        """Say in words what does not add up; empty when all is well."""
        found = []
        if self.queued_again:
            found.append(f"{self.queued_again:,} were queued again, though no message was lost")
        if self.sum != self.deliveries:
            found.append(f"logged, in hand and still queued are {self.sum - self.deliveries:+,} of what there was")
        if self.logged + self.owed != self.deliveries:
            found.append(f"logged and owed are {self.logged + self.owed - self.deliveries:+,} of what there was")
        if self.repeated:
            found.append(f"{self.repeated:,} requests came twice")
        if not self.logged:
            found.append("nothing was delivered, so nothing is shown")
        if self.looks < seconds / 3 or self.failed_looks:
            found.append(f"the sweep looked {self.looks} times in {seconds:g} s, of which {self.failed_looks} failed")
        return found


def fill(count: int) -> None:
    """Let so many deliveries be overdue, their messages queued in the same order. Run with a worker's environment."""
    app.loader.import_default_modules()  # the tasks, as a worker loads them
    body = json.dumps(_EVENT, ensure_ascii=False, separators=(",", ":"))
    services, webhook, since = get_services(), parse_webhook(_WEBHOOK), now() - _OVERDUE
    services.deliveries.ensure_indexes()
    with redis.Redis.from_url(os.environ["WEBHOOKS_BROKER_URL"]) as client:
        make_message = _message_maker(client)
        client.sadd(f"webhooks.lanes.{_QUEUE}", _LANE)
        for start in range(0, count, _BATCH):
            ids = [f"msg_{number:032x}" for number in range(start, min(start + _BATCH, count))]
            services.deliveries.add(
                (Delivery(each, f"event-{each}", webhook.id, webhook.company, "waits", body) for each in ids),
                since + timedelta(milliseconds=start),
            )
            due_us = (since + timedelta(milliseconds=start)).timestamp() * 1_000_000
            client.zadd(_LINE, {make_message(each): due_us + number for number, each in enumerate(ids)})
            print(f"\r{start + len(ids):,} are overdue", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _message_maker(client: "redis.Redis") -> Any:
    """Return a function from a delivery's id to its message: a copy of one that Celery made, as that takes its time."""
    queue_attempt("DELIVERY", "waits", 0, _LANE)
    [(made, _)] = cast("list[tuple[bytes, float]]", client.zpopmin(_LINE))
    frame = json.loads(made)
    arguments = base64.b64decode(frame["body"]).decode()

    def make(delivery_id: str) -> str:
        inside = base64.b64encode(arguments.replace("DELIVERY", delivery_id).encode()).decode()
        return json.dumps({**frame, "body": inside}).replace("DELIVERY", delivery_id)

    return make


def measure(folder: Path, deliveries: int, seconds: float) -> Counted:
    """Run everything in a folder, and count."""
    servers = Servers(folder / "servers")
    settings = {
        **_QUICK,
        "WEBHOOKS_BROKER_URL": servers.valkey.url,
        "WEBHOOKS_MONGODB_URL": servers.mongod.url,
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
        "WEBHOOKS_CONCURRENCY": str(_THREADS),
    }
    worker = Worker(folder, settings)
    try:
        servers.start()
        with (
            pymongo.MongoClient[dict[str, Any]](servers.mongod.url) as mongo,
            redis.Redis.from_url(servers.valkey.url) as client,
            Receiver(default=reply(delay_s=_ANSWER_AFTER_S)) as receiver,
        ):
            database = mongo["webhooks"]
            WebhookStore(database).add(parse_webhook({**_WEBHOOK, "url": receiver.url}))
            argv = [sys.executable, "-m", "tests.bench.backlog", "--fill", str(deliveries)]
            subprocess.run(argv, env={**os.environ, **settings}, check=True)
            worker.start()
            wait_until(lambda: receiver.requests, "the first delivery has come", 120)
            looks = _watch_sweep(database, seconds)
            # In mid-work, not at its end: a worker that ends gives back what it has.
            os.kill(worker.pid, signal.SIGSTOP)
            time.sleep(1)  # what it had sent arrives
            came = [request.headers["webhook-id"] for request in receiver.requests]
            return _count(client, database, worker.log(), deliveries=deliveries, looks=looks, came=came)
    finally:
        worker.kill()
        servers.discard()


def _watch_sweep(database: Any, seconds: float) -> int:
    """Count the looks of the sweep for so many seconds: it renews its lease for each."""
    begun, leases = time.monotonic(), set()
    while (past_s := time.monotonic() - begun) < seconds:
        leases.add((database["leases"].find_one({"_id": "sweep"}) or {}).get("until"))
        logged = database["webhooklogs"].estimated_document_count()
        print(f"\r{past_s:.0f} s, {logged:,} logged", end="", file=sys.stderr, flush=True)
        time.sleep(0.25)
    print(file=sys.stderr)
    return len(leases - {None})


def _count(client: Any, database: Any, log: str, *, deliveries: int, looks: int, came: list[str]) -> Counted:
    """Count what is where.

    Args:
        client: of Redis.
        database: of MongoDB.
        log: the worker's.
        deliveries: that there were.
        looks: of the sweep.
        came: each request's ``webhook-id``.
    """
    logged = set(database["webhooklogs"].distinct("attempt.delivery_id"))
    held = {json.loads(entry)[0]["headers"]["id"] for entry in client.hvals("unacked")}
    ledger = database["deliveries"]
    return Counted(
        deliveries=deliveries,
        looks=looks,
        failed_looks=log.count("the sweep waits") + log.count("the sweep met a defect"),
        queued_again=sum(map(int, re.findall(r"queued (\d+) deliveries again", log))),
        logged=len(logged),
        # Between the writing of a log and the ack a delivery is in both places.
        in_hand=len(held - logged),
        still_queued=client.zcard(_LINE),
        owed=ledger.count_documents({}) - ledger.count_documents({"_id": {"$in": list(logged)}}),
        repeated=len(came) - len(set(came)),
    )


def main() -> int:
    """Count, and print a table; return 1 when a number does not add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        counted = measure(Path(folder), arguments.deliveries, arguments.seconds)
    faults = counted.faults(arguments.seconds)
    if arguments.json:
        print(json.dumps({**asdict(counted), "sum": counted.sum, "faults": faults}))
        return 1 if faults else 0
    hours = _OVERDUE.total_seconds() / 3600
    print(f"{counted.deliveries:,} deliveries, overdue for {hours:g} h, and a slow worker for {arguments.seconds:g} s")
    print(f"looks of the sweep           {counted.looks:12,}")
    print(f"queued again                 {counted.queued_again:12,}")
    print(f"logged                       {counted.logged:12,}")
    print(f"in the worker's hands        {counted.in_hand:12,}")
    print(f"still queued                 {counted.still_queued:12,}")
    print(f"sum of these three           {counted.sum:12,}")
    print(f"owed, as the ledger has it   {counted.owed:12,}")
    print(f"received more than once      {counted.repeated:12,}")
    for fault in faults:
        print(f"WRONG: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
