from datetime import UTC, datetime, timedelta

import pytest
from bson import ObjectId

from webhooks.errors import ErrorKind
from webhooks.rules.retry import Outcome
from webhooks.store.log_filter import NAMES, read_filter
from webhooks.store.logs import LogQuery
from webhooks.store.search import Cursor
from webhooks.web.filters import read_cursor, write_cursor

NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)
COMPANY = "625bcbdcc9a8e3a86dbf041c"


@pytest.mark.parametrize(
    ("name", "text", "query"),
    [
        ("company", COMPANY, LogQuery(company=ObjectId(COMPANY))),
        ("result", "failed", LogQuery(outcome=Outcome.FAILED)),
        ("status", "404", LogQuery(statuses=(404, 404))),
        ("status", "4xx", LogQuery(statuses=(400, 499))),
        ("status", "none", LogQuery(has_response=False)),
        ("kind", "tls", LogQuery(kind=ErrorKind.TLS)),
        ("type", "COTTask", LogQuery(event_type="COTTask")),
        ("type", "COTTask edit", LogQuery(event_type="COTTask", event_name="edit")),
        ("since", "2h", LogQuery(since=NOON - timedelta(hours=2))),
        ("until", "2026-05-05", LogQuery(until=datetime(2026, 5, 5, tzinfo=UTC))),
        ("delivery", "msg_1", LogQuery(delivery_id="msg_1")),
        ("event", "e1", LogQuery(event_id="e1")),
        ("object", "62742b7562f37034d9399914", LogQuery(object_id="62742b7562f37034d9399914")),
    ],
)
def test_filter_is_read_from_the_url(name: str, text: str, query: LogQuery):
    asked = read_filter({name: f" {text} "}, NOON)
    assert asked.query == query
    assert asked.values == {name: text}
    assert not asked.errors


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("company", "acme"),
        ("result", "FAILED"),
        ("status", "40"),
        ("status", "0xx"),
        ("status", "４04"),
        ("kind", "gone"),
        ("type", "COTTask logout"),
        ("since", "yesterday"),
    ],
)
def test_filter_that_cannot_be_used_says_what_it_takes(name: str, text: str):
    asked = read_filter({name: text}, NOON)
    assert list(asked.errors) == [name]
    assert len(asked.errors[name]) > 10
    assert asked.values == {name: text}


def test_status_filter_asks_for_responses_only():
    assert read_filter({"status": "409"}, NOON).query.to_filter() == {
        "attempt.outcome": {"$in": ["failed", None]},
        "status": {"$gte": 409, "$lte": 409},
        "attempt.error_kind": {"$not": {"$gt": ""}},
    }


@pytest.mark.parametrize(("text", "outcome"), [("204", "success"), ("4xx", "failed"), ("2xx", None)])
def test_status_filter_uses_the_outcome_that_follows_from_it(text: str, outcome: str | None):
    found = read_filter({"status": text}, NOON).query.to_filter().get("attempt.outcome")
    assert found == (None if outcome is None else {"$in": [outcome, None]})


def test_filters_make_a_url_that_reads_the_same():
    values = {"webhook": "wo&update", "result": "failed", "status": "4xx"}
    url = read_filter({**values, "before": "x", "kind": ""}, NOON).to_url()
    assert url == "?webhook=wo%26update&result=failed&status=4xx"
    assert set(values) <= set(NAMES)


def test_changed_filter_replaces_one_and_keeps_the_rest():
    asked = read_filter({"result": "failed", "event": "e1"}, NOON)
    assert asked.to_url(event=None, object="o1") == "?result=failed&object=o1"


def test_cursor_survives_the_url():
    cursor = Cursor(NOON + timedelta(milliseconds=84), 3)
    assert read_cursor(write_cursor(cursor)) == cursor


@pytest.mark.parametrize("text", ["", "~", "2026-05-05T12:00:00.000Z", "2026-99-05T12:00:00.000Z~1", "x~1", "~1"])
def test_cursor_that_says_nothing_is_the_first_page(text: str):
    assert read_cursor(text) is None
