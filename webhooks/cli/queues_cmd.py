"""``webhooks queues``: queue lengths, for people and autoscalers."""

import json
from dataclasses import asdict

import click

from webhooks.cli.options import JSON_OPTION
from webhooks.cli.output import Table, print_json
from webhooks.config import get_settings
from webhooks.metrics.broker import QueueLength, count_messages
from webhooks.metrics.questions import Query, connect

_HEADER = ("QUEUE", "WAITING", "UNACKED", "DELAYED", "OLDEST")


@click.command(short_help="Count the messages of each queue.")
@JSON_OPTION
def queues(as_json: bool) -> None:
    """Count the messages of each queue: waiting, unacknowledged, delayed, and the age of the oldest one.

    RabbitMQ reports only the waiting ones.
    """
    lengths = Query(_count).result()
    if as_json:
        for length in lengths:
            print_json(json.dumps(asdict(length)))
        return
    Table(right=(1, 2, 3)).print([_HEADER, *map(_row, lengths)])


def _count() -> list[QueueLength]:
    with connect(get_settings().broker_url) as connection:
        return count_messages(connection)[0]


def _row(length: QueueLength) -> list[str]:
    numbers = (length.waiting, length.unacked, length.delayed)
    oldest = "-" if length.oldest_s is None else f"{length.oldest_s:.0f} s"
    return [length.queue, *("?" if number is None else str(number) for number in numbers), oldest]
