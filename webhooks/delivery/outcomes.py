"""What came of a message: values that the batch steps return, and that the task bodies say in Celery's words."""

from collections.abc import Sequence
from dataclasses import dataclass

from webhooks.models import COTEvent, COTWebhook, COTWebhookLog
from webhooks.store.deliveries import Claim, Delivery


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more is to be done for this message."""

    #: What Flower shows as the task's result. Holds no payload.
    text: str


@dataclass(frozen=True, slots=True)
class Postponed:
    """No attempt may be made now; the message is queued again, for the same attempt."""

    text: str
    seconds: float
    #: As for `queueing.queue_attempt`. None where the message itself has to say it.
    label: str | None = None
    lane: str | None = None
    rate: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The task raises this error: an invalid event, a defect, or a `Reject` that gives the message back."""

    error: Exception


@dataclass(frozen=True, slots=True, eq=False)
class ToAttempt:
    """A claimed delivery whose request is to be made now."""

    delivery: Delivery
    claim: Claim
    #: None where there is no usable one any more.
    webhook: COTWebhook | None
    #: What the delivery's body holds, where it has been read; None where it has not.
    event: COTEvent | None = None
    #: Whether it tries a paused endpoint, and uses up no retry.
    is_probe: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Attempted:
    """An attempt was made; its log is not written yet."""

    attempt: ToAttempt
    log: COTWebhookLog


#: Of a ``webhooks.deliver`` message, and of a ``webhooks.send`` message.
DeliverOutcome = Done | Failed
SendOutcome = Done | Postponed | Failed | Attempted
