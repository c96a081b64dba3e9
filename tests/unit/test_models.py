"""The objects of the contract: golden samples, both forms, and what is refused."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from bson.codec_options import CodecOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.samples_data import SAMPLES, read_sample
from webhooks.errors import InvalidEvent, InvalidWebhook
from webhooks.models import (
    TRIGGERS,
    AttemptDetails,
    COTEvent,
    COTWebhook,
    COTWebhookLog,
    format_instant,
    parse_event,
    parse_event_text,
    parse_instant,
    parse_webhook,
)
from webhooks.models.wire import MAX_DEPTH, WireModel

LIMIT = 256 * 1024
MODELS: dict[str, type[WireModel]] = {"event": COTEvent, "webhook": COTWebhook, "log": COTWebhookLog}
SAMPLE_NAMES = sorted(path.stem for path in SAMPLES.glob("*.json"))


def model_of(sample: str) -> type[WireModel]:
    return MODELS[sample.partition("-")[0]]


def stored(document: dict[str, Any]) -> dict[str, Any]:
    """Take a document through real BSON, as MongoDB would."""
    return bson.decode(bson.encode(document), codec_options=CodecOptions(tz_aware=True))


def event(**changes: Any) -> dict[str, Any]:
    return {**read_sample("event-note-edit"), **changes}


def test_samples_are_all_of_the_contract():
    assert len(SAMPLE_NAMES) == 8


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_sample_parsed_and_written_is_the_same_json(name: str):
    text = json.dumps(read_sample(name), ensure_ascii=False, separators=(",", ":"))
    model = model_of(name).model_validate(read_sample(name))
    assert model.to_json() == text
    assert model.model_dump_json() == text
    assert model_of(name).model_validate_json(text).to_json() == text


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_sample_through_mongodb_is_the_same_json(name: str):
    model = model_of(name).model_validate(read_sample(name))
    assert model_of(name).model_validate(stored(model.to_bson())).to_json() == model.to_json()


def test_log_in_mongodb_has_object_ids_and_dates():
    document = stored(COTWebhookLog.model_validate(read_sample("log-task-create-timeout")).to_bson())
    assert document["_id"] == ObjectId("62742dd824c886d54e60f02b")
    assert document["company"] == ObjectId("625bcbdcc9a8e3a86dbf041c")
    assert document["subscription"] == ObjectId("62685990d918fb5557f9f992")
    assert document["createdAt"] == datetime(2022, 5, 5, 20, 4, 40, 84_000, tzinfo=UTC)
    assert document["event"]["company"] == ObjectId("625bcbdcc9a8e3a86dbf041c")
    assert document["event"]["createdAt"] == datetime(2022, 5, 5, 19, 54, 29, 924_000, tzinfo=UTC)
    assert document["event"]["data"]["startDate"] == "2022-05-05T19:54:29.117Z"  # free in shape: as it was sent


def test_logout_in_mongodb_has_its_user_as_object_id():
    document = stored(COTEvent.model_validate(read_sample("event-user-logout")).to_bson())
    assert document["extraData"] == {"userId": ObjectId("6261612d9fa3b40007c2ecc1"), "timestamp": 1651867212}


def test_webhook_in_mongodb_has_context_ids():
    document = stored(COTWebhook.model_validate(read_sample("webhook-task")).to_bson())
    assert document["context"] == {"survey": "", "group": "", "taskGroup": ObjectId("6261612a8f1e99002e5c8cce")}


def test_event_body_keeps_order_and_unknown_keys():
    given_event = {"zeta": [1, {"b": 2, "a": 1}], **event(), "alpha": "ñ\u2028"}
    body = parse_event(given_event, LIMIT).to_json().encode()
    assert body == json.dumps(given_event, ensure_ascii=False, separators=(",", ":")).encode()


def test_event_from_keywords_keeps_their_order():
    made = COTEvent(
        event="logout",
        type="Auth",
        company=ObjectId("6" * 24),
        data=None,
        extraData=None,
        createdAt=datetime(2026, 1, 2, tzinfo=UTC),
    )
    assert list(made.to_wire()) == ["event", "type", "company", "data", "extraData", "createdAt"]
    assert made.to_wire()["createdAt"] == "2026-01-02T00:00:00.000Z"
    assert parse_event(made, LIMIT).to_json() == made.to_json()


def test_event_takes_object_ids_and_aware_dates_of_a_producer():
    chile = timezone(timedelta(hours=-4))
    made = parse_event(
        event(
            company=ObjectId("6" * 24), data={"at": datetime(2026, 1, 2, 3, tzinfo=chile), "ids": [ObjectId("7" * 24)]}
        ),
        LIMIT,
    )
    assert made.to_wire()["company"] == "6" * 24
    assert made.to_wire()["data"] == {"at": "2026-01-02T07:00:00.000Z", "ids": ["7" * 24]}


NESTED: Any = {}
for _ in range(MAX_DEPTH):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"company": "62685990d918fb5557f9f99"}, "company: must be an ObjectId", id="23-digits"),
        pytest.param({"company": 7}, "company: must be an ObjectId", id="number-as-id"),
        pytest.param({"type": "COTThing"}, "type: should be 'COTTask'", id="unknown-type"),
        pytest.param({"event": "update"}, "event: should be 'create'", id="unknown-event"),
        pytest.param({"createdAt": "2022-05-07T09:30:00Z"}, "createdAt: must be a date as", id="no-milliseconds"),
        pytest.param({"createdAt": "2022-05-07T09:30:00.000"}, "createdAt: must be a date as", id="no-zone"),
        pytest.param({"createdAt": "2022-05-07T09:30:00.000+00:00"}, "createdAt: must be a date as", id="offset"),
        pytest.param({"createdAt": "2022-05-07T09:30:00.000000Z"}, "createdAt: must be a date as", id="microseconds"),
        pytest.param({"createdAt": "2022-02-30T09:30:00.000Z"}, "createdAt: is not an existing date", id="30-february"),
        pytest.param({"createdAt": 1651915800000}, "createdAt: must be a date as", id="epoch"),
        pytest.param({"createdAt": datetime(2022, 5, 7)}, "createdAt: is a date without a time zone", id="naive"),
        pytest.param({"data": []}, "data: should be a valid dict", id="data-list"),
        pytest.param({"data": "x"}, "data: should be a valid dict", id="data-text"),
        pytest.param({"diff": None}, "diff: must be an object", id="diff-null"),
        pytest.param({"diff": {"name": {"previous": 1, "changedTo": 2}}}, "not a JSON Pointer", id="diff-no-pointer"),
        pytest.param({"diff": {"/name": {"previous": 1}}}, 'without "previous" and "changedTo"', id="diff-half"),
        pytest.param({"event": "create"}, "diff: only an edit has one", id="diff-on-create"),
        pytest.param({"data": {"n": [1, 2**63]}}, "data.n.1: is a number beyond 64 bits", id="int-over"),
        pytest.param({"data": {"n": -(2**63) - 1}}, "data.n: is a number beyond 64 bits", id="int-under"),
        pytest.param({"data": {"n": math.nan}}, "data.n: is not a finite number", id="nan"),
        pytest.param({"x": math.inf}, "x: is not a finite number", id="inf"),
        pytest.param({"data": {"a\x00b": 1}}, "data: has a key with a NUL", id="nul-key"),
        pytest.param({"data": {"\ud800": 1}}, "data: has a key with half of a surrogate", id="surrogate-key"),
        pytest.param({"data": {"a": "\udfff"}}, "data.a: has half of a surrogate", id="surrogate"),
        pytest.param({"data": {1: 1}}, "data: has a key that is not a string but a Python int", id="int-key"),
        pytest.param({"data": {"a": Decimal(1)}}, "data.a: is a Python Decimal", id="decimal"),
        pytest.param({"data": {"a": b"x"}}, "data.a: is a Python bytes", id="bytes"),
        pytest.param({"data": NESTED}, f"is nested deeper than {MAX_DEPTH} levels", id="too-deep"),
        pytest.param(
            {"data": {"a": "x" * LIMIT}}, "more than WEBHOOKS_MAX_EVENT_BYTES allows (262144)", id="too-large"
        ),
    ],
)
def test_bad_event_is_refused_in_words(changes: dict[str, Any], words: str):
    with pytest.raises(InvalidEvent) as raised:
        parse_event(event(**changes), LIMIT)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", ["company", "type", "event", "createdAt", "data", "extraData"])
def test_event_without_a_field_is_refused(field: str):
    value = event()
    del value[field]
    with pytest.raises(InvalidEvent, match=f"{field}: is missing"):
        parse_event(value, LIMIT)


@pytest.mark.parametrize("value", [None, 1, "text", [], [event()]], ids=["null", "number", "text", "empty", "list"])
def test_event_that_is_no_object_is_refused(value: object):
    with pytest.raises(InvalidEvent, match="must be an object"):
        parse_event(value, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        {"n": [2**63 - 1, -(2**63)]},
        {"": 1, "a.b": 2, "$set": {"$x": 1}, "$ref": 5},
        {"a": "\x00", "b": "\U0001f600"},
        {"$ref": "c", "$id": 1, "z": 2},
        {"__type__": "datetime", "__value__": "x"},
    ],
    ids=["64-bits", "operators", "odd-strings", "looks-like-dbref", "looks-like-kombu"],
)
def test_odd_but_storable_data_survives_mongodb(data: dict[str, Any]):
    made = parse_event(event(data=data), LIMIT)
    assert COTEvent.model_validate(stored(made.to_bson())).to_json() == made.to_json()


@pytest.mark.parametrize("is_text", [True, False])
def test_event_whose_log_mongodb_cannot_hold_is_refused(is_text: bool):
    """Within ``WEBHOOKS_MAX_EVENT_BYTES`` as JSON, of which BSON takes up to six times as much."""
    value = event(data={"a": [0] * 1_100_000})
    with pytest.raises(InvalidEvent, match="as MongoDB stores it, more than fit into a log"):
        parse_event_text(json.dumps(value), 4 * 1024 * 1024) if is_text else parse_event(value, 4 * 1024 * 1024)
    parse_event(event(data={"a": "x" * 4_000_000}), 4 * 1024 * 1024)


def test_event_of_exactly_the_limit_is_accepted():
    size = len(parse_event(event(), LIMIT).to_json().encode())
    parse_event(event(), size)
    with pytest.raises(InvalidEvent, match=f"has {size} bytes"):
        parse_event(event(), size - 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it is not JSON"),
        ('{"a": 1, "a": 2}', "a key appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ("null", "must be an object"),
        ('{"a": 1' + "0" * 5000 + "}", "it is not JSON"),
    ],
    ids=["broken", "twice", "deep", "null", "endless-number"],
)
def test_bad_event_text_is_refused_in_words(text: str, words: str):
    with pytest.raises(InvalidEvent, match=words):
        parse_event_text(text, LIMIT)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**40])
def test_number_beyond_64_bits_is_refused_in_text_as_our_producers_write_it(number: int):
    """The quick reader reads it, and MongoDB would not store a log of it."""
    text = json.dumps(event(data={"n": number}), separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(InvalidEvent, match=r"data\.n: is a number beyond 64 bits"):
        parse_event_text(text, LIMIT)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), "9" * 40])
def test_what_looks_like_a_number_beyond_64_bits_but_is_none_is_accepted(value: object):
    text = json.dumps(event(data={"n": value}), separators=(",", ":"), ensure_ascii=False)
    assert parse_event_text(text, LIMIT).to_json() == text


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=20,
)


@settings(deadline=None)  # a busy machine is no defect
@given(JSON_VALUES)
def test_any_data_is_refused_in_words_or_survives_to_the_byte(data: Any):
    try:
        made = parse_event(event(data={"x": data}), LIMIT)
    except InvalidEvent:
        return
    assert json.loads(made.to_json().encode())["data"] == {"x": data}
    assert COTEvent.model_validate(stored(made.to_bson())).to_wire() == made.to_wire()


@given(st.datetimes(timezones=st.just(UTC)))
def test_instant_written_and_read_is_the_same_millisecond(instant: datetime):
    text = format_instant(instant)
    assert parse_instant(text) == instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def webhook(**changes: Any) -> dict[str, Any]:
    return {**read_sample("webhook-task"), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code": "WO"}, "code: must be small letters"),
        ({"code": ""}, "code: must be small letters"),
        ({"code": "wo-update"}, "code: must be small letters"),
        ({"code": "ñ"}, "code: must be small letters"),
        ({"url": "ftp://host/"}, "url: its scheme is neither http nor https"),
        ({"url": "https:///path"}, "url: it has no host"),
        ({"url": "https://user:secret@host/"}, "url: it holds credentials"),
        ({"url": "https://host:99999/"}, "url: its port is not between 1 and 65535"),
        ({"url": "https://host:0/"}, "url: its port is not between 1 and 65535"),
        ({"url": "https://ho st/"}, "url: it holds a space"),
        ({"url": "https://host/\n"}, "url: it holds a space"),
        ({"trigger": "create-task"}, "trigger: should be"),
        ({"isActive": "yes"}, "isActive: should be a valid boolean"),
        ({"context": {"taskGroup": "x"}}, "context.taskGroup: must be an ObjectId"),
        ({"company": None}, "company: must be an ObjectId"),
    ],
)
def test_bad_webhook_is_refused_in_words(changes: dict[str, Any], words: str):
    with pytest.raises(InvalidWebhook) as raised:
        parse_webhook(webhook(**changes))
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


SENDING = {"traced": False, "ordered": False, "on_exhausted": "next", "rate_limit": None, "rate_burst": 1}


def sending_of(made: COTWebhook) -> dict[str, Any]:
    return {field: getattr(made, field) for field in SENDING}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        (dict.fromkeys(SENDING), {}),
        ({"ordered": True, "on_exhausted": "stop"}, {"ordered": True, "on_exhausted": "stop"}),
        ({"rate_limit": 5, "rate_burst": 10}, {"rate_limit": 5.0, "rate_burst": 10}),
        ({"rate_limit": 0.001}, {"rate_limit": 0.001}),
        ({"traced": True}, {"traced": True}),
        ({"rate_limit": 10_000, "rate_burst": 10_000}, {"rate_limit": 10_000.0, "rate_burst": 10_000}),
        ({"rate_limit": Int64(5), "rate_burst": Int64(10)}, {"rate_limit": 5.0, "rate_burst": 10}),
        ({"rate_limit": 2.5, "rate_burst": 10.0}, {"rate_limit": 2.5, "rate_burst": 10}),  # a shell's numbers
    ],
    ids=["none", "null", "ordered", "rate", "least", "traced", "most", "int64", "float"],
)
def test_how_a_webhooks_events_are_sent(changes: dict[str, Any], expected: dict[str, Any]):
    made = parse_webhook(stored({**parse_webhook(webhook()).to_bson(), **changes}))
    assert sending_of(made) == {**SENDING, **expected}
    assert [type(value) for value in sending_of(made).values() if value is not None][-1] is int  # no Int64
    assert sending_of(parse_webhook(stored(made.to_bson()))) == sending_of(made)
    assert json.loads(made.to_json()) == {**webhook(), **changes}


@pytest.mark.parametrize("field", ["rate_limit", "rate_burst"])
@pytest.mark.parametrize(
    "value",
    [True, False, "5", "", math.nan, math.inf, -math.inf, 0, -1, 10_001, 2**63 - 1, 1e308, [5], {}, Decimal128("5")],
    ids=repr,
)
def test_rate_that_is_none_is_refused(field: str, value: object):
    document = stored({**parse_webhook(webhook()).to_bson(), field: value})
    with pytest.raises(InvalidWebhook, match=f"^invalid webhook: {field}: [^;]*$"):
        parse_webhook(document)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rate_limit": 0.0009}, "rate_limit"),
        ({"rate_limit": 5e-324}, "rate_limit"),
        ({"rate_burst": 1.5}, "rate_burst"),
        ({"ordered": 1}, "ordered"),
        ({"ordered": "true"}, "ordered"),
        ({"ordered": []}, "ordered"),
        ({"on_exhausted": "Stop"}, "on_exhausted"),
        ({"on_exhausted": ""}, "on_exhausted"),
        ({"on_exhausted": True}, "on_exhausted"),
        ({"traced": 1}, "traced"),
    ],
    ids=str,
)
def test_bad_way_of_sending_is_refused(changes: dict[str, Any], field: str):
    with pytest.raises(InvalidWebhook, match=f"^invalid webhook: {field}: "):
        parse_webhook(webhook(**changes))


def test_webhook_written_by_hand_may_lack_what_only_people_read():
    value = webhook()
    for field in ("name", "description", "code", "context", "__v"):
        del value[field]
    made = parse_webhook(value)
    assert made.label == "62685990d918fb5557f9f992"
    assert made.context.taskGroup == ""


def test_webhook_keeps_fields_that_it_does_not_know():
    assert parse_webhook(webhook(secret="whsec_x")).to_wire()["secret"] == "whsec_x"


def test_webhook_shows_no_path_or_query_as_origin():
    assert parse_webhook(webhook(url="https://host:8443/hook?token=secret")).origin == "https://host:8443"


def test_triggers_are_the_six_of_the_contract():
    assert set(TRIGGERS) == {
        "create-edit-delete-user",
        "create-edit-delete-task",
        "create-edit-delete-survey",
        "create-edit-delete-property",
        "create-edit-delete-note",
        "logout-user",
    }


def test_made_log_has_the_keys_in_the_contracts_order_and_details_last():
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    details = AttemptDetails(
        delivery_id="msg_1",
        event_id="e",
        outcome="success",
        webhook="w",
        origin="http://h",
        started_at=at,
        total_ms=1.5,
    )
    log = COTWebhookLog.make(
        log_id=ObjectId(),
        created_at=at,
        status=200,
        retry=0,
        response="ok",
        event=COTEvent.model_validate(event()),
        webhook_id=ObjectId(),
        attempt=details,
    )
    assert [*read_sample("log-task-create-timeout"), "attempt"] == list(json.loads(log.to_json()))
    document = stored(log.to_bson())
    assert document["attempt"]["started_at"] == at
    assert list(document["event"]) == list(event())
    assert COTWebhookLog.model_validate(document).to_json() == log.to_json()
