"""requests' adapter over connections of our own.

``send`` is requests' own, so that the ``responses`` library can stand in for it. Relied on, of requests 2.34: it calls
``get_connection_with_tls_context``, ``cert_verify``, ``build_response`` and, of the connection, ``urlopen``.
"""

import select
import selectors
from collections.abc import Mapping
from typing import Any, cast

from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response

from webhooks.sender.certificates import ClientContext
from webhooks.sender.connection import Connector, open_connection
from webhooks.sender.idle import IdleConnections
from webhooks.sender.nonblocking import InFlightRequest
from webhooks.sender.request import OutgoingPost

_POLL_FLAGS = {selectors.EVENT_READ: select.POLLIN, selectors.EVENT_WRITE: select.POLLOUT}


class Adapter(HTTPAdapter):
    """Sends what `prepare` made: over a new connection and waiting, or over a kept one without."""

    def __init__(self, connector: Connector, tls_context: ClientContext, idle: IdleConnections) -> None:
        """Open nothing yet.

        Args:
            connector: makes the TCP connections.
            tls_context: the only one, with its authorities loaded.
            idle: where connections are kept.
        """
        super().__init__()
        self.connector = connector
        self._tls_context = tls_context
        self._idle = idle

    def begin(self, request: OutgoingPost, max_age_s: float | None) -> InFlightRequest | None:
        """Begin to send a request over a kept connection, without waiting.

        Args:
            request: what to send.
            max_age_s: of the connection; None: age does not matter.

        Returns:
            None where no kept connection can be used.
        """
        connection = self._idle.take(request.target.endpoint, max_age_s)
        if connection is None:
            return None
        request.attempt.peer = connection.peer
        return InFlightRequest(request.attempt, connection, request.data)

    def finish(self, request: InFlightRequest, *, is_read: bool) -> None:
        """Keep or close the connection of a request that is over, one way or the other.

        Args:
            request: it is not to be used any more.
            is_read: whether the response was read to its end.
        """
        if request.finish(is_read=is_read):
            self._idle.give_back(request.connection)

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """Return what sends a request over a new connection."""
        return _NewConnection(self, cast("OutgoingPost", request))

    def open(self, request: OutgoingPost) -> InFlightRequest:
        """Begin to send a request over a new connection.

        Raises:
            NoResponse: there is no connection.
        """
        attempt = request.attempt
        connection = open_connection(attempt, self.connector, self._tls_context)
        return InFlightRequest(attempt, connection, request.data)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the TLS context has what is needed."""

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        """Make a response without requests' cookie jar: cookies are not kept, so they need not be parsed."""
        response = Response()
        response.status_code = resp.status
        response.headers.update(resp.headers)
        response.raw = resp
        response.reason = resp.reason
        response.url = req.url or ""
        response.request = req
        return response


class _NewConnection:
    """Stands in for urllib3's pool: opens a connection for one request."""

    def __init__(self, adapter: Adapter, request: OutgoingPost) -> None:
        self._adapter = adapter
        self._request = request

    def urlopen(self, **_: Any) -> "_Reply":
        """Send the request, and wait for the head of the response.

        Raises:
            NoResponse: none came.
        """
        reply = _Reply(self._adapter, self._adapter.open(self._request))
        try:
            reply.wait_for_head()
        except BaseException:
            reply.close()
            raise
        return reply


class _Reply:
    """A response that is waited for; stands in for urllib3's."""

    status: int
    reason: str
    headers: Mapping[str, str]

    def __init__(self, adapter: Adapter, request: InFlightRequest) -> None:
        self._adapter = adapter
        self._request = request
        self._body = b""
        self._is_read = False
        self._poll = select.poll()

    def wait_for_head(self) -> None:
        """Write the request, and read until the head is there.

        Raises:
            NoResponse: it never was.
        """
        self._body = self._request.advance()
        while (head := self._request.reader.head) is None:
            self._wait()
        self.status, self.reason, self.headers = head

    def read(self, *_: Any, **__: Any) -> bytes:
        """Return the next part of the body as it came over the wire; ``b""`` at its end.

        Raises:
            NoResponse: it broke off.
        """
        while not self._body and not self._request.reader.is_over:
            self._wait()
        body, self._body = self._body, b""
        self._is_read = not body
        return body

    def close(self) -> None:
        """Let go of the connection."""
        self._adapter.finish(self._request, is_read=self._is_read)

    def _wait(self) -> None:
        request = self._request
        self._poll.register(request.connection.sock, _POLL_FLAGS[request.events])
        if not self._poll.poll(request.attempt.remaining_s() * 1000):
            raise request.attempt.timed_out()
        self._body = request.advance()
