"""Host names to addresses, within a deadline.

Owns the look-up threads. Never judges an address (`guard` does) and caches nothing. Called by `connection`, once per
new connection.
"""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from queue import SimpleQueue
from typing import Any, NamedTuple

from webhooks.errors import ErrorKind, NoResponse

#: ``(host, port)`` → what ``socket.getaddrinfo`` returns for stream sockets; raises ``socket.gaierror``.
Lookup = Callable[[str, int], list[Any]]

#: Look-ups that may run at one time. ``getaddrinfo`` cannot be interrupted, and with a dead name server one of them
#: takes up to half a minute, so this bounds what such a server can hold.
MAX_LOOKUPS = 64

#: Names of ``getaddrinfo``'s errors as Node.js writes them, which is where the contract's texts come from. Which
#: codes exist depends on the platform.
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
    #: As ``socket.connect`` wants it: the address, the port, and for IPv6 flow and scope.
    sockaddr: tuple[Any, ...]

    @property
    def ip(self) -> str:
        """The address alone, with its zone id if it has one."""
        address, _, _, scope = (*self.sockaddr, 0, 0)[:4]
        # Python writes no zone behind the address: it stands in the scope alone.
        return f"{address}%{scope}" if scope else str(address)


@dataclass(slots=True, eq=False)
class _Flight:
    """A look-up under way, shared by all who want the same name."""

    landed: threading.Event = field(default_factory=threading.Event)
    endpoints: tuple[Endpoint, ...] = ()
    #: ``None`` when the look-up succeeded.
    error: str | None = None


def system_lookup(host: str, port: int) -> list[Any]:
    """Ask the system's resolver."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """Resolves host names in daemon threads, one per name at a time, so that a caller can stop waiting.

    The threads are kept: to start one, and to have the C library read its configuration in it, takes twenty times as
    long as a look-up that needs no network.
    """

    def __init__(self, lookup: Lookup = system_lookup, *, max_lookups: int = MAX_LOOKUPS) -> None:
        self._lookup = lookup
        self._max_lookups = max_lookups
        self._changed = threading.Condition()
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._departures: SimpleQueue[tuple[tuple[str, int], _Flight] | None] = SimpleQueue()
        #: Threads that are not looking anything up, and that no flight waits for.
        self._idle = 0

    def resolve(self, host: str, port: int, timeout_s: float) -> tuple[Endpoint, ...]:
        """Return the addresses of a host, at least one, in the order in which to try them.

        Numeric hosts, also in the odd spellings of IPv4 (octal, hex, short, decimal), are read by the system's
        resolver as well, so what is judged is what would be connected to.

        Raises:
            NoResponse: kind LOOKUP: no such host. Kind RESOLVER: nobody could tell, or not in time (``EAI_AGAIN``).
        """
        try:
            numeric = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (socket.gaierror, UnicodeError):
            pass  # a name
        else:
            return _endpoints(numeric)

        give_up_at = time.monotonic() + timeout_s
        flight = self._join(host, port, give_up_at)
        if flight is None or not flight.landed.wait(max(0.0, give_up_at - time.monotonic())):
            raise _lookup_failed("EAI_AGAIN", host)
        if flight.error is not None:
            raise _lookup_failed(flight.error, host)
        return flight.endpoints

    def _join(self, host: str, port: int, give_up_at: float) -> _Flight | None:
        """Board the look-up that is under way, or start one; ``None`` when there was no room for it in time."""
        key = (host, port)
        with self._changed:
            while key not in self._flights:
                if len(self._flights) < self._max_lookups:
                    return self._start(key)
                if not self._changed.wait(give_up_at - time.monotonic()):
                    return None
            return self._flights[key]

    def _start(self, key: tuple[str, int]) -> _Flight | None:
        flight = _Flight()
        if self._idle:
            self._idle -= 1
        else:
            try:
                # A daemon: a look-up that hangs must not keep the worker from stopping.
                threading.Thread(target=self._run, name="lookup", daemon=True).start()
            except RuntimeError:  # the system has no thread left: like a resolver that cannot serve us now
                return None
        self._flights[key] = flight
        self._departures.put((key, flight))
        return flight

    def close(self) -> None:
        """Let go of the threads that have nothing to do."""
        with self._changed:
            for _ in range(self._idle):
                self._departures.put(None)
            self._idle = 0

    def _run(self) -> None:
        while (departure := self._departures.get()) is not None:
            self._carry_out(*departure)

    def _carry_out(self, key: tuple[str, int], flight: _Flight) -> None:
        try:
            flight.endpoints = _endpoints(self._lookup(*key))
            if not flight.endpoints:
                flight.error = _NO_HOST
        except socket.gaierror as error:
            flight.error = _NO_HOST if error.errno in _NOT_FOUND else _EAI_NAMES.get(error.errno or 0, "EAI_FAIL")
        except Exception:  # noqa: BLE001 - whatever a resolver does must reach the waiting caller as a failed look-up
            flight.error = "EAI_FAIL"
        finally:
            with self._changed:
                del self._flights[key]
                self._idle += 1
                self._changed.notify_all()
            flight.landed.set()


def _endpoints(answers: list[Any]) -> tuple[Endpoint, ...]:
    """Return each address once, the families in turn (RFC 8305, 4), within a family in the resolver's order.

    The resolver may list all of one family first, and this machine, or the receiver, have no way out over it.
    """
    families: dict[int, dict[Endpoint, None]] = {}
    for family, _, _, _, sockaddr in answers:
        families.setdefault(int(family), {})[Endpoint(int(family), tuple(sockaddr))] = None
    turns = zip_longest(*families.values())
    return tuple(endpoint for turn in turns for endpoint in turn if endpoint is not None)


def _lookup_failed(code: str, host: str) -> NoResponse:
    kind = ErrorKind.LOOKUP if code == _NO_HOST else ErrorKind.RESOLVER
    return NoResponse(kind, f"getaddrinfo {code} {host}")
