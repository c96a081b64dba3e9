"""Extra headers of a webhook's requests: which ones may be set, and how they are stored."""

import re
from typing import Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

#: Many receivers accept 8 KiB of headers in total.
MAX_HEADERS = 20
MAX_VALUE_CHARS = 2048

#: The common part of RFC 9110's token (5.6.2).
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
#: RFC 9110, 5.5, without its obsolete forms: visible ASCII, with spaces and tabs inside.
_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?", re.ASCII)

#: Set in every request.
_OURS = {
    "accept",
    "accept-encoding",
    "content-length",
    "content-type",
    "host",
    "user-agent",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
}
#: RFC 9110, 7.6.1, older ones that proxies still know, and those that change how a request is read.
_HOP_BY_HOP = {
    "connection",
    "content-encoding",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


def check_header(name: str, value: str) -> None:
    """Check an extra header; raise ValueError with a text for the user, without the value."""
    check_header_name(name)
    if len(value) > MAX_VALUE_CHARS:
        raise ValueError(f"the value of {name} is longer than {MAX_VALUE_CHARS} characters")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value of {name} must be ASCII without line breaks or spaces at its ends, and not empty")


def fold_name(name: str) -> str:
    """Return a header's name as receivers compare it: lower case, underscore as hyphen (CGI, WSGI)."""
    return name.lower().replace("_", "-")


def check_header_name(name: str) -> None:
    """Check an extra header's name; raise ValueError with a text for the user."""
    if not _NAME.fullmatch(name):
        raise ValueError("a header's name must be letters, digits, - and _ only, up to 100")
    if fold_name(name) in _OURS:
        raise ValueError(f"{name} is set by this project")
    if fold_name(name) in _HOP_BY_HOP:
        raise ValueError(f"{name} belongs to the connection and cannot be set")


class ExtraHeader(BaseModel):
    """One extra header of a webhook's requests."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: str
    #: Exactly one of the two is set. `sealed` comes from `Vault.seal`.
    value: str | None = None
    sealed: str | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        check_header_name(name)
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.value is None) == (self.sealed is None):
            raise ValueError("a header must have either a value or a sealed one")
        if self.value is not None:
            check_header(self.name, self.value)
        return self
