"""``webhooks send``: hand in an event, as a producer does."""

import json
from typing import BinaryIO

import click

from webhooks.cli.common import json_option, place_of, print_json
from webhooks.config import get_settings
from webhooks.errors import InvalidEvent, InvalidSettings
from webhooks.models import parse_event_text
from webhooks.producer import deliver


@click.command(short_help="Send an event, from a file or standard input.")
@click.argument("file", type=click.File("rb"))
@json_option
def send(file: BinaryIO, as_json: bool) -> None:
    """Send the event in FILE, a COTEvent as JSON; - reads it from standard input.

    The event goes to every webhook that asked for it, exactly as `deliver.delay(event)` would send it.
    """
    settings = get_settings()
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidEvent("invalid event: it is not UTF-8") from None
    event = parse_event_text(text, settings.max_event_bytes)
    try:
        # Somebody waits for the answer and can repeat the command, so Celery does not.
        event_id = deliver.apply_async((event,), retry=False).id  # pyright: ignore[reportFunctionMemberAccess]
    except (ValueError, KeyError, ImportError):  # in this order kombu's words for a port, a scheme, a missing library
        raise InvalidSettings("WEBHOOKS_BROKER_URL: is not a broker URL that can be used here") from None
    if as_json:
        print_json(json.dumps({"event_id": event_id}))
        return
    click.echo(
        f"event {event_id}: {event.type} {event.event} of company {event.company}, queued at "
        f"{place_of(settings.broker_url)}"
    )
    click.echo(f"See what comes of it: webhooks logs --event {event_id}")
