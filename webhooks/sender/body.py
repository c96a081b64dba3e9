"""A response body as bounded, readable text.

Owns what is kept of a body (cap, content encoding) and how bytes become text (charset, escapes). Never reads from a
connection; pure. Called by `client`, which feeds it what arrives.
"""

import codecs
import re
import zlib

#: Wire bytes that a compressed body may take beyond twice the cap. A stream that is still below the cap after that
#: is not compressing but keeping us busy (empty deflate blocks cost 5 bytes each and give nothing).
_WIRE_SLACK_BYTES = 4096

_GZIP_MAGIC = b"\x1f\x8b"
_ZLIB_HEADER_BYTES = 2

#: charset → Python codec. An allow-list, because Python's codec registry also holds things that no receiver should
#: be able to run on our logs: transforms, utf-7, idna, punycode, unicode_escape.
_CODECS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    # RFC 9110 has no ASCII rule that utf-8 would break, and senders of "us-ascii" often mean utf-8.
    "us-ascii": "utf-8",
    "ascii": "utf-8",
    "latin1": "iso-8859-1",
    "latin-1": "iso-8859-1",
    **{f"iso-8859-{n}": f"iso-8859-{n}" for n in (*range(1, 12), 13, 14, 15, 16)},
    **{f"windows-{n}": f"cp{n}" for n in range(1250, 1259)},
    **{f"cp{n}": f"cp{n}" for n in range(1250, 1259)},
    "utf-16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
    "utf-32": "utf-32",
    "utf-32le": "utf-32-le",
    "utf-32be": "utf-32-be",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "shift_jis": "cp932",
    "euc-jp": "euc-jp",
    "iso-2022-jp": "iso-2022-jp",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "euc-kr": "cp949",
}

#: Codecs whose byte order the body's first bytes tell, with the mark of the big-endian form.
_WITHOUT_BYTE_ORDER = {"utf-16": codecs.BOM_UTF16_BE, "utf-32": codecs.BOM_UTF32_BE}

_CHARSET = re.compile(r';\s*charset\s*=\s*"?([A-Za-z0-9_:.-]+)', re.IGNORECASE)

#: What would act on a terminal or a page instead of being seen: C0 and C1 controls but tab and line ends, line and
#: paragraph separators, bidirectional overrides; and lone surrogates, which no store and no utf-8 page can hold.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class BodyCollector:
    """Collects a response body up to a cap, decompressed where its content encoding is known.

    Memory stays below about twice the cap whatever arrives: a bomb is inflated no further than the cap.
    """

    def __init__(self, max_bytes: int, content_encoding: str | None) -> None:
        """Start collecting.

        Args:
            max_bytes: cap on what is kept, counted after decompression.
            content_encoding: the header; ``None`` when absent. Anything but one known encoding is kept as it is.
        """
        self._max_bytes = max_bytes
        self._raw = bytearray()
        self._wire_bytes = 0
        self._inflated = bytearray()
        self._encoding = (content_encoding or "").strip().lower()
        self._inflater = _inflater(self._encoding)
        self._encoded = self._inflater is not None
        self._has_ended = False
        #: The first bytes behind the end of a gzip member.
        self._tail = bytearray()
        #: Whether there was more than the cap.
        self.is_cut = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes off the wire.

        Returns:
            Whether more is wanted. After ``False`` nothing more should be read.
        """
        self._wire_bytes += len(data)
        room = self._max_bytes + 1 - len(self._raw)
        if room > 0:
            self._raw += data[:room]
        if self._encoded:
            self._inflate(data)
        # Asked again: bad data ends the decoding.
        if self._encoded:
            self.is_cut = (
                len(self._inflated) > self._max_bytes or self._wire_bytes > 2 * self._max_bytes + _WIRE_SLACK_BYTES
            )
        else:
            self.is_cut = len(self._raw) > self._max_bytes
        return not self.is_cut

    def body(self) -> bytes:
        """Return what was kept: at most the cap."""
        # Nothing inflated and no end seen: it was too short to tell, and shown as it came.
        kept = self._inflated if self._encoded and (self._inflated or self._has_ended) else self._raw
        if len(kept) > self._max_bytes:
            self.is_cut = True
        return bytes(kept[: self._max_bytes])

    def _inflate(self, data: bytes) -> None:
        while data:
            if self._inflater is None:
                # RFC 1952, 2.2: a gzip file may hold several members. Anything else behind the end is padding.
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
                # With room left, all input was taken; without, the cap is reached and the tail is of no interest.
                return
            self._has_ended = True
            data = self._inflater.unused_data
            self._inflater = None

    def _on_bad_data(self, data: bytes) -> None:
        before = self._wire_bytes - len(data)
        if self._encoding == "deflate" and before < _ZLIB_HEADER_BYTES and not self._has_ended:
            # RFC 9110, 8.4.1.2: some senders leave out the zlib wrapper.
            self._encoding = "raw deflate"
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            self._inflate(bytes(self._raw[:before]) + data)
            return
        # Not what its header says: shown as it came.
        self._encoded = False
        self._inflater = None
        self._inflated.clear()


def to_text(body: bytes, content_type: str | None, *, is_cut: bool) -> str:
    r"""Decode a body so that every byte of it can be seen.

    Args:
        body: decompressed.
        content_type: the header; ``None`` when absent. Its charset counts if it is a known text charset, else utf-8.
        is_cut: whether ``body`` ends where we stopped reading, so that half a character at its end is dropped.

    Returns:
        Text without control characters but ``\t \r \n`` and without lone surrogates: those, and bytes that the
        charset does not know, stand as ``\x…`` and ``\u…`` escapes.
    """
    match = _CHARSET.search(content_type or "")
    codec = _CODECS.get(match[1].lower(), "utf-8") if match else "utf-8"
    if codec in _WITHOUT_BYTE_ORDER:
        # Python refuses these without a byte order mark; the web reads them as little-endian (WHATWG Encoding, 14.4).
        codec += "-be" if body.startswith(_WITHOUT_BYTE_ORDER[codec]) else "-le"
    decoder = codecs.getincrementaldecoder(codec)("backslashreplace")
    text = decoder.decode(body, final=not is_cut)
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
