"""How a webhook's deliveries stand: what ``list`` and ``show`` say of it, and the commands that change it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId
from kombu.exceptions import OperationalError

from webhooks.cli.common import Cell
from webhooks.config import get_settings
from webhooks.models import format_instant
from webhooks.producer.app import app
from webhooks.rules.lanes import SEND_QUEUE, lane_of_webhook
from webhooks.rules.times import describe_span
from webhooks.store.gates import By, Gate, State
from webhooks.store.mongo import Document
from webhooks.store.stores import Stores
from webhooks.store.webhooks import why_unusable
from webhooks.transport.channel import Channel
from webhooks.transport.messages import LaneState

#: Where counting of what is owed stops: an answer must not cost the database much.
COUNT_LIMIT = 100_000
#: Seconds that the broker may take to say how a lane stands.
_BROKER_TIMEOUT_S = 3.0
#: How many notices are shown, the last ones.
_SHOWN_NOTICES = 5

_BY = {By.HEALTH: "by its endpoint's failures", By.OPERATOR: "by an operator"}
_STYLES = {State.OPEN: "green", State.PAUSED: "yellow", State.RECOVERING: "cyan", State.STOPPED: "red"}


def read_lane(lane: str) -> LaneState | None:
    """Ask the broker for a webhook's part of it; None where it has no lanes, or does not answer."""
    deadlines = {"socket_connect_timeout": _BROKER_TIMEOUT_S, "socket_timeout": _BROKER_TIMEOUT_S}
    options = deadlines if get_settings().broker_url.startswith("redis") else {}
    try:
        with app.connection_for_read(connect_timeout=_BROKER_TIMEOUT_S, transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_TIMEOUT_S)
            channel = connection.default_channel
            return channel.look_at(SEND_QUEUE, [lane])[0] if isinstance(channel, Channel) else None
    except (OperationalError, *app.connection_for_read().connection_errors):
        return None  # what MongoDB says is worth showing all the same


@dataclass(frozen=True, slots=True)
class WebhookStatus:
    """How a webhook's deliveries stand."""

    gate: Gate
    #: Deliveries that are kept, and those that are to be sent; `COUNT_LIMIT` stands for more, too.
    kept: int
    outstanding: int
    #: The oldest of them, and since when it is owed.
    oldest_id: str | None
    oldest_at: datetime | None
    lane: LaneState | None
    #: By MongoDB's clock, like the gate's times.
    present: datetime

    def to_wire(self) -> dict[str, Any]:
        """Return what ``--json`` says of it."""
        gate, lane = self.gate, self.lane
        return {
            "state": gate.state,
            "by": gate.by,
            "reason": gate.reason,
            "since": gate.since,
            "hold_until": gate.hold_until if gate.is_held_back(self.present) else None,
            "kept": self.kept,
            "outstanding": self.outstanding,
            "oldest": self.oldest_id,
            "oldest_at": self.oldest_at,
            "in_flight": None if lane is None else lane.in_flight,
            "waiting": None if lane is None else lane.waiting,
            "share": None if lane is None else lane.share,
            "notices": [{"type": one.type, "at": one.at, "reason": one.reason} for one in gate.notices],
        }


def read_status(stores: Stores, document: Document) -> WebhookStatus | None:
    """Read how a webhook's deliveries stand; None of one whose id is no ObjectId, as nothing is owed to it."""
    webhook_id, company = document["_id"], document.get("company")
    if not isinstance(webhook_id, ObjectId):
        return None
    first = stores.held.find_first(webhook_id)
    return WebhookStatus(
        gate=stores.gates.get(webhook_id),
        kept=stores.held.count_held(webhook_id, COUNT_LIMIT),
        outstanding=stores.held.count_outstanding(webhook_id, COUNT_LIMIT),
        oldest_id=None if first is None else first[0].delivery_id,
        oldest_at=None if first is None else first[1],
        lane=read_lane(lane_of_webhook(company, webhook_id)) if isinstance(company, ObjectId) else None,
        present=stores.deliveries.now(),
    )


def read_gates(stores: Stores, documents: Sequence[Document]) -> list[Gate | None]:
    """Return the gate of each webhook; None of one whose id is no ObjectId."""
    gates = stores.gates.get_many(one["_id"] for one in documents if isinstance(one["_id"], ObjectId))
    return [gates[one["_id"]] if isinstance(one["_id"], ObjectId) else None for one in documents]


def describe_state(document: Document, gate: Gate | None) -> Cell:
    """Say in a word whether a webhook gets its events."""
    if why_unusable(document):
        return Cell("INVALID", "red")
    if not document["isActive"]:
        return Cell("inactive", "dim")
    state = State.OPEN if gate is None else gate.state
    return Cell("active" if state is State.OPEN else state.value, _STYLES[state])


def describe_status(document: Document, standing: WebhookStatus) -> list[list[str | Cell]]:
    """Say how a webhook's deliveries stand, in rows."""
    gate, present = standing.gate, standing.present
    state = describe_state(document, gate)
    rows: list[list[str | Cell]] = [["state", Cell(_describe_gate(state.text, gate, present), state.style)]]
    if gate.hold_until is not None and gate.is_held_back(present):
        span = describe_span(present, gate.hold_until)
        text = f"{span} more, until {format_instant(gate.hold_until)}: its receiver asked"
        rows.append(["held back", text])
    rows.append(["owed", f"{count(standing.kept)} kept, {count(standing.outstanding)} to be sent"])
    if standing.oldest_at is not None:
        since = f"{describe_span(standing.oldest_at, present)}, since {format_instant(standing.oldest_at)}"
        rows.append(["oldest", f"{standing.oldest_id}: owed for {since}"])
    if standing.lane is not None:
        lane = standing.lane
        rows.append(["in flight", f"{lane.in_flight} of {lane.share:g} at one time, {lane.waiting} waiting"])
    return rows


def describe_notices(gate: Gate) -> list[list[str | Cell]]:
    """Say what happened to a webhook last, in rows."""
    return [[format_instant(one.at), one.type.value, one.reason] for one in gate.notices[-_SHOWN_NOTICES:]]


def _describe_gate(state: str, gate: Gate, present: datetime) -> str:
    if gate.is_open:
        return state
    # One that is inactive or INVALID has a gate as well: it says what becomes of it when that changes.
    text = state if state == gate.state.value else f"{state}, and {gate.state.value}"
    if gate.state is State.RECOVERING:
        text += f", {gate.rate:g} per second"
    if gate.since is not None:
        text += f" for {describe_span(gate.since, present)}, since {format_instant(gate.since)}"
    if gate.by is not None:
        text += f", {_BY[gate.by]}"
    return text + (f": {gate.reason}" if gate.reason else "")


def count(number: int) -> str:
    """Write a number that was counted up to `COUNT_LIMIT`."""
    return f"{number}{'+' if number == COUNT_LIMIT else ''}"
