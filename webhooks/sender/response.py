"""A response as it is read off the wire: strict about lines and framing, bounded in size.

Owns what of an answer counts as HTTP, and when a connection has more on it than its answer. Never keeps a body
(`client` does, up to its cap). Called by `connection`, whose sockets it reads.

``http.client`` alone takes a head that breaks off for a whole one, reads ``1_0_0`` as a number, hands lines that are no
headers to a parser for e-mail, follows 1xx responses and trailers without end, takes any two bytes for the end of a
chunk, and reads without bound after a chunk of size -1.

Overridden, and what of it is relied on: Python's ``http.client.HTTPResponse``: ``begin``, ``_close_conn``, ``fp``,
``chunked``, ``length`` and ``will_close``.
"""

import http.client
import re
from typing import Any, Protocol, cast

from webhooks.errors import ErrorKind, NoResponse

#: Bytes that all heads of one response may have, 1xx ones included. Node.js allows 16 KiB, servers send 1 KiB.
MAX_HEAD_BYTES = 64 * 1024

#: Heads that one response may have, 1xx ones included: each costs Python's parser some 0.1 ms. Servers send three.
MAX_HEADS = 64

#: Bytes that a chunked body may have besides data and sizes: extensions and trailers. As in Node.js.
MAX_CHUNK_EXTRA_BYTES = 16 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [^\r\n\0]*)?\r?\n")
_HEADER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r?\n")
#: RFC 9112, 5.2: obsolete, to be accepted from a server.
_FOLDED_LINE = re.compile(rb"[ \t][^\r\n\0]*\r?\n")

#: RFC 9112, 7.1: a size and extensions. Some old servers pad sizes with spaces.
_CHUNK_LINE = re.compile(rb"0*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\0]*)?\r\n")
#: What a size and its line break take at most, and so what is not counted as extra.
_PLAIN_CHUNK_LINE_BYTES = 18
_LAST_LINE_BYTES = 2

# RFC 9110, 5.6.3. Python's strip() also takes off what only looks like white space.
_WHITE_SPACE = " \t"


def bad_response(reason: str) -> NoResponse:
    """Return the error for something that is not HTTP; Node.js words it so."""
    return NoResponse(ErrorKind.BAD_RESPONSE, f"Parse Error: {reason}")


def _aborted() -> NoResponse:
    return NoResponse(ErrorKind.ABORTED, "aborted")


class Wire(Protocol):
    """What of a socket is needed here."""

    #: While set, reading gives what has arrived in Python's buffer and nothing from the network.
    is_dry: bool
    #: Set when more had arrived than the response; the connection is not to be used again.
    has_surplus: bool

    def surplus(self) -> int:
        """Return how many bytes wait between the network and Python's buffer, where anything does."""
        ...


class _HeadReader:
    """Stands in for a response's file while its head is read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._bytes_left = MAX_HEAD_BYTES
        self._heads_left = MAX_HEADS
        self._at_status_line = True
        self._can_fold = False

    def readline(self, limit: int) -> bytes:
        """Return the next line; ``b""`` only where the connection closed before a response began."""
        line: bytes = self._file.readline(min(limit, self._bytes_left + 1))
        self._bytes_left -= len(line)
        if self._bytes_left < 0 or len(line) >= limit:
            raise bad_response("Header overflow")
        if self._at_status_line:
            if not line:
                return line
            self._check_complete(line, b"HTTP/"[: len(line)])
            if not _STATUS_LINE.fullmatch(line):
                raise bad_response("Expected HTTP/1.0 or HTTP/1.1")
            self._at_status_line = self._can_fold = False
            self._heads_left -= 1
            if self._heads_left < 0:
                raise bad_response("Header overflow")
        else:
            self._check_complete(line, b"")
            if line in (b"\r\n", b"\n"):
                self._at_status_line = True  # of what may follow a 1xx response
            elif not _HEADER_LINE.fullmatch(line) and not (self._can_fold and _FOLDED_LINE.fullmatch(line)):
                raise bad_response("Invalid header line")
            self._can_fold = True
        return line

    def _check_complete(self, line: bytes, expected_start: bytes) -> None:
        if not line.endswith(b"\n") and line.startswith(expected_start):
            raise _aborted()

    def flush(self) -> None:
        """Do nothing; ``http.client.HTTPResponse.close`` calls it."""

    def close(self) -> None:
        self._file.close()


class _ChunkReader:
    """Stands in for a response's file while a chunked body is read: gives the data alone."""

    def __init__(self, file: Any) -> None:
        self._file = file
        #: Bytes of the chunk still to come; ``None`` between two chunks.
        self._chunk_left: int | None = None
        self._extra_left = MAX_CHUNK_EXTRA_BYTES
        self._has_ended = False

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes of data; ``b""`` at the end.

        Raises:
            NoResponse: kind ABORTED: the body broke off; kind BAD_RESPONSE: these are no chunks.
        """
        if self._has_ended or not size:
            return b""
        if self._chunk_left == 0:
            self._end_chunk()
        if self._chunk_left is None:
            self._chunk_left = self._begin_chunk()
            if not self._chunk_left:
                self._skip_trailers()
                self._has_ended = True
                return b""
        wanted = min(size, self._chunk_left)
        data: bytes = self._file.read(wanted)
        if len(data) < wanted:
            raise _aborted()
        self._chunk_left -= wanted
        return data

    def _begin_chunk(self) -> int:
        line = self._read_line(_PLAIN_CHUNK_LINE_BYTES)
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise bad_response("Invalid chunk") if line.endswith(b"\n") else _aborted()
        return int(match[1], 16)

    def _end_chunk(self) -> None:
        end: bytes = self._file.read(2)
        if end != b"\r\n":
            raise bad_response("Invalid chunk") if len(end) == 2 else _aborted()
        self._chunk_left = None

    def _skip_trailers(self) -> None:
        # Some servers close instead of sending the last line; the data is whole by then.
        while (line := self._read_line(_LAST_LINE_BYTES)) not in (b"\r\n", b""):
            if not _HEADER_LINE.fullmatch(line):
                raise bad_response("Invalid chunk") if line.endswith(b"\n") else _aborted()

    def _read_line(self, free_bytes: int) -> bytes:
        limit = self._extra_left + free_bytes
        line: bytes = self._file.readline(limit + 1)
        if len(line) > limit:
            raise bad_response("Chunk overflow")
        self._extra_left -= max(0, len(line) - free_bytes)
        return line

    def flush(self) -> None:
        """Do nothing; ``http.client.HTTPResponse.close`` calls it."""

    def close(self) -> None:
        self._file.close()


class StrictResponse(http.client.HTTPResponse):
    """A response whose head and chunks are read strictly, and whose framing is not open to two readings."""

    def __init__(self, sock: Any, *args: Any, **kw: Any) -> None:
        super().__init__(sock, *args, **kw)
        self._wire: Wire = sock
        self._buffer: Any = self.fp

    def begin(self) -> None:
        """Read the head, and prepare for the body."""
        self.fp = cast(Any, _HeadReader(self._buffer))
        try:
            super().begin()
            # http.client skips 100 alone; 103 and others would be taken for the response (RFC 9110, 15.2).
            while self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
                self.headers = self.msg = cast(Any, None)
                super().begin()
        finally:
            if self.fp is not None:
                self.fp = self._buffer
        self._check_framing()
        if self.chunked:
            self.chunked = False
            if self.length is None:  # it is 0 where the status allows no body
                self.fp = cast(Any, _ChunkReader(self._buffer))

    def _check_framing(self) -> None:
        """Refuse what RFC 9112, 6.3, calls invalid, before http.client and urllib3 each make up their minds."""
        encodings = self.headers.get_all("transfer-encoding", [])
        lengths = self.headers.get_all("content-length", [])
        if encodings and (len(encodings) > 1 or encodings[0].strip(_WHITE_SPACE).lower() != "chunked"):
            raise bad_response("Unknown Transfer-Encoding")
        if encodings and lengths:
            # Chunks count, and what follows on this connection is not to be trusted.
            del self.headers["content-length"]
            self.will_close = True
        elif lengths:
            values = {part.strip(_WHITE_SPACE) for value in lengths for part in value.split(",")}
            if len(values) > 1 or not all(re.fullmatch("[0-9]{1,18}", value) for value in values):
                raise bad_response("Invalid Content-Length")
            if len(lengths) > 1 or "," in lengths[0]:
                del self.headers["content-length"]
                self.headers["content-length"] = value = values.pop()
                if self.length != 0:  # 0 where the status allows no body
                    self.length = int(value)
        if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.will_close = True  # we asked for no other protocol

    def _close_conn(self) -> None:
        """Let go of the connection; called at the response's end, or when it is given up."""
        # What came behind the response would be taken for the answer to the next request.
        self._wire.is_dry = True
        try:
            self._wire.has_surplus = bool(self._buffer.peek(1)) or self._wire.surplus() > 0
        finally:
            self._wire.is_dry = False
        super()._close_conn()  # pyright: ignore[reportAttributeAccessIssue]
