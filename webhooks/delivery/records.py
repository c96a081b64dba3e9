"""DeliveryStore, gates and logs kept together: what many threads ask for at one time shares a write.

Owns the order of the writes, and what a gate means for a delivery that is written down, claimed or attempted. Each
caller goes on, and its message is acked, only after its own write is confirmed (`mongo.open_database` says by what).
Used by `tasks`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from bson import ObjectId

from webhooks.errors import ErrorKind
from webhooks.models import COTWebhookLog
from webhooks.rules.retry import Outcome, ends_webhook
from webhooks.store.deliveries import Blocked, Claim, Claimed, Delivery, DeliveryStore
from webhooks.store.gates import Gate, GateStore, State
from webhooks.store.held import HeldDeliveries
from webhooks.store.logs import LogStore
from webhooks.store.mongo import find_both
from webhooks.store.webhooks import WebhookStore


@dataclass(frozen=True, slots=True)
class Held:
    """A delivery that may not be sent now and is kept: its message is to be dropped."""

    reason: str


@dataclass(frozen=True, slots=True)
class PostponedClaim:
    """A delivery whose receiver asked for nothing to be sent now: its message is to be queued again."""

    delivery: Delivery
    #: From now.
    seconds: float


class DeliveryRecords:
    """What is owed and what was done, many at a time. Every method raises StoreUnavailable when MongoDB is away."""

    def __init__(
        self, ledger: DeliveryStore, kept: HeldDeliveries, logs: LogStore, gates: GateStore, webhooks: WebhookStore
    ) -> None:
        self._ledger = ledger
        self._kept = kept
        self._logs = logs
        self._gates = gates
        self._webhooks = webhooks

    def look_up(self, deliveries: Sequence[Delivery]) -> tuple[set[str], dict[ObjectId, Gate]]:
        """Return what has to be known before deliveries are written down.

        Args:
            deliveries: of one event or several; not written down yet.

        Returns:
            The ids of those that have ended, and their webhooks' gates. A message that was handled before and comes
            again (its worker died before the ack, Redis was put back to an old state) must not bring back what has
            ended since; the logs know.
        """
        if not deliveries:
            return set(), {}
        webhook_ids = {delivery.webhook_id for delivery in deliveries}
        asked = self._logs.ask_ended({delivery.event_id for delivery in deliveries})
        found_logs, found_gates = find_both(asked, self._gates.ask(webhook_ids))
        return self._logs.read_ended(found_logs), self._gates.read(webhook_ids, found_gates)

    def is_open(self, delivery: Delivery, gate: Gate) -> bool:
        """Tell whether a delivery's first attempt may be made at once."""
        return not delivery.is_ordered and gate.is_open and not gate.is_held_back(self._ledger.now())

    def accept_claimed(self, claims: Sequence[tuple[Delivery, Claim]]) -> list[bool]:
        """As `DeliveryStore.add_claimed`, now."""
        return self._ledger.add_claimed(claims, self._ledger.now()) if claims else []

    def accept(self, deliveries: Sequence[Delivery], gates: Mapping[ObjectId, Gate]) -> list[Delivery]:
        """Write down deliveries that are to be queued; one that is written down already is left as it is.

        Args:
            deliveries: of one event or several.
            gates: of all their webhooks, as `look_up` returned them.

        Returns:
            The same; those that are kept say so, and are not to be queued.
        """
        # An old state of a gate is good enough here: the claim asks again, and the steward looks for what is kept
        # although its gate is open.
        self._gates.note_held(
            delivery.webhook_id
            for delivery in deliveries
            if not delivery.is_ordered and not gates[delivery.webhook_id].is_open
        )
        in_line = Counter(one.webhook_id for one in deliveries if one.is_ordered)
        # One that is written down already keeps its place: its new one is taken for nothing.
        places = {webhook_id: self._gates.take_places(webhook_id, count) for webhook_id, count in in_line.items()}

        def stand(delivery: Delivery) -> Delivery:
            if delivery.is_ordered:
                place = places[delivery.webhook_id]
                places[delivery.webhook_id] += 1
                return replace(delivery, place=place, is_held=True)
            return delivery if gates[delivery.webhook_id].is_open else replace(delivery, is_held=True)

        standing = [stand(delivery) for delivery in deliveries]
        self.keep_owed(standing)
        return standing

    def keep_owed(self, deliveries: Sequence[Delivery]) -> None:
        """Write deliveries down so that a crash of MongoDB cannot forget them."""
        if deliveries:
            self._ledger.add(deliveries, self._ledger.now())

    def keep_unended(self, deliveries: Sequence[Delivery]) -> None:
        """Write down once more deliveries whose first attempt is over: a crash of MongoDB may have forgotten them.

        One that is not there because another worker has ended it, as this one was paused, stays ended.
        """
        if not deliveries:
            return
        added = self._ledger.add(deliveries, self._ledger.now())
        if added:  # the logs are written before a delivery ends, so they know
            events = {delivery.event_id for delivery in deliveries if delivery.delivery_id in added}
            ended = added & self._logs.find_ended(list(events))
            self._ledger.forget(ended)

    def keep_unless_head(self, claimed: Claimed) -> Held | None:
        """Keep a delivery of an ordered webhook that was claimed and is not the next in line."""
        if self._kept.is_head(claimed):
            return None
        self._gates.note_held([claimed.delivery.webhook_id])
        self._kept.keep([claimed])
        return Held("others are before it")

    def claim(self, claims: Sequence[Claim]) -> list[Claimed | Blocked | Held | PostponedClaim | Exception | None]:
        """Ask for attempts, as `DeliveryStore.claim` does, and keep what may not be sent now.

        Returns:
            For each claim what becomes of it; an error of a single one stands in its place.
        """
        results = self._ledger.claim(claims)
        # After the claim and from no cache: a pause holds at once, on all workers.
        gates = self._gates.get_many(one.delivery.webhook_id for one in results if isinstance(one, Claimed))
        present = self._ledger.now()
        judged: list[Claimed | Blocked | Held | PostponedClaim | Exception | None] = []
        held = []
        for result in results:
            if not isinstance(result, Claimed):
                judged.append(result)
                continue
            gate = gates[result.delivery.webhook_id]
            verdict = _judge(result, gate, present)
            judged.append(verdict)
            if isinstance(verdict, Held):
                held.append(result)
            elif isinstance(verdict, PostponedClaim):
                self._kept.postpone([result], gate.hold_until or present)
        # Noted before it is done: if we die in between, the steward looks for nothing.
        self._gates.note_held(result.delivery.webhook_id for result in held)
        self._kept.keep(held)
        return judged

    def record(self, logs: Sequence[COTWebhookLog]) -> list[Exception | None]:
        """Write attempts' logs, what they mean for their webhooks, and what is owed next.

        Returns:
            For each log why MongoDB cannot hold it, or None; what is owed is written all the same.
        """
        # First what it means for the webhook: it is not to be lost with us, and does no harm if the attempt is made
        # again.
        self._note_on_gates(logs)
        # Then the log. If we die in between, the attempt is made again and leaves a second log with the same
        # delivery id: a repeat that can be seen. The other way round an attempt could be without a log.
        faults = self._logs.write(logs)
        self._ledger.settle(logs)
        return [faults.get(place) for place in range(len(logs))]

    def _note_on_gates(self, logs: Sequence[COTWebhookLog]) -> None:
        asked: dict[ObjectId, float] = {}
        ownerless: set[ObjectId] = set()
        for log in logs:
            attempt = log.details
            if attempt.error_kind is None and ends_webhook(log.status):
                self._webhooks.deactivate(log.subscription, f"its receiver answered {log.status} Gone")
            if attempt.kept:
                self._gates.note_held([log.subscription])
                self._gates.stop(log.subscription, f"the retries of {attempt.delivery_id} are used up: {_last(log)}")
            if attempt.probe and attempt.outcome == Outcome.SUCCESS:
                self._gates.recover(log.subscription, f"a probe was answered with {log.status}")
            if attempt.error_kind in (ErrorKind.WEBHOOK_INACTIVE, ErrorKind.WEBHOOK_UNUSABLE):
                ownerless.add(log.subscription)
            if attempt.retry_after_s:
                # A log that comes late through the broker asks for what is left of it.
                passed_s = max(0.0, (self._ledger.now() - log.createdAt).total_seconds())
                asked[log.subscription] = max(asked.get(log.subscription, 0.0), attempt.retry_after_s - passed_s)
        for webhook_id, seconds in asked.items():
            if seconds > 0:
                self._gates.hold(webhook_id, seconds)
        for webhook_id in ownerless:
            # What is kept for it ends with its next attempts, and not one at each probe.
            self._gates.open(webhook_id, from_state=State.PAUSED)


def _judge(claimed: Claimed, gate: Gate, present: datetime) -> Claimed | Held | PostponedClaim:
    """Say what becomes of a delivery that was claimed."""
    if not gate.lets_through(is_probe=claimed.is_probe, is_released=claimed.due_at is not None):
        return Held(f"its webhook is {gate.state}")
    if gate.hold_until is not None and gate.is_held_back(present):
        if gate.is_probed:
            return Held("its receiver asked us to wait")
        return PostponedClaim(claimed.delivery, (gate.hold_until - present).total_seconds())
    # A probe of before the webhook was paused no more is an attempt like any other.
    return claimed if gate.is_probed else replace(claimed, is_probe=False)


def _last(log: COTWebhookLog) -> str:
    """Say in a word what came of an attempt."""
    return str(log.details.error_kind or log.status)
