"""The request as submitted, and its bytes. New and kept connections send the same bytes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from requests.models import PreparedRequest
from requests.structures import CaseInsensitiveDict

from webhooks.models.url import RequestUrl, parse_url
from webhooks.sender.deadline import Attempt

_MAX_CACHED = 1024

#: Defaults, by lower-case name.
_BASE_HEADERS = {
    name.lower(): (name, value)
    for name, value in (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("Connection", "keep-alive"))
}

#: RFC 9110, 5.1 and 5.5: a token; visible characters, spaces and tabs, and obs-text.
_HEADER_LINES = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*\r\n)+")


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A POST for `Sender.submit`."""

    url: str
    #: Override ours: Accept, Accept-Encoding, Connection, Content-Length and Host.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    #: Maximum age of a kept connection. A retry passes the time since the failed attempt, to avoid older connections.
    #: 0: a new connection. None: no limit.
    max_connection_age_s: float | None = None
    #: By `uptime`: later it is not sent, and comes back with `TooLate`. None: whenever it is its turn.
    begin_by: float | None = None


class OutgoingPost(PreparedRequest):
    """What requests' adapters send, with its bytes."""

    def __init__(self, target: RequestUrl, fields: Iterable[tuple[str, str]], body: bytes, attempt: Attempt) -> None:
        """Use `prepare`."""
        super().__init__()
        self.method = "POST"
        self.url = target.url
        self.body = body
        self.target = target
        self.attempt = attempt
        #: Head and body.
        self.data = b""
        self._fields = fields
        # Computed on access; a kept connection does not need it.
        del self.headers

    @cached_property
    def headers(self) -> CaseInsensitiveDict[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The headers for requests."""
        return CaseInsensitiveDict(self._fields)


#: `parse_url`, cached; its errors are not.
find_url = lru_cache(maxsize=_MAX_CACHED)(parse_url)


def prepare(target: RequestUrl, headers: Mapping[str, str], body: bytes, attempt: Attempt) -> OutgoingPost:
    """Make a request; raise ValueError, without its text, for a header that HTTP cannot carry."""
    fields = {**_BASE_HEADERS, "content-length": ("Content-Length", str(len(body)))}
    for name, value in headers.items():
        fields[name.lower()] = name, value
    post = OutgoingPost(target, fields.values(), body, attempt)
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.values()])
    if lines.count("\n") != len(fields) or not _HEADER_LINES.fullmatch(lines):
        raise ValueError("a header has a name or a value that HTTP cannot carry")
    start, host = _begin_head(target)
    head = f"{start}{lines}\r\n" if "host" in fields else f"{start}{host}{lines}\r\n"
    post.data = head.encode("latin-1") + body
    return post


@lru_cache(maxsize=_MAX_CACHED)
def _begin_head(target: RequestUrl) -> tuple[str, str]:
    """Return the request line and the Host line."""
    return f"POST {target.request_target} HTTP/1.1\r\n", f"Host: {target.host_header}\r\n"
