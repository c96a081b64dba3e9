"""Opens connections: look-up, address policy, TCP, proxy, TLS.

Converts foreign errors to `NoResponse` by type, where they occur.
"""

import logging
import select
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

from webhooks.config import Proxy
from webhooks.errors import ErrorKind, NoResponse
from webhooks.rules.addresses import Network, Verdict, classify
from webhooks.sender.certificates import ClientContext, check_name
from webhooks.sender.deadline import Attempt, Phase, connect_failed
from webhooks.sender.proxy import open_tunnel, proxy_failed, unreachable
from webhooks.sender.resolver import Endpoint, Resolver

logger = logging.getLogger(__name__)

#: Addresses tried per host. With the default connect timeout, each gets two of the longest round trips on Earth.
MAX_ADDRESSES = 8


class Connector:
    """Opens TCP connections to allowed addresses."""

    def __init__(self, allowed_networks: tuple[Network, ...], resolver: Resolver, proxy: Proxy | None) -> None:
        self._allowed_networks = allowed_networks
        self._resolver = resolver
        self._proxy = proxy

    def open(self, attempt: Attempt) -> socket.socket:
        """Resolve the attempt's host once, check every address, and connect to the first that works.

        Raises:
            NoResponse: the look-up failed, an address is not allowed, or none could be connected to.
        """
        target = attempt.target
        if ":" in target.host:
            # Check before the resolver refuses a zone id of an unknown interface.
            self._judge(attempt, target.host)
        with attempt.timing(Phase.LOOKUP):
            endpoints = self._resolver.resolve(target.lookup_host, target.port, attempt.remaining_s())
        for endpoint in endpoints:
            verdict = self._judge(attempt, endpoint.ip)
            # A public address of this machine itself bypasses the firewall.
            if verdict is Verdict.PUBLIC and self._proxy is None and _is_own(endpoint):
                raise _not_allowed(attempt, endpoint.ip)
        connect = _connect if self._proxy is None else self._connect_through_proxy
        with attempt.timing(Phase.CONNECT):
            give_up_at = min(time.monotonic() + attempt.connect_timeout_s, attempt.deadline)
            return _first_that_works(
                endpoints, give_up_at, lambda endpoint, share_s: connect(endpoint, attempt, share_s)
            )

    def _judge(self, attempt: Attempt, ip: str) -> Verdict:
        verdict = classify(ip, self._allowed_networks)
        if not verdict.is_allowed:
            raise _not_allowed(attempt, ip)
        return verdict

    def _connect_through_proxy(self, endpoint: Endpoint, attempt: Attempt, share_s: float) -> socket.socket:
        proxy = cast(Proxy, self._proxy)
        address = _ip_port(endpoint)
        # A time-out here is the proxy's fault, even at the total deadline.
        give_up_at = min(time.monotonic() + share_s, attempt.deadline)
        try:
            proxies = self._resolver.resolve(proxy.host, proxy.port, max(0.0, give_up_at - time.monotonic()))
        except NoResponse as error:
            raise proxy_failed("proxy cannot be reached: its name was not found") from error
        # Not checked: the operator chose the proxy.
        sock = _first_that_works(proxies, give_up_at, _connect_to_proxy)
        try:
            open_tunnel(sock, address, proxy, give_up_at)
        except BaseException:
            sock.close()
            raise
        attempt.peer = address
        return sock


def _first_that_works(
    endpoints: tuple[Endpoint, ...], give_up_at: float, connect: Callable[[Endpoint, float], socket.socket]
) -> socket.socket:
    """Connect to one of at most `MAX_ADDRESSES` addresses, in order.

    Args:
        endpoints: at least one.
        give_up_at: on the monotonic clock.
        connect: gets an endpoint and its time-out in seconds.

    Raises:
        NoResponse: the last failure that concerns the receiver; a missing route concerns only us.
    """
    endpoints = endpoints[:MAX_ADDRESSES]
    failure = None
    for tried, endpoint in enumerate(endpoints):
        # Each address gets an equal share of the remaining time.
        share_s = max(0.001, (give_up_at - time.monotonic()) / (len(endpoints) - tried))
        try:
            return connect(endpoint, share_s)
        except NoResponse as error:
            if error.kind is ErrorKind.TIMEOUT:
                raise
            if failure is None or error.kind is not ErrorKind.CONNECT_FAILED:
                failure = error
    raise failure or NoResponse(ErrorKind.CONNECT_FAILED, "connect EADDRNOTAVAIL")


def _not_allowed(attempt: Attempt, ip: str) -> NoResponse:
    target = attempt.target
    logger.info(
        "no request to %s:%d: WEBHOOKS_ALLOWED_NETWORKS does not allow its address %s", target.host, target.port, ip
    )
    # Without the address: the webhook's owner sees this text.
    return NoResponse(ErrorKind.NOT_ALLOWED, f"address not allowed: {target.shown_host}:{target.port}")


def _is_own(endpoint: Endpoint) -> bool:
    """Return whether an address belongs to this machine."""
    try:
        with socket.socket(endpoint.family, socket.SOCK_DGRAM) as probe:
            # On UDP this sends nothing; it selects the source address.
            probe.connect(endpoint.sockaddr)
            return probe.getsockname()[0] == endpoint.sockaddr[0]
    except OSError:
        return False  # no route: connecting will fail


def _connect(endpoint: Endpoint, attempt: Attempt, share_s: float) -> socket.socket:
    remaining_s = attempt.remaining_s()
    address = _ip_port(endpoint)
    try:
        sock = _open_socket(endpoint, min(share_s, remaining_s))
    except OSError as error:
        if isinstance(error, TimeoutError) and remaining_s <= share_s:
            raise attempt.timed_out() from error
        raise connect_failed(error, address) from error
    attempt.peer = address
    return sock


def _connect_to_proxy(endpoint: Endpoint, share_s: float) -> socket.socket:
    try:
        return _open_socket(endpoint, share_s)
    except OSError as error:
        raise unreachable(error) from error


def _open_socket(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as urllib3 does
        sock.settimeout(timeout_s)
        sock.connect(endpoint.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _ip_port(endpoint: Endpoint) -> str:
    ip = ip_address(endpoint.ip)
    return f"{ip}:{endpoint.sockaddr[1]}" if ip.version == 4 else f"[{ip}]:{endpoint.sockaddr[1]}"


class Connection:
    """One connection to an endpoint; writing and reading do not block."""

    __slots__ = ("_awaited", "_poll", "_selector", "endpoint", "idle_since", "lock", "opened_at", "peer", "sock")

    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.endpoint = attempt.target.endpoint
        self.peer = attempt.peer
        #: Both on the monotonic clock.
        self.opened_at = self.idle_since = time.monotonic()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        #: Held by the thread that writes to it or reads from it.
        self.lock = threading.RLock()
        #: What waits for its events, and for which; None before `watch`.
        self._selector: selectors.BaseSelector | None = None
        self._awaited = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has arrived. An idle connection is then open and holds no unrequested data."""
        return not self._poll.poll(0)

    def watch(self, selector: selectors.BaseSelector, events: int) -> None:
        """Have a selector, always the same, wait for events until the connection is closed."""
        if events == self._awaited:
            return
        if self._selector is None:
            selector.register(self.sock, events, self)
        else:
            selector.modify(self.sock, events, self)
        self._selector, self._awaited = selector, events

    def close(self) -> None:
        """Close the socket."""
        if self._selector is not None:
            self._selector.unregister(self.sock)
            self._selector = None
        self.sock.close()


def open_connection(attempt: Attempt, connector: Connector, tls_context: ClientContext) -> Connection:
    """Open a connection for an attempt, noting timings and peer; raise NoResponse if it fails."""
    sock = connector.open(attempt)
    if attempt.target.scheme == "https":
        sock = _start_tls(sock, attempt, tls_context)
    return Connection(sock, attempt)


def _start_tls(tcp: socket.socket, attempt: Attempt, tls_context: ClientContext) -> ssl.SSLSocket:
    name = attempt.target.tls_name
    context = tls_context.for_host(name)
    sock = tcp
    try:
        with attempt.timing(Phase.TLS):
            sock = tls = context.wrap_socket(tcp, server_hostname=name, do_handshake_on_connect=False)
            tls.settimeout(attempt.remaining_s())
            tls.do_handshake()
            if not context.check_hostname:
                check_name(cast("dict[str, Any]", tls.getpeercert()), name)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise attempt.io_failed("read", error) from error
        raise
    return tls
