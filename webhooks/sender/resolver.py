"""Resolves host names within a deadline. Caches nothing."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import zip_longest
from queue import SimpleQueue
from typing import Any, NamedTuple

from webhooks.errors import ErrorKind, NoResponse

#: ``(host, port)`` → what ``socket.getaddrinfo`` returns for stream sockets; raises ``socket.gaierror``.
Lookup = Callable[[str, int], list[Any]]

#: Concurrent look-ups. ``getaddrinfo`` cannot be interrupted, and takes up to 30 s with a dead name server.
MAX_LOOKUPS = 64

#: Names of ``getaddrinfo``'s errors as in Node.js and so in the contract. The platform determines which codes exist.
_EAI_NAMES = {
    getattr(socket, name): name
    for name in ("EAI_AGAIN", "EAI_FAIL", "EAI_FAMILY", "EAI_MEMORY", "EAI_SERVICE", "EAI_SOCKTYPE", "EAI_SYSTEM")
    if hasattr(socket, name)
}
_NO_HOST = "ENOTFOUND"
_NOT_FOUND = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}


class Endpoint(NamedTuple):
    """One address to connect to."""

    family: int
    #: For ``socket.connect``: address, port, and for IPv6 flow and scope.
    sockaddr: tuple[Any, ...]

    @property
    def ip(self) -> str:
        """The address, with its zone id if it has one."""
        address, _, _, scope = (*self.sockaddr, 0, 0)[:4]
        return f"{address}%{scope}" if scope else str(address)


_Key = tuple[str, int]
_Pending = Future[tuple[Endpoint, ...]]


def system_lookup(host: str, port: int) -> list[Any]:
    """Ask the system's resolver."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """Resolves host names in daemon threads, one look-up per name at a time, so that a caller can stop waiting.

    The threads are reused: starting one, and loading the C library's configuration in it, takes twenty times as long as
    a look-up without network.
    """

    def __init__(self, lookup: Lookup = system_lookup, *, max_lookups: int = MAX_LOOKUPS) -> None:
        self._lookup = lookup
        self._max_lookups = max_lookups
        self._changed = threading.Condition()
        self._pending: dict[_Key, _Pending] = {}
        self._queue: SimpleQueue[tuple[_Key, _Pending] | None] = SimpleQueue()
        self._idle_threads = 0

    def resolve(self, host: str, port: int, timeout_s: float) -> tuple[Endpoint, ...]:
        """Return the addresses of a host, at least one, in the order in which to try them.

        The system's resolver also reads numeric hosts, including octal, hex, short and decimal IPv4. So the checked
        address is the one that is connected to.

        Raises:
            NoResponse: kind LOOKUP: no such host. Kind RESOLVER: the look-up failed or timed out (``EAI_AGAIN``).
        """
        try:
            return _endpoints(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        except (socket.gaierror, UnicodeError):
            pass  # a name
        give_up_at = time.monotonic() + timeout_s
        pending = self._join((host, port), give_up_at)
        try:
            if pending is not None:
                return pending.result(max(0.0, give_up_at - time.monotonic()))
        except TimeoutError:
            pass
        raise _lookup_failed("EAI_AGAIN", host)

    def _join(self, key: _Key, give_up_at: float) -> _Pending | None:
        """Return the pending look-up of a name, or start one; None if there was no capacity in time."""
        with self._changed:
            while key not in self._pending:
                if len(self._pending) < self._max_lookups:
                    return self._start(key)
                if not self._changed.wait(give_up_at - time.monotonic()):
                    return None
            return self._pending[key]

    def _start(self, key: _Key) -> _Pending | None:
        if self._idle_threads:
            self._idle_threads -= 1
        else:
            try:
                # A daemon, so that a hanging look-up does not keep the worker from stopping.
                threading.Thread(target=self._run, name="lookup", daemon=True).start()
            except RuntimeError:  # the system is out of threads
                return None
        self._pending[key] = pending = Future()
        self._queue.put((key, pending))
        return pending

    def close(self) -> None:
        """End the idle threads."""
        with self._changed:
            for _ in range(self._idle_threads):
                self._queue.put(None)
            self._idle_threads = 0

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            key, pending = job
            endpoints, code = (), _NO_HOST
            try:
                endpoints = _endpoints(self._lookup(*key))
            except socket.gaierror as error:
                code = _NO_HOST if error.errno in _NOT_FOUND else _EAI_NAMES.get(error.errno or 0, "EAI_FAIL")
            except Exception:  # noqa: BLE001 - any error of a resolver is a failed look-up for its callers
                code = "EAI_FAIL"
            with self._changed:
                del self._pending[key]
                self._idle_threads += 1
                self._changed.notify_all()
            if endpoints:
                pending.set_result(endpoints)
            else:
                pending.set_exception(_lookup_failed(code, key[0]))


def _endpoints(answers: list[Any]) -> tuple[Endpoint, ...]:
    """Return each address once, alternating between families (RFC 8305, 4).

    One family may be listed first although there is no route for it.
    """
    families: dict[int, dict[Endpoint, None]] = {}
    for family, _, _, _, sockaddr in answers:
        families.setdefault(int(family), {})[Endpoint(int(family), tuple(sockaddr))] = None
    turns = zip_longest(*families.values())
    return tuple(endpoint for turn in turns for endpoint in turn if endpoint is not None)


def _lookup_failed(code: str, host: str) -> NoResponse:
    kind = ErrorKind.LOOKUP if code == _NO_HOST else ErrorKind.RESOLVER
    return NoResponse(kind, f"getaddrinfo {code} {host}")
