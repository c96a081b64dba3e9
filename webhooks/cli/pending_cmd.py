"""``webhooks pending``: what is pending, when it is due and why it waits."""

from dataclasses import asdict

import click
from bson import ObjectId

from webhooks.cli.delivery_cmd import STAGE_STYLES
from webhooks.cli.options import COMPANY_OPTION, JSON_OPTION, MAX_LIMIT
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.status import COUNT_LIMIT, count
from webhooks.cli.stores import find_webhook, get_stores
from webhooks.delivery.history import Outlook, read_outlooks
from webhooks.models.wire import document_json
from webhooks.store.pending_details import PendingDetails

_HEADER = ("STATE", "DUE (UTC)", "RETRY", "DELIVERY", "EVENT → WEBHOOK")

_LIMITS = click.IntRange(1, MAX_LIMIT)


@click.command()
@click.option("--webhook", "reference", metavar="REF", help="Only of this webhook: an id or a code.")
@COMPANY_OPTION
@click.option(
    "-n", "limit", type=click.IntRange(1, MAX_LIMIT), default=20, show_default=True, help="Show at most this many."
)
@JSON_OPTION
def pending(reference: str | None, company: ObjectId | None, limit: int, as_json: bool) -> None:
    """List pending deliveries: when the next attempt is due, and why then. Those that are due first come first."""
    stores = get_stores()
    webhook_ids = None
    if reference is not None:
        webhook_ids = [find_webhook(stores.webhooks, reference, company)["_id"]]
    elif company is not None:
        webhook_ids = [document["_id"] for document in stores.webhooks.list_all(company)]
    found = stores.pending.find_first(webhook_ids, limit)
    outlooks = read_outlooks(stores, found, stores.deliveries.now())
    if as_json:
        for one, outlook in zip(found, outlooks, strict=True):
            print_json(document_json(asdict(one) | {"stage": outlook.stage, "text": outlook.text}))
        return
    if not found:
        click.echo("nothing is pending")
        return
    table = Table()
    table.print([[Cell(name, "bold") for name in _HEADER]])
    table.print([line for one, outlook in zip(found, outlooks, strict=True) for line in _rows(one, outlook)])
    total = stores.pending.count(webhook_ids, COUNT_LIMIT)
    if total > len(found):
        print_error(f"{count(total)} are pending, {len(found)} of them are shown; -n shows more")


def _rows(one: PendingDetails, outlook: Outlook) -> list[list[str | Cell]]:
    due = "-" if outlook.next_at is None else f"{outlook.next_at:%Y-%m-%d %H:%M:%S}"
    state = Cell(outlook.stage.value, STAGE_STYLES[outlook.stage])
    return [[state, due, str(one.retry), one.delivery_id, one.label], [f"    {outlook.text}"]]
