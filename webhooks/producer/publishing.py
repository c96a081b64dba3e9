"""Publish many messages of one task in a few commands, without Celery's cost per message.

Messages have Celery's own form (protocol 2). Brokers other than Redis with our transport get them one by one. If a
signal receiver or a wrapper (OpenTelemetry, Sentry) watches Celery's publishing, Celery makes each message.
"""

import base64
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
from celery.utils import uuid
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.messaging import Producer

from webhooks.producer.app import app

if TYPE_CHECKING:
    from webhooks.transport.bounded import BoundedConnection

#: Messages per command: at about 10 µs each, Redis blocks other clients for 2 ms.
_IN_ONE_STEP = 200


#: Headers that are Celery's own, as its `Context` tells them from a producer's.
CELERY_HEADERS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})

#: Headers that all our messages share.
_SAME_HEADERS = {
    "lang": "py",
    "retries": 0,
    "timelimit": [None, None],
    "ignore_result": True,
    "replaced_task_nesting": 0,
    "stamps": {},
    **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "stamped_headers")),
}
#: The embedded part of a message's body.
_NO_CANVAS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


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
    # One id for all delivery tags: a uuid per message would add a tenth to the cost of making it.
    tags = uuid()

    @lru_cache(maxsize=2)
    def make(step: int) -> list[dict[str, Any]]:
        name = str(task.name)
        return [_make(name, queue, message, f"{tags}:{step}:{place}") for place, message in enumerate(steps[step])]

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


def _make(task: str, queue: str, message: OutgoingMessage, tag: str) -> dict[str, Any]:
    """Return a message in the form that kombu's Redis transport stores, with JSON types only."""
    body = base64.b64encode(pydantic_core.to_json((message.args, message.kwargs, _NO_CANVAS))).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            **_SAME_HEADERS,
            "task": task,
            "id": message.task_id,
            "root_id": message.parent_id or message.task_id,
            "parent_id": message.parent_id,
            "argsrepr": message.argsrepr,
            "kwargsrepr": message.kwargsrepr,
            "origin": anon_nodename(),
            **message.headers,
        },
        "properties": {
            "correlation_id": message.task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }
