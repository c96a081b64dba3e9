"""The options that choose logs: the filters of the page of logs, read by the same rule."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from webhooks.cli.stores import complete_delivery_id, complete_event_id
from webhooks.errors import ErrorKind
from webhooks.models import now
from webhooks.store.log_filter import CLASSES, NAMES, LogFilter, find_query, read_filter
from webhooks.store.stores import Stores

_F = TypeVar("_F", bound=Callable[..., Any])

_INSTANT = "90s 30m 2h 7d ago, or a date, in UTC unless it has a zone."
#: Filter → placeholder and help of its option. `result` has flags instead.
_OPTIONS = {
    "webhook": ("REF", "Only of this webhook: an id or a code."),
    "company": ("ID", "Only of this company."),
    "event": ("ID", "Only of this event: the id that `webhooks send` and Flower show."),
    "delivery": ("ID", "Only of this delivery: the header `webhook-id`."),
    "object": ("ID", "Only of events about this object: `event.data._id`."),
    "type": ("TYPE", 'Only of these events: a type such as COTTask, or type and event such as "COTTask create".'),
    "status": ("STATUS", f"Only with this status: a number, or {', '.join(CLASSES)}; none: no response came."),
    "kind": ("KIND", f"Only without a response for this reason: {', '.join(ErrorKind)}."),
    "since": ("TIME", f"Not before: {_INSTANT}"),
    "until": ("TIME", f"Only before: {_INSTANT}"),
}


def filter_options(function: _F) -> _F:
    """Add an option for each filter but `result`."""
    for name, (metavar, text) in reversed(_OPTIONS.items()):
        function = click.option(f"--{name}", metavar=metavar, help=text)(function)
    return function


def read_options(stores: Stores, options: Mapping[str, str | None]) -> LogFilter:
    """Read the filters, with the webhook and shortened ids looked up.

    Raises:
        click.ClickException: a filter cannot be used, or names no webhook.
    """
    asked = read_filter({name: options.get(name) or "" for name in NAMES}, now())
    for name, error in asked.errors.items():
        raise click.BadParameter(error, param_hint=f"'--{name}'")
    webhooks = stores.webhooks
    try:
        query = find_query(asked, webhooks)
    except ValueError as error:
        raise click.ClickException(f"--webhook {asked.webhook}: {error}") from None
    if query.delivery_id is not None:
        query = replace(query, delivery_id=complete_delivery_id(stores, query.delivery_id))
    if query.event_id is not None:
        query = replace(query, event_id=complete_event_id(stores, query.event_id))
    return replace(asked, query=query)
