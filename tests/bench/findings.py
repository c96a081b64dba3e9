"""What a run found so far: every figure that there can be, the runs behind them, and why some are missing.

Owns the figures' names. Pure. Called by `measuring`, which brings the numbers, and `report`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.bench.measures import Figure
from tests.bench.plan import SCALE_WORKERS, SIZES
from tests.bench.receivers import Receiver


class Progress(Protocol):
    """Who is told how a run goes."""

    def begin(self, head: Sequence[Sequence[str]]) -> None:
        """Say what it runs on and with, in two columns."""

    def step(self, text: str) -> None:
        """Say what begins."""

    def now(self, text: str) -> None:
        """Say how far it has come, often."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a figure is."""

    text: str
    unit: str
    row: str


#: Every figure by its key, in the order in which people read them.
FIGURES = {
    "bare": Definition("bare requests loop, one core", "/s", "bare"),
    "plain": Definition("plain Celery worker", "/s", "plain"),
    "a": Definition("(a) instant receivers", "/s", "a"),
    "b": Definition("(b) receivers that take 100 ms", "/s", "b"),
    "c_without": Definition("(a) with 19 receivers", "/s", "c"),
    "c": Definition("(c) those 19, and one that hangs", "/s", "c"),
    "events": Definition("(a) with task events on", "/s", "events"),
    "flower": Definition("(a) with Flower open", "/s", "flower"),
    "rabbitmq": Definition("(a) with RabbitMQ", "/s", "rabbitmq"),
    "flower_plain": Definition("plain Celery worker with Flower open", "/s", "flower"),
    "latency_p50": Definition("deliver.delay to arrival, p50", "ms", "latency"),
    "latency_p99": Definition("deliver.delay to arrival, p99", "ms", "latency"),
    "plain_p50": Definition("plain Celery, likewise, p50", "ms", "latency"),
    "plain_p99": Definition("plain Celery, likewise, p99", "ms", "latency"),
    "enqueue_single": Definition("enqueue, one at a time", "/s", "enqueue"),
    "enqueue_bulk": Definition("enqueue, in bulk", "/s", "enqueue"),
    "plain_enqueue": Definition("plain Celery, one at a time", "/s", "enqueue"),
    "fanout_first": Definition("fan-out, to the first arrival", "ms", "fanout"),
    "fanout_last": Definition("fan-out, to the last arrival", "ms", "fanout"),
    "fanout_log": Definition("fan-out, to the last log", "ms", "fanout"),
    "depth_short": Definition("rate with a short queue", "/s", "depth"),
    "depth_long": Definition("rate with a long queue", "/s", "depth"),
    "depth_bytes": Definition("Redis, per small queued event", "bytes", "depth"),
    "cpu_workers": Definition("CPU per delivery of (a): workers", "µs", "a"),
    "cpu_valkey": Definition("CPU per delivery of (a): Valkey", "µs", "a"),
    "cpu_mongod": Definition("CPU per delivery of (a): mongod", "µs", "a"),
    "cpu_receiver": Definition("CPU per delivery of (a): receiver", "µs", "a"),
    "events_cpu_workers": Definition("CPU per delivery, task events on: workers", "µs", "events"),
    "rabbitmq_cpu_workers": Definition("CPU per delivery, RabbitMQ: workers", "µs", "rabbitmq"),
    "flower_cpu_workers": Definition("CPU per delivery, Flower open: workers", "µs", "flower"),
    "flower_cpu_flower": Definition("CPU per delivery, Flower open: Flower", "µs", "flower"),
    "plain_cpu_workers": Definition("CPU per delivery, plain: worker", "µs", "plain"),
    "plain_cpu_valkey": Definition("CPU per delivery, plain: Valkey", "µs", "plain"),
    "plain_cpu_mongod": Definition("CPU per delivery, plain: mongod", "µs", "plain"),
    "plain_cpu_receiver": Definition("CPU per delivery, plain: receiver", "µs", "plain"),
    "memory": Definition("memory of a worker after (a)", "MB", "a"),
    "plain_memory": Definition("memory of the plain worker", "MB", "plain"),
    "redis_bytes": Definition("Redis, per queued delivery of (a)", "bytes", "a"),
    "cpu_queueing": Definition("CPU per event queued for (a): Valkey", "µs", "a"),
    "traffic_redis": Definition("workers' traffic with Redis, per delivery of (a)", "bytes", "a"),
    "traffic_mongodb": Definition("workers' traffic with MongoDB, per delivery of (a)", "bytes", "a"),
    "log_bytes": Definition("MongoDB, a log of (a), before compression", "bytes", "a"),
    "log_index_bytes": Definition("MongoDB, a log of (a), its part of the indexes", "bytes", "a"),
    "waiting_redis": Definition("Redis, per delivery that waits for its retry", "bytes", "waiting"),
    "waiting_mongodb": Definition("MongoDB, the same, before compression", "bytes", "waiting"),
    **{
        f"scale_{count}{key}": Definition(f"{count} {'worker' if count == 1 else 'workers'}: {text}", unit, "scale")
        for count in SCALE_WORKERS
        for key, text, unit in (
            ("", "rate", "/s"),
            ("_ratio", "against one worker", "×"),
            ("_share", "of what receivers allow", "%"),
            ("_cores", "used by all programs of the run", "cores"),
        )
    },
    **{
        f"{size.key}_{key}": Definition(f"{size.text}: {text}", unit, "sizes")
        for size in SIZES
        for key, text, unit in (
            ("instant", "instant receivers", "/s"),
            ("slow", "receivers that take 100 ms", "/s"),
            ("cpu", "workers' CPU per delivery", "µs"),
            ("memory", "memory per process", "MB"),
        )
    },
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one system over a queue, as it was seen."""

    row: str
    #: From 1.
    round: int
    #: Logs that it was to make.
    events: int
    per_s: float
    #: Seconds of the part that the rate was taken in.
    seconds: float
    #: CPU seconds per second of processes that are no part of the benchmark.
    others: float
    #: CPU seconds per delivery, by part.
    cpu_s: Mapping[str, float]
    #: Seconds since the first look → logs, at every look.
    logged: tuple[tuple[float, int], ...]


@dataclass(slots=True)
class Findings:
    """What was found so far."""

    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    #: Figure → what took its requests.
    receivers: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    #: Row → why it failed.
    failures: dict[str, str] = field(default_factory=dict)
    #: Row → why it cannot be measured here.
    absences: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def figures(self, rows: Sequence[str]) -> list[Figure]:
        """Return the figures of these rows, in the order of reading; those that were not measured with a reason."""
        return [
            Figure(
                key,
                definition.text,
                definition.unit,
                tuple(self.samples.get(key, ())),
                self.receivers.get(key, ""),
                self.notes.get(key, ""),
                self.failures.get(definition.row),
                self.absences.get(definition.row),
            )
            for key, definition in FIGURES.items()
            if definition.row in rows
            and (self.samples.get(key) or definition.row in self.failures or key in self._first_of_absent())
        ]

    def _first_of_absent(self) -> set[str]:
        """Return one figure of each row that cannot be measured here: why not is said once."""
        return {next(key for key, definition in FIGURES.items() if definition.row == row) for row in self.absences}

    def take(self, key: str, receiver: Receiver | None, *values: float, note: str = "") -> None:
        """Note values of a figure."""
        self.samples[key].extend(values)
        if receiver is not None:
            self.receivers[key] = receiver.kind
        if note:
            self.notes[key] = note
