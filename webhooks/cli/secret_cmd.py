"""``webhooks secret``: signing secrets, and the key that seals them in MongoDB.

A secret is printed once, when it is made, and never read from the command line, which other users can see.
"""

import json
import secrets
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click
from bson import ObjectId

from webhooks.cli.options import COMPANY_OPTION, JSON_OPTION, ParsedParam, webhook_argument
from webhooks.cli.output import Table, print_error, print_json
from webhooks.cli.stores import find_webhook, get_stores
from webhooks.cli.workers import check_key, find_workers
from webhooks.config import get_settings
from webhooks.errors import InvalidWebhook, SecretUnreadable
from webhooks.models import COTWebhook, format_instant, now
from webhooks.models.webhook import MAX_SECRETS, SigningSecret
from webhooks.rules.encryption import Use, Vault, new_key
from webhooks.rules.signing import Scheme, find_scheme, new_secret, public_key
from webhooks.rules.times import parse_duration
from webhooks.store.mongo import Document
from webhooks.store.webhooks import read_stored

#: Default time for which requests carry the old and the new signature.
_OVERLAP = "24h"
_ID_BYTES = 4


def get_vault() -> Vault:
    """Return a vault with the keys of the settings."""
    return Vault(get_settings().encryption_key)


def make_secret(text: str, webhook_id: ObjectId, vault: Vault) -> SigningSecret:
    """Seal a secret for a webhook.

    Raises:
        InvalidWebhook: the text is not a secret.
        SecretUnreadable: there is no key.
    """
    scheme = find_scheme(text)
    return SigningSecret(
        id=secrets.token_hex(_ID_BYTES),
        scheme=scheme.value,
        sealed=vault.seal(text, webhook_id, Use.SIGN),
        public=public_key(text) if scheme is Scheme.V1A else None,
        createdAt=now(),
    )


def read_secret(prompt: str) -> str:
    """Read a secret, hidden on a terminal, otherwise from a line of standard input."""
    if sys.stdin.isatty():
        return click.prompt(prompt, hide_input=True, err=True)
    return sys.stdin.readline().rstrip("\r\n")


def change_webhook(document: Document, field: str, value: Sequence[Any]) -> None:
    """Replace the field ``secrets`` or ``headers`` of a webhook.

    Raises:
        InvalidWebhook: the value is not valid, or the webhook has changed since it was read.
    """
    changed = read_stored({**document, field: [item.model_dump(exclude_none=True) for item in value]})
    if not get_stores().webhooks.replace(changed, field, document.get(field)):
        raise InvalidWebhook("this webhook has changed meanwhile: check it and try again")


def _parse_overlap(text: str) -> datetime:
    """Return when an overlap that starts now ends."""
    try:
        return now() + parse_duration(text)
    except OverflowError:
        raise ValueError(f"{text!r} is no span of time, such as 90s 30m 2h 7d") from None


@click.group(short_help="Sign requests: make, rotate and remove secrets.")
def secret() -> None:
    """Sign requests: make, rotate and remove a webhook's secrets.

    Secrets are sealed in MongoDB with WEBHOOKS_ENCRYPTION_KEY, which workers need as well.
    """


@secret.command("new-key")
def make_key() -> None:
    """Print a new key for WEBHOOKS_ENCRYPTION_KEY.

    To change the key, put the new one before the old one (NEW,OLD) everywhere, run `webhooks secret reseal`, then
    remove the old one.
    """
    click.echo(new_key())


@secret.command()
@webhook_argument
@click.option(
    "--scheme",
    type=click.Choice([scheme.value for scheme in Scheme]),
    help="v1 (default): HMAC-SHA256 with a shared secret; v1a: Ed25519, verified with a public key.",
)
@click.option("--stdin", "is_given", is_flag=True, help="Prompt for your own secret: whsec_… or whsk_….")
@click.option(
    "--overlap",
    "expires_at",
    type=ParsedParam("time", _parse_overlap),
    default=_OVERLAP,
    show_default=True,
    metavar="TIME",
    help="For how long requests also carry the old signature, such as 90s 30m 2h 7d; 0s ends it now.",
)
@JSON_OPTION
def rotate(
    reference: str, company: ObjectId | None, scheme: str, is_given: bool, expires_at: datetime, as_json: bool
) -> None:
    """Give a webhook a new secret. REF is an id or a code.

    Old secrets of the same scheme continue to sign during the overlap, so that the receiver can switch.
    """
    document = find_webhook(get_stores().webhooks, reference, company)
    webhook = read_stored(document)
    vault = get_vault()
    check_key(find_workers(get_stores().workers))
    text = read_secret("secret") if is_given else new_secret(Scheme(scheme or Scheme.V1))
    made = make_secret(text, webhook.id, vault)
    if scheme not in (None, made.scheme):
        raise click.UsageError(f"the secret is one of {made.scheme}, not of {scheme}")
    old = [_expire(old, expires_at) if old.scheme == made.scheme else old for old in webhook.secrets]
    old = [item for item in old if item.is_valid_at(made.createdAt)]
    for item in old:
        _check_opens(item, webhook, vault, reference)
    if len(old) >= MAX_SECRETS:
        raise InvalidWebhook(f"it has {MAX_SECRETS} valid secrets: remove one with `webhooks secret remove`")
    change_webhook(document, "secrets", [made, *old])
    # The user has a given secret, and a private key stays here.
    shown = text if not is_given and not made.public else None
    if as_json:
        values = {**_to_json(made), "webhook": str(webhook.id), **({"secret": shown} if shown else {})}
        print_json(json.dumps({**values, "older": [_to_json(item) for item in old]}))
        return
    rows = [["webhook", f"{webhook.label} ({webhook.id})"], *describe_new(made, shown)]
    rows += [["also", f"{item.scheme}, secret {item.id}, {_describe_end(item)}"] for item in old]
    Table().print(rows)


def describe_new(made: SigningSecret, text: str | None) -> list[list[str]]:
    """Return rows about a new secret; ``text`` is the secret itself, or None to hide it."""
    rows = [["signed", f"{made.scheme}, secret {made.id}"]]
    if made.public:
        rows += [["key", made.public], ["", "the public key, with which the receiver verifies signatures"]]
    if text:
        rows += [["secret", text], ["", "shown only now; the receiver verifies signatures with it"]]
    return rows


def _check_opens(item: SigningSecret, webhook: COTWebhook, vault: Vault, reference: str) -> None:
    """Raise SecretUnreadable, with the remedy, if a secret that continues to sign cannot be opened."""
    try:
        vault.open(item.sealed, webhook.id, Use.SIGN)
    except SecretUnreadable as error:
        raise SecretUnreadable(
            f"secret {item.id} cannot be opened: {error}. Do the workers have another key? If that key is lost, run "
            f"`webhooks secret remove {reference} {item.id} --unsigned` first"
        ) from None


def _expire(item: SigningSecret, at: datetime) -> SigningSecret:
    return item if item.expiresAt is not None and item.expiresAt < at else item.model_copy(update={"expiresAt": at})


@secret.command("list")
@webhook_argument
@JSON_OPTION
def list_secrets(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """List a webhook's secrets, without their values. REF is an id or a code."""
    webhook = read_stored(find_webhook(get_stores().webhooks, reference, company))
    if as_json:
        for item in webhook.secrets:
            print_json(json.dumps(_to_json(item)))
        return
    if not webhook.secrets:
        print_error(f"it has no secret, so requests are not signed; `webhooks secret rotate {reference}` makes one")
        return
    rows = [[i.id, i.scheme, format_instant(i.createdAt), _describe_end(i)] for i in webhook.secrets]
    Table().print([["ID", "SCHEME", "SINCE", "STATE"], *rows])


def _describe_end(item: SigningSecret) -> str:
    if item.expiresAt is None:
        return "signs"
    return ("signs until " if item.is_valid_at(now()) else "expired at ") + format_instant(item.expiresAt)


def _to_json(item: SigningSecret) -> dict[str, Any]:
    return {
        "id": item.id,
        "scheme": item.scheme,
        "public": item.public,
        "createdAt": format_instant(item.createdAt),
        "expiresAt": item.expiresAt and format_instant(item.expiresAt),
    }


@secret.command("public-key")
@webhook_argument
def show_public_key(reference: str, company: ObjectId | None) -> None:
    """Print the public keys that verify v1a signatures, the newest first. REF is an id or a code."""
    webhook = read_stored(find_webhook(get_stores().webhooks, reference, company))
    keys = [item.public for item in webhook.secrets if item.public and item.is_valid_at(now())]
    if not keys:
        raise click.ClickException(f"it has no public key; `webhooks secret rotate {reference} --scheme v1a` makes one")
    for key in keys:
        click.echo(key)


@secret.command()
@click.argument("reference", metavar="REF")
@click.argument("secret_id", metavar="SECRET_ID")
@COMPANY_OPTION
@click.option("--unsigned", is_flag=True, help="Remove the last secret too: requests are no longer signed.")
def remove(reference: str, secret_id: str, company: ObjectId | None, unsigned: bool) -> None:
    """Remove a secret now, such as one that has leaked. REF is an id or a code, SECRET_ID is from `list`."""
    document = find_webhook(get_stores().webhooks, reference, company)
    webhook = read_stored(document)
    kept = [item for item in webhook.secrets if item.id != secret_id]
    if len(kept) == len(webhook.secrets):
        raise click.ClickException(f"it has no secret {secret_id}; `webhooks secret list {reference}` shows them")
    kept = [item for item in kept if item.is_valid_at(now())]
    if not any(item.expiresAt is None for item in kept):
        if not unsigned:
            left = "the others expire, and then nothing could be sent" if kept else "it is the last that signs"
            raise click.ClickException(
                f"{left}: make another one first (`webhooks secret rotate {reference}`), or give --unsigned"
            )
        kept = []  # otherwise nothing could be sent after the others expire
    change_webhook(document, "secrets", kept)
    click.echo(f"secret {secret_id} of {webhook.label} ({webhook.id}) is removed")


@secret.command()
def reseal() -> None:
    """Seal all secrets again with the first key of WEBHOOKS_ENCRYPTION_KEY.

    Exits with 1 if one cannot be opened.
    """
    vault, stores = get_vault(), get_stores()
    done = failed = 0
    for document in stores.webhooks.list_all():
        try:
            done += _reseal_one(document, vault)
        except (SecretUnreadable, InvalidWebhook) as error:
            failed += 1
            print_error(f"webhook {document.get('_id')} is unchanged: {error}")
    click.echo(f"sealed again: {done}" + (f"; webhooks unchanged: {failed}" if failed else ""))
    if failed:
        raise click.exceptions.Exit(1)


def _reseal_one(document: Document, vault: Vault) -> int:
    if not document.get("secrets") and not document.get("headers"):
        return 0
    webhook = read_stored(document)
    count = 0
    for field in ("secrets", "headers"):
        items = getattr(webhook, field)
        fresh = [i.model_copy(update={"sealed": vault.reseal(i.sealed)}) if i.sealed else i for i in items]
        sealed = sum(item.sealed is not None for item in items)
        if sealed:
            change_webhook(document, field, fresh)
        count += sealed
    return count


def count_unreadable(documents: Iterable[Document], vault: Vault) -> int:
    """Count webhooks with a secret that cannot be opened, to which nothing is sent."""
    count = 0
    for document in documents:
        try:
            webhook = read_stored(document)
            for item in webhook.secrets:
                vault.open(item.sealed, webhook.id, Use.SIGN)
            for item in webhook.headers:
                if item.sealed is not None:
                    vault.open(item.sealed, webhook.id, Use.HEADER)
        except SecretUnreadable:
            count += 1
        except InvalidWebhook:
            continue  # `webhooks list` shows it
    return count
