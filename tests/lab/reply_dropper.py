"""A network that dies at the worst moment: the server has carried out a write, and its reply gets lost.

Owns the wire of Redis and of MongoDB, as far as it takes to tell which reply belongs to which request. Never imports
the package that it tests.
"""

import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, Protocol

from tests.lab.front import Front

#: What MongoDB calls its writes.
_MONGODB_WRITES = frozenset({b"insert", b"update", b"delete", b"findAndModify"})


def name_mongodb_write(words: tuple[bytes, ...]) -> str:
    """Return command and collection of a write of MongoDB; "" for another request."""
    return b" ".join(words).decode() if words and words[0] in _MONGODB_WRITES else ""


class Once:
    """Drops the reply of the next write of a name, which is "" from then on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, name: str, reply: bytes) -> bool:
        is_it = name == self.name
        self.name = "" if is_it else self.name
        return is_it


class Request(NamedTuple):
    """One request."""

    raw: bytes
    #: Redis: its words. MongoDB: the command and what it is for, as a rule a collection.
    words: tuple[bytes, ...]
    #: What its reply names; None where replies come in the order of requests.
    number: int | None = None


class Wire(Protocol):
    """How requests and replies are read; None and b"" at the end."""

    def read_request(self, stream: BinaryIO) -> Request | None: ...

    def read_reply(self, stream: BinaryIO) -> tuple[bytes, int | None]: ...

    #: Whether a connection is none of requests and replies from now on.
    def is_stream(self, request: Request) -> bool: ...


class RedisWire:
    """RESP, versions 2 and 3."""

    def read_request(self, stream: BinaryIO) -> Request | None:
        """Read a command."""
        head = stream.readline()
        if not head:
            return None
        raw, words = [head], []
        for _ in range(int(head[1:])):
            size = stream.readline()
            word = stream.read(int(size[1:]) + 2)
            raw += [size, word]
            words.append(word[:-2])
        return Request(b"".join(raw), tuple(words))

    def read_reply(self, stream: BinaryIO) -> tuple[bytes, int | None]:
        """Read a reply."""
        line = stream.readline()
        kind, count = line[:1], line[1:-2]
        if not line:
            return b"", None
        if kind in b"$=!":
            return line + (stream.read(int(count) + 2) if int(count) >= 0 else b""), None
        if kind in b"*~>%":
            parts = max(0, int(count)) * (2 if kind == b"%" else 1)
            # Nobody asked for a push.
            return line + b"".join(self.read_reply(stream)[0] for _ in range(parts)), -1 if kind == b">" else None
        return line, None

    def is_stream(self, request: Request) -> bool:
        """Subscriptions."""
        return request.words[0].upper().endswith(b"SUBSCRIBE")


class MongoWire:
    """``OP_MSG``, and ``OP_QUERY`` of the first handshake."""

    _HEAD = struct.Struct("<iiii")
    _OP_MSG = 2013

    def _read(self, stream: BinaryIO) -> tuple[bytes, int, int, int]:
        head = stream.read(self._HEAD.size)
        if len(head) < self._HEAD.size:
            return b"", 0, 0, 0
        size, number, answers, kind = self._HEAD.unpack(head)
        return head + stream.read(size - len(head)), number, answers, kind

    def read_request(self, stream: BinaryIO) -> Request | None:
        """Read a command."""
        raw, number, _, kind = self._read(stream)
        if not raw:
            return None
        if kind != self._OP_MSG:
            return Request(raw, (), number)
        # The head, flags, the kind of the first section, the length of its document, the type of the first field.
        name, _, rest = raw[self._HEAD.size + 4 + 1 + 4 + 1 :].partition(b"\0")
        (size,) = struct.unpack_from("<i", rest)
        return Request(raw, (name, rest[4 : 4 + size - 1] if 0 < size < len(rest) else b""), number)

    def read_reply(self, stream: BinaryIO) -> tuple[bytes, int | None]:
        """Read a reply."""
        raw, _, answers, _ = self._read(stream)
        return raw, answers

    def is_stream(self, request: Request) -> bool:
        """Never."""
        return False


class _Connection:
    """What is known of one client's connection."""

    def __init__(self) -> None:
        #: Requests without a reply: number, and name of the write.
        self.asked: deque[tuple[int | None, str]] = deque()
        self.is_stream = False


class ReplyDropper(Front):
    """Drops the replies of chosen writes, each with its connection."""

    def __init__(
        self, behind: int, wire: Wire, name: Callable[[tuple[bytes, ...]], str], drops: Callable[[str, bytes], bool]
    ) -> None:
        """Make it; it listens at once.

        Args:
            behind: port of the server.
            wire: what it speaks.
            name: the words of a request → a write's name; "" for what is none.
            drops: a write's name and its reply → whether that is to be lost.
        """
        self._wire, self._name, self._drops = wire, name, drops
        self._connections: weakref.WeakKeyDictionary[socket.socket, _Connection] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        super().__init__(behind)

    def _connection(self, server: socket.socket) -> _Connection:
        with self._lock:
            return self._connections.setdefault(server, _Connection())

    def hand_on(self, client: socket.socket, server: socket.socket) -> None:
        """Hand on requests, and note what each is."""
        connection = self._connection(server)
        with client.makefile("rb") as stream:
            while (request := self._wire.read_request(stream)) is not None:
                with self._lock:
                    connection.asked.append((request.number, self._name(request.words)))
                connection.is_stream = connection.is_stream or self._wire.is_stream(request)
                server.sendall(request.raw)

    def hand_back(self, server: socket.socket, client: socket.socket) -> None:
        """Hand back replies, until one is to be dropped."""
        connection = self._connection(server)
        with server.makefile("rb") as stream:
            while True:
                raw, number = self._wire.read_reply(stream)
                if not raw:
                    return
                name = "" if connection.is_stream else self._take(connection, number)
                if name and self._drops(name, raw):
                    return
                client.sendall(raw)

    def _take(self, connection: _Connection, number: int | None) -> str:
        """Return the name of the write whose reply has come; "" if it is none."""
        with self._lock:
            for asked in connection.asked:
                if asked[0] == number:
                    connection.asked.remove(asked)
                    return asked[1]
        return ""
