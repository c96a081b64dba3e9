"""Fan an event out to deliveries, prepare an attempt's request, and turn its answer into a log."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from webhooks.errors import ErrorKind, SecretUnreadable, TooLate, trace
from webhooks.models import (
    NO_RESPONSE_STATUS,
    AttemptDetails,
    COTEvent,
    COTWebhook,
    COTWebhookLog,
    UnusableWebhook,
    describe_event,
    now,
)
from webhooks.models.ids import make_delivery_id, wire_id
from webhooks.rules.encryption import Use, Vault
from webhooks.rules.hints import hint
from webhooks.rules.matching import match
from webhooks.rules.retry import Outcome, RetryPolicy, ends_webhook, judge, next_delay_s, why_failed
from webhooks.rules.signing import sign
from webhooks.sender import Answer, OutgoingRequest, Sender, Timings
from webhooks.store.deliveries import Claim, Delivery, Interrupted
from webhooks.store.webhooks import WebhookStore
from webhooks.version import __version__

if TYPE_CHECKING:
    from webhooks.delivery.tracing import AttemptSpan, AttemptTracer

logger = logging.getLogger(__name__)

USER_AGENT = f"webhooks/{__version__}"


def plain_headers(delivery_id: str, started_at: datetime) -> dict[str, str]:
    """Return a request's headers that hold no secret, including those of Standard Webhooks."""
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": wire_id(delivery_id),
        "webhook-timestamp": str(int(started_at.timestamp())),
    }


def describe_input(arguments: Sequence[object]) -> str:
    """Describe the arguments of a ``webhooks.deliver`` task without payload; they are unchecked."""
    value = arguments[0] if len(arguments) == 1 else None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        return "not an event"
    kind, name, company = (_short(value.get(key)) for key in ("type", "event", "company"))
    return f"{kind} {name}, company {company}"


def _short(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 24 and value.isalnum() else "?"


def summarize(log: COTWebhookLog) -> str:
    """Describe an attempt in one line, without payload or response body. Flower shows it as the task's result."""
    attempt = log.details
    came_back = log.response if attempt.error_kind else f"{log.status} {_phrase(log.status)}".strip()
    took = "" if attempt.total_ms is None else f" in {attempt.total_ms:.0f} ms"
    line = f"{came_back}{took}, {'probe at ' if attempt.probe else ''}retry {log.retry}"
    if attempt.next_at is not None:
        line += f", next at {attempt.next_at:%H:%M:%S}Z"
    elif attempt.kept:
        line += ", was the last; held until an operator decides"
    elif attempt.outcome == Outcome.FAILED:
        line += ", was the last"
    setting = hint(attempt.error_kind)
    return f"{line}; {setting}" if setting else line


@cache
def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def read_rate(webhook: COTWebhook | None) -> tuple[float, int] | None:
    """Return a webhook's attempts per second and burst; None for no limit."""
    if webhook is None or webhook.rate_limit is None:
        return None
    return webhook.rate_limit, webhook.rate_burst


def label_delivery(kind: str, webhook: COTWebhook) -> str:
    """Say which event goes to which webhook, for people.

    Args:
        kind: as `describe_event` says it.
        webhook: which.
    """
    return f"{kind} → {webhook.label} ({webhook.origin})"


def fan_out(event: COTEvent, event_id: str, webhooks: WebhookStore, traceparent: str | None = None) -> list[Delivery]:
    """Return one delivery for each webhook that matches the event.

    An unusable webhook gets one too: its only attempt logs the reason.

    Args:
        event: what happened.
        event_id: of its message.
        webhooks: where to find them.
        traceparent: `Delivery.traceparent`.

    Raises:
        StoreUnavailable: the webhooks cannot be read now.
    """
    body, kind = event.to_json(), describe_event(event)
    usable = match(event, webhooks.of_company(event.company))
    unusable = match(event, webhooks.unusable_of_company(event.company))

    def make(webhook: COTWebhook | UnusableWebhook, label: str, **fields: Any) -> Delivery:
        return Delivery(
            delivery_id=make_delivery_id(event_id, webhook.id),
            event_id=event_id,
            webhook_id=webhook.id,
            company=event.company,
            label=label,
            body=body,
            traceparent=traceparent,
            **fields,
        )

    return [
        *(make(one, label_delivery(kind, one), is_ordered=one.ordered, rate=read_rate(one)) for one in usable),
        *(make(one, f"{kind} → {one.label} (cannot be used)", unusable=one.reason) for one in unusable),
    ]


class AttemptRunner:
    """Makes attempts; one per worker process."""

    def __init__(
        self,
        *,
        sender: Sender,
        policy: RetryPolicy,
        vault: Vault,
        probe_interval_s: float = 0,
        tracer: "AttemptTracer | None" = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        #: What sends the requests that `prepare` makes.
        self.sender = sender
        self._tracer = tracer
        self._probe_interval_s = probe_interval_s
        self._policy = policy
        self._vault = vault
        self._clock = clock

    def attempt(
        self,
        delivery: Delivery,
        webhook: COTWebhook | None,
        claim: Claim,
        *,
        is_probe: bool = False,
        event: COTEvent | None = None,
    ) -> COTWebhookLog:
        """Make one attempt and return its log, which is not stored yet; the arguments are those of `prepare`.

        Raises:
            TooLate: the claim was too old, and no request was made.
        """
        prepared = self.prepare(delivery, webhook, claim, event, is_probe=is_probe)
        request = prepared.request
        log = self.conclude(prepared, request if isinstance(request, Answer) else self._send(request))
        if prepared.span is not None:
            prepared.span.end(log)
        return log

    def prepare(
        self,
        delivery: Delivery,
        webhook: COTWebhook | None,
        claim: Claim,
        event: COTEvent | None,
        *,
        is_probe: bool = False,
    ) -> "PreparedAttempt":
        """Prepare an attempt up to its request.

        Args:
            delivery: what to send.
            webhook: None when it is gone or unusable.
            claim: the claim on this attempt.
            event: the parsed body of the delivery; None to parse it here.
            is_probe: whether it probes a paused endpoint; a probe uses up no retry.

        Raises:
            ValueError: the delivery's body holds no event.
        """
        # First: a body that cannot be logged must not be sent.
        event = event or read_event(delivery)
        webhook = _own(delivery, webhook)
        started_at = self._clock()
        # Without an active webhook there is nothing to probe.
        is_probe = is_probe and webhook is not None and webhook.isActive
        request = self._make_request(webhook, delivery, claim, started_at, is_first=not claim.retry and not is_probe)
        span = None
        if self._tracer is not None and webhook is not None and isinstance(request, OutgoingRequest):
            # Before the request, as the receiver may get the span's id.
            span = self._tracer.start(delivery, webhook, claim.retry, started_at)
            if span is not None and span.traceparent is not None and webhook.traced:
                request = replace(request, headers={**request.headers, "traceparent": span.traceparent})
        return PreparedAttempt(delivery, event, webhook, claim, started_at, is_probe, request, span)

    def conclude(self, prepared: "PreparedAttempt", answer: Answer) -> COTWebhookLog:
        """Judge an answer and return the attempt's log, which is not stored yet."""
        claim, webhook, is_probe = prepared.claim, prepared.webhook, prepared.is_probe
        if answer.defect is not None:
            logger.error("attempt of %s failed by a defect: %s", prepared.delivery.delivery_id, trace(answer.defect))
        outcome = judge(answer.status)
        next_s = next_delay_s(outcome, claim.retry, self._policy, answer.retry_after_s)
        if is_probe and outcome is Outcome.FAILED:
            next_s = max(self._probe_interval_s, self._bound(answer.retry_after_s) or 0)
        # No retry after the webhook was deactivated, or was unusable when the event was accepted. One that became
        # unusable later may be repaired in time.
        is_retired = (
            answer.error_kind is ErrorKind.WEBHOOK_INACTIVE
            or ends_webhook(answer.status)
            or (answer.error_kind is ErrorKind.WEBHOOK_UNUSABLE and prepared.delivery.unusable is not None)
        )
        is_used_up = outcome is Outcome.FAILED and next_s is None and not is_retired
        ended_at = self._clock()
        made = _Made(
            started_at=prepared.started_at,
            ended_at=ended_at,
            next_at=None if next_s is None or is_retired else ended_at + timedelta(seconds=next_s),
            retry_after_s=self._bound(answer.retry_after_s),
            probe=is_probe,
            kept=is_used_up and webhook is not None and webhook.ordered and webhook.on_exhausted == "stop",
        )
        return _make_log(prepared.delivery, prepared.event, webhook, claim, answer, made, prepared.span)

    def _bound(self, retry_after_s: float | None) -> float | None:
        """Limit ``Retry-After`` to what the settings allow."""
        return None if retry_after_s is None else min(retry_after_s, self._policy.max_retry_after_s)

    def _make_request(
        self, webhook: COTWebhook | None, delivery: Delivery, claim: Claim, started_at: datetime, *, is_first: bool
    ) -> OutgoingRequest | Answer:
        """Return the request, or the answer that says why none is sent."""
        if webhook is None:
            reason = delivery.unusable
            text = "webhook was removed or made unusable" if reason is None else f"webhook cannot be used: {reason}"
            return _not_sent(ErrorKind.WEBHOOK_UNUSABLE, text)
        if not webhook.isActive:
            return _not_sent(ErrorKind.WEBHOOK_INACTIVE, "webhook was deactivated before this attempt")
        body = delivery.body.encode()
        try:
            headers = self._make_headers(webhook, delivery.delivery_id, body, started_at)
        except SecretUnreadable as error:
            webhook_id = delivery.webhook_id
            logger.error("attempt of %s failed: a secret of webhook %s: %s", delivery.delivery_id, webhook_id, error)  # noqa: TRY400
            return _not_sent(ErrorKind.SECRET_UNREADABLE, "not sent: a secret of the webhook cannot be used")
        except Exception as error:  # noqa: BLE001 - see `_internal_error`
            return _internal_error(error)
        # A connection younger than this was opened after the previous attempt failed.
        oldest_s = None if is_first else self._policy.delay_s
        return OutgoingRequest(webhook.url, headers, body, oldest_s, claim.begin_by)

    def _send(self, request: OutgoingRequest) -> Answer:
        """Send a request; a defect of ours becomes an answer too."""
        begun = time.monotonic()
        try:
            return self.sender.post(
                request.url,
                request.headers,
                request.body,
                max_connection_age_s=request.max_connection_age_s,
                begin_by=request.begin_by,
            )
        except TooLate:
            raise
        except Exception as error:  # noqa: BLE001 - see `_internal_error`
            return _internal_error(error, (time.monotonic() - begun) * 1000)

    def _make_headers(self, webhook: COTWebhook, delivery_id: str, body: bytes, started_at: datetime) -> dict[str, str]:
        """Return a request's headers.

        Raises:
            SecretUnreadable: a secret cannot be opened or all have expired; nothing may be sent without them.
        """
        headers = plain_headers(delivery_id, started_at)
        if webhook.secrets:
            valid = [s for s in webhook.secrets if s.is_valid_at(started_at)]
            if not valid:
                raise SecretUnreadable("all have expired")
            secrets = [self._vault.open(secret.sealed, webhook.id, Use.SIGN) for secret in valid]
            headers["webhook-signature"] = sign(secrets, wire_id(delivery_id), int(started_at.timestamp()), body)
        for header in webhook.headers:
            headers[header.name] = header.value or self._vault.open(header.sealed or "", webhook.id, Use.HEADER)
        return headers


@dataclass(frozen=True, slots=True)
class PreparedAttempt:
    """An attempt up to its request."""

    delivery: Delivery
    event: COTEvent
    #: None when it is gone or unusable.
    webhook: COTWebhook | None
    claim: Claim
    started_at: datetime
    is_probe: bool
    #: The request, or the answer that says why none is sent.
    request: OutgoingRequest | Answer
    #: None: there is no request, or this worker makes no spans. The caller of `AttemptRunner.conclude` ends it.
    span: "AttemptSpan | None" = None


def _own(delivery: Delivery, webhook: COTWebhook | None) -> COTWebhook | None:
    """Return the webhook, or None if it now belongs to another company: that one must not get this event."""
    return webhook if webhook is not None and webhook.company == delivery.company else None


def read_event(delivery: Delivery) -> COTEvent:
    """Parse a delivery's body.

    Raises:
        ValueError: the body holds no event; it was changed by hand.
    """
    return COTEvent.model_validate(json.loads(delivery.body))


@dataclass(frozen=True, slots=True)
class _Made:
    """Times and consequences of an attempt, as in its log's details."""

    started_at: datetime
    ended_at: datetime
    next_at: datetime | None
    retry_after_s: float | None = None
    probe: bool = False
    kept: bool = False


def describe_interrupted(
    delivery: Delivery, webhook: COTWebhook | None, interrupted: Interrupted, at: datetime
) -> COTWebhookLog:
    """Return the log of an attempt whose worker died before it could write one.

    Raises:
        ValueError: the delivery's body holds no event.
    """
    text = "interrupted: the worker died before the end was on record; the receiver may have got it"
    answer, made = _not_sent(ErrorKind.INTERRUPTED, text), _Made(interrupted.started_at, at, at)
    return _make_log(delivery, read_event(delivery), _own(delivery, webhook), interrupted, answer, made)


def describe_skipped(delivery: Delivery, webhook: COTWebhook | None, claim: Claim, at: datetime) -> COTWebhookLog:
    """Return the log of a delivery that an operator skips.

    Raises:
        ValueError: the delivery's body holds no event.
    """
    answer, made = _not_sent(ErrorKind.SKIPPED, "skipped by an operator"), _Made(at, at, None)
    return _make_log(delivery, read_event(delivery), _own(delivery, webhook), claim, answer, made)


def _make_log(
    delivery: Delivery,
    event: COTEvent,
    webhook: COTWebhook | None,
    asked: Claim | Interrupted,
    answer: Answer,
    made: _Made,
    span: "AttemptSpan | None" = None,
) -> COTWebhookLog:
    timings = answer.timings
    return COTWebhookLog.make(
        log_id=asked.log_id,
        created_at=made.ended_at,
        status=NO_RESPONSE_STATUS if answer.status is None else answer.status,
        retry=asked.retry,
        response=answer.text,
        event=event,
        webhook_id=delivery.webhook_id,
        attempt=AttemptDetails(
            delivery_id=delivery.delivery_id,
            event_id=delivery.event_id,
            outcome=judge(answer.status).value,
            error_kind=answer.error_kind,
            reason=None if answer.status is None else why_failed(answer.status),
            webhook=webhook.label if webhook else str(delivery.webhook_id),
            origin=webhook.origin if webhook else "",
            peer=answer.peer,
            started_at=made.started_at,
            next_at=made.next_at,
            response_cut=answer.cut,
            worker=asked.worker,
            retry_after_s=made.retry_after_s,
            probe=made.probe,
            kept=made.kept,
            lookup_ms=timings.lookup_ms,
            connect_ms=timings.connect_ms,
            tls_ms=timings.tls_ms,
            send_ms=timings.send_ms,
            wait_ms=timings.wait_ms,
            read_ms=timings.read_ms,
            total_ms=None if isinstance(asked, Interrupted) else timings.total_ms,
            trace_id=span and span.trace_id,
            span_id=span and span.span_id,
        ),
    )


def _not_sent(kind: ErrorKind, text: str, total_ms: float = 0.0) -> Answer:
    timings = Timings(
        lookup_ms=None, connect_ms=None, tls_ms=None, send_ms=None, wait_ms=None, read_ms=None, total_ms=total_ms
    )
    return Answer(status=None, text=text, error_kind=kind, cut=False, peer=None, timings=timings)


def _internal_error(error: Exception, total_ms: float = 0.0) -> Answer:
    """Return the answer for a defect of ours: a failed attempt, so that the delivery is neither lost nor endless."""
    answer = _not_sent(ErrorKind.INTERNAL, f"internal error: {type(error).__name__}", total_ms)
    return replace(answer, defect=error)
