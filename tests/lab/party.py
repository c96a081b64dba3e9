"""Consumers and producers at the level of channels, and what Redis notes of the messages that they took."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu.entity import Queue
from kombu.messaging import Consumer, Producer

from tests.lab.worker import wait_until
from webhooks.transport.connection import OPTION, Connection

#: Seconds: far from the tests' own pace, unless a test says otherwise.
LONG, SHORT = 600, 1


class Party:
    """One consumer of some queues, on a connection of its own, as a worker without an event loop is."""

    def __init__(self, url: str, *queues: str, prefetch: int = 100, no_ack: bool = False, **options: Any):
        options = {OPTION: True, "visibility_timeout": LONG, **options}
        self.connection = Connection(url, transport_options=options)
        self.got: list[Any] = []
        self.unreadable: list[Any] = []
        self.channel: Any = self.connection.default_channel
        self.channel.basic_qos(0, prefetch)
        self._queues, self._no_ack = queues, no_ack
        self.consume()

    def consume(self) -> None:
        self.channel = self.connection.default_channel
        self.consumer = Consumer(
            self.channel, [Queue(name) for name in self._queues], callbacks=[self._receive], no_ack=self._no_ack
        )
        self.consumer.on_decode_error = lambda message, _: self.unreadable.append(message)
        self.consumer.consume()

    def _receive(self, body: Any, message: Any) -> None:
        self.got.append(message)

    @property
    def bodies(self) -> list[Any]:
        return [message.payload for message in self.got]

    def drain(self, count: int, timeout_s: float = 10) -> list[Any]:
        """Wait until so many have come in all; return their bodies."""
        wait_until(lambda: self.poll() or len(self.got) >= count, f"{count} messages, but {self.bodies}", timeout_s)
        return self.bodies

    def poll(self, timeout_s: float = 0.1) -> None:
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=timeout_s)

    def die(self) -> None:
        """Be gone as a killed process is: nothing more is said to Redis."""
        self.connection.collect()

    def close(self) -> None:
        self.consumer.cancel()
        self.connection.close()


@contextmanager
def party(url: str, *queues: str, **options: Any) -> Iterator[Party]:
    made = Party(url, *queues, **options)
    try:
        yield made
    finally:
        made.close()


def publish(url: str, queue: str, *bodies: Any, is_plain: bool = True, delay_s: float | None = None, **kw: Any) -> None:
    """Publish from a plain producer, or with our transport; with an ETA, as Celery writes it."""
    headers = {"id": "x", "eta": None}
    if delay_s is not None:
        headers["eta"] = (datetime.now(UTC) + timedelta(seconds=delay_s)).isoformat()
    options = {OPTION: not is_plain, **kw.pop("options", {})}
    with Connection(url, transport_options=options) as connection:
        producer = Producer(connection.default_channel)
        for body in bodies:
            producer.publish(body, exchange="", routing_key=queue, serializer="json", headers=headers, **kw)


def held(client: Any) -> int:
    """Count what is noted as taken; both notes must agree."""
    assert client.hlen("unacked") == client.zcard("unacked_index")
    return client.hlen("unacked")
