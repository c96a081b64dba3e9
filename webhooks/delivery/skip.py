"""Giving deliveries up as an operator wants it: claimed as a worker does, and on record before they are forgotten.

Never decides which deliveries, and never lets another one out: the steward sees a line that stands still. Called by
`cli`.
"""

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
    """What became of deliveries that were to be given up."""

    #: The record of each that is owed no more.
    logs: list[COTWebhookLog] = field(default_factory=list)
    #: Ids of those that somebody else is attempting.
    busy: list[str] = field(default_factory=list)
    #: Ids of those that cannot be put on record, and why; they are owed as before.
    broken: dict[str, str] = field(default_factory=dict)


def skip(owed: Sequence[PendingDelivery], webhook: COTWebhook | None, ledger: DeliveryStore, logs: LogStore) -> Skipped:
    """Give deliveries up; one that has ended or gone on meanwhile is passed over.

    Args:
        owed: at least one; all of one webhook, as they were read.
        webhook: theirs; None when there is no usable one any more.
        ledger: where they are owed.
        logs: where they are put on record.

    Raises:
        StoreUnavailable: MongoDB cannot serve us now. Some may be given up, and those are on record.
    """
    done = Skipped()
    records: list[COTWebhookLog] = []
    ended: dict[str, COTWebhookLog] = {}
    claims = {one.delivery_id: Claim(one.delivery_id, one.retry, ObjectId()) for one in owed}
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
                done.broken[claim.delivery_id] = "somebody changed its event into none"
                continue
            records += before
            if is_made is None:
                records.append(made)
            else:
                ended[claim.delivery_id] = is_made
    # The records first: whatever is owed no more is on record.
    faults = {records[place].id for place in logs.write(records)} if records else set()
    for record in records:
        if record.details.error_kind is not ErrorKind.SKIPPED:
            continue
        if record.id in faults:
            done.broken[record.details.delivery_id] = "MongoDB cannot hold its record"
        else:
            done.logs.append(record)
    # What is owed after an attempt that was made is for its own claim to say; and what is broken is owed as before.
    ledger.release(claims[delivery_id] for delivery_id in (*ended, *done.broken))
    ledger.settle([*ended.values(), *done.logs])
    return done


def _describe_interrupted(
    claimed: Claimed, webhook: COTWebhook | None, claim: Claim, logs: LogStore
) -> tuple[list[COTWebhookLog], COTWebhookLog | None]:
    """Look for the attempts of a delivery of whose end the ledger does not know.

    Returns:
        The logs of those that nobody has logged. The log of the attempt that was claimed, if it was made after all.
    """
    found = [(old, logs.find_ended_attempt(old.log_id)) for old in claimed.interrupted]
    missing = [describe_interrupted(claimed.delivery, webhook, old, now()) for old, log in found if log is None]
    made = [log for old, log in found if log is not None and old.retry == claim.retry]
    return missing, made[-1] if made else None
