"""How long connections are kept, and that no delivery is lost over one that the network has forgotten."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import receiver as r
from tests.lab.receiver import Receiver
from tests.lab.senders import TOTAL_S, MakeSender, keep_connections
from webhooks.errors import ErrorKind
from webhooks.sender import idle, loop

HEADERS = {"Content-Type": "application/json", "User-Agent": "x/1"}

#: Connections that a burst leaves behind.
BURST = 8
SLOW = r.reply(delay_s=0.2)
FORGETS_AFTER_S = 0.4

_ESTABLISHED, _CLOSE_WAIT = "01", "08"


def sockets_to(port: int) -> list[str]:
    """Return the states of this machine's sockets that are connected to a port, as Linux has them."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("this system does not show its sockets in /proc")
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return [row[3] for row in rows if row[2].endswith(f":{port:04X}") and row[3] in (_ESTABLISHED, _CLOSE_WAIT)]


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.02)


def test_event_gets_through_after_the_network_forgot_all_connections(make_sender: MakeSender) -> None:
    retry_delay_s = 0.1
    with Receiver(default=SLOW, forgets_after_s=FORGETS_AFTER_S) as receiver:
        sender = make_sender(pool_size=BURST, total_timeout_s=TOTAL_S)
        keep_connections(sender, receiver, BURST)
        time.sleep(FORGETS_AFTER_S + 0.1)
        got = []
        for retry in range(4):
            answer = sender.post(receiver.url, HEADERS, b"", max_connection_age_s=retry_delay_s if retry else None)
            got.append(answer.error_kind or answer.status)
            if answer.status == 200:
                break
            time.sleep(retry_delay_s)
    assert got == [ErrorKind.TIMEOUT, 200]


def test_time_out_makes_the_connections_beside_it_suspect(make_sender: MakeSender) -> None:
    with Receiver(default=SLOW, forgets_after_s=FORGETS_AFTER_S) as receiver:
        sender = make_sender(pool_size=BURST, total_timeout_s=TOTAL_S)
        keep_connections(sender, receiver, BURST)
        time.sleep(FORGETS_AFTER_S + 0.1)
        assert sender.post(receiver.url, HEADERS, b"").error_kind is ErrorKind.TIMEOUT
        # Another event, not a retry: it may go over any kept connection, and none is left.
        assert sender.post(receiver.url, HEADERS, b"").status == 200


def test_time_out_says_nothing_of_connections_that_were_answered_since(make_sender: MakeSender) -> None:
    with Receiver(default=SLOW).on("/hang", r.hang()) as receiver:
        sender = make_sender(total_timeout_s=TOTAL_S)
        keep_connections(sender, receiver, 2)
        hanging = threading.Thread(target=sender.post, args=(f"{receiver.url}/hang", HEADERS, b""))
        hanging.start()
        receiver.wait_for(3)
        assert sender.post(receiver.url, HEADERS, b"").status == 200
        hanging.join()
        assert sender.post(receiver.url, HEADERS, b"").status == 200
        assert receiver.connections == 2


def test_reset_makes_the_connections_beside_it_suspect(make_sender: MakeSender) -> None:
    with Receiver(default=SLOW).on("/reset", r.reset()) as receiver:
        sender = make_sender(pool_size=BURST)
        keep_connections(sender, receiver, BURST)
        # Tried again over a new connection, which is reset as well.
        assert sender.post(f"{receiver.url}/reset", HEADERS, b"").error_kind is ErrorKind.RESET
        assert receiver.connections == BURST + 1
        wait_until(lambda: not sockets_to(receiver.port))


def test_retry_goes_over_no_connection_that_was_kept_before_its_failed_attempt(make_sender: MakeSender) -> None:
    def act(wire: r.Wire, request: r.Recorded) -> bool:
        # A balancer that ties each connection to one of the servers behind it; the first one is sick.
        wire.send(r.response(503 if request.connection == 0 and request.path == "/hook" else 200, b""))
        return True

    with Receiver(default=r.Behaviour(act)) as receiver:
        sender, url = make_sender(), f"{receiver.url}/hook"
        assert sender.post(receiver.url, HEADERS, b"").status == 200
        assert sender.post(url, HEADERS, b"").status == 503
        time.sleep(0.1)
        assert sender.post(url, HEADERS, b"", max_connection_age_s=0.1).status == 200
        assert [request.connection for request in receiver.requests] == [0, 0, 1]
        # That is young enough for the next one, which is not sent to the sick server either.
        assert sender.post(url, HEADERS, b"", max_connection_age_s=5).status == 200
        assert sender.post(url, HEADERS, b"", max_connection_age_s=0).status == 200
        assert [request.connection for request in receiver.requests][3:] == [1, 2]


def test_idle_connection_is_closed(make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "MAX_IDLE_S", 0.3)
    monkeypatch.setattr(loop, "_SWEEP_EVERY_S", 0.05)
    with Receiver(default=SLOW) as receiver:
        sender = make_sender()
        keep_connections(sender, receiver, 3)
        assert sockets_to(receiver.port) == [_ESTABLISHED] * 3
        wait_until(lambda: not sockets_to(receiver.port))
        assert sender.post(receiver.url, HEADERS, b"").status == 200


def test_idle_connection_that_is_too_old_to_be_taken_is_replaced(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "MAX_IDLE_S", 0.1)
    with Receiver() as receiver:
        sender = make_sender()
        assert sender.post(receiver.url, HEADERS, b"").status == 200
        time.sleep(0.2)
        assert sender.post(receiver.url, HEADERS, b"").status == 200
        assert receiver.connections == 2


def test_connection_closed_by_its_receiver_is_closed(make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SWEEP_EVERY_S", 0.05)
    with Receiver(default=SLOW) as receiver:
        sender = make_sender()
        keep_connections(sender, receiver, 3)
        receiver.close_connections()
        # Not left in CLOSE_WAIT until somebody asks for it.
        wait_until(lambda: not sockets_to(receiver.port))
        # Also where it served requests over kept connections alone since the last look.
        assert [sender.post(receiver.url, HEADERS, b"").status for _ in range(3)] == [200] * 3
        receiver.close_connections()
        wait_until(lambda: not sockets_to(receiver.port))


def test_connection_that_carried_two_requests_is_closed_as_soon_as_its_receiver_closes_it(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SWEEP_EVERY_S", 60.0)
    with Receiver() as receiver:
        sender = make_sender()
        assert [sender.post(receiver.url, HEADERS, b"").status for _ in range(2)] == [200] * 2
        receiver.close_connections()
        wait_until(lambda: not sockets_to(receiver.port))
        assert sender.post(receiver.url, HEADERS, b"").status == 200


@contextmanager
def one_at_a_time() -> Iterator[str]:
    """Serve one connection after another, each to its end, as the simplest servers do; gives the URL."""

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                while sock.recv(65536):
                    sock.sendall(r.response(200, b"ok"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_receiver_that_serves_one_connection_at_a_time_is_not_blocked_by_an_idle_one(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The idle limit is shorter than the deadline of an attempt, here as in the defaults.
    monkeypatch.setattr(idle, "MAX_IDLE_S", 0.5)
    monkeypatch.setattr(loop, "_SWEEP_EVERY_S", 0.05)
    senders = [make_sender(total_timeout_s=3), make_sender(total_timeout_s=3)]
    with one_at_a_time() as url:
        assert [sender.post(url, HEADERS, b"").status for sender in senders] == [200, 200]
        for sender in senders:
            sender.close()


def test_idle_connections_are_bounded(make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "MAX_ENDPOINTS", 2)
    with Receiver(default=SLOW) as first, Receiver(default=SLOW) as second, Receiver(default=SLOW) as third:
        sender = make_sender(pool_size=2, concurrency=4)
        keep_connections(sender, first, 4)
        wait_until(lambda: len(sockets_to(first.port)) == 2)
        keep_connections(sender, second, 1)
        assert sender.post(first.url, HEADERS, b"").status == 200
        keep_connections(sender, third, 1)
        # The endpoint that was used least recently.
        wait_until(lambda: not sockets_to(second.port))
        assert [len(sockets_to(receiver.port)) for receiver in (first, third)] == [2, 1]


def test_limits_are_below_what_networks_and_the_retry_delay_allow():
    # Firewalls and balancers forget a connection after some tens of seconds, and the default retry comes after 30.
    assert 0 < idle.MAX_IDLE_S <= 10
    assert idle.MAX_IDLE_S < idle.MAX_AGE_S
