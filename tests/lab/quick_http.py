"""What the receivers that are processes of their own share: HTTP read quickly, and commands on a second port.

Quick, not strict: what comes is sent by the product, and the receiver must cost little beside what it measures.
"""

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class RequestProtocol(asyncio.Protocol):
    """One kept-alive connection: hands each whole request to `answer`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    @property
    def is_open(self) -> bool:
        """Whether an answer would still go anywhere."""
        return self.transport is not None and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self.is_open:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            if not separator or len(rest) < size:
                return
            body, self._buffer = rest[:size], rest[size:]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        """See to a request: its head without the empty line, and its body."""
        raise NotImplementedError


async def serve_commands(obey: Callable[[Any], Awaitable[Any]]) -> asyncio.Server:
    """Listen on a free loopback port: each connection sends a line of JSON and gets one back, made by `obey`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = await obey(json.loads(await reader.readline()))
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def port_of(server: asyncio.Server) -> int:
    """Return the port at which it listens."""
    return server.sockets[0].getsockname()[1]


def command(port: int, order: Any) -> Any:
    """Send one command to such a port, and return what it answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(json.dumps(order).encode() + b"\n")
        with link.makefile() as lines:
            return json.loads(lines.readline())
