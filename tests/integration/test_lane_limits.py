"""Rate limits and holds of lanes, with a real Redis."""

import itertools
import time
from typing import Any

import pytest

from tests.lab.lanes import (
    SEND,
    put,
    settle,
    state,
    worker,
)
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import RATE_HEADER
from webhooks.transport.settlements import hold_lane, limit_lane, report


@pytest.mark.parametrize(("rate", "burst"), [(20, 1), (50, 10)])
def test_rate_limit_is_kept(url: str, rate: float, burst: int):
    put(url, SEND, "c/w", *range(300), **{RATE_HEADER: [rate, burst]})
    with worker(url, SEND, threads=64) as party:
        begun, count = time.monotonic(), 0
        while time.monotonic() - begun < 3:
            party.poll(0.005)
            count += len(party.got)
            for message in party.got:
                limit_lane(SEND, "c/w", (rate, burst))
                report(SEND, "c/w", ms=5, is_good=True)
                message.ack()
            party.got.clear()
        allowed = (time.monotonic() - begun) * rate + burst
        # At least: a test that gets no processor for a moment misses what it may not have later.
        assert 0.75 * allowed <= count <= 1.02 * allowed + 1


def test_rate_limit_that_was_taken_away_is_forgotten_with_the_next_attempt(url: str):
    put(url, SEND, "c/w", *range(10), **{RATE_HEADER: [0.2, 1]})
    with worker(url, SEND) as party:
        party.drain(1)
        limit_lane(SEND, "c/w", None)
        settle(party, 1)
        party.drain(4)


@pytest.mark.parametrize("limits", [[(2, 1), (1, 1)], [(1, 1), (2, 1)], [(1, 1), (1, 20)]])
def test_limit_of_which_workers_tell_in_turn_the_old_one_and_the_new_one_holds(url: str, limits: list[Any]):
    """They learn of a change one after the other: each time the lane had all its burst again."""
    put(url, SEND, "c/w", *range(50), **{RATE_HEADER: [2, 1]})
    with worker(url, SEND) as party:
        party.drain(1)
        begun, told = time.monotonic(), itertools.cycle(limits)
        while time.monotonic() - begun < 2:
            limit_lane(SEND, "c/w", next(told))
            for message in party.got:
                if not message.acknowledged:
                    message.ack()
            party.poll(0.02)
        assert 2 <= len(party.got) <= 6


def test_message_with_an_old_limit_does_not_change_that_of_its_lane(url: str):
    """As a retry that was queued with what its webhook had when it was read."""
    put(url, SEND, "c/w", *range(50), **{RATE_HEADER: [1, 1]})
    with worker(url, SEND) as party:
        party.drain(1)
        for number in range(20):
            put(url, SEND, "c/w", number, **{RATE_HEADER: [100, 1]})
            party.poll(0.02)
        assert len(party.got) <= 2


def test_held_lane_gives_out_nothing_until_then_and_the_others_go_on(url: str):
    put(url, SEND, "c/held", *range(3))
    put(url, SEND, "c/free", "a", "b", "c")
    with worker(url, SEND, threads=1) as party:
        party.drain(1)
        lane = party.got[0].headers[LANE_HEADER]
        hold_lane(SEND, lane, 1.5)
        held_at = time.monotonic()
        party.got.pop().ack()
        while True:
            party.drain(1)
            message = party.got.pop()
            message.ack()
            if message.headers[LANE_HEADER] == lane:
                break
        assert time.monotonic() - held_at >= 1.45
        assert state(url, "c/free").waiting == 0


def test_limit_that_was_raised_holds_at_once(url: str):
    put(url, SEND, "c/w", *range(5), **{RATE_HEADER: [0.01, 1]})
    with worker(url, SEND) as party:
        party.drain(1)
        party.poll(0.3)
        assert len(party.got) == 1
        limit_lane(SEND, "c/w", (1000, 10))
        party.got[0].ack()
        party.drain(4)
