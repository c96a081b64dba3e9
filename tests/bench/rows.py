"""The rows of the benchmark that compare: what is done for each figure, on a `stage`.

Owns which numbers are taken and how; their arithmetic is `measures`'s. What tells how to size and to scale is
`sizing`'s.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bson import ObjectId

from tests.bench.crew import Crew
from tests.bench.events import Target
from tests.bench.findings import Findings, Progress
from tests.bench.measures import RowFailed, Steady, percentile, steady
from tests.bench.measuring import MB, MS, SUCCESS, US, Measuring, targets_of
from tests.bench.plan import ENDPOINTS, EVENT_BYTES, LOAD, SMALL_EVENT_BYTES, Plan
from tests.bench.producer import Handing
from tests.bench.receivers import HANG, INSTANT, SLOW, Receiver
from tests.bench.servers import LOGS, OWED, PLAIN_LOGS
from tests.bench.sizing import measure_sizing
from tests.bench.stage import Stage
from webhooks.local.servers import LOOPBACK, free_port

#: The part of the short queue in which its rate is taken: not its end, where nothing is queued any more.
_QUEUE_PART = (0.1, 0.6)
#: Bytes that a small queued event may take in memory and on the disk, at most.
_QUEUED_BYTES = 5_000
#: Share of the events of a latency run that are not counted: they find caches empty and connections closed.
_COLD = 0.1
#: Seconds for the last requests of a run to arrive.
_LATE_S = 20.0


def measure(stage: Stage, plan: Plan, progress: Progress) -> Findings:
    """Measure all rows of a plan.

    What is compared is measured in turn, round by round, so that what else the machine does meets all of it.
    """
    found = Findings()
    _Rows(stage, plan, progress, found).run()
    measure_sizing(stage, plan, progress, found)
    return found


class _Rows(Measuring):
    def run(self) -> None:
        """Measure."""
        compared: Mapping[str, Callable[[], None]] = {
            "bare": self._bare,
            "plain": self._plain,
            "a": self._a,
            "b": self._b,
            "c": self._c,
            "events": self._events,
            "flower": self._flower,
            "rabbitmq": self._rabbitmq,
        }
        for _ in self._rounds():
            for row, measure_row in compared.items():
                self._try(row, measure_row)
        self._try("latency", self._latency)
        self._try("enqueue", self._enqueue)
        self._try("fanout", self._fanout)
        self._try("depth", self._depth)
        self._try("waiting", self._waiting)

    # ── Rates ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _bare(self) -> None:
        self._step(self._in_round("bare requests loop"))
        receiver = self._stage.receivers.find(INSTANT)
        lines = self._stage.write_events(targets_of(receiver, INSTANT), EVENT_BYTES)
        rate = self._stage.run_bare(receiver.url(0, INSTANT), lines, self._sizes.bare_s)
        self._found.take("bare", receiver, rate, note=f"{self._sizes.bare_s:g} s, one connection, no queue, no log")

    def _plain(self) -> None:
        self._step(self._in_round("plain Celery worker"))
        receiver, count = self._stage.receivers.find(INSTANT), self._sizes.plain_events
        lines = self._stage.write_events(targets_of(receiver, INSTANT), EVENT_BYTES)
        self._stage.queue_plain(lines, count)
        with self._stage.plain_worker() as crew:
            samples = self._watch(crew, receiver, PLAIN_LOGS, count)
            memory = crew.memory_bytes()
        self._require(PLAIN_LOGS, {"status": {"$gte": 200, "$lt": 210}}, count)
        part = self._take_rate("plain", receiver, samples, count, f"prefork -c {self._plan.workers}, {count:,} events")
        self._take_cpu("plain_cpu_", receiver, part)
        processes = self._plan.workers + 1
        self._found.take(
            "plain_memory", None, sum(memory) / MB, note=f"RSS of {processes} processes; shared pages count in each"
        )

    def _a(self) -> None:
        count = self._sizes.events
        self._step(self._in_round("(a) instant receivers"))
        servers = self._stage.servers
        receiver = self._stage.receivers.find(INSTANT)
        lines = self._stage.prepare(targets_of(receiver, INSTANT), EVENT_BYTES)
        bytes_before, cpu_before = servers.redis_bytes(), self._stage.server_cpu_s()
        self._stage.queue(lines, count)
        each = (servers.redis_bytes() - bytes_before) / count
        cpu_s = self._stage.server_cpu_s().get("valkey", 0.0) - cpu_before.get("valkey", 0.0)
        traffic_before = servers.traffic_bytes()
        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, count)
            memory = crew.memory_bytes()
            traffic = servers.traffic_bytes()
        self._require(LOGS, SUCCESS, count)
        part = self._take_rate("a", receiver, samples, count, f"{self._plan.workers} workers, {count:,} events")
        self._take_cpu("cpu_", receiver, part)
        note = f"events of {EVENT_BYTES:,} bytes of JSON"
        self._found.take("memory", None, *(size / MB for size in memory), note="RSS of each worker")
        self._found.take("redis_bytes", None, each, note=note)
        for name, total in traffic.items():
            self._found.take(f"traffic_{name}", None, (total - traffic_before[name]) / count, note="both ways")
        self._found.take("log_bytes", None, servers.document_bytes(LOGS) / count, note=note)
        if "valkey" in servers.pids:
            self._found.take("cpu_queueing", None, cpu_s / count * US, note="in bulk")
        if "mongod" in servers.pids:
            self._found.take("log_index_bytes", None, servers.index_bytes(LOGS) / count, note=f"of {count:,} logs")

    def _b(self) -> None:
        self._step(self._in_round("(b) receivers that take 100 ms"))
        self._take_drain("b", self._stage.receivers.find(SLOW), SLOW, ENDPOINTS, self._sizes.events)

    def _c(self) -> None:
        healthy = _share(self._sizes.events, ENDPOINTS - 1)
        self._step(self._in_round("(a) with 19 receivers, for (c)"))
        receiver = self._stage.receivers.find(INSTANT, HANG)
        self._take_drain("c_without", receiver, INSTANT, ENDPOINTS - 1, healthy)
        self._stage.servers.reset()
        self._step(self._in_round("(c) 20 receivers, of which one hangs"))
        targets = [*targets_of(receiver, INSTANT)[:-1], Target(receiver.url(ENDPOINTS - 1, HANG))]
        hanging = {"company": targets[-1].company}
        lines = self._stage.prepare(targets, EVENT_BYTES)
        self._stage.queue(lines, healthy * ENDPOINTS // (ENDPOINTS - 1))

        def logged() -> int:
            return max(0, self._stage.servers.logged(LOGS) - self._stage.servers.count(LOGS, hanging))

        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, healthy, logged)
        self._require(LOGS, SUCCESS, healthy, {"company": {"$ne": targets[-1].company}})
        note = f"{healthy:,} events to healthy ones, {healthy // (ENDPOINTS - 1):,} to the hanging one"
        self._take_rate("c", receiver, samples, healthy, note)

    def _events(self) -> None:
        self._step(self._in_round("(a) with task events on"))
        receiver = self._stage.receivers.find(INSTANT)
        part = self._take_drain("events", receiver, INSTANT, ENDPOINTS, self._sizes.events, options=("--task-events",))
        self._take_cpu("events_cpu_", receiver, part, ("workers",))

    def _flower(self) -> None:
        self._step(self._in_round("(a) with Flower open"))
        receiver, sizes = self._stage.receivers.find(INSTANT), self._sizes
        with self._stage.flower() as flower:
            part = self._take_drain("flower", receiver, INSTANT, ENDPOINTS, sizes.events, also={"flower": flower})
        self._take_cpu("flower_cpu_", receiver, part, ("workers", "flower"))
        self._stage.servers.reset()
        self._step(self._in_round("plain Celery worker with Flower open"))
        lines = self._stage.write_events(targets_of(receiver, INSTANT), EVENT_BYTES)
        self._stage.queue_plain(lines, sizes.plain_events)
        with self._stage.plain_flower(), self._stage.plain_worker() as crew:
            samples = self._watch(crew, receiver, PLAIN_LOGS, sizes.plain_events)
        self._take_rate("flower_plain", receiver, samples, sizes.plain_events, f"{sizes.plain_events:,} events")

    def _rabbitmq(self) -> None:
        self._step(self._in_round("(a) with RabbitMQ"))
        receiver = self._stage.receivers.find(INSTANT)
        with self._stage.rabbitmq() as settings:
            part = self._take_drain("rabbitmq", receiver, INSTANT, ENDPOINTS, self._sizes.events, settings=settings)
        self._take_cpu("rabbitmq_cpu_", receiver, part, ("workers",))

    def _take_drain(
        self,
        key: str,
        receiver: Receiver,
        path: str,
        endpoints: int,
        count: int,
        *,
        options: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        also: Mapping[str, Crew] | None = None,
    ) -> Steady:
        """Take the rate at which a queue of events for so many endpoints is worked off.

        Args:
            key: of the figure.
            receiver: who takes them.
            path: likewise, at the receiver.
            endpoints: how many.
            count: events.
            options: of Celery's workers.
            settings: that are not as in the rest of the run; None: there are none.
            also: who works beside, and what its part of the CPU time is called.
        """
        lines = self._stage.prepare(targets_of(receiver, path)[:endpoints], EVENT_BYTES)
        self._stage.queue(lines, count, settings)
        with self._stage.workers(settings=settings, options=options) as crew:
            samples = self._watch(crew, receiver, LOGS, count, also=also)
        self._require(LOGS, SUCCESS, count)
        return self._take_rate(key, receiver, samples, count, f"{count:,} events")

    # ── Latency ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _latency(self) -> None:
        rates = self._found.samples["a"]
        if not rates:
            raise RowFailed("the rate of (a) is not known")
        per_s = LOAD * sorted(rates)[len(rates) // 2]
        count = max(20, int(per_s * self._sizes.latency_s))
        receiver = self._stage.receivers.own()
        targets = targets_of(receiver, INSTANT)
        handing = Handing(count, per_s=per_s)
        within_s = self._sizes.latency_s * 3 + 60
        self._step(f"latency at {per_s:.0f} events/s")
        lines = self._stage.prepare(targets, EVENT_BYTES)
        with self._stage.workers() as crew, self._clean_receiver():
            crew.wait_until_ready()
            self._stage.produce(lines, [handing], within_s)
            self._take_latency("latency", receiver, count, per_s)
        self._stage.servers.reset()
        self._step(f"latency of plain Celery at {per_s:.0f} events/s")
        with self._stage.plain_worker() as crew, self._clean_receiver():
            crew.wait_until_ready()
            self._stage.produce_plain(lines, [handing], within_s)
            self._take_latency("plain", receiver, count, per_s)

    @contextmanager
    def _clean_receiver(self) -> Iterator[None]:
        """Have our receiver tell of nothing that came before, or comes after."""
        self._stage.receivers.arrivals()
        try:
            yield
        finally:
            self._stage.receivers.arrivals()

    def _take_latency(self, key: str, receiver: Receiver, count: int, per_s: float) -> None:
        arrived = self._await_arrivals(count)
        if len(arrived) != count:
            raise RowFailed(f"{len(arrived)} requests arrived, of {count}")
        took_ms = [(at - sent_at) * MS for number, sent_at, at in arrived if number >= _COLD * count]
        note = f"{per_s:.0f} events/s, {len(took_ms):,} events"
        self._found.take(f"{key}_p50", receiver, percentile(took_ms, 50), note=note)
        self._found.take(f"{key}_p99", receiver, percentile(took_ms, 99), note=note)

    def _await_arrivals(self, count: int) -> list[tuple[int, float, float]]:
        arrived: list[tuple[int, float, float]] = []
        give_up_at = time.monotonic() + _LATE_S
        while True:
            arrived += self._stage.receivers.arrivals()
            if len(arrived) >= count or time.monotonic() > give_up_at:
                return arrived
            time.sleep(0.1)

    # ── Producers ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _enqueue(self) -> None:
        self._step("enqueue rate")
        sizes = self._sizes
        lines = self._stage.write_events(targets_of(self._stage.receivers.find(INSTANT), INSTANT), EVENT_BYTES)
        handing = Handing(sizes.enqueue_single, bulk=sizes.enqueue_bulk, rounds=sizes.rounds, is_warm=True)
        within_s = 60 + sizes.rounds * (sizes.enqueue_single + sizes.enqueue_bulk) / 100
        [told] = self._stage.produce(lines, [handing], within_s)
        self._stage.servers.reset()
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
        receiver, company = self._stage.receivers.own(), ObjectId()
        targets = [Target(receiver.url(index, INSTANT), company) for index in range(count)]
        lines = self._stage.prepare(targets, EVENT_BYTES)
        with self._stage.workers() as crew, self._clean_receiver():
            crew.wait_until_ready()
            # One more: the first finds caches empty and connections closed.
            for number in range(self._sizes.rounds + 1):
                took_s = self._fan_out(crew, receiver, lines, count, number)
                if number:
                    for key, seconds in took_s.items():
                        self._found.take(key, receiver, seconds * MS, note=f"{count:,} webhooks")

    def _fan_out(self, crew: Crew, receiver: Receiver, lines: Path, count: int, number: int) -> dict[str, float]:
        before = number * count
        self._stage.produce(lines, [Handing(1, is_warm=True)], 60)
        samples = self._watch(crew, receiver, LOGS, before + count)
        arrived = self._await_arrivals(count)
        self._require(LOGS, SUCCESS, before + count)
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
        receiver = self._stage.receivers.find(INSTANT)
        targets = targets_of(receiver, INSTANT)
        for _ in self._rounds():
            self._step(self._in_round(f"rate with {sizes.short_queue:,} queued"))
            lines = self._stage.prepare(targets, SMALL_EVENT_BYTES)
            self._stage.queue(lines, sizes.short_queue)
            self._take_queue_rate("depth_short", receiver, sizes.short_queue)
            self._stage.servers.reset()
        self._step(f"queueing {sizes.long_queue:,} events")
        lines = self._stage.prepare(targets, SMALL_EVENT_BYTES)
        before = self._stage.servers.redis_bytes()
        self._stage.queue(lines, sizes.long_queue)
        used = self._stage.servers.redis_bytes() - before
        note = f"{used / MB:,.0f} MB in all, events of {SMALL_EVENT_BYTES} bytes of JSON"
        self._found.take("depth_bytes", None, used / sizes.long_queue, note=note)
        for _ in self._rounds():
            self._step(self._in_round(f"rate with {sizes.long_queue:,} queued"))
            self._take_queue_rate("depth_long", receiver, sizes.long_queue)

    def _take_queue_rate(self, key: str, receiver: Receiver, queued: int) -> None:
        """Take the rate of the same number of deliveries, however many are queued."""
        first, last = (int(self._sizes.short_queue * share) for share in _QUEUE_PART)
        there = self._stage.servers.logged(LOGS)
        with self._stage.workers() as crew:
            samples = self._watch(crew, receiver, LOGS, there + last)
        part = steady(samples, there + first, there + last)
        self._note(key, receiver, samples, last, part, f"{queued:,} queued, {SMALL_EVENT_BYTES} bytes each")

    # ── Waiting for a retry ─────────────────────────────────────────────────────────────────────────────────────────
    def _waiting(self) -> None:
        count = self._sizes.waiting
        self._step(f"{count:,} deliveries that wait for their retry")
        servers = self._stage.servers
        nobody = free_port()
        targets = [Target(f"http://{LOOPBACK}:{nobody}/") for _ in range(ENDPOINTS)]
        lines = self._stage.prepare(targets, EVENT_BYTES)
        before = servers.redis_bytes()
        self._stage.queue(lines, count)
        # What it waits for is longer than the row, so that none of them goes on.
        with self._stage.workers(settings={"WEBHOOKS_RETRY_DELAY_S": "3600"}) as crew:
            self._watch(crew, self._stage.receivers.find(INSTANT), LOGS, count)
        self._require(LOGS, {"attempt.outcome": "failed"}, count)
        note = f"{count:,} events of {EVENT_BYTES:,} bytes of JSON"
        self._found.take("waiting_redis", None, (servers.redis_bytes() - before) / count, note=note)
        self._found.take("waiting_mongodb", None, servers.document_bytes(*OWED) / count, note=note)


def _share(count: int, endpoints: int) -> int:
    """Return how many events go to so many of the endpoints, when all get the same number."""
    return max(1, count // ENDPOINTS) * endpoints
