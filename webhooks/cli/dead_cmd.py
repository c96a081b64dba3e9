"""``webhooks dead``: list, show, resend and drop dead letters: messages that no worker could handle."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
from bson import ObjectId

from webhooks.cli.options import ID, JSON_OPTION, limit_option
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.stores import get_stores
from webhooks.errors import CannotResend
from webhooks.models.wire import document_json, make_safe, to_wire
from webhooks.producer.app import app
from webhooks.store.deadletters import DeadLetter, DeadLetterStore, Reason
from webhooks.store.mongo import Document

_F = TypeVar("_F", bound=Callable[..., Any])

#: Seconds for one letter; longer than a producer's call, because the user can wait for a busy broker.
_BROKER_TIMEOUT_S = 20.0
#: Maximum number of characters of a body that are shown.
_SHOWN_BODY = 2_000
_HEADER = ("TIME (UTC)", "ID", "REASON", "TASK", "QUEUE", "BYTES", "WHY")
_REASON = click.Choice([reason.value for reason in Reason])


def _which(function: _F) -> _F:
    """Add ``ID…``, ``--all`` and ``--reason``."""
    for decorate in (
        click.option("--reason", type=_REASON, help="With --all: only with this reason."),
        click.option("--all", "is_all", is_flag=True, help="All dead letters."),
        click.argument("letter_ids", metavar="[ID]...", nargs=-1, type=ID),
    ):
        function = decorate(function)
    return function


@click.group()
def dead() -> None:
    """List, show, resend and drop messages that no worker could handle.

    These are unreadable messages, unknown tasks, wrong arguments, events that break the contract, and messages that
    meet a defect at each retry. They are stored until you resend or drop them.
    """


@dead.command("list")
@click.option("--reason", type=_REASON, help="Only with this reason.")
@limit_option(minimum=1)
@JSON_OPTION
def list_letters(reason: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, the newest last."""
    found = get_stores().dead_letters.read_newest(limit, _to_reason(reason))[::-1]
    if as_json:
        for document in found:
            print_json(document_json(document))
        return
    if not found:
        print_error("there are no dead letters" + (f" with reason {reason}" if reason else ""))
        return
    Table(right=(5,), cut=True).print([[Cell(name, "bold") for name in _HEADER], *map(_row, found)])


def _row(letter: Document) -> list[str | Cell]:
    at = letter.get("created_at")
    time = f"{at:%Y-%m-%d %H:%M:%S}" if isinstance(at, datetime) else str(at or "-")
    rest = (str(letter.get(field) or "-") for field in ("task", "queue", "size_bytes", "text"))
    return [time, str(letter["_id"]), Cell(str(letter.get("reason") or "-"), "red"), *rest]


@dead.command("show")
@click.argument("letter_id", metavar="ID", type=ID)
@JSON_OPTION
def show_letter(letter_id: ObjectId, as_json: bool) -> None:
    """Show a dead letter: reason, headers and the start of its body, which is payload. --json shows all of it."""
    letter = _get(get_stores().dead_letters, letter_id)
    document = letter.to_document()
    if as_json:
        print_json(document_json(document))
        return
    envelope, body = document.pop("envelope"), document.pop("body")
    rows = [[field, _to_text(value)] for field, value in document.items()]
    if letter.is_cut:
        rows.append(["envelope", envelope[:_SHOWN_BODY]])
    else:
        parts = json.loads(envelope)
        headers = {f"headers.{name}": value for name, value in parts.pop("headers").items()}
        rows += [[name, _to_text(value)] for name, value in {**parts, **headers}.items()]
    Table().print(rows)
    click.echo("\n" + make_safe(body[:_SHOWN_BODY]) + (" …" if len(body) > _SHOWN_BODY else ""))


@dead.command()
@_which
def resend(letter_ids: tuple[ObjectId, ...], is_all: bool, reason: str | None) -> None:
    """Send dead letters again: the original message, with its task id, to its queue.

    A letter is deleted once the broker has its message. If the cause still exists, the message becomes a dead letter
    again.
    """
    store = get_stores().dead_letters
    chosen = _choose(store, letter_ids, is_all, reason)
    sent = 0
    with app.connection_for_write(connect_timeout=_BROKER_TIMEOUT_S) as connection, connection.Producer() as producer:
        # A broker that refuses connections is an error at once; only one that is silent takes the whole timeout.
        connection.ensure_connection(max_retries=1, interval_start=0)
        publish = connection.ensure(producer, lambda letter: letter.publish(producer.channel))
        for letter_id in chosen:
            try:
                letter = _get(store, letter_id)
                publish(letter)
            except CannotResend as error:  # the others may succeed
                print_error(str(error))
                continue
            store.delete_sent(letter)
            sent += 1
    click.echo(f"sent again: {sent}")
    _end(len(chosen) - sent)


@dead.command()
@_which
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def drop(letter_ids: tuple[ObjectId, ...], is_all: bool, reason: str | None, yes: bool) -> None:
    """Delete dead letters and their messages."""
    store = get_stores().dead_letters
    chosen = _choose(store, letter_ids, is_all, reason)
    if chosen and not yes:
        click.confirm(f"Drop {len(chosen)} for good?", abort=True)
    missing = [letter_id for letter_id in chosen if not store.delete(letter_id)]
    for letter_id in missing:
        print_error(_none(letter_id))
    click.echo(f"dropped: {len(chosen) - len(missing)}")
    _end(len(missing))


def _to_reason(value: str | None) -> Reason | None:
    return None if value is None else Reason(value)


def _choose(
    store: DeadLetterStore, letter_ids: Sequence[ObjectId], is_all: bool, reason: str | None
) -> Sequence[ObjectId]:
    if bool(letter_ids) == is_all:
        raise click.UsageError("give ids, or --all")
    if reason and not is_all:
        raise click.UsageError("--reason goes with --all")
    return store.read_ids(_to_reason(reason)) if is_all else list(dict.fromkeys(letter_ids))


def _get(store: DeadLetterStore, letter_id: ObjectId) -> DeadLetter:
    letter = store.get(letter_id)
    if letter is None:
        raise CannotResend(_none(letter_id))
    return letter


def _none(letter_id: ObjectId) -> str:
    return f"there is no dead letter {letter_id}; `webhooks dead list` shows them"


def _end(failures: int) -> None:
    if failures:
        click.get_current_context().exit(1)


def _to_text(value: object) -> str:
    wire = to_wire(value)
    return wire if isinstance(wire, str) else json.dumps(wire, ensure_ascii=False)
