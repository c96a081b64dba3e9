"""New and kept connections do not differ: what is sent over them, and what is logged of what comes back."""

import random
import string
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.test_responses import make_response
from tests.lab import receiver as r
from tests.lab.receiver import Receiver, Recorded
from tests.lab.senders import new_sender
from webhooks.errors import NoResponse
from webhooks.models.url import parse_url
from webhooks.sender import Answer, Resolver, Sender
from webhooks.sender.response import ResponseReader

CAP = 500
#: As every request of ours has it.
HEADERS = {"User-Agent": "x/1"}


class Ends:
    """A sender, and a receiver that all names resolve to.

    Not a dataclass: Hypothesis prints the fields of one, and the receiver's set of sockets changes meanwhile.
    """

    def __init__(self, sender: Sender, receiver: Receiver) -> None:
        self.sender = sender
        self.receiver = receiver

    def post_over_each(
        self, url: str, headers: dict[str, str], body: bytes, behaviour: r.Behaviour
    ) -> Iterator[tuple[Answer, Recorded]]:
        """Send a request over a new connection and over a kept one; give its answer, and what came of it."""
        target = parse_url(url)
        for max_age_s in (0, None):
            # So that there is one to the same host that is kept.
            self.sender.post(f"http://{target.host}:{target.port}/", HEADERS, b"", max_connection_age_s=0)
            self.receiver.requests.clear()
            self.receiver.then(behaviour)
            answer = self.sender.post(url, {**HEADERS, **headers}, body, max_connection_age_s=max_age_s)
            assert (answer.timings.connect_ms is None) == (max_age_s is None)
            [request] = self.receiver.requests
            yield answer, request


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    def look_up(_: str, port: int) -> list[object]:
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    with Receiver() as receiver:
        sender = new_sender(total_timeout_s=5, max_response_bytes=CAP, resolver=Resolver(look_up))
        yield Ends(sender, receiver)
        sender.close()


# ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────────

#: No numbers: those are addresses.
_LABELS = st.text("abcXYZ019-_", max_size=8).map(lambda text: f"h{text}Z")
#: Capitals, the root's dot, other alphabets.
HOSTS = st.one_of(
    st.lists(_LABELS, min_size=1, max_size=3).map(".".join),
    st.lists(_LABELS, min_size=1, max_size=3).map(lambda labels: ".".join(labels) + "."),
    st.sampled_from(["127.0.0.1", "Bücher.Example", "xn--bcher-kva.example", "RECEIVER.test", "ünter.example."]),
)
_PARTS = st.one_of(
    st.sampled_from(["%20", "%2f", "%7e", "%C3%BC", "%", "%zz", "/..", "/./", "//", "ü", "?", "?a=b", "&", "#x", "{}"]),
    st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/|^[]\"<>`é", max_size=5),
)
PATHS = st.lists(_PARTS, max_size=6).map("".join)
NAMES = st.one_of(
    st.text("abcXYZ0-_.!#$%&'*+^`|~", min_size=1, max_size=10).map(lambda name: f"x{name}"),
    st.sampled_from(["Content-Type", "content-type", "webhook-id", "Authorization", "Accept", "user-agent"]),
)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, blacklist_categories=["Cc"]), max_size=20)


@given(
    host=HOSTS,
    path=PATHS,
    headers=st.dictionaries(NAMES, VALUES, max_size=5),
    body=st.binary(max_size=200),
)
@example(host="RECEIVER.test.", path="/hook", headers={}, body=b"")
@example(host="receiver.test", path="/a%20b%zz?x=%", headers={}, body=b"")
@example(host="receiver.test", path="/ü?é", headers={"X-Key": "Grüße"}, body="ü".encode())
def test_new_and_kept_connections_carry_the_same_request(
    ends: Ends, host: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    url = f"http://{host}:{ends.receiver.port}/{path}"
    try:
        parse_url(url)
    except NoResponse:
        return
    new, kept = (
        (request.method, request.path, request.headers.items, request.body)
        for _, request in ends.post_over_each(url, headers, body, r.reply())
    )
    assert new == kept
    assert new[3] == body


# ── Responses ───────────────────────────────────────────────────────────────────────────────────────────────────────

CONTENT_TYPES = [
    *("text/plain", "application/json", "text/plain; charset=latin-1", "text/plain; charset=utf-16"),
    *("", "text/html; charset=koi8-r", "x; charset=nosuch"),
]


def make_good_response(dice: random.Random) -> bytes:
    """Make a response that is one, in one of the ways in which servers write them."""
    body = dice.choice([b"", b"ok", b"\xe9\xff", b"x" * (CAP + 1), "ü…".encode(), dice.randbytes(20)])
    status = dice.choice([200, 201, 204, 299, 302, 404, 408, 410, 429, 500, 503])
    lines = [f"X-{n}: y" for n in range(dice.choice([0, 3, 70, 150]))]
    lines += [f"Content-Type: {dice.choice(CONTENT_TYPES)}" for _ in range(dice.randrange(3))]
    lines += [f"Retry-After: {dice.choice(['7', 'soon', '0'])}" for _ in range(dice.randrange(2))]
    lines += dice.choice([[], [], ["Connection: close"], ["connection: Keep-Alive"], ["X: a", " folded"]])
    framing = dice.randrange(4)
    data = body
    if framing == 0:
        lines += ["Transfer-Encoding: chunked"] * dice.choice([1, 1, 2])
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part) + b"0\r\n\r\n"
    elif framing < 3:
        lines += [f"Content-Length: {len(body)}"] * dice.choice([1, 1, 2])
    dice.shuffle(lines) if " folded" not in lines else None
    head = "\r\n".join([f"HTTP/1.1 {status} Whatever", *lines, "", ""])
    return head.encode("latin-1") + data


def responses() -> st.SearchStrategy[bytes]:
    """Responses by seed, good ones and others; see `test_responses`."""
    return st.tuples(st.booleans(), st.integers(0, 2**32)).map(
        lambda drawn: (make_good_response if drawn[0] else make_response)(random.Random(drawn[1]))
    )


@given(data=responses())
@example(data=b"HTTP/1.1 200 OK\r\nContent-Type: a; charset=latin1\r\nContent-Type: b\r\nContent-Length: 1\r\n\r\n\xe9")
@example(data=b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b; charset=latin1\r\nContent-Length: 1\r\n\r\n\xe9")
def test_new_and_kept_connections_log_the_same_response(ends: Ends, data: bytes) -> None:
    if not data or b" 408 " in data.partition(b"\n")[0]:
        return  # that the connection was closed while idle: tried again, which is tested elsewhere
    new, kept = (
        (answer.status, answer.text, answer.error_kind, answer.cut, answer.retry_after_s)
        for answer, _ in ends.post_over_each(ends.receiver.url, {}, b"{}", r.raw(data))
    )
    assert new == kept


def read(pieces: list[bytes]) -> object:
    """Return what the reader makes of a response that arrives in these pieces, and then the connection's end."""
    reader, body = ResponseReader(), b""
    try:
        for piece in pieces:
            if not reader.is_over:
                body += reader.feed(piece)
        reader.end()
    except NoResponse as error:
        return error.kind, error.text
    return reader.head, body


@given(data=responses(), cuts=st.lists(st.integers(0, 400), max_size=5), is_trickled=st.booleans())
def test_pieces_in_which_a_response_arrives_do_not_matter(data: bytes, cuts: list[int], is_trickled: bool) -> None:
    places = range(len(data)) if is_trickled and len(data) < 5_000 else sorted({cut % (len(data) or 1) for cut in cuts})
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    assert b"".join(pieces) == data
    assert read([piece for piece in pieces if piece]) == read([data] if data else [])
