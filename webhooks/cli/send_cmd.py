"""``webhooks send``: hand in an event, as a producer does."""

import json
from typing import BinaryIO

import click

from webhooks.cli.common import json_option, place_of, print_error, print_json
from webhooks.cli.questions import NoAnswer, Query
from webhooks.cli.workers import Digests, ask_workers, note_refusal
from webhooks.config import get_settings
from webhooks.errors import InvalidEvent
from webhooks.models import COTEvent, COTWebhook, parse_event_text
from webhooks.producer.deliver import deliver
from webhooks.rules.matching import match
from webhooks.store.mongo import open_database
from webhooks.store.webhooks import WebhookStore

#: Seconds for MongoDB: the event is queued already, and what is said here is only a help.
_MONGODB_TIMEOUT_S = 4.0
#: Webhooks of which something is said.
_MOST_NOTED = 20


@click.command(short_help="Send an event, from a file or standard input.")
@click.argument("file", type=click.File("rb"))
@json_option
def send(file: BinaryIO, as_json: bool) -> None:
    """Send the event in FILE, a COTEvent as JSON; - reads it from standard input.

    The event goes to every webhook that asked for it, exactly as `deliver.delay(event)` would send it.
    """
    settings, asked = get_settings(), None if as_json else ask_workers()
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidEvent("invalid event: it is not UTF-8") from None
    event = parse_event_text(text, settings.max_event_bytes)
    # Somebody waits for the answer and can repeat the command, so Celery does not.
    event_id = deliver.apply_async((event,), retry=False).id  # pyright: ignore[reportFunctionMemberAccess]
    if as_json:
        print_json(json.dumps({"event_id": event_id}))
        return
    click.echo(
        f"event {event_id}: {event.type} {event.event} of company {event.company}, queued at "
        f"{place_of(settings.broker_url)}"
    )
    click.echo(f"See what comes of it: webhooks logs --event {event_id}")
    if asked is not None:
        _note_who_gets(event, asked)


def _note_who_gets(event: COTEvent, asked: Query[Digests]) -> None:
    """Say early why an event may come nowhere: nobody wants it, or an attempt would be refused."""
    settings = get_settings()

    def find() -> list[COTWebhook]:
        database = open_database(settings.mongodb_url, min(settings.mongodb_timeout_s, _MONGODB_TIMEOUT_S))
        with database.client:
            return match(event, WebhookStore(database).of_company(event.company))

    try:
        webhooks = Query(find).result()
    except NoAnswer as error:
        print_error(f"note: who gets it is not known: {error}")
        return
    if not webhooks:
        print_error(f"note: no active webhook wants it; `webhooks list --company {event.company}` shows what they want")
    for webhook in webhooks[:_MOST_NOTED]:
        note_refusal(webhook.url, asked, label=f"webhook {webhook.label}")
