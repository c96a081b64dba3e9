"""The stores of a command, and the webhook, delivery or event that its arguments name."""

import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import click
from bson import ObjectId

from webhooks.delivery.operate import Record, on_record
from webhooks.models.ids import DELIVERY_PREFIX, RESENT, TEST_PREFIX
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import WebhookStore

#: Characters of an id that are shown and enough to name it, beside the prefix of a delivery's id.
_SHOWN = 8
#: Logs and deliveries that are looked at for ids that begin with a text, and ids that are named if there are several.
_LOOKED_AT, _NAMED = 1_000, 5


def get_stores() -> Stores:
    """Return the stores of the running command, which closes them when it ends."""
    context = click.get_current_context().find_root()
    if context.obj is None:
        context.obj = Stores()
        context.call_on_close(context.obj.close)
    return context.obj


def find_webhook(store: WebhookStore, reference: str, company: ObjectId | None) -> Document:
    """Return the stored webhook with this id or code; None searches all companies.

    Raises:
        click.ClickException: no webhook matches, or several do.
    """
    found = store.find(reference, company)
    if not found:
        whose = f" of company {company}" if company else ""
        raise click.ClickException(f"there is no webhook {reference}{whose}; `webhooks list --all` shows all")
    if len(found) > 1:
        owners = ", ".join(f"{document['_id']} of company {document.get('company')}" for document in found)
        raise click.ClickException(f"{reference} is ambiguous, give an id or --company: {owners}")
    if found[0]["_id"] is None:  # in a query of logs, None stands for all webhooks
        raise click.ClickException(f"{reference} is stored with the _id null: store it again with an ObjectId")
    return found[0]


@contextmanager
def record_action(
    stores: Stores, action: str, document: Document, *, reason: str = "", delivery_id: str | None = None
) -> Iterator[Record]:
    """Record what the user of this command does to a webhook; the caller sets the record's result."""
    more = {"by": find_user(), "reason": reason, "delivery_id": delivery_id}
    with on_record(stores, action, document["_id"], **more) as record:
        yield record or Record()  # never begun before: it has an id of its own


def find_user() -> str:
    """Return the user and host that run this command, and who became that user with sudo."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        name = f"uid {os.getuid()}"
    before = os.environ.get("SUDO_USER")
    return f"{f'{before} as {name}' if before else name}@{socket.gethostname()}"


def shorten(id_: str) -> str:
    """Return the first characters of an id, which commands take in its place."""
    start, mark, number = id_.partition(RESENT)
    prefix = next((one for one in (DELIVERY_PREFIX, TEST_PREFIX) if id_.startswith(one)), "")
    return start[: len(prefix) + _SHOWN] + mark + number


def complete_delivery_id(stores: Stores, given: str) -> str:
    """Return the id of the delivery that a person means, who may give its first characters.

    Raises:
        click.ClickException: several deliveries begin with them.
    """
    start, mark, number = given.partition(RESENT)
    if len(start) < len(DELIVERY_PREFIX) + _SHOWN:
        return given
    found = stores.search.find_ids("delivery_id", start, _LOOKED_AT) | stores.pending.find_ids("_id", start, _LOOKED_AT)
    return _choose(given, {one for one in found if one.partition(RESENT)[1:] == (mark, number)})


def complete_event_id(stores: Stores, given: str) -> str:
    """Return the id of the event that a person means, who may give its first characters.

    Raises:
        click.ClickException: several events begin with them.
    """
    if len(given) < _SHOWN:
        return given
    found = stores.search.find_ids("event_id", given, _LOOKED_AT)
    found |= stores.pending.find_ids("event_id", given, _LOOKED_AT) | stores.traces.find_ids(given, _LOOKED_AT)
    return _choose(given, found)


def _choose(given: str, found: set[str]) -> str:
    if given in found or not found:
        return given
    if len(found) > 1:
        shown = ", ".join(sorted(found)[:_NAMED])
        raise click.ClickException(f"{given} is the beginning of several ids: {shown}{' …' * (len(found) > _NAMED)}")
    return next(iter(found))
