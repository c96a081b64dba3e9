"""Has Flower's Broker page and API count what waits in lanes: by itself it asks for `LLEN`, which knows none.

Loaded by flowerconfig.py alone; needs the extra ``flower``.
"""

from collections.abc import Iterable
from typing import Any

from flower.utils import broker

from webhooks.transport.counts import count_arguments, read_counts


async def _queues(self: Any, names: Iterable[str]) -> list[dict[str, Any]]:
    names = list(names)
    try:
        arguments = count_arguments(names, self.broker_prefix, self.priority_steps, self.sep)
        counts = read_counts(await self.redis.eval(*arguments))
    finally:
        await self.redis.aclose()
    return [
        {
            "name": name,
            "messages": count.waiting,
            "messages_ready": count.waiting,
            "messages_unacknowledged": count.unacked,
        }
        for name, count in zip(names, counts, strict=True)
    ]


def count_lanes() -> None:
    """Replace the method with which Flower counts the messages of a Redis; for RabbitMQ it stays as it is."""
    broker.RedisBase.queues = _queues
