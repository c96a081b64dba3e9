"""Arguments and options that several commands have."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from webhooks.models.wire import parse_object_id

_F = TypeVar("_F", bound=Callable[..., Any])

#: The maximum of `-n`, near the largest count that MongoDB supports.
MAX_LIMIT = 1_000_000_000
_DURATION = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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


def parse_time(text: str, present: datetime) -> datetime:
    """Parse an instant: ``90s``, ``30m``, ``2h``, ``7d``, ``1w`` before ``present``, or an ISO 8601 date.

    Raises:
        ValueError: with a text for users.
    """
    try:
        if _DURATION.fullmatch(text):
            return present - parse_duration(text)
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time: give a duration before now, such as 90s 30m 2h 7d, or a date, such as "
            "2026-05-05T19:54Z (UTC unless it has a zone)"
        ) from None


def parse_duration(text: str) -> timedelta:
    """Parse a duration: ``90s``, ``30m``, ``2h``, ``7d``, ``1w``.

    Raises:
        ValueError: with a text for users.
    """
    match = _DURATION.fullmatch(text)
    try:
        if match:
            return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        pass
    raise ValueError(f"{text!r} is not a duration, such as 90s 30m 2h 7d")


ID = ParsedParam("id", parse_object_id)
#: How long ago, or a date and time, in UTC unless it has a zone.
INSTANT = ParsedParam("time", lambda text: parse_time(text, datetime.now(UTC)))
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
