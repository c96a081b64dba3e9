"""The base of all our tasks. A producer loads it as well, so it loads nothing of the worker."""

import logging
from typing import Any

from celery import Task
from celery.exceptions import Reject, TaskPredicate
from kombu.exceptions import OperationalError

from webhooks.config import get_settings
from webhooks.errors import AttemptFailed, InvalidEvent, TaskDefect, trace

logger = logging.getLogger(__name__)


class DurableTask(Task):
    """A task whose message is never dropped: what a defect of ours stops is tried again, and ends as a dead letter."""

    #: In the worker: keeps as a dead letter what Celery would drop.
    Request = "webhooks.worker.request:DurableRequest"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, and have Celery retry it after the retry delay when an error comes out that is not meant to.

        Raises:
            TaskDefect: it has been retried as often as the settings allow, or cannot be.
            celery.exceptions.Retry: the message is queued again.
            celery.exceptions.Reject: the broker is away. `Task.retry` would drop the message, this gives it back.
        """
        try:
            return self.run(*args, **kwargs)
        except (AttemptFailed, InvalidEvent, TaskDefect, TaskPredicate):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            logger.error("%s %s met a defect: %s", self.name, self.request.id, trace(error))  # noqa: TRY400
            defect = TaskDefect(f"internal error: {type(error).__name__}")
        # Outside of the handler: Celery logs what an error came from, whose words may hold payload.
        settings = get_settings()
        try:
            retry = self.retry(
                exc=defect,
                throw=False,
                countdown=settings.retry_delay_s,
                max_retries=settings.max_retries,
                # Celery would describe the arguments by themselves, which are payload.
                argsrepr=self.request.get("argsrepr") or "…",
                kwargsrepr=self.request.get("kwargsrepr") or "",
            )
        except Reject as rejected:
            if isinstance(rejected.reason, OperationalError):
                raise Reject(rejected.reason, requeue=True) from None
            raise defect from None  # the same defect meets who publishes it: it would go round and round
        raise retry
