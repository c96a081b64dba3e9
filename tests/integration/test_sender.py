"""Each row of the contract's error table, made by a real socket, look-up or certificate on loopback."""

import functools
import logging
import socket
import threading
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.lab import receiver as r
from tests.lab.receiver import Authority, Receiver
from tests.lab.senders import LOOPBACK, SLACK_S, TOTAL_S, MakeSender, assert_failed, resolving_to
from webhooks.errors import ErrorKind
from webhooks.local.servers import free_port
from webhooks.sender import Resolver

# --- it works --------------------------------------------------------------------------------------------------------


def test_post_arrives_as_sent(make_sender: MakeSender) -> None:
    body = '{"ü": 1}'.encode()
    with Receiver() as receiver:
        headers = {"Content-Type": "application/json", "User-Agent": "x/1", "webhook-id": "msg_1"}
        answer = make_sender().post(f"{receiver.url}/hook?a=b", headers, body)
        [request] = receiver.wait_for(1)
    assert (answer.status, answer.text, answer.error_kind, answer.cut) == (200, "ok", None, False)
    assert answer.peer == f"127.0.0.1:{receiver.port}"
    assert (request.method, request.path, request.body) == ("POST", "/hook?a=b", body)
    assert sorted(request.headers.items) == sorted(
        {
            "Host": f"127.0.0.1:{receiver.port}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "keep-alive",
            "Content-Length": str(len(body)),
            **headers,
        }.items()
    )


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([("Retry-After", "120")], 120),
        ([("rEtRy-aFtEr", "\t120 ")], 120),
        ([("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT")], 0),
        ([("Retry-After", "120"), ("Retry-After", "120")], None),
        ([("Retry-After", "120\r\n 0")], None),
        ([("Retry-After", "9" * 30_000)], None),
        ([("Retry-After", "\xb2")], None),
        ([("X-Retry-After", "120")], None),
    ],
    ids=["seconds", "spaces", "date", "twice", "folded", "huge", "superscript", "other"],
)
def test_retry_after_off_the_wire(make_sender: MakeSender, lines: list[tuple[str, str]], seconds: float | None) -> None:
    with Receiver().then(r.reply(503, b"later", lines)) as receiver:
        answer = make_sender().post(receiver.url, {}, b"{}")
    assert (answer.status, answer.text, answer.retry_after_s) == (503, "later", seconds)


def test_post_timings(make_sender: MakeSender, authority: Authority, ca_file: Path) -> None:
    with Receiver(tls=authority.context()).then(r.reply(delay_s=0.1)) as receiver:
        sender = make_sender(ca_bundle=ca_file)
        first, second = (sender.post(receiver.url, {}, b"x").timings for _ in range(2))
    phases = (first.lookup_ms, first.connect_ms, first.tls_ms, first.send_ms, first.wait_ms, first.read_ms)
    known = [ms for ms in phases if ms is not None]
    assert len(known) == len(phases)
    assert min(known) >= 0
    assert first.wait_ms is not None
    assert first.wait_ms >= 80  # we may come to look at the clock late
    assert sum(known) <= first.total_ms
    assert (second.lookup_ms, second.connect_ms, second.tls_ms) == (None, None, None)
    assert None not in (second.send_ms, second.wait_ms, second.read_ms)


def test_many_threads_share_a_sender(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        sender = make_sender()
        statuses: list[int | None] = []

        def post_some() -> None:
            for n in range(20):
                body = str(n).encode()
                statuses.append(sender.post(receiver.url, {}, body).status)

        threads = [threading.Thread(target=post_some) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 80
        assert receiver.connections <= 4


# --- the contract's error table ---------------------------------------------------------------------------------------


def test_connect_refused(make_sender: MakeSender) -> None:
    port = free_port()
    answer = make_sender().post(f"http://127.0.0.1:{port}/", {}, b"")
    assert_failed(answer, ErrorKind.CONNECT_REFUSED, f"connect ECONNREFUSED 127.0.0.1:{port}")
    assert answer.peer is None
    assert answer.timings.connect_ms is not None
    assert answer.timings.send_ms is None


def test_connect_timeout(make_sender: MakeSender, full_port: int) -> None:
    started = time.monotonic()
    answer = make_sender(connect_timeout_s=0.3).post(f"http://127.0.0.1:{full_port}/", {}, b"")
    assert_failed(answer, ErrorKind.CONNECT_TIMEOUT, f"connect ETIMEDOUT 127.0.0.1:{full_port}")
    assert 0.3 <= time.monotonic() - started < 0.3 + SLACK_S
    assert answer.peer is None


def test_connect_timeout_is_shared_by_the_addresses(make_sender: MakeSender, full_port: int) -> None:
    # 127.0.0.1 never answers there, and nobody listens at 127.0.0.2, which is also this machine.
    sender = make_sender(connect_timeout_s=0.6, resolver=resolving_to("127.0.0.1", "127.0.0.2"))
    started = time.monotonic()
    answer = sender.post(f"http://receiver.test:{full_port}/", {}, b"")
    assert_failed(answer, ErrorKind.CONNECT_REFUSED, f"connect ECONNREFUSED 127.0.0.2:{full_port}")
    assert 0.3 <= time.monotonic() - started < 0.6


def test_total_deadline_covers_connecting(make_sender: MakeSender, full_port: int) -> None:
    answer = make_sender(total_timeout_s=0.3).post(f"http://127.0.0.1:{full_port}/", {}, b"")
    assert_failed(answer, ErrorKind.TIMEOUT, "timeout of 300ms exceeded")


def test_total_deadline_is_shared_by_the_addresses_where_it_comes_first(
    make_sender: MakeSender, full_port: int
) -> None:
    # 127.0.0.1 never answers there, and nobody listens at 127.0.0.2, which is also this machine.
    sender = make_sender(connect_timeout_s=5, total_timeout_s=0.6, resolver=resolving_to("127.0.0.1", "127.0.0.2"))
    answer = sender.post(f"http://receiver.test:{full_port}/", {}, b"")
    assert_failed(answer, ErrorKind.CONNECT_REFUSED, f"connect ECONNREFUSED 127.0.0.2:{full_port}")


def test_address_of_the_other_family_is_tried_before_the_rest_of_the_first(make_sender: MakeSender) -> None:
    dead = [f"2001:db8::{number}" for number in range(1, 30)]
    networks = (*LOOPBACK, ip_network("2001:db8::/32"))
    with Receiver(host="receiver.test") as receiver:
        sender = make_sender(allowed_networks=networks, connect_timeout_s=2, resolver=resolving_to(*dead, "127.0.0.1"))
        answer = sender.post(receiver.url, {}, b"")
    assert (answer.status, answer.peer) == (200, f"127.0.0.1:{receiver.port}")


def test_no_such_host(make_sender: MakeSender) -> None:
    # The system's own getaddrinfo, told to look at no name server: what it then says of a name is EAI_NONAME, the
    # same as for a name that does not exist, on any machine, with or without DNS.
    look_up = functools.partial(socket.getaddrinfo, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    answer = make_sender(resolver=Resolver(look_up)).post("http://nosuch.example/", {}, b"")
    assert_failed(answer, ErrorKind.LOOKUP, "getaddrinfo ENOTFOUND nosuch.example")
    assert answer.timings.lookup_ms is not None
    assert answer.timings.connect_ms is None


def test_no_such_host_asking_the_system(make_sender: MakeSender) -> None:
    # RFC 6761 reserves .invalid; without a reachable name server the system says EAI_AGAIN, or nothing in time.
    answer = make_sender(total_timeout_s=3).post("http://nosuch.invalid/", {}, b"")
    assert answer.error_kind in {ErrorKind.LOOKUP, ErrorKind.RESOLVER}
    assert answer.text in {f"getaddrinfo {code} nosuch.invalid" for code in ("ENOTFOUND", "EAI_AGAIN")}


def test_look_up_that_hangs_ends_at_the_deadline(make_sender: MakeSender) -> None:
    release = threading.Event()

    def look_up(host: str, port: int) -> list[Any]:
        release.wait(10)
        return []

    try:
        started = time.monotonic()
        answer = make_sender(total_timeout_s=TOTAL_S, resolver=Resolver(look_up)).post("http://slow.example/", {}, b"")
        assert time.monotonic() - started < TOTAL_S + SLACK_S
    finally:
        release.set()
    assert_failed(answer, ErrorKind.RESOLVER, "getaddrinfo EAI_AGAIN slow.example")


@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        pytest.param(r.reset(), ErrorKind.RESET, "read ECONNRESET", id="reset"),
        pytest.param(r.close_early(), ErrorKind.HANG_UP, "socket hang up", id="closed"),
        pytest.param(r.raw(b"HTTP/1.1 103 Early\r\n\r\n"), ErrorKind.HANG_UP, "socket hang up", id="closed-after-1xx"),
        pytest.param(r.half_body("close"), ErrorKind.ABORTED, "aborted", id="half-body-closed"),
        pytest.param(r.half_body("reset"), ErrorKind.ABORTED, "aborted", id="half-body-reset"),
        pytest.param(r.bad_chunks(), ErrorKind.BAD_RESPONSE, "Parse Error: Invalid chunk", id="bad-chunk"),
        pytest.param(r.raw(b"HTTP/1.1 20"), ErrorKind.ABORTED, "aborted", id="half-status-line"),
        pytest.param(r.raw(b"HTTP/1.1 200 OK\r\nA: b\r\n"), ErrorKind.ABORTED, "aborted", id="half-head"),
        pytest.param(r.raw(b"HTTP/1.1 200 OK\r\nA: "), ErrorKind.ABORTED, "aborted", id="half-header"),
    ],
)
def test_connection_breaks_off(make_sender: MakeSender, behaviour: r.Behaviour, kind: ErrorKind, text: str) -> None:
    with Receiver().then(behaviour) as receiver:
        answer = make_sender().post(receiver.url, {}, b"{}")
        assert len(receiver.requests) == 1
    assert_failed(answer, kind, text)
    assert answer.peer == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(r.hang(), id="hang"),
        pytest.param(r.reply(delay_s=5), id="slow"),
        pytest.param(r.trickle_head(0.1), id="trickle-head"),
        pytest.param(r.trickle_body(interval_s=0.1), id="trickle-body"),
        pytest.param(r.endless_head(0.1), id="endless-head"),
        pytest.param(r.flood_1xx(103, 0.1), id="1xx"),
        pytest.param(r.ignore_body(), id="body-unread"),
    ],
)
@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_total_deadline(
    make_sender: MakeSender, authority: Authority, ca_file: Path, behaviour: r.Behaviour, use_tls: bool
) -> None:
    # 16 MiB are more than the buffers of both ends hold, so a receiver that reads nothing blocks the writing.
    body = b"x" * (16 << 20 if not behaviour.reads_body else 10)
    context = authority.context() if use_tls else None
    with Receiver(tls=context, receive_buffer_bytes=4096).then(behaviour) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S, ca_bundle=ca_file)
        started = time.monotonic()
        answer = sender.post(receiver.url, {}, body)
        assert TOTAL_S <= time.monotonic() - started < TOTAL_S + SLACK_S
    assert_failed(answer, ErrorKind.TIMEOUT, "timeout of 500ms exceeded")
    assert answer.timings.total_ms >= TOTAL_S * 1000


def test_deadline_covers_a_stalled_handshake(make_sender: MakeSender, authority: Authority, ca_file: Path) -> None:
    with Receiver(tls=authority.context(), on_accept="stall") as receiver:
        started = time.monotonic()
        answer = make_sender(total_timeout_s=TOTAL_S, ca_bundle=ca_file).post(receiver.url, {}, b"")
        assert time.monotonic() - started < TOTAL_S + SLACK_S
    assert_failed(answer, ErrorKind.TIMEOUT, "timeout of 500ms exceeded")
    assert answer.timings.tls_ms is not None


def test_receiver_that_resets_while_we_write(make_sender: MakeSender) -> None:
    with Receiver().then(r.reset(reads_body=False)) as receiver:
        answer = make_sender().post(receiver.url, {}, b"x" * (16 << 20))
    assert answer.error_kind is ErrorKind.RESET
    # Which of them it is depends on whether the RST arrives during a write or between two.
    assert answer.text in {"write EPIPE", "write ECONNRESET", "read ECONNRESET"}


def test_response_before_the_body_was_read_counts(make_sender: MakeSender) -> None:
    refusal = r.Behaviour(r.raw(r.response(413, b"too large", [("Connection", "close")])).act, reads_body=False)
    with Receiver().then(refusal) as receiver:
        answer = make_sender().post(receiver.url, {}, b"x" * 100)
    assert (answer.status, answer.error_kind) == (413, None)


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "is_expired", "text"),
    [
        pytest.param((), True, "certificate has expired", id="expired"),
        pytest.param(
            ("other.example",),
            False,
            "IP address mismatch, certificate is not valid for '127.0.0.1'.",
            id="wrong-host",
        ),
    ],
)
def test_bad_certificate(
    make_sender: MakeSender, authority: Authority, ca_file: Path, names: tuple[str, ...], is_expired: bool, text: str
) -> None:
    with Receiver(tls=authority.context(*names, is_expired=is_expired)) as receiver:
        answer = make_sender(ca_bundle=ca_file).post(receiver.url, {}, b"secret")
        assert receiver.requests == []
    assert_failed(answer, ErrorKind.TLS, text)
    assert answer.peer == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("host", ["my_app.example.test", "my-app.example.test", "My_App.Example.test."])
def test_wildcard_certificate(make_sender: MakeSender, authority: Authority, ca_file: Path, host: str) -> None:
    # OpenSSL's own check takes no underscore under a wildcard.
    with Receiver(tls=authority.context("*.example.test"), host=host) as receiver:
        sender = make_sender(ca_bundle=ca_file, resolver=resolving_to("127.0.0.1"))
        answers = [sender.post(receiver.url, {}, b"") for _ in range(2)]
        assert [request.headers["host"] for request in receiver.requests] == [
            f"{host.lower().removesuffix('.')}:{receiver.port}"
        ] * 2
        assert receiver.connections == 1
    assert [answer.status for answer in answers] == [200, 200]


@pytest.mark.parametrize(
    ("names", "is_expired", "text"),
    [
        (("*.other.test",), False, "Hostname mismatch, certificate is not valid for 'my_app.example.test'."),
        (("my-app.example.test",), False, "Hostname mismatch, certificate is not valid for 'my_app.example.test'."),
        (("127.0.0.1",), False, "Hostname mismatch, certificate is not valid for 'my_app.example.test'."),
        (("*.example.test",), True, "certificate has expired"),
    ],
)
def test_bad_certificate_of_a_host_with_an_underscore(
    make_sender: MakeSender, authority: Authority, ca_file: Path, names: tuple[str, ...], is_expired: bool, text: str
) -> None:
    tls = authority.context(*names, is_expired=is_expired)
    with Receiver(tls=tls, host="my_app.example.test") as receiver:
        sender = make_sender(ca_bundle=ca_file, resolver=resolving_to("127.0.0.1"))
        answer = sender.post(receiver.url, {}, b"secret")
        assert receiver.requests == []
    assert_failed(answer, ErrorKind.TLS, text)


@pytest.mark.parametrize(
    ("alert", "text"),
    [
        pytest.param(40, "TLS failed: sslv3 alert handshake failure", id="handshake_failure"),
        pytest.param(112, "TLS failed: tlsv1 unrecognized name", id="unrecognized_name"),
        # Of a receiver that speaks HTTP/2 alone. Python has no name for it.
        pytest.param(120, "TLS failed: tlsv1 alert no application protocol", id="no_application_protocol"),
        pytest.param(99, "TLS failed: unknown error", id="unassigned"),
    ],
)
def test_alert_is_told_in_openssls_words(make_sender: MakeSender, alert: int, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(bytes((0x15, 3, 3, 0, 2, 2, alert)))

        thread = threading.Thread(target=serve)
        thread.start()
        answer = make_sender().post(f"https://127.0.0.1:{server.getsockname()[1]}/", {}, b"")
        thread.join()
    assert_failed(answer, ErrorKind.TLS, text)


def test_untrusted_certificate(make_sender: MakeSender) -> None:
    with Receiver(tls=Authority().context()) as receiver:
        answer = make_sender().post(receiver.url, {}, b"")
    assert_failed(answer, ErrorKind.TLS, "unable to get local issuer certificate")


def test_https_to_a_plain_port(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        receiver.then(r.raw(b"HTTP/1.1 400 Bad\r\n\r\n"))
        answer = make_sender(total_timeout_s=TOTAL_S).post(receiver.url.replace("http:", "https:"), {}, b"")
    # What a plain server makes of a TLS greeting is its own affair; here it waits for the end of a line.
    assert answer.error_kind in {ErrorKind.TLS, ErrorKind.HANG_UP, ErrorKind.TIMEOUT}


def test_handshake_closed_or_reset(make_sender: MakeSender, authority: Authority) -> None:
    with Receiver(tls=authority.context(), on_accept="close") as receiver:
        closed = make_sender().post(receiver.url, {}, b"")
    with Receiver(tls=authority.context(), on_accept="reset") as receiver:
        was_reset = make_sender().post(receiver.url, {}, b"")
    # A close with our greeting unread is a reset as well, and a reset may come before we see that we are connected.
    assert closed.error_kind in {ErrorKind.HANG_UP, ErrorKind.RESET}
    assert was_reset.error_kind in {ErrorKind.RESET, ErrorKind.CONNECT_FAILED}
    assert was_reset.text in {
        "read ECONNRESET",
        "write EPIPE",
        "write ECONNRESET",
        f"connect ECONNRESET 127.0.0.1:{receiver.port}",
    }


def test_name_and_sni_are_the_hosts_while_the_connection_goes_to_the_judged_address(
    make_sender: MakeSender, authority: Authority, ca_file: Path
) -> None:
    names: list[str | None] = []
    calls: list[str] = []
    context = authority.context("receiver.test")
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    with Receiver(tls=context, host="receiver.test") as receiver:
        sender = make_sender(ca_bundle=ca_file, resolver=resolving_to("127.0.0.1", calls=calls))
        dotted = receiver.url.replace(".test", ".test.")
        got = [sender.post(url, {}, b"") for url in (receiver.url, receiver.url, dotted)]
        assert [request.headers["host"] for request in receiver.requests] == [f"receiver.test:{receiver.port}"] * 3
    assert [(answer.status, answer.peer) for answer in got] == [(200, f"127.0.0.1:{receiver.port}")] * 3
    assert names == ["receiver.test"] * 2
    # Once per connection: a second look-up could say something else than the one that was judged.
    assert calls == ["receiver.test", "receiver.test."]


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0x7f.1", "0177.0.0.1", "2130706433", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_address_not_allowed(make_sender: MakeSender, host: str) -> None:
    with Receiver() as receiver:
        answer = make_sender(allowed_networks=()).post(f"http://{host}:{receiver.port}/?token=1", {}, b"")
        assert receiver.connections == 0
    assert_failed(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: {host}:{receiver.port}")
    assert answer.peer is None


def test_ipv6_address_is_written_in_brackets(make_sender: MakeSender) -> None:
    port = free_port()
    answer = make_sender(allowed_networks=(ip_network("::1"),)).post(f"http://[::1]:{port}/", {}, b"")
    # The second where the machine has no IPv6.
    assert answer.text in {f"connect {code} [::1]:{port}" for code in ("ECONNREFUSED", "EADDRNOTAVAIL", "EAFNOSUPPORT")}


def test_zone_id_is_refused_before_it_is_looked_up(make_sender: MakeSender) -> None:
    answer = make_sender().post("http://[fe80::1%25nosuch0]/", {}, b"")
    assert_failed(answer, ErrorKind.NOT_ALLOWED, "address not allowed: [fe80::1%25nosuch0]:80")


@pytest.mark.parametrize("ips", [("10.1.2.3",), ("127.0.0.1", "10.1.2.3"), ("127.0.0.1", "fd00::1")])
def test_one_address_not_allowed_refuses_the_name_without_telling_it(
    make_sender: MakeSender, caplog: pytest.LogCaptureFixture, ips: tuple[str, ...]
) -> None:
    caplog.set_level(logging.INFO)
    with Receiver(host="inner.test") as receiver:
        answer = make_sender(resolver=resolving_to(*ips)).post(receiver.url, {}, b"")
        assert receiver.connections == 0
    assert_failed(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: inner.test:{receiver.port}")
    # Operators are told which one, and what allows it.
    said = f"no request to inner.test:{receiver.port}: WEBHOOKS_ALLOWED_NETWORKS does not allow its address {ips[-1]}"
    assert said in caplog.messages


def test_allowed_network_does_not_open_ports(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        others = frozenset({receiver.port - 1, receiver.port + 1})
        refused, allowed = (
            make_sender(allowed_ports=ports).post(receiver.url, {}, b"") for ports in (others, {receiver.port})
        )
        assert receiver.connections == 1
    assert_failed(refused, ErrorKind.NOT_ALLOWED, f"port {receiver.port} is not allowed")
    assert allowed.status == 200


def test_odd_spelling_of_an_allowed_address_is_connected_to(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        answer = make_sender().post(f"http://0x7f.1:{receiver.port}/", {}, b"")
    assert (answer.status, answer.peer) == (200, f"127.0.0.1:{receiver.port}")


# --- what is read ----------------------------------------------------------------------------------------------------


def test_body_that_ends_with_the_connection_is_whole(make_sender: MakeSender) -> None:
    with Receiver().then(r.raw(b"HTTP/1.0 200 OK\r\n\r\nall of it")) as receiver:
        answer = make_sender().post(receiver.url, {}, b"")
    assert (answer.status, answer.text) == (200, "all of it")


def test_query_and_body_appear_in_no_log(make_sender: MakeSender, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Receiver().then(r.reply(), r.raw(b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"), r.close_early()) as receiver:
        sender = make_sender()
        for _ in range(3):
            sender.post(f"{receiver.url}/?token=secret", {"X-Key": "secret"}, b"secret")
    assert "secret" not in caplog.text


def test_caller_header_that_http_cannot_carry_is_the_callers_error(make_sender: MakeSender) -> None:
    with Receiver() as receiver, pytest.raises(ValueError, match="that HTTP cannot carry"):
        make_sender().post(receiver.url, {"X": "a\r\nB: c"}, b"")
