"""Logs on a real MongoDB: the questions that people ask are answered by an index, and logs expire."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from tests.lab.logs import COMPANY, NOON, WEBHOOK_ID, make_attempt, make_log
from webhooks.rules.retry import Outcome
from webhooks.store.logs import LogQuery, LogStore, by_outcome, find_order
from webhooks.store.search import LogSearch
from webhooks.store.statistics import StatisticsStore

Documents = Database[dict[str, Any]]
WEBHOOK, BUYER = ObjectId(WEBHOOK_ID), ObjectId(COMPANY)


@pytest.fixture
def store(database: Documents) -> LogStore:
    made = LogStore(database)
    made.ensure_indexes(30)
    return made


def expiry(database: Documents) -> int | None:
    return database["webhooklogs"].index_information()["createdAt_ttl"].get("expireAfterSeconds")


@pytest.mark.parametrize(
    "query",
    [
        LogQuery(),
        LogQuery(webhook_id=WEBHOOK),
        LogQuery(webhook_id=WEBHOOK, outcome=Outcome.FAILED),
        LogQuery(company=BUYER),
        LogQuery(company=BUYER, outcome=Outcome.FAILED),
        LogQuery(outcome=Outcome.FAILED),
        LogQuery(event_id="e7"),
        LogQuery(delivery_id="msg_7"),
        LogQuery(webhook_id=WEBHOOK, since=NOON, until=NOON + timedelta(minutes=5)),
    ],
    ids=lambda query: str(query.to_filter()),
)
def test_newest_logs_come_from_an_index_without_a_sort(store: LogStore, database: Documents, query: LogQuery):
    logs = [
        make_log(str(n), at=NOON + timedelta(minutes=n), attempt=make_attempt(event_id=f"e{n}", delivery_id=f"msg_{n}"))
        for n in range(50)
    ]
    assert store.write(logs) == {}
    found = store.read(query, 3)
    assert found == sorted(found, key=lambda log: log.createdAt, reverse=True)
    assert found
    wanted = by_outcome(database["webhooklogs"], query.to_filter())
    explained = database["webhooklogs"].find(wanted).sort(find_order(wanted)).limit(3).explain()
    plan = str(explained["queryPlanner"]["winningPlan"])
    assert "IXSCAN" in plan
    assert "'SORT'" not in plan
    assert explained["executionStats"]["totalDocsExamined"] <= 3


@pytest.mark.parametrize(
    "attempt",
    [
        None,
        [],
        [5],
        [{"outcome": "failed"}, {"outcome": "success"}],
        {"outcome": None},
        {"outcome": []},
        {"outcome": [["failed"]]},
        {"outcome": "another"},
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [1, 2, 50])
def test_log_of_another_system_is_found_among_those_of_the_same_instant(
    store: LogStore, database: Documents, attempt: Any, limit: int
):
    logs = [
        make_log(attempt=make_attempt(outcome=outcome)).to_bson() for outcome in ["failed", "success", "success"] * 2
    ]
    logs[1:1] = [{**make_log().to_bson(), "attempt": attempt}]
    database["webhooklogs"].insert_many([*logs, make_log().to_bson()])
    for query in (LogQuery(webhook_id=WEBHOOK), LogQuery(company=BUYER), LogQuery(company=BUYER, webhook_id=WEBHOOK)):
        assert len(store.read_ids(query)) == store.count(query, 100) == 8
        seen: list[ObjectId] = []
        after = None
        for _ in range(9):
            page: list[Any] = []
            after = LogSearch(database).walk_whole(query, limit, after, lambda log, page=page: not page.append(log))
            seen += [log["_id"] for log in page]
            if after is None:
                break
        assert len(seen) == len(set(seen)) == 8


def test_indexes_of_earlier_versions_go_while_several_workers_start(store: LogStore, database: Documents):
    database["webhooklogs"].create_index([("subscription", 1), ("createdAt", -1)], name="webhook_newest")
    database["webhooklogs"].create_index([("subscription", 1), ("response", 1)], name="of_another_system")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store.ensure_indexes, [30] * 4))
    names = database["webhooklogs"].index_information().keys()
    assert {"webhook_outcome_age", "of_another_system"} <= names
    assert "webhook_newest" not in names


def test_log_written_twice_is_there_once(store: LogStore, database: Documents):
    log = make_log(attempt=make_attempt())
    assert store.write([log, make_log(attempt=make_attempt())]) == {}
    assert store.write([log]) == {}
    assert database["webhooklogs"].count_documents({}) == 2


def test_log_that_cannot_be_stored_is_named_and_the_others_are_written(store: LogStore, database: Documents):
    database.command("collMod", "webhooklogs", validator={"status": {"$ne": 599}})
    logs = [make_log(status=status, attempt=make_attempt()) for status in (200, 599, 500)]
    assert list(store.write(logs)) == [1]
    assert sorted(log["status"] for log in database["webhooklogs"].find()) == [200, 500]


def test_logs_expire_as_the_setting_says_and_as_it_is_changed_to(store: LogStore, database: Documents):
    assert expiry(database) == 30 * 86_400
    store.ensure_indexes(7)
    assert expiry(database) == 7 * 86_400
    store.ensure_indexes(0)
    assert expiry(database) is None
    store.ensure_indexes(1)
    assert expiry(database) == 86_400


def test_deliveries_that_ended_are_found(store: LogStore):
    going_on = make_attempt(delivery_id="msg_on", event_id="e1", next_at="2026-05-05T12:00:30.000Z")
    ended = make_attempt(delivery_id="msg_ended", event_id="e1")
    other = make_attempt(delivery_id="msg_other", event_id="e2")
    kept = make_attempt(delivery_id="msg_kept", event_id="e1", kept=True)
    store.write([make_log(attempt=attempt) for attempt in (going_on, ended, other, kept)])
    assert store.find_ended(["msg_on", "msg_ended", "msg_kept"]) == {"msg_ended"}
    assert store.find_ended([]) == set()


def test_log_that_breaks_the_contract_is_left_out(store: LogStore, database: Documents, caplog: Any):
    store.write([make_log(attempt=make_attempt())])
    database["webhooklogs"].insert_one({"createdAt": NOON, "status": "odd"})
    assert len(store.read(LogQuery(), 10)) == 1
    assert "breaks the contract" in caplog.text


def test_attempts_are_counted_by_webhook_also_those_of_another_system(database: Documents):
    ok = make_attempt(error_kind=None, outcome="success", total_ms=64.0)
    logs = [make_log(status=200, attempt=ok), make_log(attempt=make_attempt())]
    logs += [make_log(status=200), make_log(status=500)]
    LogStore(database).write(logs[:2])
    database["webhooklogs"].insert_many([log.to_bson() for log in logs[2:]])
    database["webhooklogs"].insert_one({"createdAt": NOON, "subscription": "a text", "attempt": "none"})
    counts = StatisticsStore(database).count(NOON, NOON + timedelta(seconds=1))
    (one,) = counts.values()
    assert (one.attempts, one.failed, one.last_failed_at) == (4, 2, NOON)
    assert one.buckets == {24: 1, 14: 1}
