"""``webhooks send``: queue an event, as a producer does."""

import json
from typing import BinaryIO

import click

from webhooks.cli.options import JSON_OPTION
from webhooks.cli.output import place_of, print_error, print_json
from webhooks.cli.workers import Digests, find_workers, note_refusal
from webhooks.config import get_settings
from webhooks.errors import InvalidEvent
from webhooks.metrics.questions import NoAnswer, Query
from webhooks.models import COTEvent, COTWebhook, parse_event_text
from webhooks.producer.deliver import deliver
from webhooks.rules.matching import match
from webhooks.store.leases import WorkerStore
from webhooks.store.mongo import open_database
from webhooks.store.webhooks import WebhookStore

#: Seconds for MongoDB, which only the notes need: the event is queued already.
_MONGODB_TIMEOUT_S = 4.0
#: Maximum number of webhooks that notes are printed about.
_MAX_NOTES = 20


@click.command(short_help="Send an event, from a file or standard input.")
@click.argument("file", type=click.File("rb"))
@JSON_OPTION
def send(file: BinaryIO, as_json: bool) -> None:
    """Send the event in FILE, a COTEvent as JSON; - reads it from standard input.

    The same as `deliver.delay(event)`: each webhook that matches the event gets it.
    """
    settings = get_settings()
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidEvent("invalid event: it is not UTF-8") from None
    event = parse_event_text(text, settings.max_event_bytes)
    # No retry: the user waits for the answer and can repeat the command.
    event_id = deliver.apply_async((event,), retry=False).id  # pyright: ignore[reportFunctionMemberAccess]
    if as_json:
        print_json(json.dumps({"event_id": event_id}))
        return
    click.echo(
        f"event {event_id}: {event.type} {event.event} of company {event.company}, queued at "
        f"{place_of(settings.broker_url)}"
    )
    click.echo(f"See its deliveries: webhooks logs --event {event_id}")
    _print_notes(event)


def _print_notes(event: COTEvent) -> None:
    """Print a note if no webhook matches the event, or if attempts would fail."""
    settings = get_settings()

    def find() -> tuple[list[COTWebhook], Digests]:
        database = open_database(settings.mongodb_url, min(settings.mongodb_timeout_s, _MONGODB_TIMEOUT_S))
        with database.client:
            webhooks = match(event, WebhookStore(database).of_company(event.company))
            return webhooks, find_workers(WorkerStore(database))

    try:
        webhooks, workers = Query(find).result()
    except NoAnswer as error:
        print_error(f"note: its webhooks are not known: {error}")
        return
    if not webhooks:
        print_error(f"note: no active webhook matches it; `webhooks list --company {event.company}` shows all of them")
    for webhook in webhooks[:_MAX_NOTES]:
        note_refusal(webhook.url, workers, label=f"webhook {webhook.label}")
