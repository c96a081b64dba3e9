"""Publish many messages of one task in a few commands, without Celery's cost per message.

Messages are Celery's (protocol 2), in the transport's stored form. Brokers other than Redis with our transport get them
one by one. If a signal receiver or a wrapper (OpenTelemetry, Sentry) watches Celery's publishing, Celery makes each.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import pydantic_core
from celery import Celery, Task
from celery.app.task import Context
from celery.signals import after_task_publish, before_task_publish
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.messaging import Producer

from webhooks.producer.app import app
from webhooks.transport.compact import JSON, write_body

if TYPE_CHECKING:
    from webhooks.transport.bounded import BoundedConnection

#: Messages per command: at about 10 µs each, Redis blocks other clients for 2 ms.
_IN_ONE_STEP = 200


#: Headers that are Celery's own, as its `Context` tells them from a producer's.
CELERY_HEADERS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """The parts of a message that differ between messages of one task."""

    task_id: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: Shown in place of the arguments.
    argsrepr: str = "…"
    kwargsrepr: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    #: The id of the task that publishes it; None outside of a task.
    parent_id: str | None = None


def confirm_timeout_s() -> float:
    """Return the seconds after which a message that RabbitMQ has not confirmed is published again."""
    return float(app.conf.broker_connection_timeout) / 2


@contextmanager
def acquire_producer() -> Iterator[Producer]:
    """Take a connection from the app's pool; waiting for it counts as waiting for the broker.

    Raises:
        kombu.exceptions.OperationalError: no connection became free in time.
    """
    timeout_s = float(app.conf.broker_connection_timeout)
    give_up_at = time.monotonic() + timeout_s
    try:
        producer = app.producer_pool.acquire(block=True, timeout=timeout_s)
    except LimitExceeded:
        raise OperationalError(
            f"no connection to the broker became free within {timeout_s:g} s: other threads wait for it"
        ) from None
    connection = cast("BoundedConnection", producer.connection)
    connection.give_up_at = give_up_at
    try:
        yield producer
    finally:
        connection.give_up_at = None
        producer.release()


class MessageBatch:
    """Replaces kombu's producer in Celery's publishing, and collects the messages until `publish_all`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, dict[str, Any]]] = []
        # Celery uses these two attributes of a producer.
        self.connection = self
        self._reraise_as_library_errors = nullcontext

    def publish(self, body: object, **options: Any) -> None:
        """Collect a message; takes the arguments of `kombu.Producer.publish`."""
        self._waiting.append((body, options))

    def add(self, task: Task, message: OutgoingMessage) -> None:
        """Collect a message that Celery makes."""
        parent = {} if message.parent_id is None else {"parent_id": message.parent_id, "root_id": message.parent_id}
        _apply_async(task, message, producer=self, **parent)
        # The message's own headers win: a wrapper of the call may not know the trace that the message belongs to.
        self._waiting[-1][1]["headers"].update(message.headers)

    def publish_all(self) -> None:
        """Publish the messages in order; with our transport, in one command per queue.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached; some messages may be published.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with acquire_producer() as producer:
            connection = cast("BoundedConnection", producer.connection)
            connection.ensure(producer, _put_all, **app.conf.task_publish_retry_policy)(producer, waiting)


def _put_all(producer: Producer, waiting: list[tuple[Any, dict[str, Any]]]) -> None:
    channel = cast("Any", producer.channel)
    if not _has_lanes(channel):
        for body, options in waiting:
            producer.publish(body, **options)
        return
    by_queue: dict[str, list[dict[str, Any]]] = {}
    for body, options in waiting:
        by_queue.setdefault(options["routing_key"], []).append(channel.make_message(producer, body, options))
    for queue, messages in by_queue.items():
        channel.put_all(queue, messages)()


def _has_lanes(channel: object) -> bool:
    # An import of our channel's class would make producers load the transport.
    return hasattr(channel, "put_all")


def _apply_async(task: Task, message: OutgoingMessage, **options: Any) -> None:
    options |= {"argsrepr": message.argsrepr, "kwargsrepr": message.kwargsrepr, "headers": dict(message.headers)}
    # Not the task's own method, which may be the caller.
    Task.apply_async(task, message.args, message.kwargs, task_id=message.task_id, **options)


def _is_watched() -> bool:
    """Return whether a signal receiver or a wrapper watches each message that Celery publishes."""
    return bool(
        before_task_publish.receivers
        or after_task_publish.receivers
        or hasattr(Task.apply_async, "__wrapped__")
        or hasattr(Celery.send_task, "__wrapped__")
    )


def publish_many(task: Task, messages: Sequence[OutgoingMessage]) -> None:
    """Publish messages of a task, in order, to the task's queue.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; some messages may be published.
    """
    if app.conf.task_always_eager:
        for message in messages:
            Task.apply_async(task, message.args, message.kwargs, task_id=message.task_id)
        return
    queue = app.amqp.router.route({}, task.name)["queue"].name
    steps = [messages[begin : begin + _IN_ONE_STEP] for begin in range(0, len(messages), _IN_ONE_STEP)]
    if _is_watched():
        for step in steps:
            batch = MessageBatch()
            for message in step:
                batch.add(task, message)
            batch.publish_all()
        return
    # One random part for all delivery tags, as it costs more than the rest of a tag.
    tags = secrets.token_urlsafe(6)

    @lru_cache(maxsize=2)
    def make(step: int) -> list[dict[str, Any]]:
        name = str(task.name)
        first = step * _IN_ONE_STEP
        return [_make(name, message, f"{tags}{place:x}") for place, message in enumerate(steps[step], start=first)]

    def put(step: int) -> None:
        channel = cast("Any", producer.channel)
        if not _has_lanes(channel):
            for message in steps[step]:
                _apply_async(task, message, producer=producer, confirm_timeout=confirm_timeout_s())
            return
        wait = channel.put_all(queue, make(step), pydantic_core.to_json)
        try:
            if step + 1 < len(steps):
                make(step + 1)  # while Redis works on this one
        finally:
            wait()

    with acquire_producer() as producer:
        connection = cast("BoundedConnection", producer.connection)
        put_again = connection.ensure(producer, put, **app.conf.task_publish_retry_policy)
        for step in range(len(steps)):
            put_again(step)
            connection.give_up_at = None  # each step has the full timeout; the first that fails ends the call


def _make(task: str, message: OutgoingMessage, tag: str) -> dict[str, Any]:
    """Return a message in its stored form, with JSON types only, as `shorten` makes it of Celery's."""
    headers: dict[str, Any] = {"task": task, "id": message.task_id}
    if message.parent_id is not None:
        headers |= {"root_id": message.parent_id, "parent_id": message.parent_id}
    headers["argsrepr"] = message.argsrepr
    if message.kwargsrepr:
        headers["kwargsrepr"] = message.kwargsrepr
    return {
        "body": write_body(message.args, message.kwargs),
        "content-type": JSON,
        "headers": {**headers, "origin": anon_nodename(), **message.headers},
        "properties": {"delivery_tag": tag},
    }
