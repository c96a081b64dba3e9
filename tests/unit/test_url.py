"""Which URLs can be requested, and the one form in which they are."""

import sys
import unicodedata

import pytest

from webhooks.models.url import parse_url
from webhooks.models.webhook import why_bad_url


@pytest.mark.parametrize(
    ("url", "host", "port", "requested"),
    [
        ("http://receiver.example", "receiver.example", 80, "http://receiver.example/"),
        ("HTTPS://Receiver.example/A?b#c", "receiver.example", 443, "https://receiver.example/A?b"),
        ("https://receiver.example:443/", "receiver.example", 443, "https://receiver.example/"),
        ("https://receiver.example:/", "receiver.example", 443, "https://receiver.example/"),
        ("http://receiver.example:443/", "receiver.example", 443, "http://receiver.example:443/"),
        ("http://receiver.example.:8080/", "receiver.example", 8080, "http://receiver.example:8080/"),
        ("http://RECEIVER.Example./", "receiver.example", 80, "http://receiver.example/"),
        ("http://m\xfcnchen.example/", "xn--mnchen-3ya.example", 80, "http://xn--mnchen-3ya.example/"),
        ("http://\uff11\uff12\uff17.0.0.1/", "127.0.0.1", 80, "http://127.0.0.1/"),
        ("http://[2606:4700:0::0:1]:9/", "2606:4700::1", 9, "http://[2606:4700::1]:9/"),
        ("http://[2606:4700::AB]/", "2606:4700::ab", 80, "http://[2606:4700::ab]/"),
        ("http://[fe80::1%25Eth0]/", "fe80::1%Eth0", 80, "http://[fe80::1]/"),
        ("http://0X7F.1/", "0x7f.1", 80, "http://0x7f.1/"),
        ("http://a_b.example/", "a_b.example", 80, "http://a_b.example/"),
    ],
)
def test_parse_target(url: str, host: str, port: int, requested: str) -> None:
    target = parse_url(url)
    assert (target.host, target.port, target.url) == (host, port, requested)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("/", "/"),
        ("?", "/?"),
        ("/hook?", "/hook?"),
        ("/hook?#part", "/hook?"),
        ("/hook#part?", "/hook"),
        ("?a=b", "/?a=b"),
        ("/a?b?c=/", "/a?b?c=/"),
        ("/../a/./b//c", "/../a/./b//c"),
        ("/a%20b%2Fc%2fd", "/a%20b%2Fc%2fd"),
        ("/50%off", "/50%25off"),
        ("/a%20b/50%", "/a%20b/50%25"),
        ("/in?name=A%20B&discount=50%&sig=a%2Bb", "/in?name=A%20B&discount=50%25&sig=a%2Bb"),
        ("/%2", "/%252"),
        ("/%%41", "/%25%41"),
        ("/%u00e9", "/%25u00e9"),
        ("/\xe9\u20ac?\U0001f600", "/%C3%A9%E2%82%AC?%F0%9F%98%80"),
        ("/a-._~!$&'()*+,;=:@", "/a-._~!$&'()*+,;=:@"),
        ('/<"^`{|}>?x[]=1', "/%3C%22%5E%60%7B%7C%7D%3E?x%5B%5D=1"),
        ("/\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "/%D9%85%DB%8C%E2%80%8C%D8%AE%D9%88%D8%A7%D9%87%D9%85"),
        ("/\u2764\ufe0f/", "/%E2%9D%A4%EF%B8%8F/"),
    ],
    ids=ascii,
)
def test_path_and_query_are_sent_as_written_but_for_what_has_to_be_escaped(given: str, sent: str) -> None:
    target = parse_url(f"https://receiver.example{given}")
    assert target.request_target == sent
    # Once escaped it stays as it is.
    assert parse_url(target.url).request_target == sent


@pytest.mark.parametrize(
    ("host", "is_rooted", "looked_up"),
    [("Receiver.Example", False, "receiver.example"), ("Receiver.Example.", True, "receiver.example.")],
)
def test_root_dot_is_kept_for_the_look_up_alone(host: str, is_rooted: bool, looked_up: str) -> None:
    target = parse_url(f"https://{host}:8443/")
    assert (target.is_rooted, target.lookup_host, target.shown_host) == (is_rooted, looked_up, host)
    assert (target.tls_name, target.host_header) == ("receiver.example", "receiver.example:8443")


def test_zone_id_is_neither_in_the_host_header_nor_in_the_tls_name() -> None:
    target = parse_url("https://[fe80::1%25Eth0.]:8443/")
    assert (target.lookup_host, target.tls_name, target.host_header) == ("fe80::1%Eth0.", "fe80::1", "[fe80::1]:8443")


#: One of each range of characters that nobody sees, and how its UTF-8 is escaped.
INVISIBLE = {
    "\xa0": "%C2%A0",
    "\xad": "%C2%AD",
    "\u034f": "%CD%8F",
    "\u061c": "%D8%9C",
    "\u115f": "%E1%85%9F",
    "\u1680": "%E1%9A%80",
    "\u180e": "%E1%A0%8E",
    "\u2003": "%E2%80%83",
    "\u200b": "%E2%80%8B",
    "\u200c": "%E2%80%8C",
    "\u200d": "%E2%80%8D",
    "\u200e": "%E2%80%8E",
    "\u2028": "%E2%80%A8",
    "\u202f": "%E2%80%AF",
    "\u2060": "%E2%81%A0",
    "\u2066": "%E2%81%A6",
    "\u2800": "%E2%A0%80",
    "\u3000": "%E3%80%80",
    "\u3164": "%E3%85%A4",
    "\ufe0f": "%EF%B8%8F",
    "\ufeff": "%EF%BB%BF",
    "\uffa0": "%EF%BE%A0",
    "\ufffb": "%EF%BF%BB",
    "\U0001d173": "%F0%9D%85%B3",
    "\U000e0001": "%F3%A0%80%81",
    "\U000e0020": "%F3%A0%80%A0",
    "\U000e0100": "%F3%A0%84%80",
}


@pytest.mark.parametrize("url", ["https://receiver.example", "https://receiver.example/hook", "https://a.example/?b=c"])
@pytest.mark.parametrize(("char", "escaped"), INVISIBLE.items(), ids=ascii)
def test_invisible_character_at_the_end_is_refused_with_the_remedy(url: str, char: str, escaped: str) -> None:
    reason = (
        f"it holds an invisible character at its end (U+{ord(char):04X}); remove it, or write {escaped} if it is meant"
    )
    assert why_bad_url(url + char) == reason
    assert why_bad_url(f"{url}{char}#part") == reason.replace(" at its end", "")
    if "/" in url.removeprefix("https://"):
        assert parse_url(url + escaped).request_target.endswith(escaped)


@pytest.mark.parametrize("char", ["\xa0", "\u200b", "\ufeff", "\u202e"], ids=ascii)
@pytest.mark.parametrize(
    "url", ["{}https://a.example/", "https://a{}.example/", "https://a.example/b{}c", "https://a.example/?b{}=c"]
)
def test_invisible_character_elsewhere_is_refused_too(url: str, char: str) -> None:
    assert (why_bad_url(url.format(char)) or "").startswith(f"it holds an invisible character (U+{ord(char):04X})")


def test_all_of_unicode_that_is_white_space_or_format_is_seen_or_refused() -> None:
    seen = {"ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN"}  # marks round digits and letters that follow
    for char in map(chr, range(sys.maxunicode + 1)):
        if (
            unicodedata.category(char) in {"Zs", "Zl", "Zp", "Cc", "Cf"}
            and why_bad_url(f"http://a.example/{char}") is None
        ):
            assert unicodedata.name(char).split()[0] in seen, ascii(char)
