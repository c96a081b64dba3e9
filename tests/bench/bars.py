"""The bars: what figures of a run have to be, and what they were in the run before.

After a run that counts, replace `BEFORE`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tests.bench.measures import Figure

_MS = 1e-3


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure, or its ratio to another figure of the same run, and the limit that it is held to."""

    key: str
    text: str
    #: Keys of the figures whose sum counts.
    figures: tuple[str, ...]
    #: The key of the figure to divide by; None: the figure itself counts.
    against: str | None
    #: None: reported only.
    limit: float | None
    #: Whether the limit is a minimum or a maximum.
    sense: Literal["≥", "≤"] = "≥"
    #: Multiplies the figures, to show them in `unit`.
    factor: float = 1
    unit: str = ""


_CPU = ("cpu_workers", "cpu_valkey", "cpu_mongod")

BARS = (
    Bar("a_bare", "(a) against a bare requests loop", ("a",), "bare", 1.5),
    Bar("a_plain", "(a) against a plain Celery worker", ("a",), "plain", 4),
    Bar("cpu", "CPU per delivery of (a): workers, Redis, MongoDB", _CPU, None, 0.45, "≤", _MS, "ms"),
    Bar("b_a", "(b), receivers that take 100 ms, against (a)", ("b",), "a", 0.95),
    Bar("c_a", "(c) healthy receivers, against (a) without the hanging one", ("c",), "c_without", 0.95),
    Bar("p50", "p50 from deliver.delay to arrival, against plain Celery", ("latency_p50",), "plain_p50", 1.0, "≤"),
    Bar("p99", "p99 of the same", ("latency_p99",), "plain_p99", 0.8, "≤"),
    Bar("bulk", "bulk enqueue, against single", ("enqueue_bulk",), "enqueue_single", 5),
    Bar("depth", "rate with the long queue, against the short one", ("depth_long",), "depth_short", 0.95),
    Bar("redis_bytes", "Redis, per queued event of 2 KB", ("redis_bytes",), None, 2600, "≤", unit="bytes"),
    Bar("flower_a", "(a) with Flower open, against (a)", ("flower",), "a", 0.75),
    Bar("flower_plain", "the same, against plain Celery with Flower open", ("flower",), "flower_plain", 3),
    Bar("events_cpu", "CPU of workers, task events on against off", ("events_cpu_workers",), "cpu_workers", 1.25, "≤"),
    Bar("tls", "250 TLS hosts with 5 ms of latency, against one plain host", ("tls",), "one_host", None),
)

#: By the keys of `BARS`, as the run of 26 November 2026 had them: 2 cores, default sizes. Missing: not measured.
BEFORE: Mapping[str, float] = {
    "a_bare": 1.88,
    "a_plain": 6.27,
    "cpu": 0.736,
    "b_a": 0.77,
    "c_a": 0.86,
    "p50": 0.30,
    "p99": 0.21,
    "bulk": 7.03,
    "depth": 0.71,
    "redis_bytes": 2557,
    "flower_a": 0.74,
    "flower_plain": 6.36,
    "events_cpu": 1.16,
    "tls": 0.96,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar, and what a run measured of it."""

    bar: Bar
    #: None: not measured.
    value: float | None
    #: None: not measured, or no limit.
    is_met: bool | None


def judge(bar: Bar, figures: Mapping[str, Figure]) -> Verdict:
    """Hold a bar against the medians of a run, given by their keys."""
    values = [figures[key].value if key in figures else None for key in bar.figures]
    against = 1.0
    if bar.against is not None:
        against = figures[bar.against].value if bar.against in figures else None
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not against:
        return Verdict(bar, None, None)
    value = sum(known) * bar.factor / against
    if bar.limit is None:
        return Verdict(bar, value, None)
    return Verdict(bar, value, value >= bar.limit if bar.sense == "≥" else value <= bar.limit)
