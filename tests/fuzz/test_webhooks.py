"""Webhooks and their URLs, typed in or written by hand: refused in words, or sent to the host that they name."""

import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from bson import ObjectId
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.fuzz.hostile import ANY_TEXT, BSON_VALUES, MARK, MARKED_TEXT, PYTHON_TREES, UNSAFE, at_most, nested, ruined
from tests.lab.samples_data import read_sample
from webhooks.config import Settings, get_settings
from webhooks.errors import ErrorKind, InvalidSettings, InvalidWebhook, NoResponse
from webhooks.models import COTEvent, COTWebhook, parse_webhook
from webhooks.models.url import parse_url
from webhooks.models.webhook import why_bad_url
from webhooks.rules.matching import is_match
from webhooks.sender import Resolver, Sender
from webhooks.store.mongo import open_database
from webhooks.store.webhooks import read_stored

EVENT = COTEvent.model_validate(read_sample("event-task-create"))
#: As MongoDB holds it.
STORED = COTWebhook.model_validate(read_sample("webhook-task")).to_bson()

URL_PARTS = st.sampled_from(
    "http:// https:// HTTP:// ftp:// // / \\ : :80 :99999 :0 :-1 @ user:pw@ ? # [ ] [::1] [fe80::1%25eth0] ::1 127.1 "
    "0x7f.1 017700000001 2130706433 1.2.3.4 a.example 𝒳.example ß.example xn--a xn--0 . .. ..a %00 %0d%0a %40 \x00 "
    "\r\n \t \u202e \ud800 ü é %zz a..b -a- _x localhost".split(" ")
)
URL_PARTS |= st.sampled_from([" ", "a" * 64, "a." * 130, "x" * 3_000])
URLS = st.lists(URL_PARTS | ANY_TEXT, max_size=6).map("".join) | st.lists(URL_PARTS, min_size=1, max_size=4).map(
    lambda parts: "http://" + "".join(parts)
)


def check_refusal(error: InvalidWebhook) -> None:
    text = str(error)
    assert text.startswith("invalid webhook: ")
    assert MARK not in text
    assert not UNSAFE.search(text)
    assert "\n" not in text


@given(ruined(read_sample("webhook-task"), PYTHON_TREES | MARKED_TEXT))
def test_any_webhook_is_refused_in_words_or_usable(value: dict[str, Any]) -> None:
    try:
        webhook = parse_webhook(value)
    except InvalidWebhook as error:
        check_refusal(error)
        return
    check_usable(webhook)


@given(ruined(STORED, BSON_VALUES))
@example({**STORED, "_id": str(STORED["_id"])})
@example({**STORED, "company": str(STORED["company"])})
def test_any_stored_webhook_is_refused_in_words_or_usable(document: dict[str, Any]) -> None:
    try:
        webhook = read_stored(document)
    except InvalidWebhook as error:
        check_refusal(error)
        return
    check_usable(webhook)
    assert webhook.id == document["_id"]
    assert webhook.company == document["company"]


def check_usable(webhook: COTWebhook) -> None:
    assert isinstance(webhook.id, ObjectId)
    assert isinstance(webhook.company, ObjectId)
    assert webhook.isActive in (True, False)
    assert not UNSAFE.search(webhook.label + webhook.origin)
    if is_match(EVENT, webhook):
        assert webhook.company == EVENT.company
    webhook.to_bson()


def test_deep_webhook_is_refused_in_words() -> None:
    with pytest.raises(InvalidWebhook, match="is nested too deeply"):
        parse_webhook({**read_sample("webhook-task"), "more": nested(10_000)})


@given(URLS)
@example("http://a.example\\@b.example/")
@example("http://[::ffff:127.0.0.1]/")
def test_any_url_is_refused_or_names_one_host(url: str) -> None:
    reason = why_bad_url(url)
    if reason:
        assert not UNSAFE.search(reason)
        return
    origin = COTWebhook.model_validate({**read_sample("webhook-task"), "url": url}).origin
    assert not UNSAFE.search(origin)
    assert "@" not in origin
    assert not {"/", "?", "#"} & set(origin.partition("://")[2])
    try:
        target = parse_url(url)
    except NoResponse as error:
        assert error.kind is ErrorKind.BAD_URL
        assert not UNSAFE.search(error.text)
        return
    assert 0 < target.port < 65536
    assert target.host.isascii()
    assert not UNSAFE.search(target.host + target.url)
    # What connects and what is written into the request's head must name the same place.
    again = parse_url(target.url)
    assert again.url == target.url
    assert again.host == target.tls_name == target.tls_name.lower().removesuffix(".")
    assert (again.port, again.scheme) == (target.port, target.scheme)
    assert urlsplit(target.url).username is None


class Refusing:
    """A resolver's look-up that knows no name, and notes for which ones it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[Any]:
        self.asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "nobody knows it")


@pytest.fixture(scope="module")
def lookup() -> Refusing:
    return Refusing()


@pytest.fixture(scope="module")
def sender(lookup: Refusing) -> Iterator[Sender]:
    # Nothing may be connected to: of public addresses none is named in a test, and of others none is allowed.
    made = Sender(
        allowed_networks=(), connect_timeout_s=0.2, total_timeout_s=0.5, max_response_bytes=100, ca_bundle=None,
        pool_size=1, resolver=Resolver(lookup),
    )  # fmt: skip
    yield made
    made.close()


@given(url=URLS)
@example(url="http://127.0.0.1:9/")
@example(url="http://017700000001:9/")
@example(url="http://[::ffff:127.0.0.1]:9/")
def test_any_url_ends_in_an_answer(sender: Sender, lookup: Refusing, url: str) -> None:
    assume("1.2.3.4" not in url)
    lookup.asked.clear()
    with at_most(3):
        answer = sender.post(url, {}, b"x")
    assert answer.status is None
    assert answer.error_kind in (ErrorKind.BAD_URL, ErrorKind.LOOKUP, ErrorKind.RESOLVER, ErrorKind.NOT_ALLOWED)
    assert not UNSAFE.search(answer.text)
    assert answer.peer is None
    query = url.partition("#")[0].partition("?")[2]
    assert len(query) < 3 or query not in answer.text
    assert all(host.isascii() for host in lookup.asked)


# ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = [f"WEBHOOKS_{name.upper()}" for name in Settings.model_fields]
# An environment holds no NUL; bytes that are no UTF-8 come out of it as lone surrogates.
SETTING_VALUES = (
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
    | st.sampled_from(["nan", "inf", "-inf", "1e-300", "1e400", "9" * 5_000, "1_0", " 5 ", "٣", "0x10", "true", "[]"])
    | st.sampled_from(["/" + "x" * 5_000, "/root/x", "/proc/self/mem", "~", "{}", "null", "", "10.0.0.0/8", "::/0,,"])
    | st.sampled_from(["fe80::1%a/64", "1/1", ",", "\x1b[2J", "mongodb://h/\x01", "mongodb://h/%00", "mongodb://[::1"])
    | st.sampled_from(["mongodb://h/?tlsCAFile=/nowhere", "mongodb://%ff@h", "mongodb://h:1/a b", "mongodb://h/$x"])
)


@given(st.dictionaries(st.sampled_from(NAMES), SETTING_VALUES.map(lambda text: text), max_size=3))
@example({"WEBHOOKS_CA_BUNDLE": "x" * 5_000})
@example({"WEBHOOKS_MONGODB_URL": "mongodb://h/%00"})
@example({"WEBHOOKS_MONGODB_URL": "mongodb://h/?tlsCAFile=/nowhere"})
def test_any_environment_is_refused_in_words_or_usable(values: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        try:
            settings = get_settings()
            with open_database(settings.mongodb_url, settings.mongodb_timeout_s).client:
                pass
        except InvalidSettings as error:
            text = str(error)
            assert any(text.startswith(f"{name}: ") for name in values)
            assert not UNSAFE.search(text)
            for value in values.values():
                # What the text gives as an example is no repetition.
                assert len(value) < 4 or value not in text.replace("10.0.0.0/8", "").replace("true", "")
            return
    assert settings.claim_s < settings.visibility_timeout_s
    assert settings.claim_s > 0
