"""The rows about events on their way: latency, producers, fan-out, long queues, deliveries that wait for a retry."""

import time
from collections.abc import Sequence
from pathlib import Path

from bson import ObjectId

from tests.bench.environment import System, Workers
from tests.bench.events import Target
from tests.bench.measures import RowFailed, percentile
from tests.bench.measuring import MB, MS, Bench, Rows
from tests.bench.plan import ENDPOINTS, EVENT_BYTES, SMALL_EVENT_BYTES
from tests.bench.producer import Handing
from tests.bench.servers import LOGS, PENDING
from webhooks.local.servers import LOOPBACK, free_port

ROWS = Rows()

#: Share of the full rate at which latency is measured.
_LOAD = 0.1
#: Share of the events of a latency run that are not counted: they find caches empty and connections closed.
_COLD = 0.1
#: Seconds for the last requests of a run to arrive.
_LATE_S = 20.0
#: The part of the short queue whose rate is taken: not its end, where nothing is queued any more.
_QUEUE_PART = (0.1, 0.6)
#: Maximum bytes of a small queued event in memory and on the disk.
_QUEUED_BYTES = 5_000

#: Number of an event, when it was handed in, when it arrived.
Arrival = tuple[int, float, float]


@ROWS.row(
    "latency",
    "time from deliver.delay to arrival",
    {
        "latency_p50": ("deliver.delay to arrival, p50", "ms"),
        "latency_p99": ("deliver.delay to arrival, p99", "ms"),
        "plain_p50": ("plain Celery, likewise, p50", "ms"),
        "plain_p99": ("plain Celery, likewise, p99", "ms"),
    },
)
def latency(bench: Bench) -> None:
    rates = bench.results.samples["a"]
    if not rates:
        raise RowFailed("the rate of (a) is not known")
    per_s, environment = _LOAD * sorted(rates)[len(rates) // 2], bench.environment
    bench.step(f"latency at {per_s:.0f} events/s", in_rounds=False)
    targets = environment.timed_targets()
    lines = environment.prepare(targets, EVENT_BYTES)
    with environment.workers(Workers()) as crew:
        crew.wait_until_ready()
        _take_latency(bench, "latency", environment.product, lines, per_s)
    environment.servers.reset()
    bench.step(f"latency of plain Celery at {per_s:.0f} events/s", in_rounds=False)
    with environment.plain_worker() as crew:
        crew.wait_until_ready()
        _take_latency(bench, "plain", environment.plain, lines, per_s)


def _take_latency(bench: Bench, key: str, system: System, lines: Path, per_s: float) -> None:
    seconds = bench.plan.sizes.latency_s
    count = max(20, int(per_s * seconds))
    bench.environment.receivers.arrivals()
    bench.environment.produce(system, lines, [Handing(count, per_s=per_s)], seconds * 3 + 60)
    arrived = _await_arrivals(bench, count)
    took_ms = [(at - sent_at) * MS for number, sent_at, at in arrived if number >= _COLD * count]
    note = f"{per_s:.0f} events/s, {len(took_ms):,} events"
    for percent in (50, 99):
        bench.take(f"{key}_p{percent}", percentile(took_ms, percent), note=note)


def _await_arrivals(bench: Bench, count: int) -> Sequence[Arrival]:
    arrived: list[Arrival] = []
    give_up_at = time.monotonic() + _LATE_S
    while len(arrived) < count and time.monotonic() < give_up_at:
        arrived += bench.environment.receivers.arrivals()
        time.sleep(0.05)
    if len(arrived) != count:
        raise RowFailed(f"{len(arrived)} requests arrived, of {count}")
    return arrived


@ROWS.row(
    "enqueue",
    "enqueue rate of a producer",
    {
        "enqueue_single": ("enqueue, one at a time", "/s"),
        "enqueue_bulk": ("enqueue, in bulk", "/s"),
        "plain_enqueue": ("plain Celery, one at a time", "/s"),
    },
)
def enqueue(bench: Bench) -> None:
    bench.step("enqueue rate", in_rounds=False)
    sizes, environment = bench.plan.sizes, bench.environment
    lines = environment.write_events(environment.targets(), EVENT_BYTES)
    handing = Handing(sizes.enqueue_single, bulk=sizes.enqueue_bulk, rounds=sizes.rounds, is_warm=True)
    within_s = 60 + sizes.rounds * (sizes.enqueue_single + sizes.enqueue_bulk) / 100
    [told] = environment.produce(environment.product, lines, [handing], within_s)
    environment.servers.reset()
    handing = Handing(sizes.enqueue_single, rounds=sizes.rounds)
    [plain] = environment.produce(environment.plain, lines, [handing], within_s)
    bench.take("enqueue_single", *told["single"], note=f"deliver.delay, {sizes.enqueue_single:,} events")
    bench.take("enqueue_bulk", *told["bulk"], note=f"deliver.delay_many, {sizes.enqueue_bulk:,} events")
    bench.take("plain_enqueue", *plain["single"], note=f"{sizes.enqueue_single:,} events")


@ROWS.row(
    "fanout",
    "one event to many webhooks",
    {
        "fanout_first": ("fan-out, to the first arrival", "ms"),
        "fanout_last": ("fan-out, to the last arrival", "ms"),
        "fanout_log": ("fan-out, to the last log", "ms"),
    },
)
def fanout(bench: Bench) -> None:
    count, company, environment = bench.plan.sizes.fanout_webhooks, ObjectId(), bench.environment
    bench.step(f"one event to {count:,} webhooks", in_rounds=False)
    urls = [target.url for target in environment.timed_targets()]
    targets = [Target(urls[number % len(urls)], company) for number in range(count)]
    lines = environment.prepare(targets, EVENT_BYTES)
    with environment.workers(Workers()) as crew:
        crew.wait_until_ready()
        # The first of all finds caches empty and connections closed.
        for number in range(bench.plan.sizes.rounds + 1):
            environment.receivers.arrivals()
            environment.produce(environment.product, lines, [Handing(1, is_warm=True)], 60)
            logs = (number + 1) * count
            samples = bench.watch(crew, logs)
            arrived = _await_arrivals(bench, count)
            bench.require(logs, {})
            if number:
                sent_at, ats = arrived[0][1], [at for _, _, at in arrived]
                ends = {"fanout_first": min(ats), "fanout_last": max(ats), "fanout_log": samples[-1].at}
                for key, at in ends.items():
                    bench.take(key, (at - sent_at) * MS, note=f"{count:,} webhooks")


@ROWS.row(
    "depth",
    "rate with a long queue against a short one",
    {
        "depth_short": ("rate with a short queue", "/s"),
        "depth_long": ("rate with a long queue", "/s"),
        "depth_bytes": ("Redis, per small queued event", "bytes"),
    },
)
def depth(bench: Bench) -> None:
    short, long = bench.plan.sizes.short_queue, bench.plan.sizes.long_queue
    environment, servers = bench.environment, bench.environment.servers
    environment.require_room(long, _QUEUED_BYTES)
    for _ in bench.rounds():
        bench.step(f"rate with {short:,} queued")
        _queue_small(bench, short)
        _take_queue_rate(bench, "depth_short", short)
        servers.reset()
    bench.step(f"queueing {long:,} events", in_rounds=False)
    used = _queue_small(bench, long)
    note = f"{used / MB:,.0f} MB in all, events of {SMALL_EVENT_BYTES} bytes of JSON"
    bench.take("depth_bytes", used / long, note=note)
    for _ in bench.rounds():
        bench.step(f"rate with {long:,} queued")
        _take_queue_rate(bench, "depth_long", long)


def _queue_small(bench: Bench, count: int) -> int:
    """Queue small events; return the bytes that Redis uses for them."""
    environment = bench.environment
    lines = environment.prepare(environment.targets(), SMALL_EVENT_BYTES)
    before = environment.servers.redis_bytes()
    environment.queue(environment.product, lines, count)
    return environment.servers.redis_bytes() - before


def _take_queue_rate(bench: Bench, key: str, queued: int) -> None:
    """Take the rate of the same number of deliveries, however many are queued."""
    environment, there = bench.environment, bench.environment.servers.logged(LOGS)
    first, last = (there + int(bench.plan.sizes.short_queue * share) for share in _QUEUE_PART)
    with environment.workers(Workers()) as crew:
        samples = bench.watch(crew, last)
    bench.take_rate(key, samples, first, last, f"{queued:,} queued, {SMALL_EVENT_BYTES} bytes each")


@ROWS.row(
    "waiting",
    "what deliveries that wait for their retry take up, and (a) beside them",
    {
        "waiting_redis": ("Redis, per delivery that waits for its retry", "bytes"),
        "waiting_mongodb": ("MongoDB, the same, before compression", "bytes"),
        "waiting_a": ("(a) beside deliveries that wait", "/s"),
        "waiting_memory": ("memory of a worker after that", "MB"),
    },
)
def waiting(bench: Bench) -> None:
    count, environment, servers = bench.plan.sizes.waiting, bench.environment, bench.environment.servers
    bench.step(f"{count:,} deliveries that wait for their retry", in_rounds=False)
    nobody = free_port()
    lines = environment.prepare([Target(f"http://{LOOPBACK}:{nobody}/") for _ in range(ENDPOINTS)], EVENT_BYTES)
    before = servers.redis_bytes()
    environment.queue(environment.product, lines, count)
    # Longer than the row takes.
    workers = Workers(settings={"WEBHOOKS_RETRY_DELAY_S": "3600"})
    with environment.workers(workers) as crew:
        bench.watch(crew, count)
    failed = servers.count(LOGS, {"attempt.outcome": "failed"})
    if failed != count:
        raise RowFailed(f"{failed:,} first attempts failed, of {count:,}")
    note = f"{count:,} events of {EVENT_BYTES:,} bytes of JSON"
    bench.take("waiting_redis", (servers.redis_bytes() - before) / count, note=note)
    bench.take("waiting_mongodb", sum(servers.document_bytes(name) for name in PENDING) / count, note=note)
    drain = bench.drain("waiting_a", environment.targets(), bench.plan.sizes.events, workers)
    bench.take("waiting_memory", *(size / MB for size in drain.memory_bytes), note="RSS of each worker")
