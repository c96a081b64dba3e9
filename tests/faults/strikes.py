"""What strikes the stage: the faults of the matrix, each a function that says when it has ended."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import redis

from tests.faults.harness import HOLD_MESSAGES, WORKERS, Stage
from tests.faults.sizes import Size
from webhooks.local import servers
from webhooks.store.gates import By
from webhooks.transport.holder import WITNESS_AFTER_S
from webhooks.transport.scripts import PARKED_KEY

#: Seconds without Redis in the row of the lost retry: more than Celery tries to publish (`task_publish_retry_policy`).
OUTLAST_PUBLISHING_S = 12.0
_HOUR_S = 3600.0
#: How far behind the replica is that takes over. Far more than replicas are as a rule, so that it lacks something.
LAG_S = 2.0
#: The cache that shares Redis's memory: bytes of an entry, of all that fit, and seconds from one to the next.
_PAGE_BYTES = 100_000
_PAGES_BYTES = 20 * _PAGE_BYTES
_PAGE_EVERY_S = 0.05
#: Open attempts of the worker that is killed or paused, at least; for how long it is paused: until all that it held is
#: somebody else's; and seconds until the other one may say that it is dead.
_OPEN = 2
WORKER_PAUSED_S = 25.0
_LEASE_IS_KNOWN_S = WITNESS_AFTER_S
#: Where attempts wait for their time.
_PARKED = PARKED_KEY.format("webhooks.send")
#: Writes of Redis's and MongoDB's clients: script and queue, or command and collection.
_WRITES = (
    "PUT webhooks.deliver", "PUT webhooks.send", "TAKE", "SETTLE", "LEASE", "ALIVE", "OVERDUE",
    "insert deliveries", "update deliveries", "delete deliveries", "update events", "insert webhooklogs",
    "update outbox", "delete outbox", "update leases", "findAndModify leases",
)  # fmt: skip
#: With a paused webhook and without an ordered one, and the other way round.
_WRITES_AT_PAUSE = ("ADMIT", "update gates")
_WRITES_OF_LINES = ("findAndModify gates",)
_WRITES_AT_RESUME = ("update deliveries", "PUT webhooks.send")
#: How often what waits is copied.
_COPIES = 3


def kill_one_after_another(stage: Stage, size: Size) -> None:
    for kill in range(size.kills):
        number = kill % WORKERS
        stage.run_until(lambda n=number: stage.is_worker_up(n), f"worker {number} is up again", 90)
        stage.run_for(size.kill_every_s)
        stage.kill_worker(number)
    stage.fault_has_ended()


def kill_all(stage: Stage, size: Size) -> None:
    for number in range(WORKERS):
        stage.kill_worker(number)
    stage.fault_has_ended()


def _open_attempts(stage: Stage) -> int:
    """Have attempts wait for their answers, as many as the lanes of two webhooks let begin; return who is busiest."""
    stage.run_for(_LEASE_IS_KNOWN_S)
    stage.set_receiver("hold")

    def count() -> list[int]:
        return [stage.count_claims(number) for number in range(WORKERS)]

    stage.run_until(lambda: max(count()) >= _OPEN, f"a worker makes {_OPEN} attempts", 30)
    found = count()
    return found.index(max(found))


def kill_one_with_open_attempts(stage: Stage, size: Size) -> None:
    stage.kill_worker(_open_attempts(stage))
    stage.run_for(0.25)  # until the receiver has seen that nobody waits for its answers
    stage.set_receiver("ok")
    stage.fault_has_ended()


def pause_one_with_open_attempts(stage: Stage, size: Size) -> None:
    _pause_one(stage, WORKER_PAUSED_S)


def suspend_one(stage: Stage, size: Size) -> None:
    _pause_one(stage, stage.derived.visibility_timeout_s + _LEASE_IS_KNOWN_S)


def _pause_one(stage: Stage, seconds: float) -> None:
    number = _open_attempts(stage)
    stage.pause_worker(number)
    stage.set_receiver("ok")
    stage.fault_has_ended()
    stage.run_for(seconds)
    stage.resume_worker(number)


def stop_one_after_another(stage: Stage, size: Size) -> None:
    for stop in range(size.stops):
        number = stop % WORKERS
        stage.run_until(lambda n=number: stage.is_worker_up(n), f"worker {number} is up again", 90)
        stage.run_for(1)
        stage.terminate_worker(number)
    stage.fault_has_ended()


def _be_away(stage: Stage, seconds: float, go: Callable[[], object], come_back: Callable[[], object]) -> None:
    go()
    stage.run_for(seconds)
    come_back()
    stage.fault_has_ended()


def stop_redis(stage: Stage, size: Size) -> None:
    _be_away(stage, size.down_s, stage.servers.valkey.stop, stage.servers.valkey.start)


def kill_redis(stage: Stage, size: Size) -> None:
    # By default the log is written to the disk once a second, and in the moment of that Redis lets writes wait: it
    # may answer before it has written. Where "accepted" is to survive a crash of Redis, this is the setting.
    stage.redis.config_set("appendfsync", "always")
    stage.run_for(1)
    _be_away(stage, size.down_s, stage.servers.valkey.kill, stage.servers.valkey.start)


def replace_redis(stage: Stage, size: Size) -> None:
    stage.note_safe_events()
    stage.servers.valkey.kill()
    stage.forget_redis()
    stage.run_for(size.down_s)
    stage.servers.valkey.start()
    stage.fault_has_ended()


def flush_redis(stage: Stage, size: Size) -> None:
    stage.note_safe_events()
    stage.redis.flushall()
    stage.fault_has_ended()


def evict_from_redis(stage: Stage, size: Size) -> None:
    # A cache in another database of the same Redis: memory and policy are the server's, so each page that comes pushes
    # out keys of ours, whatever they are, while there is always room for what is published.
    url = servers.valkey_url(stage.servers.valkey.port, database=1)
    evicted: Counter[str] = Counter()
    before = _count_evicted(stage)
    with redis.Redis.from_url(url) as cache, stage.redis.pubsub() as told:
        stage.redis.config_set("notify-keyspace-events", "Ee")
        told.subscribe("__keyevent@0__:evicted")
        stage.redis.config_set("maxmemory-policy", "allkeys-random")
        memory: Any = stage.redis.info("memory")
        stage.redis.config_set("maxmemory", memory["used_memory"] + _PAGES_BYTES)
        until = time.monotonic() + size.full_s
        while time.monotonic() < until:
            cache.set(f"page{time.monotonic_ns()}", bytes(_PAGE_BYTES))
            stage.run_for(_PAGE_EVERY_S)
        # Only now: an event that has got into the ledger while keys went is as safe as any.
        stage.note_safe_events()
        stage.redis.config_set("maxmemory", "0")
        stage.redis.config_set("maxmemory-policy", "noeviction")
        stage.fault_has_ended()
        cache.flushdb()
        while (message := told.get_message(timeout=0)) is not None:
            if message["type"] == "message":
                evicted[message["data"].decode()] += 1
    if _count_evicted(stage) == before or not any(
        name == "unacked" or name.startswith(HOLD_MESSAGES) for name in evicted
    ):
        raise AssertionError(f"Redis evicted no messages: {evicted}")


def _count_evicted(stage: Stage) -> int:
    stats: Any = stage.redis.info("stats")
    return stats["evicted_keys"]


def fail_over(stage: Stage, size: Size) -> None:
    replica = stage.start_replica()
    with redis.Redis.from_url(replica.url) as copy:
        # Promoted a little early, it gets nothing more: as if that much had been on its way when the first one died.
        copy.replicaof("NO", "ONE")
        stage.run_for(LAG_S)
        stage.note_safe_events()
        present, copied = _taken_and_parked(stage.redis), _taken_and_parked(copy)
        if not copied or copied >= present:
            raise AssertionError(f"the replica has {len(copied)} messages, and lacks {len(present - copied)}")
        stage.servers.valkey.kill()
        stage.run_for(size.down_s)
        # It takes over the address, as a name or a virtual address does in a failover: nobody is told of another one.
        copy.config_set("port", stage.servers.valkey.port)
        stage.fault_has_ended()
        found: Any = stage.redis.info("replication")
        if found["master_replid"] != copy.info("replication")["master_replid"]:  # pyright: ignore[reportIndexIssue]
            raise AssertionError(f"another Redis answers: {found}")


def _taken_and_parked(client: "redis.Redis") -> set[bytes]:
    """Return the tags of the messages in workers' hands, and the messages that wait for their retry."""
    held: Any = client.hkeys("unacked")
    waiting: Any = client.zrange(_PARKED, 0, -1)
    return {*held, *waiting}


def fill_redis(stage: Stage, size: Size) -> None:
    stage.redis.config_set("maxmemory", "1mb")
    stage.run_for(size.full_s)
    stage.redis.config_set("maxmemory", "0")
    stage.fault_has_ended()
    errors: Any = stage.redis.info("errorstats")
    if "errorstat_OOM" not in errors:
        raise AssertionError(f"Redis was never full: {errors}")


def pause_redis(stage: Stage, size: Size) -> None:
    _be_away(stage, size.pause_s, stage.servers.valkey.pause, stage.servers.valkey.resume)


def lose_retries(stage: Stage, size: Size) -> None:
    stage.set_receiver("fail_first")
    stage.run_for(2)
    _be_away(stage, OUTLAST_PUBLISHING_S, stage.servers.valkey.stop, stage.servers.valkey.start)


def kill_mongod(stage: Stage, size: Size) -> None:
    _be_away(stage, size.down_s, stage.servers.mongod.kill, stage.servers.mongod.start)


def pause_mongod(stage: Stage, size: Size) -> None:
    _be_away(stage, size.pause_s, stage.servers.mongod.pause, stage.servers.mongod.resume)


def close_receiver(stage: Stage, size: Size) -> None:
    _be_away(stage, size.away_s, lambda: stage.set_receiver("down"), lambda: stage.set_receiver("ok"))


def reset_half(stage: Stage, size: Size) -> None:
    # So long that some deliveries have all their attempts reset.
    seconds = max(size.away_s, 4 * stage.derived.retry_delay_s)
    _be_away(stage, seconds, lambda: stage.set_receiver("reset_half"), lambda: stage.set_receiver("ok"))


def step_clocks(stage: Stage, size: Size) -> None:
    for aheads in ((_HOUR_S, 0), (_HOUR_S, -_HOUR_S), (-_HOUR_S, _HOUR_S), (0, 0)):
        for number, ahead_s in enumerate(aheads):
            stage.step_clock(number, ahead_s)
        stage.run_for(max(2.0, size.away_s / 4))
    stage.fault_has_ended()
    times = {"_id": None, "low": {"$min": "$createdAt"}, "high": {"$max": "$createdAt"}}
    spread = next(iter(stage.database["webhooklogs"].aggregate([{"$group": times}])))
    if (spread["high"] - spread["low"]).total_seconds() < 2 * _HOUR_S:
        raise AssertionError(f"the clocks were not stepped: {spread}")


def kill_worker_and_restart_redis(stage: Stage, size: Size) -> None:
    stage.kill_worker(0)
    stop_redis(stage, size)


def kill_worker_and_mongod(stage: Stage, size: Size) -> None:
    stage.kill_worker(0)
    kill_mongod(stage, size)


def drop_replies(stage: Stage, size: Size) -> None:
    paused = next(reversed(stage.webhooks))
    stage.gates.pause(paused, By.OPERATOR, "the fault matrix")
    stage.drop_replies(dict.fromkeys(_WRITES + _WRITES_AT_PAUSE, size.drops))
    stage.gates.drain(paused)
    stage.drop_replies(dict.fromkeys(_WRITES_AT_RESUME, size.drops))
    stage.fault_has_ended()


def drop_replies_of_lines(stage: Stage, size: Size) -> None:
    stage.drop_replies(dict.fromkeys(_WRITES + _WRITES_OF_LINES, size.drops))
    stage.fault_has_ended()


def queue_twice(stage: Stage, size: Size) -> None:
    # Whatever waits in Redis comes once more, as after a fail-over or a lost reply.
    for _ in range(_COPIES):
        stage.run_for(1)
        stage.copy_parked(_PARKED)
    stage.fault_has_ended()


def lose_gates(stage: Stage, size: Size) -> None:
    """Restore MongoDB from a backup that lacks a collection, while an ordered webhook has much pending."""
    stage.set_receiver("down")
    stage.run_for(size.away_s)
    for number in range(WORKERS):
        stage.kill_worker(number)
    stage.database["gates"].drop()
    stage.set_receiver("ok")
    stage.fault_has_ended()
