"""When an endpoint is paused, and how fast what was kept is let out."""

import pytest

from webhooks.rules.health import (
    FULL_RATE,
    START_RATE,
    HealthPolicy,
    Slice,
    Streak,
    find_streak,
    is_fault_ours,
    next_rate,
    room,
    save,
    should_pause,
    should_pause_again,
)

POLICY = HealthPolicy(pause_after_s=600, pause_share=0.9, pause_min_attempts=20)


@pytest.mark.parametrize(
    ("failed", "total", "failing_for_s", "expected"),
    [
        (20, 20, 600, True),
        (18, 20, 600, True),
        (17, 20, 600, False),
        (19, 19, 600, False),
        (20, 20, 599.9, False),
        (0, 0, 0, False),
    ],
    ids=["all", "just the share", "too few failed", "too few attempts", "too short", "nothing"],
)
def test_endpoint_is_paused_when_it_has_failed_for_long(failed: int, total: int, failing_for_s: float, expected: bool):
    assert should_pause(failed, total, failing_for_s, POLICY) is expected


def test_streak_goes_back_to_when_the_endpoint_did_well():
    bad, good, nothing = Slice(1, 9, 100), Slice(3, 2, 500), Slice(0, 0, None)
    assert find_streak([]) == Streak(0, 0, 0)
    assert find_streak([good, bad]) == Streak(0, 0, 0)
    assert find_streak([bad, nothing, Slice(0, 5, 300), good, bad]) == Streak(14, 15, 300)
    assert find_streak([bad, nothing]) == Streak(9, 10, 100)
    assert find_streak([Slice(2, 2, 7)]) == Streak(2, 4, 7), "as many failed"


def test_many_failures_of_the_last_minute_do_not_speak_for_the_time_before():
    streak = find_streak([Slice(0, 1000, 10), *[Slice(5, 0, None)] * 10, Slice(0, 1, 600)])
    assert not should_pause(streak.failed, streak.total, streak.failing_for_s, POLICY)


@pytest.mark.parametrize(
    ("failed", "total", "expected"), [(5, 5, True), (4, 4, False), (9, 10, True), (8, 10, False), (0, 5, False)]
)
def test_recovering_endpoint_is_paused_again_when_it_fails_on(failed: int, total: int, expected: bool):
    assert should_pause_again(failed, total, POLICY) is expected


def test_rate_doubles_while_all_is_well_and_halves_when_something_fails():
    assert next_rate(START_RATE, 1, 0) == 2
    assert next_rate(8, 0, 0) == 8, "nothing came back"
    assert next_rate(8, 12, 0) == 16, "at most twice"
    assert next_rate(8, 6, 0) == 12, "a part of it was not tried"
    assert next_rate(8, 3, 0) == 8
    assert next_rate(8, 7, 1) == 4
    assert next_rate(FULL_RATE, 20, 2) == 11, "half of what it takes"
    assert next_rate(START_RATE, 0, 1) == START_RATE
    assert next_rate(FULL_RATE, 1, 0) == FULL_RATE


def test_no_more_is_let_out_than_the_rate_allows_and_comes_back():
    assert save(0, 8, 0.25) == 2
    assert save(3, 8, 10) == 4, "a pause does not make a flood"
    assert save(0.5, 1, 10) == 1
    assert room(2.9, 8, 0) == 2
    assert room(8, 8, 15) == 1
    assert room(8, 8, 20) == 0
    assert room(FULL_RATE, FULL_RATE, 400) == 600
    assert room(1, START_RATE, 1) == 1


def test_ten_thousand_are_out_well_within_two_minutes():
    rate, saved, sent, seconds, done = START_RATE, 0.0, 0, 0.0, 0
    while sent < 10_000:
        saved = save(saved, rate, 0.25)
        count = room(saved, rate, 0)
        saved, sent, done, seconds = saved - count, sent + count, done + count, seconds + 0.25
        if seconds == int(seconds):
            rate, done = next_rate(rate, done, 0), 0
    assert 5 < seconds < 30


@pytest.mark.parametrize(
    ("unreached", "seen", "expected"), [(5, 9, True), (5, 10, False), (4, 4, False), (0, 0, False), (60, 100, True)]
)
def test_fault_is_ours_when_most_are_out_of_reach(unreached: int, seen: int, expected: bool):
    assert is_fault_ours(unreached, seen) is expected
