"""Bodies as bounded, readable text."""

import gzip
import zlib

import pytest

from webhooks.sender.body import BodyCollector, to_text


def collect(data: bytes, cap: int, encoding: str | None = None, step: int = 7) -> tuple[bytes, bool]:
    collector = BodyCollector(cap, encoding)
    for start in range(0, len(data), step):
        if not collector.feed(data[start : start + step]):
            break
    body = collector.body()
    return body, collector.is_cut


@pytest.mark.parametrize(
    ("size", "cap", "kept", "is_cut"),
    [(0, 10, 0, False), (9, 10, 9, False), (10, 10, 10, False), (11, 10, 10, True), (0, 0, 0, False), (1, 0, 0, True)],
)
@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_collector_caps(size: int, cap: int, kept: int, is_cut: bool, encoding: str | None) -> None:
    data = b"x" * size
    assert collect(gzip.compress(data) if encoding else data, cap, encoding) == (b"x" * kept, is_cut)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


TEXT = b"the same words " * 20


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        pytest.param(gzip.compress(TEXT), "gzip", id="gzip"),
        pytest.param(gzip.compress(TEXT), " GZIP ", id="gzip-spelt-oddly"),
        pytest.param(gzip.compress(TEXT), "x-gzip", id="x-gzip"),
        pytest.param(gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]), "gzip", id="members"),
        pytest.param(gzip.compress(TEXT) + b"\0" * 20, "gzip", id="padding"),
        pytest.param(zlib.compress(TEXT), "deflate", id="deflate"),
        pytest.param(raw_deflate(TEXT), "deflate", id="raw-deflate"),
        pytest.param(TEXT, "gzip", id="not-gzip-at-all"),
        pytest.param(TEXT, "identity", id="identity"),
        pytest.param(TEXT, "br", id="unknown"),
        pytest.param(TEXT, "gzip, gzip", id="twice"),
        pytest.param(TEXT, None, id="absent"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_collector_decodes(data: bytes, encoding: str | None, step: int) -> None:
    assert collect(data, 1000, encoding, step) == (TEXT, False)


def test_collector_keeps_what_a_broken_gzip_held_as_it_came() -> None:
    data = gzip.compress(TEXT)[:-8] + b"\xff" * 8
    assert collect(data, 1000, "gzip") == (data, False)


def test_collector_shows_the_start_of_a_gzip_that_ends_early() -> None:
    body, is_cut = collect(gzip.compress(TEXT)[:-8], 1000, "gzip")
    assert (body, is_cut) == (TEXT, False)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_collector_bomb_costs_no_more_than_the_cap(encoding: str) -> None:
    compressor = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = compressor.compress(b"\0" * 100_000_000) + compressor.flush()
    collector = BodyCollector(1000, encoding)
    assert collector.feed(bomb) is False
    assert len(collector.body()) == 1000
    assert collector.is_cut


def test_collector_stops_reading_a_stream_that_gives_nothing() -> None:
    compressor = zlib.compressobj(wbits=31)
    data = compressor.compress(b"") + b"".join(compressor.flush(zlib.Z_FULL_FLUSH) or b"" for _ in range(1))
    empty_blocks = data + b"\x00\x00\x00\xff\xff" * 100_000
    collector = BodyCollector(100, "gzip")
    fed = 0
    for start in range(0, len(empty_blocks), 1000):
        fed += 1000
        if not collector.feed(empty_blocks[start : start + 1000]):
            break
    assert fed < 10_000
    assert collector.is_cut


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        pytest.param("grüße".encode(), None, "grüße", id="default-utf8"),
        pytest.param("grüße".encode("latin-1"), "text/plain; charset=ISO-8859-1", "grüße", id="latin1"),
        pytest.param("grüße".encode("utf-16"), 'text/plain;charset="utf-16"', "grüße", id="utf16-quoted"),
        pytest.param("привет".encode("cp1251"), "text/html; charset=windows-1251", "привет", id="cp1251"),
        pytest.param("日本".encode("cp932"), "text/html; charset=Shift_JIS", "日本", id="shift-jis"),
        pytest.param(b"\xff\xfeab", "text/plain; charset=utf-8", "\\xff\\xfeab", id="not-utf8"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "image/png", "\\x89PNG\r\n\\x1a\n", id="binary"),
        pytest.param("\ufeffa".encode(), None, "a", id="bom"),
        pytest.param(b"+ADw-script+AD4-", "text/html; charset=utf-7", "+ADw-script+AD4-", id="utf7"),
        pytest.param(b"\\u0041", "text/html; charset=unicode_escape", "\\u0041", id="unicode-escape"),
        pytest.param(b"xn--a", "text/html; charset=idna", "xn--a", id="idna"),
        pytest.param(b"a", "text/html; charset=punycode", "a", id="punycode"),
        pytest.param(b"a", "text/html; charset=base64", "a", id="transform"),
        pytest.param(b"a", "text/html; charset=", "a", id="empty-charset"),
        pytest.param(b"\xed\xa0\x80", None, "\\xed\\xa0\\x80", id="utf8-surrogate"),
        pytest.param(b"\x00\xd8", "text/plain; charset=utf-16le", "\\x00\\xd8", id="utf16-lone-surrogate"),
        pytest.param(b"a\x00b\x1b[31m\x7f\tc\r\n", None, "a\\x00b\\x1b[31m\\x7f\tc\r\n", id="controls"),
        pytest.param("\x85\u202e\u2028".encode(), None, "\\x85\\u202e\\u2028", id="c1-and-bidi"),
    ],
)
def test_to_text(body: bytes, content_type: str | None, text: str) -> None:
    assert to_text(body, content_type, is_cut=False) == text


def test_to_text_hides_half_a_character_where_it_was_cut() -> None:
    body = "aü".encode()[:2]
    assert to_text(body, None, is_cut=True) == "a"
    assert to_text(body, None, is_cut=False) == "a\\xc3"


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "utf-32", "gb18030", "iso-2022-jp", "euc-kr", "big5", "euc-jp"])
def test_to_text_takes_any_bytes(charset: str) -> None:
    body = bytes(range(256)) * 3
    for is_cut in (False, True):
        text = to_text(body, f"text/plain; charset={charset}", is_cut=is_cut)
        text.encode("utf-8")
        assert not set(text) & {chr(code) for code in range(32) if chr(code) not in "\t\r\n"}
