"""A name server that answers as it is told to, and the system's own resolver pointed at it.

Owns what stands on the wire of DNS: UDP on a loopback port, A, AAAA, CNAME and SRV, each answer to be forgotten at once
(TTL 0). `NameServer.look_up` is ``socket.getaddrinfo`` itself, asking this server: nothing between a test and the C
library is made up, and it takes no special rights. Used as a context manager.
"""

import ctypes
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, ip_address
from types import TracebackType
from typing import Any, Self

_A, _CNAME, _AAAA, _SRV = 1, 5, 28, 33
_TYPES = {_A: "A", _CNAME: "CNAME", _AAAA: "AAAA", _SRV: "SRV"}

#: An answer with authority, and that there is no such name (RFC 1035, 4.1.1).
_FOUND, _NO_SUCH_NAME = 0x8580, 0x8583

#: RES_INIT and RES_RECURSE of ``resolv.h``: no search domain of this machine's is put behind a name.
_OPTIONS = 0x41


class _ResolverState(ctypes.Structure):
    """The start of glibc's ``struct __res_state`` (``resolv.h``), of which each thread has one."""

    _fields_ = (
        ("retrans", ctypes.c_int),
        ("retry", ctypes.c_int),
        ("options", ctypes.c_ulong),
        ("nscount", ctypes.c_int),
        ("nsaddr_list", ctypes.c_ubyte * 16 * 3),
    )


class NoSuchResolver(Exception):
    """This system's C library is not glibc, so its resolver cannot be pointed at another server."""


@dataclass(slots=True)
class NameServer:
    """Answers by `answer`; every other name does not exist."""

    #: (name, type) of each question, in the order in which they came.
    queries: list[tuple[str, str]] = field(default_factory=list)
    #: On which it listens; 0 until it does, for a free one.
    port: int = 0
    _rounds: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    _sock: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    _thread: threading.Thread | None = None
    _is_closing: bool = False

    def answer(self, name: str, *rounds: Iterable[str]) -> None:
        """Set what a name has.

        Args:
            name: without a dot at the end.
            rounds: the nth look-up gets the nth, further ones the last. Each has addresses, or one other name, which
                becomes a CNAME, or with a port behind it an SRV.
        """
        self._rounds[name.lower()] = [tuple(records) for records in rounds]

    def count(self, name: str, kind: str = "A") -> int:
        """Return how often a name was asked for."""
        return self.queries.count((name, kind))

    def look_up(self, host: str, port: int) -> list[Any]:
        """Ask the system's resolver, which asks this server. Changes the calling thread's resolver for good."""
        _ask_only(self.port)
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        _ask_no_other_service()
        self._sock.bind(("127.0.0.1", self.port))
        self.port = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name=f"name server {self.port}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_closing = True
        self._sock.sendto(b"", self._sock.getsockname())  # wakes the thread
        if self._thread is not None:
            self._thread.join(10)
        self._sock.close()

    def _serve(self) -> None:
        while True:
            message, client = self._sock.recvfrom(4096)
            if self._is_closing:
                return
            self._sock.sendto(self._reply(message), client)

    def _reply(self, message: bytes) -> bytes:
        """Answer a message of one question."""
        labels, at = [], 12
        while size := message[at]:
            labels.append(message[at + 1 : at + 1 + size].decode())
            at += 1 + size
        question = message[12 : at + 5]
        kind = int.from_bytes(message[at + 1 : at + 3], "big")
        name = ".".join(labels).lower()
        self.queries.append((name, _TYPES.get(kind, str(kind))))
        records = list(self._records(name, kind))
        flags = _FOUND if name in self._rounds else _NO_SUCH_NAME
        return message[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + question + b"".join(records)

    def _records(self, name: str, kind: int) -> Iterable[bytes]:
        rounds = self._rounds.get(name, [()])
        asked = max(1, self.count(name, _TYPES.get(kind, "")))
        for value in rounds[min(asked, len(rounds)) - 1]:
            try:
                ip = ip_address(value)
            except ValueError:
                target, is_service, port = value.partition(":")
                if is_service:
                    if kind == _SRV:
                        yield _record(name, _SRV, struct.pack("!3H", 0, 0, int(port)) + _encode(target))
                    continue
                yield _record(name, _CNAME, _encode(value))
                # A server that looks names up for others, as the system expects it, goes on by itself.
                yield from self._records(value, kind)
            else:
                if kind == (_A if isinstance(ip, IPv4Address) else _AAAA):
                    yield _record(name, kind, ip.packed)


def _encode(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _record(name: str, kind: int, data: bytes) -> bytes:
    return _encode(name) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


@cache
def _glibc() -> Any:
    """Return the C library.

    Raises:
        NoSuchResolver: it is another one.
    """
    libc = ctypes.CDLL(None)
    try:
        libc.__res_state.restype = ctypes.POINTER(_ResolverState)
        _ = libc.__res_init, libc.__nss_configure_lookup, libc.gnu_get_libc_version
    except AttributeError as error:
        raise NoSuchResolver(f"needs glibc: {error}") from None
    return libc


def _ask_no_other_service() -> None:
    """Make the system look names up in ``/etc/hosts`` and by DNS alone.

    Some systems ask other services before, which know nothing of our server. This holds for the whole process and is
    not taken back: what was set before cannot be read, and this is what systems fall back to.
    """
    _glibc().__nss_configure_lookup(b"hosts", b"files dns")


def _ask_only(port: int) -> None:
    """Give the calling thread's resolver one server: the one at this port."""
    _glibc().__res_init()
    state = _glibc().__res_state().contents
    state.retrans, state.retry, state.options, state.nscount = 5, 2, _OPTIONS, 1
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton("127.0.0.1"))
    ctypes.memmove(state.nsaddr_list[0], address, len(address))
