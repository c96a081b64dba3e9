"""The rows of the fault matrix: each fault, how many repeats it explains, and on what stage it strikes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults import strikes
from tests.faults.harness import THREADS, WEBHOOKS, WORKERS, Stage
from tests.faults.sizes import Size

#: Events of a row that would measure the backlog otherwise.
_FEW_PER_S = 8.0
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
_IN_FLIGHT = THREADS * WORKERS
_ALL_WAYS = ("apply_async", "delay_many", "accept")


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


_PER_FAULT = f"attempts in flight: {THREADS} threads × {WORKERS} workers"
_AT_ALL_WORKERS: dict[str, Any] = {"bound": lambda size: _IN_FLIGHT, "why": _PER_FAULT}
_NONE: dict[str, Any] = {"bound": lambda size: 0, "why": "no attempt is cut short"}

ROWS: Sequence[Row] = (
    Row("worker-sigkill", "a worker SIGKILLed, {kills} times", strikes.kill_one_after_another,
        lambda size: THREADS * size.kills, f"{THREADS} threads × {{kills}} kills"),
    Row("worker-sigterm", "a worker SIGTERMed, {stops} times", strikes.stop_one_after_another, **_NONE),
    Row("workers-sigkill", "every worker SIGKILLed at once", strikes.kill_all, **_AT_ALL_WORKERS),
    Row("worker-sigkill-open", "a worker SIGKILLed with open requests, deadlines as by default",
        strikes.kill_one_with_open_attempts, lambda size: THREADS, f"{THREADS} threads", settings=_DEFAULTS,
        events_per_s=_FEW_PER_S, within_s=_RECOVERED_WITHIN_S),
    Row("worker-paused-open", f"a worker paused for {strikes.WORKER_PAUSED_S:g} s with open requests, likewise",
        strikes.pause_one_with_open_attempts, lambda size: THREADS, f"{THREADS} threads", settings=_DEFAULTS,
        events_per_s=_FEW_PER_S, within_s=_RECOVERED_WITHIN_S),
    Row("redis-restart", "Redis restarted with its data, {down_s:g} s away", strikes.stop_redis, **_AT_ALL_WORKERS),
    Row("redis-sigkill", "Redis SIGKILLed, restarted with its data (`appendfsync always`)", strikes.kill_redis,
        **_AT_ALL_WORKERS),
    Row("redis-replaced", "Redis SIGKILLed, restarted without its data ¹", strikes.replace_redis, **_AT_ALL_WORKERS,
        counts_only_safe=True),
    Row("redis-flushed", "Redis flushed ¹", strikes.flush_redis, **_AT_ALL_WORKERS, counts_only_safe=True),
    Row("redis-evicts", "Redis evicts keys for {full_s:g} s, as a cache shares its memory ¹", strikes.evict_from_redis,
        **_AT_ALL_WORKERS, counts_only_safe=True),
    Row("redis-fails-over", f"Redis SIGKILLed, and replaced by a replica that lacks its last {strikes.LAG_S:g} s ¹",
        strikes.fail_over, **_AT_ALL_WORKERS, counts_only_safe=True),
    Row("redis-full", "Redis out of memory for {full_s:g} s", strikes.fill_redis, **_AT_ALL_WORKERS),
    Row("redis-paused", "Redis paused for {pause_s:g} s", strikes.pause_redis, **_AT_ALL_WORKERS),
    Row("broker-gone-at-retry", f"the broker gone when retries are published, {strikes.OUTLAST_PUBLISHING_S:g} s away",
        strikes.lose_retries, **_AT_ALL_WORKERS),
    Row("mongodb-sigkill", "MongoDB SIGKILLed and restarted, {down_s:g} s away", strikes.kill_mongod,
        **_AT_ALL_WORKERS),
    Row("mongodb-paused", "MongoDB paused for {pause_s:g} s", strikes.pause_mongod, **_AT_ALL_WORKERS),
    Row("receiver-down", "the receiver down for {away_s:g} s", strikes.close_receiver, **_NONE),
    Row("receiver-resets", "the receiver resets half of the connections", strikes.reset_half, lambda size: _IN_FLIGHT,
        f"connections kept at that moment, {THREADS} threads × {WORKERS} workers: a request that meets a reset on one "
        "is sent again at once (RFC 9112, 9.3.1)",
        underlogged_why="sent again at once it is the same attempt, and has one log"),
    Row("replies-dropped", "connections lost after each kind of write, {drops} times each, before its reply",
        strikes.drop_replies, **_NONE, can_drop_replies=True, webhooks=({}, {"rate_limit": 20}, {}), ways=_ALL_WAYS,
        events_per_s=_FEW_PER_S),
    Row("replies-dropped-ordered", "likewise, with an ordered webhook", strikes.drop_replies_of_lines, **_NONE,
        can_drop_replies=True, webhooks=({"ordered": True}, {}), ways=_ALL_WAYS, settings=_SOON_AGAIN,
        events_per_s=_FEW_PER_S),
    Row("twice-queued", "every event and retry queued twice", strikes.queue_twice, **_NONE, ways=("twice",)),
    Row("worker-suspended", "a worker with open requests suspended for longer than the visibility time",
        strikes.suspend_one, lambda size: THREADS, f"{THREADS} threads", events_per_s=_FEW_PER_S),
    Row("restored-without-gates", "MongoDB restored without `gates`, an ordered webhook waits", strikes.lose_gates,
        **_AT_ALL_WORKERS, webhooks=({"ordered": True}, {}), events_per_s=_FEW_PER_S,
        settings=_SOON_AGAIN),
    Row("clock-stepped", "workers' clocks stepped by ±1 h", strikes.step_clocks, **_AT_ALL_WORKERS,
        has_stepped_clocks=True),
    Row("worker-and-redis", "a worker SIGKILLed and Redis restarted at once", strikes.kill_worker_and_restart_redis,
        **_AT_ALL_WORKERS),
    # A mongod that is killed alone needs no such reason: whoever makes an attempt lives, and writes its log.
    Row("worker-and-mongodb", "a worker and MongoDB SIGKILLed at once", strikes.kill_worker_and_mongod,
        **_AT_ALL_WORKERS,
        underlogged_why="a claim is not waited for until it is in the journal: a mongod that dies in that moment "
        "forgets it, and with it that the dead worker had begun"),
)  # fmt: skip

#: What ¹ means in the table.
FOOTNOTE = (
    "¹ Until it is in the ledger, an event lives in its message alone, and goes when Redis loses that. Counted are the "
    "events that the ledger had before the fault (with the evictions: before their end), and those accepted after it."
)
