"""A response body as bounded, readable text."""

import codecs
import re
import zlib

#: Wire bytes of a compressed body beyond twice the cap. A stream that has not reached the cap by then only wastes our
#: time, for example with empty deflate blocks.
_WIRE_SLACK_BYTES = 4096

_GZIP_MAGIC = b"\x1f\x8b"
_ZLIB_HEADER_BYTES = 2

#: charset → Python codec. An allow-list, because Python's registry also has transforms, utf-7, idna, punycode and
#: unicode_escape.
_CODECS = {
    **{name: name for name in ("utf-8", "utf-16", "utf-32", "koi8-r", "koi8-u", "euc-jp", "iso-2022-jp", "gb18030")},
    # Senders of "us-ascii" often mean utf-8, which contains it.
    **dict.fromkeys(("utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("latin1", "latin-1"), "iso-8859-1"),
    **{f"iso-8859-{n}": f"iso-8859-{n}" for n in (*range(1, 12), 13, 14, 15, 16)},
    **{f"{prefix}{n}": f"cp{n}" for n in range(1250, 1259) for prefix in ("windows-", "cp")},
    **{f"utf-{bits}{order}": f"utf-{bits}-{order}" for bits in (16, 32) for order in ("le", "be")},
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    "shift_jis": "cp932",
    "big5": "big5hkscs",
    "euc-kr": "cp949",
}

#: Codecs whose byte order depends on the body's first bytes → the big-endian mark.
_WITHOUT_BYTE_ORDER = {"utf-16": codecs.BOM_UTF16_BE, "utf-32": codecs.BOM_UTF32_BE}

_CHARSET = re.compile(r';\s*charset\s*=\s*"?([A-Za-z0-9_:.-]+)', re.IGNORECASE)

#: C0 and C1 controls but tab and line ends, line and paragraph separators, bidirectional overrides, and lone
#: surrogates, which UTF-8 cannot hold.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class BodyCollector:
    """Collects a response body up to a cap, decompressed if its content encoding is known.

    Uses at most about twice the cap of memory; a decompression bomb is inflated no further than the cap.
    """

    def __init__(self, max_bytes: int, content_encoding: str | None) -> None:
        """Start collecting.

        Args:
            max_bytes: cap on the body, counted after decompression.
            content_encoding: the header; a body with an unknown or a combined encoding is kept as received.
        """
        self._max_bytes = max_bytes
        self._raw = bytearray()
        self._wire_bytes = 0
        self._inflated = bytearray()
        self._encoding = (content_encoding or "").strip().lower()
        self._inflater = _inflater(self._encoding)
        self._encoded = self._inflater is not None
        self._has_ended = False
        #: The first bytes after a gzip member.
        self._tail = bytearray()
        #: Whether the body exceeded the cap.
        self.is_cut = False

    def feed(self, data: bytes) -> bool:
        """Take received bytes; return whether to read on."""
        self._wire_bytes += len(data)
        room = self._max_bytes + 1 - len(self._raw)
        if room > 0:
            self._raw += data[:room]
        if self._encoded:
            self._inflate(data)
        if self._encoded:  # bad data has not ended the decoding
            self.is_cut = (
                len(self._inflated) > self._max_bytes or self._wire_bytes > 2 * self._max_bytes + _WIRE_SLACK_BYTES
            )
        else:
            self.is_cut = len(self._raw) > self._max_bytes
        return not self.is_cut

    def body(self) -> bytes:
        """Return the collected bytes, at most the cap."""
        # With nothing inflated and no end, it was too short to tell.
        kept = self._inflated if self._encoded and (self._inflated or self._has_ended) else self._raw
        if len(kept) > self._max_bytes:
            self.is_cut = True
        return bytes(kept[: self._max_bytes])

    def _inflate(self, data: bytes) -> None:
        while data:
            if self._inflater is None:
                # RFC 1952, 2.2: a gzip file may hold several members. Other trailing bytes are padding.
                self._tail += data
                if len(self._tail) < len(_GZIP_MAGIC) or not self._tail.startswith(_GZIP_MAGIC):
                    del self._tail[len(_GZIP_MAGIC) :]
                    return
                data = bytes(self._tail)
                self._tail.clear()
                self._inflater = _inflater(self._encoding)
                continue
            room = self._max_bytes + 1 - len(self._inflated)
            if room <= 0:
                return
            try:
                self._inflated += self._inflater.decompress(data, room)
            except zlib.error:
                self._on_bad_data(data)
                return
            if not self._inflater.eof:
                return
            self._has_ended = True
            data = self._inflater.unused_data
            self._inflater = None

    def _on_bad_data(self, data: bytes) -> None:
        before = self._wire_bytes - len(data)
        if self._encoding == "deflate" and before < _ZLIB_HEADER_BYTES and not self._has_ended:
            # RFC 9110, 8.4.1.2: some senders omit the zlib wrapper.
            self._encoding = "raw deflate"
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            self._inflate(bytes(self._raw[:before]) + data)
            return
        self._encoded = False
        self._inflater = None
        self._inflated.clear()


def to_text(body: bytes, content_type: str | None, *, is_cut: bool) -> str:
    r"""Decode a body so that every byte of it is visible.

    Args:
        body: decompressed.
        content_type: the header; its charset counts if it is a known text charset, else utf-8.
        is_cut: whether reading stopped at the end of ``body``; an incomplete character there is then dropped.

    Returns:
        Text without lone surrogates and control characters but ``\t \r \n``: those, and bytes that the charset does not
        define, become ``\x…`` and ``\u…`` escapes.
    """
    match = _CHARSET.search(content_type or "")
    codec = _CODECS.get(match[1].lower(), "utf-8") if match else "utf-8"
    if codec in _WITHOUT_BYTE_ORDER:
        # WHATWG Encoding, 14.4: without a byte order mark, little-endian.
        codec += "-be" if body.startswith(_WITHOUT_BYTE_ORDER[codec]) else "-le"
    if is_cut:
        text = codecs.getincrementaldecoder(codec)("backslashreplace").decode(body)
    else:
        text = body.decode(codec, "backslashreplace")
    return _UNREADABLE.sub(_escape, text.removeprefix("\ufeff"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _inflater(encoding: str) -> "zlib._Decompress | None":
    if encoding in {"gzip", "x-gzip"}:
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    if encoding == "deflate":
        return zlib.decompressobj()
    return None
