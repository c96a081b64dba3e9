"""What a request looks like and what becomes of a response, with ``responses`` in place of the network."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import responses

from tests.lab.senders import new_sender
from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender import Answer, Sender
from webhooks.sender.client import _KINDS
from webhooks.sender.resolver import Resolver

URL = "https://receiver.example/hook?key=1"


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = new_sender(allowed_networks=(), total_timeout_s=15, max_response_bytes=10)
    yield made
    made.close()


@responses.activate
def test_post_sends_headers_and_body_as_given(sender: Sender) -> None:
    responses.post(URL, body="ok")
    sender.post(URL, {"Content-Type": "application/json", "webhook-id": "a"}, b'{"a": 1}')
    request: Any = responses.calls[0].request
    assert request.method == "POST"
    assert request.url == URL
    assert request.body == b'{"a": 1}'
    assert dict(request.headers) == {
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "keep-alive",
        "Content-Length": "8",
        "Content-Type": "application/json",
        "webhook-id": "a",
    }


@responses.activate
def test_post_caller_headers_win(sender: Sender) -> None:
    responses.post(URL, body="ok")
    sender.post(URL, {"accept": "application/json"}, b"")
    assert responses.calls[0].request.headers["Accept"] == "application/json"


@responses.activate
@pytest.mark.parametrize("status", [200, 204, 209, 210, 301, 302, 307, 308, 400, 401, 409, 429, 500, 503, 599])
def test_post_any_status_is_the_answer(sender: Sender, status: int) -> None:
    responses.post(
        URL, status=status, body="" if status == 204 else "text", headers={"Location": "https://other.example/"}
    )
    answer = sender.post(URL, {}, b"")
    assert (answer.status, answer.error_kind) == (status, None)
    assert answer.text == ("" if status == 204 else "text")
    assert len(responses.calls) == 1


@responses.activate
def test_post_ignores_proxies_and_netrc(sender: Sender, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine receiver.example login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    responses.post(URL, body="ok")
    sender.post(URL, {}, b"")
    call: Any = responses.calls[0]
    assert "Authorization" not in call.request.headers
    assert "proxies" not in call.request.req_kwargs


@responses.activate
@pytest.mark.parametrize(("body", "text", "cut"), [("x" * 10, "x" * 10, False), ("x" * 11, "x" * 10, True)])
def test_post_cuts_the_body(sender: Sender, body: str, text: str, cut: bool) -> None:
    responses.post(URL, body=body)
    answer = sender.post(URL, {}, b"")
    assert (answer.text, answer.cut) == (text, cut)


@responses.activate
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (requests.exceptions.ConnectTimeout(), ErrorKind.CONNECT_TIMEOUT, "connect ETIMEDOUT receiver.example:443"),
        (requests.exceptions.ReadTimeout(), ErrorKind.TIMEOUT, "timeout of 15000ms exceeded"),
        (requests.exceptions.SSLError(), ErrorKind.TLS, "TLS failed"),
        (requests.exceptions.ConnectionError(), ErrorKind.HANG_UP, "socket hang up"),
        (requests.exceptions.InvalidURL(), ErrorKind.BAD_URL, "bad URL: it is malformed"),
        (requests.exceptions.ChunkedEncodingError(), ErrorKind.BAD_RESPONSE, "Parse Error: Invalid response"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_post_maps_errors_of_requests(
    sender: Sender, error: requests.RequestException, kind: ErrorKind, text: str
) -> None:
    responses.post(URL, body=error)
    answer = sender.post(URL, {}, b"")
    assert (answer.status, answer.error_kind, answer.text) == (None, kind, text)


def test_every_error_of_requests_is_mapped() -> None:
    def subclasses(cls: type) -> set[type]:
        return {cls, *(deeper for direct in cls.__subclasses__() for deeper in subclasses(direct))}

    mapped = tuple(cls for cls, _ in _KINDS)
    assert all(issubclass(cls, mapped) for cls in subclasses(requests.RequestException))


BAD_URLS = [
    ("ftp://receiver.example/", "its scheme is neither http nor https"),
    ("file:///etc/passwd", "its scheme is neither http nor https"),
    ("receiver.example/hook", "its scheme is neither http nor https"),
    ("", "its scheme is neither http nor https"),
    ("http://", "it has no host"),
    ("http:///path", "it has no host"),
    ("http://:80/", "it has no host"),
    ("http://user:pass@receiver.example/", "it holds credentials"),
    ("http://user@receiver.example/", "it holds credentials"),
    ("http://receiver.example:0/", "its port is not between 1 and 65535"),
    ("http://receiver.example:65536/", "its port is not between 1 and 65535"),
    ("http://receiver.example:8o/", "its host or port is malformed"),
    ("http://receiver.example:-1/", "its host or port is malformed"),
    ("http://a:b:c/", "its host or port is malformed"),
    ("http://receiver example/", "it holds a space, a control character or a backslash"),
    ("http://receiver.example/a b", "it holds a space, a control character or a backslash"),
    ("http://receiver.example/\r\nX: y", "it holds a space, a control character or a backslash"),
    ("http://receiver.example\t/", "it holds a space, a control character or a backslash"),
    ("http://receiver.example\\@10.0.0.1/", "it holds a space, a control character or a backslash"),
    ("http://receiver.example/\ud800", "it holds a space, a control character or a backslash"),
    ("http://a..b/", "its host name is malformed"),
    ("http://-a.example/", "its host name is malformed"),
    ("http://%31%30.0.0.1/", "its host name is malformed"),
    ("http://" + "a" * 64 + ".example/", "its host name is malformed"),
    ("http://" + "a." * 127 + "/", None),
    ("http://" + "a." * 128 + "/", "its host name is malformed"),
    ("http://\u2488com/", "its host name cannot be encoded (IDNA)"),
    ("http://\u1f00.\u0300a/", "its host name cannot be encoded (IDNA)"),
    ("http://[::1/", "its host or port is malformed"),
    ("http://[::g]/", "its IPv6 address is malformed"),
    ("http://[::1]x/", "its host or port is malformed"),
]


@pytest.mark.parametrize(("url", "reason"), [row for row in BAD_URLS if row[1]], ids=lambda value: ascii(value)[:40])
def test_post_bad_url(sender: Sender, url: str, reason: str) -> None:
    answer = sender.post(f"{url}?secret=1" if "?" not in url else url, {}, b"")
    assert answer.error_kind is ErrorKind.BAD_URL
    assert "secret" not in answer.text
    assert "pass" not in answer.text
    assert answer.text == f"bad URL: {reason}"
    assert (answer.status, answer.peer) == (None, None)


@pytest.mark.parametrize("port", [22, 25, 53, 110, 143, 465, 587, 1433, 2049, 5432, 6000, 6379, 6667, 11211, 27017])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_port_of_another_service_is_refused_before_any_look_up(scheme: str, port: int) -> None:
    calls: list[str] = []
    answer = post_without_network(f"{scheme}://receiver.example:{port}/?secret=1", None, calls)
    assert (answer.status, answer.error_kind, answer.text) == (
        None,
        ErrorKind.NOT_ALLOWED,
        f"port {port} is not allowed",
    )
    assert (answer.peer, answer.timings.lookup_ms, calls) == (None, None, [])


@pytest.mark.parametrize("port", [9, 80, 81, 443, 1024, 2375, 3000, 4443, 8000, 8080, 8443, 9443, 32768, 60999, 65535])
def test_any_other_port_is_allowed(port: int) -> None:
    calls: list[str] = []
    assert post_without_network(f"http://receiver.example:{port}/", None, calls).error_kind is ErrorKind.LOOKUP
    assert calls == ["receiver.example"]


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://receiver.example/", True),
        ("http://receiver.example/", False),
        ("https://receiver.example:25/", True),
        ("https://receiver.example:24/", False),
        ("https://receiver.example:26/", False),
    ],
)
def test_allowed_ports_are_the_only_ones(url: str, is_allowed: bool) -> None:
    answer = post_without_network(url, frozenset({25, 443}), [])
    assert answer.error_kind is (ErrorKind.LOOKUP if is_allowed else ErrorKind.NOT_ALLOWED)


def post_without_network(url: str, allowed_ports: frozenset[int] | None, calls: list[str]) -> Answer:
    """Send to a name that nobody knows: an attempt that is allowed ends with its look-up."""

    def look_up(host: str, port: int) -> list[Any]:
        calls.append(host)
        return []

    sender = new_sender(allowed_networks=(), allowed_ports=allowed_ports, resolver=Resolver(look_up))
    try:
        return sender.post(url, {}, b"")
    finally:
        sender.close()


def answers(*ips: str) -> list[Any]:
    return [(2, 1, 6, "", (ip, 80)) for ip in ips]


def test_resolver_returns_each_address_once() -> None:
    resolver = Resolver(lambda host, port: answers("192.0.2.1", "192.0.2.2", "192.0.2.1"))
    assert [endpoint.ip for endpoint in resolver.resolve("a.example", 80, 5)] == ["192.0.2.1", "192.0.2.2"]


def raising(error: Exception) -> Resolver:
    def look_up(host: str, port: int) -> list[Any]:
        raise error

    return Resolver(look_up)


@pytest.mark.parametrize(
    ("resolver", "code", "kind"),
    [
        pytest.param(raising(socket.gaierror(socket.EAI_NONAME, "")), "ENOTFOUND", ErrorKind.LOOKUP, id="noname"),
        pytest.param(raising(socket.gaierror(socket.EAI_AGAIN, "")), "EAI_AGAIN", ErrorKind.RESOLVER, id="again"),
        pytest.param(raising(UnicodeError()), "EAI_FAIL", ErrorKind.RESOLVER, id="unexpected"),
        pytest.param(Resolver(lambda host, port: []), "ENOTFOUND", ErrorKind.LOOKUP, id="empty"),
    ],
)
def test_resolver_words_errors(resolver: Resolver, code: str, kind: ErrorKind) -> None:
    with pytest.raises(NoResponse, match=f"^getaddrinfo {code} a.example$") as caught:
        resolver.resolve("a.example", 80, 5)
    assert caught.value.kind is kind


def test_resolver_dead_name_server_holds_one_thread_per_name_and_no_more_than_its_bound() -> None:
    release = threading.Event()
    calls: list[str] = []

    def look_up(host: str, port: int) -> list[Any]:
        calls.append(host)
        release.wait(10)
        return answers("192.0.2.1")

    resolver = Resolver(look_up, max_lookups=2)
    try:
        for host in ("a.example", "a.example", "b.example", "c.example", "c.example"):
            with pytest.raises(NoResponse, match=f"getaddrinfo EAI_AGAIN {host}"):
                resolver.resolve(host, 80, 0.02)
        assert calls == ["a.example", "b.example"]
    finally:
        release.set()
    # Once the hung ones are through, there is room again.
    assert resolver.resolve("c.example", 80, 5)[0].ip == "192.0.2.1"


def test_resolver_uses_its_threads_again_and_lets_them_go() -> None:
    threads: set[threading.Thread] = set()

    def look_up(host: str, port: int) -> list[Any]:
        threads.add(threading.current_thread())
        return answers("192.0.2.1")

    resolver = Resolver(look_up)
    for number in range(10):
        assert resolver.resolve(f"{number}.example", 80, 5)[0].ip == "192.0.2.1"
    (thread,) = threads
    resolver.close()
    thread.join(5)
    assert not thread.is_alive()
    assert resolver.resolve("later.example", 80, 5)[0].ip == "192.0.2.1"
