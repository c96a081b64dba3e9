"""Requests that go out through the operator's proxy, a real one: to the judged address, and its faults are its own."""

import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.lab import proxy as p
from tests.lab import receiver as r
from tests.lab.proxy import ESTABLISHED
from tests.lab.receiver import Authority, Receiver
from tests.lab.senders import LOOPBACK, SLACK_S, TOTAL_S, MakeSender, assert_failed, resolving_to
from webhooks import config
from webhooks.errors import ErrorKind
from webhooks.local.servers import free_port

CREDENTIALS = "us er:pass:wörd"


def through(proxy: p.Proxy, credentials: str | None = None) -> config.Proxy:
    return config.Proxy("127.0.0.1", proxy.port, credentials)


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_request_goes_through_a_tunnel_to_the_judged_address(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    names: list[str | None] = []
    calls: list[str] = []
    context = authority.context("receiver.test")
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    with p.Proxy() as proxy, Receiver(tls=context if use_tls else None, host="receiver.test") as receiver:
        resolver = resolving_to("127.0.0.1", calls=calls)
        sender = make_sender(proxy=through(proxy), ca_bundle=ca_file, resolver=resolver)
        answers = [sender.post(f"{receiver.url}/path?query=1", {"a": "b"}, b"body") for _ in range(3)]
        # One tunnel for all of them: connections are kept.
        assert (proxy.connections, receiver.connections) == (1, 1)
        assert proxy.heads == [f"CONNECT 127.0.0.1:{receiver.port} HTTP/1.1\r\nHost: 127.0.0.1:{receiver.port}\r\n\r\n"]
        request = receiver.requests[0]
        assert (request.path, request.headers["host"]) == ("/path?query=1", f"receiver.test:{receiver.port}")
        assert "proxy-authorization" not in request.headers
    assert [(answer.status, answer.peer) for answer in answers] == [(200, f"127.0.0.1:{receiver.port}")] * 3
    assert names == (["receiver.test"] if use_tls else [])
    assert calls == ["receiver.test"]


def test_timings_of_the_tunnel_are_those_of_connecting(make_sender: MakeSender) -> None:
    with p.Proxy(delay_s=0.2) as proxy, Receiver() as receiver:
        sender = make_sender(proxy=through(proxy))
        first, second = (sender.post(receiver.url, {}, b"").timings for _ in range(2))
    assert first.connect_ms is not None
    assert first.connect_ms >= 180
    assert (second.lookup_ms, second.connect_ms) == (None, None)


def test_answer_of_the_proxy_in_single_bytes_works(make_sender: MakeSender) -> None:
    with p.Proxy(drip_s=0.005) as proxy, Receiver() as receiver:
        answer = make_sender(proxy=through(proxy)).post(receiver.url, {}, b"")
    assert (answer.status, answer.text) == (200, "ok")


def test_bytes_behind_the_proxys_answer_are_the_receivers(make_sender: MakeSender) -> None:
    data = ESTABLISHED + r.response(200, b"from the receiver")
    with p.Proxy(answer=data, hold_s=1) as proxy:
        answer = make_sender(proxy=through(proxy)).post("http://127.0.0.1:8000/", {}, b"")
    assert (answer.status, answer.text, answer.peer) == (200, "from the receiver", "127.0.0.1:8000")


def test_credentials_are_shown_to_the_proxy_alone(make_sender: MakeSender) -> None:
    with p.Proxy(credentials=CREDENTIALS) as proxy, Receiver() as receiver:
        answer = make_sender(proxy=through(proxy, CREDENTIALS)).post(receiver.url, {}, b"")
        [request] = receiver.requests
    assert answer.status == 200
    assert "Proxy-Authorization: Basic " in proxy.heads[0]
    assert "proxy-authorization" not in request.headers


@pytest.mark.parametrize("credentials", [None, "us er:wrong"], ids=["none", "wrong"])
def test_wrong_credentials(make_sender: MakeSender, caplog: pytest.LogCaptureFixture, credentials: str | None) -> None:
    caplog.set_level(logging.DEBUG)
    with p.Proxy(credentials=CREDENTIALS) as proxy, Receiver() as receiver:
        answer = make_sender(proxy=through(proxy, credentials)).post(receiver.url, {}, b"")
        assert receiver.connections == 0
    assert_failed(answer, ErrorKind.PROXY, "proxy refused the connection: 407")
    assert answer.peer is None
    assert answer.timings.connect_ms is not None
    assert "wrong" not in caplog.text


def test_environments_proxy_stays_ignored(make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch) -> None:
    with p.Proxy() as proxy, p.Proxy() as other, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{other.port}")
        monkeypatch.setenv("no_proxy", "*")
        assert make_sender().post(receiver.url, {}, b"").status == 200
        assert make_sender(proxy=through(proxy)).post(receiver.url, {}, b"").status == 200
        assert (proxy.connections, other.connections) == (1, 0)


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/", "https://[::1]/", "http://inner.test/", "http://0x7f.1/"])
def test_guard_refuses_before_the_proxy_hears_of_it(make_sender: MakeSender, url: str) -> None:
    with p.Proxy() as proxy:
        resolver = resolving_to("93.184.216.34", "10.0.0.1")
        answer = make_sender(proxy=through(proxy), allowed_networks=(), resolver=resolver).post(url, {}, b"")
        assert proxy.connections == 0
    assert answer.error_kind is ErrorKind.NOT_ALLOWED


@pytest.mark.parametrize(
    ("ip", "address"), [("93.184.216.34", "93.184.216.34:443"), ("2606:2800:220:1::1", "[2606:2800:220:1::1]:443")]
)
def test_proxy_itself_is_not_judged(make_sender: MakeSender, ip: str, address: str) -> None:
    # It stands at a loopback address, which requests may not go to here.
    with p.Proxy(answer=b"HTTP/1.1 503 No\r\n\r\n") as proxy:
        sender = make_sender(proxy=through(proxy), allowed_networks=(), resolver=resolving_to(ip))
        answer = sender.post("https://receiver.test/", {}, b"")
        assert proxy.addresses == [address]
    assert_failed(answer, ErrorKind.PROXY, "proxy refused the connection: 503")


def test_next_address_is_tried_when_the_proxy_cannot_reach_one(make_sender: MakeSender) -> None:
    with p.Proxy() as proxy, Receiver(host="receiver.test") as receiver:
        # Nobody listens at 127.0.0.2, which is also this machine.
        sender = make_sender(proxy=through(proxy), resolver=resolving_to("127.0.0.2", "127.0.0.1"))
        answer = sender.post(receiver.url, {}, b"")
        assert proxy.addresses == [f"127.0.0.2:{receiver.port}", f"127.0.0.1:{receiver.port}"]
    assert (answer.status, answer.peer) == (200, f"127.0.0.1:{receiver.port}")


# --- its faults ------------------------------------------------------------------------------------------------------

NO_HTTP = "proxy does not speak HTTP"
CLOSED = "proxy closed the connection"
#: Seconds that what answers may take.
PATIENCE_S = 20
LATE = "proxy did not answer in time"


def answering(answer: bytes, **changes: Any) -> Callable[[], p.Proxy]:
    return partial(p.Proxy, answer=answer, **changes)


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        pytest.param(answering(b"HTTP/1.1 502 Bad\r\n\r\nsecret"), "proxy refused the connection: 502", id="502"),
        pytest.param(answering(b"HTTP/1.0 403 No\n\n"), "proxy refused the connection: 403", id="403"),
        pytest.param(answering(b"HTTP/1.1 302 No\r\n\r\n"), "proxy refused the connection: 302", id="302"),
        pytest.param(answering(b"HTTP/1.1 100 Go\r\n\r\n"), "proxy refused the connection: 100", id="100"),
        pytest.param(answering(b"SSH-2.0-secret\r\n\r\n"), NO_HTTP, id="ssh"),
        pytest.param(answering(b"HTTP/1.1 2000 OK\r\n\r\n"), NO_HTTP, id="status-2000"),
        pytest.param(answering(b"\r\n\r\n"), NO_HTTP, id="empty-head"),
        pytest.param(answering(ESTABLISHED[:-2] + b"A: ", again=b"x" * 1000), NO_HTTP, id="endless-header"),
        pytest.param(answering(ESTABLISHED[:-2], again=b"A: b\r\n" * 99), NO_HTTP, id="endless-headers"),
        pytest.param(answering(b"", again=b"\0" * 1000), NO_HTTP, id="endless-nul"),
        pytest.param(answering(b""), CLOSED, id="closed"),
        pytest.param(answering(ESTABLISHED[:-1]), CLOSED, id="closed-in-the-head"),
        pytest.param(answering(b"", hold_s=9), LATE, id="silent"),
        pytest.param(answering(ESTABLISHED[:-1], hold_s=9), LATE, id="stuck-in-the-head"),
        pytest.param(answering(b"A" * 999, drip_s=0.1), LATE, id="drips"),
    ],
)
@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("limit", ["connect_timeout_s", "total_timeout_s"])
def test_fault_of_the_proxy_is_told_from_the_receivers(
    make_sender: MakeSender, proxy: Callable[[], p.Proxy], text: str, use_tls: bool, limit: str
) -> None:
    # A proxy that answers gets its time, however busy the machine is.
    limit_s = TOTAL_S if text == LATE else PATIENCE_S
    with proxy() as running:
        started = time.monotonic()
        sender = make_sender(proxy=through(running, CREDENTIALS), **{limit: limit_s})
        answer = sender.post(f"{'https' if use_tls else 'http'}://127.0.0.1:8000/", {}, b"")
        seconds = time.monotonic() - started
    assert_failed(answer, ErrorKind.PROXY, text)
    assert answer.peer is None
    assert seconds < TOTAL_S + SLACK_S
    assert text != LATE or seconds >= TOTAL_S


def test_proxy_that_refuses(make_sender: MakeSender) -> None:
    proxy = config.Proxy("127.0.0.1", free_port(), CREDENTIALS)
    answer = make_sender(proxy=proxy).post("http://127.0.0.1:8000/", {}, b"")
    assert_failed(answer, ErrorKind.PROXY, "proxy cannot be reached: ECONNREFUSED")


def test_proxy_that_does_not_accept(make_sender: MakeSender, full_port: int) -> None:
    started = time.monotonic()
    sender = make_sender(proxy=config.Proxy("127.0.0.1", full_port), connect_timeout_s=TOTAL_S)
    answer = sender.post("http://127.0.0.1:8000/", {}, b"")
    assert_failed(answer, ErrorKind.PROXY, "proxy cannot be reached: ETIMEDOUT")
    assert TOTAL_S <= time.monotonic() - started < TOTAL_S + SLACK_S


def test_proxy_whose_name_is_not_found(make_sender: MakeSender) -> None:
    resolver = resolving_to()
    answer = make_sender(proxy=config.Proxy("proxy.test", 3128), resolver=resolver).post("http://127.0.0.1/", {}, b"")
    assert_failed(answer, ErrorKind.PROXY, "proxy cannot be reached: its name was not found")


def test_receiver_that_the_proxy_cannot_reach(make_sender: MakeSender) -> None:
    with p.Proxy() as proxy:
        answer = make_sender(proxy=through(proxy)).post(f"http://127.0.0.1:{free_port()}/", {}, b"")
    assert_failed(answer, ErrorKind.PROXY, "proxy refused the connection: 502")


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_receivers_own_faults_stay_its_own(
    make_sender: MakeSender, authority: Authority, ca_file: Path, use_tls: bool
) -> None:
    behaviours = [r.close_early(), r.half_body(), r.hang(), r.reply(407, b"mine")]
    with p.Proxy() as proxy, Receiver(tls=authority.context() if use_tls else None).then(*behaviours) as receiver:
        sender = make_sender(proxy=through(proxy), ca_bundle=ca_file, total_timeout_s=TOTAL_S)
        answers = [sender.post(receiver.url, {}, b"{}") for _ in behaviours]
    kinds = [answer.error_kind for answer in answers]
    assert kinds == [ErrorKind.HANG_UP, ErrorKind.ABORTED, ErrorKind.TIMEOUT, None]
    assert answers[-1].status == 407


def test_bad_certificate_behind_the_proxy(make_sender: MakeSender, authority: Authority, ca_file: Path) -> None:
    with p.Proxy() as proxy, Receiver(tls=authority.context("other.test")) as receiver:
        answer = make_sender(proxy=through(proxy), ca_bundle=ca_file).post(receiver.url, {}, b"")
        assert receiver.requests == []
    assert answer.error_kind is ErrorKind.TLS


def test_tunnel_that_was_cut_while_idle_is_replaced(make_sender: MakeSender) -> None:
    with p.Proxy() as proxy, Receiver() as receiver:
        sender = make_sender(proxy=through(proxy))
        assert sender.post(receiver.url, {}, b"").status == 200
        proxy.close_tunnels()
        assert sender.post(receiver.url, {}, b"").status == 200
        assert proxy.connections == 2


def test_proxy_that_died_fails_the_next_connection_alone(make_sender: MakeSender) -> None:
    with Receiver() as receiver:
        with p.Proxy() as proxy:
            sender = make_sender(proxy=through(proxy))
            assert sender.post(receiver.url, {}, b"").status == 200
        answer = sender.post(receiver.url, {}, b"")
    assert_failed(answer, ErrorKind.PROXY, "proxy cannot be reached: ECONNREFUSED")


def test_sockets_of_failed_tunnels_are_closed(make_sender: MakeSender) -> None:
    with p.Proxy(answer=b"HTTP/1.1 502 Bad\r\n\r\n", hold_s=9) as proxy:
        sender = make_sender(proxy=through(proxy))
        sender.post("http://127.0.0.1:8000/", {}, b"")
        [sock] = proxy._open
        sock.settimeout(5)
        assert sock.recv(1, socket.MSG_PEEK) == b""


def test_allowed_networks_are_for_receivers(make_sender: MakeSender) -> None:
    other = (ip_network("192.0.2.0/24"),)
    with p.Proxy() as proxy, Receiver() as receiver:
        sender = make_sender(proxy=through(proxy), allowed_networks=other)
        assert sender.post(receiver.url, {}, b"").error_kind is ErrorKind.NOT_ALLOWED
        assert make_sender(proxy=through(proxy), allowed_networks=LOOPBACK).post(receiver.url, {}, b"").status == 200
