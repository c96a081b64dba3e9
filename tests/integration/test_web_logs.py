"""The list of logs in Flower, against a real MongoDB."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from bson import ObjectId
from pymongo.database import Database

from tests.lab.flower import FlowerThread
from tests.lab.logs import COMPANY, NOON, WEBHOOK_ID, make_attempt, make_log
from webhooks.errors import ErrorKind
from webhooks.rules.retry import Outcome
from webhooks.store.logs import LogQuery, LogStore, by_outcome, find_order
from webhooks.store.search import LogSearch


def write(database: Database[dict[str, Any]], *logs: Any) -> LogStore:
    store = LogStore(database)
    store.ensure_indexes(30)
    store.write(logs)
    return store


def test_tab_stands_in_flowers_own_navigation(flower: FlowerThread):
    for path in ("/workers", "/tasks", "/webhooks/logs"):
        text = flower.get(path).text
        tabs = re.findall(r'class="nav-link[^>]*>(\w+)</a>', text)
        assert tabs[:4] == ["Workers", "Tasks", "Broker", "Webhooks"], path
        assert "/webhooks/static/webhooks.css" in text
    assert re.search(r'active" aria-current="page" href="/webhooks">', flower.get("/webhooks/logs").text)


def test_texts_of_strangers_are_never_markup(database: Database[dict[str, Any]], flower: FlowerThread):
    hostile = '<script>alert("1")</script>\x1b[2J\u202egnp'
    attempt = make_attempt(
        error_kind=None, webhook="<i>code</i>", origin="http://<b>", event_id="<u>", delivery_id="<s>"
    )
    write(database, make_log(hostile, attempt=attempt, status=500))
    answer = flower.get("/webhooks/logs?event=%3Cu%3E&company=%22%3E%3Cimg%3E")
    assert "&quot;&gt;&lt;img&gt;" in answer.text
    answer = flower.get("/webhooks/logs?event=%3Cu%3E")
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;\\x1b[2J\\u202egnp" in answer.text
    for mark in ("<script>", "<i>", "<b>", "<u>", "<s>", "\x1b", "\u202e"):
        assert mark not in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<[^>]+ (style|on\w+)=", answer.text)


def test_pages_go_back_without_gap_or_repetition_over_logs_of_one_instant(database: Database[dict[str, Any]]):
    ids = [ObjectId() for _ in range(9)]
    ages = [0, 1, 1, 1, 1, 1, 1, 2, 3]
    write(
        database,
        *(
            make_log(log_id=i, at=NOON - timedelta(seconds=age), attempt=make_attempt())
            for i, age in zip(ids, ages, strict=True)
        ),
    )
    search, seen, cursor = LogSearch(database), [], None
    for _ in range(5):
        page = search.find_page(LogQuery(), 2, cursor)
        seen += [row.log_id for row in page.rows]
        cursor = page.next
        if cursor is None:
            break
    assert sorted(map(str, seen)) == sorted(map(str, ids))
    assert len(seen) == len(ids)


def test_filter_without_index_looks_at_a_bounded_number_of_logs_and_says_how_far(database: Database[dict[str, Any]]):
    logs = [
        make_log(
            at=NOON - timedelta(minutes=age), status=500 if age == 7 else 200, attempt=make_attempt(error_kind=None)
        )
        for age in range(10)
    ]
    write(database, *logs)
    search = LogSearch(database, searched_at_most=4)
    first = search.find_page(LogQuery(statuses=(500, 599)), 5)
    assert not first.rows
    assert first.searched_to == NOON - timedelta(minutes=3)
    found, cursor = [], first.next
    while cursor is not None:
        page = search.find_page(LogQuery(statuses=(500, 599)), 5, cursor)
        found += page.rows
        cursor = page.next
    assert [row.status for row in found] == [500]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_search_without_an_index_has_each_log_once(limit: int, database: Database[dict[str, Any]]):
    at = [NOON - timedelta(seconds=second) for second in (0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2)]
    logs = [
        make_log(at=one, status=500 if number % 2 else 404, attempt=make_attempt(error_kind=None))
        for number, one in enumerate(at)
    ]
    write(database, *logs)
    search, seen, after = LogSearch(database, searched_at_most=4), [], None
    for _ in range(20):
        page = search.find_page(LogQuery(statuses=(500, 599)), limit, after)
        seen += [row.log_id for row in page.rows]
        after = page.next
        if after is None:
            break
    assert after is None
    assert sorted(map(str, seen)) == sorted(str(log.id) for log in logs if log.status == 500)


def test_result_of_a_log_without_one_follows_from_its_status(database: Database[dict[str, Any]]):
    own = make_log(attempt=make_attempt(error_kind=None), status=200)
    foreign = {status: make_log(status=status) for status in (200, 209, 210, 409)}
    write(database, own, *foreign.values())
    search = LogSearch(database)
    failed, success = (
        {row.log_id for row in search.find_page(LogQuery(outcome=outcome), 10).rows}
        for outcome in (Outcome.FAILED, Outcome.SUCCESS)
    )
    assert failed == {own.id, foreign[210].id, foreign[409].id}
    assert success == {foreign[200].id, foreign[209].id}


def test_object_of_an_event_finds_its_logs_by_index(database: Database[dict[str, Any]], flower: FlowerThread):
    logs = [make_log(attempt=make_attempt()).to_bson() for _ in range(3)]
    logs[1]["event"]["data"] = {"_id": "62742b7562f37034d9399914"}
    logs[2]["event"]["data"] = {"_id": ObjectId("62742b7562f37034d9399914")}
    write(database)
    database["webhooklogs"].insert_many(logs)
    query = LogQuery(object_id="62742b7562f37034d9399914")
    assert {row.log_id for row in LogSearch(database).find_page(query, 10).rows} == {log["_id"] for log in logs[1:]}
    plan = database["webhooklogs"].find(query.to_filter()).sort("createdAt", -1).explain()
    assert "object_newest" in str(plan["queryPlanner"]["winningPlan"])
    answer = flower.get("/webhooks/find?id=62742b7562f37034d9399914")
    assert (answer.status, answer.headers["Location"]) == (302, "/webhooks/logs?object=62742b7562f37034d9399914")
    assert flower.get(answer.headers["Location"]).text.count("<time") == 2


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (LogQuery(kind=ErrorKind.TLS), "kind_newest"),
        (LogQuery(kind=ErrorKind.TLS, company=ObjectId(COMPANY)), "kind_newest"),
        (LogQuery(has_response=False), "outcome_newest"),
        (LogQuery(event_id="e1"), "event_newest"),
        (LogQuery(delivery_id="msg_1"), "delivery_newest"),
        (LogQuery(company=ObjectId()), "company_outcome_age"),
        (LogQuery(webhook_id=ObjectId()), "webhook_outcome_age"),
        (LogQuery(), "createdAt_ttl"),
    ],
)
def test_filter_is_served_by_an_index_without_a_sort(query: LogQuery, index: str, database: Database[dict[str, Any]]):
    write(database, *(make_log(attempt=make_attempt()) for _ in range(3)))
    wanted = by_outcome(database["webhooklogs"], query.to_filter())
    plan = database["webhooklogs"].find(wanted).sort(find_order(wanted)).explain()
    winning = str(plan["queryPlanner"]["winningPlan"])
    assert f"'{index}'" in winning
    assert "SORT'" not in winning


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("msg_1", "/webhooks/deliveries/msg_1"),
        ("e1", "/webhooks/events/e1"),
        ("an object", "/webhooks/logs?object=an+object"),
        ("wo_update", "/webhooks/62685990d918fb5557f9f992"),
        ("62685990d918fb5557f9f992", "/webhooks/62685990d918fb5557f9f992"),
        ("nobody's/..", "/webhooks/events/nobody%27s%2F.."),
        ("", "/webhooks/logs"),
    ],
)
def test_search_box_finds_by_what_people_have(
    wanted: str, place: str, database: Database[dict[str, Any]], flower: FlowerThread
):
    log = make_log(attempt=make_attempt()).to_bson()
    log["event"]["data"] = {"_id": "an object"}
    database["webhooklogs"].insert_one(log)
    database["webhooks"].insert_one({"_id": ObjectId("62685990d918fb5557f9f992"), "code": "wo_update"})
    answer = flower.get(f"/webhooks/find?{urlencode({'id': wanted})}")
    assert (answer.status, answer.headers["Location"]) == (302, place)


def test_unknown_webhook_is_one_clear_error(flower: FlowerThread):
    answer = flower.get("/webhooks/logs?webhook=nobody")
    assert answer.status == 200
    assert "there is no webhook with this code or id" in answer.text


def test_filters_and_pages_are_links(database: Database[dict[str, Any]], flower: FlowerThread):
    ages = range(60)
    write(database, *(make_log(at=NOON - timedelta(minutes=age), attempt=make_attempt()) for age in ages))
    first = flower.get(f"/webhooks/logs?webhook={WEBHOOK_ID}&result=failed").text
    older = re.search(r'href="([^"]+)" rel="next"', first)
    assert older
    assert first.count("<time") == 50
    second = flower.get("/webhooks/logs" + older[1].replace("&amp;", "&")).text
    assert second.count("<time") == 10
    assert 'rel="next"' not in second


def test_other_sites_read_nothing(flower: FlowerThread, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    assert "Access-Control-Allow-Origin" in flower.get("/tasks").headers
    assert "Access-Control-Allow-Origin" not in flower.get("/webhooks/logs").headers


@pytest.mark.usefixtures("web_settings")
def test_pages_stand_under_flowers_prefix():
    with FlowerThread({"url_prefix": "ops"}) as flower:
        text = flower.get("/ops/webhooks/logs").text
        assert 'href="/ops/webhooks"' in text
        assert re.search(r'href="(/ops/webhooks/static/webhooks.css[^"]*)"', text)
        for path in re.findall(r'(?:href|src)="(/[^"]+(?:css|js)[^"]*)"', text):
            if "webhooks." in path:
                assert flower.get(path).status == 200
        assert flower.get("/ops/webhooks/find?id=msg_1").headers["Location"] == "/ops/webhooks/deliveries/msg_1"


@pytest.mark.usefixtures("web_settings")
@pytest.mark.parametrize("path", ["/webhooks/logs", "/webhooks/find?id=x"])
def test_login_is_flowers(path: str):
    with FlowerThread({"basic_auth": ["ann:secret"]}) as flower:
        assert flower.get(path).status == 401
        wrong = {"Authorization": "Basic YW5uOndyb25n"}
        assert flower.get(path, wrong).status == 401
        assert flower.get(path, {"Authorization": "Basic YW5uOnNlY3JldA=="}).status in (200, 302)
    with FlowerThread({"auth": "ann@example.com"}) as flower:
        answer = flower.get(path)
        assert (answer.status, answer.headers["Location"].partition("?")[0]) == (302, "/login")


def test_mongodb_away_is_said_in_words_and_does_not_stop_flower(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOKS_MONGODB_URL", "mongodb://127.0.0.1:1/webhooks")
    monkeypatch.setenv("WEBHOOKS_MONGODB_TIMEOUT_S", "1")
    with FlowerThread() as flower:
        answer = flower.get("/webhooks/logs")
        assert answer.status == 503
        assert "MongoDB is not reachable" in answer.text
        assert "Traceback" not in answer.text
        assert flower.get("/tasks").status == 200
