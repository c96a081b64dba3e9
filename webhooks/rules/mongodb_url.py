"""Rules of MongoDB's URL: which options keep our promises. The driver validates their values.

Error texts repeat only names of options, as the URL may hold a password.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

from webhooks.errors import ENCODE_HINT

_SCHEMES = ("mongodb://", "mongodb+srv://")
_EXAMPLE = "mongodb://127.0.0.1:27017/webhooks"
_OPTION = re.compile(r"[A-Za-z_]{1,40}", re.ASCII)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

_NOT_LOST = "what is acknowledged must survive the loss of a server"
_ONE_TIMEOUT = "set WEBHOOKS_MONGODB_TIMEOUT_S instead"
#: Option in lower case → its only allowed value, which `open_database` sets, or None if it must be left out; and why.
_REFUSED: dict[str, tuple[str | None, str]] = {
    "w": ("majority", _NOT_LOST),
    "journal": ("true", _NOT_LOST),
    "fsync": ("false", "it conflicts with the journal, which is required"),
    "retrywrites": ("true", "a write whose answer is lost must not be made twice"),
    "readconcernlevel": ("local", "what is decided follows from the newest state of the primary"),
    "tz_aware": ("true", "dates are compared with their zone"),
    "datetime_conversion": ("datetime_auto", "a date beyond Python's calendar must not hide other documents"),
    "unicode_decode_error_handler": ("replace", "a text that is no UTF-8 must not hide other documents"),
    "connect": ("false", "connections are opened on first use"),
    "serverselectiontimeoutms": (None, _ONE_TIMEOUT),
    "connecttimeoutms": (None, _ONE_TIMEOUT),
    "sockettimeoutms": (None, _ONE_TIMEOUT),
    "timeoutms": (None, _ONE_TIMEOUT),
}
#: Options in lower case that are ignored, because other users of the URL may need them.
_OVERRULED = frozenset({"readpreference", "readpreferencetags", "maxstalenessseconds"})


def read_mongodb_url(url: str) -> str:
    """Return the URL without surrounding white space; raise ValueError with reason and remedy."""
    url = url.strip()
    if not url:
        raise ValueError(f"is empty: set it to mongodb://…, or unset it for {_EXAMPLE}")
    if not url.startswith(_SCHEMES):
        raise ValueError(f"is not a MongoDB URL, such as {_EXAMPLE}")
    _check_credentials(url.partition("://")[2])
    for name, value in list_options(url):
        _check_option(name, unquote_plus(value))
    return url


def list_options(url: str) -> Iterator[tuple[str, str]]:
    """Yield name and raw value of each option; the name is empty if there is no ``=``."""
    query = url.partition("://")[2].partition("?")[2]
    for part in re.split("[&;]", query):
        name, is_option, value = part.partition("=")
        if part:
            yield name if is_option else "", value


def find_overruled(url: str) -> list[str]:
    """Return the options without effect: everything is read from the primary."""
    return [name for name, value in list_options(url) if name.lower() in _OVERRULED and value.lower() != "primary"]


def _check_credentials(rest: str) -> None:
    servers, _, options = rest.partition("?")
    servers, _, path = servers.partition("/")
    credentials, has_credentials, hosts = servers.rpartition("@")
    is_cut_off = "@" in path or (not has_credentials and "@" in options)
    is_ambiguous = "@" in credentials or credentials.count(":") > 1 or _ESCAPE.search(credentials)
    if is_cut_off or is_ambiguous:
        raise ValueError(f"has user or password with special characters as they are; {ENCODE_HINT}")
    if not hosts.strip(",") or any(char.isspace() for char in rest):
        raise ValueError(f"is not a MongoDB URL, such as {_EXAMPLE}; {ENCODE_HINT}")


def _check_option(name: str, value: str) -> None:
    if not _OPTION.fullmatch(name):
        raise ValueError(f"has an option that is not NAME=VALUE: correct it; {ENCODE_HINT}")
    needed, reason = _REFUSED.get(name.lower(), (value, ""))
    if needed is None:
        raise ValueError(f"has the option {name}: leave it out, and {reason}")
    if value.lower() != needed.lower():
        raise ValueError(f"has a value for {name} that is not {needed}: leave the option out, as {reason}")
