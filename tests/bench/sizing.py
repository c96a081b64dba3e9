"""The rows that tell how to size workers, and what more of them bring.

(scale) gives each worker a network namespace of its own, as if it stood on a host of its own, and few attempts at one
time, so that it waits for receivers most of its time: what is measured is whether workers hinder each other in Redis,
MongoDB or the protocol between them. Their CPU time is not what bounds them, as they share one machine. (sizes) is the
opposite: the machine's cores are what bounds it. Called by `rows`.
"""

from dataclasses import replace
from pathlib import Path

from tests.bench.findings import Findings, Progress
from tests.bench.measures import STEADY, Steady, steady
from tests.bench.measuring import MB, SUCCESS, US, Measuring, targets_of
from tests.bench.network import NoNetwork
from tests.bench.plan import DELAY_S, EVENT_BYTES, SCALE_CONCURRENCY, SCALE_WORKERS, SIZES, Plan, Size
from tests.bench.receivers import INSTANT, SLOW
from tests.bench.servers import LOGS
from tests.bench.stage import Stage, Workers, open_stage

#: Deliveries at least, of which a rate is taken.
_FEWEST = 200


def measure_sizing(stage: Stage, plan: Plan, progress: Progress, found: Findings) -> None:
    """Measure (scale) and (sizes), where the plan has them, once each."""
    _Sizing(stage, plan, progress, found).run()


class _Sizing(Measuring):
    def run(self) -> None:
        """Measure."""
        self._try("scale", self._scale)
        self._try("sizes", self._grid)

    # ── More and more workers ───────────────────────────────────────────────────────────────────────────────────────
    def _scale(self) -> None:
        if self._plan.broker_url is not None or self._plan.mongodb_url is not None:
            raise NoNetwork("servers that are given do not stand at its bridge: leave them out")
        # No settings of the plan's own: each worker's concurrency is what this row is about.
        with open_stage(replace(self._plan, concurrency=None), is_networked=True) as stage:
            _Scaling(stage, self._plan, self._progress, self._found).run()

    # ── Processes and concurrency ───────────────────────────────────────────────────────────────────────────────────
    def _grid(self) -> None:
        for size in SIZES:
            self._step(f"{size.text}, instant receivers")
            self._take_size(size, "instant", INSTANT, self._sizes.grid_events)
            self._stage.servers.reset()
            self._step(f"{size.text}, receivers that take 100 ms")
            at_once = size.processes * size.concurrency
            count = min(self._sizes.grid_events, int(at_once / DELAY_S * self._sizes.grid_s))
            self._take_size(size, "slow", SLOW, max(_FEWEST, count))
            self._stage.servers.reset()

    def _take_size(self, size: Size, what: str, path: str, count: int) -> None:
        receiver = self._stage.receivers.find(path)
        lines = self._stage.prepare(targets_of(receiver, path), EVENT_BYTES)
        self._stage.queue(lines, count)
        with self._stage.workers(Workers(size.processes, size.concurrency)) as crew:
            samples = self._watch(crew, receiver, LOGS, count)
            memory = crew.memory_bytes()
        self._require(LOGS, SUCCESS, count)
        part = self._take_rate(f"{size.key}_{what}", receiver, samples, count, f"{count:,} events")
        if what == "instant":
            self._found.take(f"{size.key}_cpu", receiver, part.cpu_s["workers"] * US)
            self._found.take(f"{size.key}_memory", None, sum(memory) / size.processes / MB, note="RSS")


class _Scaling(Measuring):
    def run(self) -> None:
        """Measure."""
        receiver = self._stage.receivers.find(SLOW)
        alone = None
        for workers in SCALE_WORKERS:
            self._step(f"workers in network namespaces of their own: {workers}")
            lines = self._stage.prepare(targets_of(receiver, SLOW), EVENT_BYTES)
            part = self._take_scale(workers, lines)
            rate = part.per_s
            alone = alone or rate
            self._found.take(f"scale_{workers}_ratio", receiver, rate / alone)
            self._found.take(f"scale_{workers}_share", receiver, 100 * rate / _allowed(workers))
            self._found.take(f"scale_{workers}_cores", receiver, rate * sum(part.cpu_s.values()))
            self._stage.servers.reset()

    def _take_scale(self, workers: int, lines: Path) -> Steady:
        receiver = self._stage.receivers.find(SLOW)
        count = max(_FEWEST, int(_allowed(workers) * self._sizes.grid_s))
        with self._stage.workers(Workers(workers, SCALE_CONCURRENCY)) as crew:
            # All of them have to be up, however long that takes on one machine.
            crew.wait_until_ready()
            self._stage.queue(lines, count)
            samples = self._watch(crew, receiver, LOGS, count)
        self._require(LOGS, SUCCESS, count)
        done = samples[0].logged
        first, last = (done + share * (count - done) for share in STEADY)
        part = steady(samples, first, last)
        note = f"{SCALE_CONCURRENCY} attempts at one time each, {count:,} events"
        self._note(f"scale_{workers}", receiver, samples, count, part, note)
        return part


def _allowed(workers: int) -> float:
    """Return the deliveries per second at which these workers do nothing but wait for receivers."""
    return workers * SCALE_CONCURRENCY / DELAY_S
