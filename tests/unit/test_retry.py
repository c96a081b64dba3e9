"""What counts as success, and when the next attempt is."""

import pytest

from webhooks.retry import Outcome, RetryPolicy, judge, next_delay_s, why_failed

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
