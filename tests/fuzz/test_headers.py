"""Further headers of a webhook: refused in words, or sent as they are, and no other line with them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.hostile import ANY_TEXT, BSON_VALUES
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from webhooks.delivery.attempt import AttemptRunner
from webhooks.errors import InvalidWebhook
from webhooks.models import COTEvent, COTWebhook, parse_webhook
from webhooks.rules.encryption import Use, Vault, new_key
from webhooks.rules.retry import RetryPolicy
from webhooks.rules.signing import new_secret
from webhooks.sender import Sender
from webhooks.store.deliveries import Claim, Delivery

EVENT = COTEvent.model_validate(read_sample("event-task-create"))
VAULT = Vault([new_key()])
#: What each request has, whatever a webhook adds.
USUAL = {
    *("host", "accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"),
    *("webhook-id", "webhook-timestamp", "webhook-signature"),
}
NAMES = st.one_of(
    ANY_TEXT,
    st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    st.sampled_from(sorted(USUAL)).flatmap(lambda name: st.sampled_from([name, name.upper(), name.replace("-", "_")])),
)
VALUES = st.one_of(ANY_TEXT, st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=50))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def runner() -> Iterator[AttemptRunner]:
    sender = Sender(
        allowed_networks=(ip_network("127.0.0.0/8"),),
        connect_timeout_s=5,
        total_timeout_s=5,
        max_response_bytes=100,
        ca_bundle=None,
        pool_size=1,
    )
    yield AttemptRunner(sender=sender, policy=RetryPolicy(30, 3), vault=VAULT)
    sender.close()


def make_webhook(url: str, headers: Any) -> COTWebhook:
    secret: dict[str, Any] = {"id": "1", "scheme": "v1", "createdAt": datetime.now(UTC)}
    sample = read_sample("webhook-task")
    secret["sealed"] = VAULT.seal(new_secret(), ObjectId(sample["_id"]), Use.SIGN)
    return parse_webhook({**sample, "url": url, "secrets": [secret], "headers": headers})


@example(headers={"X-Key": "a\r\nwebhook-id: forged"})
@example(headers={"X-Key\r\nwebhook-id": "forged"})
@example(headers={"webhook_signature": "v1,forged"})
@example(headers={"Content-Length ": "0"})
@example(headers={"X-Key": "a\tb", "X-Other": "~"})
@given(headers=st.dictionaries(NAMES, VALUES, max_size=3))
def test_header_is_refused_or_sent_as_it_is(headers: dict[str, str], receiver: Receiver, runner: AttemptRunner) -> None:
    try:
        webhook = make_webhook(receiver.url, [{"name": name, "value": value} for name, value in headers.items()])
    except InvalidWebhook:
        return
    before = len(receiver.requests)
    delivery = Delivery("msg_1", "e", webhook.id, webhook.company, "x", EVENT.to_json())
    log = runner.attempt(delivery, webhook, Claim("msg_1", 0, ObjectId()))
    assert log.status == 200
    (request,) = receiver.requests[before:]
    sent = dict(request.headers.items)
    assert len(request.headers.items) == len(USUAL) + len(headers)
    assert {name.lower() for name in sent} == USUAL | {name.lower() for name in headers}
    assert {name: sent[name] for name in headers} == headers
    assert sent["webhook-id"] == "msg_1"
    assert request.body == delivery.body.encode()


@given(headers=BSON_VALUES, secrets=BSON_VALUES)
def test_any_value_in_their_place_is_refused_in_words_or_means_none(headers: Any, secrets: Any) -> None:
    for fields in ({"headers": headers}, {"secrets": secrets}):
        try:
            webhook = parse_webhook({**read_sample("webhook-task"), **fields})
        except InvalidWebhook:
            continue
        assert (webhook.headers, webhook.secrets) == ((), ())
