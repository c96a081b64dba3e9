"""The digest of its settings that a worker keeps with its lease, for `webhooks check` and other commands to compare.

It holds no secret: encryption keys appear as fingerprints.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from typing import Any, Self

from webhooks.config import Network, Settings
from webhooks.rules.encryption import fingerprint
from webhooks.version import __version__


@dataclass(frozen=True, slots=True)
class Digest:
    """Settings of one process, as JSON values."""

    version: str
    #: CIDRs.
    allowed_networks: list[str]
    #: In the setting's syntax, such as ``80,443,8000-8999``; None if not set.
    allowed_ports: str | None
    #: Fingerprints of the keys, in the setting's order.
    encryption_key: list[str]
    retry_delay_s: float
    max_retries: int
    max_retry_after_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Make the digest of settings."""
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
    def read(cls, stored: Any) -> Self | None:
        """Read what a worker stored; None if it is no digest, as from another version."""
        try:
            made = cls(**stored)
            made.networks()
            made.ports()
        except (TypeError, ValueError, AttributeError):
            return None
        keys_are_text = isinstance(made.encryption_key, list) and all(
            isinstance(key, str) for key in made.encryption_key
        )
        return made if keys_are_text else None

    def to_wire(self) -> dict[str, Any]:
        """Return the form that `read` reads."""
        return asdict(self)

    def networks(self) -> tuple[Network, ...]:
        """Return the networks that are allowed besides public addresses."""
        return tuple(map(ip_network, self.allowed_networks))

    def ports(self) -> frozenset[int] | None:
        """Return the allowed ports; None if the setting is not set."""
        if self.allowed_ports is None:
            return None
        bounds = [part.partition("-") for part in self.allowed_ports.split(",") if part]
        return frozenset(port for first, _, last in bounds for port in range(int(first), int(last or first) + 1))

    def compare(self, other: "Digest") -> list[str]:
        """Return a line for each setting in which this worker differs from the calling process.

        Such as ``WEBHOOKS_MAX_RETRIES is 3 there, 5 here``.
        """
        here = other.to_wire()
        return [
            f"{'its version' if name == 'version' else f'WEBHOOKS_{name.upper()}'} is {_show(name, value)} there, "
            f"{_show(name, here[name])} here"
            for name, value in self.to_wire().items()
            if value != here[name]
        ]


def _show(name: str, value: Any) -> str:
    if isinstance(value, list):
        shown = ",".join(value)
        return f"of fingerprint {shown}" if shown and name == "encryption_key" else shown or "not set"
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(ports: Iterable[int]) -> str:
    """Write ports in the setting's syntax."""
    found: list[list[int]] = []
    for port in sorted(ports):
        if found and found[-1][1] == port - 1:
            found[-1][1] = port
        else:
            found.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def open_missing(workers: Mapping[str, Digest], key: str) -> list[str]:
    """Return the names of the workers that do not have this encryption key."""
    return [name for name, worker in workers.items() if fingerprint(key) not in worker.encryption_key]
