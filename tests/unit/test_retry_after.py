"""How long a receiver asks us to wait, in all ways in which strangers write it."""

from datetime import UTC, datetime, timedelta

import pytest
import responses

from tests.lab.senders import new_sender
from webhooks.rules.retry_after import read_retry_after

#: A Tuesday.
NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)
URL = "https://receiver.example/"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" \t120 ", 120),
        ("007", 7),
        ("999999999", 999_999_999),
        ("Tue, 05 May 2026 12:02:00 GMT", 120),
        ("Tuesday, 05-May-26 12:02:00 GMT", 120),
        ("Tue May  5 12:02:00 2026", 120),
        ("Fri May 15 12:00:00 2026", 864_000),
        ("Mon, 05 May 2026 12:00:10 GMT", 10),  # the day of the week is somebody's mistake, the date is meant
        ("Tue, 05 May 2026 12:01:60 GMT", 119),  # a leap second
        ("Tue, 05 May 2026 11:59:59 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),  # 2094 is more than 50 years ahead
        ("Sat, 01 Jan 0001 00:00:00 GMT", 0),
    ],
)
def test_seconds_and_dates(value: str, seconds: float) -> None:
    assert read_retry_after(503, value, NOON) == seconds
    assert read_retry_after(429, value, NOON) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "1_0",
        "0x10",
        "NaN",
        "Infinity",
        "1000000000",
        "9" * 5000,
        "١٢٠",
        "１２０",
        "²",
        "120 s",
        "120\x00",
        "120\n",
        "\xa0120",
        "120, 120",
        "120, Tue, 05 May 2026 12:02:00 GMT",
        "Tue, 05 May 2026 12:02:00 GMT, Tue, 05 May 2026 12:02:00 GMT",
        "Tue, 05 May 2026 12:02:00",
        "Tue, 05 May 2026 12:02:00 UTC",
        "Tue, 05 May 2026 12:02:00 +0200",
        "tue, 05 may 2026 12:02:00 gmt",
        "Tue, 5 May 2026 12:02:00 GMT",
        "Tue, 05 May 26 12:02:00 GMT",
        "Tue, 05 Mai 2026 12:02:00 GMT",
        "Tue, 31 Feb 2026 12:02:00 GMT",
        "Tue, 00 May 2026 12:02:00 GMT",
        "Tue, 05 May 2026 24:00:00 GMT",
        "Tue, 05 May 2026 12:60:00 GMT",
        "Tue, 05 May 2026 12:02:61 GMT",
        "Tue, 05 May 0000 12:02:00 GMT",
        "Tue, ٠٥ May 2026 12:02:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Tue May 5 12:02:00 2026",
        "Tue May    12:02:00 2026",
        "2026-05-05T12:02:00Z",
        "soon",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_all_else_asks_for_nothing(value: str | None) -> None:
    assert read_retry_after(503, value, NOON) is None


@pytest.mark.parametrize("status", [200, 202, 301, 302, 408, 413, 500, 502, 504])
def test_only_429_and_503_ask(status: int) -> None:
    assert read_retry_after(status, "120", NOON) is None


def test_date_counts_to_the_millisecond() -> None:
    value = "Tue, 05 May 2026 12:00:10 GMT"
    assert read_retry_after(503, value, NOON + timedelta(milliseconds=250)) == 9.75


@pytest.mark.parametrize(
    ("present", "year", "is_ahead"), [(1990, "08", True), (1990, "41", False), (2026, "76", False), (2080, "95", True)]
)
def test_year_of_two_digits_is_at_most_fifty_years_ahead(present: int, year: str, is_ahead: bool) -> None:
    seconds = read_retry_after(503, f"Sunday, 01-Jun-{year} 00:00:00 GMT", datetime(present, 6, 1, tzinfo=UTC))
    assert (seconds or 0) > 0 if is_ahead else not seconds


@responses.activate
@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (503, {"Retry-After": "120"}, 120),
        (429, {"retry-after": "120"}, 120),
        (503, {"Retry-After": "later"}, None),
        (503, {}, None),
        (500, {"Retry-After": "120"}, None),
        (200, {"Retry-After": "120"}, None),
    ],
)
def test_answer_has_it(status: int, headers: dict[str, str], expected: float | None) -> None:
    responses.post(URL, status=status, headers=headers)
    sender = new_sender()
    answer = sender.post(URL, {}, b"")
    sender.close()
    assert (answer.status, answer.retry_after_s) == (status, expected)
