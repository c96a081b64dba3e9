from datetime import UTC, datetime, timedelta

import pytest

from webhooks.rules.figures import Counts, percentile, summarize

NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)


def test_figures_of_nothing_are_unknown_and_not_zero():
    figures = summarize([None, Counts()], 2)
    assert (figures.success_rate, figures.p50_ms, figures.p95_ms, figures.last_failed_at) == (None, None, None, None)
    assert figures.spark == [(0, 0), (0, 0)]


def test_figures_add_up_over_slices():
    slices = [
        Counts(10, 1, NOON, {20: 10}),
        None,
        Counts(5, 5, NOON + timedelta(minutes=9), {24: 5}),
        Counts(5, 0, None, {20: 5}),
    ]
    figures = summarize(slices, 2)
    assert (figures.attempts, figures.failed, figures.success_rate) == (20, 6, 0.7)
    assert figures.last_failed_at == NOON + timedelta(minutes=9)
    assert figures.spark == [(9, 1), (5, 5)]


@pytest.mark.parametrize(("share", "low", "high"), [(0.5, 30, 40), (0.95, 900, 1200)])
def test_percentile_is_right_to_its_bucket(share: float, low: float, high: float):
    found = percentile({20: 90, 40: 10}, share)
    assert found is not None
    assert low < found < high
