"""What operators are told, to a real receiver: signed, to any address, and no secret in what the log says of it."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from standardwebhooks import Webhook, WebhookVerificationError

from tests.lab import proxy as p
from tests.lab import receiver as r
from tests.lab.receiver import Authority, Behaviour, Receiver
from webhooks import config
from webhooks.delivery.operators import Operators
from webhooks.local.servers import free_port
from webhooks.rules.ports import REFUSED_PORTS
from webhooks.rules.signing import new_secret

NOTICE_ID = ObjectId("625bcbdcc9a8e3a86dbf041c")
BODY = {
    "type": "paused",
    "webhook": ObjectId("62685990d918fb5557f9f992"),
    "at": datetime(2026, 5, 5, 12, 0, 0, 250_000, tzinfo=UTC),
    "reason": "fährt sich fest",
}
#: Where a URL holds what nobody else is to know.
PATH = "/hidden-path?key=hidden-key"

MakeOperators = Callable[..., Operators]


@pytest.fixture
def make_operators() -> Iterator[MakeOperators]:
    made: list[Operators] = []

    def make(url: str, secret: str | None = None, **changes: Any) -> Operators:
        made.append(Operators(url, secret, **{"connect_timeout_s": 5, "total_timeout_s": 10, **changes}))
        return made[-1]

    yield make
    for operators in made:
        operators.close()


def test_notice_is_a_signed_request_of_standard_webhooks(make_operators: MakeOperators) -> None:
    secret = new_secret()
    with Receiver() as receiver:
        assert make_operators(receiver.url + PATH, secret).tell(NOTICE_ID, BODY) is None
        [request] = receiver.wait_for(1)
    assert (request.method, request.path) == ("POST", PATH)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("webhooks/")
    assert request.headers["webhook-id"] == str(NOTICE_ID)
    assert request.json() == {
        "type": "paused",
        "webhook": "62685990d918fb5557f9f992",
        "at": "2026-05-05T12:00:00.250Z",
        "reason": "fährt sich fest",
    }
    headers = {name.lower(): value for name, value in request.headers.items}
    assert Webhook(secret).verify(request.body, headers) == json.loads(request.body)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(request.body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(request.body, headers)


def test_notice_told_again_has_the_same_id_and_body(make_operators: MakeOperators) -> None:
    with Receiver().then(r.reply(500)) as receiver:
        operators = make_operators(receiver.url)
        assert operators.tell(NOTICE_ID, BODY) == "status 500: the receiver had an error"
        assert operators.tell(NOTICE_ID, BODY) is None
        first, second = receiver.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_notice_without_a_secret_is_not_signed(make_operators: MakeOperators) -> None:
    with Receiver() as receiver:
        assert make_operators(receiver.url).tell(NOTICE_ID, BODY) is None
        [request] = receiver.wait_for(1)
    assert "webhook-signature" not in request.headers


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, None),
        (209, None),
        (210, "status 210: only 200–209 count as success"),
        (302, "status 302: redirects are not followed"),
        (404, "status 404: the receiver refused the request"),
        (410, "status 410: the receiver refused the request"),
        (503, "status 503: the receiver had an error"),
    ],
)
def test_only_200_to_209_have_taken_it(make_operators: MakeOperators, status: int, words: str | None) -> None:
    said = f"you sent {PATH}".encode()
    with Receiver().then(r.reply(status, said, [("Location", PATH), ("Retry-After", "1")])) as receiver:
        assert make_operators(receiver.url + PATH, new_secret()).tell(NOTICE_ID, BODY) == words
        assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (r.hang(), "timeout of 500ms exceeded"),
        (r.reset(), "read ECONNRESET"),
        (r.close_early(), "socket hang up"),
        (r.raw(b"HTTP/1.1 200 OK\r\nhidden-path hidden-key\r\n\r\n"), "Parse Error: Invalid header line"),
        (r.endless_head(), "Parse Error: Header overflow"),
        (r.trickle_body(), None),  # nothing of it is read, as the status says it all
    ],
    ids=["hang", "reset", "hang_up", "broken", "endless", "trickle"],
)
def test_answer_is_read_as_carefully_as_a_strangers(
    make_operators: MakeOperators, behaviour: Behaviour, words: str | None
) -> None:
    with Receiver().then(behaviour) as receiver:
        said = make_operators(receiver.url + PATH, total_timeout_s=0.5).tell(NOTICE_ID, BODY)
    assert said == words
    assert "hidden" not in (said or "")


def test_nobody_there_is_words_without_path_or_secret(make_operators: MakeOperators) -> None:
    port, secret = free_port(), new_secret()
    words = make_operators(f"http://127.0.0.1:{port}{PATH}", secret).tell(NOTICE_ID, BODY)
    assert words == f"connect ECONNREFUSED 127.0.0.1:{port}"
    words = make_operators(f"http://name.invalid:{port}{PATH}", secret).tell(NOTICE_ID, BODY)
    assert words is not None
    assert "name.invalid" in words or words.startswith("getaddrinfo")
    assert "hidden" not in words


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"])
def test_operators_url_may_lead_inside(make_operators: MakeOperators, host: str) -> None:
    with Receiver() as receiver:
        assert make_operators(f"http://{host}:{receiver.port}/").tell(NOTICE_ID, BODY) is None


def test_operators_url_may_have_any_port(make_operators: MakeOperators) -> None:
    words = make_operators(f"http://127.0.0.1:{min(REFUSED_PORTS)}/").tell(NOTICE_ID, BODY)
    assert words == f"connect ECONNREFUSED 127.0.0.1:{min(REFUSED_PORTS)}"


def test_notice_goes_through_the_proxy(make_operators: MakeOperators) -> None:
    with p.Proxy() as proxy, Receiver() as receiver:
        operators = make_operators(receiver.url, proxy=config.Proxy("127.0.0.1", proxy.port))
        assert operators.tell(NOTICE_ID, BODY) is None
        assert proxy.addresses == [f"127.0.0.1:{receiver.port}"]
        assert len(receiver.requests) == 1


def test_certificate_is_checked(make_operators: MakeOperators, authority: Authority, ca_file: Path) -> None:
    with Receiver(tls=authority.context()) as receiver:
        assert make_operators(receiver.url, ca_bundle=ca_file).tell(NOTICE_ID, BODY) is None
        words = make_operators(receiver.url + PATH).tell(NOTICE_ID, BODY)
    assert words == "unable to get local issuer certificate"
