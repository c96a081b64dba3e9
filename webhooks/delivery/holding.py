"""Steps that wait while a server is away, and in which one bad item does not spoil the others."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from webhooks.config import get_settings
from webhooks.delivery.outcomes import Failed
from webhooks.delivery.stopping import stopping
from webhooks.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Item = TypeVar("_Item")

#: What passes by itself: MongoDB or the broker is away.
OUTAGES = (StoreUnavailable, OperationalError, RedisError)


def hold(operation: Callable[[], _T]) -> _T:
    """Carry out what needs MongoDB or the broker, and wait while that is away.

    Returns:
        What the operation returns.

    Raises:
        Reject: it was away for too long, or the worker is stopping: the messages go back to their queue.
    """
    give_up_at = time.monotonic() + get_settings().mongodb_timeout_s
    while True:
        try:
            return operation()
        except OUTAGES as error:
            logger.warning("holding messages: %s", error)
            if stopping.wait(1) or time.monotonic() > give_up_at:
                raise Reject(error, requeue=True) from error


def requeue(error: Exception) -> Failed:
    """Return the outcome of a message that goes back to its queue."""
    return Failed(Reject(error, requeue=True))


def carry_out(step: Callable[[Sequence[_Item]], Sequence[_T]], items: Sequence[_Item]) -> list[_T | Failed]:
    """Carry out a step for many items.

    Args:
        step: takes items and returns a result for each, in their order. It may be called again for the same items.
        items: whatever it takes.

    Returns:
        For each item its result, or what its task is to raise. An error that is no outage is met again by the items
        one by one, so that it fails only those that cause it.
    """
    try:
        return list(hold(lambda: step(items)))
    except Reject as error:
        return [Failed(error)] * len(items)
    except Exception as error:  # noqa: BLE001 - whatever it is, the task says it in Celery's words
        if len(items) == 1:
            return [Failed(error)]
    return [result for item in items for result in carry_out(step, [item])]
