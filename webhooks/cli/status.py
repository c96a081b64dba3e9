"""The status of a webhook's deliveries, for ``list`` and ``show``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId

from webhooks.cli.output import Cell
from webhooks.config import get_settings
from webhooks.metrics.questions import NoAnswer, connect
from webhooks.models import format_instant
from webhooks.rules.lanes import SEND_QUEUE, lane_of_webhook
from webhooks.rules.remedies import BROKER_ERRORS
from webhooks.rules.times import describe_span
from webhooks.store.gates import By, Gate, State
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import why_unusable
from webhooks.transport.channel import Channel
from webhooks.transport.messages import LaneState

#: Maximum of all counts, to spare the database.
COUNT_LIMIT = 100_000
#: Number of recent notices that are shown.
_SHOWN_NOTICES = 5

_BY = {By.HEALTH: "by its endpoint's failures", By.OPERATOR: "by an operator"}
_STYLES = {State.OPEN: "green", State.PAUSED: "yellow", State.RECOVERING: "cyan", State.STOPPED: "red"}


def read_lane(lane: str) -> LaneState | None:
    """Read a lane's state from the broker; None if it has no lanes, or does not answer."""
    try:
        with connect(get_settings().broker_url) as connection:
            channel = connection.default_channel
            return channel.look_at(SEND_QUEUE, [lane])[0] if isinstance(channel, Channel) else None
    except (NoAnswer, *BROKER_ERRORS):
        return None


@dataclass(frozen=True, slots=True)
class WebhookStatus:
    """The status of a webhook's deliveries."""

    gate: Gate
    #: Numbers of held and of other pending deliveries, up to `COUNT_LIMIT`.
    held: int
    outstanding: int
    #: The oldest pending delivery, and when it was accepted.
    oldest_id: str | None
    oldest_at: datetime | None
    lane: LaneState | None
    #: Now, by MongoDB's clock, like the gate's times.
    present: datetime

    def to_wire(self) -> dict[str, Any]:
        """Return the status for ``--json``."""
        gate, lane = self.gate, self.lane
        return {
            "state": gate.state,
            "by": gate.by,
            "reason": gate.reason,
            "since": gate.since,
            "hold_until": gate.hold_until if gate.is_held_back(self.present) else None,
            "kept": self.held,
            "outstanding": self.outstanding,
            "oldest": self.oldest_id,
            "oldest_at": self.oldest_at,
            "in_flight": None if lane is None else lane.in_flight,
            "waiting": None if lane is None else lane.waiting,
            "share": None if lane is None else lane.share,
            "notices": [{"type": one.type, "at": one.at, "reason": one.reason} for one in gate.notices],
        }


def read_status(stores: Stores, document: Document) -> WebhookStatus | None:
    """Read a webhook's status; None if its id is not an ObjectId, because it then has no deliveries."""
    webhook_id, company = document["_id"], document.get("company")
    if not isinstance(webhook_id, ObjectId):
        return None
    first = stores.held.find_first(webhook_id)
    return WebhookStatus(
        gate=stores.gates.get(webhook_id),
        held=stores.held.count_held(webhook_id, COUNT_LIMIT),
        outstanding=stores.held.count_outstanding(webhook_id, COUNT_LIMIT),
        oldest_id=None if first is None else first[0].delivery_id,
        oldest_at=None if first is None else first[1],
        lane=read_lane(lane_of_webhook(company, webhook_id)) if isinstance(company, ObjectId) else None,
        present=stores.deliveries.now(),
    )


def read_gates(stores: Stores, documents: Sequence[Document]) -> list[Gate | None]:
    """Return the gate of each webhook; None for one whose id is not an ObjectId."""
    gates = stores.gates.get_many(one["_id"] for one in documents if isinstance(one["_id"], ObjectId))
    return [gates[one["_id"]] if isinstance(one["_id"], ObjectId) else None for one in documents]


def describe_state(document: Document, gate: Gate | None) -> Cell:
    """Return a webhook's state in one word."""
    if why_unusable(document):
        return Cell("INVALID", "red")
    if not document["isActive"]:
        return Cell("inactive", "dim")
    state = State.OPEN if gate is None else gate.state
    return Cell("active" if state is State.OPEN else state.value, _STYLES[state])


def describe_status(document: Document, status: WebhookStatus) -> list[list[str | Cell]]:
    """Return rows about a webhook's deliveries."""
    gate, present = status.gate, status.present
    state = describe_state(document, gate)
    rows: list[list[str | Cell]] = [["state", Cell(_describe_gate(state.text, gate, present), state.style)]]
    if gate.hold_until is not None and gate.is_held_back(present):
        span, until = describe_span(present, gate.hold_until), format_instant(gate.hold_until)
        rows.append(["held back", f"for {span}, until {until}: its receiver asked"])
    rows.append(["pending", f"{count(status.held)} held, {count(status.outstanding)} to send"])
    if status.oldest_at is not None:
        since = f"{describe_span(status.oldest_at, present)}, since {format_instant(status.oldest_at)}"
        rows.append(["oldest", f"{status.oldest_id}: pending for {since}"])
    if (lane := status.lane) is not None:
        rows.append(["in flight", f"{lane.in_flight} of at most {lane.share:g}, {lane.waiting} waiting"])
    return rows


def describe_notices(gate: Gate) -> list[list[str | Cell]]:
    """Return rows about a webhook's last changes."""
    return [[format_instant(one.at), one.type.value, one.reason] for one in gate.notices[-_SHOWN_NOTICES:]]


def _describe_gate(state: str, gate: Gate, present: datetime) -> str:
    if gate.is_open:
        return state
    # An inactive or INVALID webhook has a gate too, which applies once it is active.
    text = state if state == gate.state.value else f"{state}, and {gate.state.value}"
    if gate.state is State.RECOVERING:
        text += f", {gate.rate:g} per second"
    if gate.since is not None:
        text += f" for {describe_span(gate.since, present)}, since {format_instant(gate.since)}"
    if gate.by is not None:
        text += f", {_BY[gate.by]}"
    return text + (f": {gate.reason}" if gate.reason else "")


def count(number: int) -> str:
    """Return a count as text, with "+" at `COUNT_LIMIT`."""
    return f"{number}{'+' if number == COUNT_LIMIT else ''}"
