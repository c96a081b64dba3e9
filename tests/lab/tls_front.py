"""TLS in front of a server that has none."""

import socket
import ssl

from tests.lab.front import Front


class TlsFront(Front):
    """Listens on a free loopback port."""

    def __init__(self, behind: int, context: ssl.SSLContext) -> None:
        super().__init__(behind)
        self._context = context

    def take(self, plain: socket.socket) -> socket.socket:
        """Shake hands."""
        return self._context.wrap_socket(plain, server_side=True)
