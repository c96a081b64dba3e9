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
    "latency": "time from deliver.delay to arrival",
    "enqueue": "enqueue rate of a producer",
    "fanout": "one event to many webhooks",
    "depth": "rate with a long queue against a short one",
}

#: Webhooks of a run, each of a company of its own, at an endpoint of its own.
ENDPOINTS = 20
#: Seconds that a receiver of (b) takes.
DELAY_S = 0.1
#: Bytes of an event's JSON, about; and of those of which there are many.
EVENT_BYTES, SMALL_EVENT_BYTES = 2048, 500
#: Share of the full rate at which latency is measured.
LOAD = 0.1


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


def rows_of(only: tuple[str, ...]) -> tuple[str, ...]:
    """Return the rows of a run, in their order: all where nothing is asked for.

    Latency is measured at a share of the rate of (a), so that comes with it.
    """
    wanted = set(only or ROWS) | ({"a"} if "latency" in only else set())
    return tuple(row for row in ROWS if row in wanted)
