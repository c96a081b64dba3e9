"""Stands in front of a server: takes connections, and hands what comes on to a port of this machine.

`tls_front` and `reply_dropper` do more with what passes. Used as a context manager, or until `close`.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self


class Front:
    """Listens on a free loopback port from the moment it is made."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = {self._listener}
        self.port: int = self._listener.getsockname()[1]
        _start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections, and cut those that are open."""
        shut(*list(self._open))
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                _start(self._join, sock)

    def _join(self, plain: socket.socket) -> None:
        with (
            suppress(OSError),  # such as a client that does not trust the certificate, or a server that is away
            self.take(plain) as client,
            socket.create_connection(("127.0.0.1", self._behind)) as server,
        ):
            ends = {client, server}
            self._open |= ends
            try:
                back = _start(self._pass, self.hand_back, server, client)
                self._pass(self.hand_on, client, server)
                back.join()
            finally:
                self._open -= ends

    def _pass(self, hand: Callable[[socket.socket, socket.socket], None], a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            hand(a, b)
        shut(a, b)

    def take(self, plain: socket.socket) -> socket.socket:
        """Return what to use of a connection that came."""
        return plain

    def hand_on(self, client: socket.socket, server: socket.socket) -> None:
        """Hand on what a client says, until it says no more."""
        copy(client, server)

    def hand_back(self, server: socket.socket, client: socket.socket) -> None:
        """Hand back what the server answers, until it says no more."""
        copy(server, client)


def copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes as it comes."""
    while data := source.recv(65536):
        target.sendall(data)


def shut(*sockets: socket.socket) -> None:
    """End connections; whoever waits for them goes on."""
    for sock in sockets:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
