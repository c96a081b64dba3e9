"""What people are told of a delivery: every stage has a sentence of its own."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from tests.lab.logs import NOON, make_attempt, make_log
from tests.lab.samples_data import read_sample
from webhooks.delivery.history import Stage, describe_request, explain_outlook, place_attempts
from webhooks.models import COTWebhook
from webhooks.store.gates import By, Gate, State
from webhooks.store.pending_details import PendingDetails
from webhooks.store.search import LogRow, read_row

WEBHOOK_ID = ObjectId("62685990d918fb5557f9f992")
OPEN = Gate(WEBHOOK_ID)
PENDING = PendingDetails(
    delivery_id="msg_1",
    event_id="e1",
    webhook_id=WEBHOOK_ID,
    company=None,
    label="",
    retry=1,
    created_at=NOON,
    due_at=NOON + timedelta(seconds=20),
    is_held=False,
    is_probe=False,
    position=None,
    worker=None,
    claimed_until=None,
)


def row(at: datetime = NOON, *, status: int = 409, retry: int = 0, **attempt: Any) -> LogRow:
    found = read_row(make_log(at=at, status=status, retry=retry, attempt=make_attempt(**attempt)).to_bson())
    assert found is not None
    return found


HELD = {"is_held": True, "due_at": None}


@pytest.mark.parametrize(
    ("changes", "gate", "stage", "words"),
    [
        ({}, {}, Stage.WAITING, "Attempt 2 is due at 2026-05-05 12:00:20 UTC, in 20 s: the delay between retries"),
        ({"due_at": NOON - timedelta(minutes=2)}, {}, Stage.WAITING, "due for 2 min: it waits for a free worker"),
        ({"claimed_until": NOON + timedelta(seconds=9), "worker": "w1"}, {}, Stage.ATTEMPTING, "being made now by w1"),
        ({"due_at": None}, {}, Stage.QUARANTINED, "quarantined"),
        (
            {"due_at": NOON - timedelta(seconds=1)},
            {"hold_until": NOON + timedelta(minutes=1)},
            Stage.WAITING,
            "asked with Retry-After for no request before 2026-05-05 12:01:00",
        ),
        (
            HELD,
            {"state": State.PAUSED, "by": By.OPERATOR, "reason": "move"},
            Stage.HELD,
            "operator paused the webhook: move",
        ),
        (
            HELD,
            {"state": State.PAUSED, "by": By.HEALTH, "probe_at": NOON},
            Stage.HELD,
            "tried next at 2026-05-05 12:00:00",
        ),
        (HELD, {"state": State.STOPPED}, Stage.HELD, "ordered webhook has stopped"),
        (HELD, {"state": State.RECOVERING, "rate": 4.0}, Stage.HELD, "at 4 per second"),
        ({**HELD, "position": 7}, {}, Stage.HELD, "earlier deliveries come first"),
    ],
)
def test_pending_delivery_says_when_it_goes_on_and_why_then(
    changes: dict[str, Any], gate: dict[str, Any], stage: Stage, words: str
):
    outlook = explain_outlook(replace(PENDING, **changes), row(), replace(OPEN, **gate), NOON)
    assert outlook.stage is stage
    assert words in outlook.text


@pytest.mark.parametrize(
    ("last", "stage", "words"),
    [
        ({"status": 204, "error_kind": None, "outcome": "success", "retry": 1}, Stage.DELIVERED, "with attempt 2"),
        ({"retry": 3}, Stage.FAILED, "attempt 4 was the last of its retries"),
        ({"error_kind": "skipped"}, Stage.FAILED, "An operator gave it up"),
        ({"status": 410, "error_kind": None}, Stage.FAILED, "410"),
        ({"error_kind": "webhook_inactive"}, Stage.FAILED, "could not be used"),
        ({"next_at": "2026-05-05T12:00:30.000Z"}, Stage.UNKNOWN, "nothing is pending"),
    ],
)
def test_ended_delivery_says_how(last: dict[str, Any], stage: Stage, words: str):
    outlook = explain_outlook(None, row(**last), OPEN, NOON)
    assert outlook.stage is stage
    assert words in outlook.text
    assert outlook.next_at is None


@pytest.mark.parametrize(
    ("before", "late_s", "words"),
    [
        ({}, 0, "30 s later: the delay between retries"),
        ({"retry_after_s": 30.0}, 0, "the receiver asked for 30 s with Retry-After"),
        ({"error_kind": "interrupted"}, 0, "the attempt was repeated"),
        ({}, 60, "It was due 1 min earlier"),
    ],
)
def test_wait_between_attempts_is_explained(before: dict[str, Any], late_s: int, words: str):
    due = NOON + timedelta(seconds=30)
    first = row(next_at=due, **before)
    second = row(due + timedelta(seconds=late_s + 1), retry=1, started_at=due + timedelta(seconds=late_s))
    assert words in place_attempts([first, second], None)[1].waited


def test_request_leaves_secrets_out_and_quotes_for_the_shell():
    webhook = COTWebhook.model_validate(
        {
            **read_sample("webhook-task"),
            "url": "https://r.example/a?b=[1]",
            "secrets": [{"id": "s", "scheme": "v1", "sealed": "x", "createdAt": "2026-05-05T12:00:00.000Z"}],
            "headers": [{"name": "x-plain", "value": "it's"}, {"name": "authorization", "sealed": "sealed"}],
        }
    )
    text = describe_request(webhook, "msg_1~2", '{"a":"it\'s"}', NOON)
    assert dict(text.headers)["webhook-id"] == "msg_1"
    assert dict(text.headers)["webhook-signature"] is None
    assert dict(text.headers)["authorization"] is None
    assert text.curl.startswith("curl --globoff -X POST 'https://r.example/a?b=[1]' -H ")
    assert """'{"a":"it'"'"'s"}'""" in text.curl
    assert "sealed" not in text.curl
    assert "authorization" not in text.curl
