"""``webhooks header``: further headers of a webhook's requests, such as what a receiver's gateway asks for."""

import json

import click
from bson import ObjectId

from webhooks.cli.common import (
    Cell,
    Table,
    company_option,
    find_webhook,
    get_stores,
    json_option,
    print_error,
    print_json,
)
from webhooks.cli.secret_cmd import change_webhook, get_vault, read_secret
from webhooks.cli.workers import ask_workers, check_key
from webhooks.errors import InvalidWebhook
from webhooks.models.headers import ExtraHeader, check_header, fold_name
from webhooks.rules.encryption import Use
from webhooks.store.webhooks import read_stored


@click.group(short_help="Add headers to a webhook's requests.")
def header() -> None:
    """Add headers to a webhook's requests, or take them away."""


@header.command("set")
@click.argument("reference", metavar="REF")
@click.argument("name", metavar="NAME")
@click.argument("value", metavar="[VALUE]", required=False)
@company_option
@click.option(
    "--secret", "is_secret", is_flag=True, help="The value is asked for, sealed in MongoDB, and never shown again."
)
def set_header(reference: str, name: str, value: str | None, company: ObjectId | None, is_secret: bool) -> None:
    """Set a header of a webhook's requests. REF is an id or a code.

    It takes effect within 5 s. Headers that this project sets, and those of the connection, cannot be set.
    """
    if is_secret and value is not None:
        raise click.UsageError("with --secret the value is asked for: on the command line others could see it")
    if not is_secret and value is None:
        raise click.UsageError("give a value, or --secret")
    asked = ask_workers() if is_secret else None
    document = find_webhook(get_stores().webhooks, reference, company)
    webhook = read_stored(document)
    if asked is not None:
        check_key(asked)
    text = read_secret(f"value of {name}") if value is None else value
    try:
        check_header(name, text)
    except ValueError as error:
        raise InvalidWebhook(f"invalid header: {error}") from None
    sealed = get_vault().seal(text, webhook.id, Use.HEADER) if is_secret else None
    others = [item for item in webhook.headers if fold_name(item.name) != fold_name(name)]
    change_webhook(
        document, "headers", [*others, ExtraHeader(name=name, value=None if is_secret else text, sealed=sealed)]
    )
    click.echo(f"{name} is set on {webhook.label} ({webhook.id})")


@header.command("list")
@click.argument("reference", metavar="REF")
@company_option
@json_option
def list_headers(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """List the headers of a webhook's requests; secret values are not shown. REF is an id or a code."""
    webhook = read_stored(find_webhook(get_stores().webhooks, reference, company))
    if as_json:
        for item in webhook.headers:
            print_json(json.dumps({"name": item.name, "value": item.value, "secret": item.sealed is not None}))
        return
    if not webhook.headers:
        print_error("it has none beside the usual ones")
        return
    Table().print(
        [[item.name, Cell("secret", "dim") if item.value is None else item.value] for item in webhook.headers]
    )


@header.command()
@click.argument("reference", metavar="REF")
@click.argument("name", metavar="NAME")
@company_option
def remove(reference: str, name: str, company: ObjectId | None) -> None:
    """Take a header away. REF is an id or a code."""
    document = find_webhook(get_stores().webhooks, reference, company)
    webhook = read_stored(document)
    kept = [item for item in webhook.headers if fold_name(item.name) != fold_name(name)]
    if len(kept) == len(webhook.headers):
        raise click.ClickException(f"it has no header {name}; `webhooks header list {reference}` shows them")
    change_webhook(document, "headers", kept)
    click.echo(f"{name} is removed from {webhook.label} ({webhook.id})")
