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
    """What a trigger asks for (contract)."""

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

#: Each makes a signature of 50 to 100 characters in every request, and a rotation needs two.
MAX_SECRETS = 5

#: Attempts per second, and in a burst. More than one endpoint gets from any number of workers we know of.
MAX_RATE = 10_000
#: Attempts per second at least, as a limit: one in 17 minutes. With much less, the next attempt would be due on no day
#: that a clock knows.
MIN_RATE = 0.001

_CODE = re.compile(r"[a-z0-9_]+", re.ASCII)


def _parse_context_id(value: object) -> str:
    """Read an ObjectId or ``""``; None, which hand-written documents hold, means the same as ``""``."""
    return "" if value in ("", None) else str(parse_object_id(value))


class Context(BaseModel):
    """What narrows a webhook within its trigger; ``""`` matches all. Ids are lower-case digits."""

    model_config = ConfigDict(extra="allow", frozen=True)

    survey: str = ""
    group: str = ""
    taskGroup: str = ""  # noqa: N815 - the contract's name

    _parse = field_validator("survey", "group", "taskGroup", mode="before")(_parse_context_id)


class SigningSecret(BaseModel):
    """One secret that a webhook's requests are signed with. An element of ``secrets``, which is this project's own."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    #: What people name it by; says nothing of the secret.
    id: str
    scheme: Literal["v1", "v1a"]
    #: The secret as `vault` sealed it.
    sealed: str
    #: ``whpk_…``, what receivers check a v1a signature with; None for v1.
    public: str | None = None
    createdAt: Instant  # noqa: N815 - as in the objects of the contract
    #: From then on it signs no more; None: until it is rotated.
    expiresAt: Instant | None = None  # noqa: N815

    def is_valid_at(self, instant: datetime) -> bool:
        """Whether requests are signed with it then."""
        return self.expiresAt is None or instant < self.expiresAt


class COTWebhook(WireModel):
    """One subscription (contract). Other keys are kept.

    Of the fields that only people read, a hand-written document may lack any: it still gets its events.
    """

    id: Id = Field(alias="_id")
    company: Id
    isActive: bool = Field(strict=True)  # noqa: N815 - the contract's name
    trigger: TriggerName
    #: http or https, with a host, without credentials.
    url: str
    name: str = ""
    description: str = ""
    #: Unique within its company; never changes once saved. Empty only in a document written by hand.
    code: str = ""
    context: Context = Context()
    #: This project's own. Requests are signed with each one that is valid; empty: they are not signed.
    secrets: tuple[SigningSecret, ...] = Field(default=(), max_length=MAX_SECRETS)
    #: This project's own: further headers of its requests.
    headers: tuple[ExtraHeader, ...] = Field(default=(), max_length=MAX_HEADERS)

    #: This project's own: its events arrive in the order in which they were accepted, one at a time.
    ordered: bool = Field(default=False, strict=True)
    #: This project's own, for an ordered one: what comes after a delivery whose retries are used up. ``stop`` waits for
    #: an operator.
    on_exhausted: Literal["next", "stop"] = "next"
    #: This project's own: attempts per second at most, over all workers; None: no limit.
    rate_limit: float | None = Field(default=None, ge=MIN_RATE, le=MAX_RATE)
    #: This project's own: attempts that may be made at once where none was made for a while.
    rate_burst: int = Field(default=1, ge=1, le=MAX_RATE)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        reason = why_bad_url(url)
        if reason:
            raise ValueError(reason)
        return url

    @field_validator("code")
    @classmethod
    def _check_code(cls, code: str) -> str:
        if not _CODE.fullmatch(code):
            raise ValueError("must be small letters, digits and _ only, at least one")
        return code

    @field_validator("secrets", "headers", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return () if value is None else value

    @field_validator("ordered", "on_exhausted", "rate_burst", mode="before")
    @classmethod
    def _default(cls, value: object, info: ValidationInfo) -> object:
        """Take None, which hand-written documents hold, for a field that is not there."""
        return cls.model_fields[info.field_name or ""].default if value is None else value

    @field_validator("rate_limit", "rate_burst", mode="before")
    @classmethod
    def _no_bool(cls, value: object) -> object:
        if isinstance(value, bool | str):
            raise ValueError("must be a number")  # noqa: TRY004 - pydantic's way to refuse
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: tuple[ExtraHeader, ...]) -> tuple[ExtraHeader, ...]:
        names = [fold_name(header.name) for header in headers]
        if len(set(names)) < len(names):
            raise ValueError("one name stands there twice")
        return headers

    @field_validator("context", mode="before")
    @classmethod
    def _no_context(cls, value: object) -> object:
        return {} if value is None else value

    def to_bson(self) -> dict[str, Any]:
        """Return the webhook as MongoDB holds it."""
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
        """What people know it by: its code, or its id where a hand-written document has no code."""
        return self.code or str(self.id)

    @property
    def origin(self) -> str:
        """Scheme, host and port of its URL: what may be shown, as paths and queries often hold secrets."""
        return read_origin(self.url)


@dataclass(frozen=True, slots=True)
class UnusableWebhook:
    """What can be read of a stored webhook that breaks the contract: enough to tell which events it asked for."""

    id: ObjectId
    company: ObjectId
    #: False where the document says so in another form, such as 0.
    isActive: bool  # noqa: N815 - the contract's name
    trigger: str
    #: A field that cannot be read narrows nothing.
    context: Context
    #: As `COTWebhook.label`.
    label: str
    #: Each field that is wrong, and why; no values.
    reason: str


def why_bad_url(url: str) -> str | None:
    """Say why a webhook cannot have this URL, in words without the URL; None when it can."""
    try:
        parse_url(url)
    except NoResponse as error:
        return error.text.removeprefix("bad URL: ")
    return None


def parse_webhook(value: Mapping[str, Any]) -> COTWebhook:
    """Check a webhook as typed in or stored.

    Raises:
        InvalidWebhook: names every field and reason.
    """
    try:
        return COTWebhook.model_validate(value)
    except ValidationError as error:
        raise InvalidWebhook(f"invalid webhook: {explain(error)}") from None
