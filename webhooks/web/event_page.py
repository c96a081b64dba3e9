"""``/webhooks/events/{id}``: what became of an event, and why."""

from tornado.web import authenticated

from webhooks.config import get_settings
from webhooks.delivery.event_history import EventHistory, read_event_history
from webhooks.store.stores import Stores
from webhooks.web.base import PageHandler

#: Of Bootstrap's badges.
_STYLES = {
    "accepted": "success",
    "matched nobody": "warning",
    "in the outbox": "info",
    "dead letter": "danger",
    "never seen": "secondary",
}


class EventHandler(PageHandler):
    """One event."""

    @authenticated
    async def get(self, event_id: str) -> None:
        """Show it, also where nothing is known of it."""
        found = await self.read(_read, self.stores, event_id)
        self.show("webhook_event.html", found=found, style=_STYLES[found.fate])


def _read(stores: Stores, event_id: str) -> EventHistory:
    return read_event_history(stores, event_id, get_settings().log_ttl_days)
