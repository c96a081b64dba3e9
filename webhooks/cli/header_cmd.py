"""``webhooks header``: additional headers of a webhook's requests, such as those that a gateway requires."""

import json

import click
from bson import ObjectId

from webhooks.cli.options import COMPANY_OPTION, JSON_OPTION, webhook_argument
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.secret_cmd import change_webhook, get_vault, read_secret
from webhooks.cli.stores import find_webhook, get_stores
from webhooks.cli.workers import check_key, find_workers
from webhooks.errors import InvalidWebhook
from webhooks.models.headers import ExtraHeader, check_header, fold_name
from webhooks.rules.encryption import Use
from webhooks.store.webhooks import read_stored


@click.group(short_help="Add headers to a webhook's requests.")
def header() -> None:
    """Add headers to a webhook's requests, list and remove them."""


@header.command("set")
@click.argument("reference", metavar="REF")
@click.argument("name", metavar="NAME")
@click.argument("value", metavar="[VALUE]", required=False)
@COMPANY_OPTION
@click.option(
    "--secret", "is_secret", is_flag=True, help="Prompt for the value, seal it in MongoDB, and never show it again."
)
def set_header(reference: str, name: str, value: str | None, company: ObjectId | None, is_secret: bool) -> None:
    """Set a header of a webhook's requests. REF is an id or a code.

    It takes effect within 5 s. Headers of the connection, and those that this product sets, cannot be set.
    """
    if is_secret and value is not None:
        raise click.UsageError("--secret prompts for the value: other users could see it on the command line")
    if not is_secret and value is None:
        raise click.UsageError("give a value, or --secret")
    document = find_webhook(get_stores().webhooks, reference, company)
    webhook = read_stored(document)
    if is_secret:
        check_key(find_workers(get_stores().workers))
    text = read_secret(f"value of {name}") if value is None else value
    try:
        check_header(name, text)
    except ValueError as error:
        raise InvalidWebhook(f"invalid header: {error}") from None
    sealed = get_vault().seal(text, webhook.id, Use.HEADER) if is_secret else None
    others = [item for item in webhook.headers if fold_name(item.name) != fold_name(name)]
    item = ExtraHeader(name=name, value=None if is_secret else text, sealed=sealed)
    change_webhook(document, "headers", [*others, item])
    click.echo(f"{name} is set on {webhook.label} ({webhook.id})")


@header.command("list")
@webhook_argument
@JSON_OPTION
def list_headers(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """List the headers of a webhook's requests, without secret values. REF is an id or a code."""
    webhook = read_stored(find_webhook(get_stores().webhooks, reference, company))
    if as_json:
        for item in webhook.headers:
            print_json(json.dumps({"name": item.name, "value": item.value, "secret": item.sealed is not None}))
        return
    if not webhook.headers:
        print_error("it has no additional headers")
        return
    Table().print(
        [[item.name, Cell("secret", "dim") if item.value is None else item.value] for item in webhook.headers]
    )


@header.command()
@click.argument("reference", metavar="REF")
@click.argument("name", metavar="NAME")
@COMPANY_OPTION
def remove(reference: str, name: str, company: ObjectId | None) -> None:
    """Remove a header. REF is an id or a code."""
    document = find_webhook(get_stores().webhooks, reference, company)
    webhook = read_stored(document)
    kept = [item for item in webhook.headers if fold_name(item.name) != fold_name(name)]
    if len(kept) == len(webhook.headers):
        raise click.ClickException(f"it has no header {name}; `webhooks header list {reference}` shows them")
    change_webhook(document, "headers", kept)
    click.echo(f"{name} is removed from {webhook.label} ({webhook.id})")
