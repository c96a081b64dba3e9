"""What an attempt's answer means, and when the next attempt is. Pure; called by `delivery` and `tasks`."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    FAILED = "failed"


#: Statuses that count as success (contract): not all of the 200s.
_SUCCESS = range(200, 210)

_FAILED_BECAUSE = {
    1: "an interim status is no answer",
    2: "only 200–209 count as success",
    3: "redirects are not followed",
    4: "the receiver refused the request",
    5: "the receiver had an error",
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How failed attempts are tried again."""

    #: Seconds from the end of a failed attempt to the next.
    delay_s: float
    #: How many attempts follow the first at most.
    max_retries: int


def judge(status: int | None) -> Outcome:
    """Tell success from failure.

    Args:
        status: the status code that came back; None when no response came.
    """
    return Outcome.SUCCESS if status in _SUCCESS else Outcome.FAILED


def why_failed(status: int) -> str | None:
    """Say in words why a status counts as failed; None when it does not."""
    if judge(status) is Outcome.SUCCESS:
        return None
    return _FAILED_BECAUSE.get(status // 100, "not an HTTP status")


def next_delay_s(outcome: Outcome, retry: int, policy: RetryPolicy) -> float | None:
    """Return the seconds until the next attempt; None when the delivery is over.

    Args:
        outcome: of the attempt that just ended.
        retry: its number, from 0.
        policy: how failed attempts are tried again.
    """
    if outcome is Outcome.SUCCESS or retry >= policy.max_retries:
        return None
    return policy.delay_s
