"""Idle connections: which are kept, for how long, and which may serve a request.

NATs, firewalls and load balancers drop silent connections, most after some minutes, without a notice. A request sent
over a dropped connection times out. So idle connections are kept for seconds only, and a failed one casts doubt on the
others to its endpoint.
"""

import threading
import time
from collections import OrderedDict
from itertools import chain

from webhooks.sender.connection import Connection

#: Endpoints with idle connections; beyond that, the least recently used one loses its connections.
MAX_ENDPOINTS = 256

#: Maximum age, so that a receiver's new address is used even if the old one still answers.
MAX_AGE_S = 300.0

#: Maximum idle time. Firewalls drop connections after 60 s or more, NATs and balancers of the large clouds after 240 to
#: 350 s. Shorter than an attempt's default deadline, for a receiver that serves one connection at a time: another
#: worker's idle connection blocks it no longer than this.
MAX_IDLE_S = 10.0

#: As `RequestUrl.endpoint`.
Endpoint = tuple[str, str, int]


class IdleConnections:
    """Keeps connections between requests. Thread-safe."""

    def __init__(self, most: int) -> None:
        """Keep at most so many connections per endpoint."""
        self._most = most
        self._lock = threading.Lock()
        #: Endpoints and their connections, by last use.
        self._idle: OrderedDict[Endpoint, list[Connection]] = OrderedDict()
        self._is_closed = False

    def take(self, endpoint: Endpoint, max_age_s: float | None) -> Connection | None:
        """Take the most recently used connection to an endpoint; None if none is usable."""
        with self._lock:
            idle = self._idle.get(endpoint)
            if idle is None:
                return None
            present = time.monotonic()
            for connection in reversed(idle.copy()):
                if max_age_s is not None and present - connection.opened_at >= max_age_s:
                    continue
                idle.remove(connection)
                if _is_usable(connection, present):
                    return connection
                connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            if self._is_closed:
                connection.close()
                return
            idle = self._idle.setdefault(connection.endpoint, [])
            self._idle.move_to_end(connection.endpoint)
            connection.idle_since = time.monotonic()
            idle.append(connection)
            if len(idle) > self._most:
                idle.pop(0).close()
            if len(self._idle) > MAX_ENDPOINTS:
                for oldest in self._idle.popitem(last=False)[1]:
                    oldest.close()

    def drop(self, connection: Connection) -> None:
        """Close a connection on which something arrived, if it is idle: it was closed, or sent unrequested data."""
        with self._lock:
            idle = self._idle.get(connection.endpoint, [])
            if connection in idle:
                idle.remove(connection)
                connection.close()

    def close_silent(self, endpoint: Endpoint, since: float) -> None:
        """Close connections not used since an instant on the monotonic clock: one like them was dead."""
        with self._lock:
            for connection in self._idle.get(endpoint, []).copy():
                if connection.idle_since < since:
                    self._idle[endpoint].remove(connection)
                    connection.close()

    def sweep(self) -> bool:
        """Close unusable connections; return whether any is left."""
        present = time.monotonic()
        with self._lock:
            for endpoint, idle in list(self._idle.items()):
                for connection in idle.copy():
                    if not _is_usable(connection, present):
                        idle.remove(connection)
                        connection.close()
                if not idle:
                    del self._idle[endpoint]
            return bool(self._idle)

    def close(self) -> None:
        """Close all connections, and from now on those given back."""
        with self._lock:
            self._is_closed = True
            for connection in chain.from_iterable(self._idle.values()):
                connection.close()
            self._idle.clear()


def _is_usable(connection: Connection, present: float) -> bool:
    return (
        present - connection.opened_at <= MAX_AGE_S
        and present - connection.idle_since <= MAX_IDLE_S
        and connection.is_quiet
    )
