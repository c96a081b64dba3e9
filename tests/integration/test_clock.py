"""A clock is stepped, as when a host's is corrected: nothing that waits has to wait longer for it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from kombu.messaging import Producer

from tests.lab.lanes import DELIVER, OPTIONS, SEND, event, put, send_plainly, state, worker
from tests.lab.party import SHORT, publish
from webhooks.producer.publishing import MessageBatch, _put_all
from webhooks.transport.connection import Connection
from webhooks.transport.lanes import RATE_HEADER
from webhooks.transport.scripts import FEW, PARKED_KEY, SHAS, UNSORTED
from webhooks.transport.settlements import hold_lane
from webhooks.worker import tasks

HOUR_S = 3600
#: What scripts see as Redis's time.
_STEPPED = """(function()
  local time = redis.call('TIME')
  return {tonumber(time[1]) + tonumber(redis.call('GET', 'test.ahead') or '0'), time[2]}
end)()"""


@pytest.fixture
def go_back(redis_client: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what sets the clock back by an hour, as scripts see it: a server has no other than the machine's."""
    for script in SHAS:
        stepped = redis_client.script_load(script.replace("redis.call('TIME')", _STEPPED))
        monkeypatch.setitem(SHAS, script, stepped)

    def go_back() -> None:
        redis_client.set("test.ahead", -HOUR_S)
        for name in redis_client.keys("*"):
            if (left_ms := redis_client.pttl(name)) > 0:  # keys expire by that clock as well
                redis_client.pexpire(name, left_ms + HOUR_S * 1000)

    return go_back


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
        dead.channel.restore_overdue()  # nobody else does for 0.9 s
        dead.die()
        go_back()
    with worker(url, SEND, visibility_timeout=SHORT) as other:
        other.drain(1, 10)


def test_events_of_plain_producers_are_put_into_lanes_after_the_worker_that_did_has_died(
    url: str, go_back: Callable[[], None]
):
    send_plainly(url, event(number=1))
    with worker(url, "celery", DELIVER) as dead:
        channel = dead.channel
        channel.run(UNSORTED, [channel.list_of("celery", 0)], [channel.prefixed(""), "dead", 2000, FEW, 1])
        dead.die()
        go_back()
    with worker(url, "celery", DELIVER) as other:
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


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
def test_retry_waits_for_its_delay_although_the_workers_clock_is_stepped_before_redis_has_it(
    url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch, step_s: float
):
    """A worker publishes retries a batch at a time, and again after an outage: its clock may be stepped meanwhile."""
    batch: Any = MessageBatch()
    task: Any = tasks.send
    task.apply_async(kwargs={"delivery_id": "msg_1"}, countdown=60, producer=batch)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + step_s)
    with Connection(url, transport_options=OPTIONS) as connection:
        _put_all(Producer(connection.default_channel), batch._waiting)
    [(message, due_at)] = redis_client.zrange(PARKED_KEY.format(SEND), 0, -1, withscores=True)
    assert due_at - wall() == pytest.approx(60, abs=10)
    assert b"webhooks_due" not in message
