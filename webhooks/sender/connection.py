"""Sockets that keep an attempt's deadline, connections made of them, and the adapter that hands them to requests.

Owns how a connection comes about (look-up, guard, TCP, proxy, TLS) and how foreign errors become `NoResponse`. That is
no OSError and no urllib3 error, so it passes through urllib3 and requests untouched: each error is mapped by its type
where it happens. Called by `client`.

Overridden, and what of them is relied on:

- urllib3 2.8: ``HTTPConnection.connect``, ``request``, ``send``, ``getresponse``, ``is_connected``,
  ``response_class``; ``HTTPConnectionPool.ConnectionCls``, ``pool``, ``_get_conn``, ``_put_conn``;
  ``PoolManager.pool_classes_by_scheme``, ``connection_from_pool_key``, ``pools``.
- requests 2.34: ``HTTPAdapter.init_poolmanager``, ``build_connection_pool_key_attributes``, ``request_url``,
  ``cert_verify``, ``build_response``, ``close``.
- Python: ``socket.socket``; ``ssl.SSLSocket`` by way of ``SSLContext.sslsocket_class``.
"""

import errno
import http.client
import logging
import os
import queue
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, cast

import urllib3
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from webhooks.config import Proxy
from webhooks.errors import ErrorKind, NoResponse
from webhooks.guard import Network, Verdict, classify
from webhooks.sender.attempt import Attempt, Phase, connect_failed, current_attempt, hang_up, tls_failed
from webhooks.sender.certificates import ClientContext, check_name
from webhooks.sender.proxy import open_tunnel, proxy_failed, unreachable
from webhooks.sender.resolver import Endpoint, Resolver
from webhooks.sender.response import StrictResponse, bad_response
from webhooks.target import Target

logger = logging.getLogger(__name__)

#: Addresses of one host that are tried: a name server can answer with hundreds. With the default connect timeout each
#: gets twice the round trip to the other side of the world.
MAX_ADDRESSES = 8

#: Endpoints whose idle connections are kept; beyond that the one that was used least recently is closed.
MAX_ENDPOINTS = 256

#: Seconds after which a connection is not used again, so that a receiver that moved is followed even when its old
#: address still answers.
MAX_CONNECTION_AGE_S = 300.0


class _Socket(socket.socket):
    """A TCP socket, each operation of which gets what is left of its attempt's deadline."""

    #: Set anew for each request on a connection.
    attempt: Attempt
    is_dry = False
    has_surplus = False
    #: Was read already, and is to be read again before anything else.
    pushed_back = b""

    def surplus(self) -> int:
        """Return 0: nothing waits between the kernel, which the pool asks, and Python's buffer."""
        return 0

    def push(self, data: memoryview) -> int:
        """Write what can be written without waiting; return how much that was."""
        return super().send(data)

    def pull(self, most: int) -> bytes:
        """Read what can be read without waiting; ``b""``: the other end has closed."""
        return super().recv(most)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self.pushed_back:
            return _read_again(self, buffer)
        if self.is_dry:
            raise _nothing_to_read()
        self.attempt.limit(self)
        try:
            count = super().recv_into(buffer, nbytes, flags)
        except OSError as error:
            raise self.attempt.read_failed(error) from error
        self.attempt.received_bytes += count
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.attempt.limit(self)
        try:
            super().sendall(data, flags)
        except OSError as error:
            raise _write_failed(self.attempt, error) from error


class _TLSSocket(ssl.SSLSocket):
    """The same over TLS. ``recv_into`` and ``sendall`` of its base come down to these."""

    attempt: Attempt
    is_dry = False
    has_surplus = False
    pushed_back = b""

    def surplus(self) -> int:
        """Return the bytes that OpenSSL has decrypted, which the kernel does not tell the pool of."""
        return self.pending()

    def push(self, data: memoryview) -> int:
        """Write what can be written without waiting; return how much that was."""
        return super().send(data)

    def pull(self, most: int) -> bytes:
        """Read what can be read without waiting; ``b""``: the other end has closed."""
        return cast("bytes", super().read(most))

    def do_handshake(self, block: bool = False) -> None:
        self.attempt.limit(self)
        super().do_handshake(block)
        if not self.context.check_hostname:
            check_name(cast("dict[str, Any]", self.getpeercert()), self.server_hostname or "")

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's name
        if self.pushed_back and buffer is not None:
            return _read_again(self, buffer)
        if self.is_dry:
            raise _nothing_to_read()
        self.attempt.limit(self)
        try:
            data = super().read(len, buffer)
        except OSError as error:  # ssl.SSLError is one
            raise self.attempt.read_failed(error) from error
        self.attempt.received_bytes += data if isinstance(data, int) else data.__len__()
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        self.attempt.limit(self)
        try:
            return super().send(data, flags)
        except OSError as error:
            raise _write_failed(self.attempt, error) from error


def _read_again(sock: "_Socket | _TLSSocket", buffer: Any) -> int:
    count = min(len(buffer), len(sock.pushed_back))
    buffer[:count] = sock.pushed_back[:count]
    sock.pushed_back = sock.pushed_back[count:]
    return count


def _nothing_to_read() -> BlockingIOError:
    # What a socket without a timeout says; Python's buffer makes an empty answer of it.
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _write_failed(attempt: Attempt, error: OSError) -> Exception:
    """Return what to raise when writing failed.

    A receiver may answer (413, say) and close without reading all of our body. urllib3 goes on to read the response
    after a ``BrokenPipeError``, so every sign of a closed connection is raised as that, and noted in case none comes.
    """
    failure = attempt.write_failed(error)
    if failure.kind is not ErrorKind.RESET:
        return failure
    attempt.write_error = failure
    return BrokenPipeError(*error.args)


class Connector:
    """Makes guarded TCP connections: what all connections of one Sender share."""

    def __init__(self, allowed_networks: tuple[Network, ...], resolver: Resolver, proxy: Proxy | None) -> None:
        self._allowed_networks = allowed_networks
        self._resolver = resolver
        self._proxy = proxy

    def open(self, attempt: Attempt) -> _Socket:
        """Resolve the attempt's host once, judge every answer, and connect to the first that works.

        Returns:
            A socket whose other end is the judged address, be it at the end of a tunnel.

        Raises:
            NoResponse: look-up failed, an address is not allowed, or none could be connected to.
        """
        target = attempt.target
        if ":" in target.host:
            # A zone id may name an interface that this machine does not have: judge before the resolver sees it.
            self._judge(attempt, target.host)
        with attempt.timing(Phase.LOOKUP):
            endpoints = self._resolver.resolve(target.lookup_host, target.port, attempt.remaining_s())
        for endpoint in endpoints:
            verdict = self._judge(attempt, endpoint.ip)
            # A public address may be this machine's own: from inside, no firewall stands before what listens on it.
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

    def _connect_through_proxy(self, endpoint: Endpoint, attempt: Attempt, share_s: float) -> _Socket:
        proxy = cast(Proxy, self._proxy)
        address = _ip_port(endpoint)
        # What is late here is the proxy, also when the total deadline comes first: never the receiver's fault.
        give_up_at = min(time.monotonic() + share_s, attempt.deadline)
        try:
            proxies = self._resolver.resolve(proxy.host, proxy.port, max(0.0, give_up_at - time.monotonic()))
        except NoResponse as error:
            raise proxy_failed("proxy cannot be reached: its name was not found") from error
        # Not judged: its address is the operator's own.
        sock = _first_that_works(proxies, give_up_at, _connect_to_proxy)
        try:
            open_tunnel(sock, address, proxy, give_up_at)
        except BaseException:
            sock.close()
            raise
        sock.attempt = attempt
        attempt.peer = address
        return sock


def _first_that_works(
    endpoints: tuple[Endpoint, ...], give_up_at: float, connect: Callable[[Endpoint, float], _Socket]
) -> _Socket:
    """Connect to one address after another, at most `MAX_ADDRESSES`.

    Args:
        endpoints: at least one, in the order in which to try them.
        give_up_at: on the monotonic clock.
        connect: gets an endpoint, and the seconds that it may take.

    Raises:
        NoResponse: the last failure that tells of the receiver: to have no way to an address tells of us alone.
    """
    endpoints = endpoints[:MAX_ADDRESSES]
    failure = None
    for tried, endpoint in enumerate(endpoints):
        # Each address gets an equal share of what is left; what one does not use goes to the others.
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
    # Never the address it resolved to: the text is shown to whoever typed the URL.
    return NoResponse(ErrorKind.NOT_ALLOWED, f"address not allowed: {target.shown_host}:{target.port}")


def _is_own(endpoint: Endpoint) -> bool:
    """Return whether an address is one of this machine's own."""
    try:
        with socket.socket(endpoint.family, socket.SOCK_DGRAM) as probe:
            # UDP: this sends nothing, but asks the system's routes which address of ours it would send from.
            probe.connect(endpoint.sockaddr)
            return probe.getsockname()[0] == endpoint.sockaddr[0]
    except OSError:
        return False  # no way there: connecting will say so


def _connect(endpoint: Endpoint, attempt: Attempt, share_s: float) -> _Socket:
    remaining_s = attempt.remaining_s()
    address = _ip_port(endpoint)
    try:
        sock = _open_socket(endpoint, min(share_s, remaining_s))
    except OSError as error:
        if isinstance(error, TimeoutError) and remaining_s <= share_s:
            raise attempt.timed_out() from error
        raise connect_failed(error, address) from error
    sock.attempt = attempt
    attempt.peer = address
    return sock


def _connect_to_proxy(endpoint: Endpoint, share_s: float) -> _Socket:
    try:
        return _open_socket(endpoint, share_s)
    except OSError as error:
        raise unreachable(error) from error


def _open_socket(endpoint: Endpoint, timeout_s: float) -> _Socket:
    sock = _Socket(endpoint.family, socket.SOCK_STREAM)
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


# urllib3 makes connections from classes and keyword arguments of its own, so these get their connector as a class
# attribute of a subclass that `Adapter` makes for itself.
class _Connection(HTTPConnection):
    connector: Connector
    response_class = StrictResponse

    _opened_at = 0.0
    _peer: str | None = None
    #: Parts of a request not yet written; ``None`` when there is none under construction.
    _held: list[bytes] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the pool may hand it out again: open, and nothing on it that nobody asked for."""
        return super().is_connected and not cast(_Socket | _TLSSocket, self.sock).has_surplus

    @property
    def is_old(self) -> bool:
        """Whether it is not to be used any more."""
        return time.monotonic() - self._opened_at > MAX_CONNECTION_AGE_S

    def enter(self, attempt: Attempt) -> None:
        """Have it, as it stands, serve an attempt."""
        attempt.is_reused = True
        attempt.peer = self._peer
        cast(_Socket, self.sock).attempt = attempt

    def connect(self) -> None:
        attempt = current_attempt.get()
        self._open(attempt)

    def _open(self, attempt: Attempt) -> None:
        self.sock = self.connector.open(attempt)
        self._opened_at = time.monotonic()
        self._peer = attempt.peer

    def request(
        self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, **kw: Any
    ) -> None:
        attempt = current_attempt.get()
        if self.sock is not None and self._peer is not None and attempt.peer is None:
            # It comes out of the pool: `connect` has not run in this attempt.
            if attempt.wants_fresh or self.is_old:
                self.close()
            else:
                self.enter(attempt)
        if self.sock is None:
            self.connect()
        self._held = held = []
        try:
            super().request(method, url, body=body, headers=headers, **kw)
        finally:
            self._held = None
        if attempt.begun is not None:
            cast(_Socket, self.sock).pushed_back = attempt.begun.received
            if attempt.begun.unsent:
                super().send(attempt.begun.unsent)
            return
        with attempt.timing(Phase.SEND):
            super().send(b"".join(held))

    def send(self, data: Any) -> None:
        # urllib3 writes head and body one by one. Written at once they are one packet, one TLS record and one system
        # call, and system calls are the dearest part of an attempt on a kept connection.
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)

    def getresponse(self) -> Any:
        attempt = current_attempt.get()
        try:
            with attempt.timing(Phase.WAIT):
                return super().getresponse()
        except http.client.RemoteDisconnected as error:
            raise attempt.write_error or hang_up() from error
        except NoResponse as error:
            if error.kind in {ErrorKind.RESET, ErrorKind.HANG_UP} and attempt.write_error is not None:
                raise attempt.write_error from error
            raise
        except http.client.HTTPException as error:
            # Of http.client's own checks only the one on the number of headers can still speak up.
            raise bad_response("Header overflow") from error


class _TLSConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        attempt = current_attempt.get()
        self._open(attempt)
        # The URL's, whatever address was judged.
        name = attempt.target.tls_name
        context = cast(ClientContext, self.ssl_context).for_host(name)
        tcp = cast(_Socket, self.sock)
        try:
            with attempt.timing(Phase.TLS):
                # The handshake is a call of its own, because it needs the attempt, which a new socket does not have.
                tls = cast(_TLSSocket, context.wrap_socket(tcp, server_hostname=name, do_handshake_on_connect=False))
                self.sock = tls
                tls.attempt = attempt
                tls.do_handshake()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise hang_up() from error
        except ssl.SSLError as error:
            raise tls_failed(error) from error
        except OSError as error:
            raise attempt.read_failed(error) from error
        self.is_verified = True  # the context requires it; urllib3 warns otherwise


class _Pool(HTTPConnectionPool):
    def _get_conn(self, timeout: float | None = None) -> Any:
        attempt = current_attempt.get()
        # Only where it goes on: after a stale connection it starts over.
        return super()._get_conn(timeout) if attempt.begun is None else attempt.begun.connection

    def take_idle(self) -> _Connection | None:
        """Take a kept connection that can be used; None where there is none."""
        try:
            while (kept := cast("_Connection | None", cast("Any", self.pool).get(block=False))) is not None:
                if kept.is_connected and not kept.is_old:
                    return kept
                kept.close()
        except (queue.Empty, AttributeError):  # nothing is kept, or the pool was closed
            pass
        return None

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        self._put_conn(cast("Any", connection))


class _TLSPool(_Pool, HTTPSConnectionPool):
    pass


class _PoolManager(urllib3.PoolManager):
    """Finds a pool again without comparing all that urllib3 can tell pools apart by."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keys: dict[tuple[str, str, int], Any] = {}

    def connection_from_pool_key(self, pool_key: Any, request_context: dict[str, Any]) -> HTTPConnectionPool:
        if len(self._keys) >= 4 * MAX_ENDPOINTS:
            self._keys.clear()
        self._keys[request_context["scheme"], request_context["host"], request_context["port"]] = pool_key
        return super().connection_from_pool_key(pool_key, request_context)

    def find_pool(self, scheme: str, host: str, port: int) -> _Pool | None:
        """Return the pool of an endpoint, if there is one."""
        key = self._keys.get((scheme, host, port))
        try:
            return None if key is None else cast("_Pool", self.pools[key])
        except KeyError:  # closed in favour of others
            return None


class Adapter(HTTPAdapter):
    """requests' adapter over the connections above.

    ``send`` is requests' own, so that the ``responses`` library can stand in for it.
    """

    def __init__(self, connector: Connector, tls_context: ssl.SSLContext, pool_size: int) -> None:
        """Make the pools.

        Args:
            connector: makes the TCP connections.
            tls_context: the only one, with its authorities loaded; from `make_tls_context`.
            pool_size: idle connections kept per endpoint.
        """
        self._connector = connector
        self._tls_context = tls_context
        super().__init__(pool_connections=MAX_ENDPOINTS, pool_maxsize=pool_size, pool_block=False)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        """Make pools of guarded connections; requests calls this once."""
        shared = {"connector": self._connector}
        plain = type("GuardedConnection", (_Connection,), shared)
        secure = type("GuardedTLSConnection", (_TLSConnection,), shared)
        self.poolmanager = self._pools = _PoolManager(
            num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._tls_context, **pool_kwargs
        )
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("GuardedPool", (_Pool,), {"ConnectionCls": plain}),
            "https": type("GuardedTLSPool", (_TLSPool,), {"ConnectionCls": secure}),
        }

    def find_pool(self, target: Target) -> _Pool | None:
        """Return what keeps the connections to an endpoint, if there ever was one."""
        return self._pools.find_pool(target.scheme, _bracketed(target.lookup_host), target.port)

    def build_connection_pool_key_attributes(
        self, request: PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the pool's key: the endpoint alone, because there is one TLS context."""
        target = current_attempt.get().target
        return {"scheme": target.scheme, "host": _bracketed(target.lookup_host), "port": target.port}, {}

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        """Return path and query as they are to be sent; requests' own leaves out a ``?`` with nothing behind it."""
        return current_attempt.get().target.request_target

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: requests' own would make each connection load the authorities again."""

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        """Make a response without requests' cookie jar: cookies are not kept, so they need not be parsed."""
        response = Response()
        response.status_code = resp.status
        response.headers.update(resp.headers)
        # urllib3 would make its decoders for it, which we do not use, and refuse a list that it finds too long.
        resp.headers.discard("Content-Encoding")
        response.raw = resp
        response.reason = resp.reason
        response.url = req.url or ""
        response.request = req
        return response

    def close(self) -> None:
        """Close all idle connections now; urllib3 alone leaves that to the garbage collector."""
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 - it is urllib3's container, not a dict
            pool = self.poolmanager.pools.get(key)
            if pool is not None:
                pool.close()
        super().close()


def _bracketed(host: str) -> str:
    # In brackets, or urllib3 does not take a zone id.
    return f"[{host}]" if ":" in host else host


def make_tls_context(ca_file: str) -> ClientContext:
    """Make the client context, whose sockets keep an attempt's deadline."""
    return ClientContext.make(ca_file, _TLSSocket)
