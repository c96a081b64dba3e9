"""One exchange over a kept connection, without waiting: what a `Multiplexer` has many of.

Owns the request's bytes, and which responses are read here: whole ones with a plain head, as most are. Whatever is more
than that (redirects, errors, a body in many pieces, a response that never comes whole) is left to a thread, which goes
on with what has arrived; see `Sender.resume`. Called by `client`.

requests and urllib3 make a connection and read the odd response. On a kept connection their layers cost three times as
much as all the rest of an attempt, so there they are passed by. Measured: 356 us of CPU time by way of them, 86 here.
"""

import re
import ssl
import time
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from webhooks.errors import NoResponse
from webhooks.sender.attempt import Answer, Attempt, Begun, Phase
from webhooks.sender.readable import to_text
from webhooks.target import Target

#: Bytes of a response that are read at a time, and reads after which a thread goes on: a response in more pieces may
#: be one that a receiver wants us to be busy with.
_READ_BYTES = 64 * 1024
_MAX_READS = 4

#: A longer head is none that servers send (1 KiB), or is to be refused.
_MAX_HEAD_BYTES = 16 * 1024

#: What neither urllib3 nor a server would write in another way.
_PLAIN_URL = re.compile(
    r"https?://[A-Za-z0-9_.-]+(?::[0-9]+)?(?P<path>/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)"
)
#: One line for each header; the characters that urllib3 lets pass and that one byte holds.
_PLAIN_HEADERS = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~\xa0-\xff][\t -~\xa0-\xff]*\n)+")
#: Headers that urllib3 makes or looks at.
_LEFT_TO_URLLIB3 = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "host", "transfer-encoding", "expect"}
)

#: A whole head that says that all is well; `StrictResponse` knows the others.
_HEAD = re.compile(
    rb"HTTP/1\.1 (2[0-9]{2})(?: [^\r\n\0]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n){0,60})\r\n"
)
#: Those of its fields that say how to read the body.
_FIELD = re.compile(
    rb"^(content-length|content-type|content-encoding|transfer-encoding|connection):[ \t]*([^\r]*?)[ \t]*\r$",
    re.IGNORECASE | re.MULTILINE,
)
_LENGTH = re.compile(rb"[0-9]{1,9}")
_MAX_CHUNK_SIZE_DIGITS = 8
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")

_WOULD_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire(Protocol):
    """What of a socket is needed here."""

    def settimeout(self, value: float | None, /) -> None:
        """Set the seconds that it waits; 0: it does not wait."""
        ...

    def fileno(self) -> int:
        """Return its number, to wait for it by."""
        ...

    def push(self, data: memoryview) -> int:
        """Write what can be written without waiting; return how much that was."""
        ...

    def pull(self, most: int) -> bytes:
        """Read what can be read without waiting; ``b""``: the other end has closed."""
        ...


class Connection(Protocol):
    """What of a connection is needed here."""

    sock: Any

    def close(self) -> None:
        """Close it; what it was kept for opens another."""
        ...


class Pool(Protocol):
    """What of a pool is needed here."""

    def give_back(self, connection: Any) -> None:
        """Keep a connection for the next request."""
        ...


class Exchange:
    """A request that is written to a kept connection, and the response as far as it has arrived.

    While it lasts, its socket does not wait. It ends with an answer, or with `needs_thread`.
    """

    __slots__ = (
        "_connection",
        "_max_body_bytes",
        "_pool",
        "_reads",
        "_received",
        "_sent_at",
        "_unsent",
        "attempt",
        "needs_thread",
    )

    def __init__(self, attempt: Attempt, pool: Pool, connection: Connection, request: bytes, max_body: int) -> None:
        """Note what there is to write.

        Args:
            attempt: of which this is a part.
            pool: where the connection comes from.
            connection: kept and idle; nobody else uses it until the end.
            request: head and body.
            max_body: bytes; a longer response body is left to a thread.
        """
        self.attempt = attempt
        #: Whether this ends here, and `Sender.resume` has to go on.
        self.needs_thread = False
        self._pool = pool
        self._connection = connection
        self._unsent = memoryview(request)
        self._received = b""
        self._max_body_bytes = max_body
        self._reads = 0
        self._sent_at = 0.0

    @property
    def socket(self) -> Wire:
        """What to wait for."""
        return self._connection.sock

    def write(self) -> None:
        """Write the request; where the connection does not take all of it at once, a thread is needed."""
        begun = time.monotonic()
        try:
            self.socket.settimeout(0)
            while self._unsent:
                self._unsent = self._unsent[self.socket.push(self._unsent) :]
        except _WOULD_WAIT:
            self._leave_to_thread()
        except OSError:
            self._start_over()
        else:
            self._sent_at = time.monotonic()
            self.attempt.note(Phase.SEND, self._sent_at - begun)

    def read(self) -> Answer | None:
        """Read what has arrived; return the answer if that was all of it.

        None: more has to come, or a thread is needed.
        """
        try:
            data = self.socket.pull(_READ_BYTES)
        except _WOULD_WAIT:
            return None
        except OSError as error:
            if self._received:
                return self._fail(self.attempt.read_failed(error))
            self._start_over()
            return None
        if not data and not self._received:
            self._start_over()
            return None
        self._reads += 1
        self.attempt.received_bytes += len(data)
        self._received += data
        try:
            response = _read_plain(self._received, self._max_body_bytes)
        except _NotPlainError:
            response = None
            self._leave_to_thread()
        if response is None:
            if not self.needs_thread and (not data or self._reads == _MAX_READS):
                self._leave_to_thread()
            return None
        self.attempt.note(Phase.WAIT, time.monotonic() - self._sent_at)
        self.attempt.note(Phase.READ, 0.0)
        return self._end(response)

    def expire(self) -> Answer:
        """End it because its time is up."""
        return self._fail(self.attempt.timed_out())

    def drop(self) -> None:
        """Close its connection, after a defect."""
        self._connection.close()

    def _end(self, response: "_Plain") -> Answer:
        if response.has_surplus:
            # It would be taken for the answer to the next request.
            self._connection.close()
        self._pool.give_back(self._connection)
        text = to_text(response.body, response.content_type, is_cut=False)
        return Answer(response.status, text, None, False, self.attempt.peer, self.attempt.timings())

    def _fail(self, error: NoResponse) -> Answer:
        self._connection.close()
        return Answer(None, error.text, error.kind, False, self.attempt.peer, self.attempt.timings())

    def _leave_to_thread(self) -> None:
        self.needs_thread = True
        self.attempt.begun = Begun(self._connection, self._unsent, self._received)

    def _start_over(self) -> None:
        """Leave it to a thread, over a new connection: the receiver has closed this one, as it may."""
        self._connection.close()
        self.needs_thread = True
        self.attempt.start_over()


class _NotPlainError(Exception):
    pass


class _Plain(NamedTuple):
    """A whole response with a plain head."""

    status: int
    content_type: str | None
    body: bytes
    has_surplus: bool


def _read_plain(data: bytes, max_body_bytes: int) -> _Plain | None:
    """Read a response; None where more of it has to come.

    Raises:
        _NotPlainError: it is left to those who know all of HTTP.
    """
    head = _HEAD.match(data)
    if head is None:
        if b"\n\r\n" in data or b"\n\n" in data or len(data) > _MAX_HEAD_BYTES:
            raise _NotPlainError
        return None
    status, length, content_type, is_chunked = int(head[1]), None, None, False
    for name, value in _FIELD.findall(head[2]):
        match name.lower():
            case b"content-length":
                if length is not None or not _LENGTH.fullmatch(value):
                    raise _NotPlainError
                length = int(value)
            case b"content-type":
                content_type = value.decode("latin-1")
            case b"connection" if value.lower() == b"keep-alive":
                pass
            case b"transfer-encoding" if value.lower() == b"chunked" and not is_chunked:
                is_chunked = True
            case _:
                raise _NotPlainError
    if head.end() > _MAX_HEAD_BYTES or (is_chunked and (length is not None or status == HTTPStatus.NO_CONTENT)):
        raise _NotPlainError
    if is_chunked:
        chunks = _read_chunks(data, head.end(), max_body_bytes)
        if chunks is None:
            return None
        body, end = chunks
    else:
        if status == HTTPStatus.NO_CONTENT:
            length = 0
        if length is None or length > max_body_bytes:
            raise _NotPlainError
        end = head.end() + length
        body = data[head.end() : end]
    return None if len(data) < end else _Plain(status, content_type, body, has_surplus=len(data) > end)


def _read_chunks(data: bytes, start: int, max_body_bytes: int) -> tuple[bytes, int] | None:
    """Read a chunked body without extensions and trailers; return it and where it ends, or None if more has to come.

    Raises:
        _NotPlainError: it is another one.
    """
    body = b""
    while (line_end := data.find(b"\r\n", start)) >= 0:
        if not _CHUNK_SIZE.fullmatch(data, start, line_end):
            raise _NotPlainError
        begin = line_end + 2
        end = begin + int(data[start:line_end], 16)
        if data[end : end + 2] != b"\r\n"[: max(0, len(data) - end)] or len(body) + end - begin > max_body_bytes:
            raise _NotPlainError
        if len(data) < end + 2:
            return None
        if begin == end:
            return body, end + 2
        body, start = body + data[begin:end], end + 2
    if len(data) - start > _MAX_CHUNK_SIZE_DIGITS:
        raise _NotPlainError
    return None


def make_request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes | None:
    """Return a request as urllib3 would write it; None where it might write it in another way, or refuse to."""
    start = _begin_head(target)
    if start is None:
        return None
    lines = "".join([f"{name}: {value}\n" for name, value in headers.items()])
    names = {name.lower() for name in headers}
    is_plain = (
        len(names) == len(headers) == lines.count("\n")
        and "user-agent" in names
        and names.isdisjoint(_LEFT_TO_URLLIB3)
        and _PLAIN_HEADERS.fullmatch(lines)
    )
    if not is_plain:
        return None
    rest = lines.replace("\n", "\r\n")
    return f"{start}Content-Length: {len(body)}\r\n{rest}\r\n".encode("latin-1") + body


@lru_cache(maxsize=1024)
def _begin_head(target: Target) -> str | None:
    plain = _PLAIN_URL.fullmatch(target.url)
    if plain is None:
        return None
    default_port = {"http": 80, "https": 443}[target.scheme]
    host = target.host if target.port == default_port else f"{target.host}:{target.port}"
    return (
        f"POST {plain['path']} HTTP/1.1\r\nHost: {host}\r\n"
        "Accept: */*\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n"
    )
