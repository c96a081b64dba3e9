"""Logs as attempts leave them, for tests of those who read them."""

from datetime import UTC, datetime
from typing import Any

from bson import ObjectId

from webhooks.models import COTWebhookLog
from webhooks.models.wire import to_wire

COMPANY = "625bcbdcc9a8e3a86dbf041c"
WEBHOOK_ID = "62685990d918fb5557f9f992"
NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)


def make_log(
    response: str = "ok",
    *,
    at: datetime = NOON,
    attempt: dict[str, Any] | None = None,
    webhook_id: str = WEBHOOK_ID,
    status: int = 409,
    retry: int = 3,
    log_id: ObjectId | None = None,
) -> COTWebhookLog:
    """Make a log; without `attempt` it is one that another system wrote."""
    event = {
        "company": COMPANY,
        "type": "COTTask",
        "event": "create",
        "createdAt": "2022-05-05T19:54:29.924Z",
        "data": {},
        "extraData": None,
    }
    log = {
        "_id": str(log_id or ObjectId()),
        "company": COMPANY,
        "createdAt": at,
        "status": status,
        "retry": retry,
        "response": response,
        "event": event,
        "subscription": webhook_id,
        "__v": 0,
    }
    return COTWebhookLog.model_validate(to_wire(log if attempt is None else {**log, "attempt": attempt}))


def make_attempt(**fields: Any) -> dict[str, Any]:
    """Make the details of an attempt that was refused and the last, but for the given fields."""
    return {
        "delivery_id": "msg_1",
        "event_id": "e1",
        "outcome": "failed",
        "error_kind": "connect_refused",
        "webhook": "wo_update",
        "origin": "http://127.0.0.1:9",
        "started_at": "2026-05-05T11:59:59.000Z",
        "total_ms": 12.6,
        **fields,
    }
