"""Which webhooks get an event: six triggers, three context fields, company and activity."""

from typing import Any

import pytest

from tests.lab.samples_data import read_sample
from webhooks.models import TRIGGERS, COTEvent, COTWebhook
from webhooks.rules.matching import explain_mismatch, is_match, match

OTHER_ID = "0123456789abcdef01234567"
EVENTS = {
    "create-edit-delete-user": "event-user-edit",
    "create-edit-delete-task": "event-task-create",
    "create-edit-delete-survey": "event-survey-create",
    "create-edit-delete-property": "event-property-delete",
    "create-edit-delete-note": "event-note-edit",
    "logout-user": "event-user-logout",
}


def webhook(trigger: str, **changes: Any) -> COTWebhook:
    return COTWebhook.model_validate({**read_sample("webhook-task"), "trigger": trigger, "context": {}, **changes})


def event(name: str, **changes: Any) -> COTEvent:
    return COTEvent.model_validate({**read_sample(name), **changes})


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("wanted", EVENTS)
def test_trigger_matches_its_own_type_only(trigger: str, wanted: str):
    assert is_match(event(EVENTS[wanted]), webhook(trigger)) is (trigger == wanted)


@pytest.mark.parametrize("trigger", [t for t in TRIGGERS if t != "logout-user"])
@pytest.mark.parametrize(("name", "expected"), [("create", True), ("edit", True), ("delete", True), ("logout", False)])
def test_trigger_matches_its_events_only(trigger: str, name: str, expected: bool):
    value = {**read_sample(EVENTS[trigger]), "event": name}
    value.pop("diff", None)
    assert is_match(COTEvent.model_validate(value), webhook(trigger)) is expected


def test_logout_trigger_matches_logout_only():
    assert not is_match(event("event-user-logout", event="create"), webhook("logout-user"))


@pytest.mark.parametrize(
    ("trigger", "field", "key"),
    [
        ("create-edit-delete-task", "taskGroup", "taskGroup"),
        ("create-edit-delete-survey", "survey", "surveyId"),
        ("create-edit-delete-survey", "group", "group"),
    ],
)
def test_context_narrows(trigger: str, field: str, key: str):
    made = event(EVENTS[trigger])
    assert made.data is not None
    right = made.data[key]
    assert is_match(made, webhook(trigger, context={field: right}))
    assert is_match(made, webhook(trigger, context={field: right.upper()}))
    assert is_match(made, webhook(trigger, context={field: ""}))
    assert is_match(made, webhook(trigger, context={field: None}))
    assert not is_match(made, webhook(trigger, context={field: OTHER_ID}))
    without = event(EVENTS[trigger], data={k: v for k, v in made.data.items() if k != key})
    assert not is_match(without, webhook(trigger, context={field: right}))
    assert not is_match(event(EVENTS[trigger], data=None), webhook(trigger, context={field: right}))


def test_context_needs_all_of_its_fields():
    made = event("event-survey-create")
    assert made.data is not None
    context = {"survey": made.data["surveyId"], "group": OTHER_ID}
    assert not is_match(made, webhook("create-edit-delete-survey", context=context))


@pytest.mark.parametrize("field", ["survey", "group", "taskGroup"])
def test_context_field_of_another_trigger_narrows_nothing(field: str):
    assert is_match(event("event-note-edit"), webhook("create-edit-delete-note", context={field: OTHER_ID}))


def test_inactive_and_foreign_webhooks_get_nothing():
    hooks = [
        webhook("create-edit-delete-task", _id="1" * 24),
        webhook("create-edit-delete-task", _id="2" * 24, isActive=False),
        webhook("create-edit-delete-task", _id="3" * 24, company=OTHER_ID),
        webhook("create-edit-delete-task", _id="4" * 24),
    ]
    assert [str(hook.id)[0] for hook in match(event("event-task-create"), hooks)] == ["1", "4"]


@pytest.mark.parametrize("wanted", EVENTS)
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_mismatch_is_explained_exactly_where_there_is_none(wanted: str, trigger: str):
    sample = event(EVENTS[wanted])
    for one in (webhook(trigger), webhook(trigger, isActive=False), webhook(trigger, company=OTHER_ID)):
        assert (explain_mismatch(sample, one) is None) is is_match(sample, one)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"company": OTHER_ID}, "it belongs to another company"),
        ({"trigger": "logout-user"}, "its trigger asks for Auth logout"),
        ({"isActive": False}, "it is inactive"),
        (
            {"context": {"taskGroup": OTHER_ID}},
            f"its context asks for taskGroup {OTHER_ID}, and the event has 6261612a8f1e99002e5c8cce",
        ),
    ],
)
def test_mismatch_is_explained_by_what_differs(changes: dict[str, Any], reason: str):
    found = explain_mismatch(event("event-task-create"), webhook(**{"trigger": "create-edit-delete-task", **changes}))
    assert found == reason
