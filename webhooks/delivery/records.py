"""Keep ledger, gates and logs consistent: the order of their writes, and the effect of a gate on each delivery.

Every method returns after its writes are confirmed (`mongo.open_database` sets how), so messages may be acked then.
"""

from collections import Counter
from collections.abc import Sequence
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
    """A delivery that is held: drop its message."""

    reason: str


@dataclass(frozen=True, slots=True)
class PostponedClaim:
    """A delivery whose receiver sent ``Retry-After``: queue its message again."""

    delivery: Delivery
    #: Seconds from now.
    seconds: float


#: Claimed: attempt it. Blocked: another worker has claimed it. Exception: it is broken. None: nothing is pending.
ClaimResult = Claimed | Blocked | Held | PostponedClaim | Exception | None


class DeliveryRecords:
    """Stores, claims and records many deliveries at a time. Every method raises StoreUnavailable."""

    def __init__(
        self, ledger: DeliveryStore, held: HeldDeliveries, logs: LogStore, gates: GateStore, webhooks: WebhookStore
    ) -> None:
        self._ledger = ledger
        self._held = held
        self._logs = logs
        self._gates = gates
        self._webhooks = webhooks

    def accept_claimed(self, claims: Sequence[tuple[Delivery, Claim]]) -> list[ClaimResult]:
        """Store new deliveries together with claims on their first attempts; return as `claim` does.

        A delivery that is stored already is Blocked.
        """
        if not claims:
            return []
        present = self._ledger.now()
        are_new = self._ledger.add_claimed(claims, present)
        return self._judge_all(
            [
                # Not due: a recovering gate admits only released deliveries.
                Claimed(delivery, None, (), claim.log_id, present) if is_new else Blocked(0)
                for (delivery, claim), is_new in zip(claims, are_new, strict=True)
            ]
        )

    def accept(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Store deliveries that are not stored yet; return those that have not ended.

        Returned deliveries with `is_held` must not be queued.
        """
        # A gate may change meanwhile: the claim checks it again, and the health monitor finds deliveries that are held
        # behind an open gate.
        gates = self._gates.get_many(delivery.webhook_id for delivery in deliveries)
        self._gates.note_held(
            delivery.webhook_id
            for delivery in deliveries
            if not delivery.is_ordered and not gates[delivery.webhook_id].is_open
        )
        in_line = Counter(one.webhook_id for one in deliveries if one.is_ordered)
        # A delivery that is stored already keeps its position; the new one stays unused.
        places = {webhook_id: self._gates.take_places(webhook_id, count) for webhook_id, count in in_line.items()}

        def place(delivery: Delivery) -> Delivery:
            if delivery.is_ordered:
                places[delivery.webhook_id] += 1
                return replace(delivery, place=places[delivery.webhook_id] - 1, is_held=True)
            return delivery if gates[delivery.webhook_id].is_open else replace(delivery, is_held=True)

        return self.keep_unended([place(delivery) for delivery in deliveries])

    def keep_unended(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Store deliveries with the journal, except ended ones; return those that have not ended.

        A message may be redelivered, and a paused worker may continue: neither may bring back an ended delivery.
        """
        if not deliveries:
            return []
        added = self._ledger.add(deliveries, self._ledger.now())
        # After the write, which may have been carried out late. A delivery ends in the logs before it ends in the
        # ledger, so the logs have it if the ledger no longer has.
        ended = self._logs.find_ended(added) if added else set()
        if ended:
            self._ledger.forget(ended)
        return [delivery for delivery in deliveries if delivery.delivery_id not in ended]

    def hold_unless_head(self, claimed: Claimed) -> Held | None:
        """Hold a claimed delivery of an ordered webhook that is not the head of its line."""
        if self._held.is_head(claimed):
            return None
        self._gates.note_held([claimed.delivery.webhook_id])
        self._held.hold([claimed])
        return Held("earlier deliveries come first")

    def claim(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        """Claim attempts as `DeliveryStore.claim` does, and hold or postpone what may not be sent now."""
        return self._judge_all(self._ledger.claim(claims))

    def _judge_all(self, results: Sequence[Claimed | Blocked | Exception | None]) -> list[ClaimResult]:
        """Apply logs and gates to claimed deliveries."""
        claimed = {one.delivery.delivery_id: one.delivery.webhook_id for one in results if isinstance(one, Claimed)}
        if not claimed:
            return list(results)
        # After the claim and without a cache, so that a pause takes effect at once on all workers, and a delivery that
        # was written late is found to have ended.
        webhook_ids = set(claimed.values())
        logs, found = find_both(self._logs.ask_ended(claimed), self._gates.ask(webhook_ids))
        ended, gates = self._logs.read_ended(logs), self._gates.read(webhook_ids, found)
        if ended:
            self._ledger.forget(ended)
        present = self._ledger.now()
        judged: list[ClaimResult] = []
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
                self._held.postpone([result], gate.hold_until or present)
        # Noted first: if the worker dies in between, the health monitor finds nothing held, which is harmless.
        self._gates.note_held(result.delivery.webhook_id for result in held)
        self._held.hold(held)
        return judged

    def record(self, logs: Sequence[COTWebhookLog]) -> list[Exception | None]:
        """Write logs, their effects on webhooks and gates, and the deliveries' next attempts.

        Returns:
            For each log why MongoDB cannot store it, or None; the ledger is updated in both cases.
        """
        # First the gates: that is harmless if the attempt is repeated.
        self._note_on_gates(logs)
        # The log before the ledger. If the worker dies in between, the repeated attempt leaves a second log with the
        # same delivery id. In the reverse order, an attempt could be without a log.
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
                # From now on, though the log may come late through the broker: the worker's clock may be wrong.
                asked[log.subscription] = max(asked.get(log.subscription, 0.0), attempt.retry_after_s)
        for webhook_id, seconds in asked.items():
            self._gates.hold(webhook_id, seconds)
        for webhook_id in ownerless:
            # Its held deliveries end with their next attempts, instead of one with each probe.
            self._gates.open(webhook_id, from_state=State.PAUSED)


def _judge(claimed: Claimed, gate: Gate, present: datetime) -> Claimed | Held | PostponedClaim:
    """Decide whether a claimed delivery is attempted, held or postponed."""
    if not gate.lets_through(is_probe=claimed.is_probe, is_released=claimed.due_at is not None):
        return Held(f"its webhook is {gate.state}")
    if gate.hold_until is not None and gate.is_held_back(present):
        if gate.is_probed:
            return Held("the receiver sent Retry-After")
        return PostponedClaim(claimed.delivery, (gate.hold_until - present).total_seconds())
    # If the webhook is no longer paused, a probe is an ordinary attempt.
    return replace(claimed, is_probe=False) if claimed.is_probe and not gate.is_probed else claimed


def _last(log: COTWebhookLog) -> str:
    """Return an attempt's error kind or status."""
    return str(log.details.error_kind or log.status)
