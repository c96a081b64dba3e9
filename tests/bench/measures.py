"""Rates, medians and percentiles. Pure: no clock, no process, no server."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from webhooks.errors import WebhooksError

#: The part of a run whose rate is taken: workers start before, and run dry after.
STEADY = (0.1, 0.9)
#: CPU seconds per second of other programs above which a run should not be relied on.
NOISE = 0.1


class RowFailed(WebhooksError):
    """A row could not be measured, or lost something; the text is one line with the reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    #: Seconds of the monotonic clock.
    at: float
    #: Logs that had been written.
    logged: int
    #: CPU seconds used until then, by part; ``machine`` is the whole machine.
    cpu_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Steady:
    per_s: float
    seconds: float
    #: CPU seconds per delivery, by part.
    cpu_s: Mapping[str, float]
    #: CPU seconds per second of processes outside the benchmark.
    others: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table, with a sample per round."""

    #: Its name in JSON.
    key: str
    text: str
    #: ``/s``, ``ms``, ``µs``, ``MB``, ``bytes``, ``×``, ``%``, ``cores``.
    unit: str
    samples: tuple[float, ...]
    note: str = ""
    #: Why the row failed, so that no sample counts.
    error: str | None = None
    #: Why it cannot be measured here, which is not an error.
    absent: str | None = None

    @property
    def value(self) -> float | None:
        """The median; None if there is none that counts."""
        return median(self.samples) if self.samples and self.error is None else None


def steady(samples: Sequence[Sample], first: float, last: float) -> Steady:
    """Take the rate from one count of logs to another.

    Raises:
        RowFailed: the samples do not reach so far, or no time passed in between.
    """
    begin, end = _reach(samples, first), _reach(samples, last)
    seconds, count = end.at - begin.at, last - first
    if seconds <= 0 or count <= 0:
        raise RowFailed("too few deliveries to take a rate of")
    used = {part: end.cpu_s[part] - begin.cpu_s[part] for part in begin.cpu_s.keys() & end.cpu_s.keys()}
    machine = used.pop("machine", None)
    others = 0.0 if machine is None else max(0.0, machine - sum(used.values())) / seconds
    return Steady(count / seconds, seconds, {part: value / count for part, value in used.items()}, others)


def _reach(samples: Sequence[Sample], count: float) -> Sample:
    """Return the instant of a count of logs, interpolated between two samples."""
    for before, after in pairwise(samples):
        if before.logged <= count <= after.logged and after.logged > before.logged:
            share = (count - before.logged) / (after.logged - before.logged)
            parts = before.cpu_s.keys() & after.cpu_s.keys()
            cpu_s = {part: before.cpu_s[part] + share * (after.cpu_s[part] - before.cpu_s[part]) for part in parts}
            return Sample(before.at + share * (after.at - before.at), int(count), cpu_s)
    reached = samples[-1].logged if samples else 0
    raise RowFailed(f"no rate: {reached} logs, {count:.0f} are needed")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that this many percent of them do not exceed (nearest rank).

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
