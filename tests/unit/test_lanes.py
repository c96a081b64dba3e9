"""Which lane an event or a message stands in."""

import base64
import json
from typing import Any

import pytest

from webhooks.rules.lanes import lane_of_event, lane_of_message, lane_of_webhook, parent_lane
from webhooks.transport.lanes import parent_lane_of

COMPANY = "625bcbdcc9a8e3a86dbf041c"


def event(kind: str = "COTTask", **data: Any) -> dict[str, Any]:
    return {"company": COMPANY, "type": kind, "event": "create", "data": data}


def message(*args: Any, task: str = "webhooks.deliver", **kwargs: Any) -> dict[str, Any]:
    """Make a message as kombu writes it."""
    body = base64.b64encode(json.dumps([args, kwargs, {}]).encode()).decode()
    return {"body": body, "headers": {"task": task}, "properties": {"body_encoding": "base64"}}


def test_events_that_the_same_webhooks_may_want_share_a_lane():
    assert lane_of_event(event(name="a")) == lane_of_event(event(name="b")) == f"{COMPANY}/COTTask/-"
    assert lane_of_event(event(taskGroup="1" * 24)) == lane_of_event(event(taskGroup="1" * 24, name="b"))


def test_events_that_other_webhooks_may_want_do_not():
    lanes = [
        lane_of_event(event("COTTask")),
        lane_of_event(event("COTTask", taskGroup="1" * 24)),
        lane_of_event(event("COTTask", taskGroup="2" * 24)),
        lane_of_event(event("COTNote", taskGroup="2" * 24)),
        lane_of_event(event("COTSurvey", surveyId="1" * 24)),
        lane_of_event(event("COTSurvey", group="1" * 24)),
        lane_of_event(event("COTSurvey", surveyId="1" * 24, group="1" * 24)),
        lane_of_event({**event(), "company": "f" * 24}),
    ]
    assert len(set(lanes)) == len(lanes)


def test_digits_of_ids_may_be_large_or_small_as_in_matching():
    assert lane_of_event(event(taskGroup="AB" * 12)) == lane_of_event(event(taskGroup="ab" * 12))


def test_lanes_of_one_type_are_parts_of_one_whole():
    whole = parent_lane(COMPANY, "COTTask")
    assert parent_lane_of(lane_of_event(event())) == parent_lane_of(lane_of_event(event(taskGroup="1" * 24))) == whole
    assert parent_lane_of(lane_of_webhook(COMPANY, "2" * 24)) == parent_lane_of("-") == ""


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"company": 1, "type": "COTTask"},
        {"company": "", "type": "COTTask"},
        {"company": "a/b", "type": "COTTask"},
        {"company": COMPANY, "type": "COTWhatever"},
        {"company": COMPANY, "type": ["COTTask"]},
    ],
)
def test_what_is_no_event_has_the_lane_of_all_others(value: dict[str, Any]):
    assert lane_of_event(value) == "-"


@pytest.mark.parametrize("data", [None, [], "x", {"taskGroup": {"$ne": 1}}, {"taskGroup": "\ud800"}])
def test_odd_data_has_some_lane_of_its_company(data: Any):
    assert lane_of_event({**event(), "data": data}).startswith(f"{COMPANY}/COTTask/")


@pytest.mark.parametrize(
    "made",
    [
        message(event()),
        message(event=event()),
        message(json.dumps(event())),
        {**message(), "body": json.dumps([[event()], {}, {}]), "properties": {}},
    ],
)
def test_event_of_a_plain_producer_is_found_in_its_message(made: dict[str, Any]):
    assert lane_of_message(made) == f"{COMPANY}/COTTask/-"


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"headers": None},
        message(event(), task="other"),
        message(),
        message("no JSON"),
        message(7),
        message("[]"),
        {**message(event()), "body": "%%%"},
        {**message(event()), "body": base64.b64encode(b"\xff").decode()},
        {**message(event()), "properties": None},
    ],
)
def test_what_is_no_message_of_an_event_has_the_lane_of_all_others(made: dict[str, Any]):
    assert lane_of_message(made) == "-"
