"""A webhook document that cannot be used: an event that matches it leaves one log that says why, and nothing else."""

import time
from typing import Any

import pytest
from bson import ObjectId

from tests.acceptance.conftest import RETRY_DELAY_S, Stack
from tests.lab.receiver import Receiver
from tests.lab.samples_data import read_sample
from tests.lab.worker import Worker
from webhooks.models import COTWebhook

EVENT = read_sample("event-task-create")
UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "file": ({"url": "file:///etc/passwd"}, "url: its scheme is neither http nor https"),
    "gopher": ({"url": "gopher://127.0.0.1:6379/_SET"}, "url: its scheme is neither http nor https"),
    "credentials": ({"url": "https://user:secret@a.example/"}, "url: it holds credentials"),
    "backslash": ({"url": "https://a.example\\b"}, "url: it holds a space, a control character or a backslash"),
    "line_break": ({"url": "https://a.example/\r\nX: y"}, "url: it holds a space, a control character or a backslash"),
    "no_url": ({"url": None}, "url: should be a valid string"),
    "active": ({"isActive": "true"}, "isActive: should be a valid boolean"),
    "company": ({"company": EVENT["company"]}, "company: must be stored as an ObjectId"),
    "ordered": ({"ordered": "yes"}, "ordered: should be a valid boolean"),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("arguments", [[], ["--task-events"]], ids=["unwatched", "watched"])
def test_event_for_an_unusable_webhook_leaves_one_failed_log(stack: Stack, arguments: list[str]) -> None:
    sample = COTWebhook.model_validate(read_sample("webhook-task")).to_bson()
    ids = {code: ObjectId() for code in UNUSABLE}
    for code, (change, _) in UNUSABLE.items():
        stack.database["webhooks"].insert_one({**sample, "_id": ids[code], "code": code, **change})
    others = [{"url": "file:///", "isActive": False}, {"url": "file:///", "trigger": "logout-user"}]
    for number, change in enumerate(others):
        stack.database["webhooks"].insert_one({**sample, "_id": ObjectId(), "code": f"other_{number}", **change})
    with Receiver() as receiver:
        healthy = stack.add_webhook(receiver.url)
        worker = Worker(stack.folder, stack.settings, "worker", *arguments)
        stack.workers.append(worker)
        worker.start()
        event_id = stack.send_task(EVENT)
        stack.logs(len(UNUSABLE) + 1)
        # Time for a retry that should not be.
        time.sleep(RETRY_DELAY_S + 2)
        logs = stack.logs(len(UNUSABLE) + 1)
        assert len(receiver.requests) == 1
    assert len(logs) == len(UNUSABLE) + 1
    by_webhook = {log["subscription"]: log for log in logs}
    assert by_webhook.pop(healthy)["status"] == 200
    for code, (_, reason) in UNUSABLE.items():
        log = by_webhook[ids[code]]
        assert (log["status"], log["retry"], log["response"]) == (409, 0, f"webhook cannot be used: {reason}")
        assert (log["company"], log["attempt"]["event_id"]) == (ObjectId(EVENT["company"]), event_id)
        assert (log["attempt"]["outcome"], log["attempt"]["error_kind"]) == ("failed", "webhook_unusable")
        assert (log["attempt"]["next_at"], log["attempt"]["peer"]) == (None, None)
    assert stack.database["deliveries"].count_documents({}) == 0
