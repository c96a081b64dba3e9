"""``webhooks pause``, ``resume``, ``drain``, ``skip``: control whether a webhook's pending deliveries are sent.

Workers read the gate with each delivery that they claim, and start its request within `BEGIN_WITHIN_S` or never.
"""

import time

import click
from bson import ObjectId

from webhooks.cli.options import COMPANY_OPTION, JSON_OPTION, MAX_LIMIT, webhook_argument
from webhooks.cli.output import print_error, print_json
from webhooks.cli.status import COUNT_LIMIT, count
from webhooks.cli.stores import find_webhook, get_stores, record_action
from webhooks.config import get_settings
from webhooks.delivery.operate import go_on_after_skip, let_through, read_usable, skip_first
from webhooks.delivery.skip import Skipped, skip
from webhooks.models import format_instant
from webhooks.models.wire import document_json, make_safe
from webhooks.rules.health import FULL_RATE
from webhooks.store.gates import By, Gate, State
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.transport.holder import BEGIN_WITHIN_S

#: Maximum length of a reason, in characters.
_MAX_REASON = 500
#: Deliveries that are skipped in one step.
_AT_ONCE = 500


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--reason", metavar="TEXT", help="The reason, for people.")
@COMPANY_OPTION
@JSON_OPTION
def pause(reference: str, reason: str | None, company: ObjectId | None, as_json: bool) -> None:
    """Hold a webhook's deliveries until `webhooks resume`. REF is an id or a code.

    It is in effect on all workers when this command returns, after two seconds. Attempts in flight continue; held
    deliveries use up no retries.
    """
    text = " ".join((reason or "").split())[:_MAX_REASON] or "an operator paused it"
    stores, document = _find(reference, company)
    with record_action(stores, "pause", document, reason=text) as record:
        is_changed = stores.gates.pause(document["_id"], By.OPERATOR, text)
        if is_changed:
            time.sleep(BEGIN_WITHIN_S)  # a delivery that was claimed before is started by then, or never
        record.result = _report(stores, document, None if is_changed else "is paused by an operator already", as_json)


@click.command()
@webhook_argument
@JSON_OPTION
def resume(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """Send a webhook's held deliveries, slowly at first. REF is an id or a code.

    A stopped webhook starts again with its first delivery and all retries.
    """
    stores, document = _find(reference, company)
    with record_action(stores, "resume", document) as record:
        is_changed = let_through(stores, document["_id"])
        record.result = _report(stores, document, None if is_changed else "is not paused", as_json)


@click.command()
@webhook_argument
@JSON_OPTION
def drain(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """Send a webhook's held deliveries as fast as its endpoint accepts them. REF is an id or a code."""
    stores, document = _find(reference, company)
    with record_action(stores, "drain", document) as record:
        is_changed = let_through(stores, document["_id"], at_full_rate=True)
        record.result = _report(stores, document, None if is_changed else "is not paused", as_json)


@click.command("skip")
@click.argument("reference", metavar="REF")
@click.option("--all", "is_all", is_flag=True, help="Skip all held deliveries, not only the oldest.")
@COMPANY_OPTION
@JSON_OPTION
def skip_deliveries(reference: str, is_all: bool, company: ObjectId | None, as_json: bool) -> None:
    """Give up a webhook's oldest pending delivery, with a log. REF is an id or a code.

    An ordered webhook continues with the next delivery, also if it has stopped.
    """
    stores, document = _find(reference, company)
    with record_action(stores, "skip", document) as record:
        done = _skip_all(stores, document) if is_all else skip_first(stores, document)
        record.result = _describe_skipped(document, done, is_all=is_all)
    for delivery_id, reason in done.broken.items():
        print_error(f"delivery {delivery_id} cannot be skipped: {reason}")
    if as_json:
        for log in done.logs:
            print_json(document_json({"delivery_id": log.details.delivery_id, "log": log.id, "retry": log.retry}))
    elif done.logs or is_all or not (done.busy or done.broken):
        click.echo(make_safe(record.result))
    if done.busy:
        raise click.ClickException(
            f"{_deliveries(len(done.busy))} not skipped, because of an attempt in flight: try again when it has ended, "
            f"after at most {get_settings().claim_s:g} s"
        )
    if done.broken:
        raise click.exceptions.Exit(1)


def _describe_skipped(document: Document, done: Skipped, *, is_all: bool) -> str:
    if not (done.logs or done.busy or done.broken):
        return f"no {'held' if is_all else 'pending'} deliveries of {_name(document)}"
    if is_all or not done.logs:
        return f"skipped {_deliveries(len(done.logs))}, held for {_name(document)}"
    return f"skipped {done.logs[0].details.delivery_id} of {_name(document)}"


def _find(reference: str, company: ObjectId | None) -> tuple[Stores, Document]:
    stores = get_stores()
    document = find_webhook(stores.webhooks, reference, company)
    if not isinstance(document["_id"], ObjectId):
        raise click.ClickException(f"the _id of {reference} is not an ObjectId, so it has no deliveries")
    return stores, document


def _name(document: Document) -> str:
    return f"{document.get('code') or document['_id']} ({document['_id']}) of company {document.get('company')}"


def _deliveries(number: int) -> str:
    return "1 delivery" if number == 1 else f"{number} deliveries"


def _report(stores: Stores, document: Document, unchanged: str | None, as_json: bool) -> str:
    """Print and return the gate's state; ``unchanged`` is the text for a command that had no effect."""
    gate, held = stores.gates.get(document["_id"]), stores.held.count_held(document["_id"], COUNT_LIMIT)
    line = f"{_name(document)} {unchanged or _describe_change(gate)}; {count(held)} held"
    if gate.hold_until is not None and gate.state is not State.PAUSED and gate.is_held_back(stores.deliveries.now()):
        line += f"; its receiver asked to wait until {format_instant(gate.hold_until)}"
    if as_json:
        state = {"_id": document["_id"], "state": gate.state, "by": gate.by, "reason": gate.reason, "since": gate.since}
        print_json(document_json({**state, "kept": held, "changed": unchanged is None}))
    else:
        click.echo(make_safe(line))
    return line


def _describe_change(gate: Gate) -> str:
    match gate.state:
        case State.OPEN:
            return "is active"
        case State.RECOVERING:
            how = "as fast as its endpoint accepts them" if gate.rate >= FULL_RATE else "slowly at first"
            return f"gets its held deliveries, {how}"
        case _:
            return f"is {gate.state.value}"


def _skip_all(stores: Stores, document: Document) -> Skipped:
    """Skip the deliveries that are held now, and none that are added meanwhile."""
    done, left = Skipped(), stores.held.count_held(document["_id"], MAX_LIMIT)
    while left > 0:
        found = stores.held.find_held(document["_id"], min(_AT_ONCE, left) + len(done.busy) + len(done.broken))
        found = [one for one in found if one.delivery_id not in {*done.busy, *done.broken}]
        if not found:
            break
        part = skip(found, read_usable(document), stores.deliveries, stores.logs)
        done.logs.extend(part.logs)
        done.busy.extend(part.busy)
        done.broken.update(part.broken)
        left -= len(found)
    go_on_after_skip(stores, document["_id"], done)
    return done
