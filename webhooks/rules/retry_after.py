"""How long a receiver asks us to wait: ``Retry-After`` of a response (RFC 9110, 10.2.3).

Owns which texts count, as strangers write them. Never bounds what is asked for: how long we wait at most is the
operator's to say. Pure; called by `client`.
"""

import re
from datetime import UTC, datetime
from http import HTTPStatus

#: The statuses with which it delays the next attempt. RFC 9110 gives it a meaning with redirects too, which we do not
#: follow.
_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

#: Longer waits are no answer to "when again?" but an error or an attack; some 30 years.
_MAX_S = 999_999_999

#: RFC 9110, 5.6.3. Python's strip() also takes off what only looks like white space.
_WHITE_SPACE = " \t"

_SECONDS = re.compile(r"[0-9]{1,9}")

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DAY_NAME = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY_NAME = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
#: RFC 9110, 5.6.7: the one that is sent, and the two obsolete ones that a recipient has to take. All are in UTC.
_DATES = (
    re.compile(rf"{_DAY_NAME}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(rf"{_LONG_DAY_NAME}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"{_DAY_NAME} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
#: RFC 9110, 5.6.7: a year of two digits is never further ahead than this.
_TWO_DIGITS_AHEAD = 50


def read_retry_after(status: int, value: str | None, present: datetime) -> float | None:
    """Return the seconds until the receiver wants to be asked again.

    Args:
        status: of its response.
        value: of its header; of several ones, joined with commas. None when there is none.
        present: what a date counts from: our own clock, as that is what the next attempt is due by.

    Returns:
        0 or more; None when it asks for nothing, or not in a way that RFC 9110 knows.
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
    second = 59 if match["second"] == "60" else int(match["second"])  # Python knows no leap seconds
    try:
        return datetime(year, month, day, int(match["hour"]), int(match["minute"]), second, tzinfo=UTC)
    except ValueError:  # a day or time that does not exist
        return None
