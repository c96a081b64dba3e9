"""What a run measures, and how much of it."""

from dataclasses import dataclass, replace

#: Webhooks of a run; each has its own company and endpoint.
ENDPOINTS = 20
#: Seconds that a receiver of (b) takes to answer.
DELAY_S = 0.1
#: Approximate bytes of an event's JSON: usually, and where a million are queued.
EVENT_BYTES, SMALL_EVENT_BYTES = 2048, 500


@dataclass(frozen=True, slots=True)
class Sizes:
    #: Rows that are compared are measured this often, in turn.
    rounds: int = 3
    #: Deliveries of each run of (a), (b) and (c), and of the plain worker, which is slower.
    events: int = 15_000
    plain_events: int = 4_500
    bare_s: float = 5
    latency_s: float = 15
    #: Events that a producer hands in per round, one at a time and in bulk.
    enqueue_single: int = 4_000
    enqueue_bulk: int = 20_000
    fanout_webhooks: int = 1_000
    tls_endpoints: int = 250
    short_queue: int = 10_000
    long_queue: int = 1_000_000
    #: Deliveries that wait for their retry.
    waiting: int = 10_000
    #: Approximate seconds of each run of (scale) and (sizes), and its maximum of deliveries.
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
    waiting=2_000,
    grid_s=5,
    grid_events=2_000,
)


@dataclass(frozen=True, slots=True)
class Plan:
    rows: tuple[str, ...]
    sizes: Sizes
    workers: int
    #: Attempts of each worker at a time; None: the product's default.
    concurrency: int | None = None
    #: Servers that already run; None: the benchmark starts its own.
    broker_url: str | None = None
    mongodb_url: str | None = None


def sizes_of(*, is_quick: bool, events: int | None, queued: int | None) -> Sizes:
    """Return the sizes of a run.

    Args:
        is_quick: everything smaller.
        events: deliveries of each run of (a), (b) and (c). The plain worker gets fewer in proportion.
        queued: events of the long queue.
    """
    sizes = QUICK if is_quick else Sizes()
    if events is not None:
        sizes = replace(sizes, events=events, plain_events=max(1, events * sizes.plain_events // sizes.events))
    if queued is not None:
        sizes = replace(sizes, long_queue=queued, short_queue=min(sizes.short_queue, queued))
    return sizes
