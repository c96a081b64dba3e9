"""One application of a task, as Celery hands it to the pool."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import Reject

from webhooks.delivery.outcomes import DeliverOutcome, SendOutcome
from webhooks.errors import trace
from webhooks.producer.publishing import CELERY_HEADERS

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One application of a task."""

    target: Callable[..., Any]
    args: Sequence[Any]
    callback: Callable[..., Any]
    accept_callback: Callable[..., Any]
    outcome: DeliverOutcome | SendOutcome | None = None
    #: The attempt's runtime for Celery's task events, in seconds; None: use the tracer's.
    took_s: float | None = None
    #: Celery's tracer's return value: failed, value, runtime.
    result: Any = None

    @property
    def task_id(self) -> str:
        """The task's id: of an attempt the delivery's id, of an event its own."""
        return self.args[1]

    @property
    def request(self) -> dict[str, Any]:
        """The message's headers, with its ``args`` and ``kwargs``."""
        return self.args[2]

    def begin(self) -> None:
        """Report the start of the task to Celery."""
        try:
            self.accept_callback(os.getpid(), time.monotonic())
        except Exception as error:  # noqa: BLE001 - such as NotImplementedError after `celery control terminate`
            logger.error("job %s goes on although its start was not reported: %s", self.task_id, trace(error))  # noqa: TRY400

    def trace(self) -> None:
        """Run the task with Celery's tracer, within a batch that knows the outcome."""
        if self.request.get("headers") is None:
            # The producer's own headers. Celery's `Context` would find them with an operation per name of Celery's.
            own = {name: value for name, value in self.request.items() if name not in CELERY_HEADERS}
            self.request["headers"] = own
        try:
            self.result = self.target(*self.args)
        except Exception as error:  # noqa: BLE001 - the tracer lets a few pass; Celery's pools report them as failures
            logger.error("job %s: %s", self.task_id, trace(error))  # noqa: TRY400
            self.result = 1, ExceptionInfo(), 0.0

    def reject(self, reason: str) -> None:
        """Requeue its message, whatever its result was."""
        try:
            raise Reject(reason, requeue=True)  # noqa: TRY301 - `ExceptionInfo` reads the exception in flight
        except Reject:
            self.result = 1, ExceptionInfo(), 0.0

    def finish(self) -> None:
        """Report the result to Celery."""
        failed, value, runtime = self.result
        try:
            self.callback((failed, value, runtime if self.took_s is None else self.took_s))
        except Exception as error:  # noqa: BLE001 - for example an ack on a lost connection: the message comes back
            logger.warning("message %s stays unacked: %s", self.task_id, trace(error))
