"""Safe, aligned output.

Printed values may come from strangers, such as a receiver's response, and must not control the terminal.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from webhooks.models.wire import make_safe

#: Minimum width of a table's last column; a narrower one goes on a line of its own.
_MIN_LAST_WIDTH = 24
#: Wider than any line: piped output is never cut.
_NO_WIDTH = 1_000_000
_INDENT = "    "


def print_error(text: str) -> None:
    """Print a text to stderr, as one line."""
    click.echo("webhooks: " + make_safe(" ".join(text.split())), err=True)


def print_json(json_text: str) -> None:
    """Print a line of JSON, with unprintable characters as escapes, which leaves the value the same."""
    if not json_text.isprintable():
        json_text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in json_text)
    click.echo(json_text)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    #: A style of rich, used only on a terminal.
    style: str = ""


class Table:
    """Prints aligned rows; only the last column may be cut, and only on a terminal."""

    def __init__(
        self, *, indent: str = "", right: Iterable[int] = (), cut: bool = False, width: int | None = None
    ) -> None:
        """Make a table.

        Args:
            indent: printed before each line.
            right: numbers of the right-aligned columns.
            cut: whether to cut the last column at the terminal's width instead of wrapping it.
            width: of the terminal; None detects it.
        """
        self._console = Console(
            file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True, legacy_windows=False
        )
        self._indent = indent
        self._right = frozenset(right)
        self._cut = cut
        #: Of the terminal; a pipe has no end.
        self.width = width or (self._console.width if sys.stdout.isatty() else _NO_WIDTH)
        self._widths: list[int] = []

    def print(self, rows: Sequence[Sequence[str | Cell]]) -> None:
        """Print rows; columns are at least as wide as in earlier rows."""
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
        room = self.width - line.cell_len
        if room < min(_MIN_LAST_WIDTH, cell_len(row[-1].text)):
            line.rstrip()
            line.append("\n" + self._indent + _INDENT)
            room = self.width - len(self._indent + _INDENT)
        line.append(_cut(row[-1].text, room) if self._cut else row[-1].text, row[-1].style)
        line.rstrip()
        self._console.print(line)


def _safe_cell(cell: str | Cell) -> Cell:
    cell = Cell(cell) if isinstance(cell, str) else cell
    return Cell(make_safe(cell.text), cell.style)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def place_of(url: str) -> str:
    """Return hosts, ports and database of a URL, without user and password."""
    rest = url.partition("://")[2]
    place = rest.partition("?")[0].rpartition("@")[2]
    # In a malformed URL the end of the password is unknown.
    return place if place == rest.rpartition("@")[2].partition("?")[0] else "…"
