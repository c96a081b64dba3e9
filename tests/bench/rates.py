"""The rows that tell a rate: queue events, start workers, count logs."""

from tests.bench.environment import Workers
from tests.bench.events import Target
from tests.bench.measuring import MB, US, Bench, Rows
from tests.bench.plan import ENDPOINTS, EVENT_BYTES
from tests.bench.receivers import HANG, INSTANT, NEAR, SLOW
from tests.bench.servers import LOGS

ROWS = Rows()


def _share(count: int, endpoints: int) -> int:
    """Return how many of the events go to this many endpoints, if all get the same number."""
    return max(1, count // ENDPOINTS) * endpoints


@ROWS.row("bare", "a loop of requests.Session.post", {"bare": ("bare requests loop, one core", "/s")}, in_rounds=True)
def bare(bench: Bench) -> None:
    bench.step("bare requests loop")
    environment, seconds = bench.environment, bench.plan.sizes.bare_s
    targets = environment.targets()
    rate = environment.run_bare(targets[0].url, environment.write_events(targets, EVENT_BYTES), seconds)
    bench.take("bare", rate, note=f"{seconds:g} s, one connection, no queue, no log")


@ROWS.row(
    "plain",
    "a plain Celery worker",
    {
        "plain": ("plain Celery worker", "/s"),
        "plain_cpu_workers": ("CPU per delivery, plain: worker", "µs"),
        "plain_cpu_valkey": ("CPU per delivery, plain: Valkey", "µs"),
        "plain_cpu_mongod": ("CPU per delivery, plain: mongod", "µs"),
        "plain_cpu_receiver": ("CPU per delivery, plain: receiver", "µs"),
        "plain_memory": ("memory of the plain worker", "MB"),
    },
    in_rounds=True,
)
def plain(bench: Bench) -> None:
    bench.step("plain Celery worker")
    drain = bench.drain_plain("plain")
    bench.take_cpu("plain_cpu_", drain.part, "workers", "valkey", "mongod", "receiver")
    note = f"RSS of {bench.plan.workers + 1} processes; shared pages count in each"
    bench.take("plain_memory", sum(drain.memory_bytes) / MB, note=note)


@ROWS.row(
    "a",
    "(a) instant receivers",
    {
        "a": ("(a) instant receivers", "/s"),
        "cpu_workers": ("CPU per delivery of (a): workers", "µs"),
        "cpu_valkey": ("CPU per delivery of (a): Valkey", "µs"),
        "cpu_mongod": ("CPU per delivery of (a): mongod", "µs"),
        "cpu_receiver": ("CPU per delivery of (a): receiver", "µs"),
        "cpu_queueing": ("CPU per event queued for (a): Valkey", "µs"),
        "memory": ("memory of a worker after (a)", "MB"),
        "redis_bytes": ("Redis, per queued delivery of (a)", "bytes"),
        "traffic_redis": ("workers' traffic with Redis, per delivery of (a)", "bytes"),
        "traffic_mongodb": ("workers' traffic with MongoDB, per delivery of (a)", "bytes"),
        "log_bytes": ("MongoDB, a log of (a), before compression", "bytes"),
        "log_index_bytes": ("MongoDB, a log of (a), its part of the indexes", "bytes"),
    },
    in_rounds=True,
)
def instant_receivers(bench: Bench) -> None:
    bench.step("(a) instant receivers")
    count, servers = bench.plan.sizes.events, bench.environment.servers
    drain = bench.drain("a", bench.environment.targets(), count, note=f"{bench.plan.workers} workers, {count:,} events")
    bench.take_cpu("cpu_", drain.part, "workers", "valkey", "mongod", "receiver")
    note = f"events of {EVENT_BYTES:,} bytes of JSON"
    bench.take("memory", *(size / MB for size in drain.memory_bytes), note="RSS of each worker")
    bench.take("redis_bytes", drain.redis_bytes, note=note)
    for name, each in drain.traffic.items():
        bench.take(f"traffic_{name}", each, note="both ways")
    bench.take("log_bytes", servers.document_bytes(LOGS) / count, note=note)
    if "valkey" in servers.pids:
        bench.take("cpu_queueing", drain.queueing_cpu_s * US, note="in bulk")
    if "mongod" in servers.pids:
        bench.take("log_index_bytes", servers.index_bytes(LOGS) / count, note=f"of {count:,} logs")


@ROWS.row("b", "(b) receivers that take 100 ms", {"b": ("(b) receivers that take 100 ms", "/s")}, in_rounds=True)
def slow_receivers(bench: Bench) -> None:
    bench.step("(b) receivers that take 100 ms")
    bench.drain("b", bench.environment.targets(SLOW), bench.plan.sizes.events)


@ROWS.row(
    "c",
    "(c) 20 receivers, of which one hangs",
    {"c_without": ("(a) with 19 receivers", "/s"), "c": ("(c) those 19, and one that hangs", "/s")},
    in_rounds=True,
)
def hanging_receiver(bench: Bench) -> None:
    count = _share(bench.plan.sizes.events, ENDPOINTS - 1)
    healthy, [hanging, *_] = bench.environment.targets(INSTANT, beside=HANG)[1:], bench.environment.targets(HANG)
    bench.step("(a) with 19 receivers, for (c)")
    bench.drain("c_without", healthy, count)
    bench.environment.servers.reset()
    bench.step("(c) 20 receivers, of which one hangs")
    note = f"{count:,} events to healthy ones, {count // len(healthy):,} to the hanging one"
    bench.drain("c", healthy, count, hanging=hanging, note=note)


@ROWS.row(
    "events",
    "(a) with task events on, which nobody reads",
    {
        "events": ("(a) with task events on", "/s"),
        "events_cpu_workers": ("CPU per delivery, task events on: workers", "µs"),
    },
    in_rounds=True,
)
def task_events(bench: Bench) -> None:
    bench.step("(a) with task events on")
    workers = Workers(options=("--task-events",))
    drain = bench.drain("events", bench.environment.targets(), bench.plan.sizes.events, workers)
    bench.take_cpu("events_cpu_", drain.part, "workers")


@ROWS.row(
    "flower",
    "(a) and the plain Celery worker with Flower open, its task page read every two seconds",
    {
        "flower": ("(a) with Flower open", "/s"),
        "flower_plain": ("plain Celery worker with Flower open", "/s"),
        "flower_cpu_workers": ("CPU per delivery, Flower open: workers", "µs"),
        "flower_cpu_flower": ("CPU per delivery, Flower open: Flower", "µs"),
    },
    in_rounds=True,
)
def flower_open(bench: Bench) -> None:
    environment = bench.environment
    bench.step("(a) with Flower open")
    with environment.flower(environment.product) as flower:
        drain = bench.drain("flower", environment.targets(), bench.plan.sizes.events, also={"flower": flower})
    bench.take_cpu("flower_cpu_", drain.part, "workers", "flower")
    environment.servers.reset()
    bench.step("plain Celery worker with Flower open")
    with environment.flower(environment.plain) as flower:
        bench.drain_plain("flower_plain", also={"flower": flower})


@ROWS.row(
    "rabbitmq",
    "(a) with RabbitMQ for a broker, which has no lanes",
    {
        "rabbitmq": ("(a) with RabbitMQ", "/s"),
        "rabbitmq_cpu_workers": ("CPU per delivery, RabbitMQ: workers", "µs"),
    },
    in_rounds=True,
)
def rabbitmq(bench: Bench) -> None:
    bench.step("(a) with RabbitMQ")
    with bench.environment.rabbitmq() as settings:
        workers = Workers(settings=settings)
        drain = bench.drain("rabbitmq", bench.environment.targets(), bench.plan.sizes.events, workers)
    bench.take_cpu("rabbitmq_cpu_", drain.part, "workers")


@ROWS.row(
    "tls",
    "250 endpoints at TLS hosts of their own with 5 ms of latency, and at one plain host without",
    {
        "one_host": ("250 endpoints at one plain host", "/s"),
        "tls": ("250 endpoints at 250 TLS hosts, 5 ms", "/s"),
        "one_host_cpu_workers": ("CPU per delivery, one plain host: workers", "µs"),
        "tls_cpu_workers": ("CPU per delivery, 250 TLS hosts: workers", "µs"),
        "tls_cpu_receiver": ("CPU per delivery, 250 TLS hosts: receiver", "µs"),
    },
    in_rounds=True,
)
def tls_hosts(bench: Bench) -> None:
    environment, endpoints = bench.environment, bench.plan.sizes.tls_endpoints
    count = max(1, bench.plan.sizes.events // endpoints) * endpoints
    hosts = environment.tls_hosts(endpoints)
    bench.step(f"{endpoints} endpoints at one plain host")
    url = environment.targets(beside=NEAR)[0].url
    drain = bench.drain("one_host", [Target(url) for _ in range(endpoints)], count)
    bench.take_cpu("one_host_cpu_", drain.part, "workers")
    environment.servers.reset()
    bench.step(f"{endpoints} endpoints at as many TLS hosts")
    drain = bench.drain("tls", [Target(url) for url in hosts.urls], count, hosts.workers)
    bench.take_cpu("tls_cpu_", drain.part, "workers", "receiver")
