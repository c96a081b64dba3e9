"""The receiver does what its behaviours say, seen from plain sockets and http.client."""

import contextlib
import gzip
import http.client
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from tests.lab import receiver as r
from tests.lab.receiver import Authority, Receiver


def connect(receiver: Receiver) -> socket.socket:
    return socket.create_connection(("127.0.0.1", receiver.port), timeout=5)


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def exchange(receiver: Receiver, path: str = "/", body: bytes = b"{}") -> bytes:
    """Send one request over a connection of its own and return all that comes back."""
    with connect(receiver) as sock:
        sock.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body)
        sock.settimeout(0.3)
        received = b""
        with contextlib.suppress(TimeoutError):
            while data := sock.recv(65536):
                received += data
        return received


def test_receiver_records_requests_in_order() -> None:
    with Receiver() as receiver:
        before = time.monotonic()
        client = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=5)
        with contextlib.closing(client):
            for n in range(2):
                client.request("POST", f"/hook?n={n}", body=b'{"n": %d}' % n, headers={"Webhook-Id": "a"})
                answer = client.getresponse()
                assert (answer.status, answer.read()) == (200, b"ok")
        first, second = receiver.wait_for(2, 5)
    assert (first.method, first.path, first.body, first.json()) == ("POST", "/hook?n=0", b'{"n": 0}', {"n": 0})
    assert first.headers["webhook-id"] == "a"
    assert "WEBHOOK-ID" in first.headers
    assert first.headers.get("absent") is None
    assert first.headers.items[0] == ("Host", f"127.0.0.1:{receiver.port}")
    assert before <= first.received_at <= second.received_at
    assert (first.connection, second.connection) == (0, 0)


def test_receiver_takes_queue_then_default_and_path_before_both() -> None:
    with Receiver().then(r.reply(500, b"no"), r.reply(201)).on("/gone", r.reply(410)) as receiver:
        statuses = [exchange(receiver, path)[:12] for path in ("/", "/gone?x=1", "/", "/")]
    assert statuses == [b"HTTP/1.1 500", b"HTTP/1.1 410", b"HTTP/1.1 201", b"HTTP/1.1 200"]


def test_wait_for_says_how_many_came() -> None:
    with Receiver() as receiver, pytest.raises(AssertionError, match="0 of 1 requests"):
        receiver.wait_for(1, 0.05)


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        pytest.param(r.raw(b"not http"), b"not http", id="raw"),
        pytest.param(r.redirect("http://other/"), b"HTTP/1.1 302 Whatever\r\nLocation: http://other/", id="redirect"),
        pytest.param(r.close_early(), b"", id="close"),
        pytest.param(r.hang(), b"", id="hang"),
        pytest.param(r.ignore_body(), b"", id="ignore-body"),
        pytest.param(r.bad_chunks(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", id="bad-chunks"),
    ],
)
def test_behaviour_writes(behaviour: r.Behaviour, expected: bytes) -> None:
    with Receiver().then(behaviour) as receiver:
        received = exchange(receiver)
    assert received[: len(expected)] == expected
    assert bool(received) == bool(expected)


def test_gzipped_body_is_gzip() -> None:
    with Receiver().then(r.gzipped(b"hello")) as receiver:
        head, _, body = exchange(receiver).partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert gzip.decompress(body) == b"hello"


def test_half_body_sends_half() -> None:
    with Receiver().then(r.half_body("close", b"12345678")) as receiver:
        head, _, body = exchange(receiver).partition(b"\r\n\r\n")
    assert b"Content-Length: 8" in head
    assert body == b"1234"


@pytest.mark.parametrize("behaviour", [r.reset(), r.half_body("reset")], ids=["at-once", "half-body"])
def test_reset_reaches_the_client_as_reset(behaviour: r.Behaviour) -> None:
    with Receiver().then(behaviour) as receiver, connect(receiver) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            receive_all(sock)


def test_reset_with_body_unread() -> None:
    with Receiver().then(r.reset(reads_body=False)) as receiver, connect(receiver) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert receiver.requests[0].body == b""


@pytest.mark.parametrize("behaviour", [r.trickle_head(0.02), r.trickle_body(b"x" * 30, 0.02)], ids=["head", "body"])
def test_trickle_comes_a_byte_at_a_time(behaviour: r.Behaviour) -> None:
    with Receiver().then(behaviour) as receiver, connect(receiver) as sock:
        started = time.monotonic()
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        received = b""
        while not received.endswith((b"\r\n\r\nok", b"x" * 30)):
            received += sock.recv(1000)
        assert time.monotonic() - started >= 30 * 0.02


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [(r.endless_head(), b"X-More: and more\r\n"), (r.flood_1xx(), b"HTTP/1.1 103 Wait\r\n")],
    ids=["head", "1xx"],
)
def test_endless_goes_on(behaviour: r.Behaviour, line: bytes) -> None:
    with Receiver().then(behaviour) as receiver, connect(receiver) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        received = b""
        while received.count(line) < 10_000:
            received += sock.recv(1 << 20)


def test_delay_holds_the_answer_back() -> None:
    with Receiver().then(r.reply(delay_s=0.1)) as receiver:
        started = time.monotonic()
        with connect(receiver) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
        assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("on_accept", ["close", "reset"])
def test_connection_ends_on_accept(on_accept: str) -> None:
    with Receiver(on_accept=on_accept) as receiver:  # pyright: ignore[reportArgumentType]
        ended: object = None
        try:
            with connect(receiver) as sock:
                ended = sock.recv(1)
        except ConnectionResetError:
            ended = "reset"
    assert ended == {"close": b"", "reset": "reset"}[on_accept]


def test_close_connections_closes_kept_ones() -> None:
    with Receiver() as receiver, connect(receiver) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        assert sock.recv(1000).endswith(b"ok")
        receiver.close_connections()
        assert sock.recv(1) == b""


def test_tls_good_certificate(tmp_path: Path) -> None:
    authority = Authority()
    trusting = ssl.create_default_context(cafile=authority.write_ca(tmp_path))
    with Receiver(tls=authority.context()) as receiver:
        client = http.client.HTTPSConnection("127.0.0.1", receiver.port, timeout=5, context=trusting)
        with contextlib.closing(client):
            client.request("POST", "/", body=b"x")
            assert client.getresponse().status == 200
    assert receiver.url.startswith("https://")


@pytest.mark.parametrize(
    ("names", "is_expired", "reason"),
    [
        pytest.param((), True, "expired", id="expired"),
        pytest.param(("other.example",), False, "mismatch", id="wrong-host"),
    ],
)
def test_tls_bad_certificate(tmp_path: Path, names: tuple[str, ...], is_expired: bool, reason: str) -> None:
    authority = Authority()
    trusting = ssl.create_default_context(cafile=authority.write_ca(tmp_path))
    with (
        Receiver(tls=authority.context(*names, is_expired=is_expired)) as receiver,
        connect(receiver) as sock,
        pytest.raises(ssl.SSLCertVerificationError, match=reason),
    ):
        trusting.wrap_socket(sock, server_hostname="127.0.0.1")


def test_tls_untrusted_authority() -> None:
    with (
        Receiver(tls=Authority().context()) as receiver,
        connect(receiver) as sock,
        pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"),
    ):
        ssl.create_default_context().wrap_socket(sock, server_hostname="127.0.0.1")


def test_tls_stalled_handshake() -> None:
    authority = Authority()
    with Receiver(tls=authority.context(), on_accept="stall") as receiver, connect(receiver) as sock:
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="127.0.0.1")


def test_leaving_ends_every_thread() -> None:
    before = threading.active_count()
    with Receiver().then(r.hang(), r.endless_head(), r.trickle_head(5)) as receiver:
        socks = [connect(receiver) for _ in range(4)]
        for sock in socks[:3]:
            sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        receiver.wait_for(3, 5)
    for sock in socks:
        sock.close()
    assert threading.active_count() == before
