"""What a receiver may do to us with its answer: each ends in time, costs little memory, and is an answer or a refusal.

Deadlines against receivers that stall or drip, and connections that break off, are in `test_sender`.
"""

import functools
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import receiver as r
from tests.lab.receiver import Authority, Receiver
from tests.lab.senders import SLACK_S, MakeSender, Measured, MeasuredSender
from webhooks.errors import ErrorKind

#: The total deadline here: time for a machine that is busy, and under measurement, to meet every other bound first.
TOTAL_S = 3.0

#: What one attempt may allocate. The cap on bodies is 1000 bytes in these tests, so this is the head: Python's parser
#: takes eleven times the bytes of one.
MAX_PEAK_BYTES = 1024 * 1024

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = b"x" * 1_000_000

NOT_HTTP = "Parse Error: Expected HTTP/1.0 or HTTP/1.1"
OVERFLOW = "Parse Error: Header overflow"
BAD_HEADER = "Parse Error: Invalid header line"
BAD_LENGTH = "Parse Error: Invalid Content-Length"
BAD_ENCODING = "Parse Error: Unknown Transfer-Encoding"
BAD_CHUNK = "Parse Error: Invalid chunk"
CHUNK_OVERFLOW = "Parse Error: Chunk overflow"


@pytest.fixture(scope="module")
def measured() -> Iterator[MeasuredSender]:
    with MeasuredSender(TOTAL_S) as sender:
        with Receiver() as receiver:
            sender.post(receiver.url)  # what is allocated once, for all attempts
        yield sender


def attack(measured: MeasuredSender, behaviour: r.Behaviour) -> Measured:
    with Receiver().then(behaviour) as receiver:
        got = measured.post(receiver.url)
    assert got.seconds < TOTAL_S + SLACK_S
    assert got.peak_bytes < MAX_PEAK_BYTES
    return got


def assert_refused(got: Measured, text: str) -> None:
    assert (got.status, got.kind, got.text, got.cut) == (None, ErrorKind.BAD_RESPONSE, text, False)


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"220 mail.example ESMTP\r\n", NOT_HTTP, id="smtp"),
        pytest.param(b"SSH", NOT_HTTP, id="short"),
        pytest.param(b"<html>hello</html>\r\n", NOT_HTTP, id="http-0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NOT_HTTP, id="http-2-preface"),
        pytest.param(b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x80\0\4\0\1\0\0\0\5\0\xff\xff\xff", NOT_HTTP, id="http-2-frame"),
        pytest.param(b"\x15\3\3\0\2\2\x0a", NOT_HTTP, id="tls-alert"),
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", NOT_HTTP, id="version-2"),
        pytest.param(b"HTTP/1.2 200 OK\r\n\r\n", NOT_HTTP, id="version-1.2"),
        pytest.param(b"http/1.1 200 OK\r\n\r\n", NOT_HTTP, id="version-in-small-letters"),
        pytest.param(b"HTTP/1.1 2_0 OK\r\n\r\n", NOT_HTTP, id="status-with-underscore"),
        pytest.param(b"HTTP/1.1 000 OK\r\n\r\n", NOT_HTTP, id="status-000"),
        pytest.param(b"HTTP/1.1 099 OK\r\n\r\n", NOT_HTTP, id="status-099"),
        pytest.param(b"HTTP/1.1 99 OK\r\n\r\n", NOT_HTTP, id="status-99"),
        pytest.param(b"HTTP/1.1 1000 OK\r\n\r\n", NOT_HTTP, id="status-1000"),
        pytest.param(b"HTTP/1.1 -200 OK\r\n\r\n", NOT_HTTP, id="status-negative"),
        pytest.param("HTTP/1.1 ٢٠٠ OK\r\n\r\n".encode(), NOT_HTTP, id="status-in-arabic-digits"),
        pytest.param(b"HTTP/1.1 200 O\0K\r\n\r\n", NOT_HTTP, id="nul-in-status-line"),
        pytest.param(OK + b"no colon\r\n\r\n", BAD_HEADER, id="no-colon"),
        pytest.param(OK + b"A: b\rC: d\r\n\r\n", BAD_HEADER, id="bare-cr"),
        pytest.param(OK + b"A: \0\r\n\r\n", BAD_HEADER, id="nul"),
        pytest.param(OK + b"A\0: b\r\n\r\n", BAD_HEADER, id="nul-in-name"),
        pytest.param(OK + b"Content-Length : 2\r\n\r\n", BAD_HEADER, id="space-before-colon"),
        pytest.param(OK + b": b\r\n\r\n", BAD_HEADER, id="no-name"),
        pytest.param(OK + b" A: b\r\n\r\n", BAD_HEADER, id="fold-without-header"),
        pytest.param(OK + b"A: " + MEGABYTE + b"\r\n\r\n", OVERFLOW, id="header-of-1-MB"),
        pytest.param(OK + (b"A: " + b"x" * 60_000 + b"\r\n") * 90 + b"\r\n", OVERFLOW, id="90-headers-of-60-kB"),
        pytest.param(b"HTTP/1.1 200 " + MEGABYTE + b"\r\n\r\n", OVERFLOW, id="status-line-of-1-MB"),
        pytest.param(OK + b"A: b\r\n" * 50_000 + b"\r\n", OVERFLOW, id="50000-headers"),
        pytest.param(OK + b"A: b\r\n" + b" c\r\n" * 50_000 + b"\r\n", OVERFLOW, id="header-of-50000-folds"),
    ],
)
def test_head_that_is_not_http(measured: MeasuredSender, data: bytes, text: str) -> None:
    assert_refused(attack(measured, r.raw(data)), text)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(r.endless_head(), id="headers"),
        pytest.param(r.endless(OK + b"A: ", MEGABYTE), id="header-line"),
        pytest.param(r.endless(b"HTTP/1.1 200 ", MEGABYTE), id="status-line"),
        pytest.param(r.endless(b"", MEGABYTE), id="not-even-a-line"),
        pytest.param(r.flood_1xx(100), id="100"),
        pytest.param(r.flood_1xx(102), id="102"),
        pytest.param(r.flood_1xx(103), id="103"),
        pytest.param(r.endless(b"", b"HTTP/1.1 100\r\n\r\n" * 1000), id="100-without-headers"),
    ],
)
def test_endless_heads_end_at_their_cap(measured: MeasuredSender, behaviour: r.Behaviour) -> None:
    assert_refused(attack(measured, behaviour), OVERFLOW)


@pytest.mark.parametrize("count", [101, 5000])
def test_head_is_bounded_by_bytes_not_by_lines(measured: MeasuredSender, count: int) -> None:
    # Layers of an application that each set cookies or debug headers; curl takes 5,000 lines, Go any number.
    got = attack(measured, r.raw(OK + b"A: bcdefgh\r\n" * count + b"Content-Length: 2\r\n\r\nok"))
    assert (got.status, got.text) == (200, "ok")


@pytest.mark.parametrize("status", [b"100", b"103"])
@pytest.mark.parametrize(("count", "is_answer"), [(63, True), (64, False)])
def test_informational_heads_are_counted(measured: MeasuredSender, status: bytes, count: int, is_answer: bool) -> None:
    got = attack(measured, r.raw((b"HTTP/1.1 " + status + b"\r\n\r\n") * count + r.response(200, b"ok")))
    assert (got.status, got.text) == ((200, "ok") if is_answer else (None, OVERFLOW))


def test_head_in_one_byte_packets_works(measured: MeasuredSender) -> None:
    got = attack(measured, r.trickle(r.response(200, b"hello", [("A", "b")]), interval_s=0.001))
    assert (got.status, got.kind, got.text) == (200, None, "hello")


# --- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        pytest.param(b"Content-Length: -2\r\n", BAD_LENGTH, id="negative"),
        pytest.param(b"Content-Length: +2\r\n", BAD_LENGTH, id="plus"),
        pytest.param(b"Content-Length: 2e0\r\n", BAD_LENGTH, id="exponent"),
        pytest.param(b"Content-Length: 0x2\r\n", BAD_LENGTH, id="hex"),
        pytest.param(b"Content-Length: \xb2\r\n", BAD_LENGTH, id="superscript"),
        pytest.param(b"Content-Length: 1_0\r\n", BAD_LENGTH, id="underscore"),
        pytest.param(b"Content-Length: two\r\n", BAD_LENGTH, id="word"),
        pytest.param(b"Content-Length:\r\n", BAD_LENGTH, id="empty"),
        pytest.param(b"Content-Length: " + b"9" * 5000 + b"\r\n", BAD_LENGTH, id="5000-digits"),
        pytest.param(b"Content-Length: 2\r\nContent-Length: 3\r\n", BAD_LENGTH, id="two-lengths"),
        pytest.param(b"Content-Length: 2, 3\r\n", BAD_LENGTH, id="two-lengths-in-a-list"),
        pytest.param(b"Transfer-Encoding: gzip, chunked\r\n", BAD_ENCODING, id="gzip-chunked"),
        pytest.param(b"Transfer-Encoding: chunked, gzip\r\n", BAD_ENCODING, id="chunked-gzip"),
        pytest.param(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n", BAD_ENCODING, id="two-encodings"),
        pytest.param(b"Transfer-Encoding: xchunked\r\n", BAD_ENCODING, id="xchunked"),
        pytest.param(b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n", BAD_ENCODING, id="identity"),
        pytest.param(b"Transfer-Encoding: \x0bchunked\r\n", BAD_ENCODING, id="vertical-tab"),
    ],
)
def test_framing_that_is_open_to_two_readings(measured: MeasuredSender, headers: bytes, text: str) -> None:
    assert_refused(attack(measured, r.raw(OK + headers + b"\r\nhello")), text)


@pytest.mark.parametrize("between", [b", ", b"\r\nTransfer-Encoding: "], ids=["list", "twice"])
def test_chunked_said_twice_counts_once(measured: MeasuredSender, between: bytes) -> None:
    # An application and the server before it may both say it; curl, Node.js and requests take the response.
    head = OK + b"Transfer-Encoding: chunked" + between + b"Chunked\r\n\r\n"
    got = attack(measured, r.raw(head + b"5\r\nhello\r\n0\r\n\r\n"))
    assert (got.status, got.text) == (200, "hello")


@pytest.mark.parametrize("lengths", [b"5, 5", b"5\r\nContent-Length: 5", b"005"], ids=["list", "twice", "zeros"])
def test_same_length_said_twice_counts_once(measured: MeasuredSender, lengths: bytes) -> None:
    got = attack(measured, r.raw(OK + b"Content-Length: " + lengths + b"\r\n\r\nhello and more", keep=True))
    assert (got.status, got.text) == (200, "hello")


@pytest.mark.parametrize("keep", [False, True], ids=["closed", "held-open"])
def test_length_longer_than_the_body(measured: MeasuredSender, keep: bool) -> None:
    got = attack(measured, r.raw(OK + b"Content-Length: 999999999999\r\n\r\nhello", keep=keep))
    expected = (ErrorKind.TIMEOUT, "timeout of 3000ms exceeded") if keep else (ErrorKind.ABORTED, "aborted")
    assert (got.status, got.kind, got.text) == (None, *expected)


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        pytest.param(b"5\r\nhello\r\nnot a size\r\n", BAD_CHUNK, id="word"),
        pytest.param(b"-1\r\n" + MEGABYTE * 8, BAD_CHUNK, id="size-minus-1"),
        pytest.param(b"-5\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="size-minus-5"),
        pytest.param(b"+5\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="size-plus-5"),
        pytest.param(b"0x5\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="size-0x5"),
        pytest.param(b"0_5\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="size-with-underscore"),
        pytest.param("５\r\nhello\r\n0\r\n\r\n".encode(), BAD_CHUNK, id="size-in-wide-digits"),
        pytest.param(b"\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="no-size"),
        pytest.param(b";a=b\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="extension-alone"),
        pytest.param(b"5\rhello\r\n0\r\n\r\n", BAD_CHUNK, id="bare-cr"),
        pytest.param(b"5\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="bare-lf"),
        pytest.param(b"5\r\nhello\n\n0\r\n\r\n", BAD_CHUNK, id="bare-lf-behind-the-data"),
        pytest.param(b"5;\0\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="nul-in-extension"),
        pytest.param(b"5\r\nhelloXX0\r\n\r\n", BAD_CHUNK, id="no-line-break-behind-the-data"),
        pytest.param(b"4\r\nhello\r\n0\r\n\r\n", BAD_CHUNK, id="longer-than-its-size"),
        pytest.param(b"f" * 17 + b"\r\nhello", BAD_CHUNK, id="size-of-17-digits"),
        pytest.param(b"0\r\nno colon\r\n\r\n", BAD_CHUNK, id="trailer-that-is-no-header"),
        pytest.param(b"5;" + MEGABYTE + b"\r\nhello\r\n0\r\n\r\n", CHUNK_OVERFLOW, id="extension-of-1-MB"),
        pytest.param(b"0" * 1_000_000 + b"5\r\nhello\r\n0\r\n\r\n", CHUNK_OVERFLOW, id="1-MB-of-zeros"),
        pytest.param((b"1;" + b"e" * 1000 + b"\r\nx\r\n") * 900, CHUNK_OVERFLOW, id="900-extensions"),
        pytest.param(b"0\r\nA: " + MEGABYTE + b"\r\n\r\n", CHUNK_OVERFLOW, id="trailer-of-1-MB"),
    ],
)
def test_chunks_that_are_nonsense(measured: MeasuredSender, chunks: bytes, text: str) -> None:
    assert_refused(attack(measured, r.raw(CHUNKED + chunks)), text)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(r.endless(CHUNKED + b"5;", MEGABYTE), id="extension"),
        pytest.param(r.endless(CHUNKED, MEGABYTE.replace(b"x", b"0")), id="zeros"),
        pytest.param(r.endless(CHUNKED + b"0\r\n", b"A: b\r\n" * 10_000), id="trailers"),
        pytest.param(r.endless(CHUNKED + b"0\r\nA: ", MEGABYTE), id="trailer-line"),
    ],
)
def test_endless_chunk_framing_ends_at_its_cap(measured: MeasuredSender, behaviour: r.Behaviour) -> None:
    assert_refused(attack(measured, behaviour), CHUNK_OVERFLOW)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"5\r\nhel", id="in-the-data"),
        pytest.param(b"5\r\nhello", id="behind-the-data"),
        pytest.param(b"5\r\nhello\r\n", id="before-a-size"),
        pytest.param(b"5\r\nhello\r\n3", id="in-a-size"),
        pytest.param(b"5\r\nhello\r\n0\r\nA: b", id="in-a-trailer"),
        pytest.param(b"ffffffffffffffff\r\nhello", id="in-a-huge-chunk"),
    ],
)
def test_chunks_that_break_off(measured: MeasuredSender, chunks: bytes) -> None:
    got = attack(measured, r.raw(CHUNKED + chunks))
    assert (got.status, got.kind, got.text) == (None, ErrorKind.ABORTED, "aborted")


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", id="plain"),
        pytest.param(b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello") + b"0\r\n\r\n", id="single-bytes"),
        pytest.param(b"5;name=value;other\r\nhello\r\n0;x\r\n\r\n", id="extensions"),
        pytest.param(b"005  \r\nhello\r\n000\r\n\r\n", id="padded-sizes"),
        pytest.param(b"5\r\nhello\r\n0\r\nExpires: never\r\nA:b\r\n\r\n", id="trailers"),
    ],
)
def test_chunks_that_are_odd_but_clear(measured: MeasuredSender, chunks: bytes) -> None:
    with Receiver().then(r.raw(CHUNKED + chunks, keep=True)) as receiver:
        got = [measured.post(receiver.url) for _ in range(2)]
        assert [(answer.status, answer.text) for answer in got] == [(200, "hello"), (200, "ok")]
        assert receiver.connections == 1


def test_last_chunk_without_the_last_line_is_whole(measured: MeasuredSender) -> None:
    got = attack(measured, r.raw(CHUNKED + b"5\r\nhello\r\n0\r\n"))
    assert (got.status, got.text) == (200, "hello")


# --- bodies ----------------------------------------------------------------------------------------------------------


def endless_gzip() -> r.Behaviour:
    """A gzip stream that never ends and never says anything: empty blocks."""
    compressor = zlib.compressobj(wbits=31)
    start = compressor.compress(b"") + compressor.flush(zlib.Z_FULL_FLUSH)
    return r.endless(OK + b"Content-Encoding: gzip\r\n\r\n" + start, b"\0\0\0\xff\xff" * 10_000)


BOMB = b"x" * 50_000_000


@functools.cache
def compressed(times: int, wbits: int) -> bytes:
    data = BOMB
    for _ in range(times):
        compressor = zlib.compressobj(9, wbits=wbits)
        data = compressor.compress(data) + compressor.flush()
    return data


@pytest.mark.parametrize(
    ("encoding", "wbits", "times"),
    [
        pytest.param("gzip", 31, 1, id="gzip"),
        pytest.param("X-GZIP", 31, 1, id="x-gzip"),
        pytest.param("deflate", 15, 1, id="deflate"),
        pytest.param("deflate", -15, 1, id="raw-deflate"),
        pytest.param("gzip", 31, 2, id="gzip-in-gzip"),
        pytest.param("gzip, gzip", 31, 2, id="gzip-gzip"),
        pytest.param("deflate, gzip", 31, 2, id="deflate-gzip"),
        pytest.param("gzip," * 1000, 31, 1, id="gzip-1000-times"),
        pytest.param("br", 31, 1, id="br"),
        pytest.param("zstd", 31, 1, id="zstd"),
    ],
)
def test_bomb_costs_no_more_than_the_cap(measured: MeasuredSender, encoding: str, wbits: int, times: int) -> None:
    got = attack(measured, r.reply(200, compressed(times, wbits), [("Content-Encoding", encoding)]))
    assert (got.status, got.kind) == (200, None)
    # One encoding is undone. What stays encoded is text of escapes, up to four characters for a byte.
    if times == 1 and encoding.lower() in {"gzip", "x-gzip", "deflate"}:
        assert (got.text, got.cut) == ("x" * 1000, True)
    assert len(got.text) <= 4000


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(r.endless(OK + b"\r\n", MEGABYTE), id="without-length"),
        pytest.param(r.endless(OK + b"Content-Length: 999999999\r\n\r\n", MEGABYTE), id="with-length"),
        pytest.param(r.endless(CHUNKED + b"ffffffffffffffff\r\n", MEGABYTE), id="one-chunk"),
        pytest.param(r.endless(CHUNKED, b"1\r\nx\r\n" * 10_000), id="chunks-of-one-byte"),
    ],
)
def test_endless_body_is_cut(measured: MeasuredSender, behaviour: r.Behaviour) -> None:
    got = attack(measured, behaviour)
    assert (got.status, got.kind, got.cut) == (200, None, True)
    assert got.text == "x" * 1000


def test_endless_gzip_of_nothing_is_cut_and_shown_as_it_came(measured: MeasuredSender) -> None:
    got = attack(measured, endless_gzip())
    assert (got.status, got.kind, got.cut) == (200, None, True)
    assert got.text.startswith(r"\x1f\x8b\x08")


def test_body_of_control_characters_is_shown_and_not_obeyed(measured: MeasuredSender) -> None:
    got = attack(measured, r.reply(200, b"\0\x1b[2J\r\n\x7f<script>"))
    assert got.text == "\\x00\\x1b[2J\r\n\\x7f<script>"


def test_memory_is_measured(measured: MeasuredSender) -> None:
    got = attack(measured, r.raw(OK + b"A: " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"))
    assert (got.status, got.text) == (200, "")
    assert got.peak_bytes > 60_000


@pytest.mark.parametrize("max_response_bytes", [0, 101])
def test_body_beyond_the_cap_is_cut_and_the_connection_closed(make_sender: MakeSender, max_response_bytes: int) -> None:
    body = "ü".encode() * 100
    with Receiver().then(r.reply(200, body), r.reply(200, b"")) as receiver:
        sender = make_sender(max_response_bytes=max_response_bytes)
        cut, whole = (sender.post(receiver.url, {}, b"") for _ in range(2))
        assert receiver.connections == 2
    # Half a character at the end of what was read is not shown.
    assert (cut.status, cut.text, cut.cut) == (200, "ü" * (max_response_bytes // 2), True)
    assert (whole.text, whole.cut) == ("", False)


# --- what is not obeyed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 300, 301, 302, 303, 305, 307, 308, 401, 407, 503])
def test_nothing_in_a_response_is_followed_or_kept(make_sender: MakeSender, status: int) -> None:
    with Receiver() as other, Receiver() as receiver:
        orders = [
            ("Location", other.url),
            ("Content-Location", other.url),
            ("Refresh", f"0; url={other.url}"),
            ("Link", f"<{other.url}>; rel=preload"),
            ("Alt-Svc", f'http/1.1="127.0.0.1:{other.port}"'),
            ("Set-Cookie", "a=b; Path=/"),
            ("WWW-Authenticate", 'Basic realm="x"'),
            ("Proxy-Authenticate", 'Basic realm="x"'),
            ("Retry-After", "0"),
        ]
        receiver.then(r.reply(status, b"", orders))
        sender = make_sender()
        first, second = (sender.post(receiver.url, {}, b"") for _ in range(2))
        assert other.connections == 0
        one, two = receiver.requests
    assert (first.status, first.error_kind, second.status) == (status, None, 200)
    assert sorted(one.headers.items) == sorted(two.headers.items)


# --- what comes behind a response ------------------------------------------------------------------------------------

POISON = r.response(202, b"poison")
#: Python reads a head from the socket in pieces of this many bytes; what lies behind stays with OpenSSL.
BUFFER_BYTES = 8192


def whole_response(size: int) -> bytes:
    """Return a response of ``size`` bytes, head and all."""
    head_bytes = len(r.response(200, b"x" * 1000)) - 1000
    return r.response(200, b"x" * (size - head_bytes))


def in_two_parts(first: bytes, second: bytes) -> r.Behaviour:
    """Write something, and something more when the answer has been taken for whole."""

    def act(wire: r.Wire, _: r.Recorded) -> bool:
        wire.send(first)
        wire.sleep(0.1)
        wire.send(second)
        return True

    return r.Behaviour(act)


SURPLUS = {
    "in-the-buffer": r.raw(r.response(200, b"ok") + POISON, keep=True),
    "half-in-the-buffer": in_two_parts(r.response(200, b"ok") + POISON[:9], POISON[9:]),
    "one-byte-in-the-buffer": r.raw(r.response(200, b"ok") + b"\n", keep=True),
    "behind-the-buffer": r.raw(whole_response(BUFFER_BYTES) + POISON, keep=True),
    "behind-204": r.raw(b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n" + POISON, keep=True),
    "behind-304": r.raw(b"HTTP/1.1 304 No\r\nContent-Length: 99\r\n\r\n" + POISON, keep=True),
    "chunks-behind-204": r.raw(b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n" + POISON, keep=True),
    "behind-chunks": r.raw(CHUNKED + b"0\r\n\r\n" + POISON, keep=True),
    "length-too-short": r.raw(OK + b"Content-Length: 2\r\n\r\nok" + POISON, keep=True),
    "later": in_two_parts(r.response(200, b"ok"), POISON),
}


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("behaviour", SURPLUS.values(), ids=SURPLUS.keys())
def test_what_comes_behind_a_response_answers_no_other_request(
    make_sender: MakeSender, authority: Authority, ca_file: Path, behaviour: r.Behaviour, use_tls: bool
) -> None:
    with Receiver(tls=authority.context() if use_tls else None).then(behaviour) as receiver:
        sender = make_sender(ca_bundle=ca_file, max_response_bytes=2 * BUFFER_BYTES)
        first = sender.post(receiver.url, {}, b"")
        time.sleep(0.2)
        second = sender.post(receiver.url, {}, b"")
        assert [request.connection for request in receiver.requests] == [0, 1]
    assert first.status in {200, 204, 304}
    assert (second.status, second.text) == (200, "ok")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        pytest.param(b"Connection: close\r\nContent-Length: 2\r\n", b"ok", id="says-close"),
        pytest.param(b"Connection: keep-alive, Close\r\nContent-Length: 2\r\n", b"ok", id="says-both"),
        pytest.param(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"2\r\nok\r\n0\r\n\r\n", id="both"),
    ],
)
def test_connection_that_stays_open_against_its_word_is_not_used_again(
    make_sender: MakeSender, head: bytes, body: bytes
) -> None:
    with Receiver().then(r.raw(OK + head + b"\r\n" + body, keep=True)) as receiver:
        sender = make_sender()
        assert [sender.post(receiver.url, {}, b"").text for _ in range(2)] == ["ok", "ok"]
        assert receiver.connections == 2


def test_protocol_that_we_did_not_ask_for_ends_the_connection(make_sender: MakeSender) -> None:
    switching = r.raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", keep=True)
    with Receiver().then(switching) as receiver:
        sender = make_sender()
        assert [sender.post(receiver.url, {}, b"").status for _ in range(2)] == [101, 200]
        assert receiver.connections == 2
