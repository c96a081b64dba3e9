"""COTWebhook: one subscription."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from bson import ObjectId
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from webhooks.errors import InvalidWebhook
from webhooks.models.wire import Id, WireModel, explain, parse_object_id

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
        return stored

    @property
    def label(self) -> str:
        """What people know it by: its code, or its id where a hand-written document has no code."""
        return self.code or str(self.id)

    @property
    def origin(self) -> str:
        """Scheme, host and port of its URL: what may be shown, as paths and queries often hold secrets."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def why_bad_url(url: str) -> str | None:
    """Say why a webhook cannot have this URL, in words without the URL; None when it can."""
    if not url.isprintable() or " " in url:
        return "has white space or control characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme.lower() not in ("http", "https"):
        return "must begin with http:// or https://"
    if not parts.hostname:
        return "has no host"
    if "@" in parts.netloc:
        return "must not hold a user name or password; they would be stored and shown in the clear"
    if port == 0:
        return "has port 0"
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
