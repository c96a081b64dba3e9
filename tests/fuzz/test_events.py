"""Events: refused in words that repeat no value, or delivered as they were given, on every attempt."""

import enum
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId
from bson.codec_options import CodecOptions
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.utils.json import dumps
from pydantic import ValidationError

from tests.fuzz.hostile import (
    ANY_TEXT,
    JSON_TREES,
    KEYS,
    MARK,
    PYTHON_TREES,
    UNSAFE,
    as_json,
    at_most,
    make_event,
    nested,
    ruined,
)
from tests.lab.logs import NOON
from webhooks.errors import InvalidEvent
from webhooks.models import AttemptDetails, COTEvent, COTWebhookLog, parse_event, parse_event_text
from webhooks.models.log import NO_RESPONSE_STATUS
from webhooks.worker.startup import _loads

LIMIT = 256 * 1024
EVENTS = ruined(make_event(), PYTHON_TREES)


def check_refusal(error: InvalidEvent) -> None:
    text = str(error)
    assert text.startswith("invalid event: ")
    assert MARK not in text
    assert not UNSAFE.search(text)
    assert "\n" not in text
    assert len(text) < 5_000


def make_log(event: COTEvent) -> COTWebhookLog:
    """Make the log of an attempt, as the worker does."""
    details = AttemptDetails(
        delivery_id="msg_1", event_id="e1", outcome="failed", webhook="w", origin="", started_at=NOON, total_ms=1
    )
    fields: Any = {"log_id": ObjectId(), "created_at": NOON, "status": NO_RESPONSE_STATUS, "retry": 0}
    return COTWebhookLog.make(**fields, response="", event=event, webhook_id=ObjectId(), attempt=details)


def has_reference_keys(value: Any) -> bool:
    """Tell whether the driver makes a DBRef of some part, whose keys then come back in its own order."""
    if isinstance(value, list):
        return any(map(has_reference_keys, value))
    return isinstance(value, dict) and ({"$ref", "$id"} <= value.keys() or any(map(has_reference_keys, value.values())))


def check_delivery(event: COTEvent) -> None:
    """Take an accepted event along each way that it goes; the bytes that are sent must be the same at its end."""
    body = event.to_json().encode()
    assert json.loads(body) == event.to_wire()
    # Through Celery, as our own producer publishes it and our worker reads it.
    assert parse_event_text(_loads(dumps([event.to_json()]))[0], LIMIT).to_json().encode() == body
    # Through Celery, as a producer with nothing but Celery publishes it.
    assert parse_event(_loads(dumps([event.to_wire()]))[0], LIMIT).to_json().encode() == body
    # Through the ledger and into the attempt, whose log is what people read.
    text = bson.decode(bson.encode({"body": body.decode()}))["body"]
    log = make_log(COTEvent.model_validate(json.loads(text)))
    assert text.encode() == body
    stored = bson.decode(bson.encode(log.to_bson()), codec_options=CodecOptions(tz_aware=True))
    again = COTWebhookLog.model_validate(stored)
    assert json.loads(again.to_json()) == json.loads(log.to_json())
    if not has_reference_keys(event.to_wire()):
        assert again.to_json() == log.to_json()


@given(EVENTS)
def test_any_dict_is_refused_in_words_or_sent_as_it_was_given(value: dict[str, Any]) -> None:
    try:
        event = parse_event(value, LIMIT)
    except InvalidEvent as error:
        check_refusal(error)
        return
    check_delivery(event)
    assert list(event.to_wire()) == list(value)


@given(JSON_TREES, KEYS, st.booleans())
@example({"$id": 1, "z": 2, "$ref": "c"}, "$ref", True)
def test_any_data_under_any_key_is_refused_in_words_or_sent_as_it_was_given(tree: Any, key: str, in_diff: bool) -> None:
    changes: dict[str, Any] = {"data": {key: tree}, key: tree}
    if in_diff:
        changes["diff"] = {"/" + key: {"previous": tree, "changedTo": None, key: 1, "$ref": "x", "$id": tree}}
    value = {**make_event(), **changes}
    try:
        event = parse_event(value, LIMIT)
    except InvalidEvent as error:
        check_refusal(error)
        return
    check_delivery(event)
    assert event.to_json() == as_json(value)


@pytest.mark.parametrize("place", ["event", "data", "extraData", "diff", "nested"])
def test_part_that_looks_like_a_reference_to_mongodb_is_sent_and_logged(place: str) -> None:
    reference = {"$ref": "c", "$id": "1", "more": 2}
    changes: dict[str, Any] = {
        "event": reference,
        "data": {"data": reference},
        "extraData": {"extraData": reference},
        "diff": {"diff": {"/a": {"$ref": "c", "$id": 1, "previous": 1, "changedTo": 2}}},
        "nested": {"data": {"a": [reference]}},
    }[place]
    check_delivery(parse_event(make_event(**changes), LIMIT))


@given(PYTHON_TREES)
def test_anything_else_is_refused_in_words(value: object) -> None:
    with pytest.raises(InvalidEvent) as raised:
        parse_event(value, LIMIT)
    check_refusal(raised.value)


def make(value: dict[str, Any]) -> COTEvent | str:
    """Make an event as a producer does that has this package; the text of the error where that is not possible."""
    try:
        return COTEvent.model_validate(value)
    except ValidationError as error:
        return str(error)


@given(EVENTS)
def test_event_made_by_its_class_is_taken_as_the_dict_would_be(value: dict[str, Any]) -> None:
    made = make(value)
    if isinstance(made, str):
        assert MARK not in made
        return
    try:
        expected = parse_event(value, LIMIT).to_json()
    except InvalidEvent:
        with pytest.raises(InvalidEvent) as raised:
            parse_event(made, LIMIT)
        check_refusal(raised.value)
    else:
        assert parse_event(made, LIMIT).to_json() == expected


@st.composite
def texts(draw: st.DrawFn) -> str:
    """JSON text of an event with some of it cut out, doubled or put in."""
    text = json.dumps(draw(ruined(make_event(), JSON_TREES)), ensure_ascii=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        parts = ["", text[start:end] * 2, draw(ANY_TEXT), "NaN", "-Infinity", "1e999", "1" * 5000, "[" * 20, "\ufeff"]
        text = text[:start] + draw(st.sampled_from(parts)) + text[end:]
    return text


@given(texts() | ANY_TEXT)
@example(as_json(make_event())[:-1] + ',"company":"625bcbdcc9a8e3a86dbf041d"}')
def test_any_text_is_refused_in_words_or_sent_as_it_was_given(text: str) -> None:
    try:
        event = parse_event_text(text, LIMIT)
    except InvalidEvent as error:
        check_refusal(error)
        return
    check_delivery(event)
    assert json.loads(text) == event.to_wire()
    keys: list[str] = []
    json.loads(text, object_pairs_hook=lambda pairs: keys.extend(key for key, _ in pairs))
    sent: list[str] = []
    json.loads(event.to_json().encode(), object_pairs_hook=lambda pairs: sent.extend(key for key, _ in pairs))
    assert keys == sent


def body_or_none(read: Callable[[], COTEvent]) -> bytes | None:
    try:
        return read().to_json().encode()
    except (ValueError, RecursionError):  # InvalidEvent is one; of the others kombu makes what becomes a dead letter
        return None


@given(texts())
def test_event_in_a_message_is_read_as_its_text_is(text: str) -> None:
    from_message = body_or_none(lambda: parse_event(_loads(text), LIMIT))
    assert from_message == body_or_none(lambda: parse_event_text(text, LIMIT))


@pytest.mark.parametrize("where", ["top", "data", "nested"])
def test_worker_takes_no_object_with_a_key_twice(where: str) -> None:
    text = {"top": '{"a":1,"a":2}', "data": '[[{"data":{"a":1,"a":1}}],{},null]', "nested": '{"b":[{"":1,"":2}]}'}[
        where
    ]
    with pytest.raises(ValueError, match="a key appears twice"):
        _loads(text)


class Number(enum.IntEnum):
    """What a producer may use for a number."""

    ONE = 1


def shared(levels: int) -> Any:
    inner: Any = [1]
    for _ in range(levels):
        inner = [inner, inner]
    return inner


def circle() -> Any:
    inner: list[Any] = []
    inner += [inner, inner]
    return inner


EARLY = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
LATE = datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))

#: Data → words of its refusal; None: it is delivered.
EXTREMES: dict[str, tuple[Any, str | None]] = {
    "deep-dicts": (nested(10_000), "is nested deeper than 90 levels"),
    "deep-lists": ({"a": nested(10_000, key=None)}, "is nested deeper than 90 levels"),
    "deep-with-long-keys": (nested(5_000, key="k" * 10_000), "is nested deeper than 90 levels"),
    "shared-lists": ({"a": shared(60)}, "holds more than 262144 values"),
    "circle": ({"a": circle()}, "is nested deeper than 90 levels"),
    "long-key-over-a-long-list": ({"k" * 100_000: [0] * 60_000}, None),
    "many-keys": ({str(n): n for n in range(15_000)}, None),
    "ten-megabytes": ({"a": "x" * 10_000_000}, "more than WEBHOOKS_MAX_EVENT_BYTES allows"),
    "ten-megabytes-key": ({"x" * 10_000_000: 1}, "more than WEBHOOKS_MAX_EVENT_BYTES allows"),
    "bad-ten-megabytes-key": ({"x" * 10_000_000: b""}, "is a Python bytes"),
    "nul": ({"a": "\x00" * 10}, None),
    "int64-of-mongodb": ({"a": Int64(5)}, None),
    "int-enum": ({"a": Number.ONE}, None),
    "beyond-64-bits": ({"a": 2**63}, "data.a: is a number beyond 64 bits"),
    "thousands-of-digits": ({"a": 10**20_000}, "data.a: is a number beyond 64 bits"),
    "before-year-1": ({"a": EARLY}, "data.a: is a date that in UTC is not within the years 1 to 9999"),
    "after-year-9999": ({"a": LATE}, "data.a: is a date that in UTC is not within the years 1 to 9999"),
    "year-1": ({"a": datetime(1, 1, 1, tzinfo=UTC)}, None),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("name", "is_made_by_class"),
    [
        *(pytest.param(name, False, id=f"dict-{name}") for name in EXTREMES),
        # The class writes out what stands in many places: its maker waits, and nobody else.
        *(pytest.param(name, True, id=f"class-{name}") for name in EXTREMES if name not in ("shared-lists", "circle")),
    ],
)
def test_extreme_data_is_refused_in_words_or_sent_at_once(name: str, is_made_by_class: bool) -> None:
    data, words = EXTREMES[name]
    value: Any = make_event(data=data)
    with at_most(5):
        if is_made_by_class:
            value = make(value)
            if isinstance(value, str):
                assert words is not None
                assert "is nested too deeply" in value or words.removeprefix("data.a: is ") in value
                return
        if words is None:
            check_delivery(parse_event(value, 1024 * 1024))
        else:
            with pytest.raises(InvalidEvent) as raised:
                parse_event(value, LIMIT)
            assert words in str(raised.value)
            check_refusal(raised.value)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a":' * 10_000, "it is nested too deeply"),
        ("[" * 1_000_000, "it is nested too deeply"),
        ('{"a":"' + "x" * 10_000_000, "it is not JSON"),
        ('{"a":' + "1" * 1_000_000 + "}", "a number has thousands of digits; send it as a string"),
        ('{"a":1e' + "9" * 1_000_000 + "}", "a: is not a finite number"),
        ("{" + '"' + "k" * 1_000_000 + '":1,' * 1 + '"' + "k" * 1_000_000 + '":1}', "a key appears twice"),
    ],
    ids=["deep-dicts", "deep-lists", "ten-megabytes", "digits", "exponent", "long-key-twice"],
)
def test_extreme_text_is_refused_in_words_at_once(text: str, words: str) -> None:
    with at_most(5), pytest.raises(InvalidEvent, match=words) as raised:
        parse_event_text(text, LIMIT)
    check_refusal(raised.value)


def test_refusal_names_a_place_and_cannot_steer_a_terminal() -> None:
    with pytest.raises(InvalidEvent) as raised:
        parse_event(make_event(data={"\x1b[2J\n": [{"\u202e": float("nan")}]}), LIMIT)
    words = "is not a finite number, or too large for one; send it as a string"
    assert str(raised.value) == f"invalid event: data.\\x1b[2J\\n.0.\\u202e: {words}"


def test_deep_event_is_refused_wherever_the_stack_stands() -> None:
    def at_depth(levels: int) -> None:
        if levels:
            at_depth(levels - 1)
            return
        parse_event(make_event(data=nested(80)), LIMIT)  # as deep as it may be
        with pytest.raises(InvalidEvent):
            parse_event(make_event(data=nested(10_000)), LIMIT)

    at_depth(sys.getrecursionlimit() // 2)
