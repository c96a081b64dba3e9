"""Redis's clock goes back, as when its host's is corrected: nothing that waits has to wait longer for it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.integration.test_lanes import DELIVER, SEND, put, state, worker
from tests.integration.test_transport import SHORT, publish
from webhooks.transport.lanes import RATE_HEADER
from webhooks.transport.scripts import SHAS
from webhooks.transport.settlements import hold_lane

HOUR_S = 3600
#: What scripts see as Redis's time.
_STEPPED = """(function()
  local time = redis.call('TIME')
  return {tonumber(time[1]) + tonumber(redis.call('GET', 'test.ahead') or '0'), time[2]}
end)()"""


@pytest.fixture
def url(redis_url: str, redis_client: redis.Redis) -> str:
    """Give the URL of an empty Redis."""
    return redis_url


@pytest.fixture
def go_back(redis_client: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what sets the clock back by an hour, as scripts see it: a server has no other than the machine's."""
    for script in SHAS:
        stepped = redis_client.script_load(script.replace("redis.call('TIME')", _STEPPED))
        monkeypatch.setitem(SHAS, script, stepped)
    return lambda: redis_client.set("test.ahead", -HOUR_S)


def test_lane_with_a_limit_goes_on_at_its_rate(url: str, go_back: Callable[[], None]):
    put(url, SEND, "c/w", *range(10), **{RATE_HEADER: [4, 1]})
    with worker(url, SEND) as party:
        party.drain(2)
        begun = time.monotonic()
        go_back()
        for message in party.got[:2]:
            message.ack()
        party.drain(4)
        for message in party.got[2:]:
            message.ack()
        party.drain(7)
        assert time.monotonic() - begun == pytest.approx(5 / 4, abs=1)


def test_message_with_a_countdown_is_run_when_it_is_due(url: str, go_back: Callable[[], None]):
    with worker(url, DELIVER) as party:
        publish(url, DELIVER, "later", is_plain=False, delay_s=1)
        party.poll()
        go_back()
        party.drain(1, 5)


def test_lane_that_is_held_is_let_go_in_time(url: str, go_back: Callable[[], None]):
    put(url, SEND, "c/held", 1, 2)
    with worker(url, SEND, threads=1) as party:
        party.drain(1)
        hold_lane(SEND, "c/held", 1)
        party.got.pop().ack()
        party.poll(0.2)
        go_back()
        party.drain(1, 5)


def test_what_a_dead_worker_holds_comes_back(url: str, go_back: Callable[[], None]):
    put(url, SEND, "c/w", 1)
    with worker(url, SEND) as dead:
        dead.drain(1)
        dead.die()
    go_back()
    with worker(url, SEND, visibility_timeout=SHORT) as other:
        other.drain(1, 10)


def test_sweep_is_told_how_long_a_message_has_waited(url: str, go_back: Callable[[], None]):
    """The lane looked as if its messages had just come, so what is lost of it was never missed."""
    put(url, SEND, "c/w", 1)
    time.sleep(0.5)
    assert state(url, "c/w").waited_s
    go_back()
    waited_s = state(url, "c/w").waited_s
    assert waited_s is not None
    assert waited_s >= 0.3
