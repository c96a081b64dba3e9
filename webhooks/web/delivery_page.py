"""``/webhooks/deliveries/{id}``: what became of one delivery, and what comes next."""

from tornado.web import authenticated

from webhooks.delivery.history import (
    DeliveryHistory,
    Stage,
    describe_latest,
    draw_phases,
    find_longest_ms,
    read_delivery,
)
from webhooks.store.stores import Stores
from webhooks.web.actions import RESEND, offer
from webhooks.web.base import PageHandler


class DeliveryHandler(PageHandler):
    """One delivery."""

    @authenticated
    async def get(self, delivery_id: str) -> None:
        """Show its attempts, its request and its future."""
        found = await self.read(_read, self.stores, delivery_id)
        if found is None:
            self.not_found(
                "No such delivery",
                f"Nothing is known of the delivery {delivery_id[:200]}. Its logs have expired, or it never was.",
            )
        longest_ms = find_longest_ms(found)
        self.show(
            "webhook_delivery.html",
            found=found,
            request_text=describe_latest(found),
            done=await self.find_done(),
            actions=[offer(self, RESEND, found.webhook_id, delivery_id)] if can_resend(found) else [],
            bars=[draw_phases(attempt.row.details, longest_ms) for attempt in found.attempts],
        )


class BodyHandler(PageHandler):
    """What a delivery sends, to be saved."""

    @authenticated
    async def get(self, delivery_id: str) -> None:
        """Send the body, byte for byte."""
        found = await self.read(_read, self.stores, delivery_id)
        if found is None or found.body is None:
            self.not_found("No body", "What this delivery sends cannot be read any more.")
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", 'attachment; filename="body.json"')
        self.write(found.body.encode())


def _read(stores: Stores, delivery_id: str) -> DeliveryHistory | None:
    return read_delivery(stores, delivery_id, stores.deliveries.now())


def can_resend(found: DeliveryHistory) -> bool:
    """Whether the delivery can be sent again: it has ended, and its webhook and its event are there."""
    has_ended = found.outlook.stage in (Stage.DELIVERED, Stage.FAILED)
    return has_ended and found.body is not None and found.webhook is not None and found.webhook.isActive
