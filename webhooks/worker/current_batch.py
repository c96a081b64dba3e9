"""State that the jobs of one batch share while Celery's tracer runs them: outcomes, retries to publish, logs.

The pool runs the tracer once per job and writes once per batch. Within a batch, the task body returns the known
outcome, retries are collected, and hooks hand over their logs. Outside a batch (eager tasks, the solo pool) each task
does all of this by itself.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from celery._state import _task_stack
from kombu.messaging import Producer

from webhooks.delivery.outcomes import Attempted, DeliverOutcome, SendOutcome
from webhooks.producer.app import app
from webhooks.producer.publishing import MessageBatch

#: The tasks that run in batches.
_TASKS = ("webhooks.deliver", "webhooks.send")


@dataclass(slots=True)
class Batch:
    """The jobs that one thread traces in sequence."""

    messages: MessageBatch
    #: Outcome of the job that is traced now.
    outcome: DeliverOutcome | SendOutcome | None = None
    #: Attempts whose logs the result hook has handed over.
    attempted: list[Attempted] = field(default_factory=list)


class _Current(threading.local):
    batch: Batch | None = None


_current = _Current()


def current_batch() -> Batch | None:
    """Return the batch of this thread, if any."""
    return _current.batch


@contextmanager
def new_batch() -> Iterator[Batch]:
    """Trace jobs in this thread as one batch."""
    _current.batch = batch = Batch(MessageBatch())
    tasks = [app.tasks[name] for name in _TASKS]
    # Celery drops and makes its stacks of tasks and requests anew whenever they become empty: for each task.
    _task_stack.push(tasks[0])
    for task in tasks:
        task.request_stack.push(None)
    try:
        yield batch
    finally:
        for task in tasks:
            task.request_stack.pop()
        _task_stack.pop()
        _current.batch = None


def gathering_producer() -> Producer | None:
    """Return the producer that collects this batch's messages. None outside a batch: Celery then uses its own."""
    return None if _current.batch is None else cast("Producer", _current.batch.messages)
