"""Secrets at rest: sealed with a key that is in no database.

Owns encryption and the form of its keys; the cipher is Fernet (AES-128-CBC with HMAC-SHA256), of the library
``cryptography``. Never stores anything. Called by `delivery`, which opens what it needs for an attempt, and by `cli`,
which seals.

What is sealed for one webhook and one use opens for no other: whoever can write into the collection cannot have a
secret signed with for another webhook, or sent in a header. (They can change where a webhook's headers go.)
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256

from bson import ObjectId
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from webhooks.errors import SecretUnreadable

#: Secrets that a process keeps open: opening one takes longer than signing with it.
_CACHE_SIZE = 10_000
#: What to do without a key, for those who run a command.
_NEW_KEY = (
    ": set it to the workers' key; `webhooks secret new-key` makes a first one for both, and `webhooks up` keeps one "
    "in encryption.key in its data folder"
)
_SAME_KEY = ": set it to the key that sealed this, and the new one before it"


class Use(StrEnum):
    """What a secret is for."""

    SIGN = "sign"
    HEADER = "header"


def new_key() -> str:
    """Make a key for WEBHOOKS_ENCRYPTION_KEY."""
    return Fernet.generate_key().decode()


def fingerprint(key: str) -> str:
    """Return what tells a key from others and shows nothing of it: 16 hexadecimal digits of its SHA-256."""
    return sha256(key.encode()).hexdigest()[:16]


class Vault:
    """Seals and opens secrets; thread-safe."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Make a vault.

        Args:
            keys: the first one seals, each one opens; none: nothing can be sealed or opened.

        Raises:
            ValueError: one of them is no key.
        """
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._open = lru_cache(_CACHE_SIZE)(self._open_now)

    @property
    def has_key(self) -> bool:
        """Whether anything can be sealed."""
        return self._fernet is not None

    def seal(self, secret: str, webhook_id: ObjectId, use: Use) -> str:
        """Return a secret as it may be stored with a webhook.

        Raises:
            SecretUnreadable: there is no key.
        """
        return self.require_key().encrypt(f"{webhook_id}:{use}:{secret}".encode()).decode()

    def require_key(self) -> MultiFernet:
        """Return what seals.

        Raises:
            SecretUnreadable: there is no key; with the remedy.
        """
        return self._need_key(_NEW_KEY)

    def open(self, sealed: str, webhook_id: ObjectId, use: Use) -> str:
        """Return the secret in what `seal` made for this webhook and this use.

        Raises:
            SecretUnreadable: there is no key, or not the one that it was sealed with; or it was sealed for another
                webhook or use.
        """
        return self._open(sealed, webhook_id, use)

    def _open_now(self, sealed: str, webhook_id: ObjectId, use: Use) -> str:
        owner, _, rest = _decipher(self._need_key().decrypt, sealed).partition(":")
        sealed_for, _, secret = rest.partition(":")
        if (owner, sealed_for) != (str(webhook_id), use):
            raise SecretUnreadable("it was sealed for another webhook or use")
        return secret

    def reseal(self, sealed: str) -> str:
        """Return the same, sealed with the first key.

        Raises:
            SecretUnreadable: there is no key, or not the one that it was sealed with.
        """
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
