"""Figures of a webhook's attempts: success rate, and times that half or most attempts keep within."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

#: Times are counted in buckets, so many from one time to twice that: a percentile is right to a tenth or so.
BUCKETS_PER_DOUBLING = 4


@dataclass(slots=True)
class Counts:
    """Attempts of one webhook in some span of time."""

    attempts: int = 0
    failed: int = 0
    last_failed_at: datetime | None = None
    #: Attempts by the logarithm of their time: bucket `n` has those from 2^(n/4) ms on.
    buckets: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """What people are shown of that."""

    attempts: int
    failed: int
    #: From 0 to 1; None without attempts.
    success_rate: float | None
    #: Milliseconds that half of the attempts, and 95 of 100, keep within; None without attempts.
    p50_ms: float | None
    p95_ms: float | None
    last_failed_at: datetime | None
    #: Attempts that succeeded and that failed, one pair for each stretch of the span, oldest first.
    spark: Sequence[tuple[int, int]]


def summarize(slices: Sequence[Counts | None], stretches: int) -> Figures:
    """Summarize counts.

    Args:
        slices: oldest first; None where nothing was attempted.
        stretches: into how many parts to divide them for the small chart.
    """
    found = [one for one in slices if one is not None]
    buckets: dict[int, int] = {}
    for one in found:
        for bucket, count in one.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
    attempts, failed = sum(one.attempts for one in found), sum(one.failed for one in found)
    failures = [one.last_failed_at for one in found if one.last_failed_at is not None]
    size = max(1, math.ceil(len(slices) / stretches))
    parts = [slices[start : start + size] for start in range(0, len(slices), size)]
    return Figures(
        attempts=attempts,
        failed=failed,
        success_rate=(attempts - failed) / attempts if attempts else None,
        p50_ms=percentile(buckets, 0.5),
        p95_ms=percentile(buckets, 0.95),
        last_failed_at=max(failures, default=None),
        spark=[_split(part) for part in parts],
    )


def _split(slices: Iterable[Counts | None]) -> tuple[int, int]:
    found = [one for one in slices if one is not None]
    failed = sum(one.failed for one in found)
    return sum(one.attempts for one in found) - failed, failed


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return the milliseconds that a share of the attempts keep within; None without attempts."""
    wanted, seen = share * sum(buckets.values()), 0
    for bucket, count in sorted(buckets.items()):
        seen += count
        if seen >= wanted:
            # The middle of the bucket, by its logarithm.
            return 2 ** ((bucket + 0.5) / BUCKETS_PER_DOUBLING)
    return None
