"""The page of a list of logs, as it stands in its URL."""

import re

from webhooks.models import format_instant
from webhooks.models.wire import parse_instant
from webhooks.store.search import Cursor

_CURSOR = re.compile(r"(.{1,40})~([0-9]{1,5})", re.ASCII)


def read_cursor(text: str) -> Cursor | None:
    """Read where a page begins; None for the first one, also where the text says nothing."""
    match = _CURSOR.fullmatch(text)
    try:
        return Cursor(parse_instant(match[1]), int(match[2])) if match else None
    except ValueError:
        return None


def write_cursor(cursor: Cursor) -> str:
    """Write what `read_cursor` reads."""
    return f"{format_instant(cursor.at)}~{cursor.shown}"
