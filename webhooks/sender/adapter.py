"""requests' adapter over our own connections.

``send`` is requests' own, so that the ``responses`` library can replace it in tests. In requests 2.34 it calls
``get_connection_with_tls_context``, ``cert_verify`` and the connection's ``urlopen``.
"""

import select
import selectors
from collections.abc import Mapping
from typing import Any, cast

from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest

from webhooks.sender.certificates import ClientContext
from webhooks.sender.connection import Connector, open_connection
from webhooks.sender.idle import IdleConnections
from webhooks.sender.nonblocking import InFlightRequest
from webhooks.sender.request import OutgoingPost

_POLL_FLAGS = {selectors.EVENT_READ: select.POLLIN, selectors.EVENT_WRITE: select.POLLOUT}


class Adapter(HTTPAdapter):
    """Sends an `OutgoingPost`: blocking over a new connection, non-blocking over a kept one."""

    def __init__(self, connector: Connector, tls_context: ClientContext, idle: IdleConnections) -> None:
        super().__init__()
        self.connector = connector
        self._tls_context = tls_context
        self._idle = idle

    def begin(self, request: OutgoingPost, max_age_s: float | None) -> InFlightRequest | None:
        """Begin a request over a kept connection, opened at most `max_age_s` ago if given; None if there is none."""
        connection = self._idle.take(request.target.endpoint, max_age_s)
        if connection is None:
            return None
        request.attempt.peer = connection.peer
        return InFlightRequest(request.attempt, connection, request.data)

    def finish(self, request: InFlightRequest, *, is_read: bool) -> None:
        """Keep or close a finished request's connection. `is_read`: its response was read to the end."""
        if request.finish(is_read=is_read):
            self._idle.give_back(request.connection)

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """Return what sends a request over a new connection."""
        return _Reply(self, cast("OutgoingPost", request))

    def open(self, request: OutgoingPost) -> InFlightRequest:
        """Begin a request over a new connection; raise NoResponse if it fails."""
        attempt = request.attempt
        connection = open_connection(attempt, self.connector, self._tls_context)
        return InFlightRequest(attempt, connection, request.data)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the TLS context is complete."""


class _Reply:
    """A response over a new connection; replaces urllib3's pool and its response."""

    status: int
    reason: str
    headers: Mapping[str, str]

    _request: InFlightRequest

    def __init__(self, adapter: Adapter, post: OutgoingPost) -> None:
        self._adapter = adapter
        self._post = post
        self._body = b""
        self._is_read = False
        self._poll = select.poll()

    def urlopen(self, **_: Any) -> "_Reply":
        """Send the request and wait for the response's head; raise NoResponse if none comes."""
        self._request = self._adapter.open(self._post)
        try:
            self._body = self._request.advance()
            while (head := self._request.reader.head) is None:
                self._wait()
        except BaseException:
            self.close()
            raise
        self.status, self.reason, self.headers = head
        return self

    def read(self, *_: Any, **__: Any) -> bytes:
        """Return the next part of the raw body, ``b""`` at its end; raise NoResponse if it breaks off."""
        while not self._body and not self._request.reader.is_over:
            self._wait()
        body, self._body = self._body, b""
        self._is_read = not body
        return body

    def close(self) -> None:
        """Release the connection."""
        self._adapter.finish(self._request, is_read=self._is_read)

    def _wait(self) -> None:
        request = self._request
        self._poll.register(request.connection.sock, _POLL_FLAGS[request.events])
        if not self._poll.poll(request.attempt.remaining_s() * 1000):
            raise request.attempt.timed_out()
        self._body = request.advance()
