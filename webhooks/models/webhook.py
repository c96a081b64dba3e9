"""COTWebhook: one subscription."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from bson import ObjectId
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from webhooks.errors import InvalidWebhook, NoResponse
from webhooks.models.headers import MAX_HEADERS, ExtraHeader, fold_name
from webhooks.models.url import parse_url, read_origin
from webhooks.models.wire import Id, Instant, WireModel, explain, parse_object_id

TriggerName = Literal[
    "create-edit-delete-user",
    "create-edit-delete-task",
    "create-edit-delete-survey",
    "create-edit-delete-property",
    "create-edit-delete-note",
    "logout-user",
]


class Trigger(NamedTuple):
    """The events of a trigger (contract)."""

    type: str
    events: frozenset[str]
    #: Context field → the key of the event's ``data`` that it must equal.
    narrowed_by: Mapping[str, str]


_CHANGES = frozenset({"create", "edit", "delete"})

TRIGGERS: Mapping[str, Trigger] = {
    "create-edit-delete-user": Trigger("COTUser", _CHANGES, {}),
    "create-edit-delete-task": Trigger("COTTask", _CHANGES, {"taskGroup": "taskGroup"}),
    "create-edit-delete-survey": Trigger("COTSurvey", _CHANGES, {"survey": "surveyId", "group": "group"}),
    "create-edit-delete-property": Trigger("COTProperty", _CHANGES, {}),
    "create-edit-delete-note": Trigger("COTNote", _CHANGES, {}),
    "logout-user": Trigger("Auth", frozenset({"logout"}), {}),
}

#: Each adds a signature of 50 to 100 characters to every request; a rotation needs two secrets.
MAX_SECRETS = 5

#: Limits of `rate_limit` (attempts per second) and `rate_burst` (attempts).
MAX_RATE = 10_000
#: One attempt in 17 minutes. With much less, the next attempt's date would be beyond the calendar.
MIN_RATE = 0.001

_CODE = re.compile(r"[a-z0-9_]+", re.ASCII)


def _parse_context_id(value: object) -> str:
    """Read an ObjectId or ``""``; hand-written documents hold None for ``""``."""
    return "" if value in ("", None) else str(parse_object_id(value))


class Context(BaseModel):
    """Narrows a webhook within its trigger; ``""`` matches everything. Ids are in lower case."""

    model_config = ConfigDict(extra="allow", frozen=True)

    survey: str = ""
    group: str = ""
    taskGroup: str = ""  # noqa: N815 - the contract's name

    _parse = field_validator("survey", "group", "taskGroup", mode="before")(_parse_context_id)


class SigningSecret(BaseModel):
    """One signing secret of a webhook: an element of ``secrets``, this project's own field."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    #: Its name; tells nothing about the secret.
    id: str
    scheme: Literal["v1", "v1a"]
    #: As `Vault.seal` returns it.
    sealed: str
    #: The public key ``whpk_…`` of v1a; None for v1.
    public: str | None = None
    createdAt: Instant  # noqa: N815 - as in the objects of the contract
    #: When it stops signing; None: not scheduled.
    expiresAt: Instant | None = None  # noqa: N815

    def is_valid_at(self, instant: datetime) -> bool:
        """Return whether it signs requests at this instant."""
        return self.expiresAt is None or instant < self.expiresAt


class COTWebhook(WireModel):
    """One subscription (contract). Unknown keys are kept.

    A hand-written document may lack the fields that only people read.
    """

    id: Id = Field(alias="_id")
    company: Id
    isActive: bool = Field(strict=True)  # noqa: N815 - the contract's name
    trigger: TriggerName
    #: Accepted by `parse_url`.
    url: str
    name: str = ""
    description: str = ""
    #: Unique within its company; never changes once saved. Empty only in a hand-written document.
    code: str = ""
    context: Context = Context()

    # This project's own fields.
    #: Every valid one signs each request; empty: requests are not signed.
    secrets: tuple[SigningSecret, ...] = Field(default=(), max_length=MAX_SECRETS)
    headers: tuple[ExtraHeader, ...] = Field(default=(), max_length=MAX_HEADERS)
    #: Deliver events one at a time, in the order in which they were accepted.
    ordered: bool = Field(default=False, strict=True)
    #: For an ordered webhook, when a delivery's retries are used up. ``stop`` waits for an operator.
    on_exhausted: Literal["next", "stop"] = "next"
    #: Maximum attempts per second over all workers; None: no limit.
    rate_limit: float | None = Field(default=None, ge=MIN_RATE, le=MAX_RATE)
    #: Attempts allowed at once after a quiet period.
    rate_burst: int = Field(default=1, ge=1, le=MAX_RATE)
    #: Send the id of each attempt's span to the receiver. Ids of traces are ours to give away, so never by default.
    traced: bool = Field(default=False, strict=True)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if reason := why_bad_url(url):
            raise ValueError(reason)
        return url

    @field_validator("code")
    @classmethod
    def _check_code(cls, code: str) -> str:
        if not _CODE.fullmatch(code):
            raise ValueError("must be small letters, digits and _ only, at least one")
        return code

    @field_validator("context", "secrets", "headers", "ordered", "on_exhausted", "rate_burst", "traced", mode="before")
    @classmethod
    def _default(cls, value: object, info: ValidationInfo) -> object:
        """Take the default for None, which hand-written documents hold for a missing field."""
        return cls.model_fields[info.field_name or ""].default if value is None else value

    @field_validator("rate_limit", "rate_burst", mode="before")
    @classmethod
    def _no_bool(cls, value: object) -> object:
        if isinstance(value, bool | str):
            raise ValueError("must be a number")  # noqa: TRY004 - for pydantic
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: tuple[ExtraHeader, ...]) -> tuple[ExtraHeader, ...]:
        names = [fold_name(header.name) for header in headers]
        if len(set(names)) < len(names):
            raise ValueError("a name appears twice")
        return headers

    def to_bson(self) -> dict[str, Any]:
        """Return the webhook as MongoDB stores it."""
        stored = super().to_bson()
        if isinstance(stored.get("context"), dict):
            for field in Context.model_fields.keys() & stored["context"].keys():
                digits = getattr(self.context, field)
                stored["context"] = {**stored["context"], field: ObjectId(digits) if digits else ""}
        if self.secrets:
            stored["secrets"] = [secret.model_dump(exclude_none=True) for secret in self.secrets]
        return stored

    @property
    def label(self) -> str:
        """Its code, or its id if a hand-written document has no code."""
        return self.code or str(self.id)

    @property
    def origin(self) -> str:
        """Scheme, host and port of its URL. Path and query may hold secrets."""
        return read_origin(self.url)


@dataclass(frozen=True, slots=True)
class UnusableWebhook:
    """The readable part of a stored webhook that breaks the contract: enough to match events."""

    id: ObjectId
    company: ObjectId
    #: Falsy values such as 0 count as False.
    isActive: bool  # noqa: N815 - the contract's name
    trigger: str
    #: Unreadable fields narrow nothing.
    context: Context
    label: str
    #: Every wrong field and why, without values.
    reason: str


def why_bad_url(url: str) -> str | None:
    """Return why a webhook cannot have this URL, without repeating it; None if it can."""
    try:
        parse_url(url)
    except NoResponse as error:
        return error.text.removeprefix("bad URL: ")
    return None


def parse_webhook(value: Mapping[str, Any]) -> COTWebhook:
    """Check a webhook; raise InvalidWebhook, with every field and reason, if it is unusable."""
    try:
        return COTWebhook.model_validate(value)
    except ValidationError as error:
        raise InvalidWebhook(f"invalid webhook: {explain(error)}") from None
