"""Webhook delivery for services that run Celery: ``from webhooks import deliver; deliver.delay(event)``."""

from webhooks.errors import InvalidEvent
from webhooks.models import COTEvent, COTWebhook, COTWebhookLog
from webhooks.producer.app import app
from webhooks.producer.deliver import accept, accept_async, deliver
from webhooks.version import __version__

__all__ = [
    "COTEvent",
    "COTWebhook",
    "COTWebhookLog",
    "InvalidEvent",
    "__version__",
    "accept",
    "accept_async",
    "app",
    "deliver",
]
