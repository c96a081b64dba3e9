"""The transport at the level of channels, with a real Redis: where each message is at each moment."""

import json
import threading
import time
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import connection as kombu_connection
from kombu.exceptions import OperationalError

from tests.lab.party import SHORT, Party, held, party, publish
from tests.lab.worker import wait_until
from webhooks.transport.connection import AMQP, OPTION, Connection
from webhooks.transport.messages import NO_MESSAGE


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain-producer", "our-producer"])
def test_taking_notes_messages_as_kombu_does_and_no_more_than_the_prefetch(url: str, redis_client: Any, is_plain: bool):
    publish(url, "a", *range(5), is_plain=is_plain)
    published = [json.loads(raw) for raw in redis_client.lrange("a", 0, -1)]
    with party(url, "a", prefetch=3) as worker:
        assert worker.drain(3) == [0, 1, 2]
        worker.poll()
        assert len(worker.got) == 3
        assert (held(redis_client), redis_client.llen("a")) == (3, 2)
        entries = [json.loads(entry) for entry in redis_client.hgetall("unacked").values()]
        assert all(entry in [[payload, "", "a"] for payload in published] for entry in entries)
        worker.got[0].ack()
        assert held(redis_client) == 2
        assert worker.drain(4) == [0, 1, 2, 3]


def test_queues_take_turns(url: str):
    for queue in "abc":
        publish(url, queue, *[queue] * 6)
    with party(url, "a", "b", "c", prefetch=4) as worker:
        for count in (4, 8, 12):
            worker.drain(count)
            for message in worker.got[count - 4 :]:
                message.ack()
        assert sorted(worker.bodies) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_priorities_are_strict(url: str):
    for priority in (9, 0, 6, 3):
        publish(url, "a", priority, priority=priority)
    with party(url, "a") as worker:
        assert worker.drain(4) == [0, 3, 6, 9]


def test_many_consumers_get_each_message_once(url: str, redis_client: Any):
    count, got, lock = 2000, [], threading.Lock()
    for queue in ("a", "b"):
        publish(url, queue, *range(count // 2))

    def work() -> None:
        with party(url, "a", "b", prefetch=20) as worker:
            while True:
                before = len(worker.got)
                worker.poll(0.3)
                if len(worker.got) == before:
                    break
                for message in worker.got[before:]:
                    message.ack()
        with lock:
            got.extend((message.queue, message.payload) for message in worker.got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == sorted((queue, number) for queue in ("a", "b") for number in range(count // 2))
    assert held(redis_client) == 0


# ── Giving back ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_a_dead_worker_held_comes_back_once_without_an_event_loop(url: str, redis_client: Any):
    publish(url, "a", *range(10))
    dead = Party(url, "a")
    dead.drain(10)
    dead.die()
    assert held(redis_client) == 10
    with party(url, "a", visibility_timeout=SHORT) as one, party(url, "a", visibility_timeout=SHORT) as two:
        wait_until(lambda: (one.poll(), two.poll(), len(one.got) + len(two.got) >= 10)[2], "back")
        for message in (got := one.got + two.got):
            message.ack()
        assert sorted(message.payload for message in got) == list(range(10))
        assert all(message.headers["redelivered"] for message in got)
    assert (held(redis_client), redis_client.llen("a")) == (0, 0)


def test_what_a_dead_worker_held_comes_back_though_redis_evicted_its_index(url: str, redis_client: Any):
    publish(url, "a", *range(10))
    dead = Party(url, "a")
    dead.drain(10)
    dead.die()
    redis_client.delete("unacked_index")
    with party(url, "a", visibility_timeout=SHORT) as one:
        wait_until(lambda: (one.poll(), len(one.got) >= 10)[1], "back")
        for message in one.got:
            message.ack()
        assert sorted(message.payload for message in one.got) == list(range(10))
    assert (held(redis_client), redis_client.llen("a")) == (0, 0)


def test_late_ack_leaves_the_next_holder_alone(url: str, redis_client: Any):
    publish(url, "a", "x")
    with party(url, "a") as slow, party(url, "a", visibility_timeout=SHORT) as next_one:
        slow.drain(1)
        next_one.drain(1)
        slow.got[0].ack()
        assert held(redis_client) == 1
        next_one.got[0].ack()
        assert held(redis_client) == 0


def test_we_take_over_from_a_dead_plain_worker(url: str, redis_client: Any):
    publish(url, "a", "x", priority=6)
    dead = Party(url, "a", **{OPTION: False})
    dead.drain(1)
    dead.channel.do_restore = False  # it says no more
    assert held(redis_client) == 1
    with party(url, "a", visibility_timeout=SHORT) as worker:
        assert worker.drain(1) == ["x"]
        worker.got[0].ack()
    assert held(redis_client) == 0


def test_plain_worker_takes_over_from_ours(url: str, redis_client: Any):
    publish(url, "a", *range(3), is_plain=False)
    dead = Party(url, "a", prefetch=2)
    dead.drain(2)
    dead.die()
    time.sleep(SHORT)
    with party(url, "a", **{OPTION: False, "visibility_timeout": SHORT, "unacked_restore_throttle": 1}) as plain:
        wait_until(lambda: (plain.channel.qos.restore_visible(interval=1), plain.poll(), len(plain.got) == 3)[2], "all")
        assert sorted(plain.bodies) == [0, 1, 2]
        for message in plain.got:
            message.ack()
    assert held(redis_client) == 0


def test_rejected_message_is_taken_next(url: str, redis_client: Any):
    publish(url, "a", *range(3))
    with party(url, "a", prefetch=1) as worker:
        worker.drain(1)
        worker.got[0].requeue()
        assert worker.drain(2) == [0, 0]
        worker.got[1].reject()
        assert worker.drain(3) == [0, 0, 1]


def test_closing_gives_all_back_in_order(url: str, redis_client: Any):
    publish(url, "a", *range(5))
    with party(url, "a", prefetch=4) as worker:
        worker.drain(4)
        worker.got[1].ack()
    assert held(redis_client) == 0
    with party(url, "a") as worker:
        assert worker.drain(4) == [0, 2, 3, 4]


def test_message_that_comes_while_the_consumer_is_cancelled_goes_back(url: str, redis_client: Any):
    worker = Party(url, "a")
    worker.poll()
    worker.channel._brpop_start()
    publish(url, "a", "x")
    worker.close()
    assert (held(redis_client), redis_client.llen("a"), worker.got) == (0, 1, [])


# ── Connections that break ──────────────────────────────────────────────────────────────────────────────────────────
def break_connections(client: Any) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def reconnect(worker: Party) -> None:
    """Do what Celery does."""
    worker.connection.collect()
    worker.connection.ensure_connection(max_retries=5)
    worker.consume()


def test_ack_after_the_connection_broke_goes_over_the_next_one(url: str, redis_client: Any):
    publish(url, "a", *range(3))
    with party(url, "a") as worker:
        worker.drain(3)
        break_connections(redis_client)
        with pytest.raises(redis.ConnectionError):
            wait_until(lambda: worker.poll(0.2), "noticed")
        reconnect(worker)
        assert held(redis_client) == 3  # the tasks at work go on
        worker.got[0].ack()
        worker.got[1].requeue()
        assert worker.drain(4)[3:] == [1]
        worker.got[2].ack()
        worker.got[3].ack()
        worker.poll()
        assert held(redis_client) == 0


def test_take_whose_reply_is_lost_comes_back_with_the_next_connection(url: str, redis_client: Any):
    with party(url, "a") as worker:
        worker.poll()
        wait_until(lambda: not worker.channel._in_poll or worker.poll(0.01), "quiet")
        worker.channel._wait_ms = 0
        publish(url, "a", *range(3))
        worker.channel._brpop_start()
        wait_until(lambda: held(redis_client) == 3, "taken")
        reconnect(worker)
        assert worker.drain(3, timeout_s=5) == [0, 1, 2]
        assert redis_client.llen("a") == 0


def test_scripts_that_redis_forgot_are_loaded_again(url: str, redis_client: Any):
    with party(url, "a") as worker:
        for number in range(3):
            redis_client.script_flush()
            publish(url, "a", number, is_plain=False)
            redis_client.script_flush()
            worker.drain(number + 1)
            redis_client.script_flush()
            worker.got[number].ack()
    assert held(redis_client) == 0


def test_full_redis_refuses_to_publish_and_drains_all_the_same(url: str, redis_client: Any):
    publish(url, "a", *range(5), is_plain=False)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises((OperationalError, redis.ResponseError), match="maxmemory"):
            publish(url, "a", "more", is_plain=False)
        with party(url, "a") as worker:
            worker.drain(5)
            worker.got[0].ack()
            assert held(redis_client) == 4
        assert (held(redis_client), redis_client.llen("a")) == (0, 4)
    finally:
        redis_client.config_set("maxmemory", 0)


# ── Waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain-producer", "our-producer"])
def test_message_with_an_eta_waits_in_redis_and_is_run_when_due(url: str, redis_client: Any, is_plain: bool):
    published_at = time.monotonic()
    publish(url, "a", "later", is_plain=is_plain, delay_s=1.5, priority=3)
    publish(url, "a", "long ago", is_plain=is_plain, delay_s=-5)
    with party(url, "a", prefetch=1) as worker:
        assert worker.drain(1) == ["long ago"]
        worker.got[0].ack()
        worker.poll(0.2)
        assert (held(redis_client), redis_client.zcard("webhooks.parked.a"), len(worker.got)) == (0, 1, 1)
        assert worker.drain(2) == ["long ago", "later"]
        assert 1.4 < time.monotonic() - published_at < 15
        assert ["eta" in message.headers for message in worker.got] == [False, False]
        assert worker.got[1].properties["priority"] == 3
    assert redis_client.zcard("webhooks.parked.a") == 0


def test_score_is_when_it_is_due_on_the_clock_of_redis(url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch):
    # A producer whose clock is an hour late: its ETA is too, and its countdown is right.
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    publish(url, "a", "x", is_plain=False, delay_s=-3600 + 60)
    [(_, score)] = redis_client.zrange("webhooks.parked.a", 0, -1, withscores=True)
    assert 55 < score - redis_client.time()[0] <= 61


def test_many_that_are_due_at_once_all_come(url: str, redis_client: Any):
    publish(url, "a", *range(1200), is_plain=False, delay_s=0.5)
    with party(url, "a", prefetch=0) as worker:
        assert sorted(worker.drain(1200)) == list(range(1200))


def test_task_with_a_countdown_is_parked_by_its_producer(url: str, redis_client: Any):
    # Celery publishes with a connection of kombu's pool, which was of kombu's own class at first.
    app = Celery("parking", broker=url, amqp=AMQP, set_as_current=False)
    app.conf.broker_transport_options = {OPTION: True}
    app.send_task("x", countdown=60, queue="a")
    app.send_task("x", queue="a")
    assert (redis_client.zcard("webhooks.parked.a"), redis_client.llen("a")) == (1, 1)
    app.close()


def test_purging_empties_what_is_parked_as_well(url: str, redis_client: Any):
    publish(url, "a", 1, 2)
    publish(url, "a", 3, is_plain=False, delay_s=60)
    with party(url, "b") as other:
        assert other.channel.queue_purge("a") == 3
    assert redis_client.exists("a", "webhooks.parked.a") == 0


# ── Other ways in and out ───────────────────────────────────────────────────────────────────────────────────────────
#: What a queue may hold and kombu cannot read.
UNREADABLE = [
    b"nonsense",
    b"\xff\xfe",
    b"[]",
    b"7",
    b'"text"',
    b'{"properties": 1}',
    b'{"properties": {}, "headers": 3}',
    b'{"properties": {"body_encoding": "nosuch"}, "body": "x"}',
    b'{"properties": {"body_encoding": "base64"}, "body": "%%%a"}',
    b"",
]


@pytest.mark.parametrize("raw", UNREADABLE)
def test_what_is_no_message_comes_as_one_that_cannot_be_decoded(url: str, redis_client: Any, raw: bytes):
    redis_client.lpush("a", raw)
    publish(url, "a", "good")
    with party(url, "a") as worker:
        assert worker.drain(1) == ["good"]
        [message] = worker.unreadable
        assert (message.body, message.queue, message.content_type) == (raw, "a", NO_MESSAGE)
        assert held(redis_client) == 2
        message.ack()
        worker.poll()
        assert held(redis_client) == 1


@pytest.mark.parametrize("raw", UNREADABLE)
@pytest.mark.parametrize("way", ["requeued", "stopped", "killed"])
def test_what_is_no_message_goes_back_as_it_is(url: str, redis_client: Any, raw: bytes, way: str):
    redis_client.lpush("a", raw)
    with party(url, "a", visibility_timeout=1) as worker:
        wait_until(lambda: worker.poll() or worker.unreadable, "taken")
        if way == "requeued":
            worker.unreadable[0].requeue()
            wait_until(lambda: worker.poll() or len(worker.unreadable) == 2, "taken again")
        elif way == "killed":
            worker.die()
    with party(url, "a", visibility_timeout=1) as other:
        wait_until(lambda: other.poll() or other.unreadable, "taken by another one")
        assert other.unreadable[0].body == raw
        other.unreadable[0].ack()
    assert held(redis_client) == 0


def test_entry_in_unacked_that_nobody_of_ours_made_comes_as_one_that_cannot_be_decoded(url: str, redis_client: Any):
    redis_client.hset("unacked", "tag", b"\xffnonsense")
    redis_client.zadd("unacked_index", {"tag": 1})
    with party(url, "a", "b") as worker:
        wait_until(lambda: worker.poll() or worker.unreadable, "taken")
        assert worker.unreadable[0].body == b"\xffnonsense"


def test_message_of_a_plain_worker_whose_exchange_is_gone_is_taken(url: str, redis_client: Any):
    message = {"body": '"x"', "content-type": "application/json", "headers": {}, "properties": {"delivery_tag": "t"}}
    redis_client.hset("unacked", "tag", json.dumps([message, "gone", "key"]))
    redis_client.zadd("unacked_index", {"tag": 1})
    with party(url, "a") as worker:
        assert worker.drain(1) == ["x"]


def test_message_without_acks_is_done_when_it_is_delivered(url: str, redis_client: Any):
    publish(url, "a", 1)
    with party(url, "a", no_ack=True) as worker:
        worker.drain(1)
        assert held(redis_client) == 0


def test_single_messages_can_be_fetched(url: str, redis_client: Any):
    publish(url, "a", 1, 2)
    with party(url, "b") as worker:
        first, second = worker.channel.basic_get("a"), worker.channel.basic_get("a", no_ack=True)
        assert (first.payload, second.payload) == (1, 2)
        assert held(redis_client) == 1
        assert worker.channel.basic_get("a") is None
        first.ack()
        assert held(redis_client) == 0


def test_all_keys_have_the_users_prefix(url: str, redis_client: Any):
    options = {"global_keyprefix": "mine:"}
    publish(url, "a", "x", options=options)
    publish(url, "a", "y", is_plain=False, options=options)
    publish(url, "a", "z", is_plain=False, delay_s=0.2, options=options)
    redis_client.lpush("mine:a", "nonsense")
    with party(url, "a", **options) as worker:
        assert sorted(worker.drain(3)) == ["x", "y", "z"]
        worker.got[0].ack()
        worker.got[1].requeue()
        worker.drain(4)
        assert all(key.startswith(b"mine:") for key in redis_client.scan_iter())
        assert len(worker.unreadable) == 1


def test_batch_of_publishing_goes_the_plain_way(url: str, redis_client: Any):
    with kombu_connection.Connection(url) as plain, Connection(url, transport_options={OPTION: True}) as ours:
        for connection in (plain, ours):
            channel: Any = connection.default_channel
            batch = channel.create_publish_batch(10)
            message = channel.prepare_message("{}", headers={"eta": "2099-01-01T00:00:00"})
            batch.publish(message, exchange="", routing_key="a")
            batch.flush()
            batch.close()
    assert redis_client.llen("a") == 2
    with party(url, "a") as worker:
        worker.poll(0.3)
        assert (worker.got, redis_client.zcard("webhooks.parked.a")) == ([], 2)
