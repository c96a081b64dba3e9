"""What counts as success, what an attempt says of its endpoint, and when the next attempt is."""

import pytest

from webhooks.errors import ErrorKind
from webhooks.rules.retry import (
    Outcome,
    RetryPolicy,
    Verdict,
    ends_webhook,
    is_own_fault,
    judge,
    judge_endpoint,
    next_delay_s,
    why_failed,
)

POLICY = RetryPolicy(delay_s=30, max_retries=3)


@pytest.mark.parametrize("status", [200, 201, 204, 209])
def test_200_to_209_succeed(status: int):
    assert judge(status) is Outcome.SUCCESS
    assert why_failed(status) is None


@pytest.mark.parametrize(
    "status", [None, 100, 199, 210, 226, 299, 300, 301, 302, 307, 400, 404, 409, 429, 500, 503, 999]
)
def test_all_else_fails(status: int | None):
    assert judge(status) is Outcome.FAILED
    assert status is None or why_failed(status)


@pytest.mark.parametrize(("retry", "expected"), [(0, 30), (1, 30), (2, 30), (3, None), (4, None)])
def test_failed_attempt_has_three_retries(retry: int, expected: float | None):
    assert next_delay_s(Outcome.FAILED, retry, POLICY) == expected


def test_success_has_no_next_attempt():
    assert next_delay_s(Outcome.SUCCESS, 0, POLICY) is None


def test_no_retries_means_one_attempt():
    assert next_delay_s(Outcome.FAILED, 0, RetryPolicy(delay_s=30, max_retries=0)) is None


@pytest.mark.parametrize(
    ("asked_s", "expected"),
    [(None, 30), (0, 30), (0.0, 30), (29.9, 30), (30.5, 30.5), (600, 600), (601, 600), (999_999_999, 600)],
)
def test_receiver_may_delay_the_next_attempt_up_to_a_bound_and_never_hasten_it(asked_s: float | None, expected: float):
    policy = RetryPolicy(delay_s=30, max_retries=3, max_retry_after_s=600)
    assert next_delay_s(Outcome.FAILED, 0, policy, asked_s) == expected


def test_bound_below_the_delay_leaves_the_delay():
    assert next_delay_s(Outcome.FAILED, 0, RetryPolicy(delay_s=30, max_retries=3, max_retry_after_s=10), 600) == 30
    assert next_delay_s(Outcome.FAILED, 0, POLICY, 600) == 30  # it is not heeded at all


def test_what_a_receiver_asks_for_adds_no_attempt():
    policy = RetryPolicy(delay_s=30, max_retries=3, max_retry_after_s=600)
    assert next_delay_s(Outcome.FAILED, 3, policy, 600) is None
    assert next_delay_s(Outcome.SUCCESS, 0, policy, 600) is None


@pytest.mark.parametrize(("status", "expected"), [(410, True), (404, False), (409, False), (200, False), (None, False)])
def test_only_410_ends_a_webhook(status: int | None, expected: bool):
    assert ends_webhook(status) is expected


#: Whose fault it is that no response came, and what that says of the endpoint's load. All kinds.
KINDS = {
    ErrorKind.LOOKUP: (False, Verdict.NEUTRAL),
    ErrorKind.RESOLVER: (True, Verdict.NEUTRAL),
    ErrorKind.CONNECT_TIMEOUT: (False, Verdict.BAD),
    ErrorKind.CONNECT_REFUSED: (False, Verdict.NEUTRAL),
    ErrorKind.CONNECT_FAILED: (False, Verdict.NEUTRAL),
    ErrorKind.TLS: (False, Verdict.NEUTRAL),
    ErrorKind.RESET: (False, Verdict.BAD),
    ErrorKind.HANG_UP: (False, Verdict.BAD),
    ErrorKind.ABORTED: (False, Verdict.BAD),
    ErrorKind.BAD_RESPONSE: (False, Verdict.NEUTRAL),
    ErrorKind.TIMEOUT: (False, Verdict.BAD),
    ErrorKind.NOT_ALLOWED: (False, Verdict.NEUTRAL),
    ErrorKind.PROXY: (True, Verdict.NEUTRAL),
    ErrorKind.BAD_URL: (False, Verdict.NEUTRAL),
    ErrorKind.SECRET_UNREADABLE: (True, Verdict.NEUTRAL),
    ErrorKind.INTERNAL: (True, Verdict.NEUTRAL),
    ErrorKind.INTERRUPTED: (True, Verdict.NEUTRAL),
    ErrorKind.SKIPPED: (True, Verdict.NEUTRAL),
    ErrorKind.WEBHOOK_INACTIVE: (True, Verdict.NEUTRAL),
    ErrorKind.WEBHOOK_UNUSABLE: (True, Verdict.NEUTRAL),
}


@pytest.mark.parametrize("kind", ErrorKind)
def test_each_kind_of_error_is_somebodys_fault(kind: ErrorKind):
    assert (is_own_fault(kind), judge_endpoint(None, kind)) == KINDS[kind]


def test_response_is_never_our_own_fault():
    assert not is_own_fault(None)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, Verdict.BAD) for status in (429, 502, 503, 504)),
        *((status, Verdict.GOOD) for status in (200, 204, 210, 301, 400, 404, 408, 409, 410, 500, 501, 505, 599)),
    ],
)
def test_statuses_of_overload_lower_an_endpoints_share(status: int, expected: Verdict):
    assert judge_endpoint(status, None) is expected
