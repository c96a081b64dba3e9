"""COTWebhookLog: one attempt."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from webhooks.errors import ErrorKind
from webhooks.models.event import COTEvent
from webhooks.models.wire import Id, Instant, WireModel, to_wire

#: The status that is logged where no response came (contract). `AttemptDetails.error_kind` tells it from a
#: receiver's own 409.
NO_RESPONSE_STATUS = 409


class AttemptDetails(BaseModel):
    """The one sub-document that this project adds to a log: how the attempt went, for whoever looks for the cause."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: The same on all attempts of a delivery; what the receiver gets as ``webhook-id``.
    delivery_id: str
    #: The same for all webhooks that got the event: the id of its ``webhooks.deliver`` message.
    event_id: str
    outcome: Literal["success", "failed"]
    #: Why no response came; None when one did.
    error_kind: ErrorKind | None = None
    #: Why a response counts as failed, in words; None on success.
    reason: str | None = None
    #: The webhook's code at that time, and scheme, host and port of its URL.
    webhook: str
    origin: str
    #: ``ip:port`` that was connected to; None when there was no connection.
    peer: str | None = None
    #: When the request was begun.
    started_at: Instant
    #: When the next attempt is due; None when this was the last.
    next_at: Instant | None = None
    #: Milliseconds per phase. None: it did not take place, as on a connection that was open already.
    lookup_ms: float | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None
    send_ms: float | None = None
    wait_ms: float | None = None
    read_ms: float | None = None
    #: None: the attempt was interrupted, so nobody knows.
    total_ms: float | None
    #: True when the receiver sent more than `response` holds.
    response_cut: bool = False
    #: True when the log could not be stored with the whole event, so that it lacks `data`, `extraData` and `diff`.
    event_cut: bool = False
    #: Which worker made the attempt: Celery's node name.
    worker: str | None = None
    #: Seconds that the receiver asked us to wait, as far as the settings let it; None: it did not.
    retry_after_s: float | None = None
    #: True when it was made to try a paused endpoint: it uses up no retry.
    probe: bool = False
    #: True when the retries are used up and the delivery waits for an operator, as its webhook wants it.
    kept: bool = False


class COTWebhookLog(WireModel):
    """One attempt's record (contract), with `attempt` behind the contract's keys."""

    id: Id = Field(alias="_id")
    company: Id
    #: When the attempt ended and its record was made.
    createdAt: Instant  # noqa: N815 - the contract's name
    status: int
    #: The attempt's number, from 0.
    retry: int = Field(ge=0)
    response: str
    event: COTEvent
    #: The webhook's id.
    subscription: Id
    #: None only in a log that another system wrote.
    attempt: AttemptDetails | None = None

    def to_bson(self) -> dict[str, Any]:
        """Return the log as MongoDB holds it."""
        if not self._wire:  # made by `make`
            return self._arrange(self.event.to_bson(), self.details.model_dump())
        stored = super().to_bson()
        if self.attempt is not None:
            stored["attempt"] = self.attempt.model_dump()
        return stored

    def _arrange(self, event: dict[str, Any], attempt: dict[str, Any]) -> dict[str, Any]:
        """Return the log's keys in the contract's order."""
        return {
            "_id": self.id,
            "company": self.company,
            "createdAt": self.createdAt,
            "status": self.status,
            "retry": self.retry,
            "response": self.response,
            "event": event,
            "subscription": self.subscription,
            "__v": 0,
            "attempt": attempt,
        }

    @property
    def details(self) -> AttemptDetails:
        """`attempt`, of a log that this package made.

        Raises:
            ValueError: another system made the log, and it has none.
        """
        if self.attempt is None:
            raise ValueError(f"log {self.id} has no details of its attempt")
        return self.attempt

    @classmethod
    def make(
        cls,
        *,
        log_id: Id,
        created_at: datetime,
        status: int,
        retry: int,
        response: str,
        event: COTEvent,
        webhook_id: Id,
        attempt: AttemptDetails,
    ) -> "COTWebhookLog":
        """Make a log of parts that were checked before.

        So they are not checked again: that cost as much as sending the request.
        """
        return cls.model_construct(
            id=log_id,
            company=event.company,
            createdAt=created_at,
            status=status,
            retry=retry,
            response=response,
            event=event,
            subscription=webhook_id,
            attempt=attempt,
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the log as JSON holds it. The caller must not change it."""
        if not self._wire:  # made by `make`; few logs are ever read as JSON
            self._wire = to_wire(self._arrange(self.event.to_wire(), self.details.model_dump()))
        return self._wire
