"""What a dead letter keeps of a message, and how letters get to a store that comes and goes."""

import base64
import json
import queue
from collections import Counter
from collections.abc import Callable
from typing import Any

import bson
import pytest
from kombu.message import Message

from webhooks.delivery.meters import Fault
from webhooks.errors import CannotResend, StoreUnavailable
from webhooks.store.deadletters import MAX_BODY_BYTES, MAX_ENVELOPE_CHARS, DeadLetter, Reason, one_line
from webhooks.worker import deadletter_writer

BODY = b'[[{"n":1.0}],{},null]'


def make_message(body: Any = BODY, **changes: Any) -> Message:
    return Message(
        **{
            "body": body,
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "headers": {"task": "webhooks.deliver", "id": "e1", "retries": 1},
            "properties": {"correlation_id": "e1", "priority": 3, "delivery_tag": "t1", "body_encoding": "base64"},
            "delivery_info": {"exchange": "", "routing_key": "webhooks.deliver"},
            **changes,
        }
    )


def make_letter(message: Message | None = None, text: str = "why") -> DeadLetter:
    return DeadLetter.make(Reason.DEFECT, text, message or make_message(), "w1@host")


class FakeChannel:
    """Takes note of what is published."""

    def __init__(self) -> None:
        self.published: list[Any] = []

    def prepare_message(self, body: bytes, **parts: Any) -> dict[str, Any]:
        return {"body": body, **parts}

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        self.published.append((message, exchange, routing_key))


def publish(letter: DeadLetter) -> Any:
    channel = FakeChannel()
    letter.publish(channel)
    (published,) = channel.published
    return published


def test_letter_tells_what_happened() -> None:
    document = make_letter().to_document()
    assert bson.decode(bson.encode(document))["reason"] == "defect"
    assert (document["task"], document["message_id"], document["queue"]) == (
        "webhooks.deliver",
        "e1",
        "webhooks.deliver",
    )
    assert (document["body"], document["body_is_base64"], document["size_bytes"]) == (BODY.decode(), False, len(BODY))
    assert (document["worker"], document["text"], document["is_cut"]) == ("w1@host", "why", False)


def test_message_is_published_as_it_was() -> None:
    letter = make_letter()
    assert DeadLetter.from_document(letter.to_document()) == letter
    assert publish(letter) == (
        {
            "body": BODY,
            "priority": 3,
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "headers": {"task": "webhooks.deliver", "id": "e1", "retries": 1},
            "properties": {"correlation_id": "e1"},
        },
        "",
        "webhooks.deliver",
    )


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("ñ", "ñ".encode()),
        (b"\xff\x00", b"\xff\x00"),
        (memoryview(b"a"), b"a"),
        ("\ud800", b"\xed\xa0\x80"),
        (None, b""),
        ({"a": 1}, b'{"a": 1}'),
    ],
    ids=["text", "binary", "view", "surrogate", "none", "object"],
)
def test_body_of_any_kind_is_kept(body: Any, kept: bytes) -> None:
    letter = make_letter(make_message(body))
    restored = DeadLetter.from_document(bson.decode(bson.encode(letter.to_document())))
    assert (restored.body, restored.size_bytes) == (kept, len(kept))


def test_binary_body_is_stored_as_base64() -> None:
    document = make_letter(make_message(b"\xff")).to_document()
    assert (document["body"], document["body_is_base64"]) == (base64.b64encode(b"\xff").decode(), True)


@pytest.mark.parametrize(
    "message",
    [
        make_message(b"\xff" * (MAX_BODY_BYTES + 1)),
        make_message(headers={"x": "y" * MAX_ENVELOPE_CHARS}),
    ],
    ids=["body", "headers"],
)
def test_message_too_large_for_mongodb_is_cut_and_says_so(message: Message) -> None:
    letter = make_letter(message)
    document = letter.to_document()
    assert document["is_cut"]
    assert document["size_bytes"] == len(message.body or b"")
    assert len(bson.encode(document)) < 16_000_000
    with pytest.raises(CannotResend, match="too large"):
        letter.publish(FakeChannel())


def test_largest_message_is_kept_whole() -> None:
    letter = make_letter(make_message(b"\xff" * MAX_BODY_BYTES))
    assert not letter.is_cut
    assert len(bson.encode(letter.to_document())) < 16_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {"task": ["x"], "id": 2**70, "\ud800": "\ud800", "a.b": {"$c": float("nan")}}},
        {"properties": {"priority": [], "delivery_tag": 7}},
        {"delivery_info": {"exchange": None, "routing_key": "q\x00\ud800"}},
        {"content_type": ["x"], "content_encoding": 5},
    ],
    ids=["headers", "properties", "delivery_info", "content_type"],
)
def test_strange_message_can_be_stored(changes: dict[str, Any]) -> None:
    document = make_letter(make_message(**changes)).to_document()
    assert bson.decode(bson.encode(document))["_id"] == document["_id"]
    json.loads(document["envelope"])


def test_message_without_a_queue_cannot_be_sent_again() -> None:
    with pytest.raises(CannotResend, match="which queue"):
        make_letter(make_message(delivery_info={})).publish(FakeChannel())


def test_what_kombu_changed_is_undone() -> None:
    message = make_message(headers={"compression": "application/x-gzip", "redelivered": True, "id": "e1"}, body=b"")
    message.errors = []  # as after a body that could be decompressed
    assert publish(make_letter(message))[0]["headers"] == {"id": "e1"}
    message.errors = [(ValueError, ValueError(), None)]
    assert publish(make_letter(message))[0]["headers"] == {"compression": "application/x-gzip", "id": "e1"}


def test_same_message_makes_the_same_letter_and_another_one_another() -> None:
    letter_id = make_letter().id
    again = make_message(headers={"task": "t", "id": "e1", "redelivered": True}, properties={"delivery_tag": "t2"})
    assert make_letter(again).id == letter_id
    assert make_letter(make_message(b"other")).id != letter_id
    assert make_letter(make_message(headers={"id": "e2"})).id != letter_id


def test_message_without_an_id_makes_a_letter_each_time() -> None:
    message = make_message(headers={})
    assert make_letter(message).id != make_letter(message).id


def test_text_is_one_line_of_bounded_length() -> None:
    assert one_line("a\r\n\x1b[31m b\u2028c\ud800") == "a [31m b c"
    assert len(one_line("x" * 10_000)) == 500


# ── The writer ──────────────────────────────────────────────────────────────────────────────────────────────────────


class FakeStore:
    """A store that fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.written: list[DeadLetter] = []

    @property
    def dead_letters(self) -> "FakeStore":
        return self

    def write(self, letter: DeadLetter) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(letter)


@pytest.fixture
def bury(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeStore], str]:
    """Bury a letter in a store; return what became of its message."""

    def bury(store: FakeStore) -> str:
        monkeypatch.setattr(deadletter_writer, "get_services", lambda: store)
        monkeypatch.setattr(deadletter_writer.stopping, "wait", lambda _: False)
        done: queue.SimpleQueue[str] = queue.SimpleQueue()
        writer = deadletter_writer.DeadLetterWriter()
        writer.write(make_letter(), lambda: done.put("acked"), lambda: done.put("given back"))
        return done.get(timeout=10)

    return bury


@pytest.mark.parametrize("failures", [0, 2], ids=["at once", "through an outage"])
def test_message_is_acked_after_its_letter_is_stored(
    bury: Callable[[FakeStore], str], faults: Counter[Fault], failures: int
) -> None:
    store = FakeStore(*[StoreUnavailable("away")] * failures)
    assert bury(store) == "acked"
    assert len(store.written) == 1
    assert faults == {Fault.DEAD_LETTER: 1}


def test_message_is_given_back_when_the_outage_lasts(
    bury: Callable[[FakeStore], str], monkeypatch: pytest.MonkeyPatch, faults: Counter[Fault]
) -> None:
    class LongAway(FakeStore):
        def write(self, letter: DeadLetter) -> None:
            raise StoreUnavailable("away")

    monkeypatch.setenv("WEBHOOKS_MONGODB_TIMEOUT_S", "0.05")
    store = LongAway()
    assert bury(store) == "given back"
    assert store.written == []
    assert not faults


def test_letter_that_cannot_be_stored_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(RuntimeError("a defect"))
    monkeypatch.setattr(deadletter_writer, "get_services", lambda: store)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    writer = deadletter_writer.DeadLetterWriter()
    writer.write(make_letter(), lambda: done.put("first"), lambda: done.put("back"))
    writer.write(make_letter(), lambda: done.put("second"), lambda: done.put("back"))
    assert done.get(timeout=10) == "second"
