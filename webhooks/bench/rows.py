"""The rows of the benchmark: what is done for each figure, on a `stage`.

Owns which numbers are taken and how; their arithmetic is `measures`'s. A row that cannot be measured, or that lost
something, keeps its reason in place of its number, and the others go on.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bson import ObjectId
from redis.exceptions import RedisError

from webhooks.bench.events import Target
from webhooks.bench.measures import NOISE, STEADY, Figure, RowFailed, Sample, Steady, percentile, steady
from webhooks.bench.plan import ENDPOINTS, EVENT_BYTES, LOAD, SMALL_EVENT_BYTES, Plan
from webhooks.bench.producer import Handing
from webhooks.bench.stage import HANG, INSTANT, LOGS, PLAIN_LOGS, SLOW, Crew, Receiver, Stage
from webhooks.errors import CannotStart, StoreUnavailable

#: The part of the short queue in which its rate is taken: not its end, where nothing is queued any more.
_QUEUE_PART = (0.1, 0.6)
#: Bytes that a small queued event may take in memory and on the disk, at most.
_QUEUED_BYTES = 5_000
#: Share of the events of a latency run that are not counted: they find caches empty and connections closed.
_COLD = 0.1
#: Seconds for the last requests of a run to arrive.
_LATE_S = 20.0

_MS, _US, _MB = 1e3, 1e6, 1 << 20


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
    "plain_cpu_workers": Definition("CPU per delivery, plain: worker", "µs", "plain"),
    "plain_cpu_valkey": Definition("CPU per delivery, plain: Valkey", "µs", "plain"),
    "plain_cpu_mongod": Definition("CPU per delivery, plain: mongod", "µs", "plain"),
    "plain_cpu_receiver": Definition("CPU per delivery, plain: receiver", "µs", "plain"),
    "memory": Definition("memory of a worker after (a)", "MB", "a"),
    "plain_memory": Definition("memory of the plain worker", "MB", "plain"),
    "redis_bytes": Definition("Redis, per queued delivery of (a)", "bytes", "a"),
}
_PARTS = ("workers", "valkey", "mongod", "receiver")


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
            )
            for key, definition in FIGURES.items()
            if definition.row in rows and (self.samples.get(key) or definition.row in self.failures)
        ]

    def take(self, key: str, receiver: Receiver | None, *values: float, note: str = "") -> None:
        """Note values of a figure."""
        self.samples[key].extend(values)
        if receiver is not None:
            self.receivers[key] = receiver.kind
        if note:
            self.notes[key] = note


def measure(stage: Stage, plan: Plan, progress: Progress) -> Findings:
    """Measure all rows of a plan.

    What is compared is measured in turn, round by round, so that what else the machine does meets all of it.
    """
    return _Measuring(stage, plan, progress).run()


class _Measuring:
    def __init__(self, stage: Stage, plan: Plan, progress: Progress) -> None:
        self._stage = stage
        self._plan = plan
        self._sizes = plan.sizes
        self._progress = progress
        self._found = Findings()
        self._round = 0

    def run(self) -> Findings:
        """Measure."""
        compared: Mapping[str, Callable[[], None]] = {
            "bare": self._bare,
            "plain": self._plain,
            "a": self._a,
            "b": self._b,
            "c": self._c,
        }
        for _ in self._rounds():
            for row, measure_row in compared.items():
                self._try(row, measure_row)
        self._try("latency", self._latency)
        self._try("enqueue", self._enqueue)
        self._try("fanout", self._fanout)
        self._try("depth", self._depth)
        return self._found

    def _try(self, row: str, measure_row: Callable[[], None]) -> None:
        if row not in self._plan.rows or row in self._found.failures:
            return
        try:
            measure_row()
        except (RowFailed, CannotStart, StoreUnavailable, RedisError) as error:
            self._found.failures[row] = str(error)
            self._step(f"{row} failed: {error}")
        self._stage.reset()

    def _step(self, text: str) -> None:
        self._progress.step(text)

    def _rounds(self) -> Iterator[int]:
        for number in range(1, self._sizes.rounds + 1):
            self._round = number
            yield number

    def _in_round(self, text: str) -> str:
        return f"{text}, round {self._round} of {self._sizes.rounds}" if self._sizes.rounds > 1 else text

    # ── Rates ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _bare(self) -> None:
        self._step(self._in_round("bare requests loop"))
        receiver = self._stage.receiver(INSTANT)
        lines = self._stage.write_events(_targets(receiver, INSTANT), EVENT_BYTES)
        rate = self._stage.run_bare(receiver.url(0, INSTANT), lines, self._sizes.bare_s)
        self._found.take("bare", receiver, rate, note=f"{self._sizes.bare_s:g} s, one connection, no queue, no log")

    def _plain(self) -> None:
        self._step(self._in_round("plain Celery worker"))
        receiver, count = self._stage.receiver(INSTANT), self._sizes.plain_events
        lines = self._stage.write_events(_targets(receiver, INSTANT), EVENT_BYTES)
        self._stage.queue_plain(lines, count)
        with self._stage.plain_worker() as crew:
            samples = self._watch(crew, receiver, PLAIN_LOGS, count)
            memory = crew.memory_bytes()
        self._require(PLAIN_LOGS, {"status": {"$gte": 200, "$lt": 210}}, count)
        part = self._take_rate("plain", receiver, samples, count, f"prefork -c {self._plan.workers}, {count:,} events")
        self._take_cpu("plain_cpu_", receiver, part)
        processes = self._plan.workers + 1
        self._found.take(
            "plain_memory", None, sum(memory) / _MB, note=f"RSS of {processes} processes; shared pages count in each"
        )

    def _a(self) -> None:
        count = self._sizes.events
        self._step(self._in_round("(a) instant receivers"))
        receiver = self._stage.receiver(INSTANT)
        lines = self._prepare(_targets(receiver, INSTANT), EVENT_BYTES)
        before = self._stage.redis_bytes()
        self._stage.queue(lines, count)
        each = (self._stage.redis_bytes() - before) / count
        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, count)
            memory = crew.memory_bytes()
        self._require(LOGS, {"attempt.outcome": "success"}, count)
        part = self._take_rate("a", receiver, samples, count, f"{self._plan.workers} workers, {count:,} events")
        self._take_cpu("cpu_", receiver, part)
        self._found.take("memory", None, *(size / _MB for size in memory), note="RSS of each worker")
        self._found.take("redis_bytes", None, each, note=f"events of {EVENT_BYTES:,} bytes of JSON")

    def _b(self) -> None:
        self._step(self._in_round("(b) receivers that take 100 ms"))
        self._take_drain("b", self._stage.receiver(SLOW), SLOW, ENDPOINTS, self._sizes.events)

    def _c(self) -> None:
        healthy = _share(self._sizes.events, ENDPOINTS - 1)
        self._step(self._in_round("(a) with 19 receivers, for (c)"))
        receiver = self._stage.receiver(INSTANT, HANG)
        self._take_drain("c_without", receiver, INSTANT, ENDPOINTS - 1, healthy)
        self._stage.reset()
        self._step(self._in_round("(c) 20 receivers, of which one hangs"))
        targets = [*_targets(receiver, INSTANT)[:-1], Target(receiver.url(ENDPOINTS - 1, HANG))]
        hanging = {"company": targets[-1].company}
        lines = self._prepare(targets, EVENT_BYTES)
        self._stage.queue(lines, healthy * ENDPOINTS // (ENDPOINTS - 1))

        def logged() -> int:
            return max(0, self._stage.logged(LOGS) - self._stage.count(LOGS, hanging))

        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, healthy, logged)
        self._require(LOGS, {"attempt.outcome": "success"}, healthy, {"company": {"$ne": targets[-1].company}})
        note = f"{healthy:,} events to healthy ones, {healthy // (ENDPOINTS - 1):,} to the hanging one"
        self._take_rate("c", receiver, samples, healthy, note)

    def _take_drain(self, key: str, receiver: Receiver, path: str, endpoints: int, count: int) -> None:
        """Take the rate at which a queue of events for so many endpoints is worked off."""
        lines = self._prepare(_targets(receiver, path)[:endpoints], EVENT_BYTES)
        self._stage.queue(lines, count)
        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, count)
        self._require(LOGS, {"attempt.outcome": "success"}, count)
        self._take_rate(key, receiver, samples, count, f"{count:,} events")

    # ── Latency ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _latency(self) -> None:
        rates = self._found.samples["a"]
        if not rates:
            raise RowFailed("the rate of (a) is not known")
        per_s = LOAD * sorted(rates)[len(rates) // 2]
        count = max(20, int(per_s * self._sizes.latency_s))
        receiver = self._stage.own_receiver()
        targets = _targets(receiver, INSTANT)
        handing = Handing(count, per_s=per_s)
        within_s = self._sizes.latency_s * 3 + 60
        self._step(f"latency at {per_s:.0f} events/s")
        lines = self._prepare(targets, EVENT_BYTES)
        with self._stage.workers() as crew, self._clean_receiver():
            crew.wait_until_ready()
            self._stage.produce(lines, [handing], within_s)
            self._take_latency("latency", receiver, count, per_s)
        self._stage.reset()
        self._step(f"latency of plain Celery at {per_s:.0f} events/s")
        with self._stage.plain_worker() as crew, self._clean_receiver():
            crew.wait_until_ready()
            self._stage.produce_plain(lines, [handing], within_s)
            self._take_latency("plain", receiver, count, per_s)

    @contextmanager
    def _clean_receiver(self) -> Iterator[None]:
        """Have our receiver tell of nothing that came before, or comes after."""
        self._stage.arrivals()
        try:
            yield
        finally:
            self._stage.arrivals()

    def _take_latency(self, key: str, receiver: Receiver, count: int, per_s: float) -> None:
        arrived = self._await_arrivals(count)
        if len(arrived) != count:
            raise RowFailed(f"{len(arrived)} requests arrived, of {count}")
        took_ms = [(at - sent_at) * _MS for number, sent_at, at in arrived if number >= _COLD * count]
        note = f"{per_s:.0f} events/s, {len(took_ms):,} events"
        self._found.take(f"{key}_p50", receiver, percentile(took_ms, 50), note=note)
        self._found.take(f"{key}_p99", receiver, percentile(took_ms, 99), note=note)

    def _await_arrivals(self, count: int) -> list[tuple[int, float, float]]:
        arrived: list[tuple[int, float, float]] = []
        give_up_at = time.monotonic() + _LATE_S
        while True:
            arrived += self._stage.arrivals()
            if len(arrived) >= count or time.monotonic() > give_up_at:
                return arrived
            time.sleep(0.1)

    # ── Producers ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _enqueue(self) -> None:
        self._step("enqueue rate")
        sizes = self._sizes
        lines = self._stage.write_events(_targets(self._stage.receiver(INSTANT), INSTANT), EVENT_BYTES)
        handing = Handing(sizes.enqueue_single, bulk=sizes.enqueue_bulk, rounds=sizes.rounds, is_warm=True)
        within_s = 60 + sizes.rounds * (sizes.enqueue_single + sizes.enqueue_bulk) / 100
        [told] = self._stage.produce(lines, [handing], within_s)
        self._stage.reset()
        [plain] = self._stage.produce_plain(lines, [Handing(sizes.enqueue_single, rounds=sizes.rounds)], within_s)
        self._found.take(
            "enqueue_single", None, *told["single"], note=f"deliver.delay, {sizes.enqueue_single:,} events"
        )
        self._found.take("enqueue_bulk", None, *told["bulk"], note=f"deliver.delay_many, {sizes.enqueue_bulk:,} events")
        self._found.take("plain_enqueue", None, *plain["single"], note=f"{sizes.enqueue_single:,} events")

    # ── One event to many webhooks ──────────────────────────────────────────────────────────────────────────────────
    def _fanout(self) -> None:
        count = self._sizes.fanout_webhooks
        self._step(f"one event to {count:,} webhooks")
        receiver, company = self._stage.own_receiver(), ObjectId()
        targets = [Target(receiver.url(index, INSTANT), company) for index in range(count)]
        lines = self._prepare(targets, EVENT_BYTES)
        with self._stage.workers() as crew, self._clean_receiver():
            crew.wait_until_ready()
            # One more: the first finds caches empty and connections closed.
            for number in range(self._sizes.rounds + 1):
                took_s = self._fan_out(crew, receiver, lines, count, number)
                if number:
                    for key, seconds in took_s.items():
                        self._found.take(key, receiver, seconds * _MS, note=f"{count:,} webhooks")

    def _fan_out(self, crew: Crew, receiver: Receiver, lines: Path, count: int, number: int) -> dict[str, float]:
        before = number * count
        self._stage.produce(lines, [Handing(1, is_warm=True)], 60)
        samples = self._watch(crew, receiver, LOGS, before + count)
        arrived = self._await_arrivals(count)
        self._require(LOGS, {"attempt.outcome": "success"}, before + count)
        if len(arrived) != count:
            raise RowFailed(f"{len(arrived)} requests arrived, of {count}")
        sent_at = arrived[0][1]
        ats = [at for _, _, at in arrived]
        return {
            "fanout_first": min(ats) - sent_at,
            "fanout_last": max(ats) - sent_at,
            "fanout_log": samples[-1].at - sent_at,
        }

    # ── Queue depth ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _depth(self) -> None:
        sizes = self._sizes
        self._stage.require_room(sizes.long_queue, _QUEUED_BYTES)
        receiver = self._stage.receiver(INSTANT)
        targets = _targets(receiver, INSTANT)
        for _ in self._rounds():
            self._step(self._in_round(f"rate with {sizes.short_queue:,} queued"))
            lines = self._prepare(targets, SMALL_EVENT_BYTES)
            self._stage.queue(lines, sizes.short_queue)
            self._take_queue_rate("depth_short", receiver, sizes.short_queue)
            self._stage.reset()
        self._step(f"queueing {sizes.long_queue:,} events")
        lines = self._prepare(targets, SMALL_EVENT_BYTES)
        before = self._stage.redis_bytes()
        self._stage.queue(lines, sizes.long_queue)
        used = self._stage.redis_bytes() - before
        note = f"{used / _MB:,.0f} MB in all, events of {SMALL_EVENT_BYTES} bytes of JSON"
        self._found.take("depth_bytes", None, used / sizes.long_queue, note=note)
        for _ in self._rounds():
            self._step(self._in_round(f"rate with {sizes.long_queue:,} queued"))
            self._take_queue_rate("depth_long", receiver, sizes.long_queue)

    def _take_queue_rate(self, key: str, receiver: Receiver, queued: int) -> None:
        """Take the rate of the same number of deliveries, however many are queued."""
        first, last = (int(self._sizes.short_queue * share) for share in _QUEUE_PART)
        there = self._stage.logged(LOGS)
        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, there + last)
        part = steady(samples, there + first, there + last)
        self._note(key, receiver, samples, last, part, f"{queued:,} queued, {SMALL_EVENT_BYTES} bytes each")

    # ── What rows share ─────────────────────────────────────────────────────────────────────────────────────────────
    def _prepare(self, targets: Sequence[Target], size: int) -> Path:
        self._stage.add(targets)
        return self._stage.write_events(targets, size)

    def _watch(
        self, crew: Crew, receiver: Receiver, collection: str, count: int, logged: Callable[[], int] | None = None
    ) -> list[Sample]:
        return self._stage.watch(
            crew,
            logged or (lambda: self._stage.logged(collection)),
            count,
            receiver=receiver,
            tell=self._progress.now,
        )

    def _require(
        self, collection: str, is_success: Mapping[str, Any], count: int, of: Mapping[str, Any] | None = None
    ) -> None:
        """Make sure that each event has its log of success, and that there is no other log.

        Raises:
            RowFailed: it is not so.
        """
        of = of or {}
        succeeded, all_ = self._stage.count(collection, {**is_success, **of}), self._stage.count(collection, of)
        if (succeeded, all_) != (count, count):
            raise RowFailed(f"{count:,} events were queued, and left {all_:,} logs, {succeeded:,} of them of success")

    def _take_rate(self, key: str, receiver: Receiver, samples: Sequence[Sample], count: int, note: str) -> Steady:
        part = steady(samples, STEADY[0] * count, STEADY[1] * count)
        self._note(key, receiver, samples, count, part, note)
        return part

    def _note(
        self, key: str, receiver: Receiver, samples: Sequence[Sample], count: int, part: Steady, note: str
    ) -> None:
        begun = samples[0].at
        logged = tuple((round(sample.at - begun, 3), sample.logged) for sample in samples)
        self._found.runs.append(Run(key, self._round, count, part.per_s, part.seconds, part.others, part.cpu_s, logged))
        if part.others > NOISE:
            self._step(f"other programs used {part.others:.0%} of a core meanwhile")
        self._found.take(key, receiver, part.per_s, note=note)

    def _take_cpu(self, prefix: str, receiver: Receiver, part: Steady) -> None:
        for name in _PARTS:
            if name in part.cpu_s:
                self._found.take(f"{prefix}{name}", receiver if name == "receiver" else None, part.cpu_s[name] * _US)


def _targets(receiver: Receiver, path: str) -> list[Target]:
    return [Target(receiver.url(index, path)) for index in range(ENDPOINTS)]


def _share(count: int, endpoints: int) -> int:
    """Return how many events go to so many of the endpoints, when all get the same number."""
    return max(1, count // ENDPOINTS) * endpoints
