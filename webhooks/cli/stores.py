"""The stores of a command, and the webhook that its arguments name."""

import click
from bson import ObjectId

from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import WebhookStore


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
