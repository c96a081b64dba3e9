"""OpenTelemetry's spans of attempts, in memory: what they say and what they hang on."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags

from tests.unit.test_delivery import DELIVERY, EVENT, LOG_ID, NOON, VAULT, WEBHOOK, FakeSender, FakeStore, answer
from webhooks.delivery import services
from webhooks.delivery.attempt import AttemptRunner, fan_out
from webhooks.delivery.tracing import AttemptTracer
from webhooks.errors import ErrorKind
from webhooks.models import COTWebhook, COTWebhookLog
from webhooks.rules.retry import RetryPolicy
from webhooks.sender import Answer, Sender
from webhooks.store.deliveries import Claim, Delivery
from webhooks.store.webhooks import WebhookStore

TRACE_ID, SPAN_ID, FIRST_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "53995c3f42cd8ad8"
PRODUCER = f"00-{TRACE_ID}-{SPAN_ID}-01"
#: The attempt of `make` takes this long.
TOOK = timedelta(seconds=1.5)
TRACED = WEBHOOK.model_copy(update={"traced": True})


class Spans:
    """A provider that keeps what it gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._exporter = InMemorySpanExporter()

    def use(self, provider: trace.TracerProvider) -> None:
        # The API takes a provider once per process, and that would be every later test's as well.
        self._monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)

    def record(self, sampler: Any = DEFAULT_ON) -> None:
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.use(provider)

    def one(self) -> ReadableSpan:
        (span,) = self._exporter.get_finished_spans()
        return span

    def count(self) -> int:
        return len(self._exporter.get_finished_spans())


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    made = Spans(monkeypatch)
    made.record()
    return made


def clock() -> Iterator[datetime]:
    yield NOON
    yield NOON + TOOK


def make(
    given: Answer, *, retry: int = 0, webhook: COTWebhook = WEBHOOK, delivery: Delivery = DELIVERY
) -> tuple[COTWebhookLog, FakeSender]:
    """Make one attempt in a worker that has OpenTelemetry."""
    sender, times = FakeSender(given), clock()
    runner = AttemptRunner(
        sender=cast("Sender", sender),
        policy=RetryPolicy(30, 3),
        vault=VAULT,
        tracer=AttemptTracer(),
        clock=lambda: next(times),
    )
    return runner.attempt(delivery, webhook, Claim(delivery.delivery_id, retry, LOG_ID, "worker@host")), sender


def test_span_of_an_attempt_names_request_response_and_ids(spans: Spans):
    log, _ = make(answer(200, peer="[2001:db8::1]:8443"))
    span = spans.one()
    assert (span.name, span.kind, span.status.status_code) == ("POST", SpanKind.CLIENT, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.full": "https://host:8443",
        "server.address": "host",
        "server.port": 8443,
        "network.peer.address": "2001:db8::1",
        "network.peer.port": 8443,
        "http.response.status_code": 200,
        "webhooks.event.id": "e1",
        "webhooks.delivery.id": "msg_1",
        "webhooks.webhook.id": str(WEBHOOK.id),
        "webhooks.company.id": str(EVENT.company),
        "webhooks.retry": 0,
        "webhooks.outcome": "success",
    }
    own = span.get_span_context()
    assert own
    assert (log.details.trace_id, log.details.span_id) == (f"{own.trace_id:032x}", f"{own.span_id:016x}")


def test_span_has_the_times_of_its_attempt(spans: Spans):
    make(answer())
    span = spans.one()
    start, end = (int(at.timestamp()) * 1_000_000_000 for at in (NOON, NOON + TOOK))
    assert (span.start_time, span.end_time) == (start, end + 500_000_000)


@pytest.mark.parametrize(
    ("given", "error_type", "status"),
    [
        (answer(503), "503", 503),
        (answer(302), "302", 302),
        (answer(409), "409", 409),
        (answer(None, "timeout of 15000ms exceeded", error_kind=ErrorKind.TIMEOUT), "timeout", None),
    ],
    ids=["503", "302", "409", "timeout"],
)
def test_span_of_a_failed_attempt_has_its_error(spans: Spans, given: Answer, error_type: str, status: int | None):
    make(given)
    span = spans.one()
    assert span.attributes
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes["error.type"], span.attributes.get("http.response.status_code")) == (error_type, status)
    assert span.status.description is None


def test_span_without_connection_has_no_peer(spans: Spans):
    make(answer(None, "getaddrinfo ENOTFOUND host", error_kind=ErrorKind.LOOKUP, peer=None))
    assert not [name for name in spans.one().attributes or {} if name.startswith("network.")]


def test_retry_is_in_the_producers_trace_and_linked_to_the_first_attempt(spans: Spans):
    make(answer(), retry=2, delivery=replace(DELIVERY, traceparent=PRODUCER, first_span=f"00-{TRACE_ID}-{FIRST_ID}-01"))
    span = spans.one()
    assert span.parent
    assert (f"{span.parent.trace_id:x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    (link,) = span.links
    assert f"{link.context.span_id:016x}" == FIRST_ID
    assert (span.attributes or {})["http.request.resend_count"] == 2


@pytest.mark.parametrize(
    "text", ["", "00-0-0-00", f"00-{'0' * 32}-{SPAN_ID}-01", "x" * 100_000], ids=["empty", "short", "zero", "long"]
)
def test_trace_context_that_was_changed_by_hand_counts_as_none(spans: Spans, text: str):
    make(answer(), retry=1, delivery=replace(DELIVERY, traceparent=text, first_span=text))
    assert spans.one().parent is None
    assert not spans.one().links


def test_receiver_gets_the_attempts_own_span_where_its_webhook_wants_it(spans: Spans):
    _, sender = make(answer(), webhook=TRACED, delivery=replace(DELIVERY, traceparent=PRODUCER))
    own = spans.one().get_span_context()
    assert own
    assert sender.sent[0][1]["traceparent"] == f"00-{TRACE_ID}-{own.span_id:016x}-01"
    assert own.span_id != int(SPAN_ID, 16)


def test_receiver_gets_no_trace_by_default(spans: Spans):
    _, sender = make(answer(), delivery=replace(DELIVERY, traceparent=PRODUCER))
    assert spans.count() == 1
    assert "traceparent" not in sender.sent[0][1]


def test_nothing_is_recorded_of_what_is_not_sampled(spans: Spans):
    spans.record(ALWAYS_OFF)
    log, sender = make(answer(503), webhook=TRACED)
    assert spans.count() == 0
    assert (log.details.trace_id, log.details.span_id) == (None, None)
    flags = int(sender.sent[0][1]["traceparent"].rpartition("-")[2], 16)
    assert not flags & TraceFlags.SAMPLED, "the receiver learns that it is not recorded"


def test_trace_that_its_producer_did_not_sample_is_not_recorded(spans: Spans):
    make(answer(), delivery=replace(DELIVERY, traceparent=f"00-{TRACE_ID}-{SPAN_ID}-00"))
    assert spans.count() == 0


@pytest.mark.parametrize("provider", [trace.ProxyTracerProvider(), trace.NoOpTracerProvider()], ids=["none", "no-op"])
def test_worker_without_spans_sends_and_logs_no_trace(spans: Spans, provider: trace.TracerProvider):
    spans.use(provider)
    log, sender = make(answer(), webhook=TRACED, delivery=replace(DELIVERY, traceparent=PRODUCER))
    assert "traceparent" not in sender.sent[0][1]
    assert log.details.trace_id is None


def test_attempt_without_a_request_has_no_span(spans: Spans):
    log, _ = make(answer(), webhook=WEBHOOK.model_copy(update={"isActive": False}))
    assert log.details.error_kind is ErrorKind.WEBHOOK_INACTIVE
    assert spans.count() == 0


def test_span_shows_neither_path_nor_query_nor_response(spans: Spans):
    make(answer(500, "their secret"), webhook=TRACED)
    assert "secret" not in spans.one().to_json()
    assert "hook?" not in spans.one().to_json()


class Broken(SpanProcessor):
    """Fails at both ends of a span."""

    def __init__(self, fails_at: str) -> None:
        self._fails_at = fails_at

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._fails_at == "start":
            raise RuntimeError("a secret of the installation")

    def on_end(self, span: ReadableSpan) -> None:
        if self._fails_at == "end":
            raise RuntimeError("a secret of the installation")


@pytest.mark.parametrize("fails_at", ["start", "end"])
def test_processor_that_fails_stops_no_attempt(spans: Spans, caplog: pytest.LogCaptureFixture, fails_at: str):
    provider = TracerProvider()
    provider.add_span_processor(Broken(fails_at))
    spans.use(provider)
    log, sender = make(answer())
    assert (log.status, len(sender.sent)) == (200, 1)
    assert "an attempt has no span: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("headers", [{"traceparent": PRODUCER}, {"traceparent": PRODUCER, "timelimit": [None, None]}])
def test_producers_trace_is_found_in_its_messages_headers(spans: Spans, headers: dict[str, Any]):
    assert AttemptTracer().find_parent(headers) == PRODUCER


@pytest.mark.parametrize(
    "value",
    [None, 5, [], [5], [PRODUCER], {"traceparent": PRODUCER}, "", "00", PRODUCER + "\n", "\0", "\ud800", "x" * 100_000],
    ids=lambda value: repr(value)[:20],
)
def test_header_that_is_no_trace_context_counts_as_none(spans: Spans, value: object):
    headers = {"traceparent": value, "tracestate": value, "baggage": value}
    assert AttemptTracer().find_parent(headers) in (None, PRODUCER if value == PRODUCER + "\n" else None)


def test_request_that_delivers_within_itself_is_the_parent(spans: Spans):
    with trace.get_tracer("test").start_as_current_span("request") as span:
        found = AttemptTracer().find_parent({})
        own = span.get_span_context()
    assert found is not None
    assert found.split("-")[1:3] == [f"{own.trace_id:032x}", f"{own.span_id:016x}"]


def test_deliveries_of_an_event_keep_its_trace(spans: Spans):
    (delivery,) = fan_out(EVENT, "e1", cast("WebhookStore", FakeStore(WEBHOOK)), PRODUCER)
    assert delivery.traceparent == PRODUCER


def test_worker_without_the_package_makes_no_spans(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "webhooks.delivery.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert services._open_tracer() is None
