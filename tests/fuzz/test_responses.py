"""Responses, as raw bytes over a real socket to a real sender: an answer in time, bounded, safe to show and to keep."""

import gzip
import logging
import random
import threading
import zlib
from collections.abc import Iterator
from ipaddress import ip_network

import bson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.hostile import ANY_TEXT, UNSAFE, at_most
from tests.lab import receiver as r
from tests.lab.receiver import Receiver
from webhooks.errors import ErrorKind
from webhooks.sender import Answer, Sender
from webhooks.sender.body import BodyCollector, to_text

CAP = 500
TOTAL_S = 5.0
#: In the query of each request: it must be in no log.
TOKEN = "t0ken-of-the-receiver"

OK = b"HTTP/1.1 200 OK\r\n"
BAD_STATUS_LINES = (
    b"HTTP/1.0 200 OK\r\n|HTTP/1.1 999 \r\n|HTTP/2 200\r\n|HTTP/1.1 2_0 OK\r\n|HTTP/1.1 \xb200 OK\r\n|200 OK\r\n|\r\n|"
    b"\x16\x03\x01\x02|HTTP/1.1 101 Switch\r\n|HTTP/1.1 204 No\r\n|HTTP/1.1 304 No\r\n|HTTP/1.1 200 \x1b[2J\xff\r\n|"
    b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK\r\n|HTTP/1.1 103 x\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n|"
    b"HTTP/1.1 200 OK\n|HTTP/1.1 200 OK\r|HTTP/1.1  200 OK\r\n".split(b"|")
)
HEADERS = (
    b"Content-Length: 5|Content-Length: 0|Transfer-Encoding: chunked|Content-Encoding: gzip|Content-Encoding: deflate|"
    b"Connection: close|Connection: keep-alive|Content-Type: text/plain; charset=utf-16|Content-Type: text/html|"
    b"Set-Cookie: a=b|Location: http://127.0.0.1:9/|X: \x1b]0;x\x07|X:".split(b"|")
)
NAMES = (
    b"Content-Length|Transfer-Encoding|Content-Encoding|Content-Type|Connection|Set-Cookie|X|Location|Trailer|Upgrade|"
    b"content-length|TRANSFER-ENCODING|\xff|| X".split(b"|")
)
VALUES = (
    b"0|5|05|+5|-5|5, 5|5,6|5_0|0x5|5;|9999999999999999999|1e3|chunked|Chunked|chunked, gzip|gzip|identity|deflate|br|"
    b"x-gzip|gzip, gzip|text/plain|text/html; charset=utf-16|text/x; charset=unicode_escape|x; charset=\xff|close|"
    b"keep-alive|upgrade|http://127.0.0.1:9/|a=b; Path=/|\x1b]0;x\x07|\xe2\x80\xae|\x00|a\rb|5\xa0|chunked\xa0|\xff"
    b"|x; charset=iso-2022-jp|x; charset=utf-32|x; charset=gb2312".split(b"|")
)
COLONS, ENDS = [b": ", b":", b" : ", b""], [b"\r\n", b"\n", b"\r\n more\r\n", b"\r\n\tmore\r\n", b"", b"\r"]
#: Signs are in a test of their own.
SIZES = b"0|5|5;x=y|1_0|0x5| 5|FFFFFFFFFFFFFFFFFFFF|zz||\x00|5\r\n5".split(b"|")
BODIES = [
    *(b"hello", b"", b"x" * (3 * CAP), b"\x1b[2J\x9b31m\xe2\x80\xae", b"\xef\xbb\xbfx", b"\xff\xfea\x00", b"\xff"),
    *(gzip.compress(b"hello"), gzip.compress(b"x" * 100_000), zlib.compress(b"x"), b"\x1f\x8b\x08"),
    *(b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"5\r\nhello\r\n", b"5\r\nhel"),
]


def make_response(dice: random.Random) -> bytes:
    """Make a response that is nearly one: most parts are right, so that the wrong ones are reached."""

    def rarely() -> bool:
        return dice.random() < 0.15

    parts = [dice.choice(BAD_STATUS_LINES) if rarely() else OK]
    parts += [dice.choice(HEADERS) + b"\r\n" for _ in range(dice.randrange(4))]
    if rarely():
        parts += [b"".join(map(dice.choice, (NAMES, COLONS, VALUES, ENDS))) for _ in range(2)]
    if rarely() and rarely():
        parts.append(b"X: " + b"x" * 70_000 + b"\r\n")
    parts.append(b"\n" if rarely() else b"\r\n")
    if rarely():
        parts += [dice.choice(SIZES) + b"\r\n" + dice.randbytes(5) + dice.choice(ENDS) for _ in range(3)]
    else:
        parts.append(dice.choice(BODIES))
    data = b"".join(parts)
    while rarely():
        place = dice.randrange(len(data) + 1)
        data = dice.choice([data[:place], data[:place] + b"\x00" + data[place:], data + data])
    return data


def responses() -> st.SearchStrategy[bytes]:
    """Responses by seed: unlike choices of its own, Hypothesis leaves those of a seed in their proportions."""
    return st.integers(0, 2**32).map(lambda seed: make_response(random.Random(seed)))


@pytest.fixture(scope="module", autouse=True)
def threads_before() -> frozenset[threading.Thread]:
    """The threads that other tests left in this process."""
    return frozenset(threading.enumerate())


@pytest.fixture(scope="module")
def sender() -> Iterator[Sender]:
    made = Sender(
        allowed_networks=(ip_network("127.0.0.0/8"),), connect_timeout_s=TOTAL_S, total_timeout_s=TOTAL_S,
        max_response_bytes=CAP, ca_bundle=None, pool_size=2,
    )  # fmt: skip
    yield made
    made.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def post(sender: Sender, receiver: Receiver, behaviour: r.Behaviour) -> Answer:
    receiver.then(behaviour)
    with at_most(1):
        answer = sender.post(f"{receiver.url}/hook?token={TOKEN}", {}, b"{}")
    check_text(answer.text)
    assert (answer.status is None) == (answer.error_kind is not None)
    assert answer.status is None or 200 <= answer.status <= 999 or answer.status == 101
    assert answer.error_kind is not ErrorKind.TIMEOUT, "the receiver closes at once"
    assert TOKEN not in answer.text
    return answer


def check_text(text: str) -> None:
    """A text must be one that MongoDB and JSON can hold, and that cannot steer a terminal."""
    assert not UNSAFE.search(text.replace("\t", "").replace("\r", ""))
    assert bson.decode(bson.encode({"text": text})) == {"text": text}
    # Each byte can become an escape of six characters at most.
    assert len(text) <= 6 * CAP + 100


@given(data=responses())
@example(data=OK + b"Content-Type: text/html\r\n continued\r\n\r\nhello")
def test_any_bytes_end_in_an_answer(sender: Sender, receiver: Receiver, data: bytes) -> None:
    # A stale connection is tried a second time, by another request.
    post(sender, receiver, r.raw(data))
    receiver._queue.clear()


@given(surplus=responses())
@example(surplus=OK + b"Content-Length: 4\r\n\r\nfake")
def test_bytes_behind_a_response_never_answer_the_next_request(
    sender: Sender, receiver: Receiver, surplus: bytes
) -> None:
    answer = post(sender, receiver, r.raw(OK + b"Content-Length: 5\r\n\r\nfirst" + surplus, keep=True))
    assert (answer.status, answer.text) == (200, "first")
    answer = post(sender, receiver, r.reply(body=b"second"))
    assert (answer.status, answer.text) == (200, "second")


CHARSETS = (
    "utf-8 utf8 ascii latin1 iso-8859-15 windows-1252 cp1258 utf-16 utf-16le utf-16be utf-32 utf-32be koi8-r shift_jis "
    "euc-jp iso-2022-jp gb2312 gb18030 big5 euc-kr utf-7 unicode_escape idna punycode rot13 zlib hex x".split()
)


def encode(text: str, charset: str) -> bytes:
    """Write a text as a receiver does, also one that has no business there."""
    try:
        return text.encode(charset, "surrogatepass")
    except (LookupError, UnicodeError):
        return text.encode("utf-8", "surrogatepass")


@given(data=st.binary(max_size=80) | ANY_TEXT, charset=st.sampled_from(CHARSETS), is_cut=st.booleans())
@example(data="a\u202eb\u2066\x9b31m\x1b[2J", charset="utf-8", is_cut=False)
@example(data="a\u202eb\ud800\u2028", charset="utf-16le", is_cut=False)
@example(data="\ud800", charset="utf-7", is_cut=True)
def test_any_body_becomes_text_that_can_be_shown(data: bytes | str, charset: str, is_cut: bool) -> None:
    raw = encode(data, charset) if isinstance(data, str) else data
    text = to_text(raw, f'text/plain; charset="{charset}"', is_cut=is_cut)
    check_text(text)
    if raw.isascii() and raw.decode().isprintable() and charset in ("utf-8", "rot13", "zlib", "unicode_escape"):
        assert text == raw.decode()


@given(
    data=st.binary(max_size=60)
    | st.binary(max_size=60).map(gzip.compress)
    | st.binary(max_size=2_000).map(zlib.compress),
    encoding=st.sampled_from([None, "gzip", "x-gzip", "deflate", " GZIP ", "br", "gzip, gzip", ""]),
    step=st.integers(1, 50),
    cap=st.integers(0, 100),
    changed=st.none() | st.tuples(st.integers(0, 60), st.binary(max_size=3)),
)
def test_any_body_is_collected_up_to_the_cap(
    data: bytes, encoding: str | None, step: int, cap: int, changed: tuple[int, bytes] | None
) -> None:
    if changed:
        data = data[: changed[0]] + changed[1] + data[changed[0] :]
    collector = BodyCollector(cap, encoding)
    for start in range(0, len(data), step):
        if not collector.feed(data[start : start + step]):
            break
    body = collector.body()
    assert len(body) <= cap
    if encoding in (None, "br", "", "gzip, gzip"):
        assert body == data[:cap]
        assert collector.is_cut == (len(data) > cap)


# ── Found by the tests above ────────────────────────────────────────────────────────────────────────────────────────

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [b"-1", b"-5"])
def test_chunk_with_a_sign_is_no_http(sender: Sender, receiver: Receiver, size: bytes) -> None:
    receiver.then(r.endless(CHUNKED + size + b"\r\n", b"x" * 100_000))
    answer = sender.post(receiver.url, {}, b"{}")
    # Not TIMEOUT: reading on until the deadline would keep all that comes in memory.
    assert answer.error_kind is ErrorKind.BAD_RESPONSE


@pytest.mark.parametrize(
    "head",
    [b" folded: x\r\nContent-Length: 0\r\n", b"Content-Type: multipart/mixed\r\nContent-Length: 0\r\n"],
    ids=["folded_first_line", "multipart_without_boundary"],
)
def test_no_header_makes_the_url_appear_in_the_log(
    sender: Sender, receiver: Receiver, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    post(sender, receiver, r.raw(OK + head + b"\r\n"))
    assert TOKEN not in caplog.text


def test_threads_of_these_tests_end(threads_before: frozenset[threading.Thread]) -> None:
    assert len(frozenset(threading.enumerate()) - threads_before) < 100
