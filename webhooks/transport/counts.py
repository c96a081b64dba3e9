"""Counts of the messages in each queue, made by one script so that they are consistent.

``LLEN`` of a queue counts only new messages of producers without this transport.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kombu.transport.redis import Channel

from webhooks.transport.scripts import COUNT_QUEUES, PARKED_KEY


class QueueCounts(NamedTuple):
    """The messages of one queue."""

    #: Messages that workers may take now, or when their lane allows it.
    waiting: int
    #: Messages that workers hold. 0 for a queue without lanes: see `count_arguments`.
    unacked: int
    #: Messages with an ETA, such as retries.
    delayed: int
    #: Seconds for which the oldest message has waited in its lane; None if none is waiting.
    oldest_s: float | None
    #: Lanes that have messages, and those of them that may not send one now.
    lanes: int
    blocked_lanes: int


_FIELDS = len(QueueCounts._fields)


def count_arguments(queues: Iterable[str], prefix: str, priority_steps: Sequence[int], sep: str) -> tuple[Any, ...]:
    """Return the arguments for a Redis client's `eval` that count queues' messages; `read_counts` reads the reply.

    The queue of an unacked message is known only for messages from lanes.

    Args:
        queues: names of the queues.
        prefix: kombu's ``global_keyprefix``.
        priority_steps: kombu's; a queue has one list per step.
        sep: kombu's separator of queue name and priority.
    """
    names = list(queues)
    keys = [f"{prefix}webhooks.taken"]
    for name in names:
        keys.append(prefix + PARKED_KEY.format(name))
        keys += [f"{prefix}{name}{sep}{step}" if step else prefix + name for step in priority_steps]
    return COUNT_QUEUES, len(keys), *keys, prefix, len(priority_steps), *names


def read_counts(reply: Sequence[Any]) -> list[QueueCounts]:
    """Read the reply to `count_arguments`, in the order of the queues."""
    rows = (reply[start : start + _FIELDS] for start in range(0, len(reply), _FIELDS))
    return [
        QueueCounts(int(waiting), int(unacked), int(delayed), float(age) if age else None, int(lanes), int(blocked))
        for waiting, unacked, delayed, age, lanes, blocked in rows
    ]


def count_queues(channel: Channel, queues: Iterable[str]) -> list[QueueCounts]:
    """Count queues' messages over any channel of kombu's Redis transport."""
    made: Any = channel
    arguments = count_arguments(queues, made.global_keyprefix, made.priority_steps, made.sep)
    with made.conn_or_acquire() as client:
        return read_counts(client.eval(*arguments))
