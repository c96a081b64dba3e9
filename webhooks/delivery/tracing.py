"""OpenTelemetry: a span per request, through the public API. Loaded only where `opentelemetry-api` is installed."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from webhooks.models import COTWebhook, COTWebhookLog
from webhooks.rules.retry import Outcome
from webhooks.sender.request import find_url
from webhooks.store.deliveries import Delivery
from webhooks.version import __version__

logger = logging.getLogger(__name__)

#: The version of the semantic conventions that name the attributes.
_SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
#: The ledger and receivers get W3C's form, whatever form the producer's propagator uses.
_W3C = TraceContextTextMapPropagator()
_HEADER = "traceparent"


class AttemptTracer:
    """Makes the spans of attempts. What an installation adds to the API may fail; no delivery does because of it."""

    def __init__(self) -> None:
        # A proxy until the installation sets a provider.
        self._tracer = trace.get_tracer("webhooks", __version__, schema_url=_SCHEMA_URL)

    def find_parent(self, headers: Mapping[str, Any]) -> str | None:
        """Return the trace context of an event's producer, as ``traceparent``.

        Args:
            headers: of the event's message; unchecked.

        Returns:
            None if the event is not traced or this worker makes no spans.
        """
        if not _has_provider():
            return None
        try:
            texts = {name: value for name, value in headers.items() if isinstance(value, str)}
            return _write(propagate.extract(texts, context.get_current()))
        except Exception as error:  # noqa: BLE001 - see the class
            return _warn(error)

    def start(self, delivery: Delivery, webhook: COTWebhook, retry: int, at: datetime) -> "AttemptSpan | None":
        """Start the span of an attempt; return None if this worker makes no spans."""
        if not _has_provider():
            return None
        try:
            return self._start(delivery, webhook, retry, at)
        except Exception as error:  # noqa: BLE001 - see the class
            return _warn(error)

    def _start(self, delivery: Delivery, webhook: COTWebhook, retry: int, at: datetime) -> "AttemptSpan | None":
        target = find_url(webhook.url)
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            # Without path and query, which may hold secrets.
            "url.full": webhook.origin,
            "server.address": target.host,
            "server.port": target.port,
            "webhooks.event.id": delivery.event_id,
            "webhooks.delivery.id": delivery.delivery_id,
            "webhooks.webhook.id": str(delivery.webhook_id),
            "webhooks.company.id": str(delivery.company),
            "webhooks.retry": retry,
        }
        if retry:
            attributes["http.request.resend_count"] = retry
        parent = _read(delivery.traceparent)
        first = trace.get_current_span(_read(delivery.first_span)).get_span_context()
        span = self._tracer.start_span(
            "POST",
            parent,
            SpanKind.CLIENT,
            attributes,
            [Link(first, {"webhooks.retry": 0})] if first.is_valid else None,
            _nanoseconds(at),
        )
        made = span.get_span_context()
        # A tracer that is switched off returns the parent.
        is_own = made.is_valid and made != trace.get_current_span(parent).get_span_context()
        return AttemptSpan(span) if is_own else None


class AttemptSpan:
    """The span of one attempt, from before its request."""

    def __init__(self, span: Span) -> None:
        self._span = span
        made = span.get_span_context()
        #: For the receiver.
        self.traceparent = _write(trace.set_span_in_context(span, context.Context()))
        #: For the log. None: it is not recorded.
        self.trace_id = format_trace_id(made.trace_id) if span.is_recording() else None
        self.span_id = format_span_id(made.span_id) if span.is_recording() else None

    def end(self, log: COTWebhookLog) -> None:
        """End it as the attempt ended. May wait for the installation's exporter."""
        try:
            self._end(log)
        except Exception as error:  # noqa: BLE001 - see `AttemptTracer`
            _warn(error)

    def _end(self, log: COTWebhookLog) -> None:
        span, details = self._span, log.details
        if not span.is_recording():
            return
        attributes: dict[str, str | int] = {"webhooks.outcome": details.outcome}
        if details.peer is not None:
            address, _, port = details.peer.rpartition(":")
            attributes |= {"network.peer.address": address.strip("[]"), "network.peer.port": int(port)}
        if details.error_kind is None:
            attributes["http.response.status_code"] = log.status
        if details.outcome == Outcome.FAILED:
            attributes["error.type"] = str(details.error_kind or log.status)
            span.set_status(StatusCode.ERROR)
        span.set_attributes(attributes)
        # The clock may have gone back.
        span.end(_nanoseconds(max(details.started_at, log.createdAt)))


def _has_provider() -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _read(traceparent: str | None) -> context.Context:
    """Return a context with nothing but this span; without any if there is none."""
    return _W3C.extract({_HEADER: traceparent}, context.Context()) if traceparent else context.Context()


def _write(of: context.Context) -> str | None:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, of)
    return carrier.get(_HEADER)


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000) * 1_000_000


def _warn(error: Exception) -> None:
    logger.warning("an attempt has no span: %s", type(error).__name__)
