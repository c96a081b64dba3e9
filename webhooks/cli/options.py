"""Arguments and options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from webhooks.models.wire import parse_object_id

_F = TypeVar("_F", bound=Callable[..., Any])

#: The maximum of `-n`, near the largest count that MongoDB supports.
MAX_LIMIT = 1_000_000_000


class ParsedParam(click.ParamType):
    """A parameter that a function parses; its ValueError has a text for users."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; a default stays as it is."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


ID = ParsedParam("id", parse_object_id)
COMPANY_OPTION = click.option("--company", type=ID, metavar="ID", help="Only of this company.")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


def webhook_argument(function: _F) -> _F:
    """Add the argument REF and ``--company``."""
    return click.argument("reference", metavar="REF")(COMPANY_OPTION(function))


def limit_option(*, minimum: int) -> Callable[[_F], _F]:
    """Return a decorator that adds ``-n``."""
    limits = click.IntRange(minimum, MAX_LIMIT)
    return click.option(
        "-n", "limit", type=limits, default=20, show_default=True, help="Show at most this many, the newest."
    )
