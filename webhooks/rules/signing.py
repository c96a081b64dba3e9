"""Signatures of the Standard Webhooks specification 1.0, and the forms of their secrets.

The signed content is ``id.timestamp.body``. A signature is ``v1,`` with HMAC-SHA256 or ``v1a,`` with Ed25519
(RFC 8032), in base64.
"""

import binascii
import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from webhooks.errors import InvalidWebhook

#: The specification's bounds of a symmetric secret, and the length of ours.
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64
_OUR_SECRET_BYTES = 32
#: An Ed25519 seed, and a seed followed by its public key.
_SEED_BYTES, _KEY_PAIR_BYTES = 32, 64
#: Parsed secrets per process.
_CACHE_SIZE = 10_000


class Scheme(StrEnum):
    """How a request is signed."""

    #: HMAC-SHA256, with a shared secret.
    V1 = "v1"
    #: Ed25519, with a public key.
    V1A = "v1a"


_PREFIXES = {Scheme.V1: "whsec_", Scheme.V1A: "whsk_"}
_PUBLIC_PREFIX = "whpk_"


def new_secret(scheme: Scheme = Scheme.V1) -> str:
    """Make a secret: ``whsec_…`` for v1, the private key ``whsk_…`` for v1a."""
    if scheme is Scheme.V1:
        return _write(_PREFIXES[scheme], secrets.token_bytes(_OUR_SECRET_BYTES))
    key = Ed25519PrivateKey.generate()
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return _write(_PREFIXES[scheme], seed + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def find_scheme(secret: str) -> Scheme:
    """Validate a secret and return its scheme; raise InvalidWebhook, without the secret, if it is invalid."""
    scheme = next((scheme for scheme, prefix in _PREFIXES.items() if secret.startswith(prefix)), None)
    if scheme is None:
        raise InvalidWebhook("invalid secret: must begin with whsec_ or whsk_")
    _load(secret)
    return scheme


def public_key(private_key: str) -> str:
    """Return the public key ``whpk_…`` of a private key ``whsk_…``; raise InvalidWebhook if it is invalid."""
    key = _read_ed25519(private_key)
    return _write(_PUBLIC_PREFIX, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def sign(using: Iterable[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header ``webhook-signature``; raise InvalidWebhook for an invalid secret.

    Args:
        using: secrets; each gives one signature, in order. During a rotation there are several.
        message_id: the header ``webhook-id``.
        timestamp: the header ``webhook-timestamp``, seconds since 1970.
        body: as it is sent.
    """
    content = _content(message_id, timestamp, body)
    return " ".join(_load(secret)(content) for secret in using)


def is_signed_with(secret: str, message_id: str, timestamp: int, body: bytes, signatures: str) -> bool:
    """Tell whether one of a request's signatures was made with a secret; raise InvalidWebhook if that is invalid.

    Args:
        secret: ``whsec_…`` or ``whsk_…``; or the public key ``whpk_…``.
        message_id: as for `sign`, and so are the next two.
        timestamp: of the request.
        body: as it came.
        signatures: the header ``webhook-signature``.
    """
    given = signatures.split()
    if not secret.startswith(_PUBLIC_PREFIX):
        expected = sign([secret], message_id, timestamp, body).encode()
        return any(hmac.compare_digest(expected, one.encode()) for one in given)
    raw = _read(secret, _PUBLIC_PREFIX)
    if len(raw) != _SEED_BYTES:
        raise InvalidWebhook(f"invalid public key: must be 32 bytes in base64 after {_PUBLIC_PREFIX}")
    key, content = Ed25519PublicKey.from_public_bytes(raw), _content(message_id, timestamp, body)
    return any(_verifies(key, one, content) for one in given)


def _verifies(key: Ed25519PublicKey, signature: str, content: bytes) -> bool:
    scheme, _, text = signature.partition(",")
    try:
        key.verify(b64decode(text, validate=True), content)
    except (InvalidSignature, ValueError):
        return False
    return scheme == Scheme.V1A


def _content(message_id: str, timestamp: int, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode() + body


@lru_cache(maxsize=_CACHE_SIZE)
def _load(secret: str) -> Callable[[bytes], str]:
    """Return the function that signs content with a secret."""
    if secret.startswith(_PREFIXES[Scheme.V1A]):
        key = _read_ed25519(secret)
        return lambda content: f"v1a,{b64encode(key.sign(content)).decode()}"
    raw = _read(secret, _PREFIXES[Scheme.V1])
    if not _MIN_SECRET_BYTES <= len(raw) <= _MAX_SECRET_BYTES:
        raise InvalidWebhook(
            f"invalid secret: must be {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes in base64 after whsec_"
        )
    return lambda content: f"v1,{b64encode(hmac.digest(raw, content, hashlib.sha256)).decode()}"


def _read_ed25519(private_key: str) -> Ed25519PrivateKey:
    raw = _read(private_key, _PREFIXES[Scheme.V1A])
    if len(raw) not in (_SEED_BYTES, _KEY_PAIR_BYTES):
        raise InvalidWebhook("invalid private key: must be 32 or 64 bytes in base64 after whsk_")
    key = Ed25519PrivateKey.from_private_bytes(raw[:_SEED_BYTES])
    if raw[_SEED_BYTES:] not in (b"", key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)):
        raise InvalidWebhook("invalid private key: its public key does not match")
    return key


def _read(text: str, prefix: str) -> bytes:
    if not text.startswith(prefix):
        raise InvalidWebhook(f"invalid secret: must begin with {prefix}")
    try:
        return b64decode(text.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidWebhook(f"invalid secret: must be base64 after {prefix}") from None


def _write(prefix: str, raw: bytes) -> str:
    return prefix + b64encode(raw).decode()
