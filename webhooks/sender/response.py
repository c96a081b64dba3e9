"""An incremental HTTP response parser: strict about lines and framing, bounded in size.

Unlike httptools (llhttp), it accepts bare line feeds and folded lines, which old servers send, and it bounds heads, 1xx
responses, chunk extensions and trailers.
"""

import re
import sys
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender.deadline import aborted, hang_up

#: Of all heads of a response, 1xx included. Node.js allows 16 KiB; servers send 1 KiB. The number of lines is not
#: limited: some applications set a hundred cookies.
MAX_HEAD_BYTES = 64 * 1024

#: Heads of a response, 1xx included. Servers send at most three.
MAX_HEADS = 64

#: Heads that are read once for many responses: of an endpoint they differ in the date's second at most.
_CACHED_HEADS = 256
_CACHED_HEAD_BYTES = 1024

#: Chunk extensions and trailers. As in Node.js.
MAX_CHUNK_EXTRA_BYTES = 16 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n\0]*))?\r?\n")
_HEADER_LINE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r?\n"
#: RFC 9112, 5.2: obsolete, but accepted from servers.
_FOLDED_LINE = rb"[ \t][^\r\n\0]*\r?\n"
#: All complete lines. Possessive quantifiers keep this linear.
_FIRST_LINES = re.compile(rb"(?:%b(?:%b)*+)*+" % (_HEADER_LINE, _FOLDED_LINE))
_FURTHER_LINES = re.compile(rb"(?:%b|%b)*+" % (_HEADER_LINE, _FOLDED_LINE))
#: The fields that are used.
_FIELD = re.compile(
    rb"\n(?i:(connection|content-(?:encoding|length|type)|retry-after|transfer-encoding)):([^\n]*(?:\n[ \t][^\n]*)*)"
)
_FOLD = re.compile(r"\r?\n[ \t]+")

_LENGTH = re.compile("[0-9]{1,18}")
#: RFC 9112, 6.3. After 101 another protocol begins.
_WITHOUT_BODY = frozenset({HTTPStatus.SWITCHING_PROTOCOLS, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

#: RFC 9112, 7.1: a size and extensions. Some old servers pad sizes with spaces.
_CHUNK_LINE = re.compile(rb"0*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\0]*)?\r\n")
_TRAILER_LINE = re.compile(_HEADER_LINE)
#: Longest size with its line break; the rest of the line counts as extra.
_PLAIN_CHUNK_LINE_BYTES = 18
_LAST_LINE_BYTES = 2

# RFC 9110, 5.6.3. Python's strip() also takes off what only looks like white space.
_WHITE_SPACE = " \t"


def bad_response(reason: str) -> NoResponse:
    """Return the error for a response that is not HTTP, in Node.js's words."""
    return NoResponse(ErrorKind.BAD_RESPONSE, f"Parse Error: {reason}")


class Head(NamedTuple):
    """Status line and headers."""

    status: int
    reason: str
    #: The used fields, by lower-case name. Repeated values are joined with commas; the first ``content-type`` counts.
    headers: dict[str, str]


class ResponseReader:
    """Reads one response."""

    __slots__ = ("_body", "_buffer", "_checked", "_heads_left", "_line_status", "head", "is_over", "keeps_connection")

    def __init__(self) -> None:
        #: None before it has arrived.
        self.head: Head | None = None
        #: Whether the whole response has arrived.
        self.is_over = False
        self._buffer = bytearray()
        #: The offset up to which the heads have been read.
        self._checked = 0
        self._heads_left = MAX_HEADS
        self._line_status: re.Match[bytes] | None = None
        #: Whether the connection can be reused after the response.
        self.keeps_connection = True
        self._body: _Counted | _Chunks | None = None

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return the body's part of them. Raises NoResponse (BAD_RESPONSE) if this is not HTTP."""
        if self.head is None:
            end = -1 if self._buffer else data.find(b"\r\n\r\n", 0, _CACHED_HEAD_BYTES) + 4
            if end >= 4 and (known := _read_head(data[:end])) is not None:
                self.head, self.keeps_connection, length = known
                self._body = _Counted(length)
                return self._read_body(data[end:])
            self._buffer += data
            if not self._read_heads(has_new_line=b"\n" in data):
                return b""
            data = bytes(self._buffer[self._checked :])
            self._buffer.clear()
        return self._read_body(data)

    def end(self) -> None:
        """Handle the end of the connection.

        Raises:
            NoResponse: kind HANG_UP: there was no response. Kind ABORTED: it broke off.
        """
        if self.head is None:
            begun = bytes(self._buffer[self._checked :])
            if self._line_status is None and not begun:
                raise hang_up()  # possibly after a 1xx response
            if self._line_status is None and not begun.startswith(b"HTTP/"[: len(begun)]):
                raise bad_response("Expected HTTP/1.0 or HTTP/1.1")
            raise aborted()
        if not self.is_over and (self._body is None or not self._body.may_end):
            raise aborted()
        self.is_over = True
        self.keeps_connection = False

    def _read_heads(self, *, has_new_line: bool) -> bool:
        """Read up to the end of the final head; return whether it has arrived."""
        # An incomplete line is not parsed.
        while has_new_line:
            if self._line_status is None:
                self._line_status = self._read_status_line()
                if self._line_status is None:
                    break
            lines = _FIRST_LINES if self._checked == self._line_status.end() else _FURTHER_LINES
            begun_at = self._checked
            end = lines.match(self._buffer, begun_at)
            self._checked = begun_at if end is None else end.end()
            next_line = self._buffer.find(b"\n", self._checked)
            if next_line < 0:
                break
            if self._buffer[self._checked : next_line] not in (b"", b"\r"):
                self._check_size(next_line)
                raise bad_response("Invalid header line")
            self._checked = next_line + 1
            self._check_size(self._checked)
            line, self._line_status = self._line_status, None
            if self._take_head(line):
                return True
        self._check_size(len(self._buffer))
        return False

    def _read_status_line(self) -> re.Match[bytes] | None:
        line = _STATUS_LINE.match(self._buffer, self._checked)
        if line is None:
            end = self._buffer.find(b"\n", self._checked)
            if end >= 0:
                self._check_size(end)
                raise bad_response("Expected HTTP/1.0 or HTTP/1.1")
            return None
        self._checked = line.end()
        self._heads_left -= 1
        if self._heads_left < 0:
            raise bad_response("Header overflow")
        return line

    def _check_size(self, size: int) -> None:
        if size > MAX_HEAD_BYTES:
            raise bad_response("Header overflow")

    def _take_head(self, line: re.Match[bytes]) -> bool:
        """Take a complete head, whose status line is in `line`; return whether it is the final one."""
        status = int(line[2])
        if status < HTTPStatus.OK and status != HTTPStatus.SWITCHING_PROTOCOLS:
            return False
        headers: dict[str, str] = {}
        for raw_name, raw_value in _FIELD.findall(self._buffer, line.start(), self._checked):
            name, value = raw_name.decode().lower(), raw_value.decode("latin-1").strip(_WHITE_SPACE + "\r")
            if "\n" in value:
                value = _FOLD.sub(" ", value)
            if name not in headers:
                headers[name] = value
            elif name != "content-type":
                headers[name] += f", {value}"
        self._frame(status, headers, is_http_1_0=line[1] == b"0")
        self.head = Head(status, (line[3] or b"").decode("latin-1"), headers)
        return True

    def _frame(self, status: int, headers: dict[str, str], *, is_http_1_0: bool) -> None:
        """Find where the body ends (RFC 9112, 6.3); refuse ambiguous framing."""
        connection = headers.get("connection", "").lower()
        self.keeps_connection = "keep-alive" in connection if is_http_1_0 else "close" not in connection
        encodings, lengths = headers.get("transfer-encoding"), headers.get("content-length")
        # An application and its server may both send a field; equal values count once.
        if encodings is not None and set(_split(encodings.lower())) != {"chunked"}:
            raise bad_response("Unknown Transfer-Encoding")
        if encodings is None and lengths is not None:
            lengths, *others = set(_split(lengths)) if "," in lengths else (lengths,)
            if others or not _LENGTH.fullmatch(lengths):
                raise bad_response("Invalid Content-Length")
        if status in _WITHOUT_BODY:
            self._body = _Counted(0)
            if status == HTTPStatus.SWITCHING_PROTOCOLS:
                self.keeps_connection = False
        elif encodings is not None:
            self._body = _Chunks()
            if lengths is not None:  # chunks count; later responses cannot be trusted
                self.keeps_connection = False
        elif lengths is not None:
            self._body = _Counted(int(lengths))
        else:
            self._body = _Counted(None)
            self.keeps_connection = False

    def _read_body(self, data: bytes) -> bytes:
        body = self._body
        if body is None or self.is_over:
            return b""
        found = body.feed(data)
        if body.surplus is not None:
            self.is_over = True
            # The next request would get the surplus as its response.
            self.keeps_connection &= body.surplus == 0
        return found


@lru_cache(maxsize=_CACHED_HEADS)
def _read_head(data: bytes) -> tuple[Head, bool, int] | None:
    """Read a response's one head; return it, whether the connection can be reused, and the body's length.

    None where `ResponseReader` has to read it: it is not a complete head, or the body's length is not known from it.
    """
    reader = ResponseReader()
    try:
        reader._buffer += data
        reader._read_heads(has_new_line=True)
    except NoResponse:
        return None
    body = reader._body
    if reader.head is None or reader._checked != len(data) or not isinstance(body, _Counted) or body.may_end:
        return None
    return reader.head, reader.keeps_connection, body.left


def _split(value: str) -> list[str]:
    return [part.strip(_WHITE_SPACE) for part in value.split(",")]


class _Counted:
    """A body of known length, or one that ends with its connection."""

    __slots__ = ("left", "may_end", "surplus")

    def __init__(self, length: int | None) -> None:
        self.left = sys.maxsize if length is None else length
        #: Whether the connection's end ends the body.
        self.may_end = length is None
        #: Bytes received after the body; None before its end.
        self.surplus: int | None = None

    def feed(self, data: bytes) -> bytes:
        body = data[: self.left]
        self.left -= len(body)
        if not self.left:
            self.surplus = len(data) - len(body)
        return body


class _Chunks:
    """A chunked body."""

    __slots__ = ("_buffer", "_extra_left", "_in_trailers", "_left", "surplus")

    def __init__(self) -> None:
        self.surplus: int | None = None
        #: An incomplete line, or an incomplete end of a chunk.
        self._buffer = b""
        #: Missing bytes of the chunk; None before its size.
        self._left: int | None = None
        self._in_trailers = False
        self._extra_left = MAX_CHUNK_EXTRA_BYTES

    @property
    def may_end(self) -> bool:
        # Some servers close instead of sending the last line.
        return self._in_trailers and not self._buffer

    def feed(self, data: bytes) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        found = bytearray()
        at = 0
        while self.surplus is None and at < len(data):
            if self._left is None:
                end = data.find(b"\n", at) + 1
                self._check_line_size((end or len(data)) - at)
                if not end:
                    self._buffer = data[at:]
                    break
                self._take_line(data, at, end)
                at = end
                if self.surplus is not None:
                    self.surplus = len(data) - at
            elif self._left:
                piece = data[at : at + self._left]
                found += piece
                at += len(piece)
                self._left -= len(piece)
            elif len(data) - at < len(b"\r\n"):
                self._buffer = data[at:]
                break
            elif data[at : at + 2] != b"\r\n":
                raise bad_response("Invalid chunk")
            else:
                at += 2
                self._left = None
        return bytes(found)

    def _check_line_size(self, size: int) -> None:
        free = _LAST_LINE_BYTES if self._in_trailers else _PLAIN_CHUNK_LINE_BYTES
        if size - free > self._extra_left:
            raise bad_response("Chunk overflow")

    def _take_line(self, data: bytes, at: int, end: int) -> None:
        if not self._in_trailers:
            match = _CHUNK_LINE.fullmatch(data, at, end)
            if match is None:
                raise bad_response("Invalid chunk")
            self._extra_left -= max(0, end - at - _PLAIN_CHUNK_LINE_BYTES)
            self._left = int(match[1], 16) or None
            self._in_trailers = self._left is None
        elif data[at:end] == b"\r\n":
            self.surplus = 0
        elif _TRAILER_LINE.fullmatch(data, at, end):
            self._extra_left -= max(0, end - at - _LAST_LINE_BYTES)
        else:
            raise bad_response("Invalid chunk")
