"""The arithmetic of the benchmark: rates, medians, percentiles, ratios and the bars they are held against.

Pure: no clock, no process, no server. Called by `rows`, which brings the numbers, and `report`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from webhooks.errors import WebhooksError

#: The part of a run in which a rate is taken: workers come up before, and run dry after.
STEADY = (0.1, 0.9)
#: CPU seconds per second that are no part of a run, from which on the run should not be relied on.
NOISE = 0.1


class RowFailed(WebhooksError):
    """A row could not be measured, or lost something; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was so at one instant."""

    #: Seconds of the monotonic clock.
    at: float
    #: Logs that were there.
    logged: int
    #: CPU seconds used until then, by part; ``machine`` is all that the machine did.
    cpu_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Steady:
    """The steady part of a run."""

    per_s: float
    seconds: float
    #: CPU seconds per delivery, by part.
    cpu_s: Mapping[str, float]
    #: CPU seconds per second that processes used which are no part of the benchmark.
    others: float


def steady(samples: Sequence[Sample], first: float, last: float) -> Steady:
    """Take the rate from one count to another.

    Args:
        samples: in the order of time.
        first: count of logs at which the part begins.
        last: count of logs at which it ends.

    Raises:
        RowFailed: the samples do not reach so far, or have no time between.
    """
    begin, end = _reach(samples, first), _reach(samples, last)
    seconds, count = end.at - begin.at, last - first
    if seconds <= 0 or count <= 0:
        raise RowFailed("too few deliveries to take a rate of")
    used = {part: end.cpu_s[part] - begin.cpu_s[part] for part in begin.cpu_s.keys() & end.cpu_s.keys()}
    machine = used.pop("machine", None)
    others = 0.0 if machine is None else max(0.0, machine - sum(used.values())) / seconds
    return Steady(count / seconds, seconds, {part: value / count for part, value in used.items()}, others)


@dataclass(frozen=True, slots=True)
class _Point:
    at: float
    cpu_s: Mapping[str, float]


def _reach(samples: Sequence[Sample], count: float) -> _Point:
    """Say when so many logs were there, between two samples in proportion."""
    for before, after in pairwise(samples):
        if before.logged <= count <= after.logged and after.logged > before.logged:
            share = (count - before.logged) / (after.logged - before.logged)
            parts = before.cpu_s.keys() & after.cpu_s.keys()
            cpu_s = {part: before.cpu_s[part] + share * (after.cpu_s[part] - before.cpu_s[part]) for part in parts}
            return _Point(before.at + share * (after.at - before.at), cpu_s)
    reached = samples[-1].logged if samples else 0
    raise RowFailed(f"no rate: {reached} logs, {count:.0f} are needed")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of them do not exceed (nearest rank).

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


# ── Figures and bars ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that was measured, maybe several times."""

    #: What it is called in JSON, and by the bars.
    key: str
    #: What it is, for people.
    text: str
    #: ``/s``, ``ms``, ``µs``, ``MB``, ``bytes``, ``×``, ``%``, ``cores``.
    unit: str
    #: One per round; empty where it could not be measured.
    samples: tuple[float, ...]
    #: What took the requests; empty where nothing did.
    receiver: str = ""
    #: What else is to be known, in words.
    note: str = ""
    #: Why there is no number, or why it does not count; None when all is well.
    error: str | None = None
    #: Why it cannot be measured here, which is no fault; None where it can.
    absent: str | None = None

    @property
    def value(self) -> float | None:
        """The median; None where there is none that counts."""
        return median(self.samples) if self.samples and self.error is None else None


@dataclass(frozen=True, slots=True)
class Bar:
    """What one figure has to be, as a ratio to another one of the same run."""

    key: str
    text: str
    figure: str
    against: str
    limit: float
    #: ``≥``: the ratio has to be the limit at least; ``≤``: at most.
    sense: Literal["≥", "≤"] = "≥"


BARS = (
    Bar("a_bare", "(a) against a bare requests loop", "a", "bare", 1.2),
    Bar("a_plain", "(a) against a plain Celery worker", "a", "plain", 4),
    Bar("b_a", "(b), a receiver that takes 100 ms, against (a)", "b", "a", 0.9),
    Bar("c_a", "(c) healthy receivers, against (a) without the hanging one", "c", "c_without", 0.9),
    Bar("flower_a", "(a) with Flower open, against (a)", "flower", "a", 0.6),
    Bar("flower_plain", "the same, against a plain Celery worker with Flower open", "flower", "flower_plain", 3),
    Bar("events_cpu", "CPU of workers, task events on against off", "events_cpu_workers", "cpu_workers", 1.25, "≤"),
    Bar("latency", "p50 from deliver.delay to arrival, against plain Celery", "latency_p50", "plain_p50", 1.0, "≤"),
    Bar("depth", "rate with the long queue, against the short one", "depth_long", "depth_short", 0.95),
    Bar("bulk", "bulk enqueue, against single", "enqueue_bulk", "enqueue_single", 5),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar, and what was measured of it."""

    bar: Bar
    #: None: not measured in this run.
    ratio: float | None
    #: None: likewise.
    is_met: bool | None


def judge(bar: Bar, figures: Mapping[str, Figure]) -> Verdict:
    """Hold a bar against the medians of a run.

    Args:
        bar: which one.
        figures: by their keys.
    """
    measured = [figures[key].value if key in figures else None for key in (bar.figure, bar.against)]
    value, against = measured
    if value is None or not against:
        return Verdict(bar, None, None)
    ratio = value / against
    return Verdict(bar, ratio, ratio >= bar.limit if bar.sense == "≥" else ratio <= bar.limit)
