"""How many messages each queue holds, for people, Flower and autoscalers: in one script, so that they add up.

`LLEN` of a queue's name counts only what a producer without this transport has just published, as everything else
stands in lanes, waits for its time or is in a worker's hands.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kombu.transport.redis import Channel

from webhooks.transport.scripts import COUNT_QUEUES, PARKED_KEY


class QueueCounts(NamedTuple):
    """What one queue holds."""

    #: Messages that a worker may take now, or as soon as their lane lets them go.
    waiting: int
    #: Messages that workers have taken and not yet acknowledged. 0 for a queue without lanes: see `count_arguments`.
    unacked: int
    #: Messages that wait for their time, such as that of a retry.
    delayed: int
    #: Seconds that the oldest message has waited in its lane; None where none does.
    oldest_s: float | None


def count_arguments(queues: Iterable[str], prefix: str, priority_steps: Sequence[int], sep: str) -> tuple[Any, ...]:
    """Return what `eval` of any Redis client takes to count the messages of queues; `read_counts` reads its reply.

    Messages in workers' hands are counted by the lane that they came out of. Without this transport
    (``WEBHOOKS_ATOMIC_TRANSPORT=false``) nobody notes which queue those are of.

    Args:
        queues: names.
        prefix: of all keys, kombu's ``global_keyprefix``.
        priority_steps: kombu's; a queue has a list for each.
        sep: what kombu puts between a queue's name and its priority.
    """
    names = list(queues)
    keys = [f"{prefix}webhooks.taken"]
    for name in names:
        keys.append(prefix + PARKED_KEY.format(name))
        keys += [f"{prefix}{name}{sep}{step}" if step else prefix + name for step in priority_steps]
    return COUNT_QUEUES, len(keys), *keys, prefix, len(priority_steps), *names


def read_counts(reply: Sequence[Any]) -> list[QueueCounts]:
    """Read the reply to `count_arguments`: a queue's counts each, in their order."""
    rows = zip(reply[::4], reply[1::4], reply[2::4], reply[3::4], strict=True)
    return [QueueCounts(int(row[0]), int(row[1]), int(row[2]), float(row[3]) if row[3] else None) for row in rows]


def count_queues(channel: Channel, queues: Iterable[str]) -> list[QueueCounts]:
    """Count the messages of queues over a channel of kombu's Redis transport, ours or not."""
    made: Any = channel
    arguments = count_arguments(queues, made.global_keyprefix, made.priority_steps, made.sep)
    with made.conn_or_acquire() as client:
        return read_counts(client.eval(*arguments))
