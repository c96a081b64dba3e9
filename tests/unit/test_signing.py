"""Signatures and sealing: against the public libraries, RFC 8032, and whoever means ill."""

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime

import pytest
import standardwebhooks
import svix.webhooks
from bson import ObjectId
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from webhooks.errors import InvalidWebhook, SecretUnreadable
from webhooks.rules.encryption import Use, Vault, new_key
from webhooks.rules.signing import Scheme, find_scheme, is_signed_with, new_secret, public_key, sign

NOW = int(datetime.now(UTC).timestamp())
#: RFC 8032, 7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def whsec(size: int) -> str:
    return "whsec_" + b64encode(b"k" * size).decode()


def headers(signature: str, message_id: str = "msg_1") -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": str(NOW), "webhook-signature": signature}


@given(st.text(st.characters(codec="utf-8")), st.binary(min_size=24, max_size=64))
def test_v1_is_verified_by_the_public_libraries(text: str, raw: bytes):
    secret, body = "whsec_" + b64encode(raw).decode(), json.dumps({"text": text}, ensure_ascii=False).encode()
    signed = headers(sign([secret], "msg_1", NOW, body))
    assert standardwebhooks.Webhook(secret).verify(body, signed) == {"text": text}
    svix.webhooks.Webhook(secret).verify(body, signed)


def test_both_signatures_of_a_rotation_are_verified_and_no_others():
    old, new, other = new_secret(), new_secret(), new_secret()
    signed = headers(sign([new, new_secret(Scheme.V1A), old], "msg_1", NOW, b"{}"))
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(b"{}", signed)
        svix.webhooks.Webhook(secret).verify(b"{}", signed)
    for wrong in (
        lambda: standardwebhooks.Webhook(other).verify(b"{}", signed),
        lambda: standardwebhooks.Webhook(new).verify(b'{"a":1}', signed),
        lambda: standardwebhooks.Webhook(new).verify(b"{}", {**signed, "webhook-id": "msg_2"}),
        lambda: standardwebhooks.Webhook(new).verify(b"{}", {**signed, "webhook-timestamp": str(NOW - 1)}),
    ):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            wrong()


@pytest.mark.parametrize("raw", [SEED, SEED + PUBLIC])
def test_v1a_is_ed25519(raw: bytes):
    private = "whsk_" + b64encode(raw).decode()
    assert find_scheme(private) is Scheme.V1A
    assert public_key(private) == "whpk_" + b64encode(PUBLIC).decode()
    scheme, _, signature = sign([private], "msg_1", NOW, b"body").partition(",")
    assert scheme == "v1a"
    key = Ed25519PublicKey.from_public_bytes(PUBLIC)
    key.verify(b64decode(signature), f"msg_1.{NOW}.body".encode())
    with pytest.raises(InvalidSignature):
        key.verify(b64decode(signature), f"msg_1.{NOW}.bodY".encode())


def test_new_secrets_are_good_and_differ():
    for scheme in Scheme:
        one, two = new_secret(scheme), new_secret(scheme)
        assert one != two
        assert find_scheme(one) is scheme


@pytest.mark.parametrize("size", [24, 64])
def test_secret_within_the_bounds_is_taken(size: int):
    assert find_scheme(whsec(size)) is Scheme.V1


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "hunter2hunter2hunter2hunter2",
        "whsec_",
        whsec(23),
        whsec(65),
        "whsec_hunter2 hunter2",
        "whsec_ñññññññññññññññññññññññññññññññññ",
        whsec(32) + "\n",
        "whsk_" + b64encode(b"hunter2").decode(),
        "whsk_" + b64encode(SEED + b"hunter2".ljust(32)).decode(),
        "whpk_" + b64encode(PUBLIC).decode(),
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(secret: str):
    with pytest.raises(InvalidWebhook) as caught:
        find_scheme(secret)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


# ── At rest ─────────────────────────────────────────────────────────────────────────────────────────────────────────
OWNER = ObjectId()


@given(st.text(st.characters(codec="utf-8")))
def test_what_was_sealed_opens_again(secret: str):
    vault = Vault([new_key()])
    token = vault.seal(secret, OWNER, Use.SIGN)
    assert vault.open(token, OWNER, Use.SIGN) == vault.open(token, OWNER, Use.SIGN) == secret
    assert not secret or secret not in token or len(secret) < 4


def test_key_is_changed_by_way_of_two():
    old, new = new_key(), new_key()
    token = Vault([old]).seal("s", OWNER, Use.SIGN)
    both = Vault([new, old])
    assert both.open(token, OWNER, Use.SIGN) == "s"
    again = both.reseal(token)
    assert Vault([new]).open(again, OWNER, Use.SIGN) == "s"
    with pytest.raises(SecretUnreadable):
        Vault([old]).open(again, OWNER, Use.SIGN)


@pytest.mark.parametrize("token", ["", "x", "ñ", "gAAAAA", "\0", "=" * 100])
def test_what_was_not_sealed_does_not_open(token: str):
    for look in (lambda v: v.open(token, OWNER, Use.SIGN), lambda v: v.reseal(token)):
        with pytest.raises(SecretUnreadable):
            look(Vault([new_key()]))


def test_secret_of_one_webhook_opens_for_no_other():
    vault = Vault([new_key()])
    token = vault.seal("s", OWNER, Use.SIGN)
    with pytest.raises(SecretUnreadable, match="another webhook"):
        vault.open(token, ObjectId(), Use.SIGN)


def test_secret_for_signing_cannot_be_sent_in_a_header():
    vault = Vault([new_key()])
    token = vault.seal("s", OWNER, Use.SIGN)
    with pytest.raises(SecretUnreadable, match="another webhook or use"):
        vault.open(token, OWNER, Use.HEADER)


def test_secret_with_colons_opens_whole():
    vault = Vault([new_key()])
    assert vault.open(vault.seal("a:b:c", OWNER, Use.HEADER), OWNER, Use.HEADER) == "a:b:c"


def test_nothing_is_sealed_or_opened_without_a_key():
    token = Vault([new_key()]).seal("s", OWNER, Use.SIGN)
    for look in (
        lambda v: v.seal("s", OWNER, Use.SIGN),
        lambda v: v.open(token, OWNER, Use.SIGN),
        lambda v: v.reseal(token),
    ):
        with pytest.raises(SecretUnreadable, match="WEBHOOKS_ENCRYPTION_KEY is not set"):
            look(Vault([]))


@pytest.mark.parametrize("scheme", list(Scheme))
def test_signature_is_told_from_others(scheme: Scheme):
    secret, other, body = new_secret(scheme), new_secret(scheme), b'{"a":1}'
    signatures = sign([new_secret(), secret], "msg_1", NOW, body)
    using = [secret] if scheme is Scheme.V1 else [secret, public_key(secret)]
    wrong = other if scheme is Scheme.V1 else public_key(other)
    for one in using:
        assert is_signed_with(one, "msg_1", NOW, body, signatures)
        assert not is_signed_with(one, "msg_2", NOW, body, signatures)
        assert not is_signed_with(one, "msg_1", NOW + 1, body, signatures)
        assert not is_signed_with(one, "msg_1", NOW, body + b" ", signatures)
        assert not is_signed_with(one, "msg_1", NOW, body, "v1, v1a,x é v2,AAAA v1a")
    assert not is_signed_with(wrong, "msg_1", NOW, body, signatures)


def test_v1a_signature_of_another_scheme_is_none():
    secret = new_secret(Scheme.V1A)
    signature = sign([secret], "msg_1", NOW, b"{}").replace("v1a,", "v1,")
    assert not is_signed_with(public_key(secret), "msg_1", NOW, b"{}", signature)


@pytest.mark.parametrize("secret", ["", "whpk_", "whpk_AAAA", "whsec_x", "secret"])
def test_verifying_with_what_is_no_secret_is_an_error(secret: str):
    with pytest.raises(InvalidWebhook, match="must be"):
        is_signed_with(secret, "msg_1", NOW, b"{}", "v1,AAAA")
