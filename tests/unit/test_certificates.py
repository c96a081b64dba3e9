"""Which certificates are taken for a host with an underscore: those that OpenSSL takes for one with a hyphen."""

import datetime
import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from webhooks.errors import ErrorKind, NoResponse
from webhooks.sender.certificates import ClientContext, check_name

HOST = "my_app.example.test"


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def leaf_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ClientContext:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority().cert_pem.write_to_path(str(file))
    return ClientContext.make(str(file))


def server_context(
    folder: Path,
    names: Sequence[str],
    *,
    common_name: str = "",
    days: int = 1,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    issuer: trustme.CA | None = None,
) -> ssl.SSLContext:
    """Return a server's context with a certificate for any names, also such as trustme makes none for."""
    ca = issuer or authority()
    ca_cert = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
    ca_key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    present = datetime.datetime.now(datetime.UTC)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(ca_cert.subject)
        .public_key(leaf_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(present - datetime.timedelta(days=9))
        .not_valid_after(present + datetime.timedelta(days=days))
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if names:
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    cert = builder.sign(ca_key, hashes.SHA256())
    file = folder / "leaf.pem"
    key = leaf_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(key + cert.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def shake_hands(client_context: ClientContext, server: ssl.SSLContext, host: str) -> str:
    """Go through a handshake in memory, as `connection` does with a socket; return what is wrong with it, or ``""``."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context.for_host(host)
    client = context.wrap_bio(to_client, to_server, server_hostname=host)
    end = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        else:
            return "" if context.check_hostname else why_refused(client.getpeercert() or {}, host)
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    raise AssertionError("the handshake has no end")


def why_refused(certificate: Mapping[str, Any], host: str) -> str:
    try:
        check_name(certificate, host)
    except NoResponse as error:
        return error.text if error.kind is ErrorKind.TLS else error.kind
    return ""


#: A host, the names of a certificate, and whether that is one of the host.
NAMES = [
    (HOST, ["my_app.example.test"], True),
    (HOST, ["*.example.test"], True),
    (HOST, ["*.EXAMPLE.Test"], True),
    (HOST, ["MY_App.example.test"], True),
    (HOST, ["other.example.test", "*.example.test"], True),
    (HOST, ["other.example.test"], False),
    (HOST, ["my.example.test"], False),
    (HOST, ["*.other.test"], False),
    (HOST, ["example.test"], False),
    (HOST, [".example.test"], False),
    (HOST, ["*.sub.example.test"], False),
    (HOST, ["*.app.example.test"], False),
    (HOST, ["*"], False),
    (HOST, ["*.test"], False),
    (HOST, ["*.*.test"], False),
    (HOST, ["*.example.*"], False),
    (HOST, ["my_app.*.test"], False),
    (HOST, ["**.example.test"], False),
    (HOST, ["*.example.test."], False),
    (HOST, ["*.example.test.evil.test"], False),
    (HOST, ["127.0.0.1"], False),
    (HOST, [], False),
    ("my_app.sub.example.test", ["*.example.test"], False),
    ("my_app.sub.example.test", ["*.sub.example.test"], True),
    ("my_app.sub.example.test", ["*.*.example.test"], False),
    ("my_app.test", ["*.test"], False),
    ("my_app.test", ["my_app.test"], True),
    ("my_app", ["*"], False),
    ("my_app", ["my_app"], True),
    ("_.example.test", ["*.example.test"], True),
    ("a.my_app.example.test", ["*.my_app.example.test"], True),
    ("a.my_app.example.test", ["*.example.test"], False),
    ("a.my_app.example.test", ["a.*.example.test"], False),
]


@pytest.mark.parametrize(("host", "names", "is_taken"), NAMES, ids=str)
def test_name(context: ClientContext, tmp_path: Path, host: str, names: list[str], is_taken: bool) -> None:
    server = server_context(tmp_path, names)
    wrong = shake_hands(context, server, host)
    assert wrong == ("" if is_taken else f"Hostname mismatch, certificate is not valid for '{host}'.")


@pytest.mark.parametrize(("host", "names"), [row[:2] for row in NAMES if row[0] != "_.example.test"], ids=str)
def test_name_is_judged_as_openssl_judges_one_with_a_hyphen(
    context: ClientContext, tmp_path: Path, host: str, names: list[str]
) -> None:
    own = shake_hands(context, server_context(tmp_path, names), host)
    hyphened = server_context(tmp_path, [name.replace("_", "-") for name in names])
    assert context.for_host(host.replace("_", "-")).check_hostname
    assert own.replace("_", "-") == shake_hands(context, hyphened, host.replace("_", "-"))


@pytest.mark.parametrize("name", ["*_app.example.test", "my_*.example.test", "m*p.example.test", "*p.example.test"])
def test_part_of_a_label_is_no_wildcard(context: ClientContext, tmp_path: Path, name: str) -> None:
    # OpenSSL's own check takes some of these; RFC 9525, 6.3, takes none.
    assert shake_hands(context, server_context(tmp_path, [name]), HOST).startswith("Hostname mismatch")


def test_common_name_does_not_count(context: ClientContext, tmp_path: Path) -> None:
    for names in ([], ["other.example.test"]):
        server = server_context(tmp_path, names, common_name=HOST)
        assert shake_hands(context, server, HOST).startswith("Hostname mismatch")


@pytest.mark.parametrize("host", [HOST, HOST.replace("_", "-")])
def test_all_but_the_name_is_verified_by_openssl_for_every_host(
    context: ClientContext, tmp_path: Path, host: str
) -> None:
    names = ["*.example.test"]
    expired = server_context(tmp_path, names, days=-1)
    client_only = server_context(tmp_path, names, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    stranger = server_context(tmp_path, names, issuer=trustme.CA())
    assert [shake_hands(context, server, host) for server in (expired, client_only, stranger)] == [
        "certificate has expired",
        "unsuitable certificate purpose",
        "unable to get local issuer certificate",
    ]


def test_contexts_differ_in_the_check_of_the_name_alone(context: ClientContext) -> None:
    nameless = context.nameless
    assert (context.check_hostname, nameless.check_hostname) == (True, False)
    for one in (context, nameless):
        assert one.verify_mode is ssl.CERT_REQUIRED
        assert one.minimum_version is ssl.TLSVersion.TLSv1_2
        assert one.options & ssl.OP_NO_RENEGOTIATION
    assert context.options == nameless.options
    assert context.verify_flags == nameless.verify_flags
    assert context.cert_store_stats() == nameless.cert_store_stats()
    assert context.sslsocket_class is nameless.sslsocket_class


@pytest.mark.parametrize("host", ["app.example.test", "127.0.0.1", "::1", "xn--mnchen-3ya.test"])
def test_names_that_openssl_can_match_are_left_to_it(context: ClientContext, host: str) -> None:
    assert context.for_host(host) is context
