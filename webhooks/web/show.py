"""How values are written on the pages. Pure; templates escape what these return."""

import json
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from webhooks.models.wire import make_safe, to_wire
from webhooks.rules.times import describe_ms, describe_span

#: What may stand in a text of several lines as it is.
_PLAIN = frozenset("\n\t")
#: Fields of a webhook, in the contract's order of asking for them.
_CONTRACT = ("name", "code", "url", "description", "trigger", "context", "isActive", "company", "_id")


def line(text: object, limit: int = 200) -> str:
    """Write what a stranger chose as part of one line: control characters and changes of direction become visible."""
    shown = str(text)
    return make_safe(shown[:limit]) + ("…" if len(shown) > limit else "")


def block(text: str) -> str:
    """Write what a stranger chose as a text of several lines, likewise."""
    if text.isprintable():
        return text
    return "".join(char if char in _PLAIN else make_safe(char) for char in text)


def indent(body: str) -> str:
    """Write a JSON text with line ends, for reading."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return body


def instant(at: datetime | None) -> str:
    """Write an instant to the second."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def iso(at: datetime | None) -> str:
    """Write an instant for machines, in a ``time`` element."""
    return "" if at is None else at.isoformat()


def duration(ms: float | None) -> str:
    """Write how long something took."""
    return "—" if ms is None else describe_ms(ms)


def span(start: datetime, end: datetime) -> str:
    """Write the time between two instants."""
    return describe_span(start, end)


def settings(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write a webhook's document, without what is secret, as names and values; the contract's fields first."""
    wire = to_wire(document)
    names = [name for name in _CONTRACT if name in wire]
    names += [name for name in wire if name not in _CONTRACT]
    return [(name, _value(wire[name])) for name in names]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def share(rate: float) -> str:
    """Write a share as per cent; never 100 or 0 where that is not so."""
    percent = rate * 100
    if percent in (0, 100):
        return f"{percent:.0f} %"
    return f"{min(max(percent, 0.1), 99.9):.1f} %"


def query(values: Mapping[str, str], **changes: object) -> str:
    """Write a query string of values that are not empty."""
    return urlencode({name: value for name, value in {**values, **changes}.items() if value})


def read_basic_user(authorization: str) -> str:
    """Return the name in an ``Authorization: Basic`` header; empty where there is none."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return line(b64decode(credentials, validate=True).decode().partition(":")[0], 100)
    except (Base64Error, UnicodeDecodeError):
        return ""
