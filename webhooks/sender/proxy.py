"""HTTP CONNECT through the operator's proxy (RFC 9110, 9.3.6).

The proxy gets a checked address, never a name, so it resolves nothing. The webhook's owner sees the error texts, so
they contain neither the proxy's address nor its words.
"""

import base64
import re
import socket
import time

from webhooks.config import Proxy
from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender.deadline import errno_name

#: Of the answer's head, typically 100 bytes.
MAX_ANSWER_BYTES = 16 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n\0]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


def open_tunnel(sock: socket.socket, address: str, proxy: Proxy, give_up_at: float) -> None:
    """Ask a proxy to connect a socket to an address.

    Args:
        sock: connected to the proxy; only ``send`` and ``recv`` are used.
        address: ``ip:port`` or ``[ipv6]:port``.
        proxy: its credentials are sent.
        give_up_at: on the monotonic clock.

    Raises:
        NoResponse: kind PROXY.
    """
    try:
        unsent = memoryview(_request(address, proxy))
        while unsent:
            _limit(sock, give_up_at)
            unsent = unsent[sock.send(unsent) :]
        head = _read_head(sock, give_up_at)
    except TimeoutError as error:
        raise proxy_failed("proxy did not answer in time") from error
    except OSError as error:
        raise proxy_failed("proxy closed the connection") from error
    match = _STATUS.match(head)
    if match is None:
        raise proxy_failed("proxy does not speak HTTP")
    if not match[1].startswith(b"2"):
        raise proxy_failed(f"proxy refused the connection: {int(match[1])}")


def proxy_failed(text: str) -> NoResponse:
    """Return the error for a fault of the proxy."""
    return NoResponse(ErrorKind.PROXY, text)


def unreachable(error: OSError) -> NoResponse:
    """Map an error of the connection to the proxy."""
    name = "ETIMEDOUT" if isinstance(error, TimeoutError) else errno_name(error)
    return proxy_failed(f"proxy cannot be reached: {name}")


def _request(address: str, proxy: Proxy) -> bytes:
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if proxy.credentials is not None:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _read_head(sock: socket.socket, give_up_at: float) -> bytes:
    """Read the proxy's answer and no byte beyond it."""
    head = bytearray()
    while len(head) < MAX_ANSWER_BYTES:
        _limit(sock, give_up_at)
        seen = sock.recv(MAX_ANSWER_BYTES - len(head), socket.MSG_PEEK)
        if not seen:
            raise proxy_failed("proxy closed the connection")
        # The end may have begun in the previous part.
        end = _END_OF_HEAD.search(head + seen, max(0, len(head) - 3))
        head += sock.recv(end.end() - len(head) if end else len(seen))
        if end:
            return bytes(head)
    raise proxy_failed("proxy does not speak HTTP")


def _limit(sock: socket.socket, give_up_at: float) -> None:
    remaining_s = give_up_at - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    sock.settimeout(remaining_s)
