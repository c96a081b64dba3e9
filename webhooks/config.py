"""The settings: environment variables that begin with ``WEBHOOKS_``, read once per process."""

import re
import ssl
import sys
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from webhooks.errors import InvalidSettings, NoResponse
from webhooks.models.url import parse_url
from webhooks.rules.broker_url import read_broker_url
from webhooks.rules.mongodb_url import find_overruled, read_mongodb_url

Network = IPv4Network | IPv6Network

PREFIX = "WEBHOOKS_"
#: Names and values of the variables that Kubernetes sets in each container for each Service.
_KUBERNETES_NAME = re.compile(r"(^|_)SERVICE_(HOST|PORT)|(^|_)PORT_[0-9]+_(TCP|UDP|SCTP)")
_KUBERNETES_VALUE = re.compile(r"(tcp|udp|sctp)://")
#: The forms of encryption keys and signing secrets. `rules.encryption` and `rules.signing` need a library that
#: producers do not install.
_KEY_BYTES = 32
_SECRET_PREFIX, _SECRET_BYTES = "whsec_", range(24, 65)
_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")
_MAX_PORT = 65535
#: A host name, an IPv4 address, or an IPv6 address without brackets.
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")
#: Not allowed in user or password (RFC 7617, 2). Lone surrogates stand for bytes that are not UTF-8.
_NOT_IN_CREDENTIALS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that supports CONNECT."""

    host: str
    port: int
    #: ``user:password``; ``None`` to send none.
    credentials: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse ``http://[user:password@]host:port``; user and password may be percent-encoded.

        Raises:
            ValueError: the URL is not valid. The text does not repeat it.
        """
        wanted = "must be http://[user:password@]host:port"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError(wanted) from None
        if parts.scheme == "https":
            raise ValueError(f"{wanted}: TLS to the proxy itself is not supported")
        has_more = parts.path not in ("", "/") or parts.query or parts.fragment
        if parts.scheme != "http" or has_more or not port or not host or not _HOST.fullmatch(host):
            raise ValueError(wanted)
        if parts.username is None:
            return cls(host, port)
        user, password = unquote(parts.username), unquote(parts.password or "")
        if not user or ":" in user or _NOT_IN_CREDENTIALS.search(user + password):
            raise ValueError(f"{wanted}: user or password cannot be sent")
        return cls(host, port, f"{user}:{password}")

    def to_url(self) -> str:
        """Return the URL that `parse` reads, with its credentials."""
        user, _, password = (self.credentials or "").partition(":")
        before = f"{quote(user, safe='')}:{quote(password, safe='')}@" if self.credentials else ""
        return f"http://{before}{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Settings(BaseSettings):
    """All settings. A test compares each ``description`` with the documentation's table."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="Celery's broker: `redis://…` or `amqp://…`, with TLS `rediss://…` or `amqps://…`",
    )
    publish_timeout_s: float = Field(
        default=5,
        ge=0.1,
        le=300,
        description="maximum seconds that a call such as `deliver.delay` waits for a broker that is away",
    )
    mongodb_url: str = Field(
        default="mongodb://127.0.0.1:27017/webhooks",
        repr=False,
        description="MongoDB, with the name of the database as its path",
    )
    mongodb_timeout_s: float = Field(
        default=10,
        gt=0,
        le=300,
        description="seconds that MongoDB may take to answer; a worker holds a message for as long while it is away",
    )
    retry_delay_s: float = Field(
        default=30, ge=0, le=86_400, description="seconds from the end of a failed attempt to the next one"
    )
    max_retries: int = Field(default=3, ge=0, le=100, description="how often a failed attempt is repeated")
    max_retry_after_s: float = Field(
        default=3600, ge=0, le=86_400, description="maximum seconds of a receiver's `Retry-After`; 0 ignores it"
    )
    pause_after_s: float = Field(
        default=600,
        ge=1,
        le=86_400,
        description="seconds for which an endpoint must have failed before its webhook is paused",
    )
    pause_share: float = Field(
        default=0.9, gt=0, le=1, description="share of the attempts in that time that must have failed"
    )
    pause_min_attempts: int = Field(default=20, ge=1, le=10_000, description="minimum number of attempts in that time")
    probe_interval_s: float = Field(
        default=60, gt=0, le=86_400, description="seconds between two probes of a paused endpoint"
    )
    operators_url: str | None = Field(
        default=None,
        repr=False,
        description="where to POST a notice when a webhook is paused, recovers, stops or is deactivated: `http://…` or "
        "`https://…`, also in a private network; empty: nowhere",
    )
    operators_secret: str | None = Field(
        default=None, repr=False, description="secret that signs these notices: `whsec_…`; empty: they are not signed"
    )
    connect_timeout_s: float = Field(default=5, gt=0, le=300, description="seconds that a TCP connection may take")
    total_timeout_s: float = Field(
        default=15,
        gt=0,
        le=600,
        description="seconds that a whole attempt may take, from the DNS lookup to the last byte of the response",
    )
    allowed_networks: Annotated[tuple[Network, ...], NoDecode] = Field(
        default=(), description="networks that requests may go to besides public addresses: CIDRs, comma-separated"
    )
    allowed_ports: Annotated[frozenset[int] | None, NoDecode] = Field(
        default=None,
        description="ports that requests may go to, such as `80,443,8000-8999`; empty: every port except those of "
        "well-known services other than HTTP",
    )
    proxy_url: Annotated[Proxy | None, NoDecode] = Field(
        default=None,
        repr=False,
        description="HTTP proxy for all requests: `http://[user:password@]host:port`; empty: none",
    )
    ca_bundle: Path | None = Field(
        default=None, description="PEM file of certificate authorities to trust instead of certifi's list"
    )
    encryption_key: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        repr=False,
        description="keys that encrypt webhooks' secrets in MongoDB, comma-separated: the first encrypts, each "
        "decrypts; from `webhooks secret new-key`",
    )
    max_event_bytes: int = Field(
        default=256 * 1024, ge=1024, le=4 * 1024 * 1024, description="maximum bytes of an event as JSON"
    )
    max_response_bytes: int = Field(
        default=16 * 1024, ge=0, le=1024 * 1024, description="maximum bytes of a response body that are read and logged"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="format of a worker's log lines: `text`, or `json` for one JSON object a line"
    )
    log_ttl_days: int = Field(default=30, ge=0, le=24_000, description="days until a log expires; 0 keeps logs forever")
    sweep_interval_s: float = Field(
        default=10, gt=0, le=3600, description="seconds between two sweeps for deliveries whose message is lost"
    )
    concurrency: int = Field(
        default=256, ge=1, le=10_000, description="maximum number of attempts in flight per worker process"
    )

    metrics_port: Annotated[frozenset[int] | None, NoDecode] = Field(
        default=None,
        description="port at which a worker serves metrics and probes, or ports such as `9464-9471`, of which each "
        "worker takes the first that is free; empty: none",
    )
    metrics_address: str = Field(
        default="127.0.0.1", description="address of that port: `0.0.0.0` or `::` for all; it has no login and no TLS"
    )

    web_readonly: bool = Field(default=False, description="whether the pages in Flower are read-only")

    atomic_transport: bool = Field(
        default=True,
        description="on a Redis broker, take and record messages in one step and keep waiting retries in Redis, so "
        "that a killed worker loses none (needs Redis 7.0 or Valkey); false uses Celery's own transport",
    )

    @property
    def claim_s(self) -> float:
        """Seconds that a claim lasts: enough for the attempt and for writing its log."""
        return self.total_timeout_s + self.mongodb_timeout_s

    @property
    def visibility_timeout_s(self) -> float:
        """Seconds after which the broker redelivers an unacked message of a live worker; too short repeats attempts.

        With our transport, messages of a dead worker return earlier, when its lease expires (`transport.holder`).
        This is the longest a worker rightly holds a message: prefetched behind another one, both waiting for MongoDB
        before and after their attempts. On Celery's own transport a retry also waits in the worker until it is due.
        """
        waiting_s = 0 if self.atomic_transport else self.retry_delay_s
        return waiting_s + 2 * (2 * self.mongodb_timeout_s + self.total_timeout_s)

    @field_validator("broker_url")
    @classmethod
    def _read_broker_url(cls, value: str) -> str:
        return read_broker_url(value, is_test="pytest" in sys.modules)

    @field_validator("mongodb_url")
    @classmethod
    def _read_mongodb_url(cls, value: str) -> str:
        return read_mongodb_url(value)

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(part) for part in _parts(value))
        except ValueError:
            raise ValueError("must be networks as 10.0.0.0/8, comma-separated, without host bits") from None

    @field_validator("encryption_key", mode="before")
    @classmethod
    def _split_keys(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        keys = tuple(_parts(value)) if isinstance(value, str) else value
        if not all(_is_key(key) for key in keys):
            raise ValueError("must be keys as `webhooks secret new-key` makes them, comma-separated")
        return keys

    @field_validator("allowed_ports", "metrics_port", mode="before")
    @classmethod
    def _split_ports(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if not value.strip():
            return None
        ports: set[int] = set()
        for part in value.split(","):  # strict: an empty list would allow all ports
            match = _PORTS.fullmatch(part.strip())
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if not 0 < first <= last <= _MAX_PORT:
                raise ValueError("must be ports and ranges from 1 to 65535, such as 80,443,8000-8999")
            ports.update(range(first, last + 1))
        return frozenset(ports)

    @field_validator("proxy_url", mode="before")
    @classmethod
    def _parse_proxy(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return Proxy.parse(value.strip()) if value.strip() else None

    @field_validator("operators_url", "operators_secret", "ca_bundle", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("metrics_address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            return str(ip_address(value))
        except ValueError:
            raise ValueError("must be an IP address, such as 127.0.0.1 or 0.0.0.0") from None

    @field_validator("operators_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        try:
            parse_url(value or "http://host")
        except NoResponse as error:
            raise ValueError(f"must be http://… or https://…; {error.text}") from None
        return value

    @field_validator("operators_secret")
    @classmethod
    def _is_secret(cls, value: str | None) -> str | None:
        if value is not None and not _is_signing_secret(value):
            raise ValueError(
                f"must be {_SECRET_PREFIX} and {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} bytes in base64, such as "
                '`echo "whsec_$(openssl rand -base64 32)"` makes'
            )
        return value

    @field_validator("ca_bundle")
    @classmethod
    def _ca_bundle_has_certificates(cls, value: Path | None) -> Path | None:
        try:
            if value is not None:
                ssl.create_default_context(cafile=str(value))
        except FileNotFoundError:
            raise ValueError("there is no such file") from None
        except ssl.SSLError:
            raise ValueError("holds no certificates in PEM form") from None
        except OSError as error:  # such as a folder without access, or a name that is too long
            raise ValueError(f"cannot be read: {error.strerror}") from None
        return value


@cache
def get_settings() -> Settings:
    """Read the environment, once per process.

    Raises:
        InvalidSettings: one line with each invalid variable and the reason, without values: URLs hold passwords.
    """
    try:
        return Settings()
    except ValidationError as error:
        messages = [(str(e["loc"][0]).upper(), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        reasons = [f"{PREFIX}{name}: {message[0].lower()}{message[1:]}" for name, message in messages]
        raise InvalidSettings("; ".join(reasons)) from None


def find_notices(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence, without values, for each unknown setting and each ignored option of MongoDB's URL."""
    known = [name.upper() for name in Settings.model_fields]
    given = {name.upper(): value for name, value in sorted(environ.items())}
    ours = {name.removeprefix(PREFIX): value for name, value in given.items() if name.startswith(PREFIX)}
    notices = []
    for name, value in ours.items():
        is_foreign = name.startswith("TEST_") or _KUBERNETES_NAME.search(name) or _KUBERNETES_VALUE.match(value)
        if name not in known and not is_foreign:
            nearest = get_close_matches(name, known, n=1)
            remedy = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "`webhooks settings` lists all"
            notices.append(f"{PREFIX}{name} is not a setting: {remedy}")
    for option in find_overruled(ours.get("MONGODB_URL", "")):
        notices.append(f"{PREFIX}MONGODB_URL: the option {option} has no effect: everything is read from the primary")
    return notices


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_key(text: str) -> bool:
    try:
        return len(urlsafe_b64decode(text)) == _KEY_BYTES
    except ValueError:
        return False


def _is_signing_secret(text: str) -> bool:
    try:
        raw = b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(_SECRET_PREFIX) and len(raw) in _SECRET_BYTES
