"""Parses ``Retry-After`` (RFC 9110, 10.2.3)."""

import re
from datetime import UTC, datetime
from http import HTTPStatus

#: Statuses with which it delays the next attempt. With redirects it has a meaning too, but we follow none.
_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

#: Longer waits, over 30 years, are an error or an attack.
_MAX_S = 999_999_999

#: RFC 9110, 5.6.3. Python's ``strip()`` removes more.
_WHITE_SPACE = " \t"

_SECONDS = re.compile(r"[0-9]{1,9}")

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DAY_NAME = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY_NAME = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
#: RFC 9110, 5.6.7: the current form and the two obsolete ones that must be accepted, all in UTC.
_DATES = (
    re.compile(rf"{_DAY_NAME}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(rf"{_LONG_DAY_NAME}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"{_DAY_NAME} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
#: RFC 9110, 5.6.7: a two-digit year is at most this far ahead.
_TWO_DIGITS_AHEAD = 50


def read_retry_after(status: int, value: str | None, present: datetime) -> float | None:
    """Return the wait that a receiver asks for, not bounded by the settings.

    Args:
        status: of its response.
        value: the header; repeated headers are joined with commas.
        present: our own clock, which the next attempt is due by.

    Returns:
        0 or more; None if it asks for none, or not in a form of RFC 9110.
    """
    if value is None or status not in _STATUSES:
        return None
    text = value.strip(_WHITE_SPACE)
    if _SECONDS.fullmatch(text):
        return float(text)
    instant = _read_date(text, present)
    if instant is None:
        return None
    seconds = max(0.0, (instant - present).total_seconds())
    return seconds if seconds <= _MAX_S else None


def _read_date(text: str, present: datetime) -> datetime | None:
    match = next(filter(None, (date.fullmatch(text) for date in _DATES)), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        latest = present.year + _TWO_DIGITS_AHEAD
        year = latest - (latest - year) % 100
    month, day = _MONTHS.index(match["month"]) + 1, int(match["day"])
    second = 59 if match["second"] == "60" else int(match["second"])  # no leap seconds in Python
    try:
        return datetime(year, month, day, int(match["hour"]), int(match["minute"]), second, tzinfo=UTC)
    except ValueError:  # a day or time that does not exist
        return None
