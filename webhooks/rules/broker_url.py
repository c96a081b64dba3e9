"""Rules of the broker's URL: which ones can be used, and what is made of them.

Does no I/O. Texts of errors hold nothing of the URL but the names of its options, as it may hold a password.
"""

import re
import ssl
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from webhooks.errors import ENCODE_HINT

#: What a scheme is to kombu. Valkey speaks Redis's protocol, and kombu has no scheme for it.
_REDIS_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_REDIS_SOCKET_SCHEME = "redis+socket"
_AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp"})
_WANTED = "must be redis://…, rediss://…, valkey://…, valkeys://…, amqp://… or amqps://…"

#: Of OpenSSL's three ways, by the names that kombu and redis-py both know. kombu alone knows ``CERT_…``.
_CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_TLS_OPTIONS = frozenset(
    {"ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
)
_OPTION = re.compile(r"[a-z_]{1,40}", re.ASCII)
_DATABASE = re.compile(r"/{0,2}[0-9]{0,9}", re.ASCII)
_MAX_PORT = 65535

_REFUSED_SCHEMES = {
    "sentinel": "sentinel:// is not supported: set redis://… with an address that always leads to the master",
    "memory": "memory:// forgets every event when its process ends, and is for tests alone: set redis://…",
}


def read_broker_url(url: str, *, is_test: bool = False) -> str:
    """Return the URL as kombu, redis-py and Flower read it alike.

    ``valkey`` becomes ``redis``; a URL with TLS says how certificates are checked, as kombu checks none by default.

    Args:
        url: what the user set.
        is_test: whether a broker that lives in this process is enough.

    Raises:
        ValueError: it cannot be used; the text says why and what to do.
    """
    url = url.strip()
    if not url:
        raise ValueError("is empty: set it to redis://…, or unset it for redis://127.0.0.1:6379/0")
    if any(char.isspace() or not char.isprintable() for char in url):
        raise ValueError(f"holds a space or a control character; {ENCODE_HINT}")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme == "memory" and is_test:
        return url
    if not separator or scheme not in {*_REDIS_SCHEMES, *_AMQP_SCHEMES, _REDIS_SOCKET_SCHEME}:
        raise ValueError(_REFUSED_SCHEMES.get(scheme if separator else "", _WANTED))
    if "#" in rest:
        raise ValueError(f"holds a #; {ENCODE_HINT}")
    if scheme == _REDIS_SOCKET_SCHEME:
        return _read_socket(rest)
    if scheme in _AMQP_SCHEMES:
        # kombu takes several, and turns to the next one when one is away: the nodes of a cluster.
        return ";".join(_read_amqp(one) for one in url.split(";"))
    return _read_redis(_REDIS_SCHEMES[scheme], rest)


def tls_options(url: str) -> dict[str, object] | None:
    """Return what a URL that `read_broker_url` gave says of TLS, in the form of Celery's ``broker_use_ssl``.

    Returns:
        None for a broker without TLS, and for several nodes of RabbitMQ: kombu would look for the name of the first
        node in the certificates of all.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "amqps":
        return None if ";" in rest else {"server_hostname": None}  # has kombu fill in the URL's host
    if scheme != "rediss":
        return None
    options: dict[str, object] = dict(parse_qsl(rest.partition("?")[2]))
    options["ssl_cert_reqs"] = _CERT_REQS[str(options["ssl_cert_reqs"])]
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"] == "true"
    return options


def _read_amqp(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _AMQP_SCHEMES:
        raise ValueError(f"holds a ; that no amqp://… follows; {ENCODE_HINT}")
    if _split(rest).query:
        raise ValueError("holds options behind a ?, which are not supported: leave them out")
    return f"{scheme.lower()}://{rest}"


def _read_redis(scheme: str, rest: str) -> str:
    if ";" in rest:
        raise ValueError(f"holds a ;: set one Redis, or {ENCODE_HINT}")
    parts = _split(rest)
    if not _DATABASE.fullmatch(parts.path):
        raise ValueError(f"has a database that is no number, such as the 0 of redis://127.0.0.1/0; {ENCODE_HINT}")
    options = _read_options(parts.query)
    if scheme == "rediss":
        options = {"ssl_cert_reqs": "required", **options}
    elif options:
        raise ValueError("holds options of TLS: set rediss://…, or leave them out")
    query = urlencode(options, safe="/")
    return f"{scheme}://{rest.partition('?')[0]}{'?' if query else ''}{query}"


def _read_socket(rest: str) -> str:
    path, _, query = rest.partition("?")
    if not path.strip("/") or not re.fullmatch(r"(virtual_host=[0-9]{1,9})?", query, re.ASCII):
        raise ValueError("must be redis+socket:///PATH, with ?virtual_host=NUMBER for another database than 0")
    return f"{_REDIS_SOCKET_SCHEME}://{rest}"


def _split(rest: str) -> SplitResult:
    """Take apart what follows the scheme, and make sure that no character of the password was taken for a delimiter.

    Raises:
        ValueError: one was, or host and port are none.
    """
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError:  # its words repeat what they are about
        raise ValueError(f"has a host or port that is none; {ENCODE_HINT}") from None
    if "@" in parts.path + parts.query or (port is not None and not 0 < port <= _MAX_PORT):
        raise ValueError(f"has a host or port that is none; {ENCODE_HINT}")
    return parts


def _read_options(query: str) -> dict[str, str]:
    options = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name not in _TLS_OPTIONS:
            shown = f"the option {name}" if _OPTION.fullmatch(name) else "an option"
            raise ValueError(f"holds {shown}, which is not supported: leave it out")
        options.update(parse_qsl(part))
        if not value:
            raise ValueError(f"has no value for the option {name}: give one, or leave it out")
    if "ssl_cert_reqs" in options:
        options["ssl_cert_reqs"] = options["ssl_cert_reqs"].lower().removeprefix("cert_")
        if options["ssl_cert_reqs"] not in _CERT_REQS:
            raise ValueError("has a value for ssl_cert_reqs that is not required, optional or none")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower()
        if options["ssl_check_hostname"] not in ("true", "false"):
            raise ValueError("has a value for ssl_check_hostname that is neither true nor false")
    return options
