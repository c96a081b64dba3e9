"""What the attempts of some time say of an endpoint: whether to pause it, and how fast to let out what was kept.

Owns the rules alone: counts in, a decision out. Pure, no clock; the steward counts, and carries out what is decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

#: Deliveries per second that are let out when an endpoint has just come back.
START_RATE = 1.0
#: The same when an operator wants all of it out: more than any endpoint takes.
FULL_RATE = 10_000.0

#: Attempts of a recovering endpoint that must have ended before it is paused again.
_MIN_ATTEMPTS_AGAIN = 5
#: Seconds of the present rate that may be let out and not have ended, and how many deliveries at most: a slow endpoint
#: is to find no pile before it, and the queue no endpoint's whole backlog.
_OUTSTANDING_S = 2.0
_MAX_OUTSTANDING = 1_000
#: Seconds of the present rate that may be let out at once when we could not look for some time: little more than from
#: one look to the next, as an endpoint that has just come back bears no burst.
_SAVED_S = 0.5
#: Endpoints that must be out of reach at one time before the fault is taken for ours.
_MIN_UNREACHED = 5


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When an endpoint counts as failing for long."""

    #: Seconds for which it must have failed.
    pause_after_s: float
    #: Share of the attempts that must have failed, over 0 to 1.
    pause_share: float
    #: Attempts that must have been made.
    pause_min_attempts: int


@dataclass(frozen=True, slots=True)
class Slice:
    """The attempts that ended in some stretch of time; without those that failed by our own fault."""

    succeeded: int
    failed: int
    #: Seconds since the oldest failed one ended; None when none failed.
    oldest_failed_s: float | None


@dataclass(frozen=True, slots=True)
class Streak:
    """The attempts since an endpoint last did well."""

    failed: int
    total: int
    #: Seconds since the first failed one; 0 when none failed.
    failing_for_s: float


def find_streak(slices: Sequence[Slice]) -> Streak:
    """Find since when an endpoint has failed.

    A slice in which most attempts succeeded ends it: so that many failures of the last minute do not speak for the
    time before. One without attempts says nothing.

    Args:
        slices: the newest first.
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
    """Say whether an endpoint has failed for so long that what is owed to it is better kept.

    Args:
        failed: attempts that failed, not by our own fault.
        total: those and the ones that succeeded.
        failing_for_s: seconds since the first of those that failed.
        policy: what is long.
    """
    is_enough = total >= policy.pause_min_attempts and failed >= policy.pause_share * total
    return is_enough and failing_for_s >= policy.pause_after_s


def should_pause_again(failed: int, total: int, policy: HealthPolicy) -> bool:
    """Say whether an endpoint that seemed to recover does not.

    Args:
        failed: of its last few attempts.
        total: how many those are.
        policy: which share is too much.
    """
    return total >= _MIN_ATTEMPTS_AGAIN and failed >= policy.pause_share * total


def next_rate(rate: float, succeeded: int, failed: int) -> float:
    """Return the deliveries per second to let out, from what came back in the last second.

    It grows to twice what came back while all is well, as TCP's window does (RFC 7661: a rate that was not used has not
    been tried, and says nothing of a higher one), and falls to half of what came when something failed.

    Args:
        rate: until now.
        succeeded: attempts in the last second.
        failed: likewise.
    """
    if failed:
        return max(START_RATE, min(rate, succeeded + failed) / 2)
    return max(rate, min(FULL_RATE, 2.0 * succeeded, 2 * rate))


def save(saved: float, rate: float, passed_s: float) -> float:
    """Return the deliveries that may be let out by the rate, when some time has passed.

    Args:
        saved: those of before that were not let out.
        rate: deliveries per second.
        passed_s: seconds since then.
    """
    return min(saved + rate * passed_s, max(1.0, rate * _SAVED_S))


def room(saved: float, rate: float, outstanding: int) -> int:
    """Return how many deliveries to let out now.

    Args:
        saved: those that the rate allows, from `save`.
        rate: deliveries per second.
        outstanding: deliveries that were let out and have not ended.
    """
    most = min(_OUTSTANDING_S * rate, _MAX_OUTSTANDING) - outstanding
    return max(0, int(min(saved, most)))


def is_fault_ours(unreached: int, seen: int) -> bool:
    """Say whether so many endpoints are out of reach at one time that it must be our network.

    Args:
        unreached: webhooks whose attempts all failed without a response.
        seen: webhooks that attempts were made of, those included.
    """
    return unreached >= _MIN_UNREACHED and unreached * 2 > seen
