"""The step from messages of attempts to attempts that are ours to make."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from webhooks.delivery.attempt import describe_interrupted, read_rate, summarize
from webhooks.delivery.holding import hold, requeue
from webhooks.delivery.outcomes import Done, Failed, Postponed, SendOutcome, ToAttempt
from webhooks.delivery.record import store_log
from webhooks.delivery.records import Held, PostponedClaim
from webhooks.delivery.services import Services
from webhooks.errors import StoreUnavailable, TooLate, WorkersLost
from webhooks.models import COTWebhook, COTWebhookLog, now
from webhooks.rules.lanes import SEND_QUEUE
from webhooks.store.deliveries import Blocked, Claim, Claimed
from webhooks.transport.settlements import hold_lane, limit_lane

logger = logging.getLogger(__name__)

#: Attempts of a delivery that may be interrupted in a row. Whatever else a dying worker had in its hands is interrupted
#: as well, so it is more than it takes to suspect one delivery, and each costs no more than a worker's restart.
_MAX_INTERRUPTED = 10


def claim_all(services: Services, claims: Sequence[Claim]) -> list[SendOutcome | ToAttempt]:
    """Claim attempts.

    Returns:
        For each claim the delivery to attempt, or what became of its message.

    Raises:
        StoreUnavailable: MongoDB is away; the step can be repeated.
    """
    try:
        found = services.records.claim(claims)
        theirs = [one.delivery for one in found if isinstance(one, Claimed | PostponedClaim)]
        lanes = {delivery.webhook_id: delivery.lane for delivery in theirs}
        webhooks = services.webhooks.get_many(lanes.keys()) if lanes else {}
        # Here, as webhooks were read just now: an attempt that ends, or a message, may know an older limit.
        for webhook_id, lane in lanes.items():
            limit_lane(SEND_QUEUE, lane, read_rate(webhooks.get(webhook_id)))
        return [_judge(services, claim, one, webhooks) for claim, one in zip(claims, found, strict=True)]
    except BaseException:
        for claim in claims:
            services.deliveries.give_up(claim)
        raise


def _judge(
    services: Services,
    claim: Claim,
    found: Claimed | Blocked | Held | PostponedClaim | Exception | None,
    webhooks: dict,
) -> SendOutcome | ToAttempt:
    if isinstance(found, Claimed) and (webhook := webhooks.get(found.delivery.webhook_id)) and webhook.ordered:
        found = services.records.keep_unless_head(found) or found
    match found:
        case None:
            return Done("nothing is owed any more")
        case Held():
            return Done(f"kept: {found.reason}")
        case PostponedClaim():
            lane = found.delivery.lane
            hold_lane(SEND_QUEUE, lane, found.seconds)
            text = f"its receiver asked us to wait; tried again in {found.seconds:.1f} s"
            rate = read_rate(webhooks.get(found.delivery.webhook_id))
            return Postponed(text, found.seconds, found.delivery.label, lane, rate)
        case Blocked():
            # Either a second message of the same attempt, or the worker that held it was killed. When its claim or its
            # lease has run out the ledger knows which.
            text = f"another worker is at it; looked at again in {found.again_s:.1f} s"
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
        hold(lambda: services.deliveries.release([claim]))  # what is owed next is for the log's own claim to say
        store_log(made_before)
        logger.info("attempt of %s was made before: %s", claim.delivery_id, summarize(made_before))
        return Done(f"was made before: {summarize(made_before)}")
    return ToAttempt(found.delivery, claim, webhook, is_probe=found.is_probe)


def give_back(services: Services, claim: Claim, error: TooLate) -> Failed:
    """Give up a claim that was too old for its request to be made, and have the message come again."""
    services.deliveries.give_up(claim)
    return requeue(error)


def release(services: Services, claims: Sequence[Claim]) -> None:
    """Undo claims that were given up now, if MongoDB is there; else it is told with the next claims."""
    with suppress(StoreUnavailable):
        services.deliveries.release(claims)


def _log_interrupted(
    services: Services, claim: Claim, claimed: Claimed, webhook: COTWebhook | None
) -> COTWebhookLog | None:
    """Log the attempts of this delivery that others could not log.

    Returns:
        The log of the attempt that was claimed, if it was made and logged after all: its worker died between the log
        and the ledger.

    Raises:
        WorkersLost: there were too many in a row.
    """
    for interrupted in claimed.interrupted:
        log = hold(lambda log_id=interrupted.log_id: services.logs.find_ended_attempt(log_id))
        if log is None:
            store_log(describe_interrupted(claimed.delivery, webhook, interrupted, now()))
        elif interrupted.retry == claim.retry:
            return log
    if len(claimed.interrupted) >= _MAX_INTERRUPTED:
        raise WorkersLost(f"{_MAX_INTERRUPTED} attempts in a row were interrupted: workers die of it")
    return None
