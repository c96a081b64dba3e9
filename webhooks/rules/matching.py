"""Which webhooks get an event."""

from collections.abc import Iterable
from typing import TypeVar

from webhooks.models import TRIGGERS, COTEvent, COTWebhook, UnusableWebhook

_Webhook = TypeVar("_Webhook", COTWebhook, UnusableWebhook)


def match(event: COTEvent, webhooks: Iterable[_Webhook]) -> list[_Webhook]:
    """Return the webhooks that get the event, in the given order.

    An event goes to every active webhook of its company whose trigger and context match (contract).
    """
    return [webhook for webhook in webhooks if is_match(event, webhook)]


def is_match(event: COTEvent, webhook: COTWebhook | UnusableWebhook) -> bool:
    """Return whether one webhook gets the event."""
    trigger = TRIGGERS[webhook.trigger]
    return (
        webhook.isActive
        and webhook.company == event.company
        and event.type == trigger.type
        and event.event in trigger.events
        and all(
            getattr(webhook.context, field) in ("", str((event.data or {}).get(key)).lower())
            for field, key in trigger.narrowed_by.items()
        )
    )
