"""``webhooks queues``: how much is queued, for people and autoscalers."""

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

import click
from kombu.transport import redis

from webhooks.cli.common import Table, json_option, print_json
from webhooks.cli.questions import Query, connect
from webhooks.config import get_settings
from webhooks.transport.counts import count_queues

#: Where messages wait.
QUEUES = ("webhooks.deliver", "webhooks.send", "celery")
_HEADER = ("QUEUE", "WAITING", "UNACKED", "DELAYED", "OLDEST")
_RIGHT_ALIGNED = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class QueueLength:
    """How much one queue holds; None where the broker does not say."""

    queue: str
    #: Messages that a worker may take.
    waiting: int
    #: Messages that workers have in hand.
    unacked: int | None = None
    #: Messages that wait for their time, such as that of a retry.
    delayed: int | None = None
    #: Seconds that the oldest one has waited; None also where none waits.
    oldest_s: float | None = None


@click.command(short_help="Count the messages of each queue.")
@json_option
def queues(as_json: bool) -> None:
    """Count the messages of each queue: waiting, in workers' hands, waiting for their time; and the oldest one's age.

    What a worker makes of an event at once is one message in its hands, of webhooks.deliver. RabbitMQ says how many
    wait, and no more.
    """
    lengths, _ = Query(lambda: count_messages(get_settings().broker_url)).result()
    if as_json:
        for length in lengths:
            print_json(json.dumps(asdict(length)))
        return
    Table(right=_RIGHT_ALIGNED).print([_HEADER, *map(_row, lengths)])


def _row(length: QueueLength) -> list[str]:
    numbers = (length.waiting, length.unacked, length.delayed)
    oldest = "-" if length.oldest_s is None else f"{length.oldest_s:.0f} s"
    return [length.queue, *("?" if number is None else str(number) for number in numbers), oldest]


def count_messages(url: str) -> tuple[list[QueueLength], int | None]:
    """Count what each of our queues holds.

    Returns:
        The queues, and how many messages workers have in hand of all of them; None where the broker does not say.

    Raises:
        Exception: the broker's own; see `questions`.
    """
    with connect(url) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=connection.connect_timeout)
        channel = cast("Any", connection.default_channel)
        if isinstance(channel, redis.Channel):
            counts = zip(QUEUES, count_queues(channel, QUEUES), strict=True)
            return [QueueLength(name, *count) for name, count in counts], channel.client.hlen(channel.unacked_key)
        lengths = []
        for name in QUEUES:
            try:
                with connection.channel() as own:  # one that is refused closes its channel
                    count = cast("Any", own).queue_declare(name, passive=True).message_count
            except connection.channel_errors:
                count = 0  # nobody declared it yet
            lengths.append(QueueLength(name, count))
        return lengths, None
