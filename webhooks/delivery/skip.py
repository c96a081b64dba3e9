"""Skip deliveries for an operator: claim them as a worker does, log them, then remove them from the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bson import ObjectId

from webhooks.delivery.attempt import describe_interrupted, describe_skipped
from webhooks.errors import ErrorKind
from webhooks.models import COTWebhook, COTWebhookLog, now
from webhooks.store.deliveries import Blocked, Claim, Claimed, DeliveryStore, PendingDelivery
from webhooks.store.logs import LogStore


@dataclass(frozen=True, slots=True)
class Skipped:
    """Result of `skip`."""

    #: The logs of skipped deliveries.
    logs: list[COTWebhookLog] = field(default_factory=list)
    #: Ids of deliveries that a worker is attempting.
    busy: list[str] = field(default_factory=list)
    #: Ids of deliveries that cannot be logged, and why; they stay pending.
    broken: dict[str, str] = field(default_factory=dict)


def skip(
    pending: Sequence[PendingDelivery], webhook: COTWebhook | None, ledger: DeliveryStore, logs: LogStore
) -> Skipped:
    """Skip deliveries; those that have ended or changed since they were read are ignored.

    Args:
        pending: at least one; all of one webhook.
        webhook: None when it is gone or unusable.
        ledger: where the deliveries are pending.
        logs: where they are logged.

    Raises:
        StoreUnavailable: MongoDB is away. Some may be skipped; those are logged.
    """
    done = Skipped()
    records: list[COTWebhookLog] = []
    ended: dict[str, COTWebhookLog] = {}
    claims = {one.delivery_id: Claim(one.delivery_id, one.retry, ObjectId()) for one in pending}
    for claim, result in zip(claims.values(), ledger.claim(list(claims.values())), strict=True):
        if isinstance(result, Blocked):
            done.busy.append(claim.delivery_id)
        elif isinstance(result, Exception):
            done.broken[claim.delivery_id] = str(result)
        elif isinstance(result, Claimed):
            try:
                before, is_made = _describe_interrupted(result, webhook, claim, logs)
                made = describe_skipped(result.delivery, webhook, claim, now())
            except ValueError:
                done.broken[claim.delivery_id] = "its body holds no event; it was changed by hand"
                continue
            records += before
            if is_made is None:
                records.append(made)
            else:
                ended[claim.delivery_id] = is_made
    # The logs first, so that no delivery leaves the ledger without one.
    faults = {records[place].id for place in logs.write(records)} if records else set()
    for record in records:
        if record.details.error_kind is not ErrorKind.SKIPPED:
            continue
        if record.id in faults:
            done.broken[record.details.delivery_id] = "MongoDB cannot store its log"
        else:
            done.logs.append(record)
    # An attempt that was made settles by its own claim; a broken delivery stays pending.
    ledger.release(claims[delivery_id] for delivery_id in (*ended, *done.broken))
    ledger.settle([*ended.values(), *done.logs])
    return done


def _describe_interrupted(
    claimed: Claimed, webhook: COTWebhook | None, claim: Claim, logs: LogStore
) -> tuple[list[COTWebhookLog], COTWebhookLog | None]:
    """Find the interrupted attempts of a delivery.

    Returns:
        New logs of those without a log. The stored log of the claimed attempt, if it was made after all.
    """
    found = [(old, logs.find_ended_attempt(old.log_id)) for old in claimed.interrupted]
    missing = [describe_interrupted(claimed.delivery, webhook, old, now()) for old, log in found if log is None]
    made = [log for old, log in found if log is not None and old.retry == claim.retry]
    return missing, made[-1] if made else None
