"""Idle connections: which are kept, for how long, and which may serve a request.

What drops idle connections without a word is the network: a NAT, a firewall or a load balancer, most after some minutes
of silence. What was sent over such a connection is lost, and nothing says so before the deadline. So idle connections
are kept for seconds only, and one that failed casts doubt on those beside it.
"""

import threading
import time
from collections import OrderedDict

from webhooks.sender.connection import Connection

#: Endpoints whose idle connections are kept; beyond that those of the one that was used least recently are closed.
MAX_ENDPOINTS = 256

#: Seconds after which a connection is not used again, so that a receiver that moved is followed even when its old
#: address still answers.
MAX_AGE_S = 300.0

#: Seconds without a request after which a connection is closed. Networks forget connections after 60 s at the soonest
#: (firewalls) and 240 to 350 s mostly (NATs and balancers of the large clouds). Shorter than the default deadline of an
#: attempt, so that a receiver that serves one connection at a time, blocked by an idle one of another worker, gets
#: round to a request that waits for it. Under load connections are used again within milliseconds.
MAX_IDLE_S = 10.0

#: Scheme, host and port.
Endpoint = tuple[str, str, int]


class IdleConnections:
    """Keeps connections between requests. Thread-safe."""

    def __init__(self, most: int) -> None:
        """Keep none yet.

        Args:
            most: connections per endpoint; those that are given back beyond that are closed.
        """
        self._most = most
        self._lock = threading.Lock()
        #: By the last use of an endpoint and, within one, of a connection.
        self._idle: OrderedDict[Endpoint, list[Connection]] = OrderedDict()
        self._is_closed = False

    def take(self, endpoint: Endpoint, max_age_s: float | None) -> Connection | None:
        """Take the connection to an endpoint that was used last.

        Args:
            endpoint: which one.
            max_age_s: one that was opened longer ago is left alone; None: age does not matter.

        Returns:
            None where there is none that can be used.
        """
        with self._lock:
            idle = self._idle.get(endpoint)
            if idle is None:
                return None
            present = time.monotonic()
            for number in range(len(idle) - 1, -1, -1):
                connection = idle[number]
                if max_age_s is not None and present - connection.opened_at >= max_age_s:
                    continue
                del idle[number]
                if _is_usable(connection, present):
                    return connection
                connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        closing = [connection]
        with self._lock:
            if not self._is_closed:
                idle = self._idle.setdefault(connection.endpoint, [])
                self._idle.move_to_end(connection.endpoint)
                connection.idle_since = time.monotonic()
                idle.append(connection)
                closing = [idle.pop(0)] if len(idle) > self._most else []
                if len(self._idle) > MAX_ENDPOINTS:
                    closing += self._idle.popitem(last=False)[1]
        _close(closing)

    def close_silent(self, endpoint: Endpoint, since: float) -> None:
        """Close connections that have answered nothing since an instant: one like them turned out to be dead.

        Args:
            endpoint: where to.
            since: on the monotonic clock; when the request that failed was begun.
        """
        with self._lock:
            idle = self._idle.get(endpoint, [])
            silent = [connection for connection in idle if connection.idle_since < since]
            idle[:] = [connection for connection in idle if connection.idle_since >= since]
        _close(silent)

    def sweep(self) -> bool:
        """Close what is too old, or was closed by its receiver; return whether any is left."""
        present = time.monotonic()
        with self._lock:
            for endpoint, idle in list(self._idle.items()):
                usable = [connection for connection in idle if _is_usable(connection, present)]
                if len(usable) < len(idle):
                    _close([connection for connection in idle if connection not in usable])
                idle[:] = usable
                if not idle:
                    del self._idle[endpoint]
            return bool(self._idle)

    def close(self) -> None:
        """Close all, and from now on what is given back."""
        with self._lock:
            self._is_closed = True
            closing = [connection for idle in self._idle.values() for connection in idle]
            self._idle.clear()
        _close(closing)


def _is_usable(connection: Connection, present: float) -> bool:
    return (
        present - connection.opened_at <= MAX_AGE_S
        and present - connection.idle_since <= MAX_IDLE_S
        and connection.is_quiet
    )


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()
