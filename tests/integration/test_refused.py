"""Where a request may not go: each row of the table in docs/security.md, made with real sockets and a real resolver.

`tests.lab.refused` is that table. A listener on every address of this machine, and a watch on every
``connect`` of this process, must see nothing; with every network allowed the same row must get through to ``connect``,
so that no row is refused for another reason than its address. That TLS checks the name and sends it as SNI, whatever
address was judged, is tested in `test_sender`.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab import receiver as r
from tests.lab.dns_server import NameServer, NoSuchResolver
from tests.lab.receiver import Authority, Receiver
from tests.lab.refused import ALIASED, INNER_HOST, NOT_ALLOWED, REFUSED, REQUESTED, Refused, to_markdown
from tests.lab.senders import new_sender
from webhooks.errors import ErrorKind
from webhooks.models.webhook import why_bad_url
from webhooks.rules.addresses import Verdict
from webhooks.sender import Answer, Resolver, Sender, connection

EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
RECEIVER_ONLY = (ip_network("127.0.0.1/32"),)

# --- what watches ----------------------------------------------------------------------------------------------------


class Watch:
    """Sees each ``connect`` of this process before the system does."""

    def __init__(self, patch: pytest.MonkeyPatch, *, is_rehearsal: bool = False) -> None:
        """Begin.

        Args:
            patch: ends it.
            is_rehearsal: connect to this machine alone, so that nothing leaves it, and say in any case that there is
                no way to the address.
        """
        #: Each address that was asked for, in order.
        self.asked: list[tuple[str, int]] = []
        #: Those to which a connection came about.
        self.reached: list[tuple[str, int]] = []
        self._is_rehearsal = is_rehearsal
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, self._watched(getattr(socket.socket, name)))

    def _watched(self, real: Any) -> Any:
        def connect(sock: socket.socket, address: Any) -> Any:
            if sock.type == socket.SOCK_DGRAM:
                return real(sock, address)  # asks for a route, sends nothing
            self.asked.append(address[:2])
            result = None
            if is_here(address[0]) or not self._is_rehearsal:
                result = real(sock, address)
                self.reached.append(address[:2])
            if self._is_rehearsal:
                raise OSError(errno.EHOSTUNREACH, "kept in by the test")
            return result

        return connect


def is_here(ip: str) -> bool:
    """Return whether an address always leads to this machine."""
    address = ip_address(ip)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def knows_ipv6() -> bool:
    """Return whether this machine can make an IPv6 socket at all."""
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        return False
    return True


class Listener:
    """Takes connections at every address of this machine, or at one, and never says anything."""

    def __init__(self, host: str | None = None, port: int = 0) -> None:
        if host is None and socket.has_dualstack_ipv6():
            self._sock = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._sock = socket.create_server((host or "", port))
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]

    def count(self) -> int:
        """Return how many connections have come since the last time, also such as were closed again."""
        count = 0
        while True:
            try:
                self._sock.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


@dataclass
class Scene:
    """What a test works with."""

    names: NameServer
    _stack: ExitStack = field(default_factory=ExitStack)

    def sender(self, **changes: Any) -> Sender:
        """Make a sender that looks names up at `names`, and may go nowhere but to public addresses."""
        made = new_sender(**{"allowed_networks": (), "resolver": Resolver(self.names.look_up), **changes})
        self._stack.callback(made.close)
        return made

    def know(self, row: Refused) -> None:
        """Let the name server know the names of a row."""
        for name, answers in ALIASED.items():
            self.names.answer(name, answers)
        if row.answers:
            host = row.example.removeprefix("http://").removesuffix("/hook").removesuffix(".")
            self.names.answer(host.encode("idna").decode(), row.answers)

    def close(self) -> None:
        """Close all senders."""
        self._stack.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        try:
            names = stack.enter_context(NameServer())
        except NoSuchResolver as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        made = Scene(names)
        stack.callback(made.close)
        yield made


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as made:
        yield made


def with_port(row: Refused, port: int) -> tuple[str, str]:
    """Return URL and text of a row with a port put in; as they are where that is not possible."""
    if not row.example.endswith("/hook"):
        return row.example, row.response
    url = f"{row.example.removesuffix('/hook')}:{port}/hook"
    return url, f"{row.response.removesuffix(':80')}:{port}" if row.response.endswith(":80") else row.response


def show_id(row: Refused) -> str:
    return ascii(row.example)[1:-1]


def assert_refused(answer: Answer, kind: ErrorKind, text: str) -> None:
    assert (answer.status, answer.error_kind, answer.text, answer.cut, answer.peer) == (None, kind, text, False, None)
    timings = answer.timings
    # A refusal takes as long as the look-up: no phase after it tells what there is at the address.
    assert (timings.connect_ms, timings.tls_ms, timings.send_ms, timings.wait_ms, timings.read_ms) == (None,) * 5


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", REQUESTED, ids=show_id)
def test_refused(row: Refused, scene: Scene, watch: Watch, listener: Listener) -> None:
    scene.know(row)
    url, text = with_port(row, listener.port)
    answer = scene.sender().post(url, {"webhook-id": "msg_1"}, b"{}")
    assert row.error_kind is not None
    assert_refused(answer, row.error_kind, text)
    assert (watch.asked, listener.count()) == ([], 0)
    if not row.answers:
        assert scene.names.queries == []
    # What an inner name is, a customer must not learn; an address in the URL itself is known anyway.
    for told in {*row.answers, *(ALIASED["inner.example.test"] if row.answers else ())}:
        if told not in row.example:
            assert told not in repr(answer)


@pytest.mark.parametrize("row", NOT_ALLOWED, ids=show_id)
def test_refused_for_its_address_alone(
    row: Refused, scene: Scene, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    watch = Watch(monkeypatch, is_rehearsal=True)
    scene.know(row)
    url, _ = with_port(row, listener.port)
    answer = scene.sender(allowed_networks=EVERYTHING).post(url, {}, b"{}")
    # Refused by the system, where there is no listener: that row says port 80.
    assert answer.error_kind in {ErrorKind.CONNECT_FAILED, ErrorKind.CONNECT_REFUSED}
    assert watch.asked != [] or not knows_ipv6()
    # So the listener of the test above would have seen it.
    assert listener.count() == sum(port == listener.port for _, port in watch.reached)
    if ("127.0.0.1", listener.port) in watch.asked:
        assert watch.reached != []


def test_table_has_no_row_twice() -> None:
    assert len({row.example for row in REFUSED}) == len(REFUSED)
    whats = [what for what, _ in groupby(REFUSED, key=lambda row: row.what)]
    assert len(set(whats)) == len(whats)
    assert all("|" not in f"{row.example}{row.response}" for row in REFUSED)
    assert to_markdown().count("\n") == len(whats) + 1


def test_redirect_is_not_followed(scene: Scene, watch: Watch) -> None:
    [row] = [row for row in REFUSED if row.error_kind is None]
    with Receiver() as receiver, Listener(INNER_HOST) as inner:
        sender = scene.sender(allowed_networks=(ip_network("127.0.0.0/8"),))
        for status in (301, 302, 303, 307, 308):
            for location in ("http://169.254.169.254/", f"http://{INNER_HOST}:{inner.port}/"):
                receiver.then(r.reply(status, row.response.encode(), [("Location", location)]))
                answer = sender.post(receiver.url, {}, b"{}")
                assert (answer.status, answer.text, answer.error_kind) == (status, row.response, None)
        assert inner.count() == 0
        assert watch.asked == [("127.0.0.1", receiver.port)]


# --- one look-up, and the address that was judged --------------------------------------------------------------------


def test_rebinding_has_no_second_look_up_to_answer(scene: Scene, watch: Watch) -> None:
    scene.names.answer("rebind.example.test", ["127.0.0.1"], [INNER_HOST])
    with Receiver(host="rebind.example.test") as receiver, Listener(INNER_HOST, receiver.port) as inner:
        sender = scene.sender(allowed_networks=RECEIVER_ONLY)
        got = [sender.post(receiver.url, {}, b"{}") for _ in range(3)]
        # Judged, connected to, and kept: to the address of the first answer.
        assert [(answer.status, answer.peer) for answer in got] == [(200, f"127.0.0.1:{receiver.port}")] * 3
        assert (scene.names.count("rebind.example.test"), receiver.connections) == (1, 1)

        receiver.close_connections()
        answer = sender.post(receiver.url, {}, b"{}")
        # A new connection is a new look-up, and judged anew.
        assert_refused(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: rebind.example.test:{receiver.port}")
        assert scene.names.count("rebind.example.test") == 2
        assert watch.asked == [("127.0.0.1", receiver.port)]
        assert inner.count() == 0


def test_rebinding_at_the_second_try_on_a_stale_connection(scene: Scene, watch: Watch) -> None:
    scene.names.answer("rebind.example.test", ["127.0.0.1"], [INNER_HOST])
    with (
        Receiver(host="rebind.example.test").then(r.reply(), r.close_early()) as receiver,
        Listener(INNER_HOST, receiver.port) as inner,
    ):
        sender = scene.sender(allowed_networks=RECEIVER_ONLY)
        assert sender.post(receiver.url, {}, b"{}").status == 200
        # Sent over the kept connection, which closes without an answer: the second try looks the name up.
        answer = sender.post(receiver.url, {}, b"{}")
        assert_refused(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: rebind.example.test:{receiver.port}")
        assert len(receiver.requests) == 2
        assert watch.asked == [("127.0.0.1", receiver.port)]
        assert inner.count() == 0


def test_zone_of_a_looked_up_address_is_judged(scene: Scene, watch: Watch) -> None:
    # /etc/hosts can say so; Python hands the zone over beside the address.
    def look_up(host: str, port: int) -> list[Any]:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1", port, 0, 1))]

    answer = scene.sender(resolver=Resolver(look_up)).post("http://zoned.example.test/", {}, b"{}")
    assert_refused(answer, ErrorKind.NOT_ALLOWED, "address not allowed: zoned.example.test:80")
    assert watch.asked == []


# --- connections are kept, and lent to nobody else -------------------------------------------------------------------


def test_connection_is_reused_and_its_name_looked_up_once(scene: Scene) -> None:
    scene.names.answer("receiver.example.test", ["127.0.0.1"])
    with Receiver(host="receiver.example.test") as receiver:
        sender = scene.sender(allowed_networks=RECEIVER_ONLY)
        assert [sender.post(receiver.url, {}, b"{}").status for _ in range(50)] == [200] * 50
        assert receiver.connections == 1
    assert scene.names.queries.count(("receiver.example.test", "A")) == 1


def test_kept_connection_is_not_lent_to_another_name(scene: Scene) -> None:
    # Both lead to the same address, and yet the second may not go there.
    scene.names.answer("allowed.example.test", ["127.0.0.1"])
    scene.names.answer("refused.example.test", ["127.0.0.1", "10.1.2.3"])
    with Receiver(host="allowed.example.test") as receiver:
        sender = scene.sender(allowed_networks=RECEIVER_ONLY)
        for _ in range(2):
            assert sender.post(receiver.url, {}, b"{}").status == 200
            answer = sender.post(receiver.url.replace("allowed", "refused"), {}, b"{}")
            assert_refused(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: refused.example.test:{receiver.port}")
        assert (receiver.connections, len(receiver.requests)) == (1, 2)


def test_kept_connection_is_not_lent_to_another_sender(scene: Scene) -> None:
    # Settings are read once per process, and so is what a sender may do: with others there is another sender.
    with Receiver() as receiver:
        before, after = scene.sender(allowed_networks=RECEIVER_ONLY), scene.sender()
        assert before.post(receiver.url, {}, b"{}").status == 200
        answer = after.post(receiver.url, {}, b"{}")
        assert_refused(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: 127.0.0.1:{receiver.port}")
        assert before.post(receiver.url, {}, b"{}").status == 200
        assert (receiver.connections, len(receiver.requests)) == (1, 2)


# --- the environment has no say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_tls", [False, True], ids=["http", "https"])
def test_proxies_and_netrc_of_the_environment_are_ignored(
    use_tls: bool, scene: Scene, watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    scene.names.answer("receiver.example.test", ["127.0.0.1"])
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("machine receiver.example.test login a password b\ndefault login a password b\n")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    context = authority.context("receiver.example.test") if use_tls else None
    with Receiver() as proxy, Receiver(tls=context, host="receiver.example.test") as receiver:
        for scheme in ("HTTP", "HTTPS", "ALL"):
            monkeypatch.setenv(f"{scheme}_PROXY", proxy.url)
            monkeypatch.setenv(f"{scheme}_PROXY".lower(), proxy.url)
        sender = scene.sender(allowed_networks=RECEIVER_ONLY, ca_bundle=authority.write_ca(tmp_path))
        assert sender.post(f"{receiver.url}/hook", {}, b"{}").status == 200
        [request] = receiver.requests
        assert (request.method, request.path) == ("POST", "/hook")
        assert "Authorization" not in request.headers
        assert "Proxy-Authorization" not in request.headers
        assert proxy.connections == 0
        assert watch.asked == [("127.0.0.1", receiver.port)]


# --- what can be saved can be sent, or is refused in words -----------------------------------------------------------


#: What may be saved and cannot be sent: the log says so at the first attempt.
def test_public_address_of_this_machine_is_refused(
    scene: Scene, watch: Watch, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No machine that tests run on need have a public address, so loopback has to pass for one.
    monkeypatch.setattr(connection, "classify", lambda ip, networks: Verdict.PUBLIC)
    answer = scene.sender().post(f"http://127.0.0.1:{listener.port}/hook", {}, b"{}")
    assert_refused(answer, ErrorKind.NOT_ALLOWED, f"address not allowed: 127.0.0.1:{listener.port}")
    assert watch.asked == []
    # To an address that is not its own this machine would send from another one: as it does to this one.
    scene.sender(total_timeout_s=0.2).post(f"http://{INNER_HOST}:{listener.port}/hook", {}, b"{}")
    assert watch.reached == [(INNER_HOST, listener.port)]


BAD = [
    "http://a..b/",
    "http://-a.example/",
    "http://a.example%20/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 128 + "/",
    "http://\u2488com/",
    "http://a\\b/",
    "http://127.0.0.%31/",
    "http://a,b/",
    "http://*/",
    "http://[::1]x/",
    "http://a.example:" + "1" * 5000 + "/",
    "http://[fe80::1%25" + "a" * 1_000_000 + "]/",
    "http://a.example/" + "a" * 2048,
]


@pytest.mark.parametrize("url", BAD, ids=lambda url: ascii(url)[1:50])
def test_url_that_cannot_be_sent_is_not_saved_and_gets_an_answer(url: str, scene: Scene, watch: Watch) -> None:
    assert why_bad_url(url) is not None
    answer = scene.sender().post(url, {}, b"{}")
    assert answer.error_kind is ErrorKind.BAD_URL
    assert (watch.asked, scene.names.queries) == ([], [])


@pytest.mark.parametrize(
    "host",
    [
        "[::1",
        "::1",
        "[]",
        "[127.0.0.1]",
        "[localhost]",
        "[v1.fe80::a]",
        "[::1].example.com",
        "[::1]:80:80",
        "[[::1]]",
        "[::1]]",
        "[::ffff:0x7f.0.0.1]",
        "[::ffff:127.1]",
        "[1:2:3:4:5:6:7:8:9]",
        "[%25lo]",
        "[::1%]",
        "[::1%25]",
        "[fe80::1%25a%25b]",
        "[fe80::1%25a]b]",
    ],
)
def test_malformed_ipv6_address_is_a_bad_url_or_refused(host: str, scene: Scene, watch: Watch) -> None:
    answer = scene.sender().post(f"http://{host}/", {}, b"{}")
    assert answer.error_kind in {ErrorKind.BAD_URL, ErrorKind.NOT_ALLOWED}
    assert (watch.asked, scene.names.queries) == ([], [])


_HOST_PARTS = st.sampled_from(
    [
        *("127.0.0.1", "0x7f", "1", ".", "..", ":", "80", "99999", "@", "[", "]", "::1", "%25lo", "%", "#", "?", "/"),
        *("a", "-", "_", "xn--", "xn--a", "。", "１", "ß", "é", "\u200d", "\u202e", "\xad", "\\", "\t", "\0", "*"),
        *("\ud800", "\u2028", " "),
    ]
)


@settings(deadline=None, max_examples=300)
@given(
    scheme=st.sampled_from(["http", "https", "HTTP"]),
    authority=st.lists(_HOST_PARTS, max_size=6).map("".join) | st.text(max_size=12),
    rest=st.text(max_size=6),
)
def test_url_that_is_saved_never_crashes_a_sender(scheme: str, authority: str, rest: str) -> None:
    def look_up(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "")

    url = f"{scheme}://{authority}/{rest}"
    if why_bad_url(url) is not None:
        return
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch, is_rehearsal=True)
        sender = new_sender(allowed_networks=(), connect_timeout_s=1, total_timeout_s=2, resolver=Resolver(look_up))
        answer = sender.post(url, {}, b"{}")
    kinds = {ErrorKind.BAD_URL, ErrorKind.NOT_ALLOWED, ErrorKind.LOOKUP, ErrorKind.RESOLVER}
    # A number may be a public address.
    assert answer.error_kind in kinds | ({ErrorKind.CONNECT_FAILED} if watch.asked else set())
    assert not any(is_here(ip) for ip, _ in watch.asked)


@settings(deadline=None, max_examples=200)
@given(rest=st.text(max_size=20) | st.text("/?#%&=+.:;@\\[]é\u2028 ", max_size=20))
def test_path_that_is_saved_is_sent_or_a_bad_url(receiver_of_module: tuple[Receiver, Sender], rest: str) -> None:
    receiver, sender = receiver_of_module
    url = f"{receiver.url}/{rest}"
    if why_bad_url(url) is not None:
        return
    answer = sender.post(url, {}, b"{}")
    assert (answer.status, answer.error_kind) in {(200, None), (None, ErrorKind.BAD_URL)}
    if answer.status == 200:
        assert receiver.requests[-1].path.startswith("/")


@pytest.fixture(scope="module")
def receiver_of_module() -> Iterator[tuple[Receiver, Sender]]:
    sender = new_sender(allowed_networks=RECEIVER_ONLY)
    with Receiver() as receiver:
        yield receiver, sender
        sender.close()
