"""What rows of the benchmark share: taking a rate on a `stage`, and keeping the reason where there is none.

A row that cannot be measured, or that lost something, keeps its reason in place of its number, and the others go on.
Called by `rows` and `sizing`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError

from tests.bench.crew import Crew
from tests.bench.events import Target
from tests.bench.findings import Findings, Progress, Run
from tests.bench.measures import NOISE, STEADY, RowFailed, Sample, Steady, steady
from tests.bench.network import NoNetwork
from tests.bench.plan import ENDPOINTS, Plan
from tests.bench.receivers import Receiver
from tests.bench.stage import Stage
from webhooks.errors import CannotStart, StoreUnavailable

MS, US, MB = 1e3, 1e6, 1 << 20
#: What the product's worker leaves behind of each success.
SUCCESS = {"attempt.outcome": "success"}

_PARTS = ("workers", "valkey", "mongod", "receiver")


class Measuring:
    """Rows that are measured on one stage."""

    def __init__(self, stage: Stage, plan: Plan, progress: Progress, found: Findings) -> None:
        self._stage = stage
        self._plan = plan
        self._sizes = plan.sizes
        self._progress = progress
        self._found = found
        self._round = 1

    def _try(self, row: str, measure_row: Callable[[], None]) -> None:
        """Measure a row, if the plan has it."""
        if row not in self._plan.rows or row in self._found.failures:
            return
        try:
            measure_row()
        except NoNetwork as reason:
            self._found.absences[row] = str(reason)
            self._step(f"{row} is not measured: {reason}")
        except (RowFailed, CannotStart, StoreUnavailable, RedisError) as error:
            self._found.failures[row] = str(error)
            self._step(f"{row} failed: {error}")
        self._stage.servers.reset()

    def _step(self, text: str) -> None:
        self._progress.step(text)

    def _rounds(self) -> Iterator[int]:
        for number in range(1, self._sizes.rounds + 1):
            self._round = number
            yield number

    def _in_round(self, text: str) -> str:
        return f"{text}, round {self._round} of {self._sizes.rounds}" if self._sizes.rounds > 1 else text

    def _watch(
        self,
        crew: Crew,
        receiver: Receiver,
        collection: str,
        count: int,
        logged: Callable[[], int] | None = None,
        also: Mapping[str, Crew] | None = None,
    ) -> list[Sample]:
        return self._stage.watch(
            crew,
            logged or (lambda: self._stage.servers.logged(collection)),
            count,
            receiver=receiver,
            tell=self._progress.now,
            also=also or {},
        )

    def _require(
        self, collection: str, is_success: Mapping[str, Any], count: int, of: Mapping[str, Any] | None = None
    ) -> None:
        """Make sure that each event has its log of success, and that there is no other log.

        Raises:
            RowFailed: it is not so.
        """
        of = of or {}
        servers = self._stage.servers
        succeeded, all_ = servers.count(collection, {**is_success, **of}), servers.count(collection, of)
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

    def _take_cpu(self, prefix: str, receiver: Receiver, part: Steady, parts: Sequence[str] = _PARTS) -> None:
        for name in parts:
            if name in part.cpu_s:
                self._found.take(f"{prefix}{name}", receiver if name == "receiver" else None, part.cpu_s[name] * US)


def targets_of(receiver: Receiver, path: str) -> list[Target]:
    """Return the webhooks of a run: one of each endpoint."""
    return [Target(receiver.url(index, path)) for index in range(ENDPOINTS)]
