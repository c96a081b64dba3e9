"""The rows of the fault matrix, their sizes, and how they are run and shown.

A row is one fault (or two at once) under steady load. `run_row` sets its stage, strikes, waits until nothing is owed,
and has it judged. Rows wait most of their time, for what a dead worker held to come back; so several run at a time,
but only some of them load the machine: `Size.slots`.
"""

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import redis

from tests.faults.harness import HOLD_MESSAGES, THREADS, WEBHOOKS, WORKERS, Cancelled, Stage
from tests.faults.judge import Verdict, judge
from webhooks.local import servers
from webhooks.store.gates import By
from webhooks.transport.holder import WITNESS_AFTER_S
from webhooks.transport.scripts import PARKED_KEY


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    name: str
    #: Of the producer; each event goes to all of a row's webhooks.
    events_per_s: float
    #: Load before the fault and after it.
    before_s: float
    after_s: float
    #: Workers killed one after another, and seconds from one to the next.
    kills: int
    kill_every_s: float
    #: Workers stopped one after another.
    stops: int
    #: A server hangs, memory is full, a receiver is away, a server is down.
    pause_s: float
    full_s: float
    away_s: float
    down_s: float
    #: How often the reply of each kind of write is dropped.
    drops: int
    #: The product's setting, of which it derives when what a dead worker held comes back.
    mongodb_timeout_s: float
    #: Rows under load at one time, and rows at one time in all.
    slots: int
    rows: int


FULL = Size(
    "full", events_per_s=105, before_s=8, after_s=8, kills=20, kill_every_s=2.5, stops=6, pause_s=30, full_s=10,
    away_s=20, down_s=5, drops=8, mongodb_timeout_s=10, slots=1, rows=6,
)  # fmt: skip
CI = Size(
    "ci", events_per_s=32, before_s=3, after_s=3, kills=4, kill_every_s=2.5, stops=2, pause_s=8, full_s=4,
    away_s=5, down_s=2, drops=1, mongodb_timeout_s=5, slots=3, rows=10,
)  # fmt: skip
SIZES = {size.name: size for size in (FULL, CI)}

#: Seconds without Redis in the row of the lost retry: more than Celery tries to publish (`task_publish_retry_policy`).
_OUTLAST_PUBLISHING_S = 12.0
_HOUR_S = 3600.0
#: How far behind the replica is that takes over. Far more than replicas are as a rule, so that it lacks something.
_LAG_S = 2.0
#: The cache that shares Redis's memory: bytes of an entry, of all that fit, and seconds from one to the next.
_PAGE_BYTES = 100_000
_PAGES_BYTES = 20 * _PAGE_BYTES
_PAGE_EVERY_S = 0.05
#: Open attempts of the worker that is killed or paused, at least; for how long it is paused: until all that it held is
#: somebody else's; and seconds until the other one may say that it is dead.
_OPEN = 2
_FEW_PER_S = 8.0
_WORKER_PAUSED_S = 25.0
_LEASE_IS_KNOWN_S = WITNESS_AFTER_S
#: Seconds after a worker's death within which all that it held is free and its attempts are made again.
_RECOVERED_WITHIN_S = 20.0
#: The product's own deadlines, of which the old time-outs are made.
_DEFAULTS = {
    "WEBHOOKS_TOTAL_TIMEOUT_S": "15",
    "WEBHOOKS_CONNECT_TIMEOUT_S": "5",
    "WEBHOOKS_MONGODB_TIMEOUT_S": "10",
    "WEBHOOKS_SWEEP_INTERVAL_S": "10",
}
#: So that an ordered webhook keeps up, although every tenth event fails at first.
_SOON_AGAIN = {"WEBHOOKS_RETRY_DELAY_S": "0.5"}
#: Where attempts wait for their time.
_PARKED = PARKED_KEY.format("webhooks.send")
#: Seconds for a row to settle, whatever happens: the worst is a backlog on a machine that does other things.
_SETTLED_WITHIN_S = 600.0
_IN_FLIGHT = THREADS * WORKERS
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
_ALL_WAYS = ("apply_async", "delay_many", "accept")
#: How often what waits is copied.
_COPIES = 3


@dataclass(frozen=True)
class Row:
    """One fault."""

    id: str
    #: What the table says of it.
    fault: str
    strike: Callable[[Stage, Size], None]
    #: How many repeats the fault explains, and why.
    bound: Callable[[Size], int]
    why: str
    #: Why a request may come of which no log tells; empty where each one must have its log.
    underlogged_why: str = ""
    #: For servers that lose what they hold: which events were promised is narrower, as the table says.
    counts_only_safe: bool = False
    has_stepped_clocks: bool = False
    can_drop_replies: bool = False
    #: Fields of the webhooks, and how events are handed in: see `producer`.
    webhooks: Sequence[Mapping[str, Any]] = WEBHOOKS
    ways: Sequence[str] = ("apply_async",)
    #: The row's own, besides those of all.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Of the producer, where the size's would measure the backlog rather than the fault; None: the size's.
    events_per_s: float | None = None
    #: Seconds from the fault's end within which the last delivery must have come; None: however long it takes.
    within_s: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of a row."""

    row: Row
    verdict: Verdict
    bound: int
    #: Seconds from the fault's end until the last delivery that was accepted before it had come; 0 when none was late.
    recovery_s: float
    #: Seconds from the fault's end until nothing was owed and no message was left.
    settled_s: float
    refusals: int
    died_by_themselves: int
    #: Deliveries accepted per second of load.
    per_s: float

    @property
    def faults(self) -> list[str]:
        """What must not be."""
        found = self.verdict.faults(self.bound, self.row.underlogged_why)
        if self.row.within_s is not None and self.recovery_s > self.row.within_s:
            found.append(f"the last one came after {self.recovery_s:.1f} s, where {self.row.within_s:g} s are promised")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        fields = {name: value for name, value in vars(self).items() if name not in ("row", "verdict")}
        return {"row": self.row.id, **fields, "verdict": asdict(self.verdict), "faults": self.faults}


# ── The faults ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _kill_one_after_another(stage: Stage, size: Size) -> None:
    for kill in range(size.kills):
        number = kill % WORKERS
        stage.run_until(lambda n=number: stage.is_worker_up(n), f"worker {number} is up again", 90)
        stage.run_for(size.kill_every_s)
        stage.kill_worker(number)
    stage.fault_has_ended()


def _kill_all(stage: Stage, size: Size) -> None:
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


def _kill_one_with_open_attempts(stage: Stage, size: Size) -> None:
    stage.kill_worker(_open_attempts(stage))
    stage.run_for(0.25)  # until the receiver has seen that nobody waits for its answers
    stage.set_receiver("ok")
    stage.fault_has_ended()


def _pause_one_with_open_attempts(stage: Stage, size: Size) -> None:
    _pause_one(stage, _WORKER_PAUSED_S)


def _suspend_one(stage: Stage, size: Size) -> None:
    _pause_one(stage, stage.derived.visibility_timeout_s + _LEASE_IS_KNOWN_S)


def _pause_one(stage: Stage, seconds: float) -> None:
    number = _open_attempts(stage)
    stage.pause_worker(number)
    stage.set_receiver("ok")
    stage.fault_has_ended()
    stage.run_for(seconds)
    stage.resume_worker(number)


def _stop_one_after_another(stage: Stage, size: Size) -> None:
    for stop in range(size.stops):
        number = stop % WORKERS
        stage.run_until(lambda n=number: stage.is_worker_up(n), f"worker {number} is up again", 90)
        stage.run_for(1)
        stage.terminate_worker(number)
    stage.fault_has_ended()


def _stop_redis(stage: Stage, size: Size) -> None:
    stage.servers.valkey.stop()
    stage.run_for(size.down_s)
    stage.servers.valkey.start()
    stage.fault_has_ended()


def _kill_redis(stage: Stage, size: Size) -> None:
    # By default the log is written to the disk once a second, and in the moment of that Redis lets writes wait: it
    # may answer before it has written. Where "accepted" is to survive a crash of Redis, this is the setting.
    stage.redis.config_set("appendfsync", "always")
    stage.run_for(1)
    stage.servers.valkey.kill()
    stage.run_for(size.down_s)
    stage.servers.valkey.start()
    stage.fault_has_ended()


def _replace_redis(stage: Stage, size: Size) -> None:
    stage.note_safe_events()
    stage.servers.valkey.kill()
    stage.forget_redis()
    stage.run_for(size.down_s)
    stage.servers.valkey.start()
    stage.fault_has_ended()


def _flush_redis(stage: Stage, size: Size) -> None:
    stage.note_safe_events()
    stage.redis.flushall()
    stage.fault_has_ended()


def _evict_from_redis(stage: Stage, size: Size) -> None:
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


def _fail_over(stage: Stage, size: Size) -> None:
    replica = stage.start_replica()
    with redis.Redis.from_url(replica.url) as copy:
        # Promoted a little early, it gets nothing more: as if that much had been on its way when the first one died.
        copy.replicaof("NO", "ONE")
        stage.run_for(_LAG_S)
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


def _fill_redis(stage: Stage, size: Size) -> None:
    stage.redis.config_set("maxmemory", "1mb")
    stage.run_for(size.full_s)
    stage.redis.config_set("maxmemory", "0")
    stage.fault_has_ended()
    errors: Any = stage.redis.info("errorstats")
    if "errorstat_OOM" not in errors:
        raise AssertionError(f"Redis was never full: {errors}")


def _pause_redis(stage: Stage, size: Size) -> None:
    stage.servers.valkey.pause()
    stage.run_for(size.pause_s)
    stage.servers.valkey.resume()
    stage.fault_has_ended()


def _lose_retries(stage: Stage, size: Size) -> None:
    stage.set_receiver("fail_first")
    stage.run_for(2)
    stage.servers.valkey.stop()
    stage.run_for(_OUTLAST_PUBLISHING_S)
    stage.servers.valkey.start()
    stage.fault_has_ended()


def _kill_mongod(stage: Stage, size: Size) -> None:
    stage.servers.mongod.kill()
    stage.run_for(size.down_s)
    stage.servers.mongod.start()
    stage.fault_has_ended()


def _pause_mongod(stage: Stage, size: Size) -> None:
    stage.servers.mongod.pause()
    stage.run_for(size.pause_s)
    stage.servers.mongod.resume()
    stage.fault_has_ended()


def _close_receiver(stage: Stage, size: Size) -> None:
    stage.set_receiver("down")
    stage.run_for(size.away_s)
    stage.set_receiver("ok")
    stage.fault_has_ended()


def _reset_half(stage: Stage, size: Size) -> None:
    stage.set_receiver("reset_half")
    # So long that some deliveries have all their attempts reset.
    stage.run_for(max(size.away_s, 4 * stage.derived.retry_delay_s))
    stage.set_receiver("ok")
    stage.fault_has_ended()


def _step_clocks(stage: Stage, size: Size) -> None:
    for aheads in ((_HOUR_S, 0), (_HOUR_S, -_HOUR_S), (-_HOUR_S, _HOUR_S), (0, 0)):
        for number, ahead_s in enumerate(aheads):
            stage.step_clock(number, ahead_s)
        stage.run_for(max(2.0, size.away_s / 4))
    stage.fault_has_ended()
    times = {"_id": None, "low": {"$min": "$createdAt"}, "high": {"$max": "$createdAt"}}
    spread = next(iter(stage.database["webhooklogs"].aggregate([{"$group": times}])))
    if (spread["high"] - spread["low"]).total_seconds() < 2 * _HOUR_S:
        raise AssertionError(f"the clocks were not stepped: {spread}")


def _kill_worker_and_restart_redis(stage: Stage, size: Size) -> None:
    stage.kill_worker(0)
    _stop_redis(stage, size)


def _kill_worker_and_mongod(stage: Stage, size: Size) -> None:
    stage.kill_worker(0)
    _kill_mongod(stage, size)


def _drop_replies(stage: Stage, size: Size) -> None:
    paused = next(reversed(stage.webhooks))
    stage.gates.pause(paused, By.OPERATOR, "the fault matrix")
    stage.drop_replies(dict.fromkeys(_WRITES + _WRITES_AT_PAUSE, size.drops))
    stage.gates.drain(paused)
    stage.drop_replies(dict.fromkeys(_WRITES_AT_RESUME, size.drops))
    stage.fault_has_ended()


def _drop_replies_of_lines(stage: Stage, size: Size) -> None:
    stage.drop_replies(dict.fromkeys(_WRITES + _WRITES_OF_LINES, size.drops))
    stage.fault_has_ended()


def _queue_twice(stage: Stage, size: Size) -> None:
    # Whatever waits in Redis comes once more, as after a fail-over or a lost reply.
    for _ in range(_COPIES):
        stage.run_for(1)
        stage.copy_parked(_PARKED)
    stage.fault_has_ended()


def _lose_gates(stage: Stage, size: Size) -> None:
    """Restore MongoDB from a backup that lacks a collection, while an ordered webhook has much pending."""
    stage.set_receiver("down")
    stage.run_for(size.away_s)
    for number in range(WORKERS):
        stage.kill_worker(number)
    stage.database["gates"].drop()
    stage.set_receiver("ok")
    stage.fault_has_ended()


_PER_FAULT = f"attempts in flight: {THREADS} threads × {WORKERS} workers"
_AT_ALL_WORKERS: dict[str, Any] = {"bound": lambda size: _IN_FLIGHT, "why": _PER_FAULT}
_NONE: dict[str, Any] = {"bound": lambda size: 0, "why": "no attempt is cut short"}

ROWS: Sequence[Row] = (
    Row("worker-sigkill", "a worker SIGKILLed, {kills} times", _kill_one_after_another,
        lambda size: THREADS * size.kills, f"{THREADS} threads × {{kills}} kills"),
    Row("worker-sigterm", "a worker SIGTERMed, {stops} times", _stop_one_after_another, **_NONE),
    Row("workers-sigkill", "every worker SIGKILLed at once", _kill_all, **_AT_ALL_WORKERS),
    Row("worker-sigkill-open", "a worker SIGKILLed with open requests, deadlines as by default",
        _kill_one_with_open_attempts, lambda size: THREADS, f"{THREADS} threads", settings=_DEFAULTS,
        events_per_s=_FEW_PER_S, within_s=_RECOVERED_WITHIN_S),
    Row("worker-paused-open", f"a worker paused for {_WORKER_PAUSED_S:g} s with open requests, likewise",
        _pause_one_with_open_attempts, lambda size: THREADS, f"{THREADS} threads", settings=_DEFAULTS,
        events_per_s=_FEW_PER_S, within_s=_RECOVERED_WITHIN_S),
    Row("redis-restart", "Redis restarted with its data, {down_s:g} s away", _stop_redis, **_AT_ALL_WORKERS),
    Row("redis-sigkill", "Redis SIGKILLed, restarted with its data (`appendfsync always`)", _kill_redis,
        **_AT_ALL_WORKERS),
    Row("redis-replaced", "Redis SIGKILLed, restarted without its data ¹", _replace_redis, **_AT_ALL_WORKERS,
        counts_only_safe=True),
    Row("redis-flushed", "Redis flushed ¹", _flush_redis, **_AT_ALL_WORKERS, counts_only_safe=True),
    Row("redis-evicts", "Redis evicts keys for {full_s:g} s, as a cache shares its memory ¹", _evict_from_redis,
        **_AT_ALL_WORKERS, counts_only_safe=True),
    Row("redis-fails-over", f"Redis SIGKILLed, and replaced by a replica that lacks its last {_LAG_S:g} s ¹",
        _fail_over, **_AT_ALL_WORKERS, counts_only_safe=True),
    Row("redis-full", "Redis out of memory for {full_s:g} s", _fill_redis, **_AT_ALL_WORKERS),
    Row("redis-paused", "Redis paused for {pause_s:g} s", _pause_redis, **_AT_ALL_WORKERS),
    Row("broker-gone-at-retry", f"the broker gone when retries are published, {_OUTLAST_PUBLISHING_S:g} s away",
        _lose_retries, **_AT_ALL_WORKERS),
    Row("mongodb-sigkill", "MongoDB SIGKILLed and restarted, {down_s:g} s away", _kill_mongod, **_AT_ALL_WORKERS),
    Row("mongodb-paused", "MongoDB paused for {pause_s:g} s", _pause_mongod, **_AT_ALL_WORKERS),
    Row("receiver-down", "the receiver down for {away_s:g} s", _close_receiver, **_NONE),
    Row("receiver-resets", "the receiver resets half of the connections", _reset_half, lambda size: _IN_FLIGHT,
        f"connections kept at that moment, {THREADS} threads × {WORKERS} workers: a request that meets a reset on one "
        "is sent again at once (RFC 9112, 9.3.1)",
        underlogged_why="sent again at once it is the same attempt, and has one log"),
    Row("replies-dropped", "connections lost after each kind of write, {drops} times each, before its reply",
        _drop_replies, **_NONE, can_drop_replies=True, webhooks=({}, {"rate_limit": 20}, {}), ways=_ALL_WAYS,
        events_per_s=_FEW_PER_S),
    Row("replies-dropped-ordered", "likewise, with an ordered webhook", _drop_replies_of_lines, **_NONE,
        can_drop_replies=True, webhooks=({"ordered": True}, {}), ways=_ALL_WAYS, settings=_SOON_AGAIN,
        events_per_s=_FEW_PER_S),
    Row("twice-queued", "every event and retry queued twice", _queue_twice, **_NONE, ways=("twice",)),
    Row("worker-suspended", "a worker with open requests suspended for longer than the visibility time",
        _suspend_one, lambda size: THREADS, f"{THREADS} threads", events_per_s=_FEW_PER_S),
    Row("restored-without-gates", "MongoDB restored without `gates`, an ordered webhook waits", _lose_gates,
        **_AT_ALL_WORKERS, webhooks=({"ordered": True}, {}), events_per_s=_FEW_PER_S,
        settings=_SOON_AGAIN),
    Row("clock-stepped", "workers' clocks stepped by ±1 h", _step_clocks, **_AT_ALL_WORKERS, has_stepped_clocks=True),
    Row("worker-and-redis", "a worker SIGKILLed and Redis restarted at once", _kill_worker_and_restart_redis,
        **_AT_ALL_WORKERS),
    # A mongod that is killed alone needs no such reason: whoever makes an attempt lives, and writes its log.
    Row("worker-and-mongodb", "a worker and MongoDB SIGKILLed at once", _kill_worker_and_mongod, **_AT_ALL_WORKERS,
        underlogged_why="a claim is not waited for until it is in the journal: a mongod that dies in that moment "
        "forgets it, and with it that the dead worker had begun"),
)  # fmt: skip

#: What ¹ means in the table.
FOOTNOTE = (
    "¹ Until it is in the ledger, an event lives in its message alone, and goes when Redis loses that. Counted are the "
    "events that the ledger had before the fault (with the evictions: before their end), and those accepted after it."
)


# ── Running ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Slots(Protocol):
    """The few places under load: a semaphore of this process, or of all test processes."""

    def acquire(self, *, timeout: float) -> bool:
        """Take one within so many seconds; return whether that was possible."""
        ...

    def release(self) -> None:
        """Give one back."""
        ...


def run_matrix(
    rows: Iterable[Row], size: Size, *, tell: Callable[[str], None], cancelled: threading.Event
) -> dict[str, Future[Result]]:
    """Start rows, each in a thread of its own, and return at once.

    Args:
        rows: which ones, started in this order.
        size: how much of everything.
        tell: gets lines of progress, from many threads.
        cancelled: set it to have all of them end soon.
    """
    folder = Path(tempfile.mkdtemp(prefix="webhooks-faults-"))
    slots = threading.Semaphore(size.slots)
    # A thread per row: the processes of a stage end with the thread that started them.
    pool = ThreadPoolExecutor(size.rows, "row")
    started = {row.id: pool.submit(_run_and_tidy, row, size, folder, slots, cancelled, tell) for row in rows}
    pool.shutdown(wait=False)
    return started


def _run_and_tidy(
    row: Row,
    size: Size,
    folder: Path,
    slots: Slots,
    cancelled: threading.Event,
    tell: Callable[[str], None],
) -> Result:
    try:
        result = run_row(row, size, folder / row.id, slots, cancelled, tell)
    except Cancelled:
        raise
    except BaseException as error:
        tell(f"{row.id}: {type(error).__name__}: {error}; see {folder / row.id}")
        raise
    if result.faults:
        tell(f"{row.id}: FAILED: {'; '.join(result.faults)}; see {folder / row.id}")
    else:
        tell(f"{row.id}: good, settled after {result.settled_s:.0f} s, {result.verdict.repeats} repeats")
        shutil.rmtree(folder / row.id)  # the logs are wanted when a row fails
        with suppress(OSError):
            folder.rmdir()  # when it was the last one
    return result


class _Slot:
    """One of the few places under load, given back once."""

    def __init__(self, slots: Slots, cancelled: threading.Event) -> None:
        while cancelled.is_set() or not slots.acquire(timeout=0.5):
            if cancelled.is_set():
                raise Cancelled
        self._slots: Slots | None = slots

    def release(self) -> None:
        """Give it back; no effect the second time."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


def run_row(
    row: Row,
    size: Size,
    folder: Path,
    slots: Slots,
    cancelled: threading.Event,
    tell: Callable[[str], None],
) -> Result:
    """Run one row, start to finish; its processes end with it."""
    slot = _Slot(slots, cancelled)
    try:
        with Stage(
            folder,
            cancelled=cancelled,
            mongodb_timeout_s=size.mongodb_timeout_s,
            settings=row.settings,
            webhooks=row.webhooks,
            has_stepped_clocks=row.has_stepped_clocks,
            can_drop_replies=row.can_drop_replies,
        ) as stage:
            tell(f"{row.id}: load")
            started_at = time.monotonic()
            stage.start_load(row.events_per_s or size.events_per_s, row.ways)
            stage.run_for(size.before_s)
            tell(f"{row.id}: fault")
            row.strike(stage, size)
            stage.run_for(size.after_s)
            stage.stop_load()
            load_s = time.monotonic() - started_at
            slot.release()
            tell(f"{row.id}: {len(stage.accepted)} events accepted; waiting until nothing is owed")
            # What was held without a lease comes back after the visibility timeout, may then find a claim and be looked
            # at once more; what is lost besides, the sweep finds a little later.
            derived = stage.derived
            stage.settle(2 * (derived.visibility_timeout_s + derived.claim_s) + 30, _SETTLED_WITHIN_S)
            return _conclude(row, size, stage, load_s)
    finally:
        slot.release()


def _conclude(row: Row, size: Size, stage: Stage, load_s: float) -> Result:
    ended_at = stage.fault_ended_at
    if ended_at is None:
        raise RuntimeError(f"row {row.id} does not say when its fault ended")
    settled_s = time.time() - ended_at
    evidence = stage.gather(stage.promised(only_safe=row.counts_only_safe))
    early = {number for number, _, accepted_at in stage.accepted if accepted_at <= ended_at}
    came_at = {
        key: evidence.receipts[key].first_ok_at
        for key in evidence.expected
        if key[0] in early and key in evidence.receipts
    }
    verdict, bound = judge(evidence), row.bound(size)
    result = Result(
        row=row,
        verdict=verdict,
        bound=bound,
        recovery_s=max(0.0, max(came_at.values(), default=0.0) - ended_at),
        settled_s=settled_s,
        refusals=stage.refusals,
        died_by_themselves=stage.died_by_themselves,
        per_s=len(stage.accepted) * len(row.webhooks) / load_s,
    )
    if result.faults:
        repeated = [key for key, receipts in evidence.receipts.items() if receipts.ok > 1]
        wrong = [*verdict.lost, *verdict.unlogged, *verdict.underlogged, *verdict.renamed, *verdict.disordered]
        wrong += verdict.interrupted
        late = [key for key, at in came_at.items() if row.within_s is not None and at - ended_at > row.within_s]
        stage.dump(evidence, [*wrong, *late, *evidence.owed, *repeated])
    return result


# ── Showing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def describe(text: str, size: Size) -> str:
    """Fill a size's numbers into a row's words."""
    return text.format(**asdict(size))


def to_line(result: Result, size: Size) -> str:
    """Return a row of the table."""
    verdict = result.verdict
    cells = [
        describe(result.row.fault, size),
        f"{verdict.expected:,}",
        str(len(verdict.lost)),
        str(verdict.stuck),
        str(verdict.repeats),
        str(result.bound),
        f"{result.recovery_s:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def to_markdown(lines: Iterable[str]) -> str:
    """Return the table of these rows (`to_line`)."""
    head = [
        "| fault | deliveries accepted | lost | stuck | repeats | at most | last one came after |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *lines, "", FOOTNOTE])
