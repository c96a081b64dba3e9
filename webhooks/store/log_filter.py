"""The filters of logs, as people give them: in the URL of a page, and as options of a command."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from bson import ObjectId

from webhooks.errors import ErrorKind
from webhooks.models import TRIGGERS, format_instant
from webhooks.models.wire import parse_object_id
from webhooks.rules.retry import Outcome
from webhooks.rules.times import parse_time
from webhooks.store.logs import LogQuery
from webhooks.store.webhooks import WebhookStore

#: Names of the filters.
NAMES = ("company", "webhook", "result", "status", "kind", "type", "since", "until", "delivery", "event", "object")
#: The events that people choose among, as ``TYPE`` or ``TYPE NAME``.
TYPES = tuple(
    choice
    for trigger in TRIGGERS.values()
    for choice in (trigger.type, *(f"{trigger.type} {name}" for name in sorted(trigger.events)))
)
#: What `status` may be besides a number.
CLASSES = ("2xx", "3xx", "4xx", "5xx", "none")

_STATUS = re.compile(r"[1-9][0-9]{2}", re.ASCII)
_CLASS = re.compile(r"([1-9])xx", re.ASCII)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which logs are asked for."""

    #: As given, without those that are empty.
    values: Mapping[str, str]
    query: LogQuery
    #: A webhook's code or id, still to be looked up.
    webhook: str | None = None
    #: Of each filter that cannot be used, what is wrong with it.
    errors: Mapping[str, str] = field(default_factory=dict)

    def to_url(self, **changes: str | None) -> str:
        """Return the query string of these filters, some of them changed; None takes one away."""
        values = {name: value for name, value in {**self.values, **changes}.items() if value}
        return f"?{urlencode(values)}" if values else "?"


def read_filter(values: Mapping[str, str], present: datetime) -> LogFilter:
    """Read filters.

    Args:
        values: by name, one of each; other names are left alone.
        present: what "2h ago" counts from.
    """
    given = {name: text for name in NAMES if (text := values.get(name, "").strip())}
    read: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, text in given.items():
        if name in _READERS:
            try:
                read |= _READERS[name](text, present)
            except ValueError as error:
                errors[name] = str(error)
    return LogFilter(given, LogQuery(**read), given.get("webhook"), errors)


def find_query(asked: LogFilter, webhooks: WebhookStore) -> LogQuery:
    """Return the query of filters, with the webhook looked up.

    Raises:
        ValueError: no webhook, or more than one, has the code that is asked for.
    """
    if asked.webhook is None:
        return asked.query
    found = webhooks.find(asked.webhook, asked.query.company)
    if len(found) > 1:
        raise ValueError("several companies have a webhook with this code: give a company too, or the webhook's id")
    if found and found[0]["_id"] is None:  # in a query, None stands for all webhooks
        raise ValueError("it is stored with the _id null: store it again with an ObjectId")
    # Logs outlive a webhook that was deleted.
    return replace(asked.query, webhook_id=found[0]["_id"] if found else _read_id(asked.webhook))


def write_values(values: Mapping[str, str], query: LogQuery) -> dict[str, str]:
    """Return a filter's values as they stay right later: with whole ids, and instants in place of "2h ago".

    Args:
        values: as given.
        query: as of `find_query`.
    """
    fixed = {"webhook": query.webhook_id, "delivery": query.delivery_id, "event": query.event_id}
    fixed |= {name: at and format_instant(at) for name, at in (("since", query.since), ("until", query.until))}
    return {**values, **{name: str(value) for name, value in fixed.items() if value is not None}}


def _read_id(text: str) -> ObjectId:
    try:
        return parse_object_id(text)
    except ValueError:
        raise ValueError("there is no webhook with this code or id") from None


def _read_status(text: str, _: datetime) -> dict[str, Any]:
    if text == "none":
        return {"has_response": False}
    if match := _CLASS.fullmatch(text):
        first = int(match[1]) * 100
        return {"statuses": (first, first + 99)}
    if _STATUS.fullmatch(text):
        return {"statuses": (int(text), int(text))}
    raise ValueError("must be a status such as 404, a class such as 4xx, or none for attempts without a response")


def _read_type(text: str, _: datetime) -> dict[str, Any]:
    if text not in TYPES:
        raise ValueError("must be an event type such as COTTask, or type and event such as COTTask create")
    event_type, *names = text.split(" ")
    return {"event_type": event_type, "event_name": names[0] if names else None}


def _one_of(choices: type[Outcome] | type[ErrorKind]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in list(choices):
            raise ValueError(f"must be one of {', '.join(choices)}")
        return choices(text)

    return read


def _as(name: str, read: Callable[[str], Any]) -> Callable[[str, datetime], dict[str, Any]]:
    return lambda text, _: {name: read(text)}


_READERS: Mapping[str, Callable[[str, datetime], dict[str, Any]]] = {
    "company": _as("company", parse_object_id),
    "result": _as("outcome", _one_of(Outcome)),
    "status": _read_status,
    "kind": _as("kind", _one_of(ErrorKind)),
    "type": _read_type,
    "since": lambda text, present: {"since": parse_time(text, present)},
    "until": lambda text, present: {"until": parse_time(text, present)},
    "delivery": _as("delivery_id", str),
    "event": _as("event_id", str),
    "object": _as("object_id", str),
}
