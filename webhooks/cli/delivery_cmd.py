"""``webhooks show DELIVERY`` and ``webhooks event``: what became of a delivery or an event, and what comes next."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from webhooks.cli.logs_cmd import first_line
from webhooks.cli.options import JSON_OPTION
from webhooks.cli.output import Cell, Table, print_json
from webhooks.cli.stores import complete_event_id, get_stores
from webhooks.config import get_settings
from webhooks.delivery.event_history import EventHistory, Fate, read_event_history
from webhooks.delivery.history import (
    BAR,
    Attempt,
    DeliveryHistory,
    DeliveryState,
    Stage,
    draw_phases,
    find_longest_ms,
    read_delivery,
)
from webhooks.models import format_instant
from webhooks.models.wire import document_json, make_safe
from webhooks.rules.retry import Outcome
from webhooks.rules.times import describe_ms
from webhooks.store.stores import Stores

#: Seconds between two looks at a delivery, and where it ends.
_POLL_S = 0.3
_ENDS = (Stage.DELIVERED, Stage.FAILED, Stage.QUARANTINED)
#: Characters of the bar of the longest attempt.
_BAR_CHARS = 30
#: Of each stage on a terminal.
STAGE_STYLES = {
    Stage.DELIVERED: "green",
    Stage.FAILED: "red",
    Stage.WAITING: "cyan",
    Stage.HELD: "yellow",
    Stage.ATTEMPTING: "cyan",
    Stage.QUARANTINED: "red",
    Stage.UNKNOWN: "dim",
}
_FATES = {
    Fate.ACCEPTED: "green",
    Fate.MATCHED_NOBODY: "yellow",
    Fate.IN_OUTBOX: "cyan",
    Fate.DEAD_LETTER: "red",
    Fate.NEVER_SEEN: "red",
}


def show_delivery(stores: Stores, delivery_id: str, *, as_json: bool) -> None:
    """Print what is known of a delivery.

    Raises:
        click.ClickException: nothing is.
    """
    found = read_delivery(stores, delivery_id, stores.deliveries.now())
    if found is None:
        raise click.ClickException(f"nothing is known of the delivery {delivery_id}: its logs expired, or it never was")
    if as_json:
        print_json(document_json(_delivery_to_wire(found)))
        return
    outlook = found.outlook
    Table().print([[Cell(outlook.stage.value, STAGE_STYLES[outlook.stage]), outlook.text], *_describe_facts(found)])
    click.echo()
    if found.has_more:
        click.echo(f"Older attempts: webhooks logs --delivery {found.delivery_id}")
    Table().print(describe_attempts(found, found.attempts))
    if found.others:
        click.echo("\nOther deliveries of the event:")
        _print_deliveries(found.others)


def follow_delivery(stores: Stores, delivery_id: str, wait_s: float, *, as_json: bool) -> bool:
    """Print a delivery's attempts as they end, until it is delivered, has failed, is held or time is up.

    Args:
        stores: where to look.
        delivery_id: which delivery.
        wait_s: for how many seconds.
        as_json: print nothing but what is known at the end.

    Returns:
        Whether it is delivered.
    """
    give_up_at, shown, table = time.monotonic() + wait_s, 0, Table()
    while True:
        is_last = time.monotonic() >= give_up_at
        found = read_delivery(stores, delivery_id, stores.deliveries.now())
        if found is not None:
            stage, new = found.outlook.stage, found.attempts[shown:]
            is_last = is_last or stage in _ENDS or (stage is Stage.HELD and not found.gate.is_open)
            if not as_json:
                table.print(describe_attempts(found, new))
                if (new or is_last) and stage is not Stage.DELIVERED:
                    click.echo(make_safe(found.outlook.text))
            shown += len(new)
        if is_last:
            break
        time.sleep(_POLL_S)
    if as_json and found is not None:
        print_json(document_json(_delivery_to_wire(found)))
    is_delivered = found is not None and found.outlook.stage is Stage.DELIVERED
    if not is_delivered and not as_json:
        click.echo(f"See what comes next: webhooks show {delivery_id}")
    return is_delivered


def _describe_facts(found: DeliveryHistory) -> list[list[str | Cell]]:
    last = found.attempts[-1].row if found.attempts else None
    webhook = found.webhook
    named = "is gone or cannot be used" if webhook is None else f"{webhook.label} {webhook.trigger}, {webhook.url}"
    rows: list[list[str | Cell]] = [["delivery", found.delivery_id]]
    if found.resends is not None:
        rows.append(["resends", found.resends])
    rows.append(["event", f"{found.event_id}{'' if last is None else f' {last.event_type} {last.event_name}'}"])
    if last is not None and last.object_id:
        rows.append(["object", last.object_id])
    rows.append(["webhook", f"{found.webhook_id} {named}"])
    rows.append(["company", str(found.company)])
    if found.body is not None:
        rows.append(["body", f"{len(found.body.encode())} bytes; --json prints it"])
    return rows


def describe_attempts(found: DeliveryHistory, attempts: Sequence[Attempt]) -> list[list[str | Cell]]:
    """Return the rows of some of a delivery's attempts on its time line."""
    longest_ms = find_longest_ms(found)
    rows: list[list[str | Cell]] = []
    for attempt in attempts:
        row, details = attempt.row, attempt.row.details
        if attempt.waited:
            rows.append([f"  … {attempt.waited}"])
        kind = row.outcome.value if details is None or details.error_kind is None else details.error_kind.value
        style = "green" if row.outcome is Outcome.SUCCESS else "red"
        at = row.created_at if details is None else details.started_at
        phases = draw_phases(details, longest_ms)
        bar = "".join(one.name[0] * max(1, round(one.width / BAR * _BAR_CHARS)) for one in phases)
        parts = ", ".join(f"{one.label} {describe_ms(one.ms)}" for one in phases)
        rows.append(
            [
                f"{at:%Y-%m-%d %H:%M:%S}",
                f"attempt {row.retry + 1}{', a probe' if details is not None and details.probe else ''}",
                Cell(f"{row.status} {kind}", style),
                "-" if details is None or details.total_ms is None else describe_ms(details.total_ms),
                f"{bar}  {parts}".strip(),
            ]
        )
        rows.append([f"    {attempt.explanation.reason} {attempt.explanation.remedy}".rstrip()])
        if row.response.strip():
            rows.append([f"    {first_line(row.response)}"])
    return rows


def _print_deliveries(deliveries: Sequence[DeliveryState]) -> None:
    Table(indent="  ").print(
        [
            [
                Cell(one.outlook.stage.value, STAGE_STYLES[one.outlook.stage]),
                one.name or str(one.webhook_id),
                f"{one.delivery_id}{', resent' if one.is_resent else ''}",
                f"{one.attempts} attempt{'' if one.attempts == 1 else 's'}",
                one.outlook.text,
            ]
            for one in deliveries
        ]
    )


def _state_to_wire(one: DeliveryState) -> dict[str, Any]:
    return {
        "delivery_id": one.delivery_id,
        "webhook": one.webhook_id,
        "code": one.name,
        "attempts": one.attempts,
        "resent": one.is_resent,
        **asdict(one.outlook),
    }


def _delivery_to_wire(found: DeliveryHistory) -> dict[str, Any]:
    return {
        "delivery_id": found.delivery_id,
        "resends": found.resends,
        "event_id": found.event_id,
        "company": found.company,
        "webhook": found.webhook_id,
        **asdict(found.outlook),
        "attempts": [
            {
                "log": one.row.log_id,
                "createdAt": one.row.created_at,
                "status": one.row.status,
                "retry": one.row.retry,
                "response": one.row.response,
                "waited": one.waited,
                "reason": one.explanation.reason,
                "remedy": one.explanation.remedy,
                "attempt": None if one.row.details is None else one.row.details.model_dump(),
            }
            for one in found.attempts
        ],
        "has_more": found.has_more,
        "body": found.body,
        "others": [_state_to_wire(one) for one in found.others],
    }


@click.command()
@click.argument("event_id", metavar="ID")
@JSON_OPTION
def event(event_id: str, as_json: bool) -> None:
    """Show what became of an event: accepted, matched by nobody, in the outbox, a dead letter, or never seen.

    ID is the id that `deliver.delay` returned. Exits with 1 if the event was never seen.
    """
    stores = get_stores()
    found = read_event_history(stores, complete_event_id(stores, event_id), get_settings().log_ttl_days)
    if as_json:
        print_json(document_json(_event_to_wire(found)))
    else:
        _print_event(found)
    if found.fate is Fate.NEVER_SEEN:
        raise click.exceptions.Exit(1)


def _print_event(found: EventHistory) -> None:
    rows: list[Sequence[str | Cell]] = [
        [Cell(found.fate.value, _FATES[found.fate]), found.text],
        ["event", found.event_id],
    ]
    rows += [
        [name, text]
        for name, text in (
            ("type", f"{found.type} {found.event}".strip()),
            ("object", found.object_id),
            ("company", "" if found.company is None else str(found.company)),
            (
                "happened",
                "" if found.created_at is None else f"{format_instant(found.created_at)}, as its producer says",
            ),
        )
        if text
    ]
    Table().print(rows)
    if found.deliveries:
        click.echo("\nDeliveries:")
        _print_deliveries(found.deliveries)
    if found.dead_letters:
        click.echo("\nDead letters; `webhooks dead show ID` shows one:")
        Table(indent="  ").print(
            [[str(one["_id"]), str(one.get("reason", "")), str(one.get("text", ""))] for one in found.dead_letters]
        )
    if found.mismatches:
        click.echo("\nWebhooks of the company that did not get it, as they are now:")
        Table(indent="  ").print([[one.name, str(one.webhook_id), one.reason] for one in found.mismatches])


def _event_to_wire(found: EventHistory) -> dict[str, Any]:
    return {
        "event_id": found.event_id,
        "fate": found.fate,
        "text": found.text,
        "company": found.company,
        "type": found.type,
        "event": found.event,
        "object": found.object_id,
        "createdAt": found.created_at,
        "deliveries": [_state_to_wire(one) for one in found.deliveries],
        "mismatches": [{"webhook": m.webhook_id, "name": m.name, "reason": m.reason} for m in found.mismatches],
        "dead_letters": [{"_id": one["_id"], "reason": one.get("reason")} for one in found.dead_letters],
    }
