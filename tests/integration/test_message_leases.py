"""Leases of messages and of places in lanes, on a real Redis: what a dead process held is free, and no other's is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from bson import ObjectId

from tests.lab.lanes import DELIVER, OPTIONS, SEND, put, settle, state, worker
from tests.lab.party import Party, held
from tests.lab.worker import wait_until
from webhooks.transport import holder
from webhooks.transport.holder import LEASE_S, WITNESS_AFTER_S
from webhooks.transport.messages import Admission, Turn
from webhooks.transport.scripts import TAKE
from webhooks.transport.settlements import finish


@contextmanager
def process(monkeypatch: pytest.MonkeyPatch, token: str) -> Iterator[None]:
    """Be another process for a while."""
    with monkeypatch.context() as patch:
        patch.setattr(holder, "_token", token)
        yield


def become_witness(client: redis.Redis, party: Party) -> None:
    """Make it look as if this process had renewed its lease for long."""
    party.channel.renew_lease()
    client.hset("webhooks.leases.since", holder.process_token(), 0)


def lapse(client: redis.Redis, token: str, ago_s: float = 1) -> None:
    client.zadd("webhooks.leases", {token: client.time()[0] - ago_s})  # pyright: ignore[reportIndexIssue]


DEAD = "d" * 16


@pytest.fixture
def dead(url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Party:
    """Give a process that died with four messages of a lane in hand, which is as many as the lane may have."""
    put(url, SEND, "c/w", *range(10))
    with process(monkeypatch, DEAD):
        made = Party(url, SEND, prefetch=64, **OPTIONS)
        made.channel.renew_lease()
        made.drain(4)
        made.die()
    return made


def test_what_a_dead_process_held_comes_back_when_its_lease_has_lapsed(
    dead: Party, url: str, redis_client: redis.Redis
):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        party.poll(1.5)
        assert party.got == [], "its lease is good still"
        lapse(redis_client, DEAD)
        assert party.drain(4, timeout_s=5) == [0, 1, 2, 3], "in their old places"
        assert [message.delivery_info["redelivered"] for message in party.got] == [True] * 4
        settle(party, 4)
        party.drain(4)
        wait_until(lambda: party.poll() or not redis_client.zscore("webhooks.leases", DEAD), "forgotten", 5)
        assert redis_client.hkeys("webhooks.leases.since") == [holder.process_token().encode()]


def test_process_that_has_just_started_takes_nothing_from_others(dead: Party, url: str, redis_client: redis.Redis):
    lapse(redis_client, DEAD)
    with worker(url, SEND) as party:
        party.channel.renew_lease()
        party.poll(1.5)
        assert party.got == []
        redis_client.hset("webhooks.leases.since", holder.process_token(), redis_client.time()[0] - WITNESS_AFTER_S)  # pyright: ignore[reportIndexIssue]
        party.drain(4, timeout_s=5)


def test_process_that_renews_after_a_gap_takes_nothing_from_others(dead: Party, url: str, redis_client: redis.Redis):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        lapse(redis_client, DEAD)
        redis_client.zadd("webhooks.leases", {holder.process_token(): redis_client.time()[0] + 4})  # pyright: ignore[reportIndexIssue]
        party.poll(1.5)
        assert party.got == []
        party.channel.renew_lease()
        party.poll(1.5)
        assert party.got == []


def test_message_held_without_a_lease_waits_for_the_visibility_timeout(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    put(url, SEND, "c/w", 1, 2)
    with process(monkeypatch, DEAD):
        old = Party(url, SEND, prefetch=64, **OPTIONS)
        old.drain(2)
        old.die()
    with worker(url, SEND, visibility_timeout=4) as party:
        become_witness(redis_client, party)
        party.poll(2)
        assert party.got == []
        party.drain(2)


def test_places_of_attempts_without_messages_are_free_when_the_lease_has_lapsed(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    asked = [Admission(str(ObjectId()), "c/w", None) for _ in range(4)]
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        party.poll()
        with process(monkeypatch, DEAD):
            party.channel.renew_lease()
            assert party.channel.admit(SEND, asked, 4, 100)() == [Turn.NOW] * 4
        put(url, SEND, "c/w", "new")
        party.poll(1.5)
        assert (party.got, state(url, "c/w").in_flight) == ([], 4)
        assert redis_client.zcard(f"webhooks.slow.webhooks.send/{DEAD}") == 4
        lapse(redis_client, DEAD)
        assert party.drain(1, timeout_s=5) == ["new"]
        assert state(url, "c/w").in_flight == 1
        assert redis_client.zcard(f"webhooks.slow.webhooks.send/{DEAD}") == 0
        assert redis_client.zcard(f"webhooks.slow.webhooks.send/{holder.process_token()}") == 1
        assert redis_client.hlen("webhooks.taken") == 1


def test_end_of_an_attempt_without_a_message_leaves_nothing(url: str, redis_client: redis.Redis):
    asked = Admission(str(ObjectId()), "c/w", None)
    with worker(url, SEND) as party:
        party.poll()
        assert party.channel.admit(SEND, [asked], 4, 100)() == [Turn.NOW]
        finish(SEND, "c/w", asked.tag)
        party.channel.flush()
        assert state(url, "c/w").in_flight == 0
        assert redis_client.keys("webhooks.taken") == redis_client.keys("webhooks.slow.*") == []


def test_lost_reply_to_an_admission_leaves_no_place_taken(url: str, monkeypatch: pytest.MonkeyPatch):
    with worker(url, SEND) as party:
        party.poll()
        begin = party.channel.begin

        def lose_reply(*arguments: Any) -> Callable[[], Any]:
            wait = begin(*arguments)

            def read() -> Any:
                wait()
                raise redis.ConnectionError("lost")

            return read

        monkeypatch.setattr(party.channel, "begin", lose_reply)
        wait = party.channel.admit(SEND, [Admission(str(ObjectId()), "c/w", None)], 1, 100)
        with pytest.raises(redis.ConnectionError):
            wait()
        party.channel.flush()
        assert state(url, "c/w").in_flight == 0


def test_admission_that_is_carried_out_after_its_end_leaves_no_place_taken(url: str):
    """The connection dies with the admission on its way; the end of the attempt comes first, over another one."""
    asked = Admission(str(ObjectId()), "c/w", None)
    with worker(url, SEND) as party:
        party.poll()
        finish(SEND, "c/w", asked.tag)
        party.channel.flush()
        party.channel.admit(SEND, [asked], 4, 100)()
        assert state(url, "c/w").in_flight == 0


def test_take_that_is_carried_out_after_it_was_given_up_takes_nothing(url: str):
    """Likewise, with a take: its messages would be held by a worker that does not know of them."""
    put(url, SEND, "c/w", 1)
    with worker(url, SEND) as party:
        take = party.channel._new_take([SEND], 1)
        party.channel._note_lost(take)
        party.channel._give_back_lost_takes()
        assert len(party.channel.run(TAKE, *party.channel._take_arguments(take))) == 3
        assert party.drain(1, timeout_s=5) == [1]


def test_take_after_a_pause_renews_a_lease_that_has_lapsed(url: str, redis_client: redis.Redis):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        lapse(redis_client, holder.process_token())
        put(url, SEND, "c/w", 1)
        party.drain(1)
        left_s = float(redis_client.zscore("webhooks.leases", holder.process_token()) or 0) - redis_client.time()[0]  # pyright: ignore
        assert left_s > LEASE_S - 2
        since = float(redis_client.hget("webhooks.leases.since", holder.process_token()) or 0)  # pyright: ignore
        assert since > 0, "and watches anew"


def test_take_of_a_process_without_a_lease_makes_none(url: str, redis_client: redis.Redis):
    put(url, SEND, "c/w", 1)
    with worker(url, SEND) as party:
        party.drain(1)
        assert redis_client.exists("webhooks.leases") == 0


def test_ended_lease_has_lapsed(dead: Party, url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        with process(monkeypatch, DEAD):
            party.channel.end_lease()
        party.drain(4, timeout_s=5)


def test_lease_comes_back_by_itself_after_a_flush(dead: Party, url: str, redis_client: redis.Redis):
    with worker(url, SEND) as party:
        become_witness(redis_client, party)
        redis_client.flushdb()
        party.channel.renew_lease()
        assert redis_client.zcard("webhooks.leases") == 1
        put(url, SEND, "c/w", "new")
        assert party.drain(1) == ["new"]
        assert held(redis_client) == 1


def test_many_messages_of_many_dead_processes_all_come_back(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    count = 1_200  # more than one step gives back
    put(url, DELIVER, "c/x", *range(count))
    tokens = [f"{number:016x}" for number in range(3)]
    for token in tokens:
        with process(monkeypatch, token):
            made = Party(url, DELIVER, prefetch=400, **OPTIONS)
            made.channel.renew_lease()
            made.drain(400)
            made.die()
    assert held(redis_client) == count
    with worker(url, DELIVER, threads=count) as party:
        become_witness(redis_client, party)
        for token in tokens:
            lapse(redis_client, token)
        assert party.drain(count, timeout_s=20) == list(range(count))
        wait_until(lambda: party.poll() or redis_client.zcard("webhooks.leases") == 1, "forgotten", 5)
