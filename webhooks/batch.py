"""What the jobs of one batch share while Celery's tracer runs them: their outcomes, retries and logs.

The pool runs the tracer once for each job and writes once for all of them. So within a batch a task's body finds the
outcome that the steps came to, a published retry waits for the others' (`MessageBatch`), and a hook hands its log over
instead of writing it. Outside of a batch (a task called as a function, eagerly, or in Celery's solo pool) there is
none, and everything is done at once.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from celery import Celery
from kombu.messaging import Producer

from webhooks.outcomes import Attempted, DeliverOutcome, SendOutcome
from webhooks.transport import Channel


class MessageBatch:
    """Stands in for kombu's producer within Celery's own publishing, and keeps the messages until `publish_all`."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: list[tuple[Any, dict[str, Any]]] = []
        #: What Celery asks of a producer's connection.
        self.connection = self
        self._reraise_as_library_errors = nullcontext

    def publish(self, body: object, **options: Any) -> None:
        """Keep a message; the arguments are those of `kombu.Producer.publish`."""
        self._waiting.append((body, options))

    def publish_all(self) -> None:
        """Publish what is kept, in its order; on a broker with lanes in one step for each queue.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached; a part may be published.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with self._app.producer_pool.acquire(block=True) as producer:
            put_all = producer.connection.ensure(producer, _put_all, **self._app.conf.task_publish_retry_policy)
            put_all(producer, waiting)


def _put_all(producer: Producer, waiting: list[tuple[Any, dict[str, Any]]]) -> None:
    channel = producer.channel
    if not isinstance(channel, Channel):
        for body, options in waiting:
            producer.publish(body, **options)
        return
    by_queue: dict[str, list[dict[str, Any]]] = {}
    for body, options in waiting:
        by_queue.setdefault(options["routing_key"], []).append(channel.make_message(producer, body, options))
    for queue, messages in by_queue.items():
        channel.put_all(queue, messages)()


@dataclass(slots=True)
class Batch:
    """The jobs that are traced one after the other."""

    messages: MessageBatch
    #: What came of the job that is traced now.
    outcome: DeliverOutcome | SendOutcome | None = None
    #: Attempts whose logs the result hook has handed over.
    attempted: list[Attempted] = field(default_factory=list)


class _Current(threading.local):
    batch: Batch | None = None


_current = _Current()


def current_batch() -> Batch | None:
    """Return the batch that this thread traces; None where it traces none."""
    return _current.batch


@contextmanager
def new_batch(app: Celery) -> Iterator[Batch]:
    """Trace jobs in this thread as one batch."""
    _current.batch = batch = Batch(MessageBatch(app))
    try:
        yield batch
    finally:
        _current.batch = None


def gathering_producer() -> Producer | None:
    """Return what gathers this batch's messages; None outside of a batch: Celery takes a producer of its own."""
    return None if _current.batch is None else cast("Producer", _current.batch.messages)
