"""What goes out: a request as it was asked for, and its bytes.

Every connection, new or kept, is given what `prepare` made, so there is no second way of writing a request.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from requests.models import PreparedRequest
from requests.structures import CaseInsensitiveDict

from webhooks.models.url import RequestUrl, parse_url
from webhooks.sender.deadline import Attempt

#: Most attempts go where others went before.
_MAX_CACHED = 1024

#: Ours, where the caller has not set them: by name in small letters.
_BASE_HEADERS = {
    name.lower(): (name, value)
    for name, value in (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("Connection", "keep-alive"))
}

#: One line for each header. RFC 9110, 5.1 and 5.5: a token; visible characters, spaces and tabs, and obs-text.
_HEADER_LINES = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*\r\n)+")


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A POST that `Sender.submit` sends."""

    #: As the webhook has it.
    url: str
    #: Sent as they are; ours (Accept, Accept-Encoding, Connection, Content-Length, Host) give way to them.
    headers: Mapping[str, str] = field(repr=False)
    #: Sent as it is.
    body: bytes = field(repr=False)
    #: Seconds: a kept connection that was opened longer ago is not used. For a retry this is the time since the failed
    #: attempt, so that it never goes over a connection that was kept before that. 0: a new connection. None: no limit.
    max_connection_age_s: float | None = None
    #: By `uptime`: later it is not sent, and comes back with `TooLate`. None: whenever it is its turn.
    begin_by: float | None = None


class OutgoingPost(PreparedRequest):
    """What requests' adapters send, with its bytes."""

    def __init__(self, target: RequestUrl, fields: Iterable[tuple[str, str]], body: bytes, attempt: Attempt) -> None:
        """Use `prepare`.

        Args:
            target: where to.
            fields: names and values of the headers.
            body: as it is sent.
            attempt: which it is a part of.
        """
        super().__init__()
        self.method = "POST"
        self.url = target.url
        self.body = body
        self.target = target
        self.attempt = attempt
        #: Head and body.
        self.data = b""
        self._fields = fields
        # Made when it is asked for, which it is not over a kept connection.
        del self.headers

    @cached_property
    def headers(self) -> CaseInsensitiveDict[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As requests has them."""
        return CaseInsensitiveDict(self._fields)


#: Raises NoResponse, kind BAD_URL; that is not cached.
find_url = lru_cache(maxsize=_MAX_CACHED)(parse_url)


def prepare(target: RequestUrl, headers: Mapping[str, str], body: bytes, attempt: Attempt) -> OutgoingPost:
    """Make a request.

    Args:
        target: where to.
        headers: as in `OutgoingRequest`, like the body.
        body: see there.
        attempt: which it is a part of.

    Raises:
        ValueError: a header name or value that HTTP cannot carry. The text repeats neither.
    """
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
    """Return the request line and the line of the header Host."""
    return f"POST {target.request_target} HTTP/1.1\r\n", f"Host: {target.host_header}\r\n"
