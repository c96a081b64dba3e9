"""The contract's objects (event, webhook, log) in wire form (JSON) and stored form (BSON)."""

from webhooks.models.event import COTEvent, describe_event, parse_event, parse_event_text
from webhooks.models.log import NO_RESPONSE_STATUS, AttemptDetails, COTWebhookLog
from webhooks.models.webhook import TRIGGERS, Context, COTWebhook, UnusableWebhook, parse_webhook
from webhooks.models.wire import format_instant, now, parse_instant

__all__ = [
    "NO_RESPONSE_STATUS",
    "TRIGGERS",
    "AttemptDetails",
    "COTEvent",
    "COTWebhook",
    "COTWebhookLog",
    "Context",
    "UnusableWebhook",
    "describe_event",
    "format_instant",
    "now",
    "parse_event",
    "parse_event_text",
    "parse_instant",
    "parse_webhook",
]
