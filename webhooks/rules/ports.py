"""The port policy: which ports a request may go to.

Receivers use 8443, 9443 and many others, so by default every port is allowed that belongs to no other protocol. An
HTTP request, largely written by the customer, must not reach a mail server or a Redis that reads commands in it. This
holds for ``WEBHOOKS_ALLOWED_NETWORKS`` too, where our own database and broker may be.
"""

from webhooks.errors import ErrorKind, NoResponse

#: The "bad ports" of the WHATWG Fetch standard ("Port blocking"), but 9 (discard): it is harmless, and used in the
#: contract.
_BAD_PORTS = frozenset(
    {
        *(1, 7, 11, 13, 15, 17, 19),  # tcpmux, echo, systat, daytime, netstat, qotd, chargen
        *(20, 21, 22, 23, 25, 37, 42, 43, 53, 69),  # FTP, SSH, telnet, SMTP, time, name, whois, DNS, TFTP
        *(77, 79, 87, 95, 101, 102, 103, 104),  # rje, finger, ttylink, supdup, hostname, ISO-TSAP, X.400, DICOM
        *(109, 110, 111, 113, 115, 117, 119, 123),  # POP, RPC, auth, SFTP, UUCP, NNTP, NTP
        *(135, 137, 139, 143, 161, 179),  # epmap, NetBIOS, IMAP, SNMP, BGP
        *(389, 427, 465, 512, 513, 514, 515),  # LDAP, SLP, SMTP, exec, login, shell, printer
        *(526, 530, 531, 532, 540, 548, 554, 556),  # tempo, courier, chat, netnews, UUCP, AFP, RTSP, remotefs
        *(563, 587, 601, 636, 989, 990, 993, 995),  # NNTP, SMTP, syslog, LDAP, FTP, IMAP, POP, with TLS or without
        *(1719, 1720, 1723, 2049, 3659, 4045, 4190),  # H.323, PPTP, NFS, SASL, NFS locks, sieve
        *(5060, 5061, 6000, 6566),  # SIP, X11, SANE
        *(6665, 6666, 6667, 6668, 6669, 6679, 6697),  # IRC
        10080,  # Amanda
    }
)

#: Data stores and brokers of internal networks, which the standard's list does not cover.
_STORE_PORTS = frozenset(
    {
        *(1433, 1521, 3306, 5432),  # SQL Server, Oracle, MySQL, PostgreSQL
        *(5671, 5672, 6379, 9092),  # AMQP, Redis, Kafka
        *(11211, 27017),  # memcached, MongoDB
    }
)

REFUSED_PORTS = _BAD_PORTS | _STORE_PORTS


def check_port(port: int, allowed_ports: frozenset[int] | None) -> None:
    """Raise NoResponse (NOT_ALLOWED) for a port that is not allowed.

    Args:
        port: between 1 and 65535.
        allowed_ports: ``WEBHOOKS_ALLOWED_PORTS``; None: all but `REFUSED_PORTS`.
    """
    is_allowed = port not in REFUSED_PORTS if allowed_ports is None else port in allowed_ports
    if not is_allowed:
        raise NoResponse(ErrorKind.NOT_ALLOWED, f"port {port} is not allowed")
