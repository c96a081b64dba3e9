"""What a run of the benchmark measures, and how much of each.

Pure. Called by `cli`, which makes a plan of options, and by `rows`.
"""

from dataclasses import dataclass, replace

#: What can be asked for with ``--only``, in the order of a run, and what it is.
ROWS = {
    "bare": "a loop of requests.Session.post",
    "plain": "a plain Celery worker",
    "a": "(a) instant receivers",
    "b": "(b) receivers that take 100 ms",
    "c": "(c) 20 receivers, of which one hangs",
    "events": "(a) with task events on, which nobody reads",
    "flower": "(a) and the plain Celery worker with Flower open, its task page read every two seconds",
    "rabbitmq": "(a) with RabbitMQ for a broker, which has no lanes",
    "latency": "time from deliver.delay to arrival",
    "enqueue": "enqueue rate of a producer",
    "fanout": "one event to many webhooks",
    "depth": "rate with a long queue against a short one",
    "waiting": "what a delivery takes up that waits for its retry",
    "scale": "workers in network namespaces of their own, more and more of them",
    "sizes": "processes and concurrency, for instant receivers and those that take 100 ms",
}
#: Those that are measured when they are asked for alone, as they take minutes.
EXTRA = ("sizes",)

#: Webhooks of a run, each of a company of its own, at an endpoint of its own.
ENDPOINTS = 20
#: Seconds that a receiver of (b) takes.
DELAY_S = 0.1
#: Bytes of an event's JSON, about; and of those of which there are many.
EVENT_BYTES, SMALL_EVENT_BYTES = 2048, 500
#: Workers of (scale), one after the other; and attempts of each at one time: so few that it waits for receivers most of
#: its time, and many such workers fit on one machine.
SCALE_WORKERS = (1, 2, 4, 8)
SCALE_CONCURRENCY = 2
#: Share of the full rate at which latency is measured.
LOAD = 0.1


@dataclass(frozen=True, slots=True)
class Size:
    """Worker processes, and attempts of each at one time."""

    processes: int
    concurrency: int

    @property
    def key(self) -> str:
        """What it is called in figures."""
        return f"sizes_{self.processes}x{self.concurrency}"

    @property
    def text(self) -> str:
        """What it is called by people."""
        return f"{self.processes} × {self.concurrency}"


#: What (sizes) measures.
SIZES = (
    Size(1, 16),
    Size(1, 64),
    Size(2, 16),
    Size(2, 32),
    Size(2, 64),
    Size(2, 128),
    Size(2, 256),
    Size(4, 64),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    #: How often what is compared is measured, one beside the other.
    rounds: int = 3
    #: Deliveries of each run of (a), (b) and (c).
    events: int = 15_000
    #: Deliveries of each run of the plain worker, which is slower.
    plain_events: int = 4_500
    bare_s: float = 5
    latency_s: float = 15
    #: Events that a producer hands in per round, one at a time and in bulk.
    enqueue_single: int = 4_000
    enqueue_bulk: int = 20_000
    fanout_webhooks: int = 1_000
    #: Queued events of the short and of the long queue.
    short_queue: int = 10_000
    long_queue: int = 1_000_000
    #: Deliveries that wait for their retry.
    waiting: int = 2_000
    #: Seconds of each run of (scale) and (sizes), about, and deliveries of it at most.
    grid_s: float = 10
    grid_events: int = 6_000


QUICK = Sizes(
    rounds=1,
    events=5_000,
    plain_events=1_500,
    bare_s=2,
    latency_s=5,
    enqueue_single=1_500,
    enqueue_bulk=6_000,
    short_queue=5_000,
    long_queue=50_000,
    waiting=500,
    grid_s=5,
    grid_events=2_000,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run."""

    rows: tuple[str, ...]
    sizes: Sizes
    workers: int
    #: Threads of each worker; None: the product's default.
    concurrency: int | None = None
    #: Servers that are there already; None: of the benchmark's own.
    broker_url: str | None = None
    mongodb_url: str | None = None


def sizes_of(*, is_quick: bool, events: int | None, queued: int | None) -> Sizes:
    """Return the sizes of a run.

    Args:
        is_quick: everything smaller.
        events: deliveries of each run of (a), (b) and (c); None: as the kind of run has it. The plain worker keeps its
            share of them.
        queued: events of the long queue; None: likewise.
    """
    sizes = QUICK if is_quick else Sizes()
    if events is not None:
        sizes = replace(sizes, events=events, plain_events=max(1, events * sizes.plain_events // sizes.events))
    if queued is not None:
        sizes = replace(sizes, long_queue=queued, short_queue=min(sizes.short_queue, queued))
    return sizes


def rows_of(only: tuple[str, ...], *, for_page: bool = False) -> tuple[str, ...]:
    """Return the rows of a run, in their order: all but the extra ones where nothing is asked for.

    Latency is measured at a share of the rate of (a), so that comes with it.

    Args:
        only: what is asked for.
        for_page: whether a capacity page is made of them, which needs the costs of (a).
    """
    wanted = set(only) or set(ROWS) - set(EXTRA)
    if for_page or "latency" in wanted:
        wanted.add("a")
    return tuple(row for row in ROWS if row in wanted)
