"""When to pause a failing endpoint, and how fast to release its held deliveries."""

from collections.abc import Sequence
from dataclasses import dataclass

#: Deliveries per second released to an endpoint that has just recovered.
START_RATE = 1.0
#: The maximum, for an operator's release of all deliveries.
FULL_RATE = 10_000.0

#: Attempts of a recovering endpoint before it can be paused again.
_MIN_ATTEMPTS_AGAIN = 5
#: Maximum of unfinished deliveries, in seconds of the rate and as a number, so that they pile up neither at a slow
#: endpoint nor in the queue.
_OUTSTANDING_S = 2.0
_MAX_OUTSTANDING = 1_000
#: Maximum burst, in seconds of the rate: little more than one interval of the health monitor.
_SAVED_S = 0.5
#: Unreachable endpoints from which our own network is suspected.
_MIN_UNREACHED = 5


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When an endpoint counts as failing for long."""

    #: Minimum duration of the failure.
    pause_after_s: float
    #: Minimum share of failed attempts, over 0 to 1.
    pause_share: float
    #: Minimum number of attempts.
    pause_min_attempts: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Counts of the attempts that ended in a period, without those that failed by our own fault."""

    succeeded: int
    failed: int
    #: Time since the oldest failure; None: no failure.
    oldest_failed_s: float | None


@dataclass(frozen=True, slots=True)
class Streak:
    """Counts of the attempts since most of an endpoint's attempts last succeeded."""

    failed: int
    total: int
    #: Time since the first failure; 0: no failure.
    failing_for_s: float


def find_streak(slices: Sequence[Slice]) -> Streak:
    """Find since when an endpoint has failed.

    A slice in which most attempts succeeded ends the streak: later failures say nothing about the time before.

    Args:
        slices: newest first.
    """
    failed = total = 0
    failing_for_s = 0.0
    for one in slices:
        if one.succeeded > one.failed:
            break
        failed += one.failed
        total += one.failed + one.succeeded
        failing_for_s = failing_for_s if one.oldest_failed_s is None else one.oldest_failed_s
    return Streak(failed, total, failing_for_s)


def should_pause(failed: int, total: int, failing_for_s: float, policy: HealthPolicy) -> bool:
    """Return whether an endpoint has failed for so long that its deliveries should be held."""
    is_enough = total >= policy.pause_min_attempts and failed >= policy.pause_share * total
    return is_enough and failing_for_s >= policy.pause_after_s


def should_pause_again(failed: int, total: int, policy: HealthPolicy) -> bool:
    """Return whether a recovering endpoint fails, judging by its last few attempts."""
    return total >= _MIN_ATTEMPTS_AGAIN and failed >= policy.pause_share * total


def next_rate(rate: float, succeeded: int, failed: int) -> float:
    """Return the deliveries per second to release, from the results of the last second.

    The rate grows to at most twice the successes: an unused rate says nothing about a higher one (RFC 7661, on TCP's
    window). It falls to half of the results after a failure.
    """
    if failed:
        return max(START_RATE, min(rate, succeeded + failed) / 2)
    return max(rate, min(FULL_RATE, 2.0 * succeeded, 2 * rate))


def save(saved: float, rate: float, passed_s: float) -> float:
    """Return how many deliveries the rate allows after `passed_s`, with those `saved` before."""
    return min(saved + rate * passed_s, max(1.0, rate * _SAVED_S))


def room(saved: float, rate: float, outstanding: int) -> int:
    """Return how many deliveries to release now.

    Args:
        saved: from `save`.
        rate: deliveries per second.
        outstanding: deliveries that were released and have not ended.
    """
    most = min(_OUTSTANDING_S * rate, _MAX_OUTSTANDING) - outstanding
    return max(0, int(min(saved, most)))


def is_fault_ours(unreached: int, seen: int) -> bool:
    """Return whether `unreached` of `seen` webhooks suggest that our own network fails."""
    return unreached >= _MIN_UNREACHED and unreached * 2 > seen
