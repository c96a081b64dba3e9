"""Which lane of its queue a message stands in: what keeps one customer, and one endpoint, from delaying the others.

``webhooks.deliver``: ``company/type/part``, as which webhooks may want an event follows from its company, its type and
the ids that narrow (contract). ``webhooks.send``: ``company/webhook``. The transport does the rest; a broker that is no
Redis has no lanes. Pure but for the broker's message; called by `tasks` and, for producers with nothing but Celery, by
the transport.
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
#: Queues with lanes, and whether what is in hand of one of them is bounded: the fan-out is over in milliseconds.
QUEUES: Mapping[str, bool] = {"celery": False, "webhooks.deliver": False, SEND_QUEUE: True}
#: Queue → the one in whose lanes its events stand: order is one line, whatever queue a producer names.
JOINED: Mapping[str, str] = {"celery": "webhooks.deliver"}

#: Hexadecimal digits that stand for the ids that narrow: they may be of any length, and need not be ids.
_DIGITS = 12

#: Event type → the keys of its ``data`` by which webhooks can be narrowed.
_NARROWING = {trigger.type: tuple(trigger.narrowed_by.values()) for trigger in TRIGGERS.values()}


def lane_of_event(event: Mapping[str, Any]) -> str:
    """Return the lane of an event as JSON holds it; of what is none, that of all others: its task will say so."""
    company, kind, data = event.get("company"), event.get("type"), event.get("data")
    if not isinstance(company, str) or not company.isalnum() or not isinstance(kind, str) or kind not in _NARROWING:
        return OTHERS
    ids = [data.get(key) for key in _NARROWING[kind]] if isinstance(data, Mapping) else []
    company = company.lower()  # digits of an id may be either
    if not any(ids):
        return f"{company}/{kind}/-"
    part = hashlib.sha256(repr(ids).lower().encode(errors="replace")).hexdigest()[:_DIGITS]
    return f"{company}/{kind}/{part}"


def lane_of_text(body: str) -> str:
    """Return the lane of an event's JSON text, or of what somebody put in its place."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return OTHERS
    return lane_of_event(event) if isinstance(event, Mapping) else OTHERS


def parent_lane(company: object, event_type: str) -> str:
    """Return what all lanes of a company's events of one type are parts of."""
    return f"{company}/{event_type}"


def lane_of_webhook(company: object, webhook_id: object) -> str:
    """Return the lane of a webhook's deliveries."""
    return f"{company}/{webhook_id}"


def lane_of_message(message: Mapping[str, Any]) -> str:
    """Return the lane of a message of a producer with nothing but Celery, whatever it is. Never raises."""
    try:
        headers, properties, body = message.get("headers") or {}, message.get("properties") or {}, message["body"]
        if headers.get("task", _DELIVER) != _DELIVER:
            return OTHERS
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        content = json.loads(body)
        if isinstance(content, dict):  # task protocol 1, in which the body says what others say in headers
            if headers.get("task", content["task"]) != _DELIVER:
                return OTHERS
            args, kwargs = content.get("args"), content.get("kwargs") or {}
        else:
            args, kwargs, *_ = content
        event = args[0] if args else next(iter(kwargs.values()))
        return lane_of_event(json.loads(event) if isinstance(event, str) else event)
    except Exception:  # noqa: BLE001 - anybody may have published it; its task, or the worker, says what is wrong
        return OTHERS
