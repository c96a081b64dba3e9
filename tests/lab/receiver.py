"""A receiver that behaves as badly as it is told to: the other end of every test that sends.

Owns what stands on the wire: plain sockets, so that it can do what no HTTP server would. Never imports the package
that it tests. Used as a context manager; leaving it closes every socket and joins every thread.
"""

import datetime
import gzip
import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import trustme

#: Bytes that the head of a request may have; more is a bug in a test.
_MAX_HEAD_BYTES = 256 * 1024

#: Seconds that leaving a receiver waits for each of its threads.
_JOIN_TIMEOUT_S = 10

HeaderList = Iterable[tuple[str, str]]


class Headers:
    """Headers in the order in which they came; names compare without case."""

    def __init__(self, items: HeaderList) -> None:
        self.items: list[tuple[str, str]] = list(items)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a header."""
        return next((value for key, value in self.items if key.lower() == name.lower()), default)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __repr__(self) -> str:
        return f"Headers({self.items!r})"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request as it came."""

    method: str
    #: With the query.
    path: str
    headers: Headers
    #: Empty when the behaviour does not read it.
    body: bytes
    #: ``time.monotonic()`` when the request had been read.
    received_at: float
    #: Counts connections from 0, in the order in which they were accepted.
    connection: int

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


class Wire:
    """What a behaviour may do with the connection of the request that it answers."""

    def __init__(self, sock: socket.socket, closing: threading.Event) -> None:
        self._sock = sock
        self._closing = closing

    def send(self, data: bytes) -> None:
        """Write to the peer."""
        self._sock.sendall(data)

    def sleep(self, seconds: float) -> bool:
        """Wait; return whether the receiver is still open."""
        return not self._closing.wait(seconds)

    def reset(self) -> None:
        """Close so that the peer gets a RST: linger on, no seconds."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw = self._sock
        if isinstance(raw, ssl.SSLSocket):
            raw = socket.socket(fileno=raw.detach())
        raw.close()

    @property
    def is_open(self) -> bool:
        """Whether the receiver is still open."""
        return not self._closing.is_set()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered."""

    #: Returns whether the connection is kept for another request.
    act: Callable[[Wire, Recorded], bool]
    reads_body: bool = True


# --- behaviours ------------------------------------------------------------------------------------------------------


def response(status: int, body: bytes, headers: HeaderList = (), reason: str = "Whatever") -> bytes:
    """Return a whole response; Content-Length is added unless the headers frame the body themselves."""
    items = list(headers)
    if not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in items):
        items.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in items)
    return f"HTTP/1.1 {status} {reason}\r\n{head}\r\n".encode("latin-1") + body


def reply(status: int = 200, body: bytes = b"ok", headers: HeaderList = (), *, delay_s: float = 0) -> Behaviour:
    """Answer properly, after ``delay_s``."""

    def act(wire: Wire, _: Recorded) -> bool:
        if delay_s and not wire.sleep(delay_s):
            return False
        wire.send(response(status, body, headers))
        return not any(name.lower() == "connection" and value.lower() == "close" for name, value in headers)

    return Behaviour(act)


def redirect(location: str, status: int = 302) -> Behaviour:
    """Answer with a redirect."""
    return reply(status, b"", [("Location", location)])


def gzipped(body: bytes, headers: HeaderList = ()) -> Behaviour:
    """Answer with a gzip body, asked for or not."""
    return reply(200, gzip.compress(body), [("Content-Encoding", "gzip"), *headers])


def raw(data: bytes, *, keep: bool = False) -> Behaviour:
    """Write just these bytes, then close unless told to keep the connection."""

    def act(wire: Wire, _: Recorded) -> bool:
        wire.send(data)
        return keep

    return Behaviour(act)


def trickle(data: bytes, *, at_once: int = 0, interval_s: float = 0.05) -> Behaviour:
    """Write ``at_once`` bytes, then one byte per interval."""

    def act(wire: Wire, _: Recorded) -> bool:
        wire.send(data[:at_once])
        for n in range(at_once, len(data)):
            if not wire.sleep(interval_s):
                return False
            wire.send(data[n : n + 1])
        return True

    return Behaviour(act)


def trickle_head(interval_s: float = 0.05) -> Behaviour:
    """Answer properly but a byte per interval, from the first one on."""
    return trickle(response(200, b"ok"), interval_s=interval_s)


def trickle_body(body: bytes = b"x" * 1000, interval_s: float = 0.05) -> Behaviour:
    """Write the head, then the body a byte per interval."""
    data = response(200, body)
    return trickle(data, at_once=len(data) - len(body), interval_s=interval_s)


def hang() -> Behaviour:
    """Read the request and never answer."""

    def act(wire: Wire, _: Recorded) -> bool:
        while wire.sleep(60):
            pass
        return False

    return Behaviour(act)


def ignore_body() -> Behaviour:
    """Read the head of the request, none of its body, and never answer."""
    return Behaviour(hang().act, reads_body=False)


def close_early() -> Behaviour:
    """Read the request and close without an answer."""
    return Behaviour(lambda _wire, _request: False)


def reset(*, reads_body: bool = True) -> Behaviour:
    """Reset instead of answering; with ``reads_body=False`` while the body is still coming."""

    def act(wire: Wire, _: Recorded) -> bool:
        wire.reset()
        return False

    return Behaviour(act, reads_body=reads_body)


def half_body(then: Literal["close", "reset"] = "close", body: bytes = b"half of what was promised") -> Behaviour:
    """Promise a body, send half of it, and break off."""

    def act(wire: Wire, _: Recorded) -> bool:
        data = response(200, body)
        wire.send(data[: len(data) - len(body) // 2])
        if then == "reset":
            # Linux hands over what came before a RST only if it was read by then.
            wire.sleep(0.2)
            wire.reset()
        return False

    return Behaviour(act)


def bad_chunks() -> Behaviour:
    """Announce chunks and send something else."""
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnot a size\r\n")


def endless(start: bytes, again: bytes, interval_s: float = 0) -> Behaviour:
    """Write ``start``, then ``again`` for as long as anybody listens."""

    def act(wire: Wire, _: Recorded) -> bool:
        wire.send(start)
        while wire.sleep(interval_s) if interval_s else wire.is_open:
            wire.send(again)
        return False

    return Behaviour(act)


def endless_head(interval_s: float = 0) -> Behaviour:
    """Write headers without end."""
    return endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n", interval_s)


def flood_1xx(status: int = 103, interval_s: float = 0) -> Behaviour:
    """Write informational responses without end."""
    return endless(b"", f"HTTP/1.1 {status} Wait\r\nX-More: yes\r\n\r\n".encode(), interval_s)


# --- the receiver ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Receiver:
    """Accepts connections on a free loopback port and answers as told.

    A request takes the behaviour set for its path (without query), else the next of the queue, else ``default``.
    """

    #: Server context; ``None`` for plain HTTP. See `Authority`.
    tls: ssl.SSLContext | None = None
    #: What happens to a new connection, before TLS: served, reset, closed, or left alone (a stalled handshake).
    on_accept: Literal["serve", "reset", "close", "stall"] = "serve"
    #: Host in `url`; must lead to 127.0.0.1.
    host: str = "127.0.0.1"
    #: Receive buffer of its sockets; ``None`` for the system's. A small one makes a slow reader slow sooner.
    receive_buffer_bytes: int | None = None
    #: Seconds without a request after which a connection is forgotten, as NATs and balancers do it: without a word,
    #: and what comes over it then is read by nobody. ``None``: never.
    forgets_after_s: float | None = None
    default: Behaviour = field(default_factory=reply)
    requests: list[Recorded] = field(default_factory=list)
    #: TLS handshakes that the client broke off, as text.
    handshake_errors: list[str] = field(default_factory=list)
    #: Connections accepted so far.
    connections: int = 0
    port: int = 0
    _queue: deque[Behaviour] = field(default_factory=deque)
    _paths: dict[str, Behaviour] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _open: set[socket.socket] = field(default_factory=set)
    _listener: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where to send, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def then(self, *behaviours: Behaviour) -> Self:
        """Queue behaviours, one per request."""
        with self._changed:
            self._queue.extend(behaviours)
        return self

    def on(self, path: str, behaviour: Behaviour) -> Self:
        """Set how each request to a path is answered."""
        with self._changed:
            self._paths[quote(path, safe="/%")] = behaviour
        return self

    def wait_for(self, count: int, timeout_s: float = 10) -> list[Recorded]:
        """Wait until ``count`` requests have come.

        Raises:
            AssertionError: fewer came in time; says how many.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout_s):
                raise AssertionError(f"{len(self.requests)} of {count} requests came within {timeout_s} s")
            return list(self.requests)

    def __enter__(self) -> Self:
        listener = socket.socket()
        if self.receive_buffer_bytes is not None:
            # Before listen(): accepted sockets inherit it, and the window is fixed at the handshake.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        self._listener = listener
        self.port = listener.getsockname()[1]
        self._start(self._accept, listener)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        if self._listener is not None:
            # A thread blocked in accept() does not notice close(), but shutdown() wakes it on Linux; elsewhere a
            # connection to ourselves does.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
        self.close_connections()
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if self._listener is not None:
            self._listener.close()
        if stuck:
            raise AssertionError(f"threads of the receiver still run: {stuck}")

    def close_connections(self) -> None:
        """Close every open connection, as a server does with those that were idle too long."""
        with self._changed:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=f"receiver {self.port} {target.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if self._closing.is_set():
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                number = self.connections
                self.connections += 1
                self._open.add(sock)
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        current = sock
        try:
            if self.on_accept == "reset":
                Wire(sock, self._closing).reset()
            elif self.on_accept == "stall":
                self._closing.wait()
            elif self.on_accept == "serve":
                if self.tls is not None:
                    # wrap_socket takes the descriptor over, so the set has to follow it.
                    current = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    with self._changed:
                        self._open.discard(sock)
                        self._open.add(current)
                    assert isinstance(current, ssl.SSLSocket)
                    try:
                        current.do_handshake()
                    except OSError as error:
                        self.handshake_errors.append(str(error))
                        return
                self._serve_requests(current, number)
        except OSError:
            pass  # the client went away, or the receiver is closing
        finally:
            with self._changed:
                self._open.discard(sock)
                self._open.discard(current)
            current.close()
            sock.close()

    def _serve_requests(self, sock: socket.socket, number: int) -> None:
        wire = Wire(sock, self._closing)
        with sock.makefile("rb") as file:
            while not self._closing.is_set():
                idle_since = time.monotonic()
                head = _read_head(file)
                if head is None:
                    return
                if self.forgets_after_s is not None and time.monotonic() - idle_since > self.forgets_after_s:
                    self._closing.wait()
                    return
                method, path, headers = head
                behaviour = self._choose(path)
                body = b""
                if behaviour.reads_body:
                    length = int(headers.get("content-length") or 0)
                    body = file.read(length)
                    if len(body) < length:
                        return
                request = Recorded(method, path, headers, body, time.monotonic(), number)
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if not behaviour.act(wire, request):
                    return

    def _choose(self, path: str) -> Behaviour:
        with self._changed:
            behaviour = self._paths.get(path.partition("?")[0])
            if behaviour is None:
                behaviour = self._queue.popleft() if self._queue else self.default
            return behaviour


def _read_head(file: Any) -> tuple[str, str, Headers] | None:
    """Read request line and headers; ``None`` when the client closed instead."""
    lines: list[str] = []
    size = 0
    while True:
        line: bytes = file.readline(_MAX_HEAD_BYTES)
        size += len(line)
        if not line.endswith(b"\n") or size > _MAX_HEAD_BYTES:
            return None
        text = line.decode("latin-1").rstrip("\r\n")
        if not text:
            break
        lines.append(text)
    method, path, _ = lines[0].split(" ", 2)
    items = [line.split(":", 1) for line in lines[1:]]
    return method, path, Headers((name, value.strip()) for name, value in items)


# --- TLS -------------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of the test's own, with server contexts good and bad."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def write_ca(self, folder: Path) -> Path:
        """Write the authority's certificate, for clients to trust; return the file."""
        path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(path))
        return path

    def context(self, *names: str, is_expired: bool = False) -> ssl.SSLContext:
        """Return a server context with a certificate for these names or addresses, by default 127.0.0.1."""
        # None stands for trustme's own: valid from long ago to far ahead.
        expired_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1) if is_expired else None
        cert = self._ca.issue_cert(*(names or ("127.0.0.1",)), not_after=expired_at)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert.configure_cert(context)
        return context
