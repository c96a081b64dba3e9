"""The base class of all our tasks. Producers load it too, so it imports nothing of the worker."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task
from celery.exceptions import Reject, TaskPredicate
from kombu.exceptions import OperationalError

from webhooks.config import get_settings
from webhooks.errors import AttemptFailed, InvalidEvent, Requeue, TaskDefect, trace
from webhooks.transport.headers import DUE_HEADER

logger = logging.getLogger(__name__)


class DurableTask(Task):
    """A task whose message is never dropped: an unexpected error is retried, then the message becomes a dead letter."""

    #: In the worker: writes a dead letter for each message that Celery would drop.
    Request = "webhooks.worker.request:DurableRequest"

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the rest are options
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Queue the task; takes Celery's options. A countdown is independent of the wall clock, unlike Celery's ETA."""
        if countdown := options.get("countdown"):
            options["headers"] = {**(options.get("headers") or {}), DUE_HEADER: time.monotonic() + countdown}
        return super().apply_async(args, kwargs, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; retry it after the retry delay if it raises an unexpected error.

        Raises:
            TaskDefect: all retries are used up, or the message cannot be published again.
            celery.exceptions.Retry: the message is queued again.
            celery.exceptions.Reject: it is to be requeued, or the broker is away: `Task.retry` would drop the message.
        """
        try:
            return self.run(*args, **kwargs)
        except (AttemptFailed, InvalidEvent, TaskDefect, TaskPredicate):
            raise
        except Requeue as error:
            raise Reject(error, requeue=True) from None
        except Exception as error:  # noqa: BLE001 - any defect
            logger.error("%s %s met a defect: %s", self.name, self.request.id, trace(error))  # noqa: TRY400
            defect = TaskDefect(f"internal error: {type(error).__name__}")
        # Outside of the handler, because Celery logs the cause of an error, whose text may hold payload.
        settings = get_settings()
        try:
            retry = self.retry(
                exc=defect,
                throw=False,
                countdown=settings.retry_delay_s,
                max_retries=settings.max_retries,
                # Otherwise Celery would log the arguments, which are payload.
                argsrepr=self.request.get("argsrepr") or "…",
                kwargsrepr=self.request.get("kwargsrepr") or "",
            )
        except Reject as rejected:
            if isinstance(rejected.reason, OperationalError):
                raise Reject(rejected.reason, requeue=True) from None
            raise defect from None  # publishing failed with this defect: requeueing would repeat it for ever
        raise retry
