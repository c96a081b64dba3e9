"""The parts of a webhook's URL, checked.

Owns what makes a URL unusable. Never resolves a name; pure. Called by `models`, so that a URL that cannot be requested
cannot be stored, and by `sender`, as somebody else may have stored it.
"""

import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import urlsplit

import idna

from webhooks.errors import ErrorKind, NoResponse

_DEFAULT_PORTS = {"http": 80, "https": 443}

#: Splits what stands between ``//`` and the path. Our own, because Python's patch versions differ in what they let
#: pass in brackets.
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[0-9]{0,5}))?")

#: RFC 1123, 2.1, and the underscore, which DNS allows and real hosts have.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

#: What common servers and proxies take at least (RFC 9110, 4.1, asks for 8,000; browsers once had 2,083).
_MAX_URL_CHARS = 2048

#: Of the names that systems give their interfaces.
_ZONE = re.compile(r"[A-Za-z0-9_.~-]{1,32}", re.ASCII)

#: RFC 1035, 2.3.4, as text without the root's dot.
_MAX_HOST_CHARS = 253

# What a URL cannot hold, and what parsers disagree about: browsers read a backslash as a slash.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\\ud800-\udfff]")


class Target(NamedTuple):
    """Where a request goes."""

    scheme: str
    #: ASCII: a name, an IPv4 address in any spelling, or an IPv6 address without brackets, perhaps with a zone id.
    host: str
    port: int
    #: The host as it stands in the URL, for texts; the same as ``host`` unless that had to be encoded.
    shown_host: str
    #: The URL without fragment and with an ASCII host.
    url: str


def parse_target(url: str) -> Target:
    """Take a URL apart.

    Raises:
        NoResponse: kind BAD_URL. The text repeats neither credentials nor query.
    """
    if len(url) > _MAX_URL_CHARS:
        raise _bad_url(f"it is longer than {_MAX_URL_CHARS} characters")
    if _FORBIDDEN.search(url):
        raise _bad_url("it holds a space, a control character or a backslash")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _bad_url("it is malformed") from None
    default_port = _DEFAULT_PORTS.get(parts.scheme)
    if default_port is None:
        raise _bad_url("its scheme is neither http nor https")
    if "@" in parts.netloc:
        raise _bad_url("it holds credentials")
    match = _AUTHORITY.fullmatch(parts.netloc)
    if match is None:
        raise _bad_url("its host or port is malformed")
    port = int(match["port"]) if match["port"] else default_port
    if not 0 < port < 65536:
        raise _bad_url("its port is not between 1 and 65535")
    if match["ipv6"] is not None:
        host, shown_host = _ipv6(match["ipv6"]), f"[{match['ipv6']}]"
        authority = f"[{host}]"
    else:
        shown_host = match["name"]
        authority = host = _name(shown_host)
    if port != default_port:
        authority += f":{port}"
    return Target(
        parts.scheme,
        host,
        port,
        shown_host,
        parts._replace(netloc=authority, path=parts.path or "/", fragment="").geturl(),
    )


def _ipv6(text: str) -> str:
    # RFC 6874 writes a zone id as %25zone; the plain % is common.
    text = text.replace("%25", "%", 1)
    _, percent, zone = text.partition("%")
    if percent and not _ZONE.fullmatch(zone):
        raise _bad_url("its zone id is malformed")
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise _bad_url("its IPv6 address is malformed") from None


def _name(text: str) -> str:
    if not text:
        raise _bad_url("it has no host")
    host = text
    if not text.isascii():
        try:
            host = idna.encode(text, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise _bad_url("its host name cannot be encoded (IDNA)") from None
    # One dot at the end is the root: a fully qualified name.
    labels = host.removesuffix(".").split(".")
    if len(host.removesuffix(".")) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad_url("its host name is malformed")
    return host


def _bad_url(reason: str) -> NoResponse:
    return NoResponse(ErrorKind.BAD_URL, f"bad URL: {reason}")
