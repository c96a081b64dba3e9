"""``webhooks add``, ``list``, ``show``, ``edit``, ``deactivate``, ``activate``: who wants which events."""

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, get_args

import click
from bson import ObjectId

from webhooks.cli.common import (
    Cell,
    IdParam,
    Table,
    company_option,
    document_json,
    find_webhook,
    get_stores,
    json_option,
    print_error,
    print_json,
    without_secrets,
)
from webhooks.cli.gate_cmd import let_through
from webhooks.cli.logs_cmd import first_line, print_logs
from webhooks.cli.secret_cmd import describe_new, get_vault, make_secret
from webhooks.cli.status import describe_notices, describe_state, describe_status, read_gates, read_status
from webhooks.cli.workers import ask_workers, check_key, note_refusal
from webhooks.errors import InvalidWebhook
from webhooks.models import TRIGGERS, COTWebhook, format_instant, now, parse_webhook
from webhooks.models.webhook import MAX_RATE, MIN_RATE, TriggerName
from webhooks.models.wire import to_wire
from webhooks.rules.retry import Outcome
from webhooks.rules.signing import new_secret
from webhooks.store.logs import LogQuery, LogStore
from webhooks.store.mongo import Document
from webhooks.store.webhooks import CACHE_S, read_stored, why_unusable

_F = TypeVar("_F", bound=Callable[..., Any])

#: Options that narrow a webhook → the field of its context.
_CONTEXT_OPTIONS = {"survey": "survey", "group": "group", "task_group": "taskGroup"}
#: Options that say how its events are sent, and the fields that they set. What is the default is not stored.
_SENDING_FIELDS = ("ordered", "on_exhausted", "rate_limit", "rate_burst")
#: What an ordered webhook does after a delivery whose retries are used up.
_THEN = {"next": "goes on with the next", "stop": "stops"}
#: Decimals as people write them; Python takes much more for a number.
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
#: Seconds for which a worker may take a webhook for what it was: its cache, and the read that fills it.
_KNOWN_FOR_S = CACHE_S + 1
#: How many attempts `show` shows.
_SHOWN_ATTEMPTS = 5
#: Characters of a response that `show` quotes.
_SHOWN_RESPONSE = 500
#: Where `show` stops counting: an answer must not cost the database much.
_COUNT_LIMIT = 100_000


class _IdOrNone(IdParam):
    """An id, or ``""`` for "any"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - text here
        """Read 24 hexadecimal digits or nothing."""
        return "" if value == "" else str(super().convert(value, param, ctx))


class _RateParam(click.ParamType):
    """Attempts per second; "none" becomes 0, as click takes None for an option that is not there."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, or ``none``."""
        if value == "none" or not isinstance(value, str):
            return 0 if value == "none" else value
        if not _NUMBER.fullmatch(value) or not MIN_RATE <= float(value) <= MAX_RATE:
            self.fail(f"{value!r} is no number from {MIN_RATE:g} to {MAX_RATE}, nor none", param, ctx)
        return float(value) if "." in value else int(value)


def _triggers_narrowed_by(field: str) -> list[str]:
    return [name for name, trigger in TRIGGERS.items() if field in trigger.narrowed_by]


def _fields(*, is_new: bool) -> Callable[[_F], _F]:
    """Add the options for what a person may set on a webhook."""

    def decorate(function: _F) -> _F:
        options = [
            click.option(
                "--trigger",
                type=click.Choice(get_args(TriggerName)),
                required=is_new,
                metavar="TRIGGER",
                help=f"What it wants: {', '.join(get_args(TriggerName))}.",
            ),
            click.option("--url", required=is_new, help="Where events are sent: http:// or https://."),
            click.option("--name", help="For people."),
            click.option("--description", help="For people."),
        ]
        for option, field in _CONTEXT_OPTIONS.items():
            triggers = ", ".join(_triggers_narrowed_by(field))
            any_ = "" if is_new else ' "" for any.'
            options.append(
                click.option(
                    "--" + option.replace("_", "-"),
                    type=_IdOrNone(),
                    metavar="ID",
                    help=f"Only events of this {option.replace('_', ' ')} ({triggers}).{any_}",
                )
            )
        options += [
            click.option(
                "--ordered/--unordered",
                default=None,
                help="Its events arrive in the order in which they were accepted, one at a time; or as they come.",
            ),
            click.option(
                "--on-exhausted",
                type=click.Choice(["next", "stop"]),
                help="Of an ordered one, when all attempts of a delivery have failed: go on with the next, or stop and "
                "wait for an operator.",
            ),
            click.option(
                "--rate-limit",
                type=_RateParam(),
                metavar="N",
                help="At most so many attempts per second, over all workers; decimals are allowed."
                + ("" if is_new else " none: no limit."),
            ),
            click.option(
                "--rate-burst",
                type=click.IntRange(1, MAX_RATE),
                metavar="N",
                help="Of one with a limit: so many attempts at once, where none was made for a while.",
            ),
        ]
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command()
@click.option("--company", type=IdParam(), metavar="ID", required=True, help="Whose events it wants.")
@click.option(
    "--code", required=True, help="What it is called: a-z, 0-9 and _, unique in its company, never changed again."
)
@_fields(is_new=True)
@click.option("--unsigned", is_flag=True, help="Make no secret: its requests are not signed.")
@json_option
def add(company: ObjectId, code: str, unsigned: bool, as_json: bool, **fields: Any) -> None:
    """Add a webhook; it gets events within 5 s.

    Its requests are signed with a secret that is made and shown now, if WEBHOOKS_ENCRYPTION_KEY is set.
    """
    _check_context(fields, str(fields["trigger"]))
    sending = _read_sending(fields)
    _check_sending(fields, sending)
    asked = ask_workers()
    webhook_id, vault, text = ObjectId(), get_vault(), new_secret()
    if vault.has_key and not unsigned:
        check_key(asked)
    made = make_secret(text, webhook_id, vault) if vault.has_key and not unsigned else None
    webhook = parse_webhook(
        # Keys in the order of the contract's sample.
        {
            "_id": str(webhook_id),
            "company": str(company),
            "isActive": True,
            "trigger": fields["trigger"],
            "url": fields["url"],
            "name": fields["name"] or "",
            "code": code,
            "context": {field: fields[option] or "" for option, field in _CONTEXT_OPTIONS.items()},
            "__v": 0,
            "description": fields["description"] or "",
            **{field: value for field, value in sending.items() if value is not None},
            **({"secrets": [made.model_dump(exclude_none=True)]} if made else {}),
        }
    )
    store = get_stores().webhooks
    # What keeps codes unique; a worker makes it as well, but may never have run here.
    store.ensure_indexes()
    if any(document.get("code") == code for document in store.find(code, company)):
        # That index cannot exist where two webhooks had one code before.
        raise InvalidWebhook(f"invalid webhook: code: company {company} has {code!r} already")
    store.add(webhook)
    note_refusal(webhook.url, asked)
    if as_json:
        print_json(document_json({**without_secrets(webhook.to_wire()), **({"secret": text} if made else {})}))
        return
    signed = describe_new(made, text) if made else [["signed", "no"]]
    Table().print([["added", str(webhook.id)], *_describe_wish(webhook), *signed])
    if made is None and not unsigned:
        print_error(
            "note: WEBHOOKS_ENCRYPTION_KEY is not set, so no secret was made: set it to the workers' key, or to one "
            f"that `webhooks secret new-key` makes for both, then `webhooks secret rotate {webhook.id}`"
        )


@click.command("list")
@company_option
@click.option("--all", "with_inactive", is_flag=True, help="Also those that are not active.")
@json_option
def list_webhooks(company: ObjectId | None, with_inactive: bool, as_json: bool) -> None:
    """List the active webhooks, by company and code.

    Other services may write webhooks, too: one that breaks the contract is listed with the reason, and gets no events.
    """
    stores = get_stores()
    documents = stores.webhooks.list_all(company)
    if not with_inactive:
        documents = [document for document in documents if document.get("isActive") is not False]
    states = [
        describe_state(document, gate) for document, gate in zip(documents, read_gates(stores, documents), strict=True)
    ]
    if as_json:
        for document, state in zip(documents, states, strict=True):
            print_json(document_json({**without_secrets(_with_reason(document)), "state": state.text}))
        return
    if not documents:
        print_error("there are none" if with_inactive else "there are no active ones; --all shows the others")
        return
    rows: dict[str, list[list[str | Cell]]] = {}
    for document, state in zip(documents, states, strict=True):
        rows.setdefault(str(document.get("company")), []).append(_list_row(document, state))
    table = Table(indent="  ")
    for owner, owned in rows.items():
        Table().print([[Cell(f"company {owner}", "bold")]])
        table.print(owned)


def _list_row(document: Document, state: Cell) -> list[str | Cell]:
    reason = why_unusable(document)
    code, trigger, url = (str(document.get(key) or "-") for key in ("code", "trigger", "url"))
    return [Cell(code, "bold"), str(document["_id"]), state, trigger, Cell(reason, "red") if reason else url]


@click.command()
@click.argument("reference", metavar="REF")
@company_option
@json_option
def show(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """Show a webhook, all of it, what is owed to it, and how its last attempts went. REF is an id or a code."""
    stores = get_stores()
    document = find_webhook(stores.webhooks, reference, company)
    # A reference finds ids that somebody stored as something else; they have no logs.
    query = LogQuery(webhook_id=document["_id"])
    attempts = stores.logs.read(query, _SHOWN_ATTEMPTS)[::-1]
    counts = _count_last_day(stores.logs, document["_id"])
    standing = read_status(stores, document)
    if as_json:
        wire = {
            "webhook": without_secrets(_with_reason(document)),
            "standing": None if standing is None else standing.to_wire(),
            "last_24_h": counts,
            "logs": [log.to_wire() for log in attempts],
        }
        print_json(document_json(wire))
        return
    reason = why_unusable(document)
    Table().print(
        [
            *([[Cell("INVALID", "red"), Cell(f"gets no events: {reason}", "red")]] if reason else []),
            *_describe_fields(to_wire(without_secrets(document))),
            *([] if reason else _describe_sending(read_stored(document))),
        ]
    )
    click.echo()
    last = {outcome: stores.logs.read(LogQuery(webhook_id=document["_id"], outcome=outcome), 1) for outcome in Outcome}
    summary = [] if standing is None else describe_status(document, standing)
    summary.append(["last 24 h", _describe_counts(counts)])
    for name, outcome, style in (("last success", Outcome.SUCCESS, "green"), ("last failure", Outcome.FAILED, "red")):
        text = "none on record"
        for log in last[outcome]:
            text = f"{format_instant(log.createdAt)}, {log.status}, event {log.details.event_id}"
            if log.response.strip():
                text += f": {first_line(log.response)[:_SHOWN_RESPONSE]}"
        summary.append([name, Cell(text, style if last[outcome] else "")])
    Table().print(summary)
    if standing is not None and standing.gate.notices:
        click.echo("\nLast changes:")
        Table().print(describe_notices(standing.gate))
    if attempts:
        click.echo("\nLast attempts:")
        print_logs(attempts)
        click.echo(f"More of them: webhooks logs --webhook {document['_id']}")


def _describe_fields(fields: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Return a row for each field of a stored webhook, whatever is in it."""
    rows = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            rows += _describe_fields(value, f"{prefix}{key}.")
        else:
            rows.append([prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)])
    return rows


def _count_last_day(logs: LogStore, webhook_id: ObjectId) -> dict[str, int]:
    since = now() - timedelta(days=1)
    return {
        outcome.value: logs.count(LogQuery(webhook_id=webhook_id, outcome=outcome, since=since), _COUNT_LIMIT)
        for outcome in Outcome
    }


def _describe_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{count}{'+' if count == _COUNT_LIMIT else ''} {'succeeded' if name == Outcome.SUCCESS else 'failed'}"
        for name, count in counts.items()
    )


@click.command()
@click.argument("reference", metavar="REF")
@company_option
@_fields(is_new=False)
@json_option
def edit(reference: str, company: ObjectId | None, as_json: bool, **fields: Any) -> None:
    """Change a webhook. REF is an id or a code.

    Only what is given is written. Company and code never change: receivers and other services know a webhook by them.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change: give at least one option")
    asked = ask_workers()
    store = get_stores().webhooks
    document = to_wire(find_webhook(store, reference, company))
    _check_context(given, given.get("trigger") or str(document.get("trigger")))
    sending = _read_sending(given)
    _check_sending(given, {**document, **sending})
    changes = {name: value for name, value in given.items() if name not in _CONTEXT_OPTIONS} | sending
    context = {field: given[option] for option, field in _CONTEXT_OPTIONS.items() if option in given}
    if context:
        stored = document.get("context")
        changes["context"] = {**(stored if isinstance(stored, Mapping) else {}), **context}
    webhook = _change(document, changes)
    _warn_of_idle_context(webhook)
    note_refusal(webhook.url, asked)
    if as_json:
        print_json(document_json(without_secrets(webhook.to_wire())))
        return
    Table().print([["changed", str(webhook.id)], *_describe_wish(webhook)])


@click.command()
@click.argument("reference", metavar="REF")
@company_option
def deactivate(reference: str, company: ObjectId | None) -> None:
    """Stop sending to a webhook. REF is an id or a code.

    It takes effect within 5 s, also for deliveries that wait for their next attempt or are kept: they end, and their
    logs say so. The webhook and its logs stay.
    """
    stores = get_stores()
    document = to_wire(find_webhook(stores.webhooks, reference, company))
    webhook = _change(document, {"isActive": False})
    if document.get("isActive") is not False:
        if not stores.gates.get(webhook.id).is_open:
            time.sleep(_KNOWN_FOR_S)  # what is let out while workers take it for active would be sent
        stores.gates.deactivate(webhook.id, ObjectId(), "an operator deactivated it")
    _say_active(webhook)


@click.command()
@click.argument("reference", metavar="REF")
@company_option
def activate(reference: str, company: ObjectId | None) -> None:
    """Send to a webhook again. REF is an id or a code.

    It gets events within 5 s; those of the time in between are not made up for. If it is paused or has stopped, it goes
    on as with `webhooks resume`.
    """
    stores = get_stores()
    document = to_wire(find_webhook(stores.webhooks, reference, company))
    webhook = _change(document, {"isActive": True, "deactivated": None})
    let_through(stores, webhook.id)
    _say_active(webhook)


def _say_active(webhook: COTWebhook) -> None:
    state = "active" if webhook.isActive else "inactive"
    click.echo(f"{webhook.label} ({webhook.id}) of company {webhook.company} is {state}")


def _change(document: Mapping[str, Any], changes: Mapping[str, Any]) -> COTWebhook:
    """Write what differs from what is stored, if anything does.

    Args:
        document: the webhook's wire form, as it is stored.
        changes: the new value of each field; None takes the field out.

    Returns:
        The webhook as it is now.

    Raises:
        InvalidWebhook: it would not be a usable one; nothing was written.
    """
    wanted = {field: value for field, value in changes.items() if value is not None}
    kept = {field: value for field, value in document.items() if field not in changes or field in wanted}
    webhook = parse_webhook({**kept, **wanted})
    changed = frozenset(field for field, value in changes.items() if document.get(field) != value)
    if changed:
        get_stores().webhooks.change(webhook, changed)
    return webhook


def _read_sending(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that say how events are sent, of the options that were given; None for a default."""
    found = {field: given[field] for field in _SENDING_FIELDS if given.get(field) is not None}
    return {
        field: None if value in (0, COTWebhook.model_fields[field].default) else value for field, value in found.items()
    }


def _check_sending(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse an option that would be stored and do nothing.

    Args:
        given: the options.
        wanted: the fields of the webhook as it would be.

    Raises:
        click.UsageError: says what it goes with.
    """
    if given.get("on_exhausted") is not None and not wanted.get("ordered"):
        raise click.UsageError("--on-exhausted goes with an ordered webhook only: give --ordered")
    if given.get("rate_burst") is not None and wanted.get("rate_limit") is None:
        raise click.UsageError("--rate-burst goes with a limit only: give --rate-limit")


def _check_context(given: Mapping[str, str | None], trigger: str) -> None:
    """Refuse an option that would be stored and do nothing.

    Raises:
        click.UsageError: says which triggers it narrows.
    """
    for option, field in _CONTEXT_OPTIONS.items():
        triggers = _triggers_narrowed_by(field)
        if given.get(option) and trigger not in triggers:
            name = "--" + option.replace("_", "-")
            raise click.UsageError(f"{name} does not narrow {trigger}, only {' and '.join(triggers)}")


def _warn_of_idle_context(webhook: COTWebhook) -> None:
    narrowed_by = TRIGGERS[webhook.trigger].narrowed_by
    for option, field in _CONTEXT_OPTIONS.items():
        if getattr(webhook.context, field) and field not in narrowed_by:
            name = "--" + option.replace("_", "-")
            print_error(f'note: context.{field} is set, but does not narrow {webhook.trigger}; {name} "" clears it')


def _describe_wish(webhook: COTWebhook) -> list[list[str]]:
    """Say what a webhook will get, in rows."""
    trigger = TRIGGERS[webhook.trigger]
    events = [event for event in ("create", "edit", "delete", "logout") if event in trigger.events]
    narrowed = [
        f"whose data.{key} is {getattr(webhook.context, field)}"
        for field, key in trigger.narrowed_by.items()
        if getattr(webhook.context, field)
    ]
    wish = f"{trigger.type} {', '.join(events)} of company {webhook.company}"
    rows = [["code", webhook.label], ["gets", " ".join([wish, " and ".join(narrowed)]).strip()], ["at", webhook.url]]
    rows += _describe_sending(webhook)
    if not webhook.isActive:
        rows.append(["but", f"is inactive: webhooks activate {webhook.id}"])
    return rows


def _describe_sending(webhook: COTWebhook) -> list[list[str]]:
    """Say how its events are sent, in rows; none where that is as usual."""
    rows = []
    if webhook.ordered:
        then = _THEN[webhook.on_exhausted]
        rows.append(["order", f"in order, one at a time; {then} when a delivery fails for good"])
    if webhook.rate_limit is not None:
        burst = f", bursts of {webhook.rate_burst}" if webhook.rate_burst > 1 else ""
        attempts = "attempt" if webhook.rate_limit == 1 else "attempts"
        rows.append(["rate", f"at most {webhook.rate_limit:.10g} {attempts} per second{burst}"])
    return rows


def _with_reason(document: Document) -> Document:
    """Return a stored document, with the reason where it cannot be used."""
    reason = why_unusable(document)
    return document if reason is None else {**document, "invalid": reason}
