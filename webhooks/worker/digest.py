"""What a worker tells of its settings, so that `webhooks check` and the notes of other commands can judge by them.

Owns which settings those are, and how two processes' are compared. No secret is among them: a key is told by its
fingerprint. A worker answers with it to the inspect command of `inspection`.
"""

import hashlib
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from typing import Any, Self

from webhooks.config import Network, Settings
from webhooks.version import __version__

#: Name of the inspect command that a worker answers with its digest.
SETTINGS_COMMAND = "webhooks_settings"
_FINGERPRINT_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Digest:
    """Settings of one process, in a form that JSON knows."""

    version: str
    #: CIDRs.
    allowed_networks: list[str]
    #: As the setting has it, such as ``80,443,8000-8999``; None where it is not set.
    allowed_ports: str | None
    #: Fingerprints of the keys, in their order.
    encryption_key: list[str]
    retry_delay_s: float
    max_retries: int
    max_retry_after_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Tell of settings."""
        return cls(
            version=__version__,
            allowed_networks=sorted(map(str, settings.allowed_networks)),
            allowed_ports=None if settings.allowed_ports is None else _ranges(settings.allowed_ports),
            encryption_key=[fingerprint(key) for key in settings.encryption_key],
            retry_delay_s=settings.retry_delay_s,
            max_retries=settings.max_retries,
            max_retry_after_s=settings.max_retry_after_s,
        )

    @classmethod
    def read(cls, reply: Any) -> Self | None:
        """Read what a worker told; None where that is none: it may be of another version, or of another application."""
        try:
            made = cls(**reply)
            made.networks()
            made.ports()
        except (TypeError, ValueError, AttributeError):
            return None
        keys_are_text = isinstance(made.encryption_key, list) and all(
            isinstance(key, str) for key in made.encryption_key
        )
        return made if keys_are_text else None

    def to_wire(self) -> dict[str, Any]:
        """Return what `read` reads."""
        return asdict(self)

    def networks(self) -> tuple[Network, ...]:
        """Return the networks that requests may go to besides public addresses."""
        return tuple(map(ip_network, self.allowed_networks))

    def ports(self) -> frozenset[int] | None:
        """Return the ports that requests may go to; None where the setting is not set."""
        if self.allowed_ports is None:
            return None
        bounds = [part.partition("-") for part in self.allowed_ports.split(",") if part]
        return frozenset(port for first, _, last in bounds for port in range(int(first), int(last or first) + 1))

    def compare(self, other: "Digest") -> list[str]:
        """Say in which settings this process, a worker, differs from another one, the terminal.

        Returns:
            A line each, such as ``WEBHOOKS_MAX_RETRIES is 3 there, 5 here``.
        """
        here = other.to_wire()
        return [
            f"{'its version' if name == 'version' else f'WEBHOOKS_{name.upper()}'} is {_show(name, value)} there, "
            f"{_show(name, here[name])} here"
            for name, value in self.to_wire().items()
            if value != here[name]
        ]


def fingerprint(key: str) -> str:
    """Return what tells one encryption key from another, and tells nothing else of it."""
    digest = hashlib.sha256(b"webhooks encryption key\0" + urlsafe_b64decode(key))
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _show(name: str, value: Any) -> str:
    if isinstance(value, list):
        shown = ",".join(value)
        return f"of fingerprint {shown}" if shown and name == "encryption_key" else shown or "not set"
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(ports: Iterable[int]) -> str:
    """Write ports as the setting does."""
    found: list[list[int]] = []
    for port in sorted(ports):
        if found and found[-1][1] == port - 1:
            found[-1][1] = port
        else:
            found.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def open_missing(workers: Mapping[str, Digest], key: str) -> list[str]:
    """Return the names of the workers that cannot open what this key seals."""
    return [name for name, worker in workers.items() if fingerprint(key) not in worker.encryption_key]
