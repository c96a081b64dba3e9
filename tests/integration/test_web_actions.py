"""What people may do on the pages: asked once, on record, and not by way of another site."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from tests.integration.test_web_pages import add_webhook
from tests.lab.flower import FlowerThread
from tests.lab.logs import make_attempt, make_log
from webhooks.delivery import operate
from webhooks.models import now
from webhooks.producer.app import app
from webhooks.store.gates import By, GateStore, State

Documents = Database[dict[str, Any]]
ANN = {"Authorization": "Basic YW5uOnNlY3JldA=="}


@pytest.fixture
def flower(web_settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowerThread]:
    """Flower that knows people by name."""
    monkeypatch.setattr(operate, "_KNOWN_AFTER_S", 0.01)
    with FlowerThread({"basic_auth": ["ann:secret"]}) as flower:
        yield flower


def act(flower: FlowerThread, path: str, name: str, **values: str) -> Any:
    """Fill in a page's form and send it, as a browser does."""
    return flower.post(*read_form(flower, path, name, **values))


def read_form(flower: FlowerThread, path: str, name: str, **values: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return where a form goes, with what and with which headers."""
    page = flower.get(path, ANN)
    form = re.search(rf'action="([^"]+/actions/{name})">(.*?)</form>', page.text, re.DOTALL)
    assert form, f"{name} is not offered"
    hidden = dict(re.findall(r'name="(_xsrf|action_id)" value="([^"]+)"', form[2]))
    return form[1], {**hidden, **values}, {**ANN, "Cookie": page.headers["Set-Cookie"].partition(";")[0]}


def offered(flower: FlowerThread, path: str) -> set[str]:
    return set(re.findall(r'/actions/(\w+)"', flower.get(path, ANN).text))


def test_action_is_done_said_and_on_record(database: Documents, flower: FlowerThread):
    webhook_id = add_webhook(database)
    answer = act(flower, f"/webhooks/{webhook_id}", "pause", reason="they  <b>move</b>")
    assert answer.status == 303
    gate = GateStore(database).get(webhook_id)
    assert (gate.state, gate.by, gate.reason) == (State.PAUSED, By.OPERATOR, "they <b>move</b>")
    page = flower.get(answer.headers["Location"], ANN).text
    assert "The webhook is paused" in page
    assert "On record as done by ann." in page
    assert "they &lt;b&gt;move&lt;/b&gt;" in page
    (record,) = database["operatoractions"].find()
    assert (record["by"], record["action"], record["webhook_id"]) == ("ann", "pause", webhook_id)
    assert act(flower, f"/webhooks/{webhook_id}", "resume").status == 303
    assert GateStore(database).get(webhook_id).is_open


def test_actions_are_those_that_make_sense(database: Documents, flower: FlowerThread):
    path = f"/webhooks/{add_webhook(database)}"
    assert offered(flower, path) == {"test", "pause", "deactivate"}
    act(flower, path, "deactivate")
    assert database["webhooks"].find_one({}, {"isActive": 1})["isActive"] is False  # pyright: ignore[reportOptionalSubscript]
    assert offered(flower, path) == {"activate"}
    act(flower, path, "activate")
    act(flower, path, "pause")
    assert offered(flower, path) == {"test", "resume", "drain", "deactivate"}


def test_what_cannot_be_done_is_said_and_on_record(database: Documents, flower: FlowerThread):
    webhook_id = add_webhook(database)
    _, values, headers = read_form(flower, f"/webhooks/{webhook_id}", "pause")
    answer = flower.post(f"/webhooks/{webhook_id}/actions/skip", values, headers)
    assert answer.status == 409
    assert "Nothing is pending for the webhook" in answer.text
    (record,) = database["operatoractions"].find()
    assert record["result"].startswith("Not done.")
    assert flower.post(f"/webhooks/{ObjectId()}/actions/pause", values, headers).status == 404
    without_id = {name: value for name, value in values.items() if name != "action_id"}
    assert flower.post(f"/webhooks/{webhook_id}/actions/pause", without_id, headers).status == 400
    assert GateStore(database).get(webhook_id).is_open


def test_form_that_is_sent_twice_acts_once(
    database: Documents, flower: FlowerThread, redis_url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    form = read_form(flower, f"/webhooks/{add_webhook(database)}", "test")
    answers = [flower.post(*form) for _ in range(2)]
    assert [answer.status for answer in answers] == [303, 303]
    assert answers[0].headers["Location"] == answers[1].headers["Location"]
    assert database["deliveries"].count_documents({}) == 1


@pytest.mark.parametrize("options", [{}, {"basic_auth": ["ann:secret"]}], ids=["no login", "login"])
@pytest.mark.usefixtures("web_settings")
def test_form_of_another_site_does_nothing(options: dict[str, Any], database: Documents):
    webhook_id = add_webhook(database)
    with FlowerThread(options) as flower:
        for values in ({}, {"_xsrf": "2|00000000|00000000000000000000000000000000|1"}):
            answer = flower.post(f"/webhooks/{webhook_id}/actions/pause", values, ANN)
            assert answer.status == 403
        assert flower.get(f"/webhooks/{webhook_id}/actions/pause", ANN).status == 405
    assert GateStore(database).get(webhook_id).is_open
    assert database["operatoractions"].count_documents({}) == 0


@pytest.mark.parametrize("how", ["setting", "option"])
@pytest.mark.usefixtures("web_settings")
def test_nobody_acts_on_pages_that_are_for_reading(how: str, database: Documents, monkeypatch: pytest.MonkeyPatch):
    webhook_id = add_webhook(database)
    if how == "setting":
        monkeypatch.setenv("WEBHOOKS_WEB_READONLY", "true")
    with FlowerThread({} if how == "setting" else {"read_only": True}) as flower:
        page = flower.get(f"/webhooks/{webhook_id}")
        assert "/actions/" not in page.text
        cookie = page.headers["Set-Cookie"].partition(";")[0]
        token = cookie.partition("=")[2]
        answer = flower.post(f"/webhooks/{webhook_id}/actions/pause", {"_xsrf": token}, {"Cookie": cookie})
        assert answer.status == 403
        assert "reading only" in answer.text
    assert GateStore(database).get(webhook_id).is_open


def test_delivery_is_resent_as_one_of_its_own(
    database: Documents, flower: FlowerThread, redis_url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    webhook_id = add_webhook(database)
    database["webhooklogs"].insert_one(make_log(attempt=make_attempt()).to_bson())
    for number in (1, 2):
        answer = act(flower, "/webhooks/deliveries/msg_1", "resend")
        assert answer.status == 303
        page = flower.get(answer.headers["Location"], ANN).text
        assert f"on its way again as delivery msg_1~{number}" in page
    pending = {one["_id"]: one for one in database["deliveries"].find()}
    assert set(pending) == {"msg_1~1", "msg_1~2"}
    assert {one["event_id"] for one in pending.values()} == {"e1"}
    assert {one["webhook_id"] for one in pending.values()} == {webhook_id}
    assert "msg_1~1" in page


def test_test_event_goes_to_one_webhook(
    database: Documents, flower: FlowerThread, redis_url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    group = "0123456789abcdef01234567"
    webhook_id = add_webhook(database, context={"taskGroup": group})
    add_webhook(database, _id=str(ObjectId()), code="other", context={})
    assert act(flower, f"/webhooks/{webhook_id}", "test").status == 303
    (pending,) = database["deliveries"].find()
    assert pending["webhook_id"] == webhook_id
    assert '"test":true' in pending["body"]
    assert group in pending["body"]


def test_what_failed_is_counted_then_resent_by_a_job_that_can_be_stopped(database: Documents, flower: FlowerThread):
    webhook_id = add_webhook(database)
    path = f"/webhooks/{webhook_id}"
    for number in (1, 2):
        attempt = make_attempt(delivery_id=f"msg_{number}")
        database["webhooklogs"].insert_one(make_log(at=now() - timedelta(hours=1), attempt=attempt).to_bson())
    assert "is no time" in flower.get(f"{path}?resend_since=soon", ANN).text
    assert "Nothing failed for good" in flower.get(f"{path}?resend_since=5m", ANN).text
    asked = f"{path}?resend_since=2h"
    assert "<strong>2 deliveries</strong> failed for good" in flower.get(asked, ANN).text
    assert database["resendjobs"].count_documents({}) == 0
    form = re.search(r'name="since" value="([^"]+)"', flower.get(asked, ANN).text)
    assert form
    answer = act(flower, asked, "resend-failed", since=form[1])
    assert answer.status == 303
    page = flower.get(answer.headers["Location"], ANN).text
    assert "resends 2 deliveries" in page
    assert "0 of 2 deliveries resent." in page
    (job,) = database["resendjobs"].find()
    assert (job["by"], job["state"], job["filter"]["webhook"]) == ("ann", "running", str(webhook_id))
    answer = act(flower, path, "stop-resend", job=job["_id"])
    assert "is stopped. 0 of 2 deliveries resent." in flower.get(answer.headers["Location"], ANN).text
    assert f"webhooks resend --continue {job['_id']}" in flower.get(path, ANN).text
    results = {one["action"]: one["result"] for one in database["operatoractions"].find()}
    assert results["resend-failed"].endswith("Stopped by ann.")
