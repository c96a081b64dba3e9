"""``webhooks pause``, ``resume``, ``drain``, ``skip``: whether what is owed to a webhook is sent.

A worker reads the gate with each delivery that it claims, and begins its request soon or never: so all of it holds on
all workers.
"""

import time

import click
from bson import ObjectId

from webhooks.cli.common import (
    MAX_LIMIT,
    Stores,
    company_option,
    document_json,
    find_webhook,
    get_stores,
    json_option,
    print_error,
    print_json,
)
from webhooks.cli.status import COUNT_LIMIT, count
from webhooks.config import get_settings
from webhooks.delivery.operate import go_on_after_skip, let_through, read_usable, skip_first
from webhooks.delivery.skip import Skipped, skip
from webhooks.models import format_instant
from webhooks.models.wire import make_safe
from webhooks.rules.health import FULL_RATE
from webhooks.store.gates import By, Gate, State
from webhooks.store.mongo import Document
from webhooks.transport.holder import BEGIN_WITHIN_S

#: Characters of a reason: it stands in one line.
_MAX_REASON = 500
#: Deliveries that are skipped in one step.
_AT_ONCE = 500


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--reason", metavar="TEXT", help="Why, for people.")
@company_option
@json_option
def pause(reference: str, reason: str | None, company: ObjectId | None, as_json: bool) -> None:
    """Keep what is owed to a webhook, until `webhooks resume`. REF is an id or a code.

    It holds on all workers when this command returns, which takes two seconds. An attempt that is being made goes on;
    nothing is tried meanwhile, and no retry is used up.
    """
    text = " ".join((reason or "").split())[:_MAX_REASON] or "an operator paused it"
    stores, document = _find(reference, company)
    is_changed = stores.gates.pause(document["_id"], By.OPERATOR, text)
    if is_changed:
        time.sleep(BEGIN_WITHIN_S)  # what a worker has claimed just before is begun by then, or never
    _report(stores, document, None if is_changed else "is paused by an operator already", as_json)


@click.command()
@click.argument("reference", metavar="REF")
@company_option
@json_option
def resume(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """Send what was kept for a webhook, slowly at first. REF is an id or a code.

    One that has stopped makes the first attempt of its first delivery anew, with all its retries.
    """
    stores, document = _find(reference, company)
    is_changed = let_through(stores, document["_id"])
    _report(stores, document, None if is_changed else "is not paused", as_json)


@click.command()
@click.argument("reference", metavar="REF")
@company_option
@json_option
def drain(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """Send what was kept for a webhook, as fast as its endpoint takes it. REF is an id or a code."""
    stores, document = _find(reference, company)
    is_changed = let_through(stores, document["_id"], at_full_rate=True)
    _report(stores, document, None if is_changed else "is not paused", as_json)


@click.command("skip")
@click.argument("reference", metavar="REF")
@click.option("--all", "is_all", is_flag=True, help="All that are kept now, not only the oldest.")
@company_option
@json_option
def skip_deliveries(reference: str, is_all: bool, company: ObjectId | None, as_json: bool) -> None:
    """Give up the oldest delivery that is owed to a webhook. REF is an id or a code.

    Its log says so. An ordered webhook goes on with the next one, also when it has stopped.
    """
    stores, document = _find(reference, company)
    done = _skip_all(stores, document) if is_all else skip_first(stores, document)
    for delivery_id, reason in done.broken.items():
        print_error(f"delivery {delivery_id} cannot be skipped: {reason}")
    if as_json:
        for log in done.logs:
            print_json(document_json({"delivery_id": log.details.delivery_id, "log": log.id, "retry": log.retry}))
    elif done.logs and not is_all:
        click.echo(make_safe(f"skipped {done.logs[0].details.delivery_id}, owed to {_name(document)}"))
    elif not done.busy and not done.broken and not done.logs:
        click.echo(make_safe(f"nothing is {'kept for' if is_all else 'owed to'} {_name(document)}"))
    elif is_all:
        click.echo(make_safe(f"skipped {_deliveries(len(done.logs))}, kept for {_name(document)}"))
    if done.busy:
        raise click.ClickException(
            f"{_deliveries(len(done.busy))} not skipped, as a worker is at it: try again when its attempt has ended, "
            f"in {get_settings().claim_s:g} s at most"
        )
    if done.broken:
        raise click.exceptions.Exit(1)


def _find(reference: str, company: ObjectId | None) -> tuple[Stores, Document]:
    stores = get_stores()
    document = find_webhook(stores.webhooks, reference, company)
    if not isinstance(document["_id"], ObjectId):
        raise click.ClickException(f"{reference} is stored with an _id that is no ObjectId, so nothing is owed to it")
    return stores, document


def _name(document: Document) -> str:
    return f"{document.get('code') or document['_id']} ({document['_id']}) of company {document.get('company')}"


def _deliveries(number: int) -> str:
    return "1 delivery" if number == 1 else f"{number} deliveries"


def _report(stores: Stores, document: Document, unchanged: str | None, as_json: bool) -> None:
    """Say in one line how a gate stands now.

    Args:
        stores: where to look.
        document: the webhook's.
        unchanged: what to say where the command had nothing to change; None where it had.
        as_json: as JSON.
    """
    gate, kept = stores.gates.get(document["_id"]), stores.held.count_held(document["_id"], COUNT_LIMIT)
    if as_json:
        state = {"_id": document["_id"], "state": gate.state, "by": gate.by, "reason": gate.reason, "since": gate.since}
        print_json(document_json({**state, "kept": kept, "changed": unchanged is None}))
        return
    line = f"{_name(document)} {unchanged or _describe_change(gate)}; {count(kept)} kept"
    if gate.hold_until is not None and gate.state is not State.PAUSED and gate.is_held_back(stores.deliveries.now()):
        line += f"; its receiver asked for nothing before {format_instant(gate.hold_until)}"
    click.echo(make_safe(line))


def _describe_change(gate: Gate) -> str:
    match gate.state:
        case State.OPEN:
            return "is active"
        case State.RECOVERING:
            how = "as fast as its endpoint takes it" if gate.rate >= FULL_RATE else "slowly at first"
            return f"gets what was kept, {how}"
        case _:
            return f"is {gate.state.value}"


def _skip_all(stores: Stores, document: Document) -> Skipped:
    """Skip what is kept now: a webhook that gets more all the time must not keep us for ever."""
    done, left = Skipped(), stores.held.count_held(document["_id"], MAX_LIMIT)
    while left > 0:
        found = stores.held.find_held(document["_id"], min(_AT_ONCE, left) + len(done.busy) + len(done.broken))
        passed_over = {*done.busy, *done.broken}
        found = [one for one in found if one.delivery_id not in passed_over]
        if not found:
            break
        part = skip(found, read_usable(document), stores.deliveries, stores.logs)
        done.logs.extend(part.logs)
        done.busy.extend(part.busy)
        done.broken.update(part.broken)
        left -= len(found)
    go_on_after_skip(stores, document["_id"], done)
    return done
