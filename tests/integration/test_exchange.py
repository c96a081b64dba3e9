"""Exchanges over kept connections come to the same as requests by way of urllib3, on the wire and in their answers."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import receiver as r
from tests.receiver import Authority, Receiver
from tests.senders import SLACK_S, TOTAL_S, MakeSender, assert_failed
from webhooks.errors import ErrorKind
from webhooks.sender import Answer, Exchange, Multiplexer, Sender
from webhooks.sender import connection as connection_module
from webhooks.sender.exchange import make_request
from webhooks.target import parse_target

HEADERS = {"Content-Type": "application/json", "User-Agent": "x/1", "webhook-id": "msg_1"}


class Posts:
    """Posts by exchanges, as `express` does, and says what needed a thread."""

    def __init__(self, sender: Sender, most: int = 100) -> None:
        self._sender = sender
        self._exchanges: Multiplexer[tuple[str, Mapping[str, str], bytes]] = Multiplexer(
            self._begin, self._end, self._fail, most
        )
        self._begun: dict[int, Exchange] = {}
        self.answers: list[Answer] = []
        self.failed: list[Exception] = []
        #: How many were begun, and how many of these went on in a thread.
        self.begun = self.resumed = 0

    def _begin(self, item: tuple[str, Mapping[str, str], bytes]) -> Exchange:
        exchange = self._sender.begin(*item)
        assert exchange is not None, "there is a kept connection"
        self.begun += 1
        self._begun[id(item)] = exchange
        return exchange

    def _end(self, item: tuple[str, Mapping[str, str], bytes], answer: Answer | None) -> None:
        if answer is None:
            self.resumed += 1
            answer = self._sender.resume(self._begun[id(item)], *item)
        self.answers.append(answer)

    def _fail(self, item: tuple[str, Mapping[str, str], bytes], error: Exception) -> None:
        self.failed.append(error)

    def post(self, url: str, headers: Mapping[str, str], body: bytes, times: int = 1) -> list[Answer]:
        """Send a request; return the answers."""
        self._exchanges.put([(url, headers, body) for _ in range(times)])
        self._exchanges.close()
        self._exchanges.run()
        return self.answers


@pytest.mark.parametrize(
    "path",
    ["", "/", "/hook", "/hook?a=b&c=%20d", "/a/../b//c", "/%7Euser?x", "/?", "/x?", "/a;b=c,d:e@f!$'()*+", "/x#part"],
)
def test_exchange_writes_the_same_bytes(make_sender: MakeSender, path: str) -> None:
    body = '{"ü": 1}'.encode()
    headers = {**HEADERS, "webhook-signature": "v1,abc=", "X-Key": "Grüße, a b"}
    with Receiver() as receiver:
        sender, url = make_sender(), receiver.url + path
        sender.post(url, headers, body)
        posts = Posts(sender)
        [answer] = posts.post(url, headers, body)
        first, second = receiver.wait_for(2)
    assert (answer.status, answer.text, answer.error_kind, answer.cut) == (200, "ok", None, False)
    assert answer.peer == f"127.0.0.1:{receiver.port}"
    assert posts.resumed == 0
    assert (second.method, second.path, second.body) == (first.method, first.path, first.body)
    assert second.headers.items == first.headers.items
    assert (first.connection, second.connection) == (0, 0)
    timings = answer.timings
    assert timings.lookup_ms is timings.connect_ms is timings.tls_ms is None
    assert timings.send_ms is not None
    assert timings.wait_ms is not None
    assert timings.send_ms + timings.wait_ms <= timings.total_ms


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://a.example/%7e", HEADERS),
        ("http://[::1]/", HEADERS),
        ("http://a.example/", {**HEADERS, "Host": "b.example"}),
        ("http://a.example/", {**HEADERS, "accept": "x"}),
        ("http://a.example/", {**HEADERS, "Transfer-Encoding": "chunked"}),
        ("http://a.example/", {**HEADERS, "X": "a\r\nEvil: 1"}),
        ("http://a.example/", {**HEADERS, "X": "a\nEvil: 1"}),
        ("http://a.example/", {**HEADERS, "X": "a\r"}),
        ("http://a.example/", {**HEADERS, "X\nEvil": "1"}),
        ("http://a.example/", {**HEADERS, "X:": "1"}),
        ("http://a.example/", {**HEADERS, "X": "…"}),
        ("http://a.example/", {**HEADERS, "X": ""}),
        ("http://a.example/", {**HEADERS, "content-TYPE": "text/plain"}),
        ("http://a.example/", {"Content-Type": "application/json"}),
    ],
)
def test_what_urllib3_may_write_in_another_way_is_left_to_it(url: str, headers: dict[str, str]) -> None:
    assert make_request(parse_target("http://a.example/"), HEADERS, b"x") is not None
    assert make_request(parse_target(url), headers, b"x") is None


_HEAD = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

#: Responses, and whether an exchange can read them without a thread.
RESPONSES = {
    "plain": (r.reply(), True),
    "no text": (r.reply(201, b""), True),
    "charset": (r.reply(200, b"\xe9", [("content-TYPE", "text/plain; charset=latin-1")]), True),
    "bad bytes": (r.reply(200, b"\xff\x00"), True),
    "no content": (r.raw(b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", keep=True), True),
    "no reason": (r.raw(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", keep=True), True),
    "as long as is kept": (r.reply(200, b"x" * 1000), True),
    "longer than is kept": (r.reply(200, b"x" * 1001), False),
    "error": (r.reply(500, b"broken"), False),
    "gone": (r.reply(410, b""), False),
    "later": (r.reply(503, b"", [("Retry-After", "7")]), False),
    "redirect": (r.redirect("http://127.0.0.1:1/"), False),
    "closes": (r.reply(200, b"ok", [("Connection", "close")]), False),
    "gzip": (r.gzipped(b"hello"), False),
    "chunks": (
        r.raw(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0A\r\n0123456789\r\n0\r\n\r\n", keep=True),
        True,
    ),
    "no chunks": (r.raw(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", keep=True), True),
    "chunks in pieces": (r.trickle(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", at_once=len(_CHUNKED) + 14), True),
    "chunk in pieces": (r.trickle(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", at_once=len(_CHUNKED) + 2), False),
    "chunks with extensions": (r.raw(_CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", keep=True), False),
    "chunks with trailers": (r.raw(_CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", keep=True), False),
    "chunks with a bad end": (r.raw(_CHUNKED + b"5\r\nhelloXX0\r\n\r\n"), False),
    "chunks of a negative size": (r.raw(_CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n"), False),
    "chunk of a huge size": (r.raw(_CHUNKED + b"fffffffff\r\nhello\r\n"), False),
    "chunks, then the end": (r.raw(_CHUNKED + b"5\r\nhello\r\n"), False),
    "chunks beyond what is kept": (r.raw(_CHUNKED + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", keep=True), False),
    "chunked twice": (r.raw(_CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), False),
    "chunked no content": (r.raw(b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), False),
    "chunks and surplus": (r.raw(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\nmore", keep=True), True),
    "both framings": (
        r.raw(_HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        False,
    ),
    "two lengths": (r.raw(_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk"), False),
    "same length twice": (r.raw(_HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"), False),
    "no number": (r.raw(_HEAD + b"Content-Length: +2\r\n\r\nok"), False),
    "until the end": (r.raw(_HEAD + b"\r\nall of it"), False),
    "early hints": (r.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" + _HEAD + b"Content-Length: 2\r\n\r\nok"), False),
    "other protocol": (r.raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"), False),
    "old": (r.raw(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), False),
    "folded": (r.raw(_HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", keep=True), False),
    "bare line feeds": (r.raw(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", keep=True), False),
    "name with a space": (r.raw(_HEAD + b"Content-Length : 2\r\n\r\nok"), False),
    "no HTTP": (r.raw(b"220 mail.example ESMTP\r\n\r\n"), False),
    "many heads": (r.reply(200, b"ok", [(f"X-{n}", "y") for n in range(61)]), False),
    "too large a head": (r.reply(200, b"ok", [("X", "y" * 70_000)]), False),
    "bad chunks": (r.bad_chunks(), False),
    "half": (r.half_body(), False),
    "half, then reset": (r.half_body("reset"), True),
    "half a head": (r.raw(_HEAD + b"Content-Le"), False),
    "in some pieces": (r.trickle(r.response(200, b"ok"), at_once=len(r.response(200, b"ok")) - 2), True),
    "in many pieces": (r.trickle(r.response(200, b"ok"), at_once=20, interval_s=0.01), False),
    "closed": (r.close_early(), False),
    "reset": (r.reset(), False),
}


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_exchange_has_the_answer_that_a_post_has(
    make_sender: MakeSender, authority: Authority, ca_file: Path, name: str, use_tls: bool
) -> None:
    behaviour, is_plain = RESPONSES[name]
    if use_tls and name == "half, then reset":
        is_plain = False  # OpenSSL may tell of the end before it tells of the reset
    kept = []
    got = []
    for by_exchange in (False, True):
        tls = authority.context() if use_tls else None
        with Receiver(tls=tls).then(r.reply(), behaviour) as receiver:
            sender = make_sender(ca_bundle=ca_file, total_timeout_s=TOTAL_S * 4)
            sender.post(receiver.url, HEADERS, b"{}")
            if by_exchange:
                posts = Posts(sender)
                [answer] = posts.post(receiver.url, HEADERS, b"{}")
                if not use_tls or is_plain:
                    assert posts.resumed == (0 if is_plain else 1)
            else:
                answer = sender.post(receiver.url, HEADERS, b"{}")
            got.append((answer.status, answer.text, answer.error_kind, answer.cut, answer.retry_after_s))
            sender.post(receiver.url, HEADERS, b"{}")
            kept.append(receiver.connections)
    assert got[0] == got[1]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_what_comes_behind_a_response_is_no_answer_to_the_next_request(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    tls = authority.context() if use_tls else None
    surplus = r.raw(r.response(200, b"ok") + r.response(200, b"not asked for"), keep=True)
    with Receiver(tls=tls).then(r.reply(), surplus) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        sender.post(receiver.url, HEADERS, b"")
        [answer] = Posts(sender).post(receiver.url, HEADERS, b"")
        assert (answer.status, answer.text) == (200, "ok")
        assert sender.post(receiver.url, HEADERS, b"").text == "ok"
        assert receiver.connections == 2


def test_exchange_ends_at_its_deadline(make_sender: MakeSender) -> None:
    with Receiver().then(r.reply(), r.hang()) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S)
        sender.post(receiver.url, HEADERS, b"")
        started = time.monotonic()
        [answer] = Posts(sender).post(receiver.url, HEADERS, b"")
        assert TOTAL_S <= time.monotonic() - started < TOTAL_S + SLACK_S
        assert_failed(answer, ErrorKind.TIMEOUT, f"timeout of {TOTAL_S * 1000:.0f}ms exceeded")
        # What comes too late is nobody's answer.
        assert sender.begin(receiver.url, HEADERS, b"") is None


def test_thread_that_goes_on_keeps_the_deadline(make_sender: MakeSender) -> None:
    with Receiver().then(r.reply(), r.trickle(r.response(200, b"ok"), at_once=30, interval_s=0.05)) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S)
        sender.post(receiver.url, HEADERS, b"")
        posts = Posts(sender)
        started = time.monotonic()
        [answer] = posts.post(receiver.url, HEADERS, b"")
        assert time.monotonic() - started < TOTAL_S + SLACK_S
    assert posts.resumed == 1
    assert_failed(answer, ErrorKind.TIMEOUT, f"timeout of {TOTAL_S * 1000:.0f}ms exceeded")


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_large_request_goes_on_in_a_thread(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    body = bytes(range(256)) * 80_000
    tls = authority.context() if use_tls else None
    with Receiver(tls=tls, receive_buffer_bytes=4096) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        sender.post(receiver.url, HEADERS, b"")
        posts = Posts(sender)
        [answer] = posts.post(receiver.url, HEADERS, body)
        received = receiver.wait_for(2)[1].body
    assert (answer.status, posts.resumed) == (200, 1)
    assert received == body


def test_many_at_a_time_up_to_the_bound(make_sender: MakeSender) -> None:
    most, pause_s = 5, 0.1
    with Receiver(default=r.reply(delay_s=pause_s)) as receiver:
        sender = make_sender(pool_size=20)
        warm = [threading.Thread(target=sender.post, args=(receiver.url, HEADERS, b"")) for _ in range(20)]
        for thread in warm:
            thread.start()
        for thread in warm:
            thread.join()
        posts = Posts(sender, most)
        answers = posts.post(receiver.url, HEADERS, b"", times=20)
        times = sorted(request.received_at for request in receiver.wait_for(40)[20:])
    assert [answer.status for answer in answers] == [200] * 20
    # Four rounds of five: within any pause no more than five came.
    assert all(later - earlier > pause_s * 0.9 for earlier, later in zip(times, times[most:], strict=False))


def test_defect_in_one_exchange_does_not_end_the_others(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver() as receiver:
        sender = make_sender()
        sender.post(receiver.url, HEADERS, b"")
        posts = Posts(sender, most=1)
        read, reads = Exchange.read, []

        def break_once(exchange: Exchange) -> Answer | None:
            reads.append(exchange)
            if len(reads) == 1:
                # So that the next one has a connection.
                sender.post(receiver.url, HEADERS, b"")
                raise ZeroDivisionError
            return read(exchange)

        monkeypatch.setattr(Exchange, "read", break_once)
        answers = posts.post(receiver.url, HEADERS, b"", times=2)
    assert [type(error) for error in posts.failed] == [ZeroDivisionError]
    assert [answer.status for answer in answers] == [200]


def test_nothing_is_begun_without_a_kept_connection(make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        sender = make_sender()
        assert sender.begin(receiver.url, HEADERS, b"") is None
        assert sender.begin("http://:/", HEADERS, b"") is None
        sender.post(receiver.url, HEADERS, b"")
        monkeypatch.setattr(connection_module, "MAX_CONNECTION_AGE_S", 0.0)
        assert sender.begin(receiver.url, HEADERS, b"") is None
        sender.close()
        assert sender.begin(receiver.url, HEADERS, b"") is None
        assert receiver.connections == 1


def test_nothing_is_begun_to_a_port_that_is_not_allowed(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        sender = make_sender(allowed_ports=frozenset({receiver.port}))
        sender.post(receiver.url, HEADERS, b"")
        sender._allowed_ports = frozenset({443})  # pyright: ignore[reportPrivateUsage]
        assert sender.begin(receiver.url, HEADERS, b"") is None
