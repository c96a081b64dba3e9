"""What the broker tells of queues, lanes and its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from kombu.connection import Connection
from kombu.transport import redis
from redis.exceptions import NoPermissionError

from webhooks.metrics.questions import connect
from webhooks.rules.lanes import DELIVER_QUEUE, SEND_QUEUE
from webhooks.transport.channel import Channel
from webhooks.transport.counts import count_queues
from webhooks.transport.messages import LaneState

_QUEUES = (DELIVER_QUEUE, SEND_QUEUE, "celery")


@dataclass(frozen=True, slots=True)
class QueueLength:
    """Counts of one queue's messages; None if the broker does not tell."""

    queue: str
    #: Ready for a worker.
    waiting: int
    #: Taken by workers and not yet acknowledged.
    unacked: int | None = None
    #: Not due yet, such as retries.
    delayed: int | None = None
    #: Age of the oldest waiting message, in seconds; None also if none waits.
    oldest_s: float | None = None
    #: Lanes with messages, and lanes that may not send one now: window in use, rate limit, or hold.
    lanes: int | None = None
    blocked_lanes: int | None = None


@dataclass(frozen=True, slots=True)
class BrokerOverview:
    """The state of the broker."""

    queues: Sequence[QueueLength]
    #: As the argument of `read_broker`; without those that the broker does not tell.
    lanes: Mapping[str, LaneState] = field(default_factory=dict)
    #: Redis's reply to INFO; {} for RabbitMQ, and where the user may not ask.
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_broker(url: str, lanes: Mapping[str, str]) -> BrokerOverview:
    """Ask the broker for everything that is monitored.

    Args:
        url: the broker's.
        lanes: lanes of the send queue to look at, by names of the caller's choice.

    Raises:
        NoAnswer: the URL is not valid.
        Exception: one of `BROKER_ERRORS`.
    """
    with connect(url) as connection:
        queues, _ = count_messages(connection)
        channel = cast("Any", connection.default_channel)
        states = channel.look_at(SEND_QUEUE, list(lanes.values())) if lanes and isinstance(channel, Channel) else ()
        facts: Mapping[str, Any] = {}
        if isinstance(channel, redis.Channel):
            try:
                facts = channel.client.info()
            except NoPermissionError:
                facts = {}
        return BrokerOverview(queues, dict(zip(lanes, states, strict=False)), facts)


def find_eviction_policy(facts: Mapping[str, Any]) -> str:
    """Return Redis's `maxmemory-policy`; every other than noeviction drops queued messages when memory is full."""
    return str(facts.get("maxmemory_policy", "noeviction"))


def count_messages(connection: Connection) -> tuple[list[QueueLength], int | None]:
    """Return the lengths of our queues, and the number of all unacknowledged messages; None if it is not known."""
    channel = cast("Any", connection.default_channel)
    if isinstance(channel, redis.Channel):
        counts = zip(_QUEUES, count_queues(channel, _QUEUES), strict=True)
        return [QueueLength(name, *count) for name, count in counts], channel.client.hlen(channel.unacked_key)
    lengths = []
    for name in _QUEUES:
        try:
            with connection.channel() as own:  # an error closes the channel
                count = cast("Any", own).queue_declare(name, passive=True).message_count
        except connection.channel_errors:
            count = 0  # it does not exist yet
        lengths.append(QueueLength(name, count))
    return lengths, None
