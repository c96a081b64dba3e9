"""The lane of a message within its queue: keeps one customer or endpoint from delaying the others.

``webhooks.deliver``: ``company/type/part``, where the part stands for the ids that narrow a webhook (contract).
``webhooks.send``: ``company/webhook``. Only the Redis transport has lanes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from webhooks.models import TRIGGERS
from webhooks.transport.headers import OTHERS

_DELIVER = DELIVER_QUEUE = "webhooks.deliver"
SEND_QUEUE = "webhooks.send"
#: Queue → whether the messages in progress per lane are bounded. A fan-out takes only milliseconds.
QUEUES: Mapping[str, bool] = {"celery": False, "webhooks.deliver": False, SEND_QUEUE: True}
#: Queue → the one in whose lanes its events stand: order is one line, whatever queue a producer names.
JOINED: Mapping[str, str] = {"celery": "webhooks.deliver"}

#: Hexadecimal digits of the hash of the narrowing ids.
_DIGITS = 12

#: Event type → keys of its ``data`` that narrow a webhook.
_NARROWING = {trigger.type: tuple(trigger.narrowed_by.values()) for trigger in TRIGGERS.values()}


def lane_of_event(event: Mapping[str, Any]) -> str:
    """Return the lane of an event in wire form; a malformed one shares the lane of all others."""
    company, kind, data = event.get("company"), event.get("type"), event.get("data")
    if not isinstance(company, str) or not company.isalnum() or not isinstance(kind, str) or kind not in _NARROWING:
        return OTHERS
    ids = [data.get(key) for key in _NARROWING[kind]] if isinstance(data, Mapping) else []
    company = company.lower()
    if not any(ids):
        return f"{company}/{kind}/-"
    part = hashlib.sha256(repr(ids).lower().encode(errors="replace")).hexdigest()[:_DIGITS]
    return f"{company}/{kind}/{part}"


def lane_of_text(body: str) -> str:
    """Return the lane of an event's JSON text; `OTHERS` for any other text."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return OTHERS
    return lane_of_event(event) if isinstance(event, Mapping) else OTHERS


def parent_lane(company: object, event_type: str) -> str:
    """Return the parent lane of a company's events of one type."""
    return f"{company}/{event_type}"


def lane_of_webhook(company: object, webhook_id: object) -> str:
    """Return the lane of a webhook's deliveries."""
    return f"{company}/{webhook_id}"


def lane_of_message(message: Mapping[str, Any]) -> str:
    """Return the lane of a message that a plain Celery producer sent. Never raises."""
    try:
        headers, properties, body = message.get("headers") or {}, message.get("properties") or {}, message["body"]
        if headers.get("task", _DELIVER) != _DELIVER:
            return OTHERS
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        content = json.loads(body)
        if isinstance(content, dict):  # task protocol 1, which has no headers
            if headers.get("task", content["task"]) != _DELIVER:
                return OTHERS
            args, kwargs = content.get("args"), content.get("kwargs") or {}
        else:
            args, kwargs, *_ = content
        event = args[0] if args else next(iter(kwargs.values()))
        return lane_of_event(json.loads(event) if isinstance(event, str) else event)
    except Exception:  # noqa: BLE001 - anyone may publish; the task or the worker reports the error
        return OTHERS
