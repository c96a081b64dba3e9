"""What the answer to an attempt means for its delivery and its endpoint, and when the next attempt is."""

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from webhooks.errors import ErrorKind


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    FAILED = "failed"


class Verdict(StrEnum):
    """What an attempt says about the endpoint's capacity for concurrent attempts."""

    #: It can take more.
    GOOD = "good"
    #: It is overloaded or hangs.
    BAD = "bad"
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

#: Answers of an overloaded server, or of its proxy. 500 is mostly a defect, which fewer attempts do not cure.
_OVERLOADED = frozenset({429, 502, 503, 504})

#: Overload without a response. Time-outs hold a thread to the end. A reverse proxy would turn the last three into 502;
#: they may come late, for example when a server kills a slow process.
_OVERLOADED_KINDS = frozenset(
    {ErrorKind.CONNECT_TIMEOUT, ErrorKind.TIMEOUT, ErrorKind.RESET, ErrorKind.HANG_UP, ErrorKind.ABORTED}
)

#: No fault of the receiver, but of our network, database, workers and operators, or of the webhook's document.
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
    """How failed attempts are retried."""

    #: From the end of a failed attempt to the next.
    delay_s: float
    max_retries: int
    #: Maximum of a receiver's ``Retry-After``; 0: ignore it.
    max_retry_after_s: float = 0


def judge(status: int | None) -> Outcome:
    """Tell success from failure. `status` is None if no response came."""
    return Outcome.SUCCESS if status in SUCCESS_STATUSES else Outcome.FAILED


def why_failed(status: int) -> str | None:
    """Return why a status counts as failed; None if it does not."""
    if judge(status) is Outcome.SUCCESS:
        return None
    return _FAILED_BECAUSE.get(status // 100, "not an HTTP status")


def ends_webhook(status: int | None) -> bool:
    """Return whether the receiver wants no more events: 410 (RFC 9110, 15.5.11) ends delivery and webhook."""
    return status == HTTPStatus.GONE


def is_own_fault(kind: ErrorKind | None) -> bool:
    """Return whether an attempt failed without the receiver's part. `kind` is None if a response came."""
    return kind in _OWN_FAULTS


def judge_endpoint(status: int | None, kind: ErrorKind | None) -> Verdict:
    """Judge an endpoint's capacity by one attempt's answer.

    Every answer but overload is good: a quick refusal costs the others nothing. A quick failure to connect, such as a
    refused connection, is neutral.
    """
    if kind is not None or status is None:
        return Verdict.BAD if kind in _OVERLOADED_KINDS else Verdict.NEUTRAL
    return Verdict.BAD if status in _OVERLOADED else Verdict.GOOD


def next_delay_s(outcome: Outcome, retry: int, policy: RetryPolicy, retry_after_s: float | None = None) -> float | None:
    """Return the time until the next attempt; None if the delivery is over.

    Args:
        outcome: of the last attempt.
        retry: its number, from 0.
        policy: how failed attempts are retried.
        retry_after_s: the wait that the receiver asked for, or None; only ever delays the next attempt.
    """
    if outcome is Outcome.SUCCESS or retry >= policy.max_retries:
        return None
    asked_s = 0.0 if retry_after_s is None else min(retry_after_s, policy.max_retry_after_s)
    return max(policy.delay_s, asked_s)
