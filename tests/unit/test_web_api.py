"""The read API's parameters, and its description against the code."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from bson import ObjectId

from webhooks.errors import ErrorKind
from webhooks.models import AttemptDetails, COTEvent, COTWebhookLog
from webhooks.models.event import EventName, EventType
from webhooks.models.webhook import COTWebhook, TriggerName
from webhooks.rules.retry import Outcome
from webhooks.store.logs import LogQuery
from webhooks.store.search import Cursor
from webhooks.store.webhooks import for_company
from webhooks.web.api import DEFAULT_LIMIT, MAX_LIMIT, ApiError, LogRequest, read_log_request
from webhooks.web.extension import FOLDER

NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)
WEBHOOK_ID = ObjectId("62685990d918fb5557f9f992")
DESCRIPTION: dict[str, Any] = json.loads((FOLDER / "openapi.json").read_text())
SCHEMAS = DESCRIPTION["components"]["schemas"]


def asked(limit: int = DEFAULT_LIMIT, after: Cursor | None = None, **query: Any) -> LogRequest:
    return LogRequest(LogQuery(webhook_id=WEBHOOK_ID, **query), limit, after)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, asked()),
        ({"limit": "1"}, asked(1)),
        ({"limit": "500"}, asked(500)),
        ({"status": "404"}, asked(statuses=(404, 404))),
        ({"status": "none"}, asked(has_response=False)),
        ({"result": "failed"}, asked(outcome=Outcome.FAILED)),
        ({"since": "2h"}, asked(since=NOON - timedelta(hours=2))),
        ({"before": "2026-05-05T12:00:00.084Z"}, asked(until=NOON + timedelta(milliseconds=84))),
        ({"before": "2026-05-05T12:00:00.084Z~3"}, asked(after=Cursor(NOON + timedelta(milliseconds=84), 3))),
    ],
    ids=str,
)
def test_request_is_read_from_the_url(given: dict[str, str], expected: LogRequest):
    assert read_log_request(WEBHOOK_ID, given, NOON) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("limit", text) for text in ("0", "501", "-1", "1.0", "ten", "１", "99999")),
        *(("before", text) for text in ("yesterday", "~", "~1", "2026-05-05~1", "2026-05-05T12:00:00.000Z~-1")),
        *(("status", text) for text in ("40", "0xx", "4XX", "None")),
        ("result", "SUCCESS"),
        ("since", "2026-13-01"),
    ],
)
def test_bad_parameter_is_named(name: str, text: str):
    with pytest.raises(ApiError) as error:
        read_log_request(WEBHOOK_ID, {name: text}, NOON)
    assert error.value.status_code == 400
    assert error.value.text.startswith(f"{name}: ")


def test_description_has_the_fields_and_choices_of_the_code():
    def properties(name: str) -> list[str]:
        return list(SCHEMAS[name]["properties"])

    fields = [field.alias or name for name, field in COTWebhookLog.model_fields.items()]
    assert sorted(properties("COTWebhookLog")) == sorted([*fields, "__v"])
    assert set(properties("Attempt")) == set(AttemptDetails.model_fields) - {"worker", "trace_id", "span_id"}
    assert SCHEMAS["Attempt"]["required"] == properties("Attempt")
    assert set(properties("COTEvent")) == set(COTEvent.model_fields)
    webhook = [field.alias or name for name, field in COTWebhook.model_fields.items()]
    assert set(properties("COTWebhook")) == {*webhook, "__v"}
    # In the order in which they are written.
    assert list(for_company(dict.fromkeys(sorted(properties("COTWebhook"))))) == [*properties("COTWebhook"), "invalid"]

    def choices(schema: str, name: str) -> set[object]:
        return set(SCHEMAS[schema]["properties"][name]["enum"])

    assert choices("COTWebhook", "trigger") == set(get_args(TriggerName))
    assert choices("COTEvent", "type") == set(get_args(EventType))
    assert choices("COTEvent", "event") == set(get_args(EventName))
    assert choices("Attempt", "error_kind") == {*ErrorKind, None}
    assert choices("Attempt", "outcome") == set(Outcome)


def test_description_has_the_limits_of_the_code():
    logs = DESCRIPTION["paths"]["/api/v3/webhook/subscription/logs/{id}"]["get"]
    [limit] = [one["schema"] for one in logs["parameters"] if one.get("name") == "limit"]
    assert (limit["default"], limit["maximum"]) == (DEFAULT_LIMIT, MAX_LIMIT)
