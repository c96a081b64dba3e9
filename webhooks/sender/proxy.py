"""The way out through the operator's proxy: one HTTP CONNECT exchange (RFC 9110, 9.3.6).

Owns that exchange and the texts of its failures. Tells the proxy an address that was judged, never a name: so the
verdict holds, and the proxy looks nothing up. The texts are shown to whoever typed the URL, so they hold neither the
proxy's address nor what it says. Never opens a connection; `connection` does, and calls this.
"""

import base64
import re
import socket
import time

from webhooks.config import Proxy
from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender.deadline import errno_name

#: Bytes that the head of the proxy's answer may have. They have 100, or some kilobytes with a page about an error.
MAX_ANSWER_BYTES = 16 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n\0]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


def open_tunnel(sock: socket.socket, address: str, proxy: Proxy, give_up_at: float) -> None:
    """Ask the proxy at the other end of a socket to connect it to an address.

    Args:
        sock: connected to the proxy. Only its ``send`` and ``recv`` are used.
        address: ``ip:port`` or ``[ipv6]:port``.
        proxy: whose credentials to show.
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
    """Return the error for a fault of the proxy, which is none of the receiver's."""
    return NoResponse(ErrorKind.PROXY, text)


def unreachable(error: OSError) -> NoResponse:
    """Word an error of the connection to the proxy, without its address."""
    name = "ETIMEDOUT" if isinstance(error, TimeoutError) else errno_name(error)
    return proxy_failed(f"proxy cannot be reached: {name}")


def _request(address: str, proxy: Proxy) -> bytes:
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if proxy.credentials is not None:
        # RFC 7617: what stands between user and password is a colon, and UTF-8 is what servers expect.
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _read_head(sock: socket.socket, give_up_at: float) -> bytes:
    """Read the proxy's answer and not a byte beyond it: that is the receiver's."""
    head = bytearray()
    while len(head) < MAX_ANSWER_BYTES:
        _limit(sock, give_up_at)
        seen = sock.recv(MAX_ANSWER_BYTES - len(head), socket.MSG_PEEK)
        if not seen:
            raise proxy_failed("proxy closed the connection")
        # The end may have begun in what came before.
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
