"""Outcomes of messages: values that batch steps return and task bodies translate for Celery."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from webhooks.models import COTEvent, COTWebhook, COTWebhookLog
from webhooks.store.deliveries import Claim, Delivery

if TYPE_CHECKING:
    from webhooks.delivery.tracing import AttemptSpan


@dataclass(frozen=True, slots=True)
class Done:
    """The message is finished."""

    #: The task's result in Flower. Holds no payload.
    text: str


@dataclass(frozen=True, slots=True)
class Postponed:
    """The attempt is not due; the message is queued again for the same attempt."""

    text: str
    seconds: float
    #: As in `queueing.queue_attempt`; None to use those of the message.
    label: str | None = None
    lane: str | None = None
    rate: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The task raises this error: an invalid event, a defect, or `Requeue`."""

    error: Exception


@dataclass(frozen=True, slots=True, eq=False)
class ToAttempt:
    """A claimed delivery to attempt now."""

    delivery: Delivery
    claim: Claim
    #: None when it is gone or unusable.
    webhook: COTWebhook | None
    #: The parsed body of the delivery; None where it is not parsed yet.
    event: COTEvent | None = None
    #: Whether it probes a paused endpoint; a probe uses up no retry.
    is_probe: bool = False
    #: When the delivery was stored, by MongoDB's clock; None if that is not known.
    accepted_at: datetime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Attempted:
    """An attempt was made; its log is not stored yet."""

    attempt: ToAttempt
    log: COTWebhookLog
    #: Ends when the log is stored; None: there is none, or it has ended.
    span: "AttemptSpan | None" = None


#: Outcomes of ``webhooks.deliver`` and of ``webhooks.send`` messages.
DeliverOutcome = Done | Failed
SendOutcome = Done | Postponed | Failed | Attempted
