"""How far the queue has come: what tells a lost message from one that waits in a backlog."""

from datetime import UTC, datetime, timedelta

from webhooks.jobs.sweep import find_reached

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HOURS_AGO = NOW - timedelta(hours=5)


def test_empty_queue_means_that_all_that_is_overdue_is_lost():
    assert find_reached(NOW, None, is_queue_empty=True) == NOW
    assert find_reached(NOW, HOURS_AGO, is_queue_empty=True) == NOW


def test_backlog_is_no_loss():
    assert find_reached(NOW, HOURS_AGO, is_queue_empty=False) == HOURS_AGO


def test_queue_that_nobody_has_taken_from_tells_nothing():
    assert find_reached(NOW, None, is_queue_empty=False) is None


def test_clock_of_a_worker_that_is_ahead_does_not_make_the_future_overdue():
    assert find_reached(NOW, NOW + timedelta(hours=1), is_queue_empty=False) == NOW
