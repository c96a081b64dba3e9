"""The rows about the number of workers and their size.

(scale) gives each worker a network namespace, as if it had a host of its own, and so few attempts at a time that it
mostly waits for receivers. So it shows whether workers hinder each other in Redis, MongoDB or their own protocol. In
(sizes) the cores of the machine are the limit.
"""

from dataclasses import replace
from typing import NamedTuple

from tests.bench.environment import Workers, open_environment
from tests.bench.measures import STEADY
from tests.bench.measuring import MB, US, Bench, Rows
from tests.bench.network import NoNetwork
from tests.bench.plan import DELAY_S, EVENT_BYTES
from tests.bench.receivers import SLOW

ROWS = Rows()

#: Numbers of workers, one after another, and attempts of each at a time.
SCALE_WORKERS = (1, 2, 4, 8)
_SCALE_CONCURRENCY = 2
#: Minimum of deliveries for a rate.
_FEWEST = 200


class Size(NamedTuple):
    """Worker processes, and attempts of each at a time."""

    processes: int
    concurrency: int

    @property
    def key(self) -> str:
        return f"sizes_{self.processes}x{self.concurrency}"

    @property
    def text(self) -> str:
        return f"{self.processes} × {self.concurrency}"


SIZES = tuple(Size(*both) for both in ((1, 16), (1, 64), (2, 16), (2, 32), (2, 64), (2, 128), (2, 256), (4, 64)))


@ROWS.row(
    "scale",
    "workers in network namespaces of their own, more and more of them",
    {
        f"scale_{count}{key}": (f"{count} {'worker' if count == 1 else 'workers'}: {text}", unit)
        for count in SCALE_WORKERS
        for key, text, unit in (
            ("", "rate", "/s"),
            ("_ratio", "against one worker", "×"),
            ("_share", "of what receivers allow", "%"),
            ("_cores", "used by all programs of the run", "cores"),
        )
    },
)
def scale(bench: Bench) -> None:
    if bench.plan.broker_url is not None or bench.plan.mongodb_url is not None:
        raise NoNetwork("servers that are given do not stand at its bridge: leave them out")
    # Without the plan's concurrency: this row has its own.
    with open_environment(replace(bench.plan, concurrency=None), is_networked=True) as environment:
        bench = replace(bench, environment=environment)
        for count in SCALE_WORKERS:
            bench.step(f"workers in network namespaces of their own: {count}", in_rounds=False)
            _take_scale(bench, count)
            environment.servers.reset()


def _take_scale(bench: Bench, workers: int) -> None:
    environment = bench.environment
    # Deliveries per second with which these workers only wait for receivers.
    allowed = workers * _SCALE_CONCURRENCY / DELAY_S
    count = max(_FEWEST, int(allowed * bench.plan.sizes.grid_s))
    lines = environment.prepare(environment.targets(SLOW), EVENT_BYTES)
    with environment.workers(Workers(workers, _SCALE_CONCURRENCY)) as crew:
        # On one machine they take a while to start.
        crew.wait_until_ready()
        environment.queue(environment.product, lines, count)
        samples = bench.watch(crew, count)
    bench.require(count, {})
    done = samples[0].logged
    first, last = (done + share * (count - done) for share in STEADY)
    note = f"{_SCALE_CONCURRENCY} attempts at one time each, {count:,} events"
    part = bench.take_rate(f"scale_{workers}", samples, first, last, note)
    bench.take(f"scale_{workers}_ratio", part.per_s / bench.results.samples[f"scale_{SCALE_WORKERS[0]}"][0])
    bench.take(f"scale_{workers}_share", 100 * part.per_s / allowed)
    bench.take(f"scale_{workers}_cores", part.per_s * sum(part.cpu_s.values()))


@ROWS.row(
    "sizes",
    "processes and concurrency, for instant receivers and those that take 100 ms",
    {
        f"{size.key}_{key}": (f"{size.text}: {text}", unit)
        for size in SIZES
        for key, text, unit in (
            ("instant", "instant receivers", "/s"),
            ("slow", "receivers that take 100 ms", "/s"),
            ("cpu", "workers' CPU per delivery", "µs"),
            ("memory", "memory per process", "MB"),
        )
    },
    extra=True,
)
def sizes(bench: Bench) -> None:
    environment, limits = bench.environment, bench.plan.sizes
    for size in SIZES:
        workers = Workers(*size)
        bench.step(f"{size.text}, instant receivers", in_rounds=False)
        drain = bench.drain(f"{size.key}_instant", environment.targets(), limits.grid_events, workers)
        bench.take(f"{size.key}_cpu", drain.part.cpu_s["workers"] * US)
        bench.take(f"{size.key}_memory", sum(drain.memory_bytes) / size.processes / MB, note="RSS")
        environment.servers.reset()
        bench.step(f"{size.text}, receivers that take 100 ms", in_rounds=False)
        allowed = int(size.processes * size.concurrency / DELAY_S * limits.grid_s)
        count = max(_FEWEST, min(limits.grid_events, allowed))
        bench.drain(f"{size.key}_slow", environment.targets(SLOW), count, workers)
        environment.servers.reset()
