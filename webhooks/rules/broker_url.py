"""Rules of the broker's URL. Error texts repeat only names of options, as the URL may hold a password."""

import re
import ssl
from contextlib import suppress
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from webhooks.errors import ENCODE_HINT

#: Our scheme → kombu's.
_REDIS_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_REDIS_SOCKET_SCHEME = "redis+socket"
_AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp"})
_WANTED = "must be redis://…, rediss://…, valkey://…, valkeys://…, amqp://… or amqps://…"

#: By the names that both kombu and redis-py accept.
_CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_TLS_OPTIONS = frozenset(
    {"ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
)
_OPTION = re.compile(r"[a-z_]{1,40}", re.ASCII)
_DATABASE = re.compile(r"/{0,2}[0-9]{0,9}", re.ASCII)

_REFUSED_SCHEMES = {
    "sentinel": "sentinel:// is not supported: set redis://… with an address that always reaches the primary",
    "memory": "memory:// loses every event when its process ends, and is for tests only: set redis://…",
}


def read_broker_url(url: str, *, is_test: bool = False) -> str:
    """Return the URL in the form that kombu, redis-py and Flower all read; raise ValueError with reason and remedy.

    ``valkey`` becomes ``redis``. With TLS, certificates are verified by default, unlike in kombu.

    Args:
        url: as set by the user.
        is_test: whether ``memory://`` is allowed.
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
        # Nodes of a cluster: kombu fails over to the next.
        return ";".join(_read_amqp(one) for one in url.split(";"))
    return _read_redis(_REDIS_SCHEMES[scheme], rest)


def tls_options(url: str) -> dict[str, object] | None:
    """Return Celery's ``broker_use_ssl`` for a URL from `read_broker_url`.

    Returns:
        None without TLS, and for several RabbitMQ nodes: kombu would expect the first node's name in every certificate.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "amqps":
        return None if ";" in rest else {"server_hostname": None}  # kombu inserts the URL's host
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
        raise ValueError(f"holds a ; without amqp://… after it; {ENCODE_HINT}")
    if _split(rest).query:
        raise ValueError("holds options after a ?, which are not supported: leave them out")
    return f"{scheme.lower()}://{rest}"


def _read_redis(scheme: str, rest: str) -> str:
    if ";" in rest:
        raise ValueError(f"holds a ;: set one Redis, or {ENCODE_HINT}")
    parts = _split(rest)
    if not _DATABASE.fullmatch(parts.path):
        raise ValueError(f"has a database that is not a number, such as the 0 of redis://127.0.0.1/0; {ENCODE_HINT}")
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
    """Split what follows the scheme; raise ValueError for a malformed host or port, or an unescaped delimiter."""
    with suppress(ValueError):  # its text repeats the URL
        parts = urlsplit(f"//{rest}")
        if parts.port != 0 and "@" not in parts.path + parts.query:
            return parts
    raise ValueError(f"has a malformed host or port; {ENCODE_HINT}")


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
