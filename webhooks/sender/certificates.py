"""How a receiver's certificate is checked.

Owns the TLS contexts, and the match of a host name that OpenSSL's own check cannot make. Never opens a connection.
Called by `connection`.

OpenSSL takes no underscore under or behind the ``*`` of a certificate, so a host such as ``my_app.example.com`` never
verifies under ``*.example.com``; browsers, curl and Node.js take it. For a host with an underscore, OpenSSL verifies
the chain, the dates and the purpose of the certificate as ever, and the name is checked here, before a byte of the
request is sent. All other hosts are left to OpenSSL.
"""

import ssl
from collections.abc import Mapping
from typing import Any, Self

from webhooks.errors import ErrorKind, NoResponse

#: Labels that a certificate's name with a ``*`` has at least, as OpenSSL has it: ``*.com`` is nobody's.
_MIN_WILDCARD_LABELS = 3


class ClientContext(ssl.SSLContext):
    """A context for clients: certificates required, names checked, TLS 1.2 at least, one handshake."""

    #: The same without OpenSSL's check of the name. Whoever takes it has to call `check_name` after the handshake.
    nameless: "ClientContext"

    @classmethod
    def make(cls, ca_file: str) -> Self:
        """Make a context and its `nameless` one.

        Args:
            ca_file: PEM file of certificate authorities.
        """
        context, nameless = (cls._make_one(ca_file) for _ in range(2))
        nameless.check_hostname = False
        context.nameless = nameless
        return context

    @classmethod
    def _make_one(cls, ca_file: str) -> Self:
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # TLS 1.2 lets a receiver ask for one handshake after another, for as long as the deadline allows.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.hostname_checks_common_name = False
        context.set_alpn_protocols(["http/1.1"])
        context.load_verify_locations(ca_file)
        return context

    def for_host(self, host: str) -> "ClientContext":
        """Return the context for a connection to a host.

        Args:
            host: as `RequestUrl.tls_name` has it.
        """
        return self.nameless if "_" in host else self


def check_name(certificate: Mapping[str, Any], host: str) -> None:
    """Check that a verified certificate is one of a host, as RFC 9525, 6.3, has it.

    Only names of the kind DNS count, never the common name. A ``*`` stands for exactly one label, and only where it is
    all of the first one.

    Args:
        certificate: as ``SSLSocket.getpeercert`` returns it.
        host: a name in ASCII without the root's dot; no address.

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
