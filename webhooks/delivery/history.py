"""What became of a delivery and of an event, and what comes next: for people, in Flower and on the command line."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from bson import ObjectId

from webhooks.delivery.attempt import plain_headers
from webhooks.errors import ErrorKind
from webhooks.models import AttemptDetails, COTWebhook
from webhooks.models.ids import wire_id
from webhooks.rules.explain import Explanation, explain_attempt
from webhooks.rules.retry import Outcome, ends_webhook
from webhooks.rules.times import describe_span
from webhooks.store.gates import By, Gate, State
from webhooks.store.logs import LogQuery
from webhooks.store.pending_details import PendingDetails
from webhooks.store.search import LogRow
from webhooks.store.stores import Stores

#: Attempts of a delivery that are read, the newest. A paused endpoint may be probed for days.
MOST_ATTEMPTS = 50
#: Logs of an event that are read for its deliveries.
MOST_LOGS = 1_000
#: Characters of a response that are shown.
RESPONSE_CHARS = 20_000
#: Characters of a body that stand in a ``curl`` line; a longer one is read from a file.
_INLINE_BODY = 8_000
#: How much later than planned an attempt may begin before that is worth a word.
_LATE = timedelta(seconds=5)
#: Units of a time line's bar.
BAR = 1000.0
#: The phases of an attempt, in their order, and what people call them.
_PHASES = (
    ("lookup", "look-up"),
    ("connect", "connect"),
    ("tls", "TLS"),
    ("send", "send"),
    ("wait", "wait"),
    ("read", "read"),
)


class Stage(StrEnum):
    """Where a delivery stands."""

    DELIVERED = "delivered"
    FAILED = "failed"
    WAITING = "waiting"
    HELD = "held"
    ATTEMPTING = "attempting"
    QUARANTINED = "quarantined"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a delivery stands, and what comes next."""

    stage: Stage
    #: In sentences.
    text: str
    #: When the next attempt is due; None where that is not known, or none comes.
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt on a delivery's time line."""

    row: LogRow
    explanation: Explanation
    #: What passed before it: since the event was accepted, or since the attempt before.
    waited: str


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """A delivery in a list."""

    delivery_id: str
    webhook_id: object
    company: object
    #: The webhook's code at the last attempt, or what the delivery is called.
    name: str
    outlook: Outlook
    attempts: int
    #: The newest one; None before the first.
    last: LogRow | None
    #: When it was written down; None where that is not known any more.
    accepted_at: datetime | None
    #: When its first attempt began of which there is a log.
    begun_at: datetime | None

    @property
    def is_resent(self) -> bool:
        """Whether it sends another one again."""
        return find_first(self.delivery_id) is not None


@dataclass(frozen=True, slots=True)
class DeliveryHistory:
    """All that is known of a delivery."""

    delivery_id: str
    event_id: str
    company: object
    webhook_id: object
    #: None where it is gone or cannot be used.
    webhook: COTWebhook | None
    gate: Gate
    #: Oldest first.
    attempts: Sequence[Attempt]
    #: Whether there are older attempts than those.
    has_more: bool
    outlook: Outlook
    #: What is sent, byte for byte; None where it cannot be read.
    body: str | None
    #: The other deliveries of its event.
    others: Sequence[DeliveryState]

    @property
    def resends(self) -> str | None:
        """The id of the delivery that it sends again; None where it does not."""
        return find_first(self.delivery_id)


def find_first(delivery_id: str) -> str | None:
    """Return the id of the delivery that another one sends again; None for one that does not."""
    first = wire_id(delivery_id)
    return None if first == delivery_id else first


def read_delivery(stores: Stores, delivery_id: str, present: datetime) -> DeliveryHistory | None:
    """Return a delivery's history; None where nothing is known of it."""
    page = stores.search.find_page(LogQuery(delivery_id=delivery_id), MOST_ATTEMPTS, response_chars=RESPONSE_CHARS)
    pending = stores.pending.find(delivery_id)
    rows = page.rows[::-1]
    if not rows and pending is None:
        return None
    webhook_id = rows[-1].webhook_id if pending is None else pending.webhook_id
    gate, webhook = _read_webhook(stores, webhook_id)
    if pending is not None:
        event_id, company, body = pending.event_id, pending.company, stores.pending.find_body(delivery_id)
    else:
        details = rows[-1].details
        event_id, company = "" if details is None else details.event_id, rows[-1].company
        body = _read_body(stores, rows[-1])
    states = read_deliveries(stores, event_id, present) if event_id else []
    outlook = explain_outlook(pending, rows[-1] if rows else None, gate, present)
    return DeliveryHistory(
        delivery_id=delivery_id,
        event_id=event_id,
        company=company,
        webhook_id=webhook_id,
        webhook=webhook,
        gate=gate,
        attempts=place_attempts(rows, None if pending is None else pending.created_at),
        has_more=page.next is not None,
        outlook=_note_resends(outlook, delivery_id, (one.delivery_id for one in states)),
        body=body,
        others=[one for one in states if one.delivery_id != delivery_id and one.company == company],
    )


def read_deliveries(stores: Stores, event_id: str, present: datetime) -> list[DeliveryState]:
    """Return an event's deliveries. A producer may give events of two companies one id: then those of both."""
    rows = stores.search.find_page(LogQuery(event_id=event_id), MOST_LOGS).rows
    pending = {one.delivery_id: one for one in stores.pending.find_of_event(event_id)}
    by_delivery: dict[str, list[LogRow]] = {}
    for row in rows:
        if row.details is not None:
            by_delivery.setdefault(row.details.delivery_id, []).append(row)
    gates = stores.gates.get_many(_ids([*(one.webhook_id for one in pending.values())]))
    states = []
    known = sorted({*by_delivery, *pending})
    for delivery_id in known:
        logs, waits = by_delivery.get(delivery_id, []), pending.get(delivery_id)
        last = logs[0] if logs else None
        webhook_id = waits.webhook_id if last is None and waits is not None else last.webhook_id if last else None
        gate = gates.get(webhook_id) if isinstance(webhook_id, ObjectId) else None
        states.append(
            DeliveryState(
                delivery_id=delivery_id,
                webhook_id=webhook_id,
                company=last.company if last is not None else waits.company if waits is not None else None,
                name=_name(last, waits),
                outlook=_note_resends(
                    explain_outlook(waits, last, gate or Gate(ObjectId()), present), delivery_id, known
                ),
                attempts=len(logs),
                last=last,
                accepted_at=None if waits is None else waits.created_at,
                begun_at=logs[-1].details.started_at if logs and logs[-1].details is not None else None,
            )
        )
    return states


def _note_resends(outlook: Outlook, delivery_id: str, known: Iterable[str]) -> Outlook:
    """Add as what a failed delivery was resent, of the known deliveries of its event."""
    resent = [one for one in known if find_first(one) == delivery_id]
    if outlook.stage is not Stage.FAILED or not resent:
        return outlook
    return replace(outlook, text=f"{outlook.text} It was resent as {', '.join(resent)}.")


def read_outlooks(stores: Stores, pending: Sequence[PendingDetails], present: datetime) -> list[Outlook]:
    """Say of pending deliveries when the next attempt comes and why then."""
    gates = stores.gates.get_many(_ids(one.webhook_id for one in pending))
    outlooks = []
    for one in pending:
        rows = stores.search.find_page(LogQuery(delivery_id=one.delivery_id), 1).rows if one.retry else []
        gate = gates.get(one.webhook_id) if isinstance(one.webhook_id, ObjectId) else None
        outlooks.append(explain_outlook(one, rows[0] if rows else None, gate or Gate(ObjectId()), present))
    return outlooks


def _read_webhook(stores: Stores, webhook_id: object) -> tuple[Gate, COTWebhook | None]:
    if not isinstance(webhook_id, ObjectId):
        return Gate(ObjectId()), None
    return stores.gates.get(webhook_id), stores.webhooks.get(webhook_id)


def _read_body(stores: Stores, row: LogRow) -> str | None:
    logs = stores.logs.get_many([row.log_id]) if isinstance(row.log_id, ObjectId) else []
    return logs[0].event.to_json() if logs and not logs[0].details.event_cut else None


def _ids(values: Iterable[object]) -> set[ObjectId]:
    return {value for value in values if isinstance(value, ObjectId)}


def _name(last: LogRow | None, pending: PendingDetails | None) -> str:
    if last is not None and last.details is not None:
        return last.details.webhook
    return "" if pending is None else pending.label.partition(" → ")[2]


def place_attempts(rows: Sequence[LogRow], accepted_at: datetime | None) -> list[Attempt]:
    """Put attempts on a time line.

    Args:
        rows: oldest first.
        accepted_at: when the delivery was written down; None where that is not known any more.
    """
    attempts, before = [], None
    for row in rows:
        kind = None if row.details is None else row.details.error_kind
        attempts.append(Attempt(row, explain_attempt(row.status, kind), _explain_wait(before, row, accepted_at)))
        before = row
    return attempts


def _explain_wait(before: LogRow | None, row: LogRow, accepted_at: datetime | None) -> str:
    if row.details is None:
        return ""
    begun = row.details.started_at
    if before is None:
        return f"{_span(accepted_at, begun)} after the event was accepted" if accepted_at and row.retry == 0 else ""
    if before.details is None or before.details.next_at is None:
        return f"{_span(before.created_at, begun)} later: it was sent again"
    due_at, asked_s = before.details.next_at, before.details.retry_after_s
    text = f"{_span(before.created_at, begun)} later"
    if before.details.error_kind is ErrorKind.INTERRUPTED:
        text += ": the attempt was repeated"
    elif asked_s:
        text += f": the receiver asked for {asked_s:g} s with Retry-After"
    elif before.details.probe or row.details.probe:
        text += ": a probe of the paused webhook"
    else:
        text += ": the delay between retries"
    if begun - due_at > _LATE:
        text += f". It was due {_span(due_at, begun)} earlier: it was held, or waited for a worker or for its turn"
    return text


def explain_outlook(pending: PendingDetails | None, last: LogRow | None, gate: Gate, present: datetime) -> Outlook:
    """Say where a delivery stands, and when the next attempt comes and why then.

    Args:
        pending: what is pending of it; None when it has ended.
        last: its newest attempt; None before the first.
        gate: its webhook's.
        present: now, by MongoDB's clock.
    """
    if pending is None:
        return _explain_end(last)
    if pending.claimed_until is not None and pending.claimed_until > present:
        worker = f" by {pending.worker}" if pending.worker else ""
        return Outlook(Stage.ATTEMPTING, f"Attempt {pending.retry + 1} is being made now{worker}.")
    if pending.is_held:
        return Outlook(Stage.HELD, _explain_hold(pending, gate))
    if pending.due_at is None:
        return Outlook(
            Stage.QUARANTINED,
            "It is quarantined: its document was changed, or a defect stopped it. The worker's log says which. "
            "No attempt comes by itself: skip it or resend it.",
        )
    if gate.is_held_back(present) and gate.hold_until is not None and gate.hold_until >= pending.due_at:
        text = f"The receiver asked with Retry-After for no request before {_time(gate.hold_until)}."
        return Outlook(Stage.WAITING, text, gate.hold_until)
    if pending.due_at > present:
        return Outlook(Stage.WAITING, _explain_due(pending.due_at, pending, last, present), pending.due_at)
    waited = _span(pending.due_at, present)
    why = "it waits for a free worker or for its turn in the webhook's lane"
    if pending.is_probe:
        why = "it was released to probe the paused webhook"
    elif gate.state is State.RECOVERING:
        why = f"the webhook recovers, and held deliveries are released at {gate.rate:g} per second"
    elif not gate.is_open:
        why = f"the webhook is {gate.state.value}, and a worker that takes it will hold it"
    text = f"Attempt {pending.retry + 1} has been due for {waited}: {why}."
    return Outlook(Stage.WAITING, text, pending.due_at)


def _explain_end(last: LogRow | None) -> Outlook:
    if last is None:
        return Outlook(Stage.UNKNOWN, "Nothing is known of it: it has expired, or never was.")
    at = _time(last.created_at)
    if last.outcome is Outcome.SUCCESS:
        return Outlook(Stage.DELIVERED, f"Delivered at {at}, with attempt {last.retry + 1}.")
    details = last.details
    kind = None if details is None else details.error_kind
    if kind is ErrorKind.SKIPPED:
        return Outlook(Stage.FAILED, f"An operator gave it up at {at}. No attempt comes by itself.")
    if details is not None and details.next_at is not None:
        return Outlook(
            Stage.UNKNOWN,
            f"A next attempt was planned for {_time(details.next_at)}, but nothing is pending: the log of its end is "
            "still to be written, or somebody deleted the delivery.",
        )
    if kind is None and ends_webhook(last.status):
        return Outlook(Stage.FAILED, f"Given up at {at}: the receiver said with 410 that it wants no more events.")
    if kind in (ErrorKind.WEBHOOK_INACTIVE, ErrorKind.WEBHOOK_UNUSABLE):
        return Outlook(Stage.FAILED, f"Given up at {at}: the webhook could not be used. No attempt comes by itself.")
    return Outlook(
        Stage.FAILED,
        f"Given up at {at}: attempt {last.retry + 1} was the last of its retries. No attempt comes by itself; "
        "resend it when the receiver works again.",
    )


def _explain_hold(pending: PendingDetails, gate: Gate) -> str:
    reason = f": {gate.reason}" if gate.reason else ""
    if gate.state is State.PAUSED and gate.by is By.OPERATOR:
        return f"It is held: an operator paused the webhook{reason}. It is released when the webhook is resumed."
    if gate.state is State.PAUSED:
        probe = f" The endpoint is tried next at {_time(gate.probe_at)}." if gate.probe_at else ""
        return f"It is held: the webhook was paused after failures{reason}.{probe} It is released after one succeeds."
    if gate.state is State.STOPPED:
        return (
            f"It is held: the ordered webhook has stopped{reason}. It goes on when an operator skips the first "
            "delivery in line or resumes the webhook."
        )
    if gate.state is State.RECOVERING:
        return f"It is held: the webhook recovers, and held deliveries are released at {gate.rate:g} per second."
    if pending.position is not None:
        return "It is held: the webhook is ordered, and earlier deliveries come first."
    return "It is held, and is released within seconds: nothing stands in its way."


def _explain_due(due_at: datetime, pending: PendingDetails, last: LogRow | None, present: datetime) -> str:
    text = f"Attempt {pending.retry + 1} is due at {_time(due_at)}, in {_span(present, due_at)}"
    if last is None or last.details is None:
        return f"{text}."
    if last.details.retry_after_s:
        return f"{text}: the receiver asked for {last.details.retry_after_s:g} s with Retry-After."
    return f"{text}: the delay between retries, counted from the end of attempt {last.retry + 1}."


def _span(start: datetime, end: datetime) -> str:
    seconds = max(0.0, (end - start).total_seconds())
    return f"{seconds:.1f} s" if seconds < 10 else describe_span(start, end)


def _time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class RequestText:
    """A request as people see it."""

    #: Name and value; a value that is secret is None.
    headers: Sequence[tuple[str, str | None]]
    #: What repeats the request in a shell, without what is secret.
    curl: str


def describe_request(
    webhook: COTWebhook, delivery_id: str, body: str, started_at: datetime, body_name: str = "body.json"
) -> RequestText:
    """Write the request of an attempt. The secrets that signed it are not read.

    Args:
        webhook: as it is now: its headers may have changed since.
        delivery_id: of the delivery.
        body: what is sent.
        started_at: when the attempt began.
        body_name: of the file that a long body is read from.
    """
    headers: list[tuple[str, str | None]] = [*plain_headers(delivery_id, started_at).items()]
    if webhook.secrets:
        headers.append(("webhook-signature", None))
    headers += [(header.name, header.value or None) for header in webhook.headers]
    return RequestText(headers, _write_curl(webhook.url, headers, body, body_name))


def _write_curl(url: str, headers: Iterable[tuple[str, str | None]], body: str, body_name: str) -> str:
    shown: Mapping[str, str] = {name: value for name, value in headers if value is not None}
    data = body if len(body) <= _INLINE_BODY else f"@{body_name}"
    # The characters that name several addresses to curl are none to us.
    words = ["curl", "--globoff", "-X", "POST", url]
    for name, value in shown.items():
        words += ["-H", f"{name}: {value}"]
    return shlex.join([*words, "--data-binary", data])


def describe_latest(found: DeliveryHistory) -> RequestText | None:
    """Describe the request of the newest attempt; None where there was none, or its parts are gone."""
    details: Sequence[AttemptDetails] = [a.row.details for a in found.attempts if a.row.details is not None]
    if not details or found.webhook is None or found.body is None:
        return None
    return describe_request(found.webhook, found.delivery_id, found.body, details[-1].started_at)


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
        longest_ms: how long the longest attempt took: its bar is the whole width.
    """
    if details is None:
        return []
    phases, x = [], 0.0
    for name, label in _PHASES:
        ms: float | None = getattr(details, f"{name}_ms")
        if ms is not None:
            width = max(1.0, ms / longest_ms * BAR)
            phases.append(Phase(name, label, ms, x, width))
            x += width
    return phases


def find_longest_ms(found: DeliveryHistory) -> float:
    """Return how long a delivery's longest attempt took, for `draw_phases`."""
    return max([1.0, *(a.row.details.total_ms or 0.0 for a in found.attempts if a.row.details is not None)])
