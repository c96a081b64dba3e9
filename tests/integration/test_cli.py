"""The command against a real Redis and a real MongoDB; as a process of its own where that matters."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from bson import ObjectId
from click.testing import CliRunner, Result
from pymongo import MongoClient
from pymongo.database import Database

from tests.lab.logs import COMPANY, make_attempt, make_log
from tests.lab.servers import Servers
from webhooks.cli import cli
from webhooks.models import now
from webhooks.store.logs import LogStore
from webhooks.store.tokens import TokenStore

OTHER_COMPANY = "625bcbdcc9a8e3a86dbf041d"
TASK_GROUP = "6261612a8f1e99002e5c8cce"
NOTHING = "127.0.0.1:9"
EVENT = json.dumps(make_log().event.to_wire())
#: Seconds for what takes one or two, on a machine that runs other things beside.
PATIENCE_S = 40
#: What `check` may take at most when everything is away: six seconds of its own, and a slow start of Python.
CHECK_S = 25

Documents = Database[dict[str, Any]]


@pytest.fixture
def env(redis_url: str, database: Documents) -> dict[str, str]:
    """An environment in which the command works on this test's database."""
    host, port = database.client.address or ("", 0)
    return {
        "WEBHOOKS_BROKER_URL": redis_url,
        "WEBHOOKS_MONGODB_URL": f"mongodb://{host}:{port}/{database.name}",
        # Its part of a pipe is written at once.
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def run(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return lambda *args: CliRunner().invoke(cli, args)


@pytest.fixture
def run_process(env: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as operators do."""

    def run(*args: str, stdin: str = "", **more_env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "webhooks", *args],
            cwd=tmp_path, env={**os.environ, **env, **more_env}, input=stdin, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    return run


def add(run: Callable[..., Result], code: str = "wo_update", company: str = COMPANY, *more: str) -> str:
    trigger = ["--trigger", "create-edit-delete-task", "--url", "https://www.server.example"]
    result = run("add", "--company", company, "--code", code, *trigger, "--json", *more)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["_id"]


# ── Webhooks ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── Logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_logs(database: Documents, count: int) -> None:
    for number in range(count):
        outcome = "success" if number % 2 else "failed"
        attempt = make_attempt(outcome=outcome, error_kind=None, event_id=f"event{number}", delivery_id=f"msg_{number}")
        at = now() - timedelta(minutes=count - number)
        LogStore(database).write(
            [make_log(f"number {number}.", at=at, attempt=attempt, status=200 if number % 2 else 500)]
        )


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["-n", "2"], [4, 5]),
        (["-n", "0"], []),
        (["--failed"], [0, 2, 4]),
        (["--success", "-n", "2"], [3, 5]),
        (["--event", "event3"], [3]),
        (["--delivery", "msg_4"], [4]),
        (["--company", COMPANY, "--since", "210s"], [3, 4, 5]),
        (["--since", "270s", "--until", "90s"], [2, 3, 4]),
        (["--company", OTHER_COMPANY], []),
    ],
    ids=lambda value: "_".join(value) if value and isinstance(value[0], str) else "",
)
def test_logs_filters_newest_last(
    run: Callable[..., Result], database: Documents, args: list[str], numbers: list[int]
) -> None:
    write_logs(database, 6)
    lines = run("logs", *args).stdout.splitlines()[1:]
    assert [int(line.rpartition("number ")[2].rstrip(".")) for line in lines] == numbers


def test_logs_as_json_are_the_contract_s(run: Callable[..., Result], database: Documents) -> None:
    write_logs(database, 2)
    first, second = (json.loads(line) for line in run("logs", "--json").stdout.splitlines())
    assert list(first) == [
        "_id",
        "company",
        "createdAt",
        "status",
        "retry",
        "response",
        "event",
        "subscription",
        "__v",
        "attempt",
    ]
    assert (first["response"], second["response"]) == ("number 0.", "number 1.")


def test_logs_of_a_webhook(run: Callable[..., Result], database: Documents) -> None:
    LogStore(database).write([make_log("mine", webhook_id=add(run), attempt=make_attempt())])
    write_logs(database, 1)
    out = run("logs", "--webhook", "wo_update").stdout
    assert "mine" in out
    assert "number" not in out


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


def test_logs_into_a_pipe_that_closes_is_quiet(env: dict[str, str], database: Documents, tmp_path: Path) -> None:
    write_logs(database, 300)
    command = f"{sys.executable} -m webhooks logs -n 300 | head -1"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("TIME")


@contextmanager
def following(env: dict[str, str], cwd: Path, *args: str) -> Iterator[tuple[Callable[[str], str], Callable[[], str]]]:
    """Run `webhooks logs --follow`; give a wait for some words of its output, and all of stderr so far."""
    out, err = cwd / "out", cwd / "err"
    with out.open("w") as out_file, err.open("w") as err_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "webhooks", "logs", "--follow", *args],
            cwd=cwd, env={**os.environ, **env}, stdout=out_file, stderr=err_file,
        )  # fmt: skip

    def wait_for(words: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while words not in out.read_text() + err.read_text():
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < deadline, f"no {words!r} in {out.read_text()!r} {err.read_text()!r}"
            time.sleep(0.05)
        return out.read_text()

    try:
        yield wait_for, err.read_text
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_follow_shows_new_and_late_logs_once_until_ctrl_c(
    env: dict[str, str], database: Documents, tmp_path: Path
) -> None:
    write_logs(database, 3)
    logs = LogStore(database)
    with following(env, tmp_path, "-n", "1", "--json") as (wait_for, errors):
        wait_for("number 2.")
        logs.write([make_log("new one", at=now(), attempt=make_attempt())])
        wait_for("new one")
        logs.write([make_log("late one", at=now() - timedelta(seconds=20), attempt=make_attempt())])
        wait_for("late one")
        logs.write([make_log("last one", at=now(), attempt=make_attempt())])
        out = wait_for("last one")
        assert errors() == ""
    responses = [json.loads(line)["response"] for line in out.splitlines()]
    assert responses == ["number 2.", "new one", "late one", "last one"]
    assert (tmp_path / "err").read_text().strip() == ""


@pytest.mark.slow
def test_follow_survives_an_outage(servers: Servers, tmp_path: Path) -> None:
    with (
        MongoClient[dict[str, Any]](servers.mongod.url, tz_aware=True) as client,
        following({"WEBHOOKS_MONGODB_URL": servers.mongod.url, "PYTHONUNBUFFERED": "1"}, tmp_path) as (
            wait_for,
            errors,
        ),
    ):
        logs = LogStore(client["webhooks"])
        logs.write([make_log("before", at=now(), attempt=make_attempt())])
        wait_for("before")
        servers.mongod.kill()
        wait_for("; waiting")
        servers.mongod.start()
        logs.write([make_log("after", at=now(), attempt=make_attempt())])
        out = wait_for("after")
        wait_for("MongoDB answers again")
        assert errors().count("\n") == 2
        assert out.count("before") == 1


# ── Send and check ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_send_queues_the_event(run_process: Any, redis_client: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text(EVENT)
    done = run_process("send", "event.json")
    assert done.returncode == 0, done.stderr
    lanes: Any = redis_client.keys("webhooks.lane.webhooks.deliver/*")
    (lane,) = lanes
    messages: Any = redis_client.zrange(lane, 0, -1)
    (message,) = messages
    event_id = json.loads(message)["headers"]["id"]
    assert f"webhooks logs --event {event_id}" in done.stdout
    assert "event_id" in json.loads(run_process("send", "-", "--json", stdin=EVENT).stdout)
    assert redis_client.zcard(lane) == 2


@pytest.mark.parametrize("args", [["list"], ["logs"], ["send", "-"]], ids=lambda args: args[0])
def test_servers_that_are_away_are_one_line_without_password(run_process: Any, args: list[str]) -> None:
    away = {
        "WEBHOOKS_BROKER_URL": f"redis://:secret@{NOTHING}/0",
        "WEBHOOKS_MONGODB_URL": f"mongodb://u:secret@{NOTHING}/x",
    }
    done = run_process(*args, stdin=EVENT, **away)
    assert done.returncode == 1
    assert done.stderr.startswith("webhooks: ")
    assert done.stderr.count("\n") == 1
    assert "start it, or set WEBHOOKS_" in done.stderr
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize("url", ["nonsense://u:secret@h/0", "redis://:se/cret@h:1/0"], ids=["scheme", "slash"])
@pytest.mark.parametrize("args", [["send", "-"], ["check"]], ids=lambda args: args[0])
def test_broker_url_that_cannot_be_used_is_named_without_its_password(
    run_process: Any, args: list[str], url: str
) -> None:
    done = run_process(*args, stdin=EVENT, WEBHOOKS_BROKER_URL=url)
    text = done.stdout + done.stderr
    assert done.returncode == 1
    assert "WEBHOOKS_BROKER_URL" in text
    assert "Traceback" not in text
    assert not any(part in text for part in ("secret", "cret", "se/"))


def test_check_of_servers_that_are_away(run_process: Any) -> None:
    begun = time.monotonic()
    done = run_process(
        "check",
        WEBHOOKS_BROKER_URL=f"redis://:secret@{NOTHING}/0",
        WEBHOOKS_MONGODB_URL=f"mongodb://u:secret@{NOTHING}/x",
    )
    assert time.monotonic() - begun < CHECK_S
    assert done.returncode == 1
    assert done.stdout.count("DOWN") == 2
    assert "WEBHOOKS_BROKER_URL" in done.stdout
    assert "WEBHOOKS_MONGODB_URL" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_check_of_servers_that_hang(run_process: Any, servers: Servers) -> None:
    servers.valkey.pause()
    servers.mongod.pause()
    begun = time.monotonic()
    urls = {"WEBHOOKS_BROKER_URL": servers.valkey.url, "WEBHOOKS_MONGODB_URL": servers.mongod.url}
    done = run_process("check", **urls)
    assert time.monotonic() - begun < CHECK_S
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("DOWN") == 2


@pytest.mark.slow
def test_check_without_and_with_a_worker(
    run_process: Any, env: dict[str, str], redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.rpush("webhooks.send", "x", "y")
    redis_client.hset("unacked", "tag", "message")
    redis_client.zadd("webhooks.parked.webhooks.send", {"message": 1.0})
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    done = run_process("check", "--json")
    redis_client.config_set("maxmemory-policy", "noeviction")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["ok"], report["broker"]["ok"], report["database"]["ok"]) == (False, True, True)
    assert report["broker"]["warnings"][0].startswith("maxmemory-policy is allkeys-lru")
    assert report["database"]["text"].startswith("MongoDB ")
    assert report["queued"] == {"webhooks.deliver": 0, "webhooks.send": 2, "celery": 0}
    assert report["unacked"] == 1
    assert report["parked"] == 1
    assert "celery -A webhooks worker" in run_process("check").stdout

    redis_client.flushdb()
    log_path = tmp_path / "worker.log"
    with log_path.open("w") as log, _worker(env, tmp_path, log):
        deadline = time.monotonic() + PATIENCE_S
        while (done := run_process("check", "--json")).returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        assert done.returncode == 0, done.stdout + log_path.read_text()
        (worker,) = json.loads(done.stdout)["workers"]
        assert worker == {
            "name": "ours@host",
            "active": 0,
            "concurrency": 256,
            "queues": ["celery", "webhooks.deliver", "webhooks.send"],
            "differences": [],
        }
        text = run_process("check").stdout
        assert "worker    ok  " in text
        assert "ours@host: 0 active of 256" in text


@contextmanager
def _worker(env: dict[str, str], cwd: Path, log: Any) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "webhooks", "worker", "--hostname", "ours@host"],
        cwd=cwd, env={**os.environ, **env}, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()


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
