"""Run batch steps: wait while a server is away, and isolate items that fail."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from webhooks.config import get_settings
from webhooks.delivery.meters import Fault, meters
from webhooks.delivery.outcomes import Failed
from webhooks.delivery.stopping import stopping
from webhooks.errors import Requeue, StoreUnavailable

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Item = TypeVar("_Item")

#: Errors of a MongoDB or a broker that is away.
OUTAGES = (StoreUnavailable, OperationalError, RedisError)


def hold(operation: Callable[[], _T]) -> _T:
    """Call an operation, and again each second while MongoDB or the broker is away.

    Raises:
        Requeue: the outage exceeded `mongodb_timeout_s`, or the worker is stopping.
    """
    give_up_at = time.monotonic() + get_settings().mongodb_timeout_s
    while True:
        try:
            return operation()
        except OUTAGES as error:
            logger.warning("holding messages: %s", error)
            meters.count_fault(Fault.SERVER_AWAY)
            if stopping.wait(1) or time.monotonic() > give_up_at:
                raise Requeue(str(error)) from error


def requeue(error: Exception) -> Failed:
    """Return the outcome that requeues a message."""
    return Failed(Requeue(str(error)))


def carry_out(step: Callable[[Sequence[_Item]], Sequence[_T]], items: Sequence[_Item]) -> list[_T | Failed]:
    """Run a step for many items; return for each its result, or the failure of its task.

    After an error other than an outage, the step runs for each item alone, so that only the cause fails.

    Args:
        step: returns a result for each item, in order; must be repeatable for the same items.
        items: the step's input.
    """
    try:
        return list(hold(lambda: step(items)))
    except Requeue as error:
        return [Failed(error)] * len(items)
    except Exception as error:  # noqa: BLE001 - the task raises it
        if len(items) == 1:
            return [Failed(error)]
    return [result for item in items for result in carry_out(step, [item])]
