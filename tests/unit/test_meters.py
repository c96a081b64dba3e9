"""What a worker counts of its own, without servers."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from tests.lab.logs import NOON, make_attempt, make_log
from webhooks.delivery.meters import Busiest, Fault, Histogram, Meters
from webhooks.models import COTWebhookLog

A, B, C = (ObjectId() for _ in range(3))
COMPANY = ObjectId()


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def log(status: int = 200, retry: int = 0, **attempt: Any) -> COTWebhookLog:
    outcome = "success" if status == 200 else "failed"
    return make_log(
        status=status, retry=retry, attempt=make_attempt(**{"outcome": outcome, "error_kind": None, **attempt})
    )


@pytest.fixture
def meters() -> Meters:
    made = Meters()
    made.is_on = True
    return made


def test_histogram_counts_a_value_that_is_a_bound_below_it():
    histogram = Histogram((0.1, 1.0))
    for value in (0.1, 0.1001, 1.0, 7):
        histogram.add(value)
    assert (histogram.counts, histogram.total) == ([1, 2, 1], pytest.approx(8.2001))


def test_attempts_are_counted_by_outcome_class_and_kind(meters: Meters):
    made = [
        log(),
        log(503),
        log(409),
        log(409, error_kind="timeout"),
        log(409, error_kind="interrupted", total_ms=None),
    ]
    meters.count_attempts([(one, None) for one in made], None)
    assert meters.attempts == {
        ("success", "2xx", "none"): 1,
        ("failed", "5xx", "none"): 1,
        ("failed", "4xx", "none"): 1,
        ("failed", "none", "timeout"): 1,
        ("failed", "none", "interrupted"): 1,
    }
    # Nothing is known of the time of an interrupted attempt.
    assert sum(meters.durations["failed"].counts) == 3


def test_phases_that_did_not_take_place_are_not_counted(meters: Meters):
    meters.count_attempts([(log(send_ms=1.0, wait_ms=40.0, total_ms=41.0), None)], None)
    assert {phase: sum(one.counts) for phase, one in meters.phases.items() if sum(one.counts)} == {"send": 1, "wait": 1}
    assert meters.phases["wait"].total == pytest.approx(0.04)


def test_waits_are_measured_by_the_clock_of_mongodb(meters: Meters):
    # The attempt began at 11:59:59 and ended at noon by our clock, which is 5 s behind.
    accepted_at = NOON + timedelta(seconds=2)
    meters.count_attempts([(log(), accepted_at)], ahead_s=5.0)
    assert meters.first_waits.total == pytest.approx(2.0)
    assert meters.lives["success"].total == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("made", "first", "ended"),
    [
        (log(500, next_at=NOON), 1, 0),
        (log(500, retry=1, next_at=NOON), 0, 0),
        (log(500, retry=3), 0, 1),
        (log(500, retry=3, kept=True), 0, 0),
        (log(500, probe=True, next_at=NOON), 0, 0),
    ],
    ids=["first", "retry", "last", "held", "probe"],
)
def test_waits_are_those_of_first_and_last_attempts(made: COTWebhookLog, first: int, ended: int, meters: Meters):
    meters.count_attempts([(made, NOON)], ahead_s=0.0)
    assert sum(meters.first_waits.counts) == first
    assert sum(meters.lives["failed"].counts) == ended


def test_nothing_is_counted_of_attempts_that_nobody_reads():
    meters = Meters()
    meters.count_attempts([(log(), None)], None)
    assert not meters.attempts
    meters.count_fault(Fault.LOG_LATE, 2)
    assert meters.faults == {Fault.LOG_LATE: 2}


# ── The busiest webhooks ────────────────────────────────────────────────────────────────────────────────────────────


def test_webhooks_without_a_place_are_counted_together():
    busiest = Busiest(places=2, clock=Clock())
    for webhook in (A, B, C, C, A):
        busiest.add(COMPANY, webhook, "success")
    assert busiest.counts == {(COMPANY, A): {"success": 2}, (COMPANY, B): {"success": 1}}
    assert busiest.others == {"success": 2}
    assert busiest.lanes() == {str(A): f"{COMPANY}/{A}", str(B): f"{COMPANY}/{B}"}


def test_a_busier_webhook_gets_the_place_of_a_quieter_one_and_no_count_falls():
    clock = Clock()
    busiest = Busiest(places=2, clock=clock)
    for webhook in (A, A, B, C, C, C):
        busiest.add(COMPANY, webhook, "failed")
    busiest.choose()
    assert set(busiest.counts) == {(COMPANY, A), (COMPANY, B)}, "only once a minute"
    clock.time = 61
    busiest.choose()
    assert busiest.counts == {(COMPANY, C): {}, (COMPANY, A): {"failed": 2}}
    assert busiest.others == {"failed": 3}
    busiest.add(COMPANY, C, "failed")
    assert busiest.counts[COMPANY, C] == {"failed": 1}


def test_an_idle_webhook_keeps_its_place_while_there_is_room():
    clock = Clock()
    busiest = Busiest(places=2, clock=clock)
    busiest.add(COMPANY, A, "success")
    for minute in (1, 2):
        clock.time = 61 * minute
        busiest.choose()
    busiest.add(COMPANY, B, "success")
    assert busiest.counts == {(COMPANY, A): {"success": 1}, (COMPANY, B): {"success": 1}}
