"""Lanes at the level of channels, with a real Redis: whose turn it is, and how much of one is in hand."""

import json
import time
from random import Random
from typing import Any

import pytest
import redis
from kombu.messaging import Producer

from tests.lab.lanes import (
    DELIVER,
    OPTIONS,
    SEND,
    put,
    serialize,
    settle,
    state,
    worker,
)
from tests.lab.party import LONG, Party
from tests.lab.worker import wait_until
from webhooks.transport.connection import Connection
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import FIRST_HEADER, RATE_HEADER, TAKEN_FROM_HEADER
from webhooks.transport.messages import Admission, Turn
from webhooks.transport.settlements import hold_lane, report

# ── Whose turn it is ────────────────────────────────────────────────────────────────────────────────────────────────


def test_lanes_take_turns_and_so_do_groups(url: str):
    put(url, DELIVER, "loud/x", *range(50))
    put(url, DELIVER, "loud/y", *range(100, 110))
    put(url, DELIVER, "quiet/x", *range(200, 205))
    with worker(url, DELIVER, threads=10) as party:
        bodies = party.drain(10)
    assert sorted(body // 100 for body in bodies) == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert [body for body in bodies if body < 100] == [0, 1, 2], "within a lane the oldest comes first"


def test_lane_that_comes_late_is_next_though_another_has_a_thousand(url: str):
    put(url, DELIVER, "loud/x", *range(1000))
    with worker(url, DELIVER, threads=4) as party:
        for _ in range(20):
            party.drain(4)
            party.got.pop(0).ack()
        party.drain(4)
        put(url, DELIVER, "late/x", "late")
        in_hand, party.got = party.got, []
        for message in in_hand[:2]:
            message.ack()
        wait_until(lambda: party.poll() or "late" in party.bodies, "the late one among the next")
        assert len(party.got) <= 2


def test_late_lanes_without_end_do_not_starve_one(url: str):
    """Each newcomer is served soon; the one that is there all the time gets its turn all the same."""
    put(url, DELIVER, "steady/x", *["steady"] * 30)
    with worker(url, DELIVER, threads=1) as party:
        for number in range(120):
            put(url, DELIVER, f"new{number}/x", "new")
            party.drain(number + 1)
            party.got[-1].ack()
        assert party.bodies.count("steady") >= 5


@pytest.mark.parametrize("seed", range(3))
def test_one_take_of_many_has_the_order_of_many_takes_of_one(url: str, redis_client: redis.Redis, seed: int):
    """A take reads only the first members of each ring, writes their turns at its end, and reads more when needed."""
    random = Random(seed)
    # More groups than a take has messages, and groups of more lanes than are read at a time.
    lanes = [f"g{group}/{lane}" for group in range(30) for lane in range(random.choice([1, 1, 2, 9]))]
    orders = []
    for most in (1, 25):
        redis_client.flushdb()
        random.seed(seed)
        for number in range(200):
            put(url, DELIVER, random.choice(lanes), number)
        hold_lane(DELIVER, lanes[0], 600)
        with worker(url, DELIVER, threads=most) as party:
            party.channel.flush()
            is_held = 0
            while len(party.got) + is_held < 200:
                is_held = state(url, lanes[0], DELIVER).waiting
                before = len(party.got)
                party.poll()
                for message in party.got[before:]:
                    message.ack()
        orders.append(party.bodies)
        assert is_held, "the seed gives the held lane a message"
        left = set(redis_client.smembers(f"webhooks.lanes.{DELIVER}")) | set(redis_client.keys("webhooks.lane.*"))
        assert left == {lanes[0].encode(), f"webhooks.lane.{DELIVER}/{lanes[0]}".encode()}
    assert orders[0] == orders[1]


def test_message_in_a_queue_without_lanes_is_as_kombu_stores_it(url: str, redis_client: Any):
    """A worker that knows nothing of lanes may take it."""
    put(url, "theirs", "a/x", 1)
    put(url, DELIVER, "a/x", 1)
    [theirs] = redis_client.lrange("theirs", 0, -1)
    [ours] = redis_client.zrange(f"webhooks.lane.{DELIVER}/a/x", 0, -1)
    assert set(json.loads(theirs)) == {"body", "content-encoding", "content-type", "headers", "properties"}
    assert set(json.loads(ours)) == {"body", "content-type", "headers", "nonce"}


def test_take_that_fails_loses_no_message(url: str, redis_client: redis.Redis):
    put(url, DELIVER, "a/x", 1, 2)
    redis_client.set("unacked", "of another type")
    with worker(url, DELIVER) as party:
        with pytest.raises(redis.ConnectionError, match="WRONGTYPE"):
            party.poll()
        redis_client.delete("unacked")
        assert state(url, "a/x", DELIVER).waiting == 2


def test_queue_is_as_long_as_its_lanes_and_purging_empties_them(url: str, redis_client: Any):
    put(url, DELIVER, "a/x", 1, 2, 3)
    put(url, DELIVER, "b/x", 4)
    with Connection(url, transport_options=OPTIONS) as connection:
        channel: Any = connection.default_channel
        assert channel.queue_declare(queue=DELIVER, passive=True).message_count == 4
        assert channel.queue_purge(DELIVER) == 4
        assert channel._size(DELIVER) == 0
    kept = {b"webhooks.place", b"webhooks.clock", b"webhooks.wake.webhooks.deliver"}
    assert set(redis_client.keys("webhooks.*")) <= kept


# ── How much of one is in hand ──────────────────────────────────────────────────────────────────────────────────────


def test_lane_of_which_nothing_is_known_gets_four(url: str):
    put(url, SEND, "c/w", *range(100))
    with worker(url, SEND, threads=64) as party:
        assert party.drain(4) == [0, 1, 2, 3]
        party.poll(0.5)
        assert len(party.got) == 4
        assert state(url, "c/w")[:3] == (96, 4, 4)


def test_share_grows_with_good_answers_while_it_is_used(url: str):
    put(url, SEND, "c/w", *range(1000))
    with worker(url, SEND, threads=64) as party:
        held = 4
        while held < 32:
            party.drain(held)
            settle(party, 1)
            before, held = held, state(url, "c/w").share
            assert held <= before + 1
        party.drain(32)


def test_bad_answers_halve_the_share_down_to_one(url: str):
    put(url, SEND, "c/w", *range(100))
    with worker(url, SEND, threads=64) as party:
        party.drain(4)
        settle(party, 4, is_good=False)
        party.drain(1)
        party.poll(0.6)
        assert len(party.got) == 1
        assert state(url, "c/w").share == 1


def test_slow_and_unknown_lanes_together_leave_a_quarter_of_the_threads(url: str):
    with worker(url, SEND, threads=16) as party:
        party.poll()  # says how many threads there are
        for number in range(20):
            put(url, SEND, f"c{number}/hangs", *range(10))
        wait_until(lambda: party.poll() or len(party.got) >= 11, "what they may have")
        party.poll(0.6)
        assert len(party.got) == 12
        for number in range(3):
            settle(party, 1)  # now this one is quick
            put(url, SEND, f"q{number}/fine", "fine")
        assert len(party.got) <= 12


@pytest.mark.parametrize(("threads", "most"), [(16, 12), (2, 2), (1, 1)])
def test_each_worker_keeps_a_quarter_of_its_threads_from_slow_lanes(
    url: str, redis_client: redis.Redis, threads: int, most: int
):
    """With a quarter of all threads one worker could be full of slow ones, and hold what an idle one could do.

    A lane that is new counts as slow: with one of two threads for these, a small worker would be half as fast.
    """
    with worker(url, SEND, threads=threads) as party:
        redis_client.hset("webhooks.workers", "another", "9999999999.000 16")
        party.poll()
        for number in range(20):
            put(url, SEND, f"c{number}/hangs", *range(10))
        wait_until(lambda: party.poll() or len(party.got) >= most, "what they may have")
        party.poll(0.6)
        assert len(party.got) == most


@pytest.mark.parametrize("is_known", [True, False], ids=["slow", "unknown"])
def test_attempt_without_a_free_thread_waits_here_unless_it_is_slow(url: str, *, is_known: bool):
    with worker(url, SEND, threads=16) as party:
        party.poll()
        if is_known:
            put(url, SEND, "c/slow", "first")
            party.drain(1)
            settle(party, 1, ms=2_000)
        put(url, SEND, "c/quick", "first")
        party.drain(1)
        settle(party, 1)
        party.poll()
        if not is_known:
            others = [Admission(f"{number}", f"c/w{number}", None) for number in range(12)]
            assert party.channel.admit(SEND, others, 16, 16)() == [Turn.NOW] * 12
        asked = [Admission("s", "c/slow", None), Admission("q", "c/quick", None)]
        assert party.channel.admit(SEND, asked, 0, 16)() == [Turn.LATER, Turn.SOON]
        assert party.channel.admit(SEND, asked[1:], 1, 16)() == [Turn.NOW]


def test_attempts_without_messages_get_no_more_than_three_quarters_if_nothing_is_known_of_them(url: str):
    """With an event for many webhooks there are more attempts than messages in hand."""
    with worker(url, SEND, threads=16) as party:
        party.poll()
        asked = [Admission(f"{number}", f"c/w{number}", None) for number in range(16)]
        assert party.channel.admit(SEND, asked, 16, 16)() == [Turn.NOW] * 12 + [Turn.LATER] * 4


def test_one_lane_never_gets_all_threads(url: str):
    put(url, SEND, "c/w", *range(500))
    with worker(url, SEND, threads=20) as party:
        for _ in range(60):
            party.poll(0.05)
            if party.got:
                settle(party, 1)
        party.poll(0.5)
        assert len(party.got) == 16


def test_share_of_a_lane_that_needs_little_shrinks_to_it(url: str, monkeypatch: pytest.MonkeyPatch):
    put(url, SEND, "c/w", *range(200))
    with worker(url, SEND, threads=64) as party:
        while state(url, "c/w").share < 20:
            party.poll(0.05)
            settle(party, 1)
        with Connection(url, transport_options=OPTIONS) as connection:
            connection.default_channel.queue_purge(SEND)
        settle(party, len(party.got))
        party.poll()
        for _ in range(10):  # one at a time is all it needs now; for longer than two times it is fitted
            put(url, SEND, "c/w", "one")
            party.drain(1)
            settle(party, 1)
            time.sleep(1.5)
        party.poll()
        assert state(url, "c/w").share <= 8


def test_what_a_dead_worker_held_counts_until_it_comes_back(url: str):
    put(url, SEND, "c/w", *range(10))
    dead = Party(url, SEND, prefetch=64, **OPTIONS, visibility_timeout=2)
    dead.drain(4)
    dead.die()
    with worker(url, SEND, visibility_timeout=2) as party:
        party.poll(0.5)
        assert party.got == []
        assert party.drain(4, timeout_s=15) == [0, 1, 2, 3], "in their old places"


def test_message_given_back_has_its_old_place(url: str):
    put(url, DELIVER, "c/x", *range(5))
    with worker(url, DELIVER, threads=3) as party:
        assert party.drain(3) == [0, 1, 2]
        for message in party.got[:]:
            message.requeue()
        party.got.clear()
        assert party.drain(3) == [0, 1, 2]


def test_message_that_is_to_come_first_in_its_lane_does_and_does_not_say_so_for_ever(url: str):
    put(url, DELIVER, "c/x", *range(3))
    put(url, DELIVER, "c/x", "old", **{FIRST_HEADER: True})
    put(url, DELIVER, "c/y", "alone", **{FIRST_HEADER: True})
    with worker(url, DELIVER) as party:
        party.drain(5)
        assert [body for body in party.bodies if body != "alone"] == ["old", 0, 1, 2]
        assert all(FIRST_HEADER not in message.headers for message in party.got)


@pytest.mark.parametrize(("waiting", "turn"), [(0, Turn.NOW), (1, Turn.SOON), (30, Turn.SOON), (2_000, Turn.LATER)])
def test_attempt_is_to_come_soon_only_where_few_wait_before_it(url: str, waiting: int, turn: Turn):
    with worker(url, SEND) as party:
        put(url, SEND, "c/w", "first")
        party.drain(1)
        settle(party, 1)  # it is quick
        party.poll()
        party.consumer.cancel()
        put(url, SEND, "c/w", *range(waiting))
        assert party.channel.admit(SEND, [Admission("x", "c/w", None)], 4, 100)() == [turn]


# ── Serial lanes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_serial_lane_gives_out_one_at_a_time_in_the_order_in_which_all_came(url: str):
    for number in range(6):
        put(url, DELIVER, f"c/COTTask/part{number % 2}", number)
    put(url, DELIVER, "c/COTNote/-", "another type")
    serialize(url, "c/COTTask")
    put(url, DELIVER, "c/COTTask/part0", 6)
    with worker(url, DELIVER) as party:
        assert set(party.drain(2)) == {0, "another type"}
        party.got.pop(party.bodies.index("another type")).ack()
        for number in range(7):
            party.drain(1)
            party.poll(0.05)
            assert party.bodies == [number]
            assert party.got[0].headers[TAKEN_FROM_HEADER] == "c/COTTask!"
            party.got.pop().ack()


def test_messages_taken_before_a_lane_became_serial_go_back_to_their_places(url: str):
    put(url, DELIVER, "c/COTTask/-", *range(5))
    with worker(url, DELIVER, threads=3) as party:
        party.drain(3)
        serialize(url, "c/COTTask")
        for message in party.got[:]:
            message.requeue()
        party.got.clear()
        for number in range(5):
            assert party.drain(1) == [number]
            party.got.pop().ack()


def test_lane_is_serial_no_more(url: str):
    serialize(url, "c/COTTask")
    serialize(url, "c/COTTask", is_serial=False)
    put(url, DELIVER, "c/COTTask/-", *range(5))
    with worker(url, DELIVER) as party:
        assert len(party.drain(5)) == 5
        assert party.got[0].headers[TAKEN_FROM_HEADER] == "c/COTTask/-"


# ── Redis loses something ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", ["webhooks.ring*", "webhooks.lanes.*", "webhooks.taken", "webhooks.flight*"])
def test_lane_goes_on_though_redis_evicted_what_belongs_to_it(url: str, redis_client: Any, lost: str):
    put(url, SEND, "c/w", *range(20))
    with worker(url, SEND, visibility_timeout=LONG) as party:
        party.drain(4)
        for key in redis_client.keys(lost):
            redis_client.delete(key)
        got = 0
        state(url, "c/w")  # the sweep's look
        deadline = time.monotonic() + 10
        while got < 20 and time.monotonic() < deadline:
            party.poll(0.05)
            got += len(party.got)
            if party.got:
                settle(party, len(party.got))
            if lost == "webhooks.taken" and got == 4:
                break
        assert got == (4 if lost == "webhooks.taken" else 20)


def test_all_keys_have_the_users_prefix(url: str, redis_client: Any):
    options = {**OPTIONS, "global_keyprefix": "team."}
    with Connection(url, transport_options=options) as connection:
        producer = Producer(connection.default_channel)
        for lane in ("c/w", "c/v"):
            about = {"id": "x", "eta": None, LANE_HEADER: lane}
            producer.publish(1, exchange="", routing_key=SEND, serializer="json", headers=about)
    with worker(url, SEND, threads=1, global_keyprefix="team.") as party:
        party.drain(1)
        settle(party, 1)
        party.drain(1)
        assert all(key.startswith(b"team.") for key in redis_client.keys("*"))


def test_new_endpoint_gets_its_turn_though_a_quick_one_holds_most_threads(url: str):
    put(url, SEND, "c/loud", *range(2000))
    with worker(url, SEND, threads=16) as party:
        while state(url, "c/loud").share < 14:
            party.poll(0.01)
            settle(party, min(len(party.got), 4))
        party.poll(0.2)
        put(url, SEND, "d/new", "new")
        for _ in range(20):
            settle(party, 1)
            party.poll(0.05)
            if "new" in party.bodies:
                break
        assert "new" in party.bodies


def test_what_is_in_hand_when_a_lane_becomes_serial_holds_up_the_next(url: str):
    put(url, DELIVER, "c/COTTask/-", *range(4))
    with worker(url, DELIVER, threads=2) as first, worker(url, DELIVER, threads=2) as second:
        first.drain(2)
        first.consumer.cancel()
        serialize(url, "c/COTTask")
        second.poll(0.5)
        assert second.got == []
        for message in reversed(first.got):
            message.requeue()
        for number in range(4):
            assert second.drain(1) == [number]
            second.got.pop().ack()


def test_healthy_lane_goes_on_beside_a_thousand_that_may_not(url: str):
    for number in range(1000):
        put(url, SEND, f"c{number}/w", 1, 2, **{RATE_HEADER: [0.01, 1]})
    with worker(url, SEND, threads=2000) as party:
        wait_until(lambda: party.poll(0.01) or len(party.got) >= 1000, "one of each", 30)
        put(url, SEND, "healthy/w", *["healthy"] * 20)
        for message in party.got:
            message.ack()
        party.got.clear()
        begun = time.monotonic()
        while party.bodies.count("healthy") < 20 and time.monotonic() - begun < 10:
            party.poll(0.01)
            for message in [one for one in party.got if not one.acknowledged]:
                report(SEND, message.headers[LANE_HEADER], ms=5, is_good=True)
                message.ack()
        assert party.bodies.count("healthy") == 20
        assert time.monotonic() - begun < 5


def test_attempt_does_not_wait_here_for_messages_that_no_worker_has_room_to_take(url: str):
    """The workers' places may be taken by events that wait for these: each would wait for a second, and be queued."""
    with worker(url, SEND, threads=4) as party:
        put(url, SEND, "c/w", "first")
        party.drain(1)
        settle(party, 1)  # it is quick
        party.poll()
        put(url, SEND, "c/w", *range(4))
        party.drain(4)
        party.consumer.cancel()
        put(url, SEND, "c/w", "waits")
        assert party.channel.admit(SEND, [Admission("x", "c/w", None)], 4, 4)() == [Turn.LATER]
