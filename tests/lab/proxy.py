"""A CONNECT proxy that works, or fails as it is told to.

Owns what stands on the wire between us and the operator's proxy. Never imports the package that it tests. Used as a
context manager; leaving it closes every socket and joins every thread.
"""

import base64
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(slots=True)
class Proxy:
    """Listens on a free loopback port and connects to whatever address it is told."""

    #: ``user:password`` that clients must show.
    credentials: str | None = None
    #: Written instead of connecting, and the connection is then closed, or kept open for `hold_s`.
    answer: bytes | None = None
    #: Written without end after `answer`.
    again: bytes = b""
    #: Seconds between accepting a request and answering it.
    delay_s: float = 0
    #: Seconds between the bytes of the answer.
    drip_s: float = 0
    hold_s: float = 0
    #: The heads of the requests, whole.
    heads: list[str] = field(default_factory=list)
    #: Connections accepted so far.
    connections: int = 0
    port: int = 0
    _closing: threading.Event = field(default_factory=threading.Event)
    _open: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _listener: socket.socket | None = None

    @property
    def addresses(self) -> list[str]:
        """What it was asked to connect to."""
        return [head.split(" ")[1] for head in self.heads]

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        assert self._listener is not None
        self._open.append(self._listener)
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in self._open:
            sock.close()

    def close_tunnels(self) -> None:
        """Cut every connection, as a proxy that restarts does."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self.connections += 1
                self._open.append(sock)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := sock.recv(1)):
                    return
                head += data
            self.heads.append(head.decode())
            self._closing.wait(self.delay_s)
            if self.answer is not None:
                self._misbehave(sock, self.answer)
            elif self.credentials is not None and self._shown(head) != self.credentials:
                sock.sendall(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n')
            else:
                self._tunnel(sock, head)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _drip(self, sock: socket.socket, data: bytes) -> None:
        step = 1 if self.drip_s else len(data) or 1
        for n in range(0, len(data), step):
            sock.sendall(data[n : n + step])
            self._closing.wait(self.drip_s)

    def _misbehave(self, sock: socket.socket, answer: bytes) -> None:
        self._drip(sock, answer)
        while self.again and not self._closing.is_set():
            sock.sendall(self.again)
        self._closing.wait(self.hold_s)

    def _shown(self, head: bytes) -> str | None:
        for line in head.decode().split("\r\n"):
            if line.startswith("Proxy-Authorization: Basic "):
                return base64.b64decode(line.rpartition(" ")[2]).decode()
        return None

    def _tunnel(self, sock: socket.socket, head: bytes) -> None:
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        try:
            other = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        except OSError:
            sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 13\r\n\r\nsecret reason")
            return
        self._open.append(other)
        self._drip(sock, ESTABLISHED)
        self._start(self._copy, other, sock)
        self._copy(sock, other)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            source.settimeout(None)
            while data := source.recv(65536):
                target.sendall(data)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
