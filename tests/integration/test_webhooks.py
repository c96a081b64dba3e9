"""Webhook documents that other services wrote: which of them are used, and which of the rest ask for events."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from tests.lab.samples_data import read_sample
from webhooks.models import COTWebhook
from webhooks.store.webhooks import WebhookStore

WEBHOOK = COTWebhook.model_validate(read_sample("webhook-task")).to_bson()
COMPANY = WEBHOOK["company"]

#: What other services may write, and the reason that a log gives.
UNUSABLE = {
    "file": ({"url": "file:///etc/passwd"}, "url: its scheme is neither http nor https"),
    "gopher": ({"url": "gopher://127.0.0.1:6379/_SET"}, "url: its scheme is neither http nor https"),
    "credentials": ({"url": "https://user:secret@a.example/"}, "url: it holds credentials"),
    "backslash": ({"url": "https://a.example\\b"}, "url: it holds a space, a control character or a backslash"),
    "line-break": ({"url": "https://a.example/\r\n"}, "url: it holds a space, a control character or a backslash"),
    "no-url": ({"url": None}, "url: should be a valid string"),
    "active-text": ({"isActive": "true"}, "isActive: should be a valid boolean"),
    "active-number": ({"isActive": 1}, "isActive: should be a valid boolean"),
    "company-text": ({"company": str(COMPANY)}, "company: must be stored as an ObjectId"),
    "headers": ({"headers": [{"name": "Host", "value": "secret"}]}, "headers.0.name: host is set by this project"),
    "rate": ({"rate_limit": "fast"}, "rate_limit: must be a number"),
    "context": ({"context": "secret"}, None),
    "two": ({"url": "", "ordered": 1}, "url: its scheme is neither http nor https; ordered: should be a valid boolean"),
}

#: What asks for no events, or cannot be told to whom its log would belong.
SILENT = {
    "inactive": {"url": "", "isActive": False},
    "inactive-number": {"url": "", "isActive": 0},
    "inactive-null": {"url": "", "isActive": None},
    "trigger": {"trigger": "create-edit-delete-tasks"},
    "trigger-list": {"trigger": ["create-edit-delete-task"]},
    "other-company": {"url": "", "company": ObjectId()},
    "companies": {"company": [COMPANY, ObjectId()]},
    "id-text": {"_id": "6" * 24},
    "id-number": {"_id": 5},
}


def store(database: Database[dict[str, Any]], *documents: dict[str, Any]) -> WebhookStore:
    database["webhooks"].delete_many({})
    database["webhooks"].insert_many(documents)
    return WebhookStore(database)


@pytest.mark.parametrize(("change", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_document_that_cannot_be_used_is_read_as_far_as_matching_needs(
    database: Database[dict[str, Any]], change: dict[str, Any], reason: str | None
) -> None:
    healthy = {**WEBHOOK, "_id": ObjectId(), "code": "healthy"}
    webhooks = store(database, healthy, {**WEBHOOK, **change})
    assert [one.id for one in webhooks.of_company(COMPANY)] == [healthy["_id"]]
    (found,) = webhooks.unusable_of_company(COMPANY)
    assert (found.id, found.company, found.trigger) == (WEBHOOK["_id"], COMPANY, WEBHOOK["trigger"])
    assert (found.isActive, found.label) == (True, WEBHOOK["code"])
    assert reason is None or found.reason == reason
    assert "secret" not in found.reason
    assert webhooks.get(found.id) is None


def test_operators_find_a_document_whose_company_is_text(database: Database[dict[str, Any]]) -> None:
    webhooks = store(database, {**WEBHOOK, "company": str(COMPANY)})
    assert [one["_id"] for one in webhooks.list_all(COMPANY)] == [WEBHOOK["_id"]]
    assert [one["_id"] for one in webhooks.find(WEBHOOK["code"], COMPANY)] == [WEBHOOK["_id"]]
    assert webhooks.list_all(ObjectId()) == webhooks.find(WEBHOOK["code"], ObjectId()) == []


def test_missing_is_active_is_no_sign_of_a_retired_webhook(database: Database[dict[str, Any]]) -> None:
    webhooks = store(database, {key: value for key, value in WEBHOOK.items() if key != "isActive"})
    (found,) = webhooks.unusable_of_company(COMPANY)
    assert (found.isActive, found.reason) == (True, "isActive: is missing")


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_document_that_asks_for_nothing_makes_no_log(
    database: Database[dict[str, Any]], change: dict[str, Any]
) -> None:
    webhooks = store(database, {**WEBHOOK, **change})
    assert webhooks.of_company(COMPANY) == ()
    assert [one for one in webhooks.unusable_of_company(COMPANY) if one.isActive] == []


@pytest.mark.parametrize(
    ("context", "read"),
    [
        ({"taskGroup": "6" * 24}, "6" * 24),
        ({"taskGroup": ObjectId("6" * 24), "survey": 5}, "6" * 24),
        ({"taskGroup": ""}, ""),
        ({"taskGroup": 5}, ""),
        ([], ""),
        (None, ""),
    ],
)
def test_context_of_an_unusable_document_narrows_as_far_as_it_can_be_read(
    database: Database[dict[str, Any]], context: object, read: str
) -> None:
    (found,) = store(database, {**WEBHOOK, "url": "", "context": context}).unusable_of_company(COMPANY)
    assert found.context.taskGroup == read


def test_both_kinds_come_from_one_read(database: Database[dict[str, Any]]) -> None:
    webhooks = store(database, WEBHOOK)
    assert [one.id for one in webhooks.of_company(COMPANY)] == [WEBHOOK["_id"]]
    database["webhooks"].update_one({"_id": WEBHOOK["_id"]}, {"$set": {"url": ""}})
    # Otherwise an event could go to both, or to neither.
    assert webhooks.unusable_of_company(COMPANY) == ()
