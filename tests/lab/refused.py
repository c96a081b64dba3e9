"""Where a request may not go: the rows of the table in docs/security.md.

`REFUSED` is that table; `to_markdown` writes it. `tests/integration/test_refused.py` makes each row true.
"""

from itertools import groupby
from typing import NamedTuple

from webhooks.errors import ErrorKind

#: Also this machine, and not where a `Receiver` is: what stands in for an inner service.
INNER_HOST = "127.0.0.2"


class Refused(NamedTuple):
    """One row: what is refused, and what the customer sees of it."""

    what: str
    #: A URL. Where the path is ``/hook``, tests put a port before it.
    example: str
    #: The log's ``response``, for the default port.
    response: str
    #: ``None`` where the receiver's own answer is what is logged.
    error_kind: ErrorKind | None
    #: What the name server says of the URL's host; empty where that is no name.
    answers: tuple[str, ...] = ()


def _address(what: str, *hosts: str) -> list[Refused]:
    return [_refused(what, host) for host in hosts]


def _name(what: str, host: str, *answers: str) -> list[Refused]:
    return [_refused(what, host, *answers)]


def _refused(what: str, host: str, *answers: str) -> Refused:
    return Refused(what, f"http://{host}/hook", f"address not allowed: {host}:80", ErrorKind.NOT_ALLOWED, answers)


def _bad(what: str, reason: str, *urls: str) -> list[Refused]:
    return [Refused(what, url, f"bad URL: {reason}", ErrorKind.BAD_URL) for url in urls]


REFUSED: tuple[Refused, ...] = (
    # IPv4
    *_address("unspecified, “this network”", "0.0.0.0", "0", "0.1.2.3"),
    *_address("loopback", "127.0.0.1", "127.255.255.254", INNER_HOST),
    *_address("octal, hex, short and decimal spellings", "0177.0.0.1", "0x7f000001", "0x7f.1", "127.1", "2130706433"),
    *_address("the same of the metadata service", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.43518"),
    *_address("full-width digits and dots", "１２７.0.0.1", "127。0。0。1", "①②⑦.⓪.⓪.①"),
    *_address("private", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *_address("carrier-grade NAT", "100.64.0.1", "100.100.100.200"),
    *_address("link-local, with the clouds’ metadata service", "169.254.169.254", "169.254.1.1"),
    *_address("cloud host services at public addresses", "168.63.129.16", "161.26.0.10", "166.9.0.1"),
    *_address("multicast", "224.0.0.1", "239.255.255.250"),
    *_address("broadcast", "255.255.255.255"),
    *_address("reserved", "240.0.0.1"),
    *_address("documentation", "192.0.2.1", "198.51.100.1", "203.0.113.1"),
    *_address("benchmarking", "198.18.0.1"),
    *_address("protocol assignments, AS112, AMT", "192.0.0.192", "192.31.196.1", "192.52.193.1", "192.175.48.1"),
    *_address("6to4 relay", "192.88.99.1"),
    # IPv6
    *_address("IPv6 unspecified", "[::]"),
    *_address("IPv6 loopback", "[::1]", "[0:0::0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]"),
    *_address("IPv4-mapped", "[::ffff:127.0.0.1]", "[::FFFF:7F00:1]", "[0:0:0:0:0:ffff:10.1.2.3]", "[::ffff:0:0]"),
    *_address("IPv4-compatible", "[::127.0.0.1]", "[::a9fe:a9fe]"),
    *_address("IPv4-translated", "[::ffff:0:127.0.0.1]"),
    *_address("NAT64 of an inner address", "[64:ff9b::10.1.2.3]", "[64:ff9b::a9fe:a9fe]"),
    *_address("local-use NAT64", "[64:ff9b:1::8.8.8.8]"),
    *_address("6to4 of an inner address", "[2002:7f00:1::1]", "[2002:a01:203::1]"),
    *_address("Teredo of an inner address", "[2001:0:808:808::80ff:fffe]", "[2001:0:a01:203::f7f7:f7f7]"),
    *_address("unique local, with metadata services", "[fd00:ec2::254]", "[fd20:ce::254]", "[fc00::1]"),
    *_address("IPv6 link-local", "[fe80::1]", "[fe80::a9fe:a9fe]"),
    *_address("zone ids", "[fe80::1%25lo]", "[2606:4700::1%251]", "[::1%251]", "[fe80::1%lo]"),
    *_address("site-local", "[fec0::1]"),
    *_address("IPv6 multicast", "[ff02::1]", "[ff0e::1]"),
    *_address("IPv6 documentation", "[2001:db8::1]", "[3fff::1]"),
    *_address("IPv6 benchmarking", "[2001:2::1]"),
    *_address("IPv6 protocol assignments, AS112", "[2001:1::1]", "[2620:4f:8000::1]", "[100:0:0:1::1]"),
    *_address("ORCHID", "[2001:10::1]", "[2001:20::1]"),
    *_address("discard-only", "[100::1]"),
    *_address("segment routing", "[5f00::1]"),
    *_address("what IANA has not given out", "[4000::1]", "[1::1]"),
    # Names
    *_name("names of this machine", "localhost", "127.0.0.1", "::1"),
    *_name("a name with an inner address", "inner.example.test", "10.1.2.3"),
    *_name("a name with an inner address", "metadata.example.test", "169.254.169.254"),
    *_name("a name with an inner address", "INNER6.example.test", "fd00:ec2::254"),
    *_name("a name with an inner address", "mapped.example.test", "::ffff:10.1.2.3"),
    *_name("a name with an inner address", "nat64.example.test", "64:ff9b::a01:203"),
    *_name("a name with an inner address", "intranet", "10.1.2.3"),
    *_name("a name with an inner address", "10.1.2.3.nip.example.test", "10.1.2.3"),
    *_name("a name in other letters", "interné.example.test", "10.1.2.3"),
    *_name("a name with a dot at its end", "dotted.example.test.", "10.1.2.3"),
    *_name("an address with a dot at its end, if a name server knows it", "127.0.0.1.", "127.0.0.1"),
    *_name("one inner address among public ones", "last.example.test", "8.8.8.8", "8.8.4.4", "10.1.2.3"),
    *_name("one inner address among public ones", "first.example.test", "10.1.2.3", "8.8.8.8"),
    *_name("one inner address among public ones", "six.example.test", "8.8.8.8", "fd00:ec2::254"),
    *_name("one inner address among public ones", "four.example.test", "10.1.2.3", "2606:4700::1"),
    *_name("an alias of an inner name", "alias.example.test", "inner.example.test"),
    *_name("an alias of an alias of an inner name", "alias2.example.test", "alias.example.test"),
    # URLs
    *_bad(
        "credentials, also where they look like a host",
        "it holds credentials",
        "http://user:password@example.com/",
        "http://example.com@127.0.0.1/hook",
        "http://example.com:80@127.0.0.1/hook",
        "http://127.0.0.1@example.com/",
        "http://@127.0.0.1/hook",
    ),
    Refused(
        "a host before what looks like one",
        "http://127.0.0.1#@example.com/",
        "address not allowed: 127.0.0.1:80",
        ErrorKind.NOT_ALLOWED,
    ),
    Refused(
        "a host before what looks like one",
        "http://127.0.0.1?@example.com/",
        "address not allowed: 127.0.0.1:80",
        ErrorKind.NOT_ALLOWED,
    ),
    *_bad(
        "white space, control characters, backslashes",
        "it holds a space, a control character or a backslash",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1\\.example.com/",
        "http://127.0.0.1\t/",
        "http://example.com/\r\nHost: 127.0.0.1",
        " http://127.0.0.1/",
        "http://example.com/\0",
        "http://127.0.0.1\u0085.example.com/",
    ),
    *_bad(
        "an invisible character, such as one pasted at the end",
        "it holds an invisible character at its end (U+200B); remove it, or write %E2%80%8B if it is meant",
        "http://example.com/hook\u200b",
    ),
    *_bad(
        "schemes other than http and https",
        "its scheme is neither http nor https",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_SET",
        "unix:///var/run/docker.sock",
        "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
        "//127.0.0.1/",
        "javascript:alert(1)",
    ),
    *_bad(
        "percent signs in a host",
        "its host name is malformed",
        "http://127.0.0.%31/hook",
        "http://127.0.0.1%2eexample.com/",
        "http://%6cocalhost/hook",
        "http://127.0.0.1%00.example.com/",
    ),
    # Answers
    Refused("following a redirect", "302, `Location: http://169.254.169.254/`", "see there", None),
)

#: Names that others lead to.
ALIASED = {"inner.example.test": ("10.1.2.3",), "alias.example.test": ("inner.example.test",)}

NOT_ALLOWED = [row for row in REFUSED if row.error_kind is ErrorKind.NOT_ALLOWED]
REQUESTED = [row for row in REFUSED if row.error_kind is not None]


#: More of a kind make the table wide and tell a reader nothing new.
_SHOWN_EXAMPLES = 2


def to_markdown() -> str:
    """Write the table of docs/security.md, rows of the same kind as one."""

    def show(row: Refused) -> str:
        if row.error_kind is None:
            return row.example
        url = f"`{row.example if row.example.isprintable() else ascii(row.example)[1:-1]}`"
        return f"{url} → {', '.join(f'`{answer}`' for answer in row.answers)}" if row.answers else url

    lines = ["| What is refused | Examples | What the log says |", "| --- | --- | --- |"]
    for what, same in groupby(REFUSED, key=lambda row: row.what):
        rows = list(same)
        says = f"`{rows[0].response}`" if rows[0].error_kind else "status 302 and the receiver's own answer"
        lines.append(f"| {what} | {'<br>'.join(show(row) for row in rows[:_SHOWN_EXAMPLES])} | {says} |")
    return "\n".join(lines)
