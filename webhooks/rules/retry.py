"""What an attempt's answer means: for its delivery, for its endpoint, and when the next attempt is.

Pure; called by `delivery` and `tasks`.
"""

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from webhooks.errors import ErrorKind


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    FAILED = "failed"


class Verdict(StrEnum):
    """What an attempt says of how many attempts its endpoint can take at one time."""

    #: It answered: it may have more.
    GOOD = "good"
    #: It is overloaded or hangs: it is to have fewer.
    BAD = "bad"
    #: Nothing either way.
    NEUTRAL = "neutral"


#: Statuses that count as success (contract): not all of the 200s.
SUCCESS_STATUSES = range(200, 210)

_FAILED_BECAUSE = {
    1: "an interim status is no answer",
    2: "only 200–209 count as success",
    3: "redirects are not followed",
    4: "the receiver refused the request",
    5: "the receiver had an error",
}

#: What a server, or what stands before it, says when it is overloaded. 500 is not among them: mostly a defect that any
#: number of attempts meets.
_OVERLOADED = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)

#: Why no response came, where it says something of the endpoint's load. Time-outs hold a thread to the end. The last
#: three are what a proxy before the receiver would have made a 502 of, and may come late, such as when a server kills
#: the process that took too long.
_OVERLOADED_KINDS = frozenset(
    {ErrorKind.CONNECT_TIMEOUT, ErrorKind.TIMEOUT, ErrorKind.RESET, ErrorKind.HANG_UP, ErrorKind.ABORTED}
)

#: Why no response came, where the receiver has no part in it: our network, our database, our workers and operators,
#: and what stands in the webhook's document.
_OWN_FAULTS = frozenset(
    {
        ErrorKind.RESOLVER,
        ErrorKind.PROXY,
        ErrorKind.INTERNAL,
        ErrorKind.INTERRUPTED,
        ErrorKind.SECRET_UNREADABLE,
        ErrorKind.SKIPPED,
        ErrorKind.WEBHOOK_INACTIVE,
        ErrorKind.WEBHOOK_UNUSABLE,
    }
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How failed attempts are tried again."""

    #: Seconds from the end of a failed attempt to the next.
    delay_s: float
    #: How many attempts follow the first at most.
    max_retries: int
    #: Seconds that a receiver may ask us to wait at most; 0: what it asks for is not heeded.
    max_retry_after_s: float = 0


def judge(status: int | None) -> Outcome:
    """Tell success from failure.

    Args:
        status: the status code that came back; None when no response came.
    """
    return Outcome.SUCCESS if status in SUCCESS_STATUSES else Outcome.FAILED


def why_failed(status: int) -> str | None:
    """Say in words why a status counts as failed; None when it does not."""
    if judge(status) is Outcome.SUCCESS:
        return None
    return _FAILED_BECAUSE.get(status // 100, "not an HTTP status")


def ends_webhook(status: int | None) -> bool:
    """Whether a receiver says with this status that it wants nothing more, ever: 410 (RFC 9110, 15.5.11).

    Its delivery is over then, whatever retries it has left, and so is its webhook.
    """
    return status == HTTPStatus.GONE


def is_own_fault(kind: ErrorKind | None) -> bool:
    """Whether an attempt failed by what the receiver has no part in, and so says nothing of its health.

    Args:
        kind: why no response came; None when one did.
    """
    return kind in _OWN_FAULTS


def judge_endpoint(status: int | None, kind: ErrorKind | None) -> Verdict:
    """Say whether an attempt's endpoint can take more attempts at one time, or is to have fewer.

    Any answer but those of overload is good: a receiver that refuses quickly costs the others nothing. So do errors of
    connecting that come at once, such as a refused connection, but they do not show that it could take more either.

    Args:
        status: the status code that came back; None when no response came.
        kind: why none came; None when one did.
    """
    if kind is not None or status is None:
        return Verdict.BAD if kind in _OVERLOADED_KINDS else Verdict.NEUTRAL
    return Verdict.BAD if status in _OVERLOADED else Verdict.GOOD


def next_delay_s(outcome: Outcome, retry: int, policy: RetryPolicy, retry_after_s: float | None = None) -> float | None:
    """Return the seconds until the next attempt; None when the delivery is over.

    Args:
        outcome: of the attempt that just ended.
        retry: its number, from 0.
        policy: how failed attempts are tried again.
        retry_after_s: how long the receiver asks us to wait; None when it does not. It delays the next attempt, and
            never brings it forward or adds one.
    """
    if outcome is Outcome.SUCCESS or retry >= policy.max_retries:
        return None
    asked_s = 0.0 if retry_after_s is None else min(retry_after_s, policy.max_retry_after_s)
    return max(policy.delay_s, asked_s)
