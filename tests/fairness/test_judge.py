"""The judge must condemn what is wrong: a suite that cannot fail shows nothing."""

import math

import pytest

from tests.fairness.judge import (
    Arrival,
    Order,
    busiest_second,
    judge_order,
    most_in_flight,
    per_second,
    percentile,
    rate_of,
    waits_of,
)
from tests.fairness.rows import at_least, at_most, known, must, none_of, to_markdown
from tests.fairness.scenarios import pause
from tests.fairness.sizes import CI, FULL


def came(number: int, at: float, ended_at: float | None = -1, status: int | None = 200, path: str = "/a") -> Arrival:
    """An arrival; answered a tenth of a second later, unless told otherwise."""
    return Arrival(path, number, at, at + 0.1 if ended_at == -1 else ended_at, status, None, f"msg_{number}")


# ── Figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_percentile_is_one_of_the_values():
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3, 1, 2], 0.99) == 3
    assert math.isnan(percentile([], 0.99))


def test_percentile_of_what_did_not_arrive_is_infinite():
    assert percentile([0.1] * 98 + [math.inf] * 2, 0.99) == math.inf
    assert percentile([0.1] * 99 + [math.inf], 0.99) == 0.1


def test_rate_counts_within_the_window_only():
    assert rate_of([came(1, 9.9), came(2, 10), came(3, 11.9), came(4, 12)], 10, 12) == 1


def test_waits_are_of_the_first_arrival_and_of_events_handed_in_within_the_window():
    sent = {1: 9.0, 2: 10.0, 3: 11.0, 4: 12.0}
    assert waits_of(sent, [came(1, 9.5), came(2, 10.5), came(2, 10.25)], 10, 12) == [0.25, math.inf]


def test_most_in_flight_counts_what_is_open_at_one_time():
    arrivals = [came(1, 0, 2), came(2, 1, 3), came(3, 2, 4), came(4, 9, None)]
    assert most_in_flight(arrivals) == 2
    assert most_in_flight(arrivals, since=3.5, until=8) == 1
    assert most_in_flight(arrivals, since=5, until=8) == 0
    assert most_in_flight([]) == 0


def test_most_in_flight_counts_what_was_open_before_the_window():
    assert most_in_flight([came(1, 0, None), came(2, 5, 6)], since=4) == 2


def test_arrivals_by_second():
    arrivals = [came(1, 10.0), came(2, 10.9), came(3, 11.0), came(4, 13.5)]
    assert per_second(arrivals, 10, 4) == [2, 1, 0, 1]
    assert busiest_second(arrivals) == 2
    assert busiest_second([came(1, 0.6), came(2, 0.9), came(3, 1.5), came(4, 1.7)]) == 3


# ── Order ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def order_of(*arrivals: Arrival, kills: tuple[float, ...] = ()) -> Order:
    return judge_order({"/a": [1, 2, 3]}, arrivals, kills)


ONE, TWO, THREE = came(1, 1), came(2, 2), came(3, 3)


def test_order_kept_through_a_failed_attempt_is_good():
    assert order_of(ONE, came(2, 1.5, status=500), TWO, THREE) == Order([], [], [], [], 0)


def test_order_of_two_webhooks_is_judged_apart():
    others = [came(5, 1.05, path="/b"), came(4, 1.2, path="/b")]
    found = judge_order({"/a": [1], "/b": [5, 4]}, [ONE, *others], [])
    assert found == Order([], [], [], [], 0)


def test_order_is_that_of_acceptance_not_of_numbers():
    assert judge_order({"/a": [2, 1]}, [came(1, 1), came(2, 2)], []).misplaced == [("/a", 2)]


@pytest.mark.parametrize("arrivals", [(ONE, THREE), (ONE, came(2, 2, status=500), THREE)], ids=["none", "only failed"])
def test_order_without_a_success_finds_it_lost(arrivals: tuple[Arrival, ...]):
    assert order_of(*arrivals).lost == [("/a", 2)]


def test_order_with_two_successes_the_wrong_way_round_finds_the_late_one():
    found = order_of(ONE, came(3, 2), came(2, 3))
    assert found.misplaced == [("/a", 2)]
    assert found.interleaved == [("/a", 2)]


def test_order_with_an_attempt_between_two_attempts_of_another_finds_it():
    """First successes are in order here; all the same the later event was sent before the earlier one was received."""
    found = order_of(ONE, came(2, 2, status=500), came(3, 2.5, status=500), came(2, 3), came(3, 4))
    assert found.misplaced == []
    assert found.interleaved == [("/a", 2)]


def test_order_with_two_in_flight_finds_the_second():
    assert order_of(came(1, 1, 2.5), came(2, 2), THREE).overlapping == [("/a", 2)]


def test_order_with_one_that_stays_open_finds_all_that_come_later():
    assert order_of(came(1, 1, None, None), came(1, 2), TWO, THREE).overlapping == [("/a", 1), ("/a", 2), ("/a", 3)]


def test_order_allows_a_repeat_beside_the_attempt_of_a_worker_that_was_killed():
    arrivals = came(1, 1, 2.5, None), came(1, 2), came(2, 2.6), THREE
    assert order_of(*arrivals).overlapping == [("/a", 1)]
    assert order_of(*arrivals, kills=(1.5,)).overlapping == []
    assert order_of(*arrivals, kills=(2.2,)).overlapping == [("/a", 1)]


def test_order_allows_no_other_event_beside_the_attempt_of_a_worker_that_was_killed():
    assert order_of(came(1, 1, 2.5), came(2, 2), THREE, kills=(1.5,)).overlapping == [("/a", 2)]


def test_order_counts_a_repeat_after_a_success():
    found = order_of(ONE, came(1, 1.5), TWO, THREE)
    assert (found.repeats, found.misplaced, found.interleaved) == (1, [], [])


# ── Pause ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def pause_missed(*arrivals: Arrival) -> list[str]:
    """Judge two events kept from 10 to 20, when the endpoint is up; return what was missed."""
    rows = pause._judge("x", list(arrivals), {1: 12.0, 2: 13.0}, (10.0, 20.0))
    return [row.what.removeprefix("x: ") for row in rows if not row.is_good]


PROBES = [came(0, at, status=503) for at in (11.0, 13.0, 15.0)]


def test_pause_with_probes_and_all_drained_is_good():
    assert pause_missed(*PROBES, came(0, 21), came(1, 22), came(2, 23)) == []


def test_pause_finds_what_did_not_arrive():
    assert pause_missed(*PROBES, came(1, 22), came(2, 23, status=503)) == ["lost of 2 kept"]


def test_pause_finds_more_attempts_than_probes():
    many = [came(0, 10 + n, status=503) for n in range(10)]
    assert pause_missed(*many, came(1, 22), came(2, 23)) == ["attempts in 10 s while paused"]


def test_pause_finds_two_probes_at_one_time():
    assert pause_missed(came(0, 11, 14, None), came(0, 13, 15, None), came(1, 22), came(2, 23)) == [
        "most in flight while paused"
    ]


def test_pause_without_a_probe_finds_that():
    assert pause_missed(came(1, 22), came(2, 23)) == ["probed while paused"]


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_row_is_judged_by_the_ratio_where_there_is_something_to_compare_with():
    row = at_least("s", "w", 90, 0.9, noisy=0.5, without=100)
    assert (row.ratio, row.verdict) == (0.9, "good")
    assert at_least("s", "w", 89, 0.9, noisy=0.5, without=100).verdict == "MISSED"
    assert at_most("s", "w", 2.1, 2, noisy=5, without=1).verdict == "MISSED"


def test_row_with_nothing_to_compare_with_is_missed():
    for without in (0.0, math.nan, math.inf):
        assert not at_least("s", "w", 1, 0.9, noisy=0, without=without).is_tolerable
        assert not at_most("s", "w", 1, 2, noisy=9, without=without).is_tolerable


@pytest.mark.parametrize("found", [math.inf, math.nan], ids=str)
def test_row_of_what_never_came_is_missed_on_any_machine(found: float):
    assert not at_most("s", "w", found, 1, noisy=100).is_tolerable


def test_size_decides_which_bar_counts():
    row = at_most("s", "w", 3, 2, noisy=4)
    assert FULL.has_failed(row)
    assert not CI.has_failed(row)
    for strict in (none_of("s", "w", ["lost"]), must("s", "w", "never", is_so=False)):
        assert FULL.has_failed(strict)
        assert CI.has_failed(strict)
    assert not FULL.has_failed(known("s", "w", math.inf))


def test_table_is_aligned():
    text = to_markdown([at_most("s", "p99, s", math.inf, 1, noisy=1, without=0.02), known("s", "count", 12345)])
    assert text == (
        "| scenario | measured | without |   with | ratio | bar | verdict |\n"
        "| -------- | -------- | ------: | -----: | ----: | --- | ------- |\n"
        "| s        | p99, s   |    0.02 |  never | never | ≤ 1 | MISSED  |\n"
        "| s        | count    |         | 12,345 |       |     | –       |"
    )
