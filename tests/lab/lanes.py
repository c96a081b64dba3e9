"""Lanes at the level of channels: publish to them, take from them as a worker does, and look at them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.messaging import Producer

from tests.lab.party import Party
from webhooks.rules.lanes import JOINED, QUEUES
from webhooks.transport.connection import OPTION, Connection
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.lanes import LANES_OPTION, Lanes
from webhooks.transport.settlements import report

SEND, DELIVER = "webhooks.send", "webhooks.deliver"
OPTIONS = {
    OPTION: True,
    LANES_OPTION: Lanes(queues=QUEUES, joined=JOINED, lane_of="webhooks.rules.lanes:lane_of_message"),
}
COMPANY = "a" * 24


@contextmanager
def worker(url: str, *queues: str, threads: int = 100, **options: Any) -> Iterator[Party]:
    made = Party(url, *queues, prefetch=threads, **{**OPTIONS, **options})
    try:
        yield made
    finally:
        made.close()


def put(url: str, queue: str, lane: str, *bodies: Any, **headers: Any) -> None:
    """Publish to a lane."""
    with Connection(url, transport_options=OPTIONS) as connection:
        producer = Producer(connection.default_channel)
        for body in bodies:
            about = {"id": "x", "eta": None, LANE_HEADER: lane, **headers}
            producer.publish(body, exchange="", routing_key=queue, serializer="json", headers=about)


def settle(party: Party, count: int, *, is_good: bool | None = True, ms: float = 5, lane: str = "") -> None:
    """End the oldest attempts in hand, as a worker does: first what they tell of their endpoint, then the ack."""
    for _ in range(count):
        message = party.got.pop(0)
        report(SEND, lane or message.headers[LANE_HEADER], ms=ms, is_good=is_good)
        message.ack()


def state(url: str, lane: str, queue: str = SEND) -> Any:
    with Connection(url, transport_options=OPTIONS) as connection:
        channel: Any = connection.default_channel
        return channel.look_at(queue, [lane])[0]


def send_plainly(url: str, *events: Mapping[str, Any], queue: str = "celery", **options: Any) -> None:
    """Send events from an app that knows nothing of this project."""
    app = Celery("plain", broker=url, set_as_current=False)
    for event in events:
        app.send_task("webhooks.deliver", [event], queue=queue, **options)
    app.close()


def event(company: str = COMPANY, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"company": company, "type": "COTTask", "data": {"n": number}, **more}


def numbers(party: Party) -> list[Any]:
    return [body[0][0]["data"]["n"] for body in party.bodies]


def serialize(url: str, whole: str, *, is_serial: bool = True) -> None:
    with Connection(url, transport_options=OPTIONS) as connection:
        channel: Any = connection.default_channel
        channel.serialize(whole, is_serial=is_serial)
