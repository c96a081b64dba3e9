"""What a stage leaves behind: what the judge wants to know, and what tells the cause of a fault."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.harness import OWED, Stage
from tests.faults.judge import Evidence, Key, Logged
from tests.faults.producer import event_id, number_of
from webhooks.models.ids import make_delivery_id


def gather(stage: Stage, expected: set[Key]) -> Evidence:
    """Read everything that the judge wants to know, and stop the workers: nothing may change meanwhile."""
    for worker in stage.workers:
        worker.stop()
    logs: dict[Key, Logged] = {}
    wanted = ("event.data.number", "subscription", "retry", "attempt.outcome", "attempt.error_kind")
    for log in stage.database["webhooklogs"].find({}, dict.fromkeys(wanted, 1)):
        key = log["event"]["data"]["number"], stage.webhooks[log["subscription"]]
        logs.setdefault(key, Logged()).note(log["retry"], log["attempt"])
    by_id = {
        make_delivery_id(event_id(number), webhook_id): (number, path)
        for number, _, _ in stage.accepted
        for webhook_id, path in stage.webhooks.items()
    }
    return Evidence(
        expected=expected,
        receipts=stage.receipts(),
        logs=logs,
        dead=[*_find_dead(stage, by_id)],
        owed=[_key(stage, document) for document in stage.database["deliveries"].find(OWED)],
        queued=stage.count_queued(),
        max_retries=stage.derived.max_retries,
        lines=stage.lines(),
    )


def dump(stage: Stage, evidence: Evidence, keys: Iterable[Key]) -> Path:
    """Write down all that is known of some deliveries and of what is left, for whoever looks for the cause."""
    path = stage.folder / "evidence.txt"
    lines = ["# left in the ledger", *map(str, stage.database["deliveries"].find().limit(200))]
    lines += ["# left in Redis"]
    for name in stage.redis.scan_iter(count=1000):
        lines.append(f"{name!r}: {stage.redis.type(name)!r} {stage.redis.object('encoding', name)!r}")
        if name in (b"unacked_index", b"webhooks.parked.webhooks.send"):
            lines += map(str, stage.redis.zrange(name, 0, 20, withscores=True))  # pyright: ignore[reportArgumentType]
    ids = {path: webhook_id for webhook_id, path in stage.webhooks.items()}
    for number, at in list(keys)[:50]:
        delivery_id = make_delivery_id(event_id(number), ids[at])
        lines += [f"# {number} {at} {delivery_id}: {evidence.receipts.get((number, at))}"]
        query = {"attempt.delivery_id": delivery_id}
        lines += map(str, stage.database["webhooklogs"].find(query, {"event": 0}).sort("createdAt", 1))
    path.write_text("\n".join(lines) + "\n")
    return path


def _key(stage: Stage, document: dict[str, Any]) -> Key:
    return number_of(document["event_id"]), stage.webhooks[document["webhook_id"]]


def _find_dead(stage: Stage, by_id: dict[str, Key]) -> Iterator[Key]:
    """Find what was set aside or is a dead letter: that of an event stands for all of its deliveries."""
    for document in stage.database["deliveries"].find({"due_at": None}):
        yield _key(stage, document)
    for letter in stage.database["deadletters"].find({}, {"message_id": 1}):
        name = str(letter["message_id"])
        if name.startswith("event-"):
            yield from ((number_of(name), path) for path in stage.webhooks.values())
        elif name in by_id:
            yield by_id[name]
