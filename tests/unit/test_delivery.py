"""The main path without its servers: ids, descriptions, and how an answer becomes a log."""

import hmac
import json
from base64 import b64decode, b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from bson import ObjectId
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from responses import RequestsMock as HTTPMock

from tests.lab.samples_data import read_sample
from tests.lab.senders import new_sender
from webhooks.delivery.attempt import (
    USER_AGENT,
    AttemptRunner,
    describe_input,
    describe_interrupted,
    fan_out,
    make_delivery_id,
    summarize,
)
from webhooks.errors import ErrorKind
from webhooks.models import Context, COTEvent, COTWebhook, UnusableWebhook
from webhooks.models.headers import check_header_name
from webhooks.rules.encryption import Use, Vault, new_key
from webhooks.rules.retry import RetryPolicy
from webhooks.rules.signing import Scheme, new_secret, public_key
from webhooks.sender import Answer, OutgoingRequest, Sender, Timings
from webhooks.store.deliveries import Claim, Delivery, Interrupted
from webhooks.store.webhooks import WebhookStore

LOG_ID = ObjectId()
VAULT, OTHER_VAULT = Vault([new_key()]), Vault([new_key()])
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
EVENT = COTEvent.model_validate(read_sample("event-task-create"))
WEBHOOK = COTWebhook.model_validate({**read_sample("webhook-task"), "url": "https://host:8443/hook?token=secret"})
DELIVERY = Delivery("msg_1", "e1", WEBHOOK.id, EVENT.company, "COTTask create → wo_update", EVENT.to_json())
TIMINGS = Timings(lookup_ms=1, connect_ms=2, tls_ms=3, send_ms=4, wait_ms=5, read_ms=6, total_ms=21)


class FakeSender:
    """Gives one answer, or raises one error, and remembers what it was asked to send."""

    def __init__(self, answer: Answer | Exception) -> None:
        self.answer = answer
        self.sent: list[tuple[str, dict[str, str], bytes]] = []
        self.max_connection_ages_s: list[float | None] = []

    def post(
        self,
        url: str,
        headers: dict[str, str],
        body: bytes,
        *,
        max_connection_age_s: float | None,
        begin_by: float | None,
    ) -> Answer:
        self.sent.append((url, headers, body))
        self.max_connection_ages_s.append(max_connection_age_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def attempt(
    answer: Answer | Exception, retry: int = 0, webhook: COTWebhook | None = WEBHOOK, delivery: Delivery = DELIVERY
) -> tuple[Any, FakeSender]:
    sender = FakeSender(answer)
    policy = RetryPolicy(delay_s=30, max_retries=3)
    runner = AttemptRunner(sender=cast("Sender", sender), policy=policy, vault=VAULT, clock=lambda: NOON)
    return runner.attempt(delivery, webhook, Claim(delivery.delivery_id, retry, LOG_ID, "worker@host")), sender


def answer(status: int | None = 200, text: str = "ok", **changes: Any) -> Answer:
    fields = {"error_kind": None, "cut": False, "peer": "192.0.2.1:8443", "timings": TIMINGS, **changes}
    return Answer(status=status, text=text, **fields)


def test_delivery_id_follows_from_event_and_webhook():
    webhook_id, other_id = ObjectId(), ObjectId()
    assert make_delivery_id("e", webhook_id) == make_delivery_id("e", webhook_id)
    ids = {make_delivery_id(event, hook) for event in ("e", "f") for hook in (webhook_id, other_id)}
    assert len(ids) == 4
    assert all("." not in delivery_id for delivery_id in ids)


class FakeStore:
    """Has a company's webhooks."""

    def __init__(self, *usable: COTWebhook, unusable: tuple[UnusableWebhook, ...] = ()) -> None:
        self._usable = usable
        self._unusable = unusable

    def of_company(self, company: ObjectId) -> tuple[COTWebhook, ...]:
        assert company == EVENT.company
        return self._usable

    def unusable_of_company(self, company: ObjectId) -> tuple[UnusableWebhook, ...]:
        assert company == EVENT.company
        return self._unusable


def test_fan_out_shows_neither_path_nor_query():
    (delivery,) = fan_out(EVENT, "e1", cast("WebhookStore", FakeStore(WEBHOOK)))
    assert delivery.label == "COTTask create → wo_update (https://host:8443)"
    assert delivery.body == EVENT.to_json()
    assert delivery.delivery_id == make_delivery_id("e1", WEBHOOK.id)
    assert delivery.lane == f"{EVENT.company}/{WEBHOOK.id}"
    assert (delivery.is_ordered, delivery.rate, delivery.unusable) == (False, None, None)


def test_fan_out_says_how_fast_and_in_what_order():
    webhook = WEBHOOK.model_copy(update={"ordered": True, "rate_limit": 2.5, "rate_burst": 4})
    (delivery,) = fan_out(EVENT, "e1", cast("WebhookStore", FakeStore(webhook)))
    assert (delivery.is_ordered, delivery.rate) == (True, (2.5, 4))


def unusable(**changes: Any) -> UnusableWebhook:
    fields = {
        "id": ObjectId(),
        "company": EVENT.company,
        "isActive": True,
        "trigger": WEBHOOK.trigger,
        "context": Context(),
        "label": "broken",
        "reason": "url: it holds credentials",
    }
    return UnusableWebhook(**{**fields, **changes})


def test_fan_out_makes_a_delivery_for_a_webhook_that_cannot_be_used():
    broken = unusable()
    silent = unusable(trigger="logout-user"), unusable(isActive=False), unusable(context=Context(taskGroup="6" * 24))
    store = FakeStore(WEBHOOK, unusable=(broken, *silent))
    healthy, delivery = fan_out(EVENT, "e1", cast("WebhookStore", store))
    assert healthy.webhook_id == WEBHOOK.id
    assert delivery.delivery_id == make_delivery_id("e1", broken.id)
    assert (delivery.webhook_id, delivery.company, delivery.body) == (broken.id, EVENT.company, EVENT.to_json())
    assert delivery.label == "COTTask create → broken (cannot be used)"
    assert (delivery.unusable, delivery.is_ordered, delivery.rate) == (broken.reason, False, None)


def test_request_is_the_event_with_the_contracts_headers():
    _, sender = attempt(answer())
    ((url, headers, body),) = sender.sent
    assert url == WEBHOOK.url
    assert body == EVENT.to_json().encode()
    assert headers == {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(NOON.timestamp())),
    }


def test_success_is_logged_with_all_that_is_known_and_no_next():
    log, _ = attempt(answer(cut=True), retry=2)
    assert (log.status, log.retry, log.response, log.createdAt) == (200, 2, "ok", NOON)
    details = log.details
    assert (details.outcome, details.reason, details.next_at) == ("success", None, None)
    assert details.response_cut
    assert (details.peer, details.worker, details.origin) == ("192.0.2.1:8443", "worker@host", "https://host:8443")
    assert (details.lookup_ms, details.tls_ms, details.total_ms) == (1, 3, 21)
    assert summarize(log) == "200 OK in 21 ms, retry 2"


@pytest.mark.parametrize(("retry", "next_at"), [(0, NOON + timedelta(seconds=30)), (3, None)])
def test_refusal_is_logged_with_its_reason_and_the_next(retry: int, next_at: datetime | None):
    log, _ = attempt(answer(302, ""), retry)
    assert (log.status, log.details.outcome, log.details.reason) == (302, "failed", "redirects are not followed")
    assert log.details.next_at == next_at


def make(given: Answer, retry: int = 0, webhook: COTWebhook = WEBHOOK, *, is_probe: bool = False) -> Any:
    sender, policy = cast("Sender", FakeSender(given)), RetryPolicy(30, 3, max_retry_after_s=100)
    runner = AttemptRunner(sender=sender, policy=policy, vault=VAULT, probe_interval_s=60, clock=lambda: NOON)
    return runner.attempt(DELIVERY, webhook, Claim("msg_1", retry, LOG_ID, "worker@host"), is_probe=is_probe)


@pytest.mark.parametrize(("asked_s", "next_s", "logged_s"), [(10, 30, 10), (50, 50, 50), (1000, 100, 100)])
def test_receiver_delays_the_next_attempt_within_bounds(asked_s: float, next_s: float, logged_s: float):
    details = make(answer(429, retry_after_s=asked_s)).details
    assert details.next_at == NOON + timedelta(seconds=next_s)
    assert details.retry_after_s == logged_s


@pytest.mark.parametrize(("retry", "is_probe", "seconds"), [(0, False, None), (1, False, 30), (0, True, 30)])
def test_retry_goes_over_no_connection_from_before_its_failed_attempt(
    retry: int, is_probe: bool, seconds: float | None
) -> None:
    sender = FakeSender(answer())
    runner = AttemptRunner(sender=cast("Sender", sender), policy=RetryPolicy(30, 3), vault=VAULT, clock=lambda: NOON)
    runner.attempt(DELIVERY, WEBHOOK, Claim("msg_1", retry, LOG_ID, "worker@host"), is_probe=is_probe)
    assert sender.max_connection_ages_s == [seconds]


def test_410_is_the_end_whatever_retries_are_left():
    log = make(answer(410))
    assert (log.details.next_at, log.details.kept) == (None, False)


@pytest.mark.parametrize(("asked_s", "next_s"), [(None, 60), (90, 90), (1000, 100)])
def test_probe_that_fails_uses_up_no_retry(asked_s: float | None, next_s: float):
    log = make(answer(503, retry_after_s=asked_s), retry=3, is_probe=True)
    assert (log.retry, log.details.probe) == (3, True)
    assert log.details.next_at == NOON + timedelta(seconds=next_s)
    assert "probe at retry 3" in summarize(log)


def test_probe_that_is_answered_ends_its_delivery():
    details = make(answer(), is_probe=True).details
    assert (details.probe, details.next_at) == (True, None)


@pytest.mark.parametrize(
    ("status", "ordered", "on_exhausted", "retry", "kept"),
    [
        (500, True, "stop", 3, True),
        (500, True, "stop", 2, False),
        (500, True, "next", 3, False),
        (500, False, "stop", 3, False),
        (410, True, "stop", 3, False),
        (200, True, "stop", 3, False),
    ],
)
def test_last_failure_is_kept_where_an_ordered_webhook_stops(
    status: int, ordered: bool, on_exhausted: str, retry: int, kept: bool
):
    webhook = WEBHOOK.model_copy(update={"ordered": ordered, "on_exhausted": on_exhausted})
    log = make(answer(status), retry, webhook)
    assert log.details.kept is kept
    assert ("held until an operator" in summarize(log)) is kept


def test_no_webhook_no_probe():
    log = make(answer(), webhook=WEBHOOK.model_copy(update={"isActive": False}), is_probe=True)
    assert (log.details.error_kind, log.details.probe, log.details.next_at) == ("webhook_inactive", False, None)


def test_no_response_is_logged_as_409_with_its_kind():
    text = "connect ECONNREFUSED 192.0.2.1:8443"
    log, _ = attempt(answer(None, text, error_kind=ErrorKind.CONNECT_REFUSED, peer=None))
    assert (log.status, log.response, log.details.error_kind) == (409, text, "connect_refused")
    assert log.details.reason is None
    assert summarize(log) == f"{text} in 21 ms, retry 0, next at 12:00:30Z"


def test_refusal_names_the_settings_to_operators_alone():
    text = "address not allowed: host:8443"
    log, _ = attempt(answer(None, text, error_kind=ErrorKind.NOT_ALLOWED))
    assert log.response == text
    assert "the workers' WEBHOOKS_ALLOWED_NETWORKS and WEBHOOKS_ALLOWED_PORTS say what is allowed" in summarize(log)


def test_interrupted_attempt_is_logged_under_its_own_id_as_one_that_is_repeated():
    interrupted = Interrupted(ObjectId(), 1, "dead@host", NOON - timedelta(seconds=60))
    log = describe_interrupted(DELIVERY, WEBHOOK, interrupted, NOON)
    assert (log.id, log.retry, log.status, log.event) == (interrupted.log_id, 1, 409, EVENT)
    details = log.details
    assert (details.error_kind, details.outcome, details.total_ms) == ("interrupted", "failed", None)
    # It is not the delivery's end, so it says when the next one is: now.
    assert (details.started_at, details.next_at, details.worker) == (interrupted.started_at, NOON, "dead@host")
    assert "may have got it" in summarize(log)


def test_webhook_that_was_deactivated_ends_the_delivery_without_a_request():
    log, sender = attempt(answer(), webhook=COTWebhook.model_validate({**WEBHOOK.to_wire(), "isActive": False}))
    assert sender.sent == []
    assert (log.status, log.details.error_kind, log.details.next_at) == (409, "webhook_inactive", None)


def test_webhook_that_is_gone_may_be_mended_in_time():
    log, sender = attempt(answer(), webhook=None)
    assert sender.sent == []
    assert (log.details.error_kind, log.details.next_at) == ("webhook_unusable", NOON + timedelta(seconds=30))
    assert log.subscription == WEBHOOK.id


def test_webhook_that_could_not_be_used_when_the_event_came_has_one_log_that_says_why():
    log, sender = attempt(answer(), webhook=None, delivery=replace(DELIVERY, unusable="url: it holds credentials"))
    assert sender.sent == []
    assert (log.status, log.retry, log.response) == (409, 0, "webhook cannot be used: url: it holds credentials")
    assert (log.details.error_kind, log.details.outcome) == ("webhook_unusable", "failed")
    assert (log.details.next_at, log.details.kept) == (None, False)
    assert summarize(log) == f"{log.response} in 0 ms, retry 0, was the last"


def test_webhook_that_was_mended_since_the_event_came_gets_it():
    log, sender = attempt(answer(), delivery=replace(DELIVERY, unusable="url: it holds credentials"))
    assert len(sender.sent) == 1
    assert log.status == 200


def test_defect_that_comes_as_an_answer_is_logged(caplog: pytest.LogCaptureFixture):
    runner = AttemptRunner(sender=cast("Sender", None), policy=RetryPolicy(30, 3), vault=VAULT, clock=lambda: NOON)
    prepared = runner.prepare(DELIVERY, WEBHOOK, Claim("msg_1", 0, LOG_ID), EVENT)
    assert isinstance(prepared.request, OutgoingRequest)
    given = answer(None, "internal error: KeyError", error_kind=ErrorKind.INTERNAL, defect=KeyError("secret"))
    log = runner.conclude(prepared, given)
    assert (log.status, log.response) == (409, "internal error: KeyError")
    assert "failed by a defect: KeyError" in caplog.text
    assert "secret" not in caplog.text


def test_defect_of_ours_is_a_failed_attempt(caplog: pytest.LogCaptureFixture):
    log, _ = attempt(ZeroDivisionError("with a secret"))
    assert (log.details.error_kind, log.response) == ("internal", "internal error: ZeroDivisionError")
    assert log.details.next_at is not None
    assert "failed by a defect" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([read_sample("event-task-create")], "COTTask create, company 625bcbdcc9a8e3a86dbf041c"),
        ([json.dumps(read_sample("event-task-create"))], "COTTask create, company 625bcbdcc9a8e3a86dbf041c"),
        ([{"type": "x" * 25, "event": "<b>", "company": 7}], "? ?, company ?"),
        (["{"], "not an event"),
        (["[" * 100_000], "not an event"),
        ([7], "not an event"),
        ([], "not an event"),
    ],
    ids=["dict", "text", "odd-fields", "broken", "deep", "number", "none"],
)
def test_input_is_described_without_its_payload(arguments: list[object], words: str):
    assert describe_input(arguments) == words


def test_event_is_not_sent_to_a_webhook_that_was_given_to_another_company():
    given_away = COTWebhook.model_validate({**WEBHOOK.to_wire(), "company": "6" * 24})
    log, sender = attempt(answer(), webhook=given_away)
    assert sender.sent == []
    assert log.details.error_kind is ErrorKind.WEBHOOK_UNUSABLE
    assert (log.details.webhook, log.details.origin) == (str(WEBHOOK.id), ""), "what the other company made of it"


# ── Secrets and headers ─────────────────────────────────────────────────────────────────────────────────────────────
def sealed(text: str, webhook_id: ObjectId = WEBHOOK.id, **fields: Any) -> dict[str, Any]:
    scheme = "v1a" if text.startswith("whsk_") else "v1"
    item = {
        "id": "1",
        "scheme": scheme,
        "sealed": VAULT.seal(text, webhook_id, Use.SIGN),
        "createdAt": NOON - timedelta(days=9),
    }
    return {**item, **fields}


def webhook_with(**fields: Any) -> COTWebhook:
    return COTWebhook.model_validate({**WEBHOOK.to_wire(), **fields})


def sent_headers(webhook: COTWebhook) -> dict[str, str]:
    _, sender = attempt(answer(), webhook=webhook)
    return sender.sent[0][1]


def test_request_carries_a_signature_of_each_valid_secret():
    one, two, key = new_secret(), new_secret(), new_secret(Scheme.V1A)
    expired = sealed(new_secret(), expiresAt=NOON)
    until = NOON + timedelta(seconds=1)
    webhook = webhook_with(secrets=[sealed(one), sealed(two, expiresAt=until), expired, sealed(key)])
    headers = sent_headers(webhook)
    signatures = headers["webhook-signature"].split(" ")
    assert [signature.partition(",")[0] for signature in signatures] == ["v1", "v1", "v1a"]
    content = f"msg_1.{int(NOON.timestamp())}.".encode() + DELIVERY.body.encode()
    for secret, signature in zip((one, two), signatures, strict=False):
        expected = hmac.digest(b64decode(secret.removeprefix("whsec_")), content, "sha256")
        assert signature == "v1," + b64encode(expected).decode()
    verifier = Ed25519PublicKey.from_public_bytes(b64decode(public_key(key).removeprefix("whpk_")))
    verifier.verify(b64decode(signatures[2].removeprefix("v1a,")), content)


def test_webhook_without_secrets_is_sent_unsigned():
    assert "webhook-signature" not in sent_headers(WEBHOOK)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"secrets": [sealed(new_secret(), ObjectId())]}, id="another webhook's"),
        pytest.param(
            {"secrets": [sealed(new_secret(), sealed=Vault([new_key()]).seal("x", WEBHOOK.id, Use.SIGN))]}, id="key"
        ),
        pytest.param({"secrets": [sealed(new_secret(), sealed="ñ")]}, id="no token"),
        pytest.param({"secrets": [sealed(new_secret(), expiresAt=NOON)]}, id="expired"),
        pytest.param({"headers": [{"name": "X-Key", "sealed": ""}]}, id="header"),
        pytest.param({"headers": [{"name": "X-Key", "sealed": VAULT.seal("x", WEBHOOK.id, Use.SIGN)}]}, id="use"),
    ],
)
def test_nothing_is_sent_without_its_signature_or_header(fields: dict[str, Any]):
    log, sender = attempt(answer(), webhook=webhook_with(**fields))
    assert sender.sent == []
    assert log.details.error_kind == "secret_unreadable"
    assert log.details.next_at is not None, "an operator may mend it in time"


def test_headers_of_the_webhook_are_sent():
    value = VAULT.seal("Bearer hidden", WEBHOOK.id, Use.HEADER)
    webhook = webhook_with(headers=[{"name": "X-Tenant", "value": "a b"}, {"name": "Authorization", "sealed": value}])
    headers = sent_headers(webhook)
    assert (headers["X-Tenant"], headers["Authorization"]) == ("a b", "Bearer hidden")
    assert headers["webhook-id"] == "msg_1"


def test_headers_that_are_ours_cannot_be_set():
    with HTTPMock() as mock:
        mock.post(WEBHOOK.url.partition("?")[0])
        sender = new_sender(allowed_networks=())
        runner = AttemptRunner(sender=sender, policy=RetryPolicy(30, 3), vault=VAULT, clock=lambda: NOON)
        runner.attempt(DELIVERY, webhook_with(secrets=[sealed(new_secret())]), Claim("msg_1", 0, LOG_ID))
        (call,) = mock.calls
    sent = {name.lower() for name in call.request.headers}
    assert {"webhook-signature", "content-length", "accept"} <= sent
    for name in sent:
        with pytest.raises(ValueError, match=r"cannot be set|is set by"):
            check_header_name(name)


def test_delivery_hides_its_payload():
    assert EVENT.to_json()[:20] not in repr(DELIVERY)
