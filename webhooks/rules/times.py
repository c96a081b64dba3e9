"""Times that people type, and times as people read them."""

import re
from datetime import UTC, datetime, timedelta

_AGO = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_AGO_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MS_PER_S = 1_000
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def parse_time(text: str, present: datetime) -> datetime:
    """Read an instant that a person typed.

    Args:
        text: ``90s``, ``30m``, ``2h``, ``7d``, ``1w`` ago, or an ISO 8601 date with or without time and zone.
        present: what "ago" counts from.

    Raises:
        ValueError: in words fit for a user.
    """
    try:
        if _AGO.fullmatch(text):
            return present - parse_duration(text)
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: give how long ago, such as 90s 30m 2h 7d, or a date, such as 2026-05-05T19:54Z "
            "(UTC unless it has a zone)"
        ) from None


def parse_duration(text: str) -> timedelta:
    """Read how long something lasts: ``90s``, ``30m``, ``2h``, ``7d``, ``1w``.

    Raises:
        ValueError: in words fit for a user.
    """
    match = _AGO.fullmatch(text)
    try:
        if match:
            return timedelta(**{_AGO_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        pass
    raise ValueError(f"{text!r} is no span of time, such as 90s 30m 2h 7d")


def describe_span(start: datetime, end: datetime) -> str:
    """Write the time between two instants, in its two greatest units."""
    left = max(0, round((end - start).total_seconds()))
    parts = []
    for size, unit in _UNITS:
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def describe_ms(ms: float) -> str:
    """Write how long a part of an attempt took."""
    if ms < 1:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < _MS_PER_S else f"{ms / _MS_PER_S:.2f} s"
