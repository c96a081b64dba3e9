"""How a response is read, beyond what `test_hostile_receiver` and `test_connections` show over sockets."""

import time

import pytest

from webhooks.errors import NoResponse
from webhooks.sender.response import MAX_HEAD_BYTES, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("line", [b"A:b\n", b"A: " + b"b" * 60_000 + b"\r\n"], ids=["short-lines", "long-line"])
def test_head_that_trickles_in_takes_linear_time(line: bytes) -> None:
    head = OK + line * (60_000 // len(line)) + b"\r\n"
    reader, started = ResponseReader(), time.process_time()
    for byte in head:
        reader.feed(bytes([byte]))
    # A quadratic reading takes minutes.
    assert time.process_time() - started < 3
    assert reader.head is not None


@pytest.mark.parametrize("has_room", [True, False])
def test_head_is_bounded_to_the_byte(has_room: bool) -> None:
    fill = MAX_HEAD_BYTES - len(OK) - len(b"A: \r\n\r\n") + (not has_room)
    reader = ResponseReader()
    if has_room:
        reader.feed(OK + b"A: " + b"b" * fill + b"\r\n\r\n")
        assert reader.head is not None
    else:
        with pytest.raises(NoResponse, match="Header overflow"):
            reader.feed(OK + b"A: " + b"b" * fill + b"\r\n\r\n")


def test_fields_of_one_name_are_joined_but_for_the_content_type() -> None:
    lines = b"Retry-After: 1\r\nretry-after: 2\r\nContent-Type: a\r\nCONTENT-TYPE: b\r\nX-Content-Type: c\r\n"
    reader = ResponseReader()
    reader.feed(OK + lines + b"Content-Encoding: gzip,\r\n\t br \r\n\r\n")
    assert reader.head is not None
    assert reader.head.headers == {"retry-after": "1, 2", "content-type": "a", "content-encoding": "gzip, br"}


@pytest.mark.parametrize("field", [b"Content-Length: 4", b"Transfer-Encoding: chunked"])
def test_responses_with_the_same_head_are_read_each_by_itself(field: bytes) -> None:
    head = OK + field + b"\r\nRetry-After: 1\r\n\r\n"
    bodies = [b"abcd", b"efgh"]

    def on_wire(body: bytes) -> bytes:
        return body if b"Length" in field else b"4\r\n" + body + b"\r\n0\r\n\r\n"

    for body in bodies:
        reader, pieces = ResponseReader(), ResponseReader()
        assert reader.feed(head + on_wire(body)[:2]) + reader.feed(on_wire(body)[2:]) == body
        assert b"".join(pieces.feed(bytes([byte])) for byte in head + on_wire(body)) == body
        assert (reader.is_over, reader.keeps_connection) == (pieces.is_over, pieces.keeps_connection) == (True, True)
        assert reader.head == pieces.head


def test_head_of_one_piece_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(NoResponse, match="Invalid Content-Length"):
            ResponseReader().feed(OK + b"Content-Length: +2\r\n\r\nok")
