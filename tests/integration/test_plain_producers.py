"""Events of producers with nothing but Celery, with a real Redis: each is put into its lane, in order."""

import json
import time
from typing import Any

import pytest
from celery import Celery
from kombu.messaging import Producer

from tests.lab.lanes import (
    COMPANY,
    DELIVER,
    OPTIONS,
    event,
    numbers,
    put,
    send_plainly,
    serialize,
    state,
    worker,
)
from tests.lab.party import Party
from tests.lab.worker import wait_until
from webhooks.transport.connection import AMQP, Connection
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import TAKEN_FROM_HEADER
from webhooks.transport.scripts import FEW


def test_events_of_plain_producers_are_put_into_lanes(url: str, redis_client: Any):
    loud, quiet = "a" * 24, "b" * 24
    send_plainly(url, *(event(loud, number) for number in range(400)))
    send_plainly(url, event(quiet, 1000))
    with worker(url, "celery", DELIVER, threads=4) as party:
        got: list[int] = []
        while 1000 not in got:
            party.drain(1)
            got += numbers(party)
            for message in party.got:
                message.ack()
            party.got.clear()
        assert len(got) <= 30
        wait_until(lambda: party.poll() or redis_client.llen("celery") == 0, "all sorted")


def test_newest_of_a_long_line_of_a_plain_producer_need_not_wait_until_all_is_sorted(url: str, redis_client: Any):
    send_plainly(url, *(event("a" * 24, number) for number in range(1500)))
    send_plainly(url, event("b" * 24, 5000))
    with worker(url, "celery", DELIVER, threads=2) as party:
        party.poll(0.01)
        party.drain(2)
        assert 5000 in numbers(party)
        assert redis_client.llen("celery") > 900, "what is not sorted yet"
        got = [*party.got]
        while len(got) < 1501:
            for message in party.got:
                message.ack()
            party.got.clear()
            party.drain(1)
            got += party.got
        party.got = got
        assert sorted(numbers(party)) == [*range(1500), 5000]


def assert_come_one_by_one(party: Party, count: int) -> None:
    """Take so many events, each after the one before is done, in the order of their numbers."""
    for number in range(count):
        give_up_at = time.monotonic() + 10
        while not party.got and time.monotonic() < give_up_at:
            party.poll(0.01)
        assert numbers(party) == [number]
        party.got.pop().ack()


def test_newest_of_a_serial_lane_wait_for_their_turn(url: str):
    serialize(url, f"{COMPANY}/COTTask")
    send_plainly(url, *(event(number=number) for number in range(650)))
    with worker(url, "celery", DELIVER, threads=5) as party:
        assert_come_one_by_one(party, 650)


def test_end_of_one_wakes_a_worker_if_its_lane_has_more(url: str, redis_client: Any):
    serialize(url, f"{COMPANY}/COTTask")
    send_plainly(url, event(number=0), event(number=1))
    wakes = []
    with worker(url, "celery", DELIVER, threads=5) as party:
        for count in (1, 2):
            party.drain(count)
            redis_client.delete("webhooks.wake.webhooks.deliver")
            party.got[-1].ack()
            wakes.append(redis_client.llen("webhooks.wake.webhooks.deliver"))
    assert wakes == [1, 0]


def test_order_of_a_plain_producer_is_kept_in_its_lane(url: str):
    send_plainly(url, *(event(number=number) for number in range(590)))
    with worker(url, "celery", DELIVER, threads=1) as party:
        assert_come_one_by_one(party, 590)


@pytest.mark.parametrize("queue", ["celery", DELIVER])
@pytest.mark.parametrize("is_known", [True, False])
def test_events_of_own_and_plain_producers_come_in_the_order_in_which_the_broker_got_them(
    url: str, queue: str, is_known: bool
):
    """Theirs waited to be put into lanes, and ours did not wait for them; each queue had a line of its own, besides."""
    company_type = f"{COMPANY}/COTTask"
    if is_known:
        serialize(url, company_type)
    with Connection(url, transport_options=OPTIONS) as ours, Connection(url) as theirs:
        producers = [Producer(ours.default_channel), Producer(theirs.default_channel)]
        for number in range(40):
            about = {"id": "x", "task": "webhooks.deliver", "eta": None}
            about |= {} if number % 2 else {LANE_HEADER: f"{company_type}/-"}
            body = [[event(number=number)], {}, {}]
            to = queue if number % 2 else DELIVER
            producers[number % 2].publish(body, exchange="", routing_key=to, serializer="json", headers=about)
    if not is_known:
        serialize(url, company_type)
    with worker(url, "celery", DELIVER) as party:
        assert_come_one_by_one(party, 40)


def test_event_of_an_own_producer_is_never_put_into_the_queue_of_another_application(url: str, redis_client: Any):
    send_plainly(url, event(number=0))
    put(url, DELIVER, f"{COMPANY}/COTTask/-", "mine")
    assert redis_client.llen("celery") == 0
    assert redis_client.llen(DELIVER) == 2


def test_event_of_an_own_producer_does_not_wait_behind_many_of_a_plain_one(url: str):
    send_plainly(url, *(event(number=number) for number in range(FEW)))
    put(url, DELIVER, "b/COTTask/-", "mine")
    assert state(url, "b/COTTask/-", DELIVER).waiting == 1


def test_event_of_a_plain_producer_with_a_countdown_waits(url: str, redis_client: Any):
    send_plainly(url, event(number=1), countdown=1.2)
    with worker(url, "celery", DELIVER) as party:
        party.poll(0.4)
        assert party.got == []
        assert redis_client.zcard("webhooks.parked.webhooks.deliver") == 1
        party.drain(1)
        assert state(url, f"{COMPANY}/COTTask/-", DELIVER).in_flight == 0  # not bounded, so not counted


@pytest.mark.parametrize("raw", [b"\xff", b"7", b"[]", b'{"properties": 1, "headers": {"task": "x"}}'])
def test_what_is_no_message_comes_as_it_is_and_so_does_the_next_one(url: str, redis_client: Any, raw: bytes):
    redis_client.lpush("celery", raw)
    send_plainly(url, event(number=7))
    with worker(url, "celery", DELIVER) as party:
        wait_until(lambda: party.poll() or len(party.got) + len(party.unreadable) == 2, "both")
        assert numbers(party) == [7]
        assert [message.body for message in party.unreadable] == [raw]


def test_event_of_a_client_with_task_protocol_1_waits_in_its_companys_lane(url: str, redis_client: Any):
    body = {"id": "1", "task": "webhooks.deliver", "args": [event(number=1)], "kwargs": {}}
    redis_client.lpush("celery", json.dumps({"body": json.dumps(body), "content-type": "application/json"}))
    with worker(url, "celery", DELIVER) as party:
        [message] = party.drain(1) and party.got
        assert message.headers[TAKEN_FROM_HEADER] == f"{COMPANY}/COTTask/-"


def test_plain_messages_of_other_tasks_come_as_well(url: str):
    app = Celery("plain", broker=url, set_as_current=False)
    app.send_task("something.else", [1], queue="celery")
    app.close()
    with worker(url, "celery", DELIVER) as party:
        party.drain(1)


def test_two_sort_and_each_message_comes_once(url: str):
    send_plainly(url, *(event(number=number) for number in range(700)))
    with worker(url, "celery", DELIVER, threads=1000) as one, worker(url, "celery", DELIVER, threads=1000) as other:
        wait_until(lambda: one.poll(0.01) or other.poll(0.01) or len(one.got) + len(other.got) >= 700, "all")
        assert sorted(numbers(one) + numbers(other)) == list(range(700))


def test_own_producer_names_the_lane_by_itself(url: str):
    app = Celery("own", broker=url, set_as_current=False, amqp=AMQP)
    app.conf.broker_transport_options = OPTIONS
    app.send_task("webhooks.deliver", [event(number=1)], queue=DELIVER)
    app.close()
    assert state(url, f"{COMPANY}/COTTask/-", DELIVER).waiting == 1
