"""COTWebhookLog: the record of one attempt."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from webhooks.errors import ErrorKind
from webhooks.models.event import COTEvent
from webhooks.models.wire import Id, Instant, WireModel, to_wire

#: Logged when no response came (contract). `AttemptDetails.error_kind` tells it from a receiver's own 409.
NO_RESPONSE_STATUS = 409


#: Fields about the inside of the installation.
_NOT_FOR_COMPANY = {"worker", "trace_id", "span_id"}


class AttemptDetails(BaseModel):
    """How the attempt went: the one sub-document that this project adds to a log."""

    # JSON has no NaN.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    #: Shared by all attempts of a delivery; sent as ``webhook-id``.
    delivery_id: str
    #: Shared by all webhooks that matched: the id of the event's ``webhooks.deliver`` message.
    event_id: str
    outcome: Literal["success", "failed"]
    #: Why no response came; None if one did.
    error_kind: ErrorKind | None = None
    #: Why a response counts as failed, as text.
    reason: str | None = None
    #: The webhook's code at that time, and scheme, host and port of its URL.
    webhook: str
    origin: str
    #: ``ip:port`` of the connection; None if there was none.
    peer: str | None = None
    started_at: Instant
    #: When the next attempt is due; None after the last.
    next_at: Instant | None = None
    #: None: the phase did not take place, as on a reused connection.
    lookup_ms: float | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None
    send_ms: float | None = None
    wait_ms: float | None = None
    read_ms: float | None = None
    #: None: unknown, because the attempt was interrupted.
    total_ms: float | None
    #: Whether the receiver sent more than `response` holds.
    response_cut: bool = False
    #: Whether `data`, `extraData` and `diff` were left out because the log was too large for MongoDB.
    event_cut: bool = False
    #: Celery's node name.
    worker: str | None = None
    #: The wait that the receiver asked for, bounded by the settings; None: it asked for none.
    retry_after_s: float | None = None
    #: Whether it probed a paused endpoint, which uses no retry.
    probe: bool = False
    #: Whether the delivery is held for an operator because its retries are used up.
    kept: bool = False
    #: Of OpenTelemetry's span of the attempt, in hex; None: none is recorded.
    trace_id: str | None = None
    span_id: str | None = None

    def to_bson(self) -> dict[str, Any]:
        """Return the details as MongoDB stores them; as `model_dump`, whose checks of each value take longer."""
        return dict(self.__dict__)


class COTWebhookLog(WireModel):
    """One attempt's record (contract), with `attempt` after the contract's keys."""

    id: Id = Field(alias="_id")
    company: Id
    #: When the attempt ended.
    createdAt: Instant  # noqa: N815 - the contract's name
    status: int
    #: The attempt's number, from 0.
    retry: int = Field(ge=0)
    response: str
    event: COTEvent
    #: The webhook's id.
    subscription: Id
    #: None only in another system's log.
    attempt: AttemptDetails | None = None

    def to_bson(self) -> dict[str, Any]:
        """Return the log as MongoDB stores it."""
        if not super().to_wire():  # made by `make`
            return self._arrange(self.event.to_bson(), self.details.to_bson())
        stored = super().to_bson()
        if self.attempt is not None:
            stored["attempt"] = self.attempt.to_bson()
        return stored

    def _arrange(self, event: dict[str, Any], attempt: dict[str, Any]) -> dict[str, Any]:
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
        """The attempt's details; raises ValueError for a log of another system."""
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
        """Make a log of validated parts. Validating them again took as long as sending the request."""
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

    def for_company(self) -> dict[str, Any]:
        """Return the log as its company may read it: other systems' keys, worker and trace are left out."""
        shown = self._arrange(self.event.to_wire(), {})
        if self.attempt is None:
            del shown["attempt"]
        else:
            shown["attempt"] = self.attempt.model_dump(exclude=_NOT_FOR_COMPANY)
        return shown

    def to_wire(self) -> dict[str, Any]:
        """Return the log as JSON holds it; not to be changed."""
        if not super().to_wire():  # made by `make`
            self._wire = to_wire(self._arrange(self.event.to_wire(), self.details.model_dump()))
        return super().to_wire()
