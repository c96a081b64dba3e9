"""The main path: an event becomes deliveries, a delivery is attempted, an attempt becomes a log.

    accepting  → fan_out            webhookstore → matching     one delivery per webhook that asked for the event
    pool       → prepare, sender    signing, vault              one request
    pool       → conclude           retry                       its answer, judged, as a log
    hooks      → recording → records  gates, logstore, ledger     all written before the attempt's message is acked

Owns what identifies a delivery, what is sent, and what an answer means. Never sees a socket, and never talks to Celery.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from http import HTTPStatus

from bson import ObjectId

from webhooks.errors import ErrorKind, SecretUnreadable, TooLate, trace
from webhooks.models import NO_RESPONSE_STATUS, AttemptDetails, COTEvent, COTWebhook, COTWebhookLog, describe_event, now
from webhooks.rules.encryption import Use, Vault
from webhooks.rules.hints import hint
from webhooks.rules.matching import match
from webhooks.rules.retry import Outcome, RetryPolicy, ends_webhook, judge, next_delay_s, why_failed
from webhooks.rules.signing import sign
from webhooks.sender import Answer, OutgoingRequest, Sender, Timings
from webhooks.store.deliveries import Claim, Delivery, Interrupted
from webhooks.store.webhooks import WebhookStore
from webhooks.version import __version__

logger = logging.getLogger(__name__)

USER_AGENT = f"webhooks/{__version__}"


def make_delivery_id(event_id: str, webhook_id: ObjectId) -> str:
    """Return the id of the delivery of an event to a webhook.

    It follows from those two alone, so that handling a message again makes no second delivery, and the receiver gets
    the same ``webhook-id`` as before. A hash, because it goes to strangers and Standard Webhooks allows no ``.`` in it.
    """
    digest = hashlib.sha256(f"{event_id}\0{webhook_id}".encode()).hexdigest()
    return f"msg_{digest[:32]}"


def plain_headers(delivery_id: str, started_at: datetime) -> dict[str, str]:
    """Return the headers of a request of which nothing is secret, those of Standard Webhooks among them.

    Args:
        delivery_id: of the delivery.
        started_at: when the attempt began.
    """
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(started_at.timestamp())),
    }


def describe_input(arguments: Sequence[object]) -> str:
    """Say in some words which event somebody handed in, whatever it is, without its payload.

    Args:
        arguments: of a ``webhooks.deliver`` task, unchecked: one dict or JSON text is right, all else possible.
    """
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
    """Say in one line what came of an attempt, without payload or response body: what Flower shows as result."""
    attempt = log.details
    came_back = log.response if attempt.error_kind else f"{log.status} {_phrase(log.status)}".strip()
    took = "" if attempt.total_ms is None else f" in {attempt.total_ms:.0f} ms"
    line = f"{came_back}{took}, {'probe at ' if attempt.probe else ''}retry {log.retry}"
    if attempt.next_at is not None:
        line += f", next at {attempt.next_at:%H:%M:%S}Z"
    elif attempt.kept:
        line += ", was the last; kept for an operator to decide"
    elif attempt.outcome == Outcome.FAILED:
        line += ", was the last"
    setting = hint(attempt.error_kind)
    return f"{line}; {setting}" if setting else line


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def read_rate(webhook: COTWebhook | None) -> tuple[float, int] | None:
    """Return a webhook's attempts per second with those in a burst; None where it has no limit."""
    if webhook is None or webhook.rate_limit is None:
        return None
    return webhook.rate_limit, webhook.rate_burst


def fan_out(event: COTEvent, event_id: str, webhooks: WebhookStore) -> list[Delivery]:
    """Find who asked for the event, and return one delivery for each; none is no error.

    A webhook that cannot be used gets one as well: its only attempt puts the reason on record.

    Raises:
        StoreUnavailable: the webhooks cannot be read now.
    """
    body, kind = event.to_json(), describe_event(event)
    usable = match(event, webhooks.of_company(event.company))
    unusable = match(event, webhooks.unusable_of_company(event.company))
    return [
        *(
            Delivery(
                delivery_id=make_delivery_id(event_id, webhook.id),
                event_id=event_id,
                webhook_id=webhook.id,
                company=event.company,
                label=f"{kind} → {webhook.label} ({webhook.origin})",
                body=body,
                is_ordered=webhook.ordered,
                rate=read_rate(webhook),
            )
            for webhook in usable
        ),
        *(
            Delivery(
                delivery_id=make_delivery_id(event_id, webhook.id),
                event_id=event_id,
                webhook_id=webhook.id,
                company=event.company,
                label=f"{kind} → {webhook.label} (cannot be used)",
                body=body,
                unusable=webhook.reason,
            )
            for webhook in unusable
        ),
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
        clock: Callable[[], datetime] = now,
    ) -> None:
        #: What sends the requests that `prepare` makes.
        self.sender = sender
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
        """Make one attempt of a delivery, start to finish, and return its log; the log is not written yet.

        The arguments are those of `prepare`.

        Raises:
            TooLate: the claim was too old for a request, and none was made.
        """
        prepared = self.prepare(delivery, webhook, claim, event, is_probe=is_probe)
        request = prepared.request
        return self.conclude(prepared, request if isinstance(request, Answer) else self._send(request))

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
            webhook: where to; None when there is no usable one any more.
            claim: on this attempt.
            event: what the delivery's body holds, where it has been read; None where it has not.
            is_probe: whether it is made to try a paused endpoint, and uses up no retry.

        Raises:
            ValueError: the delivery's body holds no event.
        """
        # First of all: a body that cannot be logged must not be sent.
        event = event or read_event(delivery)
        webhook = _own(delivery, webhook)
        started_at = self._clock()
        # Where there is no webhook to try, it is an attempt like any other.
        is_probe = is_probe and webhook is not None and webhook.isActive
        request = self._make_request(webhook, delivery, claim, started_at, is_first=not claim.retry and not is_probe)
        return PreparedAttempt(delivery, event, webhook, claim, started_at, is_probe, request)

    def conclude(self, prepared: "PreparedAttempt", answer: Answer) -> COTWebhookLog:
        """Judge an answer, and return the attempt's log; the log is not written yet."""
        claim, webhook, is_probe = prepared.claim, prepared.webhook, prepared.is_probe
        if answer.defect is not None:
            logger.error("attempt of %s failed by a defect: %s", prepared.delivery.delivery_id, trace(answer.defect))
        outcome = judge(answer.status)
        next_s = next_delay_s(outcome, claim.retry, self._policy, answer.retry_after_s)
        if is_probe and outcome is Outcome.FAILED:
            next_s = max(self._probe_interval_s, self._bound(answer.retry_after_s) or 0)
        # Retired for good, by an operator or by its receiver. A webhook that was changed or removed since the event was
        # accepted may be mended in time; one that could not be used even then is not waited for.
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
        return _make_log(prepared.delivery, prepared.event, webhook, claim, answer, made)

    def _bound(self, retry_after_s: float | None) -> float | None:
        """Return how long the receiver asked us to wait, as far as the settings let it."""
        return None if retry_after_s is None else min(retry_after_s, self._policy.max_retry_after_s)

    def _make_request(
        self, webhook: COTWebhook | None, delivery: Delivery, claim: Claim, started_at: datetime, *, is_first: bool
    ) -> OutgoingRequest | Answer:
        """Return what to send, or the answer that says why nothing is sent."""
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
        except Exception as error:  # noqa: BLE001 - see `_blame_us`
            return _blame_us(error)
        # A connection that is younger than this was opened after the attempt before had failed.
        oldest_s = None if is_first else self._policy.delay_s
        return OutgoingRequest(webhook.url, headers, body, oldest_s, claim.begin_by)

    def _send(self, request: OutgoingRequest) -> Answer:
        """Carry out a request; whatever goes wrong with us is an answer, too."""
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
        except Exception as error:  # noqa: BLE001 - see `_blame_us`
            return _blame_us(error, (time.monotonic() - begun) * 1000)

    def _make_headers(self, webhook: COTWebhook, delivery_id: str, body: bytes, started_at: datetime) -> dict[str, str]:
        """Return a request's headers.

        Raises:
            SecretUnreadable: a request must go out with its signatures and headers, or not at all.
        """
        headers = plain_headers(delivery_id, started_at)
        if webhook.secrets:
            valid = [s for s in webhook.secrets if s.is_valid_at(started_at)]
            if not valid:
                raise SecretUnreadable("all have expired")
            secrets = [self._vault.open(secret.sealed, webhook.id, Use.SIGN) for secret in valid]
            headers["webhook-signature"] = sign(secrets, delivery_id, int(started_at.timestamp()), body)
        for header in webhook.headers:
            headers[header.name] = header.value or self._vault.open(header.sealed or "", webhook.id, Use.HEADER)
        return headers


@dataclass(frozen=True, slots=True)
class PreparedAttempt:
    """An attempt up to its request."""

    delivery: Delivery
    event: COTEvent
    #: None when there is no usable one any more.
    webhook: COTWebhook | None
    claim: Claim
    started_at: datetime
    is_probe: bool
    #: What to send; or, where nothing is sent, the answer that says why.
    request: OutgoingRequest | Answer


def _own(delivery: Delivery, webhook: COTWebhook | None) -> COTWebhook | None:
    """Return the webhook, unless somebody has given it to another company since.

    The event is not that company's, nor are the webhook's name and address this one's any more.
    """
    return webhook if webhook is not None and webhook.company == delivery.company else None


def read_event(delivery: Delivery) -> COTEvent:
    """Read what a delivery's body holds.

    Raises:
        ValueError: somebody changed it into no event.
    """
    return COTEvent.model_validate(json.loads(delivery.body))


@dataclass(frozen=True, slots=True)
class _Made:
    """When an attempt was made, and what comes of it; as in its log's details."""

    started_at: datetime
    ended_at: datetime
    next_at: datetime | None
    retry_after_s: float | None = None
    probe: bool = False
    kept: bool = False


def describe_interrupted(
    delivery: Delivery, webhook: COTWebhook | None, interrupted: Interrupted, at: datetime
) -> COTWebhookLog:
    """Return the log of an attempt whose worker could not write it; it is repeated now.

    Raises:
        ValueError: the event is none.
    """
    text = "interrupted: the worker died before the end was on record; the receiver may have got it"
    answer, made = _not_sent(ErrorKind.INTERRUPTED, text), _Made(interrupted.started_at, at, at)
    return _make_log(delivery, read_event(delivery), _own(delivery, webhook), interrupted, answer, made)


def describe_skipped(delivery: Delivery, webhook: COTWebhook | None, claim: Claim, at: datetime) -> COTWebhookLog:
    """Return the log of a delivery that an operator gives up.

    Raises:
        ValueError: the event is none.
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
            total_ms=None if isinstance(asked, Interrupted) else timings.total_ms,  # nobody saw its end
        ),
    )


def _not_sent(kind: ErrorKind, text: str, total_ms: float = 0.0) -> Answer:
    timings = Timings(
        lookup_ms=None, connect_ms=None, tls_ms=None, send_ms=None, wait_ms=None, read_ms=None, total_ms=total_ms
    )
    return Answer(status=None, text=text, error_kind=kind, cut=False, peer=None, timings=timings)


def _blame_us(error: Exception, total_ms: float = 0.0) -> Answer:
    """Return the answer for a defect of ours.

    It must neither lose the delivery nor repeat it for ever: it counts as a failed attempt, which is on record and has
    its retries.
    """
    answer = _not_sent(ErrorKind.INTERNAL, f"internal error: {type(error).__name__}", total_ms)
    return replace(answer, defect=error)
