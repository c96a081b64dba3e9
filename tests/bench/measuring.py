"""What a row is, and the steps that rows share.

A row is a function with the decorator `Rows.row`, which lists its figures. It gets a `Bench`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from tests.bench.environment import Environment, Workers
from tests.bench.events import Target
from tests.bench.measures import NOISE, STEADY, RowFailed, Sample, Steady, steady
from tests.bench.plan import EVENT_BYTES, Plan
from tests.bench.servers import LOGS, PLAIN_LOGS
from tests.bench.workers import Crew

MS, US, MB = 1e3, 1e6, 1 << 20
#: A log of a success: of the product, and of the plain worker.
_SUCCESS = {LOGS: {"attempt.outcome": "success"}, PLAIN_LOGS: {"status": {"$gte": 200, "$lt": 210}}}


class Definition(NamedTuple):
    text: str
    unit: str


@dataclass(frozen=True, slots=True)
class Row:
    text: str
    figures: Mapping[str, Definition]
    measure: Callable[["Bench"], None]
    #: Whether it is compared with other rows, and so measured once in each round, in turn with them.
    in_rounds: bool
    #: Whether it is measured only on request, as it takes minutes.
    extra: bool


class Rows(dict[str, Row]):
    """The rows of a module by name, in the order in which they are measured and printed."""

    def row(
        self,
        name: str,
        text: str,
        figures: Mapping[str, tuple[str, str]],
        *,
        in_rounds: bool = False,
        extra: bool = False,
    ) -> Callable[[Callable[["Bench"], None]], None]:
        """Make a function a row.

        Args:
            name: for ``--only``.
            text: for ``--help``.
            figures: key → text and unit of everything that it takes.
            in_rounds: see `Row`.
            extra: see `Row`.
        """

        def add(measure: Callable[["Bench"], None]) -> None:
            defined = {key: Definition(*both) for key, both in figures.items()}
            self[name] = Row(text, defined, measure, in_rounds, extra)

        return add


@dataclass(frozen=True, slots=True)
class Run:
    """One queue that was worked off once."""

    #: The key of the figure that has its rate.
    row: str
    #: From 1.
    round: int
    events: int
    per_s: float
    #: Seconds of the part whose rate was taken.
    seconds: float
    #: CPU seconds per second of processes outside the benchmark.
    others: float
    #: CPU seconds per delivery, by part.
    cpu_s: Mapping[str, float]
    #: Seconds since the first sample → logs, of every sample.
    logged: tuple[tuple[float, int], ...]


class Progress(Protocol):
    """Shows how a run goes."""

    def step(self, text: str) -> None: ...
    def now(self, text: str) -> None:
        """Say how far it is; called often."""


@dataclass(slots=True)
class Results:
    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, str] = field(default_factory=dict)
    #: Row → why it failed.
    failures: dict[str, str] = field(default_factory=dict)
    #: Row → why it cannot be measured here.
    absences: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


class Drain(NamedTuple):
    """A queue that was filled and worked off."""

    part: Steady
    #: Of each worker, before it ended.
    memory_bytes: list[int]
    #: Per event in the queue.
    redis_bytes: float
    #: CPU seconds of Valkey per event that was queued.
    queueing_cpu_s: float
    #: Bytes between workers and each server, per delivery, both ways.
    traffic: Mapping[str, float]


@dataclass(slots=True)
class Bench:
    plan: Plan
    environment: Environment
    progress: Progress
    results: Results
    round: int = 1

    def step(self, text: str, *, in_rounds: bool = True) -> None:
        rounds = self.plan.sizes.rounds
        self.progress.step(f"{text}, round {self.round} of {rounds}" if in_rounds and rounds > 1 else text)

    def rounds(self) -> Iterator[int]:
        for number in range(1, self.plan.sizes.rounds + 1):
            self.round = number
            yield number

    def take(self, key: str, *values: float, note: str = "") -> None:
        self.results.samples[key].extend(values)
        if note:
            self.results.notes[key] = note

    def take_rate(self, key: str, samples: Sequence[Sample], first: float, last: float, note: str) -> Steady:
        """Take the rate from one count of logs to another."""
        part, begun = steady(samples, first, last), samples[0].at
        logged = tuple((round(sample.at - begun, 3), sample.logged) for sample in samples)
        events = samples[-1].logged
        self.results.runs.append(
            Run(key, self.round, events, part.per_s, part.seconds, part.others, part.cpu_s, logged)
        )
        if part.others > NOISE:
            self.progress.step(f"other programs used {part.others:.0%} of a core meanwhile")
        self.take(key, part.per_s, note=note)
        return part

    def take_cpu(self, prefix: str, part: Steady, *names: str) -> None:
        """Take the CPU time per delivery of parts, as far as it is known."""
        for name in names:
            if name in part.cpu_s:
                self.take(f"{prefix}{name}", part.cpu_s[name] * US)

    def drain(
        self,
        key: str,
        targets: Sequence[Target],
        count: int,
        workers: Workers | None = None,
        *,
        note: str = "",
        hanging: Target | None = None,
        also: Mapping[str, Crew] | None = None,
    ) -> Drain:
        """Fill a queue, then start workers, and take the rate at which they work it off.

        Args:
            key: of the figure.
            targets: get the same number of events each.
            count: events.
            workers: which; None: those of the plan.
            note: of the figure.
            hanging: gets as many events as each other target beside, which are not counted.
            also: what runs beside, by the name of its CPU time.
        """
        environment, servers, workers = self.environment, self.environment.servers, workers or Workers()
        lines = environment.prepare([*targets, *([hanging] if hanging else [])], EVENT_BYTES)
        bytes_before, cpu_before, logs_before = servers.redis_bytes(), environment.server_cpu_s(), servers.logged(LOGS)
        queued = count + (count // len(targets) if hanging else 0)
        environment.queue(environment.product, lines, queued, workers.settings)
        redis_bytes = servers.redis_bytes() - bytes_before
        queueing_cpu_s = environment.server_cpu_s().get("valkey", 0.0) - cpu_before.get("valkey", 0.0)
        traffic_before = servers.traffic_bytes()
        not_counted = {"company": hanging.company} if hanging else None

        def logged() -> int:
            uncounted = servers.count(LOGS, not_counted) if not_counted else 0
            return max(0, servers.logged(LOGS) - logs_before - uncounted)

        with environment.workers(workers) as crew:
            samples = environment.watch(crew, logged, count, tell=self.progress.now, also=also)
            memory, traffic = crew.memory_bytes(), servers.traffic_bytes()
        self.require(count, {"company": {"$in": [target.company for target in targets]}})
        part = self.take_rate(key, samples, STEADY[0] * count, STEADY[1] * count, note or f"{count:,} events")
        each = {name: (total - traffic_before[name]) / count for name, total in traffic.items()}
        return Drain(part, memory, redis_bytes / queued, queueing_cpu_s / queued, each)

    def watch(
        self, crew: Crew, enough: int, collection: str = LOGS, also: Mapping[str, Crew] | None = None
    ) -> list[Sample]:
        """Take samples until a collection has this many logs."""
        environment = self.environment
        return environment.watch(
            crew, lambda: environment.servers.logged(collection), enough, tell=self.progress.now, also=also
        )

    def drain_plain(self, key: str, also: Mapping[str, Crew] | None = None) -> Drain:
        """As `drain`, with the plain worker."""
        environment, count = self.environment, self.plan.sizes.plain_events
        lines = environment.write_events(environment.targets(), EVENT_BYTES)
        environment.queue(environment.plain, lines, count)
        with environment.plain_worker() as crew:
            samples = self.watch(crew, count, PLAIN_LOGS, also)
            memory = crew.memory_bytes()
        self.require(count, {}, PLAIN_LOGS)
        note = f"prefork -c {self.plan.workers}, {count:,} events"
        return Drain(self.take_rate(key, samples, STEADY[0] * count, STEADY[1] * count, note), memory, 0, 0, {})

    def require(self, count: int, query: Mapping[str, Any], collection: str = LOGS) -> None:
        """Make sure that each event has its log of success, and that there is no other log."""
        servers = self.environment.servers
        succeeded = servers.count(collection, {**_SUCCESS[collection], **query})
        found = servers.count(collection, query)
        if (succeeded, found) != (count, count):
            raise RowFailed(f"{count:,} events were queued, and left {found:,} logs, {succeeded:,} of them of success")
