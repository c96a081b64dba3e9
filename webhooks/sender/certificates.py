"""TLS contexts, and the check of host names with an underscore.

OpenSSL does not match an underscore against a ``*``, so ``my_app.example.com`` never verifies under ``*.example.com``;
browsers, curl and Node.js accept it. For such hosts OpenSSL verifies everything but the name, and `check_name` verifies
the name before a byte of the request is sent.
"""

import ssl
from collections.abc import Mapping
from typing import Any, Self

from webhooks.errors import ErrorKind, NoResponse

#: Fewest labels of a certificate's name with a ``*``, as in OpenSSL: ``*.com`` is refused.
_MIN_WILDCARD_LABELS = 3


class ClientContext(ssl.SSLContext):
    """A client context: certificates required, TLS 1.2 or later, no renegotiation."""

    #: The same without OpenSSL's name check. Requires `check_name` after the handshake.
    nameless: "ClientContext"

    @classmethod
    def make(cls, ca_file: str) -> Self:
        """Make a context and its `nameless` one. `ca_file`: certificate authorities in PEM."""
        context, nameless = (cls._make_one(ca_file) for _ in range(2))
        nameless.check_hostname = False
        context.nameless = nameless
        return context

    @classmethod
    def _make_one(cls, ca_file: str) -> Self:
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # With renegotiation, a receiver could demand handshakes until the deadline.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.hostname_checks_common_name = False
        context.set_alpn_protocols(["http/1.1"])
        context.load_verify_locations(ca_file)
        return context

    def for_host(self, host: str) -> "ClientContext":
        """Return the context for connections to a `RequestUrl.tls_name`."""
        return self.nameless if "_" in host else self


def check_name(certificate: Mapping[str, Any], host: str) -> None:
    """Check that a verified certificate is valid for a host (RFC 9525, 6.3).

    Only DNS names count, never the common name. A ``*`` matches exactly one label, and only as the whole first label.

    Args:
        certificate: as ``SSLSocket.getpeercert`` returns it.
        host: an ASCII name without the root's dot; no address.

    Raises:
        NoResponse: kind TLS, in OpenSSL's words.
    """
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
    if not any(_is_match(name, host) for name in names):
        raise NoResponse(ErrorKind.TLS, f"Hostname mismatch, certificate is not valid for '{host}'.")


def _is_match(name: str, host: str) -> bool:
    first, *rest = name.lower().split(".")
    host_first, *host_rest = host.lower().split(".")
    if first == "*":
        return len(rest) + 1 >= _MIN_WILDCARD_LABELS and bool(host_first) and rest == host_rest
    return (first, rest) == (host_first, host_rest)
