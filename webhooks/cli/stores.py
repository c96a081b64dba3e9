"""The stores of a command, and the webhook that its arguments name."""

from dataclasses import dataclass

import click
from bson import ObjectId

from webhooks.config import get_settings
from webhooks.errors import InvalidWebhook
from webhooks.store.deadletters import DeadLetterStore
from webhooks.store.deliveries import DeliveryStore
from webhooks.store.gates import GateStore
from webhooks.store.held import HeldDeliveries
from webhooks.store.logs import LogStore
from webhooks.store.mongo import Document, open_database
from webhooks.store.webhooks import WebhookStore, read_stored


@dataclass(frozen=True, slots=True)
class Stores:
    """The collections that commands use."""

    webhooks: WebhookStore
    logs: LogStore
    dead_letters: DeadLetterStore
    gates: GateStore
    deliveries: DeliveryStore
    held: HeldDeliveries


def get_stores() -> Stores:
    """Return the stores of the running command, which closes them when it ends."""
    context = click.get_current_context().find_root()
    if context.obj is None:
        settings = get_settings()
        database = open_database(settings.mongodb_url, settings.mongodb_timeout_s)
        context.call_on_close(database.client.close)
        deliveries = DeliveryStore(database, settings.claim_s, settings.mongodb_timeout_s)
        context.obj = Stores(
            WebhookStore(database),
            LogStore(database),
            DeadLetterStore(database),
            GateStore(database),
            deliveries,
            HeldDeliveries(database, deliveries),
        )
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


def why_unusable(document: Document) -> str | None:
    """Return why a stored webhook gets no events although it may be active; None if it is valid."""
    try:
        read_stored(document)
    except InvalidWebhook as error:
        return str(error).removeprefix("invalid webhook: ")
    return None
