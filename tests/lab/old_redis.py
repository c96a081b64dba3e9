"""A Redis of an old version: what it says of itself, and that it does not know a script's first line.

Owns what stands on the wire of Redis, on a free loopback port. Used as a context manager.
"""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

#: What Redis 6.2 says to a script that begins with ``#!lua``.
_NO_SHEBANG = b"-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'\r\n"


@dataclass(slots=True)
class OldRedis:
    """Takes every command, and keeps nothing."""

    version: str = "6.2.14"
    port: int = 0
    _open: list[socket.socket] = field(default_factory=list)
    _listener: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._listener is not None
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self._open.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError, ValueError), sock.makefile("rb") as stream:
            queued: list[bytes] | None = None
            while command := _read_command(stream):
                match command[0].upper(), queued:
                    case "MULTI", _:
                        queued, reply = [], b"+OK\r\n"
                    case "EXEC", list():
                        reply, queued = f"*{len(queued)}\r\n".encode() + b"".join(queued), None
                    case _, list():
                        queued.append(self._reply(*command))
                        reply = b"+QUEUED\r\n"
                    case _:
                        reply = self._reply(*command)
                sock.sendall(reply)

    def _reply(self, name: str, *arguments: str) -> bytes:
        match name.upper():
            case "HELLO" if self.version.startswith("5."):
                return b"-ERR unknown command `HELLO`\r\n"
            case "HELLO":
                return b"%1\r\n" + _bulk("proto") + b":3\r\n"
            case "PING":
                return b"+PONG\r\n"
            case "EVALSHA":
                return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
            case "SCRIPT":
                return _NO_SHEBANG
            case "INFO":
                return _bulk(f"# Server\r\nredis_version:{self.version}\r\n")
            case "SMEMBERS" | "KEYS" | "HMGET":
                return b"*0\r\n"
            case "LLEN" | "ZCARD" | "HLEN" | "SADD" | "EXISTS" | "PUBLISH" | "DEL":
                return b":0\r\n"
            case "SUBSCRIBE" | "PSUBSCRIBE":
                return b"".join(
                    b"*3\r\n" + _bulk(name.lower()) + _bulk(channel) + f":{number}\r\n".encode()
                    for number, channel in enumerate(arguments, start=1)
                )
            case _:
                return b"+OK\r\n"


def _read_command(stream: BinaryIO) -> list[str]:
    head = stream.readline()
    if not head:
        return []
    parts = []
    for _ in range(int(head[1:])):
        size = int(stream.readline()[1:])
        parts.append(stream.read(size + 2)[:-2].decode(errors="replace"))
    return parts


def _bulk(text: str) -> bytes:
    return f"${len(text.encode())}\r\n{text}\r\n".encode()
