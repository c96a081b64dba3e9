"""The URL of a webhook: which ones are accepted, and the normalised form in which they are requested."""

import re
from ipaddress import IPv6Address
from typing import NamedTuple

import idna

from webhooks.errors import ErrorKind, NoResponse

_DEFAULT_PORTS = {"http": 80, "https": 443}

#: RFC 3986, appendix B. Python's ``urlsplit`` drops an empty query, and its patch versions refuse different URLs.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?://(?P<authority>[^/?#]*))?(?P<rest>[^#]*)(?:#.*)?")

_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[0-9]{0,5}))?")

_END_OF_AUTHORITY = re.compile(r"[/?#]")

#: RFC 1123, 2.1, with the underscore, which DNS allows and real hosts have.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

#: Accepted by all common servers and proxies.
_MAX_URL_CHARS = 2048

#: An interface's name.
_ZONE = re.compile(r"[A-Za-z0-9_.~-]{1,32}", re.ASCII)

#: RFC 1035, 2.3.4, as text without the root's dot.
_MAX_HOST_CHARS = 253

#: Not allowed in a URL; browsers read a backslash as a slash.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\\ud800-\udfff]")

#: Invisible characters that change the character before them, as in Persian words and emoji.
_SHAPING = r"\u034f\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef"

#: Other invisible characters: Unicode's White_Space beyond ASCII and Default_Ignorable_Code_Point, interlinear
#: annotation, and the blank Braille pattern.
_BLANK = (
    r"\xa0\xad\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f"
    r"\u205f-\u206f\u2800\u3000\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e001f\U000e0080-\U000e00ff\U000e01f0-\U000e0fff"
)

#: Invisible characters get copied along with a URL. At its end, shaping ones are refused as well.
_INVISIBLE = re.compile(rf"[{_BLANK}]|[{_SHAPING}](?=#|\Z)")

#: What RFC 3986 (3.3, 3.4) does not allow in path and query, and a percent sign that begins no escape. Valid escapes
#: keep their case.
_TO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^%A-Za-z0-9._~!$&'()*+,;=:@/?-]+")


class RequestUrl(NamedTuple):
    """A checked and normalised URL: what connections and requests are made of."""

    scheme: str
    #: ASCII in lower case, without the root's dot: a name, an IPv4 address in any spelling, or an IPv6 address without
    #: brackets. A zone id keeps its case.
    host: str
    port: int
    #: The host as written, for messages.
    shown_host: str
    #: Path and query for the request line: ASCII, begins with a slash.
    request_target: str
    #: Whether the host was written with the root's dot.
    is_rooted: bool = False

    @property
    def lookup_host(self) -> str:
        """The name to resolve. With the root's dot, resolvers skip their search domains."""
        return f"{self.host}." if self.is_rooted else self.host

    @property
    def endpoint(self) -> tuple[str, str, int]:
        """The key of kept connections. A name with and one without the root's dot may resolve differently."""
        return self.scheme, self.lookup_host, self.port

    @property
    def tls_name(self) -> str:
        """The name for SNI and the certificate: the host without a zone id, which TLS does not know."""
        return self.host.partition("%")[0]

    @property
    def host_header(self) -> str:
        """The Host header: no default port (RFC 9110, 4.2.3), no zone id (RFC 6874, 4)."""
        host = f"[{self.tls_name}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The normalised URL, without fragment and zone id."""
        return f"{self.scheme}://{self.host_header}{self.request_target}"


def parse_url(url: str) -> RequestUrl:
    """Check and normalise a URL.

    A percent sign that begins no escape becomes ``%25``, as RFC 3986 has no other reading. Strict servers answer 400 to
    a bare one.

    Raises:
        NoResponse: kind BAD_URL. The text repeats neither credentials nor query.
    """
    if len(url) > _MAX_URL_CHARS:
        raise _bad_url(f"it is longer than {_MAX_URL_CHARS} characters")
    if _FORBIDDEN.search(url):
        raise _bad_url("it holds a space, a control character or a backslash")
    if invisible := _INVISIBLE.search(url):
        raise _bad_url(_describe_invisible(invisible[0], is_last=invisible.end() == len(url)))
    parts = _URL.fullmatch(url)
    scheme = parts["scheme"].lower() if parts else ""
    default_port = _DEFAULT_PORTS.get(scheme)
    if parts is None or default_port is None:
        raise _bad_url("its scheme is neither http nor https")
    authority = parts["authority"] or ""
    if "@" in authority:
        raise _bad_url("it holds credentials")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _bad_url("its host or port is malformed")
    port = int(match["port"]) if match["port"] else default_port
    if not 0 < port < 65536:
        raise _bad_url("its port is not between 1 and 65535")
    if match["ipv6"] is not None:
        host, shown_host, is_rooted = _ipv6(match["ipv6"]), f"[{match['ipv6']}]", False
    else:
        shown_host = match["name"]
        host, is_rooted = _name(shown_host)
    rest = _TO_ESCAPE.sub(lambda match: _percent_encode(match[0]), parts["rest"])
    return RequestUrl(scheme, host, port, shown_host, rest if rest.startswith("/") else f"/{rest}", is_rooted)


def read_origin(url: str) -> str:
    """Return scheme, host and port of an accepted URL as written. Path and query may hold secrets."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{_END_OF_AUTHORITY.split(rest, maxsplit=1)[0]}"


def _percent_encode(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _describe_invisible(char: str, *, is_last: bool) -> str:
    where = " at its end" if is_last else ""
    escaped = _percent_encode(char)
    return f"it holds an invisible character{where} (U+{ord(char):04X}); remove it, or write {escaped} if it is meant"


def _ipv6(text: str) -> str:
    # RFC 6874 writes a zone id as %25zone; a plain % is common.
    text = text.replace("%25", "%", 1)
    _, percent, zone = text.partition("%")
    if percent and not _ZONE.fullmatch(zone):
        raise _bad_url("its zone id is malformed")
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise _bad_url("its IPv6 address is malformed") from None


def _name(text: str) -> tuple[str, bool]:
    """Return a host name in ASCII and lower case without the root's dot, and whether it had one."""
    if not text:
        raise _bad_url("it has no host")
    host = text
    if not text.isascii():
        try:
            host = idna.encode(text, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise _bad_url("its host name cannot be encoded (IDNA)") from None
    name = host.removesuffix(".")
    if len(name) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise _bad_url("its host name is malformed")
    return name.lower(), name != host


def _bad_url(reason: str) -> NoResponse:
    return NoResponse(ErrorKind.BAD_URL, f"bad URL: {reason}")
