"""The metrics: their names, and how they are made of counts and of what the servers tell.

Metrics of a worker are added up over workers. Metrics of the system are the same from each process that tells them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from webhooks.delivery.meters import NONE, EventResult, Fault, Histogram, Meters
from webhooks.metrics.broker import BrokerOverview, find_eviction_policy
from webhooks.metrics.system import System
from webhooks.rules.retry import Outcome
from webhooks.store.overview import Overview
from webhooks.version import __version__

_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "info": InfoMetricFamily,
}
#: What Prometheus's format adds to the name of a family.
_SUFFIXES = {"counter": "_total", "info": "_info"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    def family(self) -> Any:
        """Return its family, without values."""
        name = self.name.removesuffix(_SUFFIXES.get(self.kind, ""))
        return _FAMILIES[self.kind](name, self.help, labels=self.labels)


def _metrics(*rows: tuple[str, str, str, str]) -> dict[str, Metric]:
    return {name: Metric(name, kind, tuple(labels.split()), text) for name, kind, labels, text in rows}


#: Metrics of one worker.
WORKER = _metrics(
    ("webhooks_worker_info", "info", "worker version", "a running worker"),
    ("webhooks_worker_ready", "gauge", "", "1 if it takes messages and its leases are renewed, as `/ready`"),
    ("webhooks_events_total", "counter", "result", "events that it accepted or refused"),
    ("webhooks_attempts_total", "counter", "outcome status_class error_kind", "attempts, by how they ended"),
    ("webhooks_attempt_duration_seconds", "histogram", "outcome", "time of an attempt"),
    ("webhooks_attempt_phase_duration_seconds", "histogram", "phase", "time of a phase; one that is reused has none"),
    ("webhooks_first_attempt_delay_seconds", "histogram", "", "from acceptance to the start of the first attempt"),
    ("webhooks_delivery_duration_seconds", "histogram", "outcome", "from acceptance to the end of the last attempt"),
    ("webhooks_attempts_in_flight", "gauge", "", "attempts in flight"),
    ("webhooks_attempts_in_flight_limit", "gauge", "", "maximum of that, from `WEBHOOKS_CONCURRENCY`"),
    ("webhooks_webhook_attempts_total", "counter", "webhook outcome", "attempts of 20 busy webhooks, and of `other`"),
    ("webhooks_faults_total", "counter", "kind", "faults of its own"),
)  # fmt: skip
#: Metrics of the whole system.
SYSTEM = _metrics(
    ("webhooks_up", "gauge", "server", "1 if `broker` or `mongodb` answers this process"),
    ("webhooks_queue_messages", "gauge", "queue state", "messages: `waiting`, `unacked` and `delayed`"),
    ("webhooks_queue_oldest_seconds", "gauge", "queue", "age of the oldest waiting message"),
    ("webhooks_queue_lanes", "gauge", "queue", "lanes that have messages"),
    ("webhooks_queue_lanes_blocked", "gauge", "queue", "lanes that wait: window in use, rate limit, or `Retry-After`"),
    ("webhooks_webhook_messages_waiting", "gauge", "webhook", "waiting attempts of the busy webhooks of a worker"),
    ("webhooks_webhook_in_flight", "gauge", "webhook", "their attempts in flight, over all workers"),
    ("webhooks_webhook_window", "gauge", "webhook", "their concurrency windows"),
    ("webhooks_redis_memory_bytes", "gauge", "", "memory that Redis uses"),
    ("webhooks_redis_memory_limit_bytes", "gauge", "", "its `maxmemory`; 0: none"),
    ("webhooks_redis_evicted_keys_total", "counter", "", "keys that it evicted since its start"),
    ("webhooks_redis_may_evict", "gauge", "", "1 if its `maxmemory-policy` is not `noeviction`"),
    ("webhooks_pending_deliveries", "gauge", "", "pending deliveries, held ones included"),
    ("webhooks_held_deliveries", "gauge", "", "held deliveries, up to 100,000"),
    ("webhooks_oldest_pending_seconds", "gauge", "", "age of the oldest pending delivery, held ones included"),
    ("webhooks_overdue_seconds", "gauge", "", "how long the longest due delivery has been due; held ones are not"),
    ("webhooks_outbox_events", "gauge", "", "events in the outbox"),
    ("webhooks_endpoints", "gauge", "state by", "webhooks by state, and by whom; deactivated ones count as `open`"),
    ("webhooks_dead_letters", "gauge", "", "dead letters, up to 100,000"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker tells of itself beside its counts."""

    name: str
    is_ready: bool
    #: None for a pool that does not tell.
    in_flight: int | None
    limit: int


class _Collector(Collector):
    def __init__(self, collect: Callable[[], Iterable[Any]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Any]:
        return self._collect()


def make_registry(collect: Callable[[], Iterable[Any]]) -> CollectorRegistry:
    """Return a registry whose metrics a function makes at each scrape."""
    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    return registry


def worker_families(meters: Meters, state: WorkerState) -> Iterator[Any]:
    """Make the metrics of a worker."""
    info = WORKER["webhooks_worker_info"].family()
    info.add_metric((), {"worker": state.name, "version": __version__})
    yield info
    yield _fill(WORKER["webhooks_worker_ready"], {(): state.is_ready})
    if state.in_flight is not None:
        yield _fill(WORKER["webhooks_attempts_in_flight"], {(): state.in_flight})
        yield _fill(WORKER["webhooks_attempts_in_flight_limit"], {(): state.limit})
    with meters.lock:
        yield from list(_read(meters))


def _read(meters: Meters) -> Iterator[Any]:
    # Counters that exist from the start, so that their first increase is one.
    attempts = {(Outcome.SUCCESS, "2xx", NONE): 0, (Outcome.FAILED, "5xx", NONE): 0, **meters.attempts}
    yield _fill(WORKER["webhooks_attempts_total"], attempts)
    yield _fill(WORKER["webhooks_events_total"], {(one,): meters.events[one] for one in EventResult})
    yield _fill(WORKER["webhooks_faults_total"], {(one,): meters.faults[one] for one in Fault})
    yield _fill_histograms(WORKER["webhooks_attempt_duration_seconds"], meters.durations)
    yield _fill_histograms(WORKER["webhooks_attempt_phase_duration_seconds"], meters.phases)
    yield _fill_histograms(WORKER["webhooks_first_attempt_delay_seconds"], {None: meters.first_waits})
    yield _fill_histograms(WORKER["webhooks_delivery_duration_seconds"], meters.lives)
    counts = {str(webhook_id): count for (_, webhook_id), count in meters.busiest.counts.items()}
    each = {**counts, "other": meters.busiest.others}
    values = {(name, outcome.value): count[outcome] for name, count in each.items() for outcome in Outcome}
    yield _fill(WORKER["webhooks_webhook_attempts_total"], values)


def system_families(system: System) -> Iterator[Any]:
    """Make the metrics of the system; those of a server that does not answer are absent, except `webhooks_up`."""
    up = {("broker",): system.broker is not None, ("mongodb",): system.database is not None}
    yield _fill(SYSTEM["webhooks_up"], up)
    if system.broker is not None:
        yield from _read_broker(system.broker)
    if system.database is not None:
        yield from _read_database(system.database)


def _read_broker(broker: BrokerOverview) -> Iterator[Any]:
    messages: dict[tuple[str, ...], float | None] = {}
    for one in broker.queues:
        states = {"waiting": one.waiting, "unacked": one.unacked, "delayed": one.delayed}
        messages |= {(one.queue, state): count for state, count in states.items()}
    yield _fill(SYSTEM["webhooks_queue_messages"], messages)
    told = [one for one in broker.queues if one.lanes is not None]
    yield _fill(SYSTEM["webhooks_queue_oldest_seconds"], {(one.queue,): one.oldest_s or 0 for one in told})
    yield _fill(SYSTEM["webhooks_queue_lanes"], {(one.queue,): one.lanes for one in told})
    yield _fill(SYSTEM["webhooks_queue_lanes_blocked"], {(one.queue,): one.blocked_lanes for one in told})
    for name, field in (("messages_waiting", "waiting"), ("in_flight", "in_flight"), ("window", "share")):
        values = {(webhook,): getattr(state, field) for webhook, state in broker.lanes.items()}
        yield _fill(SYSTEM[f"webhooks_webhook_{name}"], values)
    if facts := broker.facts:
        yield _fill(SYSTEM["webhooks_redis_memory_bytes"], {(): facts.get("used_memory")})
        yield _fill(SYSTEM["webhooks_redis_memory_limit_bytes"], {(): facts.get("maxmemory")})
        yield _fill(SYSTEM["webhooks_redis_evicted_keys_total"], {(): facts.get("evicted_keys")})
        yield _fill(SYSTEM["webhooks_redis_may_evict"], {(): find_eviction_policy(facts) != "noeviction"})


def _read_database(database: Overview) -> Iterator[Any]:
    yield _fill(SYSTEM["webhooks_pending_deliveries"], {(): database.pending})
    yield _fill(SYSTEM["webhooks_held_deliveries"], {(): database.held})
    yield _fill(SYSTEM["webhooks_oldest_pending_seconds"], {(): database.oldest_s})
    yield _fill(SYSTEM["webhooks_overdue_seconds"], {(): database.overdue_s})
    yield _fill(SYSTEM["webhooks_outbox_events"], {(): database.outbox})
    yield _fill(SYSTEM["webhooks_endpoints"], database.endpoints)
    yield _fill(SYSTEM["webhooks_dead_letters"], {(): database.dead_letters})


def _fill(metric: Metric, values: Any) -> Any:
    """Return a metric with its values by labels; None is left out."""
    family = metric.family()
    for labels, value in values.items():
        if value is not None:
            family.add_metric(labels, float(value))
    return family


def _fill_histograms(metric: Metric, histograms: Any) -> Any:
    """Return a metric with a histogram for each value of its one label; None for a metric without."""
    family = metric.family()
    for label, histogram in histograms.items():
        family.add_metric(() if label is None else (label,), _buckets(histogram), histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    buckets, sum_ = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        sum_ += count
        buckets.append((floatToGoString(bound), sum_))
    return buckets
