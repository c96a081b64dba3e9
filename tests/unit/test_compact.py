"""The stored form of messages: whatever Celery's own worker and one of an earlier version read, ours reads too."""

import copy
import json
from typing import Any

import pytest
from kombu.transport import virtual
from kombu.utils.json import dumps

from webhooks.transport.compact import can_shorten, read_inlined, restore, shorten, write_body
from webhooks.transport.headers import LANE_HEADER
from webhooks.transport.messages import Message, read_message, write_message

EVENT = '{"type":"COTTask","data":{"name":"a \\"b\\" ü \\u0007 \\\\","n":1.50,"big":123456789012345678901}}'
NO_CANVAS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: Decodes bodies as each of kombu's channels does.
CHANNEL: Any = virtual.Channel.__new__(virtual.Channel)


def make_message(args: Any = (EVENT,), kwargs: Any = None, canvas: Any = NO_CANVAS, **headers: Any) -> dict[str, Any]:
    """Make a message as Celery and kombu's `prepare_message` do."""
    return {
        "body": dumps((args, kwargs or {}, canvas)),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "t",
            "id": "e1",
            "shadow": None,
            "eta": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": "e1",
            "parent_id": None,
            "kwargsrepr": "",
            "stamps": {},
            LANE_HEADER: "c/t",
            **headers,
        },
        "properties": {"correlation_id": "e1", "reply_to": "x", "delivery_mode": 2, "delivery_info": {}, "priority": 0},
    }


def store(message: dict[str, Any]) -> dict[str, Any]:
    """Store a message and read it."""
    return read_message(write_message(shorten(message, "tag")).encode())


def payloads(message: dict[str, Any]) -> tuple[Any, Any]:
    """Return what kombu's message and ours have in them."""
    stored = store(message)
    return virtual.Message(stored, channel=CHANNEL).payload, Message(stored, channel=CHANNEL).payload


def test_event_is_inlined_and_read_as_the_same_text():
    theirs, ours = payloads(make_message())
    assert theirs == [[json.loads(EVENT)], {}, None]
    assert tuple(ours) == ([EVENT], {}, None)


@pytest.mark.parametrize(
    ("args", "kwargs", "canvas"),
    [
        ((), {"delivery_id": "msg_1"}, NO_CANVAS),
        ((), {"x": float("nan")}, NO_CANVAS),
        ((EVENT, EVENT), {}, NO_CANVAS),
        ((EVENT,), {"a": 1}, NO_CANVAS),
        ((EVENT,), {}, {**NO_CANVAS, "chain": [{"task": "next"}]}),
        (({"a": 1},), {}, NO_CANVAS),
        (("[1]",), {}, NO_CANVAS),
        (('{"__type__":"uuid","__value__":{"hex":"x"}}',), {}, NO_CANVAS),
        (("\ud800",), {}, NO_CANVAS),
        ((b"bytes",), {}, NO_CANVAS),
    ],
    ids=["kwargs", "nan", "two", "both", "chain", "object", "list", "types", "surrogate", "encoded"],
)
def test_other_arguments_are_read_as_they_were(args: Any, kwargs: Any, canvas: Any):
    theirs, ours = payloads(make_message(args, kwargs, canvas))
    assert repr(ours) == repr(theirs) == repr([list(args), kwargs, None if canvas is NO_CANVAS else canvas])


def test_only_what_a_worker_assumes_is_left_out():
    message = make_message(eta="2026-01-01T00:00:00Z", retries=2, root_id="r", argsrepr="what", traceparent=None)
    message["properties"] |= {"priority": 3, "app_id": "a"}
    before = copy.deepcopy(message)
    assert store(message) == {
        "body": f"[[{EVENT}],{{}},null]",
        "content-type": "application/json",
        "headers": {
            "task": "t",
            "id": "e1",
            "eta": "2026-01-01T00:00:00Z",
            "retries": 2,
            "root_id": "r",
            "argsrepr": "what",
            "traceparent": None,
            LANE_HEADER: "c/t",
        },
        "properties": {"priority": 3, "app_id": "a", "delivery_tag": "tag"},
    }
    assert message == before  # publishing may be tried again with it


@pytest.mark.parametrize(
    "change",
    [{"headers": {}}, {"body": b"x"}, {"content-type": "text/plain"}, {"content-encoding": "binary"}],
    ids=["no_lane", "bytes", "type", "encoding"],
)
def test_only_messages_of_json_with_a_lane_are_shortened(change: dict[str, Any]):
    assert can_shorten(make_message())
    assert not can_shorten({**make_message(), **change})


def test_body_of_many_is_the_body_of_one():
    for args, kwargs in [((EVENT,), {}), ((), {"delivery_id": "ü"})]:
        assert json.loads(write_body(args, kwargs)) == json.loads(shorten(make_message(args, kwargs), "")["body"])


@pytest.mark.parametrize("is_redelivered", [False, True])
def test_what_workers_show_is_put_back(is_redelivered: bool):
    message = store(make_message(redelivered=is_redelivered))
    restore(message, "q")
    redelivered = {"redelivered": True} if is_redelivered else {}
    assert message["headers"]["root_id"] == "e1"
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q", **redelivered}


@pytest.mark.parametrize("info", [None, 7, {"exchange": "x"}], ids=["null", "number", "own"])
def test_what_another_client_wrote_stays(info: Any):
    message: dict[str, Any] = {"headers": {"root_id": None}, "properties": {"delivery_info": info}}
    restore(message, "q")
    assert message == {"headers": {"root_id": None}, "properties": {"delivery_info": info}}


@pytest.mark.parametrize("body", ["", "[[{", "[[]]", '[[{"a":1}],{},{}]', '[[{"a":1}],{},null] '])
def test_body_without_an_inlined_argument_has_none(body: str):
    assert read_inlined(body.encode()) is None


def test_body_of_another_producer_is_no_text_without_a_lane():
    message = {**store(make_message()), "headers": {"task": "t"}}
    assert Message(message, channel=CHANNEL).payload == [[json.loads(EVENT)], {}, None]


@pytest.mark.parametrize("key", ["__type__", "\\u005f_type__", "__\\u0074ype__", "__t\\u0079pe__", "__typ\\u0065__"])
def test_python_types_are_read_however_their_key_is_written(key: str):
    raw = '{"headers": {"x": {"KEY": "bytes", "__value__": "b"}}}'.replace("KEY", key)
    assert read_message(raw.encode())["headers"] == {"x": b"b"}
