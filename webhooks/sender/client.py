"""`Sender`: HTTP requests over kept and new connections.

It follows no redirect, keeps no cookie, and reads no proxy or ``.netrc`` from the environment.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import certifi
import requests

from webhooks.config import Proxy
from webhooks.errors import ErrorKind, NoResponse, TooLate, trace
from webhooks.models.url import RequestUrl
from webhooks.models.wire import now
from webhooks.rules.addresses import Network
from webhooks.rules.ports import check_port
from webhooks.rules.retry_after import read_retry_after
from webhooks.sender.adapter import Adapter
from webhooks.sender.body import BodyCollector, to_text
from webhooks.sender.certificates import ClientContext
from webhooks.sender.connection import Connector
from webhooks.sender.deadline import Answer, Attempt, hang_up
from webhooks.sender.idle import IdleConnections
from webhooks.sender.loop import Loop
from webhooks.sender.nonblocking import InFlightRequest
from webhooks.sender.request import OutgoingPost, OutgoingRequest, find_url, prepare
from webhooks.sender.resolver import Resolver
from webhooks.sender.response import bad_response
from webhooks.transport.holder import uptime

logger = logging.getLogger(__name__)

#: Read size for replacements of our connections in tests.
_READ_BYTES = 16 * 1024

_NO_TARGET = RequestUrl("", "", 0, "", "")

#: Called exactly once per request, in one of the sender's threads, or in the caller's before `submit` returns. Must not
#: block.
OnAnswer = Callable[[Answer], None]


class Sender:
    """Sends requests to allowed addresses over kept connections. One per process; thread-safe.

    Requests over kept connections are written by the caller's thread and answered in one thread, many at a time without
    blocking. A pool of blocking threads sends over new connections.
    """

    def __init__(
        self,
        *,
        allowed_networks: tuple[Network, ...],
        connect_timeout_s: float,
        total_timeout_s: float,
        max_response_bytes: int,
        ca_bundle: Path | None,
        pool_size: int,
        concurrency: int | None = None,
        allowed_ports: frozenset[int] | None = None,
        proxy: Proxy | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """Read the certificate authorities. Opens no connection and starts no thread.

        The connect timeout covers TCP alone; the total timeout runs from look-up to the last byte of the body. A
        request beyond `concurrency` (None: `pool_size`) waits, and its deadline has not begun. `pool_size` limits idle
        connections per endpoint. `max_response_bytes` is counted after decompression. None also means: certifi's
        authorities, the ports of `rules.ports`, no proxy, the system's resolver.
        """
        self._allowed_ports = allowed_ports
        self._connect_timeout_s = connect_timeout_s
        self._total_timeout_s = total_timeout_s
        self._max_response_bytes = max_response_bytes
        self._concurrency = pool_size if concurrency is None else concurrency
        self._resolver = resolver or Resolver()
        self._idle = IdleConnections(pool_size)
        self._adapter = Adapter(
            Connector(allowed_networks, self._resolver, proxy),
            ClientContext.make(str(ca_bundle) if ca_bundle else certifi.where()),
            self._idle,
        )
        self._lock = threading.Lock()
        self._is_closed = False
        self._loop: Loop[_Job] | None = None
        self._threads = ThreadPoolExecutor(self._concurrency, "sender")

    def submit(self, request: OutgoingRequest, on_answer: OnAnswer) -> None:
        """Send a request without waiting for its answer.

        Args:
            request: what to send.
            on_answer: gets the answer, also for errors of receiver, resolver and URL, and for our own defects.

        Raises:
            RuntimeError: the sender is closed.
        """
        self.submit_many([(request, on_answer)])

    def submit_many(self, requests: Iterable[tuple[OutgoingRequest, OnAnswer]]) -> None:
        """Like `submit`; requests begin in the given order."""
        jobs = [_Job(request, on_answer) for request, on_answer in requests]
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the sender is closed")
            if self._loop is None:
                self._loop = Loop(
                    begin=self._begin,
                    advance=self._advance,
                    expire=self._expire,
                    fail=self._fail,
                    idle=self._idle,
                    most=self._concurrency,
                )
                self._loop.start()
            loop = self._loop
            jobs = loop.admit(jobs)
        for job in jobs:
            loop.begin(job)

    def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        max_connection_age_s: float | None = None,
        begin_by: float | None = None,
    ) -> Answer:
        """Send a request and wait for its answer; not from within `on_answer`. See `OutgoingRequest`.

        Raises:
            TooLate: `begin_by` had passed.
            ValueError: HTTP cannot carry a header's name or value.
        """
        future: Future[Answer] = Future()
        self.submit(OutgoingRequest(url, headers, body, max_connection_age_s, begin_by), future.set_result)
        answer = future.result()
        if answer.defect is not None:
            raise answer.defect
        return answer

    def close(self) -> None:
        """Wait until all requests are answered; close the connections and end the threads."""
        with self._lock:
            loop, self._is_closed = None if self._is_closed else self._loop, True
        self._idle.close()  # while the loop can still forget them
        if loop is not None:
            loop.close()
        self._threads.shutdown()
        self._resolver.close()

    # ── In the caller's thread, or the loop's ───────────────────────────────────────────────────────────────────────
    def _begin(self, job: "_Job") -> InFlightRequest | None:
        """Begin a job over a kept connection, or hand it to a thread."""
        job.attempt = attempt = Attempt(_NO_TARGET, self._connect_timeout_s, self._total_timeout_s)
        asked = job.request
        try:
            attempt.target = target = find_url(asked.url)
            check_port(target.port, self._allowed_ports)
        except NoResponse as error:
            self._answer(job, _failed(attempt, error))
            return None
        job.post = prepare(target, asked.headers, asked.body, attempt)
        _check_time(asked)  # last, as this process may be suspended at any moment
        job.in_flight = self._adapter.begin(job.post, asked.max_connection_age_s)
        if job.in_flight is None:
            self._threads.submit(self._post, job, job.post)
        return job.in_flight

    def _finish(self, job: "_Job", request: InFlightRequest, *, is_read: bool) -> None:
        """Keep or close the connection of a job's request."""
        job.in_flight = None
        if self._loop is not None:
            # First: another thread may take the connection at once.
            self._loop.forget(request)
        self._adapter.finish(request, is_read=is_read)

    def _advance(self, job: "_Job") -> bool:
        """Continue a job over a kept connection; return whether it is over, or left to a thread."""
        request, collector = job.in_flight, job.collector
        if request is None:
            return True
        try:
            data = request.advance()
            head = request.reader.head
            if head is None:
                return False
            if collector is None:
                job.collector = collector = self._new_collector(head.headers)
            wants_more = collector.feed(data)
            if wants_more and not request.reader.is_over:
                return False
        except NoResponse as error:
            self._end_without_response(job, request, error)
            return True
        self._finish(job, request, is_read=wants_more)
        if head.status == HTTPStatus.REQUEST_TIMEOUT:
            # The connection was idle for too long (RFC 9110, 15.5.9).
            self._try_again(job)
        else:
            self._answer(job, _answered(request.attempt, head.status, head.headers, collector))
        return True

    def _expire(self, job: "_Job") -> None:
        if job.in_flight is not None:
            self._end_without_response(job, job.in_flight, job.in_flight.attempt.timed_out())

    def _end_without_response(self, job: "_Job", request: InFlightRequest, error: NoResponse) -> None:
        attempt = request.attempt
        self._finish(job, request, is_read=False)
        is_silent = not attempt.received_bytes
        if is_silent and error.kind in (ErrorKind.TIMEOUT, ErrorKind.RESET):
            # The network may have dropped the other connections too.
            self._idle.close_silent(request.connection.endpoint, attempt.started)
        if is_silent and error.kind in (ErrorKind.RESET, ErrorKind.HANG_UP):
            # The server closed the idle connection while we wrote to it (RFC 9112, 9.3.1). That is no failed attempt.
            self._try_again(job)
        else:
            self._answer(job, _failed(attempt, error))

    def _try_again(self, job: "_Job") -> None:
        """Have a thread repeat a request over a new connection, within the same attempt."""
        if job.post is not None:
            job.post.attempt.start_over()
            self._threads.submit(self._post, job, job.post, is_begun=True)

    def _fail(self, job: "_Job", error: Exception) -> None:
        """End a job that met a defect of ours."""
        if job.in_flight is not None:
            self._finish(job, job.in_flight, is_read=False)
        attempt = job.attempt or Attempt(_NO_TARGET, self._connect_timeout_s, self._total_timeout_s)
        text = f"internal error: {type(error).__name__}"
        answer = Answer(None, text, ErrorKind.INTERNAL, False, attempt.peer, attempt.timings(), defect=error)
        self._answer(job, answer)

    # ── In a blocking thread ────────────────────────────────────────────────────────────────────────────────────────
    def _post(self, job: "_Job", post: OutgoingPost, *, is_begun: bool = False) -> None:
        """Send a request over a new connection, and wait for its answer. `is_begun`: it was sent over a kept one."""
        try:
            if not is_begun:
                _check_time(job.request)
            answer = self._wait_for_answer(post)
        except NoResponse as error:
            answer = _failed(post.attempt, error)
        except Exception as error:  # noqa: BLE001 - the caller logs our defects
            self._fail(job, error)
            return
        self._answer(job, answer)

    def _wait_for_answer(self, post: OutgoingPost) -> Answer:
        try:
            # Our connections have their own deadline; this timeout is for their replacements in tests.
            response = self._adapter.send(post, stream=True, timeout=self._total_timeout_s)
        except requests.RequestException as error:
            raise _no_response(error, post.attempt) from error
        try:
            collector = self._new_collector(response.headers)
            while (data := response.raw.read(_READ_BYTES, decode_content=False)) and collector.feed(data):
                pass
        finally:
            response.close()
        return _answered(post.attempt, response.status_code, response.headers, collector)

    # ── In either thread ────────────────────────────────────────────────────────────────────────────────────────────
    def _new_collector(self, headers: Mapping[str, str]) -> BodyCollector:
        return BodyCollector(self._max_response_bytes, headers.get("content-encoding"))

    def _answer(self, job: "_Job", answer: Answer) -> None:
        on_answer, job.on_answer = job.on_answer, None
        if on_answer is None:
            return
        if self._loop is not None:
            self._loop.end_one()
        try:
            on_answer(answer)
        except Exception as error:  # noqa: BLE001 - the sender's threads go on
            logger.error("the handler of an answer failed: %s", trace(error))  # noqa: TRY400


@dataclass(slots=True, eq=False)
class _Job:
    """A request and its progress."""

    request: OutgoingRequest
    #: None after its call.
    on_answer: OnAnswer | None
    #: None before `_begin`, like the next two.
    attempt: Attempt | None = None
    post: OutgoingPost | None = None
    #: None over a new connection as well, and once it is finished.
    in_flight: InFlightRequest | None = None
    collector: BodyCollector | None = None


def _check_time(request: OutgoingRequest) -> None:
    """Raise TooLate if a request may no longer be begun."""
    if request.begin_by is not None and uptime() > request.begin_by:
        raise TooLate("its time had passed before the request was begun")


def _answered(attempt: Attempt, status: int, headers: Mapping[str, str], collector: BodyCollector) -> Answer:
    text = to_text(collector.body(), headers.get("content-type"), is_cut=collector.is_cut)
    asked = headers.get("retry-after")
    retry_after_s = None if asked is None else read_retry_after(status, asked, now())
    return Answer(status, text, None, collector.is_cut, attempt.peer, attempt.timings(), retry_after_s)


def _failed(attempt: Attempt, error: NoResponse) -> Answer:
    return Answer(None, error.text, error.kind, False, attempt.peer, attempt.timings())


#: requests' own errors, from replacements of the adapter in tests: ours raises `NoResponse`. First match wins.
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
    address = f"{attempt.target.shown_host}:{attempt.target.port}"
    texts = {
        ErrorKind.TIMEOUT: attempt.timed_out().text,
        ErrorKind.HANG_UP: hang_up().text,
        ErrorKind.TLS: "TLS failed",
        ErrorKind.CONNECT_TIMEOUT: f"connect ETIMEDOUT {address}",
        ErrorKind.BAD_URL: "bad URL: it is malformed",
        ErrorKind.BAD_RESPONSE: bad_response("Invalid response").text,
    }
    return NoResponse(kind, texts[kind])
