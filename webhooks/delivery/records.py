"""DeliveryStore, gates and logs kept together: what many threads ask for at one time shares a write.

Owns the order of the writes, and what a gate means for a delivery that is written down, claimed or attempted. Each
caller goes on, and its message is acked, only after its own write is confirmed (`mongo.open_database` says by what).
Used by `tasks`.
"""

from collections import Counter
from collections.abc import Collection, Sequence
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

    def accept_claimed(
        self, claims: Sequence[tuple[Delivery, Claim]]
    ) -> list[Claimed | Blocked | Held | PostponedClaim | Exception | None]:
        """Write down deliveries together with claims on their first attempts, and judge them as `claim` does.

        Returns:
            For each one what becomes of it; Blocked where it is written down already.
        """
        if not claims:
            return []
        present = self._ledger.now()
        are_new = self._ledger.add_claimed(claims, present)
        return self._judge_all(
            [
                # Not due: a gate that opens slowly lets out only what was released.
                Claimed(delivery, None, (), claim.log_id, present) if is_new else Blocked(0)
                for (delivery, claim), is_new in zip(claims, are_new, strict=True)
            ]
        )

    def accept(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Write down deliveries that are to be queued; one that is written down already is left as it is.

        Args:
            deliveries: of one event or several.

        Returns:
            Those that have not ended; those that are kept say so, and are not to be queued.
        """
        # That a gate changes meanwhile does no harm: the claim asks again, and the steward looks for what is kept
        # although its gate is open.
        gates = self._gates.get_many(delivery.webhook_id for delivery in deliveries)
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

        return self.keep_unended([stand(delivery) for delivery in deliveries])

    def keep_unended(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Write deliveries down so that a crash of MongoDB cannot forget them, but for those that have ended.

        Returns:
            Those that have not. A message may come again (its worker died before the ack, it was queued twice, Redis
            was put back to an old state), and a worker that was paused may go on: neither brings back what has ended.
        """
        if not deliveries:
            return []
        ended = self._forget_ended(self._ledger.add(deliveries, self._ledger.now()))
        return [delivery for delivery in deliveries if delivery.delivery_id not in ended]

    def _forget_ended(self, delivery_ids: Collection[str]) -> set[str]:
        """Take out again those of some deliveries that had ended before they were written down, and return their ids.

        Asked after the write, which may have been carried out late: a delivery ends in the logs first and then in the
        ledger, so where it was not found in the ledger as it had ended, the logs know.
        """
        ended = self._logs.find_ended(delivery_ids) if delivery_ids else set()
        if ended:
            self._ledger.forget(ended)
        return ended

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
        return self._judge_all(self._ledger.claim(claims))

    def _judge_all(
        self, results: Sequence[Claimed | Blocked | Exception | None]
    ) -> list[Claimed | Blocked | Held | PostponedClaim | Exception | None]:
        """Say what becomes of deliveries that were claimed, and write it down."""
        claimed = {one.delivery.delivery_id: one.delivery.webhook_id for one in results if isinstance(one, Claimed)}
        if not claimed:
            return list(results)
        # After the claim and from no cache. A pause holds at once, on all workers; and what was written down late, as
        # its worker was paused or its way to MongoDB was, is nothing if the delivery had ended by then.
        webhook_ids = set(claimed.values())
        logs, found = find_both(self._logs.ask_ended(claimed), self._gates.ask(webhook_ids))
        ended, gates = self._logs.read_ended(logs), self._gates.read(webhook_ids, found)
        if ended:
            self._ledger.forget(ended)
        present = self._ledger.now()
        judged: list[Claimed | Blocked | Held | PostponedClaim | Exception | None] = []
        held = []
        for result in results:
            if not isinstance(result, Claimed):
                judged.append(result)
                continue
            if result.delivery.delivery_id in ended:
                judged.append(None)
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
            if attempt.kept and self._ledger.is_heeded(log):
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
