"""The address policy: which addresses a request may go to.

``ipaddress.is_global`` changes between patch versions of Python, so the table is our own. Sources: the IANA
special-purpose address registries (RFC 6890) as of 2025-10-09, and the RFCs of each row. Globally reachable ranges
without receivers, such as anycast services, are refused too: they may be served inside the operator's own network.
"""

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Verdict(StrEnum):
    """The result of `classify`: two that allow a request, and the reasons for a refusal."""

    PUBLIC = "public"
    #: In one of the allowed networks.
    LISTED = "listed"

    UNSPECIFIED = "unspecified"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    UNIQUE_LOCAL = "unique local"
    SITE_LOCAL = "site-local"
    LINK_LOCAL = "link-local"
    CARRIER_NAT = "carrier-grade NAT"
    CLOUD_HOST = "cloud host service"
    MULTICAST = "multicast"
    BROADCAST = "broadcast"
    DOCUMENTATION = "documentation"
    BENCHMARKING = "benchmarking"
    PROTOCOL = "protocol assignment"
    RELAY = "6to4 relay anycast"
    LOCAL_NAT64 = "local-use NAT64"
    ORCHID = "ORCHID"
    DISCARD = "discard-only"
    SEGMENT_ROUTING = "segment routing"
    ZONED = "zone id"
    RESERVED = "reserved"

    @property
    def is_allowed(self) -> bool:
        """Whether a request may go there."""
        return self in {Verdict.PUBLIC, Verdict.LISTED}


def _table(*rows: tuple[str, Verdict]) -> dict[Network, Verdict]:
    return {ip_network(cidr): verdict for cidr, verdict in rows}


#: First match wins.
_IPV4 = _table(
    ("0.0.0.0/8", Verdict.UNSPECIFIED),  # RFC 1122, 3.2.1.3: "this network"; Linux connects 0.0.0.0 to itself
    ("10.0.0.0/8", Verdict.PRIVATE),  # RFC 1918
    ("100.64.0.0/10", Verdict.CARRIER_NAT),  # RFC 6598; holds the metadata service of one large cloud
    ("127.0.0.0/8", Verdict.LOOPBACK),  # RFC 1122, 3.2.1.3
    ("161.26.0.0/16", Verdict.CLOUD_HOST),  # IBM Cloud's documentation: private endpoints on public addresses
    ("166.8.0.0/14", Verdict.CLOUD_HOST),  # the same
    ("168.63.129.16/32", Verdict.CLOUD_HOST),  # Azure's documentation: its host agent
    ("169.254.0.0/16", Verdict.LINK_LOCAL),  # RFC 3927; 169.254.169.254 is the clouds' metadata service
    ("172.16.0.0/12", Verdict.PRIVATE),  # RFC 1918
    ("192.0.0.0/24", Verdict.PROTOCOL),  # RFC 6890, 2.1
    ("192.0.2.0/24", Verdict.DOCUMENTATION),  # RFC 5737
    ("192.31.196.0/24", Verdict.PROTOCOL),  # RFC 7535: AS112, anycast
    ("192.52.193.0/24", Verdict.PROTOCOL),  # RFC 7450: AMT relays, anycast
    ("192.88.99.0/24", Verdict.RELAY),  # RFC 3068, deprecated by RFC 7526
    ("192.168.0.0/16", Verdict.PRIVATE),  # RFC 1918
    ("192.175.48.0/24", Verdict.PROTOCOL),  # RFC 7534: AS112, anycast
    ("198.18.0.0/15", Verdict.BENCHMARKING),  # RFC 2544
    ("198.51.100.0/24", Verdict.DOCUMENTATION),  # RFC 5737
    ("203.0.113.0/24", Verdict.DOCUMENTATION),  # RFC 5737
    ("224.0.0.0/4", Verdict.MULTICAST),  # RFC 5771
    ("255.255.255.255/32", Verdict.BROADCAST),  # RFC 919
    ("240.0.0.0/4", Verdict.RESERVED),  # RFC 1112, 4
)

_IPV6 = _table(
    ("::/128", Verdict.UNSPECIFIED),  # RFC 4291, 2.5.2
    ("::1/128", Verdict.LOOPBACK),  # RFC 4291, 2.5.3
    ("64:ff9b:1::/48", Verdict.LOCAL_NAT64),  # RFC 8215; see `_embedded`
    ("100::/64", Verdict.DISCARD),  # RFC 6666
    ("100:0:0:1::/64", Verdict.PROTOCOL),  # RFC 9780: dummy prefix
    ("2001:2::/48", Verdict.BENCHMARKING),  # RFC 5180
    ("2001:10::/28", Verdict.ORCHID),  # RFC 4843
    ("2001:20::/28", Verdict.ORCHID),  # RFC 7343
    ("2001::/23", Verdict.PROTOCOL),  # RFC 2928
    ("2001:db8::/32", Verdict.DOCUMENTATION),  # RFC 3849
    ("2620:4f:8000::/48", Verdict.PROTOCOL),  # RFC 7534: AS112, anycast
    ("3fff::/20", Verdict.DOCUMENTATION),  # RFC 9637
    ("5f00::/16", Verdict.SEGMENT_ROUTING),  # RFC 9602
    ("fc00::/7", Verdict.UNIQUE_LOCAL),  # RFC 4193
    ("fe80::/10", Verdict.LINK_LOCAL),  # RFC 4291, 2.5.6
    ("fec0::/10", Verdict.SITE_LOCAL),  # RFC 3879: deprecated, still routed by old networks
    ("ff00::/8", Verdict.MULTICAST),  # RFC 4291, 2.7
)

#: RFC 4291, 2.4; IANA IPv6 address space. The rest is reserved.
_GLOBAL_UNICAST = IPv6Network("2000::/3")

_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, 2.5.5.1
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056
_TEREDO = IPv6Network("2001::/32")  # RFC 4380


def classify(address: Address | str, allowed_networks: Iterable[Network]) -> Verdict:
    """Check one address.

    Args:
        address: as resolved; may have a zone id (``fe80::1%eth0``).
        allowed_networks: allowed besides public addresses. A network that contains the IPv4 address embedded in an IPv6
            address allows both. An IPv4-mapped address is allowed by nothing else.

    Raises:
        ValueError: ``address`` is not an address.
    """
    allowed = tuple(allowed_networks)
    ip = ip_address(address) if isinstance(address, str) else address
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        # RFC 4291, 2.5.5.2. The kernel sends to the IPv4 address, so only that counts: ::/0 must not allow the IPv4
        # loopback. IPv4 has no zones.
        return classify(ip.ipv4_mapped, allowed) if ip.scope_id is None else Verdict.ZONED
    if any(ip in network for network in allowed if network.version == ip.version):
        return Verdict.LISTED
    if isinstance(ip, IPv4Address):
        return _look_up(ip, _IPV4) or Verdict.PUBLIC
    if ip.scope_id is not None:
        # RFC 4007: a zone is local to this machine, so the address is not public.
        return Verdict.ZONED
    if inner := _embedded(ip):
        verdicts = [classify(part, allowed) for part in inner]
        return next((verdict for verdict in verdicts if not verdict.is_allowed), verdicts[0])
    return _look_up(ip, _IPV6) or (Verdict.PUBLIC if ip in _GLOBAL_UNICAST else Verdict.RESERVED)


def _look_up(ip: Address, table: dict[Network, Verdict]) -> Verdict | None:
    return next((verdict for network, verdict in table.items() if ip in network), None)


def _embedded(ip: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that packets to ``ip`` may reach.

    In local-use NAT64 (RFC 8215) the operator chooses the position of the IPv4 bits (RFC 6052, 2.2). It is refused as a
    whole.
    """
    number = int(ip)
    last = IPv4Address(number & 0xFFFF_FFFF)
    if ip in _NAT64 or (ip in _COMPATIBLE and number > 1):  # not :: and ::1
        return (last,)
    if ip in _SIX_TO_FOUR:
        return (IPv4Address(number >> 80 & 0xFFFF_FFFF),)
    if ip in _TEREDO:
        # The client's bits are inverted. The server relays the first packet.
        return (IPv4Address(number & 0xFFFF_FFFF ^ 0xFFFF_FFFF), IPv4Address(number >> 64 & 0xFFFF_FFFF))
    return ()
