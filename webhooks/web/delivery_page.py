"""``/webhooks/deliveries/{id}``: what became of one delivery, and what comes next."""

from collections.abc import Sequence
from dataclasses import dataclass

from tornado.web import authenticated

from webhooks.delivery.history import DeliveryHistory, RequestText, Stage, describe_request, read_delivery
from webhooks.models import AttemptDetails
from webhooks.store.stores import Stores
from webhooks.web.actions import RESEND, offer
from webhooks.web.base import PageHandler

#: Units of the time line's bars.
_BAR = 1000.0
#: The phases of an attempt, in their order.
_PHASES = (
    ("lookup", "look-up"),
    ("connect", "connect"),
    ("tls", "TLS"),
    ("send", "send"),
    ("wait", "wait"),
    ("read", "read"),
)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an attempt's bar."""

    name: str
    label: str
    ms: float
    x: float
    width: float


def draw_phases(details: AttemptDetails | None, longest_ms: float) -> list[Phase]:
    """Return the parts of an attempt's bar.

    Args:
        details: of the attempt.
        longest_ms: how long the longest attempt of the page took: its bar is the whole width.
    """
    if details is None:
        return []
    phases, x = [], 0.0
    for name, label in _PHASES:
        ms: float | None = getattr(details, f"{name}_ms")
        if ms is not None:
            width = max(1.0, ms / longest_ms * _BAR)
            phases.append(Phase(name, label, ms, x, width))
            x += width
    return phases


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
        totals = [a.row.details.total_ms or 0.0 for a in found.attempts if a.row.details is not None]
        longest_ms = max([*totals, 1.0])
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


def describe_latest(found: DeliveryHistory) -> RequestText | None:
    """Describe the request of the newest attempt; None where there was none, or its parts are gone."""
    details: Sequence[AttemptDetails] = [a.row.details for a in found.attempts if a.row.details is not None]
    if not details or found.webhook is None or found.body is None:
        return None
    return describe_request(found.webhook, found.delivery_id, found.body, details[-1].started_at)
