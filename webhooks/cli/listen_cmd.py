"""``webhooks listen``: a receiver on this machine that shows and verifies what arrives."""

import json
import threading
from datetime import timedelta

import click
import requests
from bson import ObjectId

from webhooks.cli.options import COMPANY_OPTION, JSON_OPTION
from webhooks.cli.output import Table, print_error, print_json
from webhooks.cli.secret_cmd import get_vault, read_secret
from webhooks.cli.stores import find_webhook, get_stores
from webhooks.cli.workers import find_workers, note_refusal
from webhooks.config import get_settings
from webhooks.local.receiver import Received, run_receiver
from webhooks.models import now
from webhooks.models.wire import make_safe, show
from webhooks.rules.encryption import Use
from webhooks.rules.signing import is_signed_with
from webhooks.store.webhooks import read_stored

_PORT = 8787
#: How old a timestamp may be; Standard Webhooks recommends it.
_TOLERANCE = timedelta(minutes=5)
#: Headers of a connection, which a forwarded request does not take over.
_OF_CONNECTION = frozenset({"host", "content-length", "connection", "accept-encoding"})

_screen = threading.Lock()


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=_PORT, show_default=True, help="0: a free one.")
@click.option(
    "--fail",
    "failures",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Answer the first N attempts of each delivery with 503.",
)
@click.option("--forward", "url", metavar="URL", help="Forward to this URL, and answer as it does.")
@click.option("--webhook", "reference", metavar="REF", help="Verify with the secrets of this webhook: an id or a code.")
@COMPANY_OPTION
@click.option("--stdin", "is_given", is_flag=True, help="Prompt for what to verify with: whsec_…, or whpk_….")
@JSON_OPTION
def listen(
    port: int,
    failures: int,
    url: str | None,
    reference: str | None,
    company: ObjectId | None,
    is_given: bool,
    as_json: bool,
) -> None:
    """Receive deliveries on this machine, show and verify them, until Ctrl-C.

    Workers send to loopback addresses only if WEBHOOKS_ALLOWED_NETWORKS has them.
    """
    using = [read_secret("secret or public key")] if is_given else []
    if reference is not None:
        using += _read_secrets(reference, company)
    for secret in using:
        is_signed_with(secret, "", 0, b"", "")  # an invalid one is an error now

    def answer(received: Received) -> tuple[int, bytes]:
        if received.number <= failures:
            return 503, b"busy, come back later"
        return (200, b"thank you") if url is None else _forward(url, received)

    print_one = _print_json if as_json else _print_line
    try:
        with run_receiver(answer, lambda received, status: print_one(received, status, using), port) as used_port:
            here = f"http://127.0.0.1:{used_port}"
            print_error(f"listening at {here} until Ctrl-C")
            if reference is not None:
                note_refusal(here, find_workers(get_stores().workers))
            threading.Event().wait()
    except KeyboardInterrupt:
        return
    except OSError as error:
        raise click.ClickException(f"port {port} cannot be used ({error.strerror}): give another --port") from None


def _read_secrets(reference: str, company: ObjectId | None) -> list[str]:
    webhook = read_stored(find_webhook(get_stores().webhooks, reference, company))
    present, vault = now(), get_vault()
    found = [vault.open(one.sealed, webhook.id, Use.SIGN) for one in webhook.secrets if one.is_valid_at(present)]
    if not found:
        raise click.ClickException(f"{webhook.label} has no valid secret: its requests are not signed")
    return found


def _forward(url: str, received: Received) -> tuple[int, bytes]:
    headers = {name: value for name, value in received.headers.items() if name not in _OF_CONNECTION}
    try:
        response = requests.post(
            url, data=received.body, headers=headers, timeout=get_settings().total_timeout_s, allow_redirects=False
        )
    except requests.RequestException as error:
        print_error(f"not forwarded: {type(error).__name__}")
        return 502, f"not forwarded: {type(error).__name__}".encode()
    return response.status_code, response.content


def check_signature(received: Received, using: list[str]) -> str:
    """Say whether a request is signed with one of some secrets, and is not too old."""
    signatures, timestamp = received.headers.get("webhook-signature", ""), received.headers.get("webhook-timestamp", "")
    if not signatures:
        return "not signed"
    if not using:
        return "signed, not verified"
    if not timestamp.isdecimal():
        return "INVALID: webhook-timestamp is no number"
    if not any(is_signed_with(one, received.delivery_id, int(timestamp), received.body, signatures) for one in using):
        return "INVALID signature"
    if abs(now().timestamp() - int(timestamp)) > _TOLERANCE.total_seconds():
        return "valid signature, but the timestamp is more than 5 minutes off"
    return "valid signature"


def _print_line(received: Received, status: int, using: list[str]) -> None:
    what = (
        f"POST {show(received.path)}  {show(received.delivery_id) or 'without webhook-id'}, request {received.number}"
    )
    verdict = check_signature(received, using)
    with _screen:
        Table().print([[f"{now():%H:%M:%S}", f"{what}  {len(received.body)} bytes  {verdict}  → {status}"]])
        click.echo("    " + make_safe(received.body.decode(errors="replace")))


def _print_json(received: Received, status: int, using: list[str]) -> None:
    shown = {
        "path": received.path,
        "headers": dict(received.headers),
        "body": received.body.decode(errors="replace"),
        "number": received.number,
        "signature": check_signature(received, using),
        "status": status,
    }
    with _screen:
        print_json(json.dumps(shown, ensure_ascii=False))
