"""What a receiver may do to us with TLS: handshakes that drip or are nonsense, renegotiation, an end in the middle.

A stalled handshake, bad certificates and resets are in `test_sender`.
"""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.lab import receiver as r
from tests.lab.receiver import Authority, Receiver
from tests.lab.senders import SLACK_S, TOTAL_S, MakeSender, assert_failed
from webhooks.errors import ErrorKind
from webhooks.local.servers import free_port
from webhooks.sender import Answer


@contextmanager
def listener(start: bytes, again: bytes, interval_s: float) -> Iterator[str]:
    """Serve one connection: ``start``, then ``again`` for as long as anybody listens; give the URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                sock, _ = server.accept()
                with sock:
                    sock.sendall(start)
                    while True:
                        sock.sendall(again)
                        time.sleep(interval_s)
            except OSError:
                pass  # the client went away

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join(10)


#: The head of a handshake record, and of a ServerHello in it, of all the bytes that TLS allows.
RECORD = b"\x16\x03\x03\x40\x00"
SERVER_HELLO = RECORD + b"\x02\xff\xff\xff\x03\x03"


@pytest.mark.parametrize("start", [b"", RECORD, SERVER_HELLO], ids=["nothing", "record", "hello"])
def test_handshake_that_drips_ends_at_the_deadline(make_sender: MakeSender, start: bytes) -> None:
    with listener(start, b"\x16" if not start else b"\0", 0.05) as url:
        started = time.monotonic()
        answer = make_sender(total_timeout_s=TOTAL_S).post(url, {}, b"")
        seconds = time.monotonic() - started
    assert seconds < TOTAL_S + SLACK_S
    # A few bytes that are no TLS are told from TLS at once.
    assert answer.error_kind is (ErrorKind.TIMEOUT if start else ErrorKind.TLS)


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\n\r\n", b"\0" * 1000, SERVER_HELLO + b"\0" * 0x4000], ids=["http", "nul", "hello"]
)
def test_handshake_of_nonsense_without_end_ends_at_once(make_sender: MakeSender, data: bytes) -> None:
    with listener(data, data, 0) as url:
        answer = make_sender().post(url, {}, b"")
    assert answer.error_kind in {ErrorKind.TLS, ErrorKind.RESET}
    assert answer.timings.total_ms < 5000


@pytest.mark.parametrize("then", ["close", "reset"])
def test_connection_that_ends_in_the_body(
    make_sender: MakeSender, authority: Authority, ca_file: Path, then: str
) -> None:
    behaviour = r.half_body("close" if then == "close" else "reset")
    with Receiver(tls=authority.context()).then(behaviour) as receiver:
        answer = make_sender(ca_bundle=ca_file).post(receiver.url, {}, b"")
    assert_failed(answer, ErrorKind.ABORTED, "aborted")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="Python's ssl cannot ask for a renegotiation")
@pytest.mark.parametrize("command", [b"", b"r\n", b"R\n"], ids=["none", "renegotiate", "ask-for-a-certificate"])
def test_renegotiation_in_the_body_is_refused(make_sender: MakeSender, tmp_path: Path, command: bytes) -> None:
    # Each costs a handshake, and it could go on for the whole deadline. TLS 1.3 has none.
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    server = subprocess.Popen(
        ["openssl", "s_server", "-tls1_2", "-crlf", "-accept", f"127.0.0.1:{port}", "-cert", tmp_path / "cert.pem"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert server.stdin is not None
        assert server.stdout is not None
        while b"ACCEPT" not in server.stdout.readline():
            pass
        answers: list[Answer] = []
        sender = make_sender(ca_bundle=tmp_path / "ca.pem")
        thread = threading.Thread(
            target=lambda: answers.append(sender.post(f"https://127.0.0.1:{port}/", {}, b"body of the request\n"))
        )
        thread.start()
        while b"body of the request" not in server.stdout.readline():
            pass
        # s_server sends on what it reads, but takes a line that begins with one of its letters for a command.
        for line in (b"HTTP/1.1 200 OK\nContent-Length: 4\n\n", command, b"ok\n"):
            server.stdin.write(line)
            server.stdin.flush()
            time.sleep(0.2)
        thread.join(15)
    finally:
        server.kill()
        server.communicate()
    [answer] = answers
    if command:
        assert_failed(answer, ErrorKind.ABORTED, "aborted")
    else:
        assert (answer.status, answer.text) == (200, "ok\r\n")
