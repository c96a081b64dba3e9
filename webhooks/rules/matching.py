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
        and all(_is_wanted(event, getattr(webhook.context, field), key) for field, key in trigger.narrowed_by.items())
    )


def explain_mismatch(event: COTEvent, webhook: COTWebhook | UnusableWebhook) -> str | None:
    """Say why a webhook does not get an event; None where it does."""
    if is_match(event, webhook):
        return None
    trigger = TRIGGERS[webhook.trigger]
    if webhook.company != event.company:
        return "it belongs to another company"
    if event.type != trigger.type or event.event not in trigger.events:
        return f"its trigger asks for {trigger.type} {', '.join(sorted(trigger.events))}"
    if not webhook.isActive:
        return "it is inactive"
    wrong = [
        f"{field} {getattr(webhook.context, field)}, and the event has {(event.data or {}).get(key) or 'none'}"
        for field, key in trigger.narrowed_by.items()
        if not _is_wanted(event, getattr(webhook.context, field), key)
    ]
    return f"its context asks for {' and '.join(wrong)}"


def _is_wanted(event: COTEvent, wanted_id: str, key: str) -> bool:
    return wanted_id in ("", str((event.data or {}).get(key)).lower())
