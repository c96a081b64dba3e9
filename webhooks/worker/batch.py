"""What the jobs of one batch share while Celery's tracer runs them: their outcomes, retries and logs.

The pool runs the tracer once for each job and writes once for all of them. So within a batch a task's body finds the
outcome that the steps came to, a published retry waits for the others' (`MessageBatch`), and a hook hands its log over
instead of writing it. Outside of a batch (a task called as a function, eagerly, or in Celery's solo pool) there is
none, and everything is done at once.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from kombu.messaging import Producer

from webhooks.delivery.outcomes import Attempted, DeliverOutcome, SendOutcome
from webhooks.producer.publishing import MessageBatch


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
def new_batch() -> Iterator[Batch]:
    """Trace jobs in this thread as one batch."""
    _current.batch = batch = Batch(MessageBatch())
    try:
        yield batch
    finally:
        _current.batch = None


def gathering_producer() -> Producer | None:
    """Return what gathers this batch's messages; None outside of a batch: Celery takes a producer of its own."""
    return None if _current.batch is None else cast("Producer", _current.batch.messages)
