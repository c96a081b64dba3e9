"""``webhooks add``, ``list``, ``show``, ``edit``, ``deactivate``, ``activate``."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, get_args

import click
from bson import ObjectId

from webhooks.cli.delivery_cmd import show_delivery
from webhooks.cli.logs_cmd import LogPrinter, first_line
from webhooks.cli.options import COMPANY_OPTION, ID, JSON_OPTION, ParsedParam, webhook_argument
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.secret_cmd import describe_new, get_vault, make_secret
from webhooks.cli.status import (
    COUNT_LIMIT,
    count,
    describe_notices,
    describe_state,
    describe_status,
    read_gates,
    read_status,
)
from webhooks.cli.stores import complete_delivery_id, find_webhook, get_stores, record_action
from webhooks.cli.workers import check_key, find_workers, note_refusal
from webhooks.delivery import operate
from webhooks.delivery.operate import change_webhook
from webhooks.errors import InvalidWebhook
from webhooks.models import TRIGGERS, COTWebhook, COTWebhookLog, format_instant, now, parse_webhook
from webhooks.models.ids import DELIVERY_PREFIX
from webhooks.models.webhook import MAX_RATE, MIN_RATE, TriggerName
from webhooks.models.wire import document_json, parse_object_id, to_wire
from webhooks.rules.retry import Outcome
from webhooks.rules.signing import new_secret
from webhooks.store.logs import LogQuery
from webhooks.store.mongo import Document
from webhooks.store.webhooks import read_stored, why_unusable, without_secrets

_F = TypeVar("_F", bound=Callable[..., Any])

#: Options that narrow a webhook → the field of its context.
_CONTEXT_OPTIONS = {"survey": "survey", "group": "group", "task_group": "taskGroup"}
#: Options, and fields, for order, rate and tracing. Defaults are not stored.
_SENDING_FIELDS = ("ordered", "on_exhausted", "rate_limit", "rate_burst", "traced")
#: What an ordered webhook does after a delivery whose retries are used up.
_ON_EXHAUSTED = {"next": "continues with the next", "stop": "stops"}
#: Plain decimals; `float` accepts other forms too.
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
#: Number of attempts, and characters of a response, that `show` prints.
_SHOWN_ATTEMPTS = 5
_SHOWN_RESPONSE = 500


def _parse_rate(text: str) -> float:
    """Parse attempts per second; "none" becomes 0, because click uses None for an option that is not given."""
    if text == "none":
        return 0
    if not _NUMBER.fullmatch(text) or not MIN_RATE <= float(text) <= MAX_RATE:
        raise ValueError(f"{text!r} is neither a number from {MIN_RATE:g} to {MAX_RATE} nor none")
    return float(text) if "." in text else int(text)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _triggers_narrowed_by(field: str) -> list[str]:
    return [name for name, trigger in TRIGGERS.items() if field in trigger.narrowed_by]


def _fields(*, is_new: bool) -> Callable[[_F], _F]:
    """Add the options for a webhook's fields."""

    def decorate(function: _F) -> _F:
        options = [
            click.option(
                "--trigger",
                type=click.Choice(get_args(TriggerName)),
                required=is_new,
                metavar="TRIGGER",
                help=f"Its events: {', '.join(get_args(TriggerName))}.",
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
                    _flag(option),
                    type=ParsedParam("id", lambda text: text and str(parse_object_id(text))),
                    metavar="ID",
                    help=f"Only events of this {option.replace('_', ' ')} ({triggers}).{any_}",
                )
            )
        options += [
            click.option(
                "--ordered/--unordered",
                default=None,
                help="Send its events in the order in which they were accepted, one at a time; or in any order.",
            ),
            click.option(
                "--on-exhausted",
                type=click.Choice(["next", "stop"]),
                help="With --ordered, after all attempts of a delivery have failed: continue with the next, or stop "
                "and wait for an operator.",
            ),
            click.option(
                "--rate-limit",
                type=ParsedParam("rate", _parse_rate),
                metavar="N",
                help="Maximum attempts per second, over all workers; decimals are allowed."
                + ("" if is_new else " none: no limit."),
            ),
            click.option(
                "--rate-burst",
                type=click.IntRange(1, MAX_RATE),
                metavar="N",
                help="With --rate-limit: maximum attempts at once after a pause.",
            ),
            click.option(
                "--traced/--untraced",
                default=None,
                help="Send the header traceparent, with the id of the attempt's span, if the worker makes spans; or "
                "do not.",
            ),
        ]
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command()
@click.option("--company", type=ID, metavar="ID", required=True, help="The company whose events it gets.")
@click.option("--code", required=True, help="Its name: a-z, 0-9 and _, unique in its company, never changed.")
@_fields(is_new=True)
@click.option("--unsigned", is_flag=True, help="Make no secret: requests are not signed.")
@JSON_OPTION
def add(company: ObjectId, code: str, unsigned: bool, as_json: bool, **fields: Any) -> None:
    """Add a webhook; it gets events within 5 s.

    If WEBHOOKS_ENCRYPTION_KEY is set, a new secret is shown, which signs its requests.
    """
    _check_context(fields, str(fields["trigger"]))
    sending = _read_sending(fields)
    _check_sending(fields, sending)
    webhook_id, vault, text = ObjectId(), get_vault(), new_secret()
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
    workers = find_workers(get_stores().workers)
    if made:
        check_key(workers)
    store = get_stores().webhooks
    # The index keeps codes unique, but it cannot exist if two old webhooks have the same code.
    store.ensure_indexes()
    if any(document.get("code") == code for document in store.find(code, company)):
        raise InvalidWebhook(f"invalid webhook: code: company {company} has {code!r} already")
    store.add(webhook)
    note_refusal(webhook.url, workers)
    if as_json:
        print_json(document_json({**without_secrets(webhook.to_wire()), **({"secret": text} if made else {})}))
        return
    signed = describe_new(made, text) if made else [["signed", "no"]]
    Table().print([["added", str(webhook.id)], *_describe(webhook), *signed])
    if made is None and not unsigned:
        print_error(
            "note: WEBHOOKS_ENCRYPTION_KEY is not set, so no secret was made: set it to the workers' key, or to a new "
            f"one from `webhooks secret new-key` for both, then run `webhooks secret rotate {webhook.id}`"
        )


@click.command("list")
@COMPANY_OPTION
@click.option("--all", "with_inactive", is_flag=True, help="Also inactive ones.")
@JSON_OPTION
def list_webhooks(company: ObjectId | None, with_inactive: bool, as_json: bool) -> None:
    """List the active webhooks, by company and code.

    A webhook that breaks the contract is listed with the reason, and gets no events.
    """
    stores = get_stores()
    documents = stores.webhooks.list_all(company)
    if not with_inactive:
        documents = [document for document in documents if document.get("isActive") is not False]
    states = list(map(describe_state, documents, read_gates(stores, documents)))
    if as_json:
        for document, state in zip(documents, states, strict=True):
            print_json(document_json({**without_secrets(_with_reason(document)), "state": state.text}))
        return
    if not documents:
        print_error("no webhooks" if with_inactive else "no active webhooks; --all shows inactive ones")
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
@webhook_argument
@JSON_OPTION
def show(reference: str, company: ObjectId | None, as_json: bool) -> None:
    """Show a webhook, its pending deliveries and its last attempts. REF is an id or a code.

    A delivery's id, which begins with msg_, shows the delivery: its attempts, why they failed and what comes next.
    """
    stores = get_stores()
    if reference.startswith(DELIVERY_PREFIX) and not stores.webhooks.find(reference, company):
        show_delivery(stores, complete_delivery_id(stores, reference), as_json=as_json)
        return
    document = find_webhook(stores.webhooks, reference, company)
    query = LogQuery(webhook_id=document["_id"])
    attempts = stores.logs.read(query, _SHOWN_ATTEMPTS)[::-1]
    since = now() - timedelta(days=1)
    counts = {
        outcome.value: stores.logs.count(replace(query, outcome=outcome, since=since), COUNT_LIMIT)
        for outcome in Outcome
    }
    status = read_status(stores, document)
    if as_json:
        wire = {
            "webhook": without_secrets(_with_reason(document)),
            "standing": None if status is None else status.to_wire(),
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
    rows = [] if status is None else describe_status(document, status)
    successes, failures = counts[Outcome.SUCCESS.value], counts[Outcome.FAILED.value]
    rows.append(["last 24 h", f"{count(successes)} succeeded, {count(failures)} failed"])
    for name, outcome, style in (("last success", Outcome.SUCCESS, "green"), ("last failure", Outcome.FAILED, "red")):
        last = stores.logs.read(replace(query, outcome=outcome), 1)
        rows.append([name, Cell(_describe_log(last[0]), style) if last else "none on record"])
    Table().print(rows)
    if status is not None and status.gate.notices:
        click.echo("\nLast changes:")
        Table().print(describe_notices(status.gate))
    if attempts:
        click.echo("\nLast attempts:")
        LogPrinter().print(attempts)
        click.echo(f"More: webhooks logs --webhook {document['_id']}")


def _describe_log(log: COTWebhookLog) -> str:
    response = f": {first_line(log.response)[:_SHOWN_RESPONSE]}" if log.response.strip() else ""
    return f"{format_instant(log.createdAt)}, {log.status}, event {log.details.event_id}{response}"


def _describe_fields(fields: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Return a row for each field of a stored webhook, whatever it holds."""
    rows = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            rows += _describe_fields(value, f"{prefix}{key}.")
        else:
            rows.append([prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)])
    return rows


@click.command()
@webhook_argument
@_fields(is_new=False)
@JSON_OPTION
def edit(reference: str, company: ObjectId | None, as_json: bool, **fields: Any) -> None:
    """Change a webhook. REF is an id or a code.

    Only the given fields are written. Company and code never change, because they identify a webhook elsewhere.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change: give at least one option")
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
    webhook = change_webhook(get_stores(), document, changes)
    _warn_of_idle_context(webhook)
    note_refusal(webhook.url, find_workers(get_stores().workers))
    if as_json:
        print_json(document_json(without_secrets(webhook.to_wire())))
        return
    Table().print([["changed", str(webhook.id)], *_describe(webhook)])


@click.command()
@webhook_argument
def deactivate(reference: str, company: ObjectId | None) -> None:
    """Stop sending to a webhook. REF is an id or a code.

    It takes effect within 5 s, and ends deliveries that wait for a retry or are held, with a log for each. The webhook
    and its logs stay.
    """
    stores = get_stores()
    document = find_webhook(stores.webhooks, reference, company)
    with record_action(stores, "deactivate", document) as record:
        record.result = _say_active(operate.deactivate(stores, document))


@click.command()
@webhook_argument
def activate(reference: str, company: ObjectId | None) -> None:
    """Send to a webhook again. REF is an id or a code.

    It gets new events within 5 s, but none of those it missed. If it is paused or has stopped, this also resumes it.
    """
    stores = get_stores()
    document = find_webhook(stores.webhooks, reference, company)
    with record_action(stores, "activate", document) as record:
        record.result = _say_active(operate.activate(stores, document))


def _say_active(webhook: COTWebhook) -> str:
    state = "active" if webhook.isActive else "inactive"
    line = f"{webhook.label} ({webhook.id}) of company {webhook.company} is {state}"
    click.echo(line)
    return line


def _read_sending(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields of order, rate and tracing, with None for defaults."""
    found = {field: given[field] for field in _SENDING_FIELDS if given.get(field) is not None}
    return {
        field: None if value in (0, COTWebhook.model_fields[field].default) else value for field, value in found.items()
    }


def _check_sending(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse options of order and rate that have no effect on a webhook with the ``wanted`` fields."""
    if given.get("on_exhausted") is not None and not wanted.get("ordered"):
        raise click.UsageError("--on-exhausted goes with an ordered webhook only: give --ordered")
    if given.get("rate_burst") is not None and wanted.get("rate_limit") is None:
        raise click.UsageError("--rate-burst goes with a limit only: give --rate-limit")


def _check_context(given: Mapping[str, str | None], trigger: str) -> None:
    """Refuse options that do not narrow the trigger."""
    for option, field in _CONTEXT_OPTIONS.items():
        triggers = _triggers_narrowed_by(field)
        if given.get(option) and trigger not in triggers:
            raise click.UsageError(f"{_flag(option)} does not narrow {trigger}, only {' and '.join(triggers)}")


def _warn_of_idle_context(webhook: COTWebhook) -> None:
    narrowed_by = TRIGGERS[webhook.trigger].narrowed_by
    for option, field in _CONTEXT_OPTIONS.items():
        if getattr(webhook.context, field) and field not in narrowed_by:
            message = f"note: context.{field} is set, but does not narrow {webhook.trigger}"
            print_error(f'{message}; {_flag(option)} "" clears it')


def _describe(webhook: COTWebhook) -> list[list[str]]:
    """Return rows about the events that a webhook gets, and how they are sent."""
    trigger = TRIGGERS[webhook.trigger]
    events = [event for event in ("create", "edit", "delete", "logout") if event in trigger.events]
    narrowed = [
        f"whose data.{key} is {getattr(webhook.context, field)}"
        for field, key in trigger.narrowed_by.items()
        if getattr(webhook.context, field)
    ]
    gets = f"{trigger.type} {', '.join(events)} of company {webhook.company}"
    rows = [["code", webhook.label], ["gets", f"{gets} {' and '.join(narrowed)}".strip()], ["at", webhook.url]]
    rows += _describe_sending(webhook)
    if not webhook.isActive:
        rows.append(["but", f"is inactive: webhooks activate {webhook.id}"])
    return rows


def _describe_sending(webhook: COTWebhook) -> list[list[str]]:
    """Return rows about order, rate and tracing; none for defaults."""
    rows = []
    if webhook.ordered:
        then = _ON_EXHAUSTED[webhook.on_exhausted]
        rows.append(["order", f"in order, one at a time; {then} when a delivery fails for good"])
    if webhook.rate_limit is not None:
        burst = f", bursts of {webhook.rate_burst}" if webhook.rate_burst > 1 else ""
        attempts = "attempt" if webhook.rate_limit == 1 else "attempts"
        rows.append(["rate", f"at most {webhook.rate_limit:.10g} {attempts} per second{burst}"])
    if webhook.traced:
        rows.append(["traced", "requests have the header traceparent, if the worker makes spans"])
    return rows


def _with_reason(document: Document) -> Document:
    """Return a stored webhook, with the reason if it is not valid."""
    reason = why_unusable(document)
    return document if reason is None else {**document, "invalid": reason}
