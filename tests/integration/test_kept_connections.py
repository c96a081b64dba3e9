"""Requests over kept connections: the same as over new ones, and never over one that the network has forgotten."""

import queue
import time
from pathlib import Path

import pytest

from tests.lab import receiver as r
from tests.lab.receiver import Authority, Receiver
from tests.lab.senders import SLACK_S, TOTAL_S, MakeSender, assert_failed, keep_connections
from webhooks.errors import ErrorKind, TooLate
from webhooks.sender import Answer, OutgoingRequest, client, idle
from webhooks.sender.nonblocking import InFlightRequest

HEADERS = {"Content-Type": "application/json", "User-Agent": "x/1", "webhook-id": "msg_1"}


@pytest.mark.parametrize(
    "path",
    ["", "/", "/hook", "/hook?a=b&c=%20d", "/a/../b//c", "/%7Euser?x", "/?", "/x?", "/a;b=c,d:e@f!$'()*+", "/x#part"],
)
def test_kept_connection_carries_the_same_bytes(make_sender: MakeSender, path: str) -> None:
    body = '{"ü": 1}'.encode()
    headers = {**HEADERS, "webhook-signature": "v1,abc=", "X-Key": "Grüße, a b"}
    with Receiver() as receiver:
        sender, url = make_sender(), receiver.url + path
        sender.post(url, headers, body)
        answer = sender.post(url, headers, body)
        first, second = receiver.wait_for(2)
    assert (answer.status, answer.text, answer.error_kind, answer.cut) == (200, "ok", None, False)
    assert answer.peer == f"127.0.0.1:{receiver.port}"
    assert (second.method, second.path, second.body) == (first.method, first.path, first.body)
    assert second.headers.items == first.headers.items
    assert (first.connection, second.connection) == (0, 0)
    timings = answer.timings
    assert timings.lookup_ms is timings.connect_ms is timings.tls_ms is None
    assert None not in (timings.send_ms, timings.wait_ms, timings.read_ms)
    assert sum(ms for ms in (timings.send_ms, timings.wait_ms, timings.read_ms) if ms) <= timings.total_ms


_HEAD = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

#: What becomes of a connection that is closed before a response is in `test_sender`.
RESPONSES = {
    "plain": r.reply(),
    "no text": r.reply(201, b""),
    "charset": r.reply(200, b"\xe9", [("content-TYPE", "text/plain; charset=latin-1")]),
    "bad bytes": r.reply(200, b"\xff\x00"),
    "no content": r.raw(b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", keep=True),
    "no reason": r.raw(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", keep=True),
    "as long as is kept": r.reply(200, b"x" * 1000),
    "longer than is kept": r.reply(200, b"x" * 1001),
    "error": r.reply(500, b"broken"),
    "gone": r.reply(410, b""),
    "later": r.reply(503, b"", [("Retry-After", "7")]),
    "redirect": r.redirect("http://127.0.0.1:1/"),
    "closes": r.reply(200, b"ok", [("Connection", "close")]),
    "gzip": r.gzipped(b"hello"),
    "chunks": r.raw(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0A\r\n0123456789\r\n0\r\n\r\n", keep=True
    ),
    "no chunks": r.raw(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", keep=True),
    "chunks in pieces": r.trickle(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", at_once=len(_CHUNKED) + 14),
    "chunk in pieces": r.trickle(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", at_once=len(_CHUNKED) + 2),
    "chunks with extensions": r.raw(_CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", keep=True),
    "chunks with trailers": r.raw(_CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", keep=True),
    "chunks with a bad end": r.raw(_CHUNKED + b"5\r\nhelloXX0\r\n\r\n"),
    "chunks of a negative size": r.raw(_CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk of a huge size": r.raw(_CHUNKED + b"fffffffff\r\nhello\r\n"),
    "chunks, then the end": r.raw(_CHUNKED + b"5\r\nhello\r\n"),
    "chunks beyond what is kept": r.raw(_CHUNKED + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", keep=True),
    "chunked twice": r.raw(_CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked no content": r.raw(b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunks and surplus": r.raw(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\nmore", keep=True),
    "both framings": r.raw(_HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    "two lengths": r.raw(_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk"),
    "same length twice": r.raw(_HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    "no number": r.raw(_HEAD + b"Content-Length: +2\r\n\r\nok"),
    "until the end": r.raw(_HEAD + b"\r\nall of it"),
    "early hints": r.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" + _HEAD + b"Content-Length: 2\r\n\r\nok"),
    "other protocol": r.raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
    "old": r.raw(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    "folded": r.raw(_HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", keep=True),
    "bare line feeds": r.raw(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", keep=True),
    "name with a space": r.raw(_HEAD + b"Content-Length : 2\r\n\r\nok"),
    "no HTTP": r.raw(b"220 mail.example ESMTP\r\n\r\n"),
    "many heads": r.reply(200, b"ok", [(f"X-{n}", "y") for n in range(61)]),
    "too large a head": r.reply(200, b"ok", [("X", "y" * 70_000)]),
    "bad chunks": r.bad_chunks(),
    "half": r.half_body(),
    "half, then reset": r.half_body("reset"),
    "half a head": r.raw(_HEAD + b"Content-Le"),
    "in some pieces": r.trickle(r.response(200, b"ok"), at_once=len(r.response(200, b"ok")) - 2),
    "in many pieces": r.trickle(r.response(200, b"ok"), at_once=20, interval_s=0.01),
}


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_kept_connection_gives_the_same_answer(
    make_sender: MakeSender, authority: Authority, ca_file: Path, name: str, use_tls: bool
) -> None:
    got = []
    for max_age_s in (0, None):
        tls = authority.context() if use_tls else None
        with Receiver(tls=tls).then(r.reply(), RESPONSES[name]) as receiver:
            sender = make_sender(ca_bundle=ca_file, total_timeout_s=TOTAL_S * 4)
            sender.post(receiver.url, HEADERS, b"{}")
            answer = sender.post(receiver.url, HEADERS, b"{}", max_connection_age_s=max_age_s)
            sender.post(receiver.url, HEADERS, b"{}")
            first, second, third = (request.connection for request in receiver.requests)
            assert (second == first) == (max_age_s is None)
            is_kept = third == second
            got.append((answer.status, answer.text, answer.error_kind, answer.cut, answer.retry_after_s, is_kept))
    assert got[0] == got[1]


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_what_comes_behind_a_response_is_no_answer_to_the_next_request(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    tls = authority.context() if use_tls else None
    surplus = r.raw(r.response(200, b"ok") + r.response(200, b"not asked for"), keep=True)
    with Receiver(tls=tls).then(r.reply(), surplus) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        assert [sender.post(receiver.url, HEADERS, b"").text for _ in range(3)] == ["ok"] * 3
        assert receiver.connections == 2


def test_kept_connection_keeps_the_deadline(make_sender: MakeSender) -> None:
    with Receiver().then(r.reply(), r.hang()) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S)
        sender.post(receiver.url, HEADERS, b"")
        started = time.monotonic()
        answer = sender.post(receiver.url, HEADERS, b"")
        assert TOTAL_S <= time.monotonic() - started < TOTAL_S + SLACK_S
        assert_failed(answer, ErrorKind.TIMEOUT, f"timeout of {TOTAL_S * 1000:.0f}ms exceeded")
        # What comes too late is nobody's answer.
        assert sender.post(receiver.url, HEADERS, b"").status == 200
        assert [request.connection for request in receiver.requests] == [0, 0, 1]


def test_response_in_many_pieces_keeps_the_deadline(make_sender: MakeSender) -> None:
    with Receiver().then(r.reply(), r.trickle(r.response(200, b"ok"), at_once=30, interval_s=0.05)) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S)
        sender.post(receiver.url, HEADERS, b"")
        started = time.monotonic()
        answer = sender.post(receiver.url, HEADERS, b"")
        assert time.monotonic() - started < TOTAL_S + SLACK_S
    assert_failed(answer, ErrorKind.TIMEOUT, f"timeout of {TOTAL_S * 1000:.0f}ms exceeded")


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_large_request_is_written_in_pieces(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    body = bytes(range(256)) * 80_000
    tls = authority.context() if use_tls else None
    with Receiver(tls=tls, receive_buffer_bytes=4096) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        sender.post(receiver.url, HEADERS, b"")
        answer = sender.post(receiver.url, HEADERS, body)
        received = receiver.wait_for(2)[1]
    assert (answer.status, received.connection) == (200, 0)
    assert received.body == body


def test_many_at_a_time_up_to_the_bound(make_sender: MakeSender) -> None:
    most, pause_s = 5, 0.1
    with Receiver(default=r.reply(delay_s=pause_s)) as receiver:
        sender = make_sender(pool_size=20, concurrency=most)
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        request = OutgoingRequest(receiver.url, HEADERS, b"")
        for _ in range(2):  # over new connections, and over kept ones
            sender.submit_many([(request, answers.put)] * 20)
            assert [answers.get(timeout=5).status for _ in range(20)] == [200] * 20
        assert receiver.connections == most
        times = sorted(request.received_at for request in receiver.wait_for(40))
    # Within any pause no more than five came.
    assert all(later - earlier > pause_s * 0.9 for earlier, later in zip(times, times[most:], strict=False))


def test_defect_in_one_request_does_not_end_the_others(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver(default=r.reply(delay_s=0.1)) as receiver:
        sender = make_sender()
        keep_connections(sender, receiver, 2)
        advance, calls = InFlightRequest.advance, []

        def break_once(request: InFlightRequest) -> bytes:
            calls.append(request)
            if len(calls) == 3:  # both were written
                raise ZeroDivisionError
            return advance(request)

        monkeypatch.setattr(InFlightRequest, "advance", break_once)
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        sender.submit_many([(OutgoingRequest(receiver.url, HEADERS, b""), answers.put)] * 2)
        got = sorted((answers.get(timeout=5) for _ in range(2)), key=lambda answer: answer.status or 0)
        assert [(answer.status, type(answer.defect)) for answer in got] == [
            (None, ZeroDivisionError),
            (200, type(None)),
        ]
        assert got[0].error_kind is ErrorKind.INTERNAL
        assert sender.post(receiver.url, HEADERS, b"").status == 200


def test_answer_that_is_not_taken_does_not_end_the_others(
    make_sender: MakeSender, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Answer) -> None:
        raise ZeroDivisionError

    with Receiver() as receiver:
        sender = make_sender()
        for _ in range(2):  # over a new connection, and over a kept one
            sender.submit(OutgoingRequest(receiver.url, HEADERS, b""), refuse)
            assert sender.post(receiver.url, HEADERS, b"").status == 200
    assert "the handler of an answer failed: ZeroDivisionError" in caplog.text


def test_closed_sender_has_answered_all_and_takes_no_more(make_sender: MakeSender) -> None:
    with Receiver(default=r.reply(delay_s=0.1)) as receiver:
        sender = make_sender(concurrency=2)
        answers: list[Answer] = []
        sender.submit_many([(OutgoingRequest(receiver.url, HEADERS, b""), answers.append)] * 6)
        sender.close()
        assert [answer.status for answer in answers] == [200] * 6
        with pytest.raises(RuntimeError, match="closed"):
            sender.submit(OutgoingRequest(receiver.url, HEADERS, b""), answers.append)


def test_kept_connection_of_a_port_that_is_not_allowed_is_not_used(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        sender = make_sender(allowed_ports=frozenset({receiver.port}))
        sender.post(receiver.url, HEADERS, b"")
        sender._allowed_ports = frozenset({443})  # pyright: ignore[reportPrivateUsage]
        assert sender.post(receiver.url, HEADERS, b"").error_kind is ErrorKind.NOT_ALLOWED
        assert len(receiver.requests) == 1


# --- what a kept connection used to have otherwise -------------------------------------------------------------------

NEW, KEPT = 0, None
EACH_CONNECTION = pytest.mark.parametrize("max_age_s", [NEW, KEPT], ids=["new", "kept"])


@EACH_CONNECTION
def test_slow_body_is_read_time(make_sender: MakeSender, max_age_s: float | None) -> None:
    data = r.response(200, b"ok")
    slow_body = r.trickle(data, at_once=len(data) - 2, interval_s=0.2)
    with Receiver().then(r.reply(), slow_body) as receiver:
        sender = make_sender()
        sender.post(receiver.url, HEADERS, b"")
        timings = sender.post(receiver.url, HEADERS, b"", max_connection_age_s=max_age_s).timings
    assert timings.wait_ms is not None
    assert timings.read_ms is not None
    assert timings.wait_ms < 200 < 400 * 0.9 < timings.read_ms


@EACH_CONNECTION
def test_slow_head_is_waiting_time(make_sender: MakeSender, max_age_s: float | None) -> None:
    with Receiver().then(r.reply(), r.reply(delay_s=0.4)) as receiver:
        sender = make_sender()
        sender.post(receiver.url, HEADERS, b"")
        timings = sender.post(receiver.url, HEADERS, b"", max_connection_age_s=max_age_s).timings
    assert timings.wait_ms is not None
    assert timings.read_ms is not None
    assert timings.read_ms < 200 < 400 * 0.9 < timings.wait_ms


@EACH_CONNECTION
@pytest.mark.parametrize("has_head", [True, False])
def test_phase_in_which_the_time_was_up_is_the_last(
    make_sender: MakeSender, max_age_s: float | None, has_head: bool
) -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" if has_head else b"HTTP/1.1 200 OK\r\n"
    with Receiver().then(r.reply(), r.trickle(data + b"ok", at_once=len(data), interval_s=60)) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S)
        sender.post(receiver.url, HEADERS, b"")
        answer = sender.post(receiver.url, HEADERS, b"", max_connection_age_s=max_age_s)
    assert answer.error_kind is ErrorKind.TIMEOUT
    timings = answer.timings
    assert timings.send_ms is not None
    assert timings.wait_ms is not None
    if has_head:
        assert timings.read_ms is not None
        assert timings.wait_ms < TOTAL_S * 500 < timings.read_ms
    else:
        assert timings.read_ms is None
        assert timings.wait_ms > TOTAL_S * 500


@EACH_CONNECTION
@pytest.mark.parametrize(
    ("content_types", "text"),
    [
        (["text/plain; charset=ISO-8859-1", "application/json"], "é"),
        (["application/json", "text/plain; charset=ISO-8859-1"], "\\xe9"),
    ],
)
def test_first_of_two_content_types_counts(
    make_sender: MakeSender, max_age_s: float | None, content_types: list[str], text: str
) -> None:
    # As a framework and the proxy before it send them, that both add the header.
    behaviour = r.reply(200, b"\xe9", [("Content-Type", value) for value in content_types])
    with Receiver(default=behaviour) as receiver:
        sender = make_sender()
        sender.post(receiver.url, HEADERS, b"")
        assert sender.post(receiver.url, HEADERS, b"", max_connection_age_s=max_age_s).text == text


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_408_on_a_kept_connection_is_no_answer(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    tls = authority.context() if use_tls else None
    too_late = r.reply(408, b"idle for too long", [("Connection", "close")])
    with Receiver(tls=tls).then(r.reply(), too_late, r.reply(201, b"taken"), too_late) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        sender.post(receiver.url, HEADERS, b"x")
        answer = sender.post(receiver.url, HEADERS, b"x")
        assert (answer.status, answer.text) == (201, "taken")
        assert answer.timings.connect_ms is not None
        assert [request.connection for request in receiver.requests] == [0, 0, 1]
        # On a new connection it is about our request.
        answer = sender.post(receiver.url, HEADERS, b"x", max_connection_age_s=0)
        assert (answer.status, answer.text) == (408, "idle for too long")
        assert len(receiver.requests) == 4


def test_answer_before_the_whole_request_was_read_counts(make_sender: MakeSender) -> None:
    refusal = r.Behaviour(r.raw(r.response(413, b"too large", [("Connection", "close")])).act, reads_body=False)
    with Receiver().then(r.reply(), refusal) as receiver:
        sender = make_sender()
        sender.post(receiver.url, HEADERS, b"")
        answer = sender.post(receiver.url, HEADERS, b"x" * 100)
    assert (answer.status, answer.error_kind) == (413, None)
    assert [request.connection for request in receiver.requests] == [0, 0]


# --- which connections are kept, and for how long ---------------------------------------------------------------------


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_connections_are_reused(make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool) -> None:
    behaviours = [
        r.reply(200, b"x" * 1000),  # just the cap
        r.reply(204, b"", [("X-Empty", "yes")]),
        r.reply(500, b""),
        r.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", keep=True),
        r.raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n" + r.response(201, b"ok"), keep=True),
        r.redirect("http://127.0.0.1:1/"),
        r.gzipped(b"hello"),
    ]
    with Receiver(tls=authority.context() if use_tls else None).then(*behaviours) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        got = [sender.post(receiver.url, {}, b"{}") for _ in range(len(behaviours) + 1)]
        assert receiver.connections == 1
        assert len(receiver.requests) == len(behaviours) + 1
    assert [answer.status for answer in got] == [200, 204, 500, 200, 201, 302, 200, 200]
    assert [answer.text[:5] for answer in got] == ["xxxxx", "", "", "hello", "ok", "", "hello", "ok"]
    assert {answer.peer for answer in got} == {f"127.0.0.1:{receiver.port}"}


def test_deadline_is_set_anew_on_a_reused_connection(make_sender: MakeSender) -> None:
    with Receiver().then(r.reply(), r.reply(delay_s=0.6), r.reply(delay_s=0.6)) as receiver:
        sender = make_sender(total_timeout_s=1)
        assert [sender.post(receiver.url, {}, b"").status for _ in range(3)] == [200, 200, 200]
        assert receiver.connections == 1


def test_connection_beyond_its_age_is_not_reused(make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "MAX_AGE_S", 0.0)
    with Receiver() as receiver:
        sender = make_sender()
        assert [sender.post(receiver.url, {}, b"").status for _ in range(2)] == [200, 200]
        assert receiver.connections == 2


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("behaviour", [r.close_early(), r.reset()], ids=["closed", "reset"])
def test_stale_connection_is_no_failed_attempt(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool, behaviour: r.Behaviour
) -> None:
    # The receiver closes just when the next request arrives: no look at the idle connection can show that.
    with Receiver(tls=authority.context() if use_tls else None).then(r.reply(), behaviour) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        got = [sender.post(receiver.url, {}, b"{}") for _ in range(2)]
        assert [answer.status for answer in got] == [200, 200]
        assert [request.connection for request in receiver.requests] == [0, 0, 1]
    assert got[1].timings.connect_ms is not None


def test_second_try_is_the_last(make_sender: MakeSender) -> None:
    with Receiver().then(r.reply(), r.close_early(), r.close_early()) as receiver:
        sender = make_sender()
        assert sender.post(receiver.url, {}, b"").status == 200
        assert_failed(sender.post(receiver.url, {}, b""), ErrorKind.HANG_UP, "socket hang up")
        assert len(receiver.requests) == 3


def test_connection_closed_while_idle_is_replaced(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        sender = make_sender()
        assert sender.post(receiver.url, {}, b"").status == 200
        receiver.close_connections()
        assert sender.post(receiver.url, {}, b"").status == 200
        assert receiver.connections == 2


@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
def test_request_whose_time_passes_before_it_is_begun_is_not_sent(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """A worker was suspended while threads were about to send over new connections: they sent when it went on."""
    with Receiver() as receiver:
        sender = make_sender()
        if is_kept:
            keep_connections(sender, receiver, 1)
        times = iter([2.0] if is_kept else [0.0, 2.0])  # in the loop, then in a thread
        monkeypatch.setattr(client, "uptime", lambda: next(times))
        with pytest.raises(TooLate):
            sender.post(receiver.url, {}, b"", begin_by=1)
        assert (receiver.connections, len(receiver.requests)) == ((1, 1) if is_kept else (0, 0))


def test_request_in_flight_is_repeated_although_its_time_has_passed(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back, it would leave no log, though the receiver may have got it."""
    with Receiver().then(r.reply(), r.close_early()) as receiver:
        sender = make_sender()
        keep_connections(sender, receiver, 1)
        times = iter([0.0, 2.0])
        monkeypatch.setattr(client, "uptime", lambda: next(times))
        assert sender.post(receiver.url, {}, b"", begin_by=1).status == 200
        assert len(receiver.requests) == 3
