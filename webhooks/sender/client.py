"""One HTTP request, start to finish.

Owns `Sender`: what a request looks like on the wire, the second try on a stale connection, and how much of a response
is read. Never follows a redirect, keeps a cookie, reads a proxy or ``.netrc`` from the environment, or raises for what
a receiver does. Called by `delivery`.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import certifi
import requests
import urllib3
from requests.models import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict

from webhooks.config import Proxy
from webhooks.errors import ErrorKind, NoResponse
from webhooks.guard import Network
from webhooks.models.wire import now
from webhooks.sender.attempt import Answer, Attempt, Phase, current_attempt, hang_up
from webhooks.sender.connection import Adapter, Connector, make_tls_context
from webhooks.sender.exchange import Exchange, make_request
from webhooks.sender.ports import check_port
from webhooks.sender.readable import BodyCollector, to_text
from webhooks.sender.resolver import Resolver
from webhooks.sender.response import bad_response
from webhooks.sender.retry_after import read_retry_after
from webhooks.target import Target, parse_target

#: Bytes asked for at a time.
_READ_BYTES = 16 * 1024

_NO_TARGET = Target("", "", 0, "", "")

#: Most attempts go where others went before.
_parse_known = lru_cache(maxsize=1024)(parse_target)


class Sender:
    """Sends requests to allowed addresses over kept connections. One per process; its methods are thread-safe."""

    def __init__(
        self,
        *,
        allowed_networks: tuple[Network, ...],
        connect_timeout_s: float,
        total_timeout_s: float,
        max_response_bytes: int,
        ca_bundle: Path | None,
        pool_size: int,
        allowed_ports: frozenset[int] | None = None,
        proxy: Proxy | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """Make a sender. Opens no connection, reads the certificate authorities.

        Args:
            allowed_networks: addresses that requests may go to besides public ones.
            connect_timeout_s: for TCP alone, shared among a host's addresses.
            total_timeout_s: for everything from look-up to the last byte of the body.
            max_response_bytes: kept of a body, counted after decompression.
            ca_bundle: PEM file; ``None`` for certifi's list.
            pool_size: idle connections kept per endpoint: as many as threads may send to it at one time.
            allowed_ports: the only ones that requests may go to; ``None`` for the rule of `ports`.
            proxy: what all requests go through; ``None`` for none.
            resolver: for tests; ``None`` for the system's.
        """
        # urllib3 logs paths with their queries, where receivers' tokens stand: each one at DEBUG, and at WARNING those
        # of responses with odd headers. Here and not at import: a producer imports this package too, and its log is
        # its own affair.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
        logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
        self._allowed_ports = allowed_ports
        self._connect_timeout_s = connect_timeout_s
        self._total_timeout_s = total_timeout_s
        self._max_response_bytes = max_response_bytes
        self._resolver = resolver or Resolver()
        self._adapter = Adapter(
            Connector(allowed_networks, self._resolver, proxy),
            make_tls_context(str(ca_bundle) if ca_bundle else certifi.where()),
            pool_size,
        )

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST a body and read the response.

        Args:
            url: as the webhook has it.
            headers: sent as they are; ours (Accept, Accept-Encoding, Connection, Content-Length) give way to them.
            body: sent as it is.

        Returns:
            The answer, also where none came: nothing that a receiver, a resolver or a URL does is raised.

        Raises:
            ValueError: a header name or value that HTTP cannot carry; whoever stores headers checks them.
        """
        return self._post(self._new_attempt(), url, headers, body)

    def begin(self, url: str, headers: Mapping[str, str], body: bytes) -> Exchange | None:
        """Begin to POST a body over a kept connection, without waiting; `Multiplexer` ends it.

        Args:
            url: as for `post`.
            headers: likewise.
            body: likewise.

        Returns:
            None where there is no kept connection, or the request is an unusual one: that is what `post` is for.
        """
        try:
            target = _parse_known(url)
            check_port(target.port, self._allowed_ports)
        except NoResponse:
            return None
        pool = self._adapter.find_pool(target)
        request = None if pool is None else make_request(target, headers, body)
        connection = None if pool is None or request is None else pool.take_idle()
        if pool is None or request is None or connection is None:
            return None
        attempt = self._new_attempt()
        attempt.target = target
        connection.enter(attempt)
        return Exchange(attempt, pool, connection, request, self._max_response_bytes)

    def resume(self, exchange: Exchange, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Wait for the end of an exchange that was begun.

        Args:
            exchange: what `begin` returned for the same three; it says that it needs a thread.
            url: as for `post`.
            headers: likewise.
            body: likewise.

        Returns:
            As `post` does.
        """
        return self._post(exchange.attempt, url, headers, body)

    def _new_attempt(self) -> Attempt:
        return Attempt(_NO_TARGET, self._connect_timeout_s, self._total_timeout_s)

    def _post(self, attempt: Attempt, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        token = current_attempt.set(attempt)
        try:
            attempt.target = parse_target(url)
            check_port(attempt.target.port, self._allowed_ports)
            response, text, cut = self._exchange(attempt, headers, body)
            status = response.status_code
            retry_after_s = read_retry_after(status, response.headers.get("Retry-After"), now())
            return Answer(status, text, None, cut, attempt.peer, attempt.timings(), retry_after_s)
        except NoResponse as error:
            return Answer(None, error.text, error.kind, False, attempt.peer, attempt.timings())
        finally:
            current_attempt.reset(token)

    def close(self) -> None:
        """Close all idle connections, and let go of idle threads."""
        self._adapter.close()
        self._resolver.close()

    def _exchange(self, attempt: Attempt, headers: Mapping[str, str], body: bytes) -> tuple[Response, str, bool]:
        request = _prepare(attempt.target.url, headers, body)
        try:
            response = self._send(request)
        except NoResponse as error:
            # The receiver closed a kept connection while we wrote to it, which every keep-alive server does some
            # time (RFC 9112, 9.3.1). That says nothing about the receiver, so it is not a failed attempt.
            is_stale = attempt.is_reused and not attempt.received_bytes
            if not is_stale or error.kind not in {ErrorKind.RESET, ErrorKind.HANG_UP}:
                raise
            attempt.start_over()
            response = self._send(request)
        with attempt.timing(Phase.READ):
            text, cut = self._read(response)
        return response, text, cut

    def _send(self, request: PreparedRequest) -> Response:
        try:
            # The connections keep the deadline themselves; this timeout is for whoever stands in for them.
            return self._adapter.send(request, stream=True, timeout=self._total_timeout_s)
        except requests.RequestException as error:
            raise _no_response(error, current_attempt.get()) from error

    def _read(self, response: Response) -> tuple[str, bool]:
        """Read the body up to the cap, and give the connection back or close it."""
        raw: urllib3.HTTPResponse = response.raw
        collector = BodyCollector(self._max_response_bytes, response.headers.get("Content-Encoding"))
        is_whole = False
        try:
            # One byte more than the cap, to know whether there is more. urllib3 gives the connection back to its
            # pool when it has read the end.
            while data := raw.read(min(_READ_BYTES, self._max_response_bytes + 1), decode_content=False):
                if not collector.feed(data):
                    break
            else:
                is_whole = True
        except urllib3.exceptions.HTTPError as error:
            # Short of its Content-Length: a response that did not arrive whole is no response.
            raise NoResponse(ErrorKind.ABORTED, "aborted") from error
        finally:
            if not is_whole:
                raw.close()
                raw.release_conn()
        kept = collector.body()
        return to_text(kept, response.headers.get("Content-Type"), is_cut=collector.is_cut), collector.is_cut


def _prepare(url: str, headers: Mapping[str, str], body: bytes) -> PreparedRequest:
    request = PreparedRequest()
    request.method = "POST"
    request.url = url
    request.headers = CaseInsensitiveDict(
        {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "keep-alive", "Content-Length": str(len(body))}
    )
    request.headers.update(headers)
    request.body = body
    return request


#: What requests raises by itself. Over our connections hardly anything can: errors become `NoResponse` where they
#: happen. The rest comes from whoever stands in for the adapter in tests. First match wins.
_KINDS: tuple[tuple[type[requests.RequestException], ErrorKind], ...] = (
    (requests.exceptions.SSLError, ErrorKind.TLS),
    (requests.exceptions.ConnectTimeout, ErrorKind.CONNECT_TIMEOUT),
    (requests.exceptions.Timeout, ErrorKind.TIMEOUT),
    (requests.exceptions.ConnectionError, ErrorKind.HANG_UP),
    (requests.exceptions.InvalidURL, ErrorKind.BAD_URL),
    (requests.exceptions.RequestException, ErrorKind.BAD_RESPONSE),
)


def _no_response(error: requests.RequestException, attempt: Attempt) -> NoResponse:
    kind = next(kind for cls, kind in _KINDS if isinstance(error, cls))
    match kind:
        case ErrorKind.TIMEOUT:
            return attempt.timed_out()
        case ErrorKind.HANG_UP:
            return hang_up()
        case ErrorKind.TLS:
            return NoResponse(kind, "TLS failed")
        case ErrorKind.CONNECT_TIMEOUT:
            return NoResponse(kind, f"connect ETIMEDOUT {attempt.target.shown_host}:{attempt.target.port}")
        case ErrorKind.BAD_URL:
            return NoResponse(kind, "bad URL: it is malformed")
        case _:
            return bad_response("Invalid response")
