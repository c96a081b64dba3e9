"""What the commands share: opening the stores, finding what a reference means, and safe, aligned output.

All that is printed may come from strangers, such as a receiver's response, and must not steer a terminal.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from bson import ObjectId
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from webhooks.models.wire import make_safe, parse_object_id, to_wire
from webhooks.rules.times import parse_time
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import WebhookStore

_F = TypeVar("_F", bound=Callable[..., Any])

#: Columns that the last column of a table needs to be worth reading; with fewer it goes on a line of its own.
_MIN_LAST_WIDTH = 24
#: Wider than any line: piped output is never cut.
_NO_WIDTH = 1_000_000
_INDENT = "    "
#: The most that `-n` takes: what MongoDB can count to is not much more.
MAX_LIMIT = 1_000_000_000


#: What of a webhook's secrets and headers is not secret.
_SHOWN_OF = {"secrets": ("id", "scheme", "public", "createdAt", "expiresAt"), "headers": ("name", "value")}


def get_stores() -> Stores:
    """Open this command's stores, closed when it ends."""
    stores = Stores()
    click.get_current_context().call_on_close(stores.close)
    return stores


# ── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class IdParam(click.ParamType):
    """An ObjectId on the command line."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ObjectId:
        """Read 24 hexadecimal digits."""
        try:
            return parse_object_id(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class InstantParam(click.ParamType):
    """An instant on the command line: how long ago, or a date and time, in UTC unless it has a zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read ``2h`` or ``2026-05-05T19:54Z``."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_time(value, datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def company_option(function: _F) -> _F:
    """Add ``--company ID``, which narrows."""
    return click.option("--company", type=IdParam(), metavar="ID", help="Of this company only.")(function)


def json_option(function: _F) -> _F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")(function)


# ── Webhooks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_webhook(store: WebhookStore, reference: str, company: ObjectId | None) -> Document:
    """Return the one stored webhook that a reference means.

    Args:
        store: where to look.
        reference: an id or a code.
        company: whose webhook it is; None when any company's will do.

    Raises:
        click.ClickException: none, or more than one.
    """
    found = store.find(reference, company)
    if not found:
        whose = f" of company {company}" if company else ""
        raise click.ClickException(f"there is no webhook {reference}{whose}; `webhooks list --all` shows all")
    if len(found) > 1:
        owners = ", ".join(f"{document['_id']} of company {document.get('company')}" for document in found)
        raise click.ClickException(f"{reference} is ambiguous, give an id or --company: {owners}")
    if found[0]["_id"] is None:  # to a query of logs, None means those of all webhooks
        raise click.ClickException(f"{reference} is stored with null as its _id: store it anew with an ObjectId")
    return found[0]


# ── Output ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def print_error(text: str) -> None:
    """Print one line to stderr."""
    click.echo("webhooks: " + make_safe(" ".join(text.split())), err=True)


def without_secrets(document: Mapping[str, Any]) -> Document:
    """Return a stored webhook as people may see it: of what is secret only that it is there, whoever wrote it."""
    shown = dict(document)
    for field, fields in _SHOWN_OF.items():
        if field in shown and shown[field] is not None:
            items = shown[field] if isinstance(shown[field], list) else [None]
            shown[field] = [
                {key: item[key] for key in fields if key in item} if isinstance(item, Mapping) else "…"
                for item in items
            ]
    return shown


def print_json(json_text: str) -> None:
    """Print a line of JSON, in which the same characters as in text are written as escapes: the value is the same."""
    if not json_text.isprintable():
        json_text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in json_text)
    click.echo(json_text)


def document_json(document: Mapping[str, object]) -> str:
    """Write a stored document as JSON, whoever wrote it and whatever it holds."""
    return json.dumps(_without_nan(to_wire(document)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Return a wire form with texts for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    #: A style of rich; none where the output is no terminal.
    style: str = ""


class Table:
    """Prints aligned rows, also one by one as they come up.

    Everything is printed in full, but for a last column that is to be cut, and that only on a terminal.
    """

    def __init__(
        self, *, indent: str = "", right: Iterable[int] = (), cut: bool = False, width: int | None = None
    ) -> None:
        """Make a table.

        Args:
            indent: before each line.
            right: numbers of the columns that are aligned to the right.
            cut: whether the last column is cut to what fits, instead of going on in the next line.
            width: columns of the terminal; None asks it.
        """
        self._console = Console(
            file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True, legacy_windows=False
        )
        self._indent = indent
        self._right = frozenset(right)
        self._cut = cut
        self._width = width or (self._console.width if sys.stdout.isatty() else _NO_WIDTH)
        self._widths: list[int] = []

    def print(self, rows: Sequence[Sequence[str | Cell]]) -> None:
        """Print rows; columns stay as wide as they were for earlier ones."""
        safe = [[_safe_cell(cell) for cell in row] for row in rows]
        for row in safe:
            self._widths += [0] * (len(row) - 1 - len(self._widths))
            for number, cell in enumerate(row[:-1]):
                self._widths[number] = max(self._widths[number], cell_len(cell.text))
        for row in safe:
            self._print_row(row)

    def _print_row(self, row: Sequence[Cell]) -> None:
        line = Text(self._indent)
        for number, cell in enumerate(row[:-1]):
            padding = " " * (self._widths[number] - cell_len(cell.text))
            line.append(padding if number in self._right else "")
            line.append(cell.text, cell.style)
            line.append("  " if number in self._right else padding + "  ")
        room = self._width - line.cell_len
        if room < min(_MIN_LAST_WIDTH, cell_len(row[-1].text)):
            line.rstrip()
            line.append("\n" + self._indent + _INDENT)
            room = self._width - len(self._indent + _INDENT)
        line.append(_cut(row[-1].text, room) if self._cut else row[-1].text, row[-1].style)
        line.rstrip()
        self._console.print(line)


def _safe_cell(cell: str | Cell) -> Cell:
    cell = Cell(cell) if isinstance(cell, str) else cell
    return Cell(make_safe(cell.text), cell.style)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def place_of(url: str) -> str:
    """Return hosts, ports and database of a URL: what may be shown of it, never user or password."""
    rest = url.partition("://")[2]
    place = rest.partition("?")[0].rpartition("@")[2]
    # In a URL that was written wrongly one cannot tell where the password ends.
    return place if place == rest.rpartition("@")[2].partition("?")[0] else "…"
