"""The command for webhooks and tokens, against a real MongoDB."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from click.testing import Result

from tests.lab.commands import OTHER_COMPANY, add
from tests.lab.logs import COMPANY, make_attempt, make_log
from tests.lab.stores import Documents
from webhooks.models import now
from webhooks.store.logs import LogStore
from webhooks.store.tokens import TokenStore

TASK_GROUP = "6261612a8f1e99002e5c8cce"


def test_add_stores_what_the_contract_says(run: Callable[..., Result], database: Documents) -> None:
    webhook_id = add(run, "wo_update", COMPANY, "--task-group", TASK_GROUP, "--name", "N", "--description", "D")
    (stored,) = database["webhooks"].find()
    assert stored == {
        "_id": ObjectId(webhook_id),
        "company": ObjectId(COMPANY),
        "isActive": True,
        "trigger": "create-edit-delete-task",
        "url": "https://www.server.example",
        "name": "N",
        "code": "wo_update",
        "context": {"survey": "", "group": "", "taskGroup": ObjectId(TASK_GROUP)},
        "__v": 0,
        "description": "D",
    }
    assert list(stored) == [
        "_id",
        "company",
        "isActive",
        "trigger",
        "url",
        "name",
        "code",
        "context",
        "__v",
        "description",
    ]


def test_add_says_what_it_will_get(run: Callable[..., Result]) -> None:
    args = ["--trigger", "create-edit-delete-task", "--url", "https://a.example/x", "--task-group", TASK_GROUP]
    out = run("add", "--company", COMPANY, "--code", "a", *args).stdout
    wish = f"COTTask create, edit, delete of company {COMPANY} whose data.taskGroup is {TASK_GROUP}"
    assert f"gets    {wish}\nat      https://a.example/x\n" in out


@pytest.mark.parametrize("has_index", [True, False], ids=["index", "no_index"])
def test_code_is_unique_in_its_company(run: Callable[..., Result], database: Documents, has_index: bool) -> None:
    if not has_index:  # it cannot be made where this happened before
        database["webhooks"].insert_many([{"company": 1, "code": "y"}, {"company": 1, "code": "y"}])
    add(run)
    result = run("add", "--company", COMPANY, "--code", "wo_update", "--trigger", "logout-user", "--url", "http://a.b")
    assert result.exit_code == 1
    assert "has 'wo_update' already" in result.stderr
    add(run, "wo_update", OTHER_COMPANY)


def test_list_shows_active_ones_and_invalid_ones_with_the_reason(
    run: Callable[..., Result], database: Documents
) -> None:
    add(run, "kept")
    add(run, "retired")
    assert run("deactivate", "retired").exit_code == 0
    database["webhooks"].insert_many(
        [
            {"company": ObjectId(COMPANY), "code": "by_hand", "url": "ftp://a.example", "isActive": True},
            {"company": COMPANY, "code": "text_id", "isActive": True, "trigger": "logout-user", "url": "http://a.b"},
            {"nothing": float("nan")},
        ]
    )
    out = run("list").stdout
    assert "  kept" in out
    assert "retired" not in out
    assert "url: its scheme is neither http nor https" in out
    assert "company: must be stored as an ObjectId" in out
    assert out.count("INVALID") == 3
    assert "retired" in run("list", "--all").stdout
    assert "by_hand" not in run("list", "--company", OTHER_COMPANY).stdout
    lines = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [line.get("invalid") is None for line in lines].count(False) == 3


def test_reference_is_an_id_or_a_code_and_ambiguity_names_the_companies(run: Callable[..., Result]) -> None:
    first, second = add(run), add(run, "wo_update", OTHER_COMPANY)
    result = run("show", "wo_update")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in (first, second, COMPANY, OTHER_COMPANY))
    assert run("show", first).exit_code == 0
    assert second in run("show", "wo_update", "--company", OTHER_COMPANY).stdout
    assert "there is no webhook" in run("show", "nothing").stderr


def test_code_of_24_digits_is_found(run: Callable[..., Result]) -> None:
    webhook_id = add(run, "625bcbdcc9a8e3a86dbf0000")
    assert webhook_id in run("show", "625bcbdcc9a8e3a86dbf0000").stdout


def test_show_answers_i_never_got_it(run: Callable[..., Result], database: Documents) -> None:
    webhook_id = add(run)
    logs = LogStore(database)
    ok = make_attempt(outcome="success", error_kind=None, event_id="good")
    logs.write([make_log("fine", at=now() - timedelta(days=2), attempt=ok, webhook_id=webhook_id, status=200)])
    refused = "connect ECONNREFUSED 127.0.0.1:9"
    logs.write([make_log(refused, at=now(), attempt=make_attempt(event_id="bad"), webhook_id=webhook_id)])
    out = run("show", "wo_update").stdout
    assert "last 24 h     0 succeeded, 1 failed" in out
    assert "200, event good: fine" in out
    assert f"409, event bad: {refused}" in out
    assert out.count(refused) == 2
    shown = json.loads(run("show", "wo_update", "--json").stdout)
    assert shown["last_24_h"] == {"success": 0, "failed": 1}
    assert [log["response"] for log in shown["logs"]] == ["fine", refused]


def test_show_of_a_webhook_made_by_hand(run: Callable[..., Result], database: Documents) -> None:
    database["webhooks"].insert_one({"_id": "text", "code": "by_hand", "context": None, "url": "\x1b[2J"})
    result = run("show", "by_hand")
    assert result.exit_code == 0
    assert "INVALID" in result.stdout
    assert "\x1b" not in result.stdout


def test_edit_writes_what_changed_and_nothing_else(run: Callable[..., Result], database: Documents) -> None:
    webhook_id = add(run, "wo_update", COMPANY, "--task-group", TASK_GROUP)
    database["webhooks"].update_one({}, {"$set": {"limits": {"x": 1}}})
    before = database["webhooks"].find_one() or {}
    result = run("edit", webhook_id, "--url", "https://new.example/", "--name", "")
    assert result.exit_code == 0
    assert "https://new.example/" in result.stdout
    assert database["webhooks"].find_one() == {**before, "url": "https://new.example/"}
    assert run("edit", webhook_id, "--task-group", "").exit_code == 0
    after = database["webhooks"].find_one() or {}
    assert after["context"] == {"survey": "", "group": "", "taskGroup": ""}


def test_add_stores_of_how_to_send_only_what_is_not_the_default(
    run: Callable[..., Result], database: Documents
) -> None:
    usual = set(database["webhooks"].find_one({"_id": ObjectId(add(run, "usual"))}) or {})
    add(run, "same", COMPANY, "--unordered", "--rate-limit", "none")
    add(run, "burst", COMPANY, "--ordered", "--on-exhausted", "next", "--rate-limit", "5", "--rate-burst", "1")
    add(run, "all", COMPANY, "--ordered", "--on-exhausted", "stop", "--rate-limit", "0.5", "--rate-burst", "10")
    found = {document["code"]: document for document in database["webhooks"].find()}
    more = {
        code: {field: value for field, value in document.items() if field not in usual}
        for code, document in found.items()
    }
    assert more == {
        "usual": {},
        "same": {},
        "burst": {"ordered": True, "rate_limit": 5},
        "all": {"ordered": True, "on_exhausted": "stop", "rate_limit": 0.5, "rate_burst": 10},
    }


def test_how_events_are_sent_is_said_in_words(run: Callable[..., Result]) -> None:
    new = ["--company", COMPANY, "--trigger", "logout-user", "--url", "https://a.example/", "--unsigned"]
    out = run("add", *new, "--code", "usual").stdout
    assert "order" not in out
    assert "rate" not in out
    out = run("add", *new, "--code", "a", "--ordered", "--on-exhausted", "stop", "--rate-limit", "1").stdout
    assert "order   in order, one at a time; stops when a delivery fails for good\n" in out
    assert "rate    at most 1 attempt per second\n" in out
    out = run("edit", "a", "--on-exhausted", "next", "--rate-limit", "2.50", "--rate-burst", "10").stdout
    order = "in order, one at a time; continues with the next when a delivery fails for good\n"
    rate = "at most 2.5 attempts per second, bursts of 10\n"
    assert f"order    {order}" in out
    assert f"rate     {rate}" in out
    out = run("show", "a").stdout
    assert f" {order}" in out
    assert f" {rate}" in out
    out = run("edit", "a", "--unordered", "--rate-limit", "none").stdout
    assert "order" not in out
    assert "rate" not in out


@pytest.mark.parametrize(
    ("before", "args", "after"),
    [
        ({}, ["--ordered"], {"ordered": True}),
        ({}, ["--unordered"], {}),
        ({}, ["--rate-limit", "none"], {}),
        ({"ordered": True}, ["--unordered"], {}),
        ({"ordered": True}, ["--on-exhausted", "stop"], {"ordered": True, "on_exhausted": "stop"}),
        ({"ordered": True, "on_exhausted": "stop"}, ["--on-exhausted", "next"], {"ordered": True}),
        ({"ordered": True, "on_exhausted": "stop"}, ["--unordered"], {"on_exhausted": "stop"}),
        ({"rate_limit": 5}, ["--rate-burst", "10"], {"rate_limit": 5, "rate_burst": 10}),
        ({"rate_limit": 5, "rate_burst": 10}, ["--rate-limit", "0.25"], {"rate_limit": 0.25, "rate_burst": 10}),
        ({"rate_limit": 5, "rate_burst": 10}, ["--rate-limit", "none"], {"rate_burst": 10}),
        ({"rate_limit": 5, "rate_burst": 10}, ["--rate-burst", "1"], {"rate_limit": 5}),
        ({}, ["--traced"], {"traced": True}),
        ({"traced": True}, ["--untraced"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_edit_of_how_to_send_leaves_all_else(
    run: Callable[..., Result],
    database: Documents,
    before: dict[str, Any],
    args: list[str],
    after: dict[str, Any],
) -> None:
    webhook_id = add(run)
    stored = database["webhooks"].find_one() or {}
    if before:
        database["webhooks"].update_one({}, {"$set": before})
    result = run("edit", webhook_id, "--json", *args)
    assert result.exit_code == 0, result.stderr
    assert database["webhooks"].find_one() == {**stored, **after}
    assert json.loads(result.stdout).items() >= after.items()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--on-exhausted", "stop"], "--on-exhausted goes with an ordered webhook only: give --ordered"),
        (["--rate-burst", "5"], "--rate-burst goes with a limit only: give --rate-limit"),
        (["--rate-burst", "5", "--rate-limit", "none"], "--rate-burst goes with a limit only: give --rate-limit"),
        (["--unordered", "--on-exhausted", "next"], "--on-exhausted goes with an ordered webhook only"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_edit_that_would_do_nothing_is_a_usage_error(
    run: Callable[..., Result], database: Documents, args: list[str], said: str
) -> None:
    add(run)
    before = database["webhooks"].find_one()
    result = run("edit", "wo_update", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert database["webhooks"].find_one() == before


def test_edit_that_breaks_the_contract_changes_nothing(run: Callable[..., Result], database: Documents) -> None:
    add(run)
    before = database["webhooks"].find_one()
    assert run("edit", "wo_update", "--url", "ftp://a.example").exit_code == 1
    assert run("edit", "wo_update", "--survey", TASK_GROUP).exit_code == 2
    assert database["webhooks"].find_one() == before


def test_edit_of_the_trigger_notes_context_that_narrows_nothing(run: Callable[..., Result]) -> None:
    add(run, "wo_update", COMPANY, "--task-group", TASK_GROUP)
    result = run("edit", "wo_update", "--trigger", "logout-user")
    assert result.exit_code == 0
    assert "context.taskGroup is set, but does not narrow logout-user" in result.stderr


def test_deactivate_and_activate(run: Callable[..., Result], database: Documents) -> None:
    add(run)
    for command, is_active in (("deactivate", False), ("deactivate", False), ("activate", True)):
        assert run(command, "wo_update").exit_code == 0
        assert (database["webhooks"].find_one() or {})["isActive"] is is_active


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hooks.example.com:6379/", "port 6379 is not allowed; list it in WEBHOOKS_ALLOWED_PORTS"),
        ("http://0x7f.1/", "WEBHOOKS_ALLOWED_NETWORKS=127.0.0.0/8"),
        ("http://[::ffff:10.0.0.1]/", "WEBHOOKS_ALLOWED_NETWORKS=10.0.0.1/32"),
        ("https://hooks.example.com/", ""),
        ("https://93.184.216.34/", ""),
    ],
)
def test_webhook_whose_attempts_would_be_refused_is_added_with_a_word(run: Callable[..., Result], url: str, said: str):
    wish = ["--company", COMPANY, "--trigger", "logout-user", "--unsigned"]
    result = run("add", *wish, "--code", "one", "--url", url)
    assert result.exit_code == 0
    assert (said in result.stderr) if said else not result.stderr
    result = run("edit", "one", "--url", url)
    assert (said in result.stderr) if said else not result.stderr


def test_token_is_shown_once_listed_without_it_and_removed(run: Callable[..., Result], database: Documents) -> None:
    made = json.loads(run("token", "add", "--company", COMPANY, "--name", "BI \x1b[2J", "--json").stdout)
    other = run("token", "add", "--company", OTHER_COMPANY)
    assert re.search(r"^token +whr_[\w-]{43}$", other.stdout, re.MULTILINE)
    assert "shown only now" in other.stdout
    listed = run("token", "list").stdout
    assert made["_id"] in listed
    assert r"BI \x1b[2J" in listed
    assert "whr_" not in listed
    mine = [json.loads(line) for line in run("token", "list", "--company", COMPANY, "--json").stdout.splitlines()]
    assert [list(one) for one in mine] == [["_id", "company", "name", "created_at"]]
    assert TokenStore(database).find_company(made["token"]) == ObjectId(COMPANY)
    assert run("token", "remove", made["_id"]).exit_code == 0
    assert TokenStore(database).find_company(made["token"]) is None
    again = run("token", "remove", made["_id"])
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    assert "`webhooks token list` shows them" in again.stderr
