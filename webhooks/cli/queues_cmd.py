"""``webhooks queues``: queue lengths, for people and autoscalers."""

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

import click
from kombu.transport import redis

from webhooks.cli.options import JSON_OPTION
from webhooks.cli.output import Table, print_json
from webhooks.cli.questions import Query, connect
from webhooks.config import get_settings
from webhooks.transport.counts import count_queues

_QUEUES = ("webhooks.deliver", "webhooks.send", "celery")
_HEADER = ("QUEUE", "WAITING", "UNACKED", "DELAYED", "OLDEST")


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


@click.command(short_help="Count the messages of each queue.")
@JSON_OPTION
def queues(as_json: bool) -> None:
    """Count the messages of each queue: waiting, unacknowledged, delayed, and the age of the oldest one.

    RabbitMQ reports only the waiting ones.
    """
    lengths, _ = Query(lambda: count_messages(get_settings().broker_url)).result()
    if as_json:
        for length in lengths:
            print_json(json.dumps(asdict(length)))
        return
    Table(right=(1, 2, 3)).print([_HEADER, *map(_row, lengths)])


def _row(length: QueueLength) -> list[str]:
    numbers = (length.waiting, length.unacked, length.delayed)
    oldest = "-" if length.oldest_s is None else f"{length.oldest_s:.0f} s"
    return [length.queue, *("?" if number is None else str(number) for number in numbers), oldest]


def count_messages(url: str) -> tuple[list[QueueLength], int | None]:
    """Return the lengths of our queues, and the number of all unacknowledged messages; None if it is not known."""
    with connect(url) as connection:
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
