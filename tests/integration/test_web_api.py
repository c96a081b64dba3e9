"""The read API in Flower, against a real MongoDB."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urljoin

import jsonschema_rs
import pytest
from bson import DatetimeMS, ObjectId, Timestamp
from pymongo.database import Database

from tests.lab.flower import Answer, FlowerThread
from tests.lab.history import COMPANY, fill
from tests.lab.logs import NOON, WEBHOOK_ID, make_attempt, make_log
from tests.lab.samples_data import read_sample
from webhooks.models import COTWebhook, COTWebhookLog
from webhooks.rules.retry import Outcome
from webhooks.store.logs import LogStore
from webhooks.store.tokens import TokenStore
from webhooks.web import api

Documents = Database[dict[str, Any]]
LIST = "/api/v3/webhook/subscription"
ONE = f"{LIST}/{WEBHOOK_ID}"
LOGS = f"{LIST}/logs/{WEBHOOK_ID}"
DESCRIPTION = json.loads((api.FOLDER / "openapi.json").read_text())
WEBHOOK = COTWebhook.model_validate(read_sample("webhook-task")).to_bson()
LOG = COTWebhookLog.model_validate(read_sample("log-task-create-timeout")).to_bson()


@pytest.fixture
def tokens(database: Documents) -> TokenStore:
    store = TokenStore(database)
    store.ensure_indexes()
    return store


@pytest.fixture
def bearer(tokens: TokenStore) -> dict[str, str]:
    """The header of a client of the sample's company."""
    return header(tokens.add(COMPANY, "client")[1])


def header(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def write(database: Documents, *logs: dict[str, Any]) -> None:
    """Store logs, with the indexes that give their order."""
    LogStore(database).ensure_indexes(30)
    database["webhooklogs"].insert_many(logs)


def error_of(answer: Answer) -> str:
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    check(answer.body, "Error")
    return json.loads(answer.body)["error"]


def check(body: bytes, schema: str, *, is_list: bool = False) -> Any:
    """Return a body as JSON; it must be what the description says."""
    one = {"$ref": f"#/components/schemas/{schema}"}
    root = {"type": "array", "items": one} if is_list else one
    value = json.loads(body)
    jsonschema_rs.validator_for({**DESCRIPTION, **root}, validate_formats=True).validate(value)
    return value


def walk(flower: FlowerThread, path: str, headers: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    """Return page after page, as a client follows `Link`."""
    while path:
        answer = flower.get(path, dict(headers))
        assert answer.status == 200, answer.text
        yield check(answer.body, "COTWebhookLog", is_list=True)
        link = answer.headers["Link"]
        assert link is None or link.endswith('>; rel="next"')
        path = "" if link is None else urljoin(path, link[1:].partition(">")[0])


def test_bodies_are_the_contracts_samples(database: Documents, flower: FlowerThread, bearer: dict[str, str]):
    database["webhooks"].insert_one(WEBHOOK)
    database["webhooklogs"].insert_one(LOG)
    webhook, log = read_sample("webhook-task"), read_sample("log-task-create-timeout")
    for path, body in ((LIST, [webhook]), (ONE, webhook), (LOGS, [log])):
        answer = flower.get(path, bearer)
        assert answer.status == 200, answer.text
        assert answer.text == json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        head = flower.get(path, bearer, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(answer.body))


def test_every_answer_of_a_long_history_fits_its_description(
    database: Documents, flower: FlowerThread, bearer: dict[str, str]
):
    fill(database, 600)
    webhooks = check(flower.get(LIST, bearer).body, "StoredWebhook", is_list=True)
    assert len(webhooks) == database["webhooks"].count_documents({"company": COMPANY})
    for webhook in webhooks:
        check(flower.get(f"{LIST}/{webhook['_id']}", bearer).body, "COTWebhook")
        got = [log for page in walk(flower, f"{LIST}/logs/{webhook['_id']}?limit=90", bearer) for log in page]
        stored = list(database["webhooklogs"].find({"subscription": ObjectId(webhook["_id"])}))
        assert sorted(log["_id"] for log in got) == sorted(str(log["_id"]) for log in stored)
        assert [log["createdAt"] for log in got] == sorted((log["createdAt"] for log in got), reverse=True)
        assert all("worker" not in log["attempt"] for log in got)


@pytest.mark.usefixtures("web_settings")
@pytest.mark.parametrize(
    "options", [{}, {"basic_auth": ["ann:secret"]}, {"auth": "ann@example.com"}], ids=["open", "basic", "oauth"]
)
def test_only_a_token_opens_the_api(options: dict[str, Any], database: Documents, tokens: TokenStore):
    database["webhooks"].insert_one(WEBHOOK)
    token_id, token = tokens.add(COMPANY, "client")
    basic = {"Authorization": "Basic YW5uOnNlY3JldA=="}
    with FlowerThread(options) as flower:
        assert flower.get(ONE, header(token)).status == 200
        assert flower.get(ONE, {"Authorization": f"bEARER  {token} "}).status == 200
        for headers in ({}, basic, header(""), header(token[:-1]), header("whr_" + "a" * 43), header(token + "=")):
            for path in (LIST, ONE, LOGS, f"{LIST}/nonsense", "/api/v3"):
                answer = flower.get(path, headers)
                assert answer.status == 401, (path, headers)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
                assert "token" in error_of(answer)
        assert flower.get(f"{ONE}?access_token={token}").status == 401
        # Flower's own pages stay Flower's: a token opens none.
        assert flower.get("/webhooks/logs", header(token)).status != 200 or not options
        assert tokens.remove(token_id)
        assert flower.get(ONE, header(token)).status == 401


def test_token_is_stored_as_a_hash_and_its_use_is_noted_once_a_minute(
    database: Documents, tokens: TokenStore, flower: FlowerThread
):
    _, token = tokens.add(COMPANY, "client")
    assert token.removeprefix("whr_") not in str(list(database["apitokens"].find()))
    flower.get(LIST, header(token))
    first = database["apitokens"].find_one()
    assert first
    flower.get(LIST, header(token))
    assert database["apitokens"].find_one() == first
    old = first["last_used_at"] - timedelta(minutes=2)
    database["apitokens"].update_one({}, {"$set": {"last_used_at": old}})
    flower.get(LIST, header(token))
    again = database["apitokens"].find_one()
    assert again
    assert again["last_used_at"] > first["last_used_at"]
    plan = database["apitokens"].find({"hash": first["hash"]}).explain()
    assert "'hash'" in str(plan["queryPlanner"]["winningPlan"])


def test_what_is_not_the_companys_is_not_there(database: Documents, flower: FlowerThread, tokens: TokenStore):
    database["webhooks"].insert_one(WEBHOOK)
    database["webhooklogs"].insert_one(LOG)
    other = header(tokens.add(ObjectId(), "another company's")[1])
    assert flower.get(LIST, other).text == "[]"
    mine = header(tokens.add(COMPANY, "")[1])
    unknown = ObjectId()
    paths = [f"{LIST}/{unknown}", f"{LIST}/logs/{unknown}", f"{LIST}/x", f"{LIST}/logs/{WEBHOOK_ID}0", f"{LIST}/%ff"]
    paths += [f"{LIST}/", f"{LIST}/logs", "/api/v3/webhook", "/api/v3/webhook/subscription/logs/$ne"]
    for headers, path in [(other, ONE), (other, LOGS), *((mine, path) for path in paths)]:
        answer = flower.get(path, headers)
        assert answer.status == 404, path
        assert error_of(answer)


def test_logs_from_before_a_webhook_changed_companies_stay_hidden(
    database: Documents, flower: FlowerThread, bearer: dict[str, str]
):
    database["webhooks"].insert_one(WEBHOOK)
    others = {**LOG, "_id": ObjectId(), "company": ObjectId()}
    database["webhooklogs"].insert_many([LOG, others])
    assert [log["_id"] for log in json.loads(flower.get(LOGS, bearer).body)] == [str(LOG["_id"])]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{LOGS}?limit=0", "limit"),
        (f"{LOGS}?status=&limit=1", "status"),
        (f"{LOGS}?result=success&result=failed", "result"),
        (f"{LOGS}?since=%ff", "since"),
        (f"{LOGS}?stauts=500", "stauts"),
        (f"{LOGS}?before=%00", "before"),
        (f"{ONE}?limit=1", "limit"),
        (f"{LIST}?page=2", "page"),
        (f"{LIST}?%1b[2J=1", r"\x1b[2J"),
    ],
)
def test_bad_parameter_is_one_clear_error(path: str, name: str, flower: FlowerThread, bearer: dict[str, str]):
    answer = flower.get(path, bearer)
    assert answer.status == 400
    assert error_of(answer).startswith(f"{name}: ")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str, flower: FlowerThread, bearer: dict[str, str]):
    for path in (LIST, ONE, LOGS, "/api/v3/openapi.json"):
        answer = flower.get(path, bearer, method)
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"
        assert error_of(answer)


@pytest.mark.usefixtures("redis_url")
def test_mongodb_away_is_503_and_tells_clients_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", "mongodb://127.0.0.1:1/webhooks")
    monkeypatch.setenv("WEBHOOKS_MONGODB_TIMEOUT_S", "1")
    with FlowerThread() as flower:
        answer = flower.get(LIST, header("whr_" + "a" * 43))
        assert answer.status == 503
        assert error_of(answer) == "the database does not answer; try again later"
        assert flower.get("/api/v3/openapi.json").status == 200


def test_pages_have_each_log_once_also_those_of_one_instant(
    database: Documents, flower: FlowerThread, bearer: dict[str, str]
):
    database["webhooks"].insert_one(WEBHOOK)
    ages = [0, 1, 1, 1, 1, 1, 2, 2, 3]
    logs = [make_log(at=NOON - timedelta(seconds=age), attempt=make_attempt()).to_bson() for age in ages]
    write(database, *logs)
    pages = list(walk(flower, f"{LOGS}?limit=2&since=99999d", bearer))
    assert [len(page) for page in pages] == [2, 2, 2, 2, 1]
    assert len({log["_id"] for page in pages for log in page}) == len(ages)
    before = json.loads(flower.get(f"{LOGS}?before=2026-05-05T11:59:58.000Z", bearer).body)
    assert [log["_id"] for log in before] == [str(logs[-1]["_id"])]


def test_answer_is_bounded_in_bytes(
    database: Documents, flower: FlowerThread, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(api, "MAX_BYTES", 10_000)
    database["webhooks"].insert_one(WEBHOOK)
    sizes = [4_000, 4_000, 4_000, 50_000, 100, 100]
    logs = [make_log("x" * size, at=NOON - timedelta(seconds=age)) for age, size in enumerate(sizes)]
    write(database, *(log.to_bson() for log in logs))
    pages = list(walk(flower, LOGS, bearer))
    assert [[len(log["response"]) for log in page] for page in pages] == [[4_000] * 3, [50_000], [100, 100]]


def test_documents_of_other_systems_are_read_and_broken_ones_break_nothing(
    database: Documents, flower: FlowerThread, bearer: dict[str, str], caplog: pytest.LogCaptureFixture
):
    own = make_log(at=NOON, attempt=make_attempt()).to_bson()
    foreign = {**LOG, "_id": ObjectId(), "status": 200.0, "retry": 0, "password": "SECRET"}
    del foreign["__v"]
    changes: list[dict[str, Any]] = [
        {"createdAt": Timestamp(2_000_000_000, 1)},
        {"createdAt": DatetimeMS(2**55)},
        {"createdAt": [NOON]},
        {"createdAt": "2026-05-05T12:00:00.000Z"},
        {"status": "many"},
        {"event": None},
        {"attempt": {**own["attempt"], "total_ms": float("nan")}},
        {"subscription": str(WEBHOOK_ID)},
    ]
    broken = [{**own, "_id": ObjectId(), **change} for change in changes]
    database["webhooks"].insert_one(WEBHOOK)
    write(database, *broken, own, foreign)
    got = [log for page in walk(flower, f"{LOGS}?limit=1", bearer) for log in page]
    assert [log["_id"] for log in got] == [str(own["_id"]), str(foreign["_id"])]
    assert list(got[1]) == list(read_sample("log-task-create-timeout"))
    assert f"log {broken[4]['_id']} breaks the contract" in caplog.text
    for result, one in ((Outcome.FAILED, own), (Outcome.SUCCESS, foreign)):
        found = [log for page in walk(flower, f"{LOGS}?result={result}", bearer) for log in page]
        assert [log["_id"] for log in found] == [str(one["_id"])]


def test_webhooks_are_shown_without_what_may_be_secret_and_broken_ones_with_the_reason(
    database: Documents, flower: FlowerThread, bearer: dict[str, str]
):
    sealed = {"id": "s1", "scheme": "v1", "sealed": "SECRET", "createdAt": NOON}
    headers = [{"name": "X-Tenant", "value": "SECRET"}, {"name": "authorization", "sealed": "SECRET"}]
    full = {**WEBHOOK, "secrets": [sealed], "headers": headers, "rate_limit": 5, "ordered": None, "apiKey": "SECRET"}
    bare = {name: WEBHOOK[name] for name in ("company", "isActive", "trigger", "url")}
    broken: list[dict[str, Any]] = [
        {"company": str(COMPANY)},
        {"url": 5},
        {"secrets": "SECRET"},
        {"headers": {"name": "SECRET"}, "rate_limit": float("nan")},
        {"context": {"survey": {"deep": float("inf")}}},
        {"_id": 5},
    ]
    stored = [full, bare, *({**WEBHOOK, "_id": ObjectId(), "code": f"c{i}", **one} for i, one in enumerate(broken))]
    database["webhooks"].insert_many(stored)
    answer = flower.get(LIST, bearer)
    assert "SECRET" not in answer.text
    found = {str(one["_id"]): one for one in check(answer.body, "StoredWebhook", is_list=True)}
    assert len(found) == len(stored)
    assert ["invalid" in found[str(one["_id"])] for one in stored] == [False, False, *[True] * len(broken)]
    shown = found[WEBHOOK_ID]
    assert shown["secrets"] == [{"id": "s1", "scheme": "v1", "createdAt": "2026-05-05T12:00:00.000Z"}]
    assert shown["headers"] == [{"name": "X-Tenant"}, {"name": "authorization"}]
    for webhook_id in found.keys() - {"5"}:
        answer = flower.get(f"{LIST}/{webhook_id}", bearer)
        assert check(answer.body, "StoredWebhook") == found[webhook_id]


@pytest.mark.usefixtures("web_settings")
def test_api_stands_under_flowers_prefix(database: Documents, bearer: dict[str, str]):
    database["webhooks"].insert_one(WEBHOOK)
    write(database, LOG, {**LOG, "_id": ObjectId()})
    with FlowerThread({"url_prefix": "ops"}) as flower:
        assert [len(page) for page in walk(flower, f"/ops{LOGS}?limit=1", bearer)] == [1, 1]
        assert flower.get("/ops/api/v3/openapi.json").status == 200
