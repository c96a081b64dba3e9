"""Many messages of one task published in few steps: what Celery does for one at a time, without its cost per message.

Owns the making of such messages, in Celery's own form (protocol 2), so that any worker takes them. A broker that is no
Redis with our transport gets them one by one. Where somebody watches Celery's publishing (a receiver of its signals, a
wrapper of its methods: OpenTelemetry, Sentry), Celery makes each message, and they are queued in the same few steps.
"""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pydantic_core
from celery import Celery, Task
from celery.signals import after_task_publish, before_task_publish
from celery.utils import uuid
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.messaging import Producer

from webhooks.producer.app import app

if TYPE_CHECKING:
    from webhooks.transport.bounded import BoundedConnection

#: Messages that Redis queues in one step: at some 10 µs each it serves others again after 2 ms.
_IN_ONE_STEP = 200


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """What of a message differs from others of its task."""

    task_id: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: What people see in place of the arguments.
    argsrepr: str = "…"
    kwargsrepr: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    #: The id of the task that it comes from; None: it comes from none.
    parent_id: str | None = None


def confirm_timeout_s() -> float:
    """Return the seconds for which a RabbitMQ may leave a message unconfirmed until it is sent again."""
    return float(app.conf.broker_connection_timeout) / 2


@contextmanager
def acquire_producer() -> Iterator[Producer]:
    """Take one of the app's connections for publishing; waiting for it counts as waiting for the broker.

    Raises:
        kombu.exceptions.OperationalError: none became free in time.
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
    """Stands in for kombu's producer within Celery's own publishing, and keeps the messages until `publish_all`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, dict[str, Any]]] = []
        #: What Celery asks of a producer's connection.
        self.connection = self
        self._reraise_as_library_errors = nullcontext

    def publish(self, body: object, **options: Any) -> None:
        """Keep a message; the arguments are those of `kombu.Producer.publish`."""
        self._waiting.append((body, options))

    def add(self, task: Task, draft: OutgoingMessage) -> None:
        """Have Celery make a message, and keep it."""
        options = {"argsrepr": draft.argsrepr, "kwargsrepr": draft.kwargsrepr, "headers": dict(draft.headers)}
        if draft.parent_id is not None:
            options |= {"parent_id": draft.parent_id, "root_id": draft.parent_id}
        # Not the task's own method, which may be what calls us.
        Task.apply_async(task, draft.args, draft.kwargs, task_id=draft.task_id, producer=self, **options)
        # What it inherits wins: whoever wraps the call may know nothing of the trace that it belongs to.
        self._waiting[-1][1]["headers"].update(draft.headers)

    def publish_all(self) -> None:
        """Publish what is kept, in its order; on a broker with lanes in one step for each queue.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached; a part may be published.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with acquire_producer() as producer:
            connection = cast("BoundedConnection", producer.connection)
            connection.ensure(producer, _put_all, **app.conf.task_publish_retry_policy)(producer, waiting)


def _put_all(producer: Producer, waiting: list[tuple[Any, dict[str, Any]]]) -> None:
    channel = cast("Any", producer.channel)
    if not hasattr(channel, "put_all"):  # see `publish_many`
        for body, options in waiting:
            producer.publish(body, **options)
        return
    by_queue: dict[str, list[dict[str, Any]]] = {}
    for body, options in waiting:
        by_queue.setdefault(options["routing_key"], []).append(channel.make_message(producer, body, options))
    for queue, messages in by_queue.items():
        channel.put_all(queue, messages)()


def _is_watched() -> bool:
    """Tell whether somebody wants to see each message that Celery publishes."""
    return bool(
        before_task_publish.receivers
        or after_task_publish.receivers
        or hasattr(Task.apply_async, "__wrapped__")
        or hasattr(Celery.send_task, "__wrapped__")
    )


def publish_many(task: Task, drafts: Sequence[OutgoingMessage]) -> None:
    """Queue messages of a task, in their order, where Celery's options say.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; a part of them may be queued.
    """
    queue = app.amqp.router.route({}, task.name)["queue"].name
    steps = [drafts[begin : begin + _IN_ONE_STEP] for begin in range(0, len(drafts), _IN_ONE_STEP)]
    made: dict[int, list[dict[str, Any]]] = {}
    # Two ids for each message were a tenth of the cost of making it.
    tags = uuid()

    def make(step: int) -> list[dict[str, Any]]:
        if step not in made:
            made.clear()
            made[step] = [
                _make(str(task.name), queue, draft, f"{tags}:{step}:{place}") for place, draft in enumerate(steps[step])
            ]
        return made[step]

    def put(step: int) -> None:
        # Our own channel has it. Its class is not asked for: an import of this package would load the transport.
        put_all = getattr(producer.channel, "put_all", None)
        if put_all is not None:
            wait = put_all(queue, make(step), pydantic_core.to_json)
            try:
                if step + 1 < len(steps):
                    make(step + 1)  # while Redis is at these
            finally:
                wait()
            return
        for draft in steps[step]:
            options = {"argsrepr": draft.argsrepr, "kwargsrepr": draft.kwargsrepr, "headers": draft.headers}
            options["confirm_timeout"] = confirm_timeout_s()
            # Not the task's own method, which may be what calls us.
            Task.apply_async(task, draft.args, draft.kwargs, task_id=draft.task_id, producer=producer, **options)

    if app.conf.task_always_eager:
        for draft in drafts:
            Task.apply_async(task, draft.args, draft.kwargs, task_id=draft.task_id)
        return
    if _is_watched():
        for step in steps:
            batch = MessageBatch()
            for draft in step:
                batch.add(task, draft)
            batch.publish_all()
        return
    with acquire_producer() as producer:
        connection = cast("BoundedConnection", producer.connection)
        put_again = connection.ensure(producer, put, **app.conf.task_publish_retry_policy)
        for step in range(len(steps)):
            put_again(step)
            connection.give_up_at = None  # each step has the whole time; the first that fails ends the call


def _make(task: str, queue: str, draft: OutgoingMessage, tag: str) -> dict[str, Any]:
    """Make a message as kombu's Redis transport stores it, of nothing but what JSON has."""
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = pydantic_core.to_json((draft.args, draft.kwargs, embedded))
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": draft.task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": draft.parent_id or draft.task_id,
            "parent_id": draft.parent_id,
            "argsrepr": draft.argsrepr,
            "kwargsrepr": draft.kwargsrepr,
            "origin": anon_nodename(),
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
            **draft.headers,
        },
        "properties": {
            "correlation_id": draft.task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }
