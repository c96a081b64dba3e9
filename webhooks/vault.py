"""Secrets at rest: sealed with a key that is in no database.

Owns encryption and the form of its keys; the cipher is Fernet (AES-128-CBC with HMAC-SHA256), of the library
``cryptography``. Never stores anything. Called by `delivery`, which opens what it needs for an attempt, and by `cli`,
which seals.

What is sealed for one webhook opens for no other one: whoever can write into the collection cannot have company A's
secret sent to company B.
"""

from collections.abc import Sequence
from functools import lru_cache

from bson import ObjectId
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from webhooks.errors import SecretUnreadable

#: Secrets that a process keeps open: opening one takes longer than signing with it.
_CACHE_SIZE = 10_000


def new_key() -> str:
    """Make a key for WEBHOOKS_ENCRYPTION_KEY."""
    return Fernet.generate_key().decode()


class Vault:
    """Seals and opens secrets; thread-safe."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Make a vault.

        Args:
            keys: the first one seals, each one opens; none: nothing can be sealed or opened.
        """
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._open = lru_cache(_CACHE_SIZE)(self._open_now)

    @property
    def has_key(self) -> bool:
        """Whether anything can be sealed."""
        return self._fernet is not None

    def seal(self, secret: str, webhook_id: ObjectId) -> str:
        """Return a secret as it may be stored with a webhook.

        Raises:
            SecretUnreadable: there is no key.
        """
        return self._need_key().encrypt(f"{webhook_id}:{secret}".encode()).decode()

    def open(self, sealed: str, webhook_id: ObjectId) -> str:
        """Return the secret in what `seal` made for this webhook.

        Raises:
            SecretUnreadable: there is no key, or not the one that it was sealed with; or it is another webhook's.
        """
        return self._open(sealed, webhook_id)

    def _open_now(self, sealed: str, webhook_id: ObjectId) -> str:
        try:
            owner, _, secret = self._need_key().decrypt(sealed.encode(errors="replace")).decode().partition(":")
        except InvalidToken:
            raise SecretUnreadable("it was sealed with a key that WEBHOOKS_ENCRYPTION_KEY does not have") from None
        if owner != str(webhook_id):
            raise SecretUnreadable("it was sealed for another webhook")
        return secret

    def reseal(self, sealed: str) -> str:
        """Return the same, sealed with the first key.

        Raises:
            SecretUnreadable: as `open`.
        """
        try:
            return self._need_key().rotate(sealed.encode(errors="replace")).decode()
        except InvalidToken:
            raise SecretUnreadable("it was sealed with a key that WEBHOOKS_ENCRYPTION_KEY does not have") from None

    def _need_key(self) -> MultiFernet:
        if self._fernet is None:
            raise SecretUnreadable("WEBHOOKS_ENCRYPTION_KEY is not set")
        return self._fernet
