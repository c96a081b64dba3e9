"""Claim the attempts that messages ask for, and log interrupted ones."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from webhooks.delivery.attempt import describe_interrupted, read_rate, summarize
from webhooks.delivery.holding import hold, requeue
from webhooks.delivery.meters import meters
from webhooks.delivery.outcomes import Done, Failed, Postponed, SendOutcome, ToAttempt
from webhooks.delivery.record import store_log
from webhooks.delivery.records import ClaimResult, Held, PostponedClaim
from webhooks.delivery.services import Services
from webhooks.errors import StoreUnavailable, TooLate, WorkersLost
from webhooks.models import COTWebhook, COTWebhookLog, now
from webhooks.rules.lanes import SEND_QUEUE
from webhooks.store.deliveries import Blocked, Claim, Claimed
from webhooks.transport.settlements import hold_lane, limit_lane

logger = logging.getLogger(__name__)

#: Interrupted attempts in a row after which a delivery is quarantined. A dying worker interrupts all its attempts, so a
#: few interruptions do not prove that this delivery is the cause.
_MAX_INTERRUPTED = 10


def claim_all(services: Services, claims: Sequence[Claim]) -> list[SendOutcome | ToAttempt]:
    """Claim attempts; return for each claim the delivery to attempt, or the outcome of its message.

    Raises:
        StoreUnavailable: MongoDB is away; the step can be repeated.
    """
    try:
        found = services.records.claim(claims)
        theirs = [one.delivery for one in found if isinstance(one, Claimed | PostponedClaim)]
        lanes = {delivery.webhook_id: delivery.lane for delivery in theirs}
        webhooks = services.webhooks.get_many(lanes.keys()) if lanes else {}
        # The webhooks were just read. Messages may carry an older rate limit.
        for webhook_id, lane in lanes.items():
            limit_lane(SEND_QUEUE, lane, read_rate(webhooks.get(webhook_id)))
        return [_judge(services, claim, one, webhooks) for claim, one in zip(claims, found, strict=True)]
    except BaseException:
        for claim in claims:
            services.deliveries.give_up(claim)
        raise


def _judge(services: Services, claim: Claim, found: ClaimResult, webhooks: dict) -> SendOutcome | ToAttempt:
    if isinstance(found, Claimed) and (webhook := webhooks.get(found.delivery.webhook_id)) and webhook.ordered:
        found = services.records.hold_unless_head(found) or found
    match found:
        case None:
            return Done("nothing is pending")
        case Held():
            return Done(f"held: {found.reason}")
        case PostponedClaim():
            lane = found.delivery.lane
            hold_lane(SEND_QUEUE, lane, found.seconds)
            text = f"the receiver sent Retry-After; next try in {found.seconds:.1f} s"
            rate = read_rate(webhooks.get(found.delivery.webhook_id))
            return Postponed(text, found.seconds, found.delivery.label, lane, rate)
        case Blocked():
            # The message is a duplicate, or the claiming worker was killed: its claim or lease tells when it runs out.
            text = f"another worker has claimed it; checked again in {found.again_s:.1f} s"
            return Postponed(text, found.again_s)
        case Exception():
            services.deliveries.give_up(claim)
            return Failed(found)
    services.progress.taken_due_at = found.due_at or services.progress.taken_due_at
    webhook = webhooks.get(found.delivery.webhook_id)
    try:
        made_before = _log_interrupted(services, claim, found, webhook)
    except WorkersLost as error:
        services.deliveries.give_up(claim)
        return Failed(error)
    if made_before is not None:
        hold(lambda: services.deliveries.release([claim]))  # the log settles by its own claim
        store_log(made_before)
        logger.info("attempt of %s was made before: %s", claim.delivery_id, summarize(made_before))
        return Done(f"was made before: {summarize(made_before)}")
    return ToAttempt(found.delivery, claim, webhook, is_probe=found.is_probe, accepted_at=found.created_at)


def give_back(services: Services, claim: Claim, error: TooLate) -> Failed:
    """Give up a claim that was too old for its request, and requeue the message."""
    services.deliveries.give_up(claim)
    return requeue(error)


def release(services: Services, claims: Sequence[Claim]) -> None:
    """Undo claims that were given up. While MongoDB is away, the next `DeliveryStore.claim` does it."""
    with suppress(StoreUnavailable):
        services.deliveries.release(claims)


def _log_interrupted(
    services: Services, claim: Claim, claimed: Claimed, webhook: COTWebhook | None
) -> COTWebhookLog | None:
    """Log the interrupted attempts of a delivery.

    Returns:
        The log of the claimed attempt, if its worker stored one and died before it updated the ledger.

    Raises:
        WorkersLost: too many attempts in a row were interrupted.
    """
    for interrupted in claimed.interrupted:
        log = hold(lambda log_id=interrupted.log_id: services.logs.find_ended_attempt(log_id))
        if log is None:
            log = describe_interrupted(claimed.delivery, webhook, interrupted, now())
            meters.count_attempts([(log, None)], None)
            store_log(log)
        elif interrupted.retry == claim.retry:
            return log
    if len(claimed.interrupted) >= _MAX_INTERRUPTED:
        raise WorkersLost(f"{_MAX_INTERRUPTED} attempts in a row were interrupted: workers die of it")
    return None
