"""Encrypts stored secrets with a key that is in no database (Fernet: AES-128-CBC with HMAC-SHA256).

A sealed secret opens only for its webhook and use. So write access to the collection does not let a secret be used for
another webhook's signatures or headers. (It does allow a change of a webhook's URL.)
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256

from bson import ObjectId
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from webhooks.errors import SecretUnreadable

#: Opened secrets per process: opening one takes longer than signing with it.
_CACHE_SIZE = 10_000
_NEW_KEY = (
    ": set it to the workers' key; `webhooks secret new-key` makes a first one for both, and `webhooks up` keeps one "
    "in encryption.key in its data folder"
)
_SAME_KEY = ": set it to the key that sealed this, and the new one before it"


class Use(StrEnum):
    """The purpose of a secret."""

    SIGN = "sign"
    HEADER = "header"


def new_key() -> str:
    """Make a key for WEBHOOKS_ENCRYPTION_KEY."""
    return Fernet.generate_key().decode()


def fingerprint(key: str) -> str:
    """Identify a key without revealing it: 16 hexadecimal digits of its SHA-256."""
    return sha256(key.encode()).hexdigest()[:16]


class Vault:
    """Seals and opens secrets; thread-safe."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Seal with the first key and open with any; without keys do neither. Raises ValueError for a malformed key."""
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._open = lru_cache(_CACHE_SIZE)(self._open_now)

    @property
    def has_key(self) -> bool:
        """Whether there is a key."""
        return self._fernet is not None

    def seal(self, secret: str, webhook_id: ObjectId, use: Use) -> str:
        """Encrypt a secret for storage in a webhook; raise SecretUnreadable without a key."""
        return self.require_key().encrypt(f"{webhook_id}:{use}:{secret}".encode()).decode()

    def require_key(self) -> MultiFernet:
        """Return the cipher; raise SecretUnreadable, with the remedy, without a key."""
        return self._need_key(_NEW_KEY)

    def open(self, sealed: str, webhook_id: ObjectId, use: Use) -> str:
        """Decrypt a secret; raise SecretUnreadable without the right key, or if it is for another webhook or use."""
        return self._open(sealed, webhook_id, use)

    def _open_now(self, sealed: str, webhook_id: ObjectId, use: Use) -> str:
        owner, _, rest = _decipher(self._need_key().decrypt, sealed).partition(":")
        sealed_for, _, secret = rest.partition(":")
        if (owner, sealed_for) != (str(webhook_id), use):
            raise SecretUnreadable("it was sealed for another webhook or use")
        return secret

    def reseal(self, sealed: str) -> str:
        """Encrypt a sealed secret with the first key; raise SecretUnreadable without the right key."""
        return _decipher(self._need_key(_SAME_KEY).rotate, sealed)

    def _need_key(self, remedy: str = "") -> MultiFernet:
        if self._fernet is None:
            raise SecretUnreadable(f"WEBHOOKS_ENCRYPTION_KEY is not set{remedy}")
        return self._fernet


def _decipher(act: Callable[[bytes], bytes], sealed: str) -> str:
    try:
        return act(sealed.encode(errors="replace")).decode()
    except InvalidToken:
        raise SecretUnreadable("it was sealed with a key that WEBHOOKS_ENCRYPTION_KEY does not have") from None
