"""Every range of the guard, with the values just outside it."""

from ipaddress import ip_address, ip_network

import pytest

from webhooks.rules.addresses import Network, Verdict, classify

# (first, last) of a range, its verdict, and the neighbours below and above with theirs.
V4_RANGES = [
    ("0.0.0.0", "0.255.255.255", Verdict.UNSPECIFIED),
    ("10.0.0.0", "10.255.255.255", Verdict.PRIVATE),
    ("100.64.0.0", "100.127.255.255", Verdict.CARRIER_NAT),
    ("127.0.0.0", "127.255.255.255", Verdict.LOOPBACK),
    ("161.26.0.0", "161.26.255.255", Verdict.CLOUD_HOST),
    ("166.8.0.0", "166.11.255.255", Verdict.CLOUD_HOST),
    ("168.63.129.16", "168.63.129.16", Verdict.CLOUD_HOST),
    ("169.254.0.0", "169.254.255.255", Verdict.LINK_LOCAL),
    ("172.16.0.0", "172.31.255.255", Verdict.PRIVATE),
    ("192.0.0.0", "192.0.0.255", Verdict.PROTOCOL),
    ("192.0.2.0", "192.0.2.255", Verdict.DOCUMENTATION),
    ("192.31.196.0", "192.31.196.255", Verdict.PROTOCOL),
    ("192.52.193.0", "192.52.193.255", Verdict.PROTOCOL),
    ("192.88.99.0", "192.88.99.255", Verdict.RELAY),
    ("192.168.0.0", "192.168.255.255", Verdict.PRIVATE),
    ("192.175.48.0", "192.175.48.255", Verdict.PROTOCOL),
    ("198.18.0.0", "198.19.255.255", Verdict.BENCHMARKING),
    ("198.51.100.0", "198.51.100.255", Verdict.DOCUMENTATION),
    ("203.0.113.0", "203.0.113.255", Verdict.DOCUMENTATION),
    ("224.0.0.0", "239.255.255.255", Verdict.MULTICAST),
    ("240.0.0.0", "255.255.255.254", Verdict.RESERVED),
    ("255.255.255.255", "255.255.255.255", Verdict.BROADCAST),
]

V6_RANGES = [
    ("100::", "100::ffff:ffff:ffff:ffff", Verdict.DISCARD),
    ("100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", Verdict.PROTOCOL),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Verdict.LOCAL_NAT64),
    ("2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", Verdict.BENCHMARKING),
    ("2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.ORCHID),
    ("2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.ORCHID),
    ("2001:1::", "2001:1:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PROTOCOL),
    ("2001:1ff::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PROTOCOL),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.DOCUMENTATION),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", Verdict.PROTOCOL),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.DOCUMENTATION),
    ("4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.RESERVED),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.SEGMENT_ROUTING),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.UNIQUE_LOCAL),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.LINK_LOCAL),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.SITE_LOCAL),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.MULTICAST),
    ("::", "::", Verdict.UNSPECIFIED),
    ("::1", "::1", Verdict.LOOPBACK),
]


@pytest.mark.parametrize(("first", "last", "verdict"), V4_RANGES + V6_RANGES, ids=str)
def test_classify_range(first: str, last: str, verdict: Verdict) -> None:
    assert classify(first, ()) is verdict
    assert classify(last, ()) is verdict
    assert not verdict.is_allowed


@pytest.mark.parametrize(
    "address",
    [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "161.25.255.255",
        "161.27.0.0",
        "166.7.255.255",
        "166.12.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.1.255",
        "192.0.3.0",
        "192.31.195.255",
        "192.31.197.0",
        "192.52.192.255",
        "192.52.194.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "192.175.47.255",
        "192.175.49.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "8.8.8.8",
        "2000::",
        "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
        "2003::",
        "2606:4700::1",
        "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
        "2620:4f:8001::",
        "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::",
    ],
)
def test_classify_just_outside_a_range_is_public(address: str) -> None:
    assert classify(address, ()) is Verdict.PUBLIC
    assert classify(ip_address(address), ()).is_allowed


@pytest.mark.parametrize(
    "address",
    ["0:0:0:1::", "100:0:0:2::", "64:ff9b:2::", "64:ff9b:0:1::", "1fff:ffff::", "5f01::", "fbff:ffff::", "fe00::"],
)
def test_classify_outside_global_unicast_is_reserved(address: str) -> None:
    assert classify(address, ()) is Verdict.RESERVED


#: How an IPv4 address stands in each form; Teredo inverts the client's bits.
FORMS = {
    "mapped": lambda a, b, c, d: f"::ffff:{a}.{b}.{c}.{d}",
    "compatible": lambda a, b, c, d: f"::{a}.{b}.{c}.{d}",
    "nat64": lambda a, b, c, d: f"64:ff9b::{a}.{b}.{c}.{d}",
    "6to4": lambda a, b, c, d: f"2002:{a << 8 | b:x}:{c << 8 | d:x}::1",
    "teredo-client": lambda a, b, c, d: f"2001:0:808:808:0:0:{(a << 8 | b) ^ 0xFFFF:x}:{(c << 8 | d) ^ 0xFFFF:x}",
    "teredo-server": lambda a, b, c, d: f"2001:0:{a << 8 | b:x}:{c << 8 | d:x}:0:0:f7f7:f7f7",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("inner", "verdict"),
    [
        ((8, 8, 8, 8), Verdict.PUBLIC),
        ((127, 0, 0, 1), Verdict.LOOPBACK),
        ((10, 1, 2, 3), Verdict.PRIVATE),
        ((169, 254, 169, 254), Verdict.LINK_LOCAL),
        ((172, 32, 0, 0), Verdict.PUBLIC),
    ],
    ids=str,
)
def test_classify_judges_the_address_inside(form: str, inner: tuple[int, ...], verdict: Verdict) -> None:
    assert classify(FORMS[form](*inner), ()) is verdict


@pytest.mark.parametrize("form", FORMS)
def test_classify_network_names_the_address_inside(form: str) -> None:
    loopback = ip_network("127.0.0.0/8")
    assert classify(FORMS[form](127, 0, 0, 1), (loopback,)).is_allowed
    assert not classify(FORMS[form](10, 0, 0, 1), (loopback,)).is_allowed


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700::1%1", "::ffff:8.8.8.8%eth0"])
def test_classify_zone_id_is_never_public(address: str) -> None:
    assert classify(address, ()) is Verdict.ZONED


@pytest.mark.parametrize(
    ("address", "networks", "verdict"),
    [
        ("10.1.2.3", ["10.1.0.0/16"], Verdict.LISTED),
        ("10.2.0.0", ["10.1.0.0/16"], Verdict.PRIVATE),
        ("10.2.0.0", ["10.1.0.0/16", "10.2.0.0/32"], Verdict.LISTED),
        ("8.8.8.8", ["10.0.0.0/8"], Verdict.PUBLIC),
        ("fd00::1", ["fd00::/8"], Verdict.LISTED),
        ("fe80::1%eth0", ["fe80::/10"], Verdict.LISTED),
        ("64:ff9b:1::1", ["64:ff9b:1::/48"], Verdict.LISTED),
        # An IPv4 network says nothing about IPv6 and the other way round.
        ("::1", ["0.0.0.0/0"], Verdict.LOOPBACK),
        ("127.0.0.1", ["::/0"], Verdict.LOOPBACK),
        # However it is written: an IPv4-mapped address is connected to over IPv4.
        ("::ffff:127.0.0.1", ["::/0"], Verdict.LOOPBACK),
        ("::ffff:127.0.0.1", ["::ffff:0:0/96"], Verdict.LOOPBACK),
        ("::ffff:127.0.0.1%1", ["::/0", "127.0.0.0/8"], Verdict.ZONED),
        ("::ffff:8.8.8.8", ["::/0"], Verdict.PUBLIC),
    ],
)
def test_classify_listed_networks(address: str, networks: list[str], verdict: Verdict) -> None:
    listed: list[Network] = [ip_network(cidr) for cidr in networks]
    assert classify(address, listed) is verdict


def test_classify_refuses_what_is_no_address() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        classify("example.com", ())
