"""Many messages of one task published in few steps: what Celery does for one at a time, without its cost per message.

Owns the making of such messages, in Celery's own form (protocol 2), so that any worker takes them. A broker that is no
Redis with our transport gets them one by one. Celery's publishing signals and the event ``task-sent`` are for single
messages alone. Called by `tasks`.
"""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pydantic_core
from celery import Task
from celery.utils import uuid
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.messaging import Producer

from webhooks.app import app

if TYPE_CHECKING:
    from webhooks.transport import BoundedConnection

#: Messages that Redis queues in one step: at some 10 µs each it serves others again after 2 ms.
_IN_ONE_STEP = 200


@dataclass(frozen=True, slots=True)
class Draft:
    """What of a message differs from others of its task."""

    task_id: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: What people see in place of the arguments.
    argsrepr: str = "…"
    kwargsrepr: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)


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


def publish_many(task: Task, drafts: Sequence[Draft]) -> None:
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
    with acquire_producer() as producer:
        connection = cast("BoundedConnection", producer.connection)
        put_again = connection.ensure(producer, put, **app.conf.task_publish_retry_policy)
        for step in range(len(steps)):
            put_again(step)
            connection.give_up_at = None  # each step has the whole time; the first that fails ends the call


def _make(task: str, queue: str, draft: Draft, tag: str) -> dict[str, Any]:
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
            "root_id": draft.task_id,
            "parent_id": None,
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
